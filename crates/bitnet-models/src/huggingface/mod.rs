//! Hugging Face checkpoints: a directory with `config.json` and one or many safetensors files,
//! checked when opened.
//!
//! ```text
//! config.json                                        shapes, graph, how the weights are quantized
//! model.safetensors                                  all tensors, or
//! model.safetensors.index.json                       {"weight_map": {tensor: file, …}} and the files it names
//! ```
//! As with GGUF, a directory that opens is valid: every tensor lies in its file and has the size of
//! its type and shape.

pub(crate) mod config;
mod hybrid;
mod keys;
pub(crate) mod mlx;
mod modules;
pub(crate) mod names;
pub(crate) mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bitnet_files::safetensors::{DType, StoredTensor, open_directory};
use bitnet_files::{Checksum, Extent, FileStamp, ModelBytes, read_json};
pub use config::{Quantization, WeightScale};
use serde_json::Value;

use crate::config::{Architecture, Config};
use crate::error::Result;
use crate::source::slots::slots;
use crate::source::{LayerSlot, Slot, Source};

/// The configuration.
pub(crate) const CONFIG: &str = "config.json";

/// An open checkpoint. Opening reads the JSON files and the headers, no tensor data.
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    quantization: Quantization,
    /// By name.
    tensors: BTreeMap<String, StoredTensor>,
    untyped_rope_factor: Option<f64>,
    /// Whether to round float weights although `config.json` does not say so.
    rounds_floats: bool,
    /// Tensors that see pictures or predict further tokens, which the graph does not have.
    num_left_out: usize,
    /// Computed on first use, by a comparison of two tables.
    has_own_head: OnceLock<bool>,
}

/// A tensor of a checkpoint, as its file states it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TensorSummary<'a> {
    /// Its name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: DType,
    /// Its dimensions, the contiguous one last.
    pub shape: &'a [usize],
    /// Its size.
    pub num_bytes: usize,
}

impl Checkpoint {
    /// Opens a directory and checks its configuration and all headers.
    ///
    /// # Errors
    /// If a file is missing, contradicts another file or its format, or the engine cannot run the
    /// model.
    pub fn open(path: &Path) -> Result<Self> {
        let json = read_json(&path.join(CONFIG))?;
        let tensors = open_directory(path)?;
        let (config, quantization) = config::read(&json, tensors.len())?;
        let num_all = tensors.len();
        let tensors = match config.architecture {
            Architecture::Qwen35 => hybrid::text_tensors(tensors),
            _ => tensors,
        };
        Ok(Self {
            path: path.to_owned(),
            config,
            quantization,
            num_left_out: num_all - tensors.len(),
            tensors,
            untyped_rope_factor: config::untyped_rope_factor(&json),
            rounds_floats: false,
            has_own_head: OnceLock::new(),
        })
    }

    /// The same, with float weights rounded by the absmean formula where `config.json` has no
    /// `quantization_config`. Without this, such weights must be ternary.
    #[must_use]
    pub fn rounding_floats(self) -> Self {
        Self {
            rounds_floats: true,
            ..self
        }
    }

    /// Number of tensors that see pictures or predict further tokens: the engine leaves them out.
    #[must_use]
    pub fn num_left_out(&self) -> usize {
        self.num_left_out
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What identifies the files of weights and the configuration: for each its stamp, and a hash
    /// of the bytes before its tensors, which are not read. `None` if the system does not report
    /// them, or for weights that are rounded by request.
    #[must_use]
    pub fn identity(&self) -> Option<Vec<(FileStamp, u64)>> {
        if self.rounds_floats {
            return None;
        }
        let config = self.path.join(CONFIG);
        let hash = Checksum::of(&std::fs::read(&config).ok()?);
        let mut files = vec![(FileStamp::of(&config).ok()?, hash)];
        let mut heads: BTreeMap<*const ModelBytes, &Extent> = BTreeMap::new();
        for tensor in self.tensors.values() {
            let first = heads
                .entry(Arc::as_ptr(tensor.data.file()))
                .or_insert(&tensor.data);
            if tensor.data.offset() < first.offset() {
                *first = &tensor.data;
            }
        }
        for first in heads.values() {
            let file = first.file();
            let head = Checksum::of(&file[..first.offset()]);
            files.push((file.stamp()?.clone(), head));
        }
        files.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        Some(files)
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the weights are quantized.
    #[must_use]
    pub fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// The factor of a scaling of positions that has no type. As in transformers, it is ignored.
    #[must_use]
    pub fn untyped_rope_factor(&self) -> Option<f64> {
        self.untyped_rope_factor
    }

    /// Whether the logits come from the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        !self.has_head()
    }

    /// Checks that the directory has every tensor of its graph, and no others. Reads no weights.
    ///
    /// # Errors
    /// The error that loading the model would return.
    pub fn check(&self) -> Result<()> {
        self.check_tensors()?;
        let config = &self.config;
        for slot in slots(self) {
            match slot {
                Slot::Embedding | Slot::Head => {
                    let (rows, cols) = (config.vocab_size, config.hidden_size);
                    if self.affine(slot, rows, cols)?.is_none() {
                        drop(self.table(slot, rows, cols)?);
                    }
                }
                Slot::OutputNorm => drop(self.vector(slot, config.hidden_size)?),
                Slot::Layer(_, LayerSlot::Weight(projection)) => {
                    let (rows, cols) = projection.shape(config);
                    if self.affine(slot, rows, cols)?.is_none() {
                        self.expect_tensor(slot)?;
                    }
                }
                Slot::Layer(_, constant) => match constant.dims(config)[..] {
                    [cols, rows] => drop(Source::floats(self, slot, rows, cols)?),
                    ref dims => drop(self.vector(slot, dims.iter().product())?),
                },
            }
        }
        Ok(())
    }

    /// Its tensors by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorSummary<'_>> {
        self.tensors.iter().map(|(name, tensor)| TensorSummary {
            name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            num_bytes: tensor.data.len(),
        })
    }
}

impl Checkpoint {
    /// Type, shape and bytes of a tensor.
    pub(crate) fn stored(&self, name: &str) -> Option<(DType, &[usize], &Extent)> {
        self.tensors
            .get(name)
            .map(|tensor| (tensor.dtype, &tensor.shape[..], &tensor.data))
    }
}

/// The ids of the tokens that end a text, one or several: `eos_token_id` of
/// `generation_config.json`, else of `config.json`; empty if neither has one.
///
/// # Errors
/// If one of the files exists and cannot be read, or is not JSON.
pub fn end_tokens(directory: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", CONFIG] {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let json = read_json(&path)?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Vec<u32> = match &json["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            value => id(value).into_iter().collect(),
        };
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}
