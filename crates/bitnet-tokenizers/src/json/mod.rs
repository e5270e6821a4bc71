//! Hugging Face's JSON files: tokenizer.json and the configurations beside it.
//!
//! Byte-level BPE (Llama 3, Falcon 3, Qwen) and SentencePiece written as BPE with byte fallback
//! (Llama 2, Gemma) are supported; any other component causes an error that names it.

mod components;
mod config;
mod definition;
mod files;
mod format;
mod spec;

use std::path::Path;

pub use files::TokenizerFiles;

use crate::error::Result;
use crate::spec::TokenizerSpec;
use crate::tokenizer::Tokenizer;
use definition::definition;

impl TokenizerFiles {
    /// The tokenizer as a GGUF file would describe it, for `architecture`.
    ///
    /// SentencePiece's scores are not in tokenizer.json; each token gets the negated rank of the
    /// first merge that produces it, which orders merges the same way.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`], or if GGUF has no name for the rules.
    pub fn to_spec<'a>(&'a self, architecture: &'a str) -> Result<TokenizerSpec<'a>> {
        spec::to_spec(definition(self)?, architecture)
    }
}

impl Tokenizer {
    /// Builds a tokenizer from a directory with a `tokenizer.json` or a `tokenizer.model`.
    ///
    /// # Errors
    /// As [`TokenizerFiles::read`] and [`from_files`](Self::from_files).
    pub fn from_dir(directory: &Path) -> Result<Self> {
        Self::from_files(&TokenizerFiles::read(directory)?)
    }

    /// Builds a tokenizer from the contents of Hugging Face's files.
    ///
    /// BOS and EOS are added to texts as the post-processor of tokenizer.json says. As in
    /// transformers 5, `add_bos_token` and `add_eos_token` of the configuration are not read. An
    /// added token that is `special` becomes a control token, another a user-defined one.
    ///
    /// # Errors
    /// If a component is not supported or a file cannot be parsed; the error names it.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        Self::build(definition(files)?)
    }
}
