//! TEXT to IDS: tokenizers, incremental detokenization and chat templates.
//!
//! In the life of a token this crate stands at both ends: [`ChatTemplate::render`] and
//! [`Tokenizer::encode`] turn a request into token ids, [`Detokenizer::push`] turns each new id
//! back into whole characters.
//!
//! A [`Tokenizer`] is built from the metadata of a GGUF file ([`TokenizerSpec`], filled in by the
//! caller: this crate knows nothing of GGUF) or from Hugging Face's JSON files
//! ([`TokenizerFiles`]). Two models are known: byte-level or SentencePiece-like BPE, driven by
//! merge ranks, and SentencePiece's unigram-scored merging as llama.cpp does it. A file that needs
//! anything else is refused, and the error names what it needs.
#![forbid(unsafe_code)]

mod alphabet;
mod bpe;
mod chat;
mod detokenizer;
mod error;
mod export;
mod jinja;
mod json;
mod merge;
mod pretokenize;
mod spec;
mod special;
mod spm;
mod tokenizer;
mod vocabulary;

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use chat::{
    ChatMessage, ChatTemplate, ReasoningSplitter, ReasoningTags, RenderOptions, RenderedChat,
    SplitText,
};
pub use detokenizer::{DecodeOptions, Detokenizer};
pub use error::{Error, Result};
pub use json::TokenizerFiles;
pub use spec::TokenizerSpec;
pub use tokenizer::{EncodeOptions, PromptBos, Tokenizer};
pub use vocabulary::TokenKind;

/// The id of a token: its row in the vocabulary, and in the embedding of the model that goes with
/// it.
///
/// Any `u32` can be one; whether a vocabulary has it is the vocabulary's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TokenId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseIntError> {
        text.trim().parse().map(TokenId)
    }
}

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
