//! [`SafetensorsWriter`]: a safetensors file, written front to back.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::format::DType;
use crate::checksum::Checksum;
use crate::error::Result;
use crate::pieces::Pieces;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Its name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// How its elements are stored.
    pub dtype: DType,
    /// Its dimensions, the contiguous one last.
    pub shape: Vec<usize>,
}

impl TensorEntry {
    /// Its size.
    pub fn num_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.num_bytes()
    }
}

/// A file that is being written: the tensor list, then each tensor's bytes in its order.
pub struct SafetensorsWriter {
    pieces: Pieces,
    tensors: Vec<TensorEntry>,
}

impl SafetensorsWriter {
    /// Writes the header into an empty file. path: its name, for messages.
    pub fn new(file: File, path: &Path, tensors: Vec<TensorEntry>) -> Result<Self> {
        // Hugging Face's loader refuses files without a known format here.
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
        let mut offset = 0;
        for tensor in &tensors {
            let end = offset + tensor.num_bytes();
            let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end]});
            header.insert(tensor.name.clone(), entry);
            offset = end;
        }
        let mut text = Value::from(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let head = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        Ok(Self {
            pieces: Pieces::new(file, path, &head, 1)?,
            tensors,
        })
    }

    /// Begins the next tensor of the list and returns it.
    ///
    /// # Panics
    /// If the tensor before is incomplete, or all are written.
    pub fn begin_tensor(&mut self) -> Result<&TensorEntry> {
        let tensor = &self.tensors[self.pieces.num_begun()];
        self.pieces.begin(tensor.num_bytes())?;
        Ok(tensor)
    }

    /// Appends bytes to the current tensor.
    ///
    /// # Panics
    /// If the tensor has less room.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pieces.write(bytes)
    }

    /// Flushes everything to the disk. Returns the tensors with the checksums of their bytes.
    ///
    /// # Panics
    /// If a tensor is missing or incomplete.
    pub fn finish(self) -> Result<Vec<(TensorEntry, Checksum)>> {
        assert_eq!(
            self.pieces.num_begun(),
            self.tensors.len(),
            "tensors written and announced"
        );
        Ok(self
            .tensors
            .into_iter()
            .zip(self.pieces.finish()?)
            .collect())
    }
}
