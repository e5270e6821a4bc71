//! Ids back to text, one at a time, in whole characters only.

use std::sync::Arc;

use crate::token::TokenId;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::TokenKind;

/// Options for turning tokens into text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Show control tokens and the unknown token by their names; otherwise they give no text.
    pub show_special: bool,
    /// Remove the space that a SentencePiece-like tokenizer puts before a text. Set it for whole
    /// texts, not for text that continues another, such as a completion.
    pub strip_space_prefix: bool,
}

impl Default for DecodeOptions {
    /// A whole text without its special tokens.
    fn default() -> Self {
        Self {
            show_special: false,
            strip_space_prefix: true,
        }
    }
}

/// Turns a stream of tokens into a stream of text.
///
/// A token's bytes may end in the middle of a character: these are held back until the next token
/// completes it. The texts of all pushes and of [`finish`](Self::finish) joined equal the result of
/// [`Tokenizer::decode`] for all tokens.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    state: State,
}

impl Detokenizer {
    /// Begins a text.
    pub fn new(tokenizer: Arc<Tokenizer>, options: DecodeOptions) -> Self {
        let state = State::new(&tokenizer, options);
        Self { tokenizer, state }
    }

    /// The text that `id` completes: whole characters, possibly none. Bytes that cannot begin a
    /// character become U+FFFD.
    ///
    /// Allocates only while its buffer grows to the longest token.
    pub fn push(&mut self, id: TokenId) -> &str {
        self.state.text.clear();
        self.state.push(&self.tokenizer, id);
        &self.state.text
    }

    /// Ends the text: returns held-back bytes as U+FFFD. The next push begins another text.
    pub fn finish(&mut self) -> &str {
        self.state.text.clear();
        self.state.flush();
        self.state.strip_next = self.state.strips(&self.tokenizer);
        &self.state.text
    }
}

/// The text of all tokens.
pub(crate) fn decode(tokenizer: &Tokenizer, tokens: &[TokenId], options: DecodeOptions) -> String {
    let mut state = State::new(tokenizer, options);
    for &id in tokens {
        state.push(tokenizer, id);
    }
    state.flush();
    state.text
}

struct State {
    options: DecodeOptions,
    /// Whether the text has not begun and a space at its beginning must be removed.
    strip_next: bool,
    /// Bytes that are not text yet: after each push at most the beginning of one character.
    pending: Vec<u8>,
    text: String,
}

impl State {
    fn new(tokenizer: &Tokenizer, options: DecodeOptions) -> Self {
        let mut state = Self {
            options,
            strip_next: false,
            pending: Vec::new(),
            text: String::new(),
        };
        state.strip_next = state.strips(tokenizer);
        state
    }

    fn strips(&self, tokenizer: &Tokenizer) -> bool {
        self.options.strip_space_prefix && tokenizer.has_space_prefix()
    }

    fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) {
        let kind = tokenizer.kind(id);
        if matches!(kind, TokenKind::Control | TokenKind::Unknown) && !self.options.show_special {
            return;
        }
        let mut bytes = tokenizer.token_bytes(id);
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut self.strip_next) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = &self.pending[..];
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.text
                        .push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    let Some(len) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[len..];
                }
            }
        }
        let consumed = self.pending.len() - rest.len();
        self.pending.drain(..consumed);
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
