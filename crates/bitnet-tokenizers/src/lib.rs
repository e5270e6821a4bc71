//! TEXT to IDS: tokenizers, incremental detokenization and chat templates.
//!
//! This crate is the first and the last step in the life of a token: [`ChatTemplate::render`] and
//! [`Tokenizer::encode`] turn a request into token ids, [`Detokenizer::push`] turns each new id
//! back into whole characters.
//!
//! A [`Tokenizer`] is built from the metadata of a GGUF file ([`TokenizerSpec`], filled in by the
//! caller: this crate knows nothing of GGUF) or from Hugging Face's files ([`TokenizerFiles`]). It
//! supports two models: byte-level or SentencePiece-like BPE, driven by merge ranks, and
//! SentencePiece's score-driven merging as in llama.cpp. Any other file causes an error that names
//! the unsupported part.
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
mod sentencepiece;
mod spec;
mod special;
mod spm;
mod token;
mod tokenizer;
mod vocabulary;

pub use chat::{
    CallForm, ChatMessage, ChatTemplate, ReasoningSplitter, ReasoningStart, ReasoningTags,
    RenderOptions, RenderedChat, SplitText,
};
pub use detokenizer::{DecodeOptions, Detokenizer};
pub use error::{Error, Result};
pub use json::TokenizerFiles;
pub use spec::TokenizerSpec;
pub use token::TokenId;
pub use tokenizer::{EncodeOptions, PromptBos, Tokenizer};
pub use vocabulary::TokenKind;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
