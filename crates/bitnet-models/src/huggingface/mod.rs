//! Hugging Face checkpoints: a directory with `config.json` and one or many safetensors files,
//! checked when opened.
//!
//! ```text
//! config.json                                        shapes, graph, how the weights are quantized
//! model.safetensors                                  all tensors, or
//! model.safetensors.index.json                       {"weight_map": {tensor: file, …}} and the files it names
//! ```
//! As with GGUF, what `open` accepts is sound: every tensor lies in its file and has the size of
//! its type and shape.

pub(crate) mod config;
mod safetensors;
pub(crate) mod source;
pub(crate) mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, Result, shown};
use crate::mmap::{Extent, ModelBytes};
pub use config::{Quantization, WeightScale};
pub use safetensors::DType;

/// The longest `config.json` or index that is read, in bytes; real ones are below a few megabytes.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// The file of all tensors.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The configuration.
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint. Opening reads the JSON files and the headers, no tensor data.
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    quantization: Quantization,
    /// By name.
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor's type and place.
struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Extent,
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
    /// If a file is missing or contradicts another, its format or what the engine can run.
    pub fn open(path: &Path) -> Result<Self> {
        let json = read_json(&path.join(CONFIG))?;
        // No name comes twice: a header repeats none, and an index lists each for one file.
        let tensors: BTreeMap<String, Tensor> = open_shards(path)?.into_iter().flatten().collect();
        let (config, quantization) = config::read(&json, tensors.len())?;
        Ok(Self {
            path: path.to_owned(),
            config,
            quantization,
            tensors,
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

/// The tensors of one file.
type Shard = Vec<(String, Tensor)>;

/// Opens the one file, or the files of the index.
fn open_shards(path: &Path) -> Result<Vec<Shard>> {
    let single = path.join(SINGLE);
    if single.exists() {
        return Ok(vec![open_shard(&single)?]);
    }
    let index_path = path.join(INDEX);
    if !index_path.exists() {
        let problem = format!(
            "there is neither {SINGLE} nor {INDEX}; other forms of weights are not supported"
        );
        return Err(Error::Checkpoint {
            path: path.to_owned(),
            problem,
        });
    }
    let index = read_json(&index_path)?;
    let wrong = |problem| Error::Checkpoint {
        path: index_path.clone(),
        problem,
    };
    let Some(weight_map) = index.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(wrong("there is no object \"weight_map\"".into()));
    };
    let mut by_file: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for (name, file) in weight_map {
        let file = file.as_str().filter(|file| is_file_name(file));
        let Some(file) = file else {
            return Err(wrong(format!(
                "tensor {} is in no file of this directory",
                shown(name)
            )));
        };
        by_file.entry(file).or_default().insert(name);
    }
    by_file
        .iter()
        .map(|(file, listed)| open_listed_shard(path, &index_path, file, listed))
        .collect()
}

/// Opens a file of an index and checks that it has the tensors listed for it and no others.
fn open_listed_shard(
    path: &Path,
    index: &Path,
    file: &str,
    listed: &HashSet<&str>,
) -> Result<Shard> {
    let wrong = |problem| Error::Checkpoint {
        path: index.to_owned(),
        problem,
    };
    let shard_path = path.join(file);
    if !shard_path.exists() {
        return Err(wrong(format!(
            "{} of its tensors are in {}, which is missing",
            listed.len(),
            shown(file)
        )));
    }
    let shard = open_shard(&shard_path)?;
    let found: HashMap<&str, &Tensor> = shard
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    if let Some(name) = listed
        .iter()
        .filter(|name| !found.contains_key(*name))
        .min()
    {
        return Err(wrong(format!(
            "tensor {} is said to be in {}, which has no such tensor",
            shown(name),
            shown(file)
        )));
    }
    if let Some(name) = found.keys().filter(|name| !listed.contains(*name)).min() {
        return Err(wrong(format!(
            "tensor {} of {} is not listed for that file",
            shown(name),
            shown(file)
        )));
    }
    Ok(shard)
}

fn open_shard(path: &Path) -> Result<Shard> {
    let file = Arc::new(ModelBytes::map(path)?);
    let entries = safetensors::parse(&file, path)?;
    let tensor = |entry: safetensors::Entry| {
        let data = Extent::new(&file, entry.offset, entry.len);
        (
            entry.name,
            Tensor {
                dtype: entry.dtype,
                shape: entry.shape,
                data,
            },
        )
    };
    Ok(entries.into_iter().map(tensor).collect())
}

/// A file of the same directory, whatever the index says.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(std::path::Component::Normal(_)), None)
    ) && !name.contains(['/', '\\'])
}

/// Reads a JSON file of bounded size.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    if metadata.len() > JSON_BYTES_MAX {
        let problem = format!(
            "{} bytes of JSON; at most {JSON_BYTES_MAX} are read",
            metadata.len()
        );
        return Err(Error::Checkpoint {
            path: path.to_owned(),
            problem,
        });
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}
