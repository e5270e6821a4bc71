//! Errors in a tokenizer's files, in a text, or in a chat template.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the culprit and the numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A vocabulary without tokens.
    #[error("the vocabulary has no tokens")]
    NoTokens,
    /// `tokenizer.ggml.model` is neither `gpt2` nor `llama`.
    #[error("tokenizer model {name:?} is not supported (supported: gpt2, llama)")]
    UnsupportedModel {
        /// The model named by the file.
        name: String,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer that this crate does not support.
    #[error("pre-tokenizer {name:?} is not supported (supported: {supported})")]
    UnsupportedPretokenizer {
        /// The pre-tokenizer named by the file.
        name: String,
        /// The names that are supported, separated by commas.
        supported: String,
    },
    /// A component of tokenizer.json that this crate does not support.
    #[error("tokenizer.json: {component} {name} is not supported")]
    Unsupported {
        /// The component: `normalizer`, `pre_tokenizer`, `model`, …
        component: &'static str,
        /// Its type, or the property that is not supported.
        name: String,
    },
    /// A list with an entry for each token does not have the length of the vocabulary.
    #[error("{what} has {len} entries, expected {vocab_size} (one per token)")]
    LengthMismatch {
        /// The list.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The number of tokens.
        vocab_size: usize,
    },
    /// A special token's id lies outside the vocabulary.
    #[error("{what} {id} is outside the vocabulary of {vocab_size} tokens")]
    IdOutOfRange {
        /// Which special token.
        what: &'static str,
        /// Its id.
        id: u32,
        /// The number of tokens.
        vocab_size: usize,
    },
    /// Token ids are so sparse that a table of them would be far larger than the file.
    #[error("token {token:?} has id {id}, but the file has only {count} tokens")]
    SparseIds {
        /// The token.
        token: String,
        /// Its id.
        id: u64,
        /// Number of tokens that the file lists.
        count: usize,
    },
    /// A merge that is not two non-empty pieces separated by a space.
    #[error("merge {index} is {merge:?}, expected two pieces separated by a space")]
    BadMerge {
        /// Its position in the list, from 0.
        index: usize,
        /// The merge, cut to 64 characters.
        merge: String,
    },
    /// A byte-level vocabulary with tokens of several bytes but without merges, which would encode
    /// every text byte by byte.
    #[error("a byte-level vocabulary of {vocab_size} tokens needs merges, the file has none")]
    NoMerges {
        /// The number of tokens.
        vocab_size: usize,
    },
    /// The vocabulary or a text exceeds 32-bit offsets.
    #[error("{what} has {len} bytes, the maximum is {max}")]
    TooLarge {
        /// The item that is too large.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The metadata requires a token before or after every text, but does not name it.
    #[error("the tokenizer adds {what} to every text, but names no such token")]
    MissingToken {
        /// `bos` or `eos`.
        what: &'static str,
    },
    /// A token named by the configuration is not in the vocabulary.
    #[error("{what} {token:?} is not in the vocabulary")]
    UnknownToken {
        /// Which special token.
        what: &'static str,
        /// Its text.
        token: String,
    },
    /// A text has a character for which the vocabulary has no token, no bytes and no unknown token.
    #[error("the vocabulary has no token for {text:?}")]
    NoTokenFor {
        /// The character, or the bytes of one.
        text: String,
    },
    /// A JSON file that cannot be parsed.
    #[error("{file}: {source}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// The problem, with line and column.
        source: serde_json::Error,
    },
    /// A property of a JSON file has the wrong type or is missing.
    #[error("{file}: {what}")]
    BadField {
        /// The file's name.
        file: &'static str,
        /// The problem.
        what: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A chat role that is not a plain word.
    #[error("chat role {role:?} is not 1 to 64 letters, digits, '_' or '-'")]
    BadRole {
        /// The role, cut to 64 characters.
        role: String,
    },
    /// A name that no built-in chat template has.
    #[error("chat template {name:?} is not known (known: {known})")]
    UnknownTemplate {
        /// The name.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// A conversation of no messages.
    #[error("the conversation is empty: at least one message is needed")]
    NoMessages,
    /// A message without a role.
    #[error("a message has no role")]
    NoRole,
    /// A conversation whose last message cannot be continued: it has no text, or its template does
    /// not write that text.
    #[error("the last message has no text that can be continued")]
    NothingToContinue,
    /// A variable for a template with a reserved name.
    #[error("template variable {name:?} cannot be set: it is part of the conversation")]
    ReservedVariable {
        /// The name.
        name: String,
    },
    /// A Jinja chat template that does not compile, raises an exception, or exceeds its limits.
    #[error("chat template: {0}")]
    Template(String),
}

/// `text` cut to 64 characters, as errors quote it.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(64).collect()
}
