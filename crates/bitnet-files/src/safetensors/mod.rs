//! Safetensors: files with a JSON header, and directories of them.
//!
//! ```text
//! model.safetensors                 all tensors, or
//! model.safetensors.index.json      {"weight_map": {tensor: file, …}} and the files it names
//! ```
//! As with GGUF, what opens is sound: every tensor lies in its file and has the size of its type
//! and shape.

mod format;
mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

pub use format::DType;
pub use writer::{SafetensorsWriter, TensorEntry};

use crate::error::{Error, Result, shown};
use crate::json::read_json;
use crate::mmap::{Extent, ModelBytes};

/// The file of all tensors.
pub const SINGLE: &str = "model.safetensors";
/// The index of a model in several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor's type, shape and bytes.
pub struct StoredTensor {
    /// How its elements are stored.
    pub dtype: DType,
    /// Its dimensions, the contiguous one last.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: Extent,
}

/// The tensors of a directory by name: of [`SINGLE`], or of all files that [`INDEX`] lists.
///
/// # Errors
/// If a file is missing, or contradicts its format or the index.
pub fn open_directory(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    // No name occurs twice: neither a header nor an index repeats a name.
    Ok(open_shards(path)?.into_iter().flatten().collect())
}

/// The tensors of one file.
type Shard = Vec<(String, StoredTensor)>;

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
        return Err(Error::Directory {
            path: path.to_owned(),
            problem,
        });
    }
    let index = read_json(&index_path)?;
    let wrong = |problem| Error::Directory {
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
    let wrong = |problem| Error::Directory {
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
    let found: HashMap<&str, &StoredTensor> = shard
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    if let Some(name) = listed
        .iter()
        .filter(|name| !found.contains_key(*name))
        .min()
    {
        return Err(wrong(format!(
            "the index lists tensor {} in {}, which does not have it",
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
    let entries = format::parse(&file, path)?;
    let tensor = |entry: format::Entry| {
        let data = Extent::new(&file, entry.offset, entry.len);
        (
            entry.name,
            StoredTensor {
                dtype: entry.dtype,
                shape: entry.shape,
                data,
            },
        )
    };
    Ok(entries.into_iter().map(tensor).collect())
}

/// Whether a name is a file name in the same directory, not a path.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(std::path::Component::Normal(_)), None)
    ) && !name.contains(['/', '\\'])
}
