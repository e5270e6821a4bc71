//! MODELS: configurations, the forward pass and conversion.
//!
//! [`LanguageModel::from_gguf`] and [`LanguageModel::from_checkpoint`] load files through one seam
//! (`source`); [`LanguageModel::forward`] turns token ids into logits, with the operations and the
//! memory of a [`Backend`]: the CPU's is here, a GPU's in bitnet-wgpu. [`convert`] writes a model in another
//! form, and [`synthetic`] makes random models of any shape in every form.

#![deny(unsafe_code)]

mod activity;
pub mod backend;
mod cache;
mod config;
pub mod convert;
mod cpu;
pub mod error;
mod forward;
mod grouped;
pub mod huggingface;
mod info;
mod kept;
mod loader;
mod model;
mod options;
mod progress;
mod rotation;
mod sampling;
mod source;
mod sparsity;
pub mod synthetic;
mod table;

pub use activity::FfnActivity;
pub use backend::Backend;
pub use cache::{CacheShape, KvCache, KvType};
pub use config::{Architecture, Config, LinearAttention, Multipliers, Pooling, RopePairs, Yarn};
pub use error::{Error, Result};
pub use forward::{Chunk, LogitRows, Workspace};
pub use info::ModelInfo;
pub use kept::{Keeper, KeptIndex, Packed};
pub use model::{LanguageModel, matrix_shapes};
pub use options::{FfnSparsity, HeadMode, InputRounding, LoadOptions};
pub use progress::LoadProgress;
pub use rotation::lost_rotation;
pub use sampling::SamplingDefaults;
pub use source::gguf::check_gguf;
pub use sparsity::FfnLayer;
pub use table::Table;

/// How the codes of I2_S tensors are arranged, and which arrangement the dead neurons of a layer
/// suggest.
pub use bitnet_quantization::i2_s::{Form as I2sForm, likely_form};

/// The tiles of TL1 and TL2 tensors, which files may not state.
pub use bitnet_quantization::{tl1::Tile as Tl1Tile, tl2::Tile as Tl2Tile};

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
