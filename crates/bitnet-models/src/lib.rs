//! MODELS: files to checked views, configurations and the forward pass.
//!
//! [`gguf::Gguf`] opens and checks a file; [`LanguageModel::from_gguf`] loads it; [`LanguageModel::forward`] turns token
//! ids into logits, with the keys and values of past positions in a [`KvCache`].

#![deny(unsafe_code)]

mod cache;
mod config;
pub mod error;
mod forward;
pub mod gguf;
mod model;
mod table;

pub use cache::{KvCache, KvType};
pub use config::{Architecture, Config, RopePairs};
pub use error::{Error, Result};
pub use forward::{Chunk, LogitRows, Workspace};
pub use model::{LanguageModel, LoadOptions};
pub use table::Table;

/// How the codes of I2_S tensors are arranged, and which arrangement a layer's dead neurons speak for.
pub use bitnet_quantization::i2_s::{Form as I2sForm, likely_form as likely_i2s_form};
