//! [`GgufWriter`]: writes a GGUF file front to back, so that only the current piece of a model is
//! in memory.

use std::fs::File;
use std::path::Path;

use super::{ALIGNMENT_DEFAULT, MAGIC, TensorType, Value};
use crate::checksum::Checksum;
use crate::error::{Error, Result, shown};
use crate::pieces::Pieces;

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types they hold")]
pub enum MetadataValue {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value of any type, copied from another file.
    Copied(CopiedValue),
}

/// A type id and a value, as a file stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct CopiedValue(Vec<u8>);

impl From<Value<'_>> for MetadataValue {
    fn from(value: Value<'_>) -> Self {
        let mut bytes = Vec::new();
        value.write(&mut bytes);
        Self::Copied(CopiedValue(bytes))
    }
}

impl MetadataValue {
    /// Whether a value found in a file has the same type and bytes.
    pub fn is(&self, found: Option<Value<'_>>) -> bool {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        self.write(&mut own);
        found.is_some_and(|found| {
            found.write(&mut others);
            own == others
        })
    }

    /// The format's id of the type, then the value.
    fn write(&self, out: &mut Vec<u8>) {
        fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        }
        match self {
            Self::U32(value) => Value::U32(*value).write(out),
            Self::I32(value) => Value::I32(*value).write(out),
            Self::F32(value) => Value::F32(*value).write(out),
            Self::Bool(value) => Value::Bool(*value).write(out),
            Self::String(value) => Value::Str(value).write(out),
            Self::Copied(CopiedValue(bytes)) => out.extend(bytes),
            Self::Strings(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| write_string(out, value));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values
                    .iter()
                    .for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values
                    .iter()
                    .for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Its dimensions, the contiguous one first.
    pub dims: Vec<usize>,
}

impl TensorInfo {
    /// Its size.
    ///
    /// # Errors
    /// If the type cannot hold that shape.
    pub fn num_bytes(&self) -> Result<usize> {
        let rows = self.dims[1..].iter().product();
        self.dtype
            .size_bytes(rows, self.dims[0])
            .map_err(|problem| Error::TensorSize {
                tensor: shown(&self.name),
                shape: self.dims.clone(),
                dtype: self.dtype.name(),
                problem,
            })
    }
}

/// A GGUF file that is being written: metadata and tensor list first, then each tensor's bytes in
/// the order of the list.
pub struct GgufWriter {
    pieces: Pieces,
    tensors: Vec<TensorInfo>,
}

impl GgufWriter {
    /// Creates the file, which must not exist, and writes everything before the data.
    ///
    /// # Errors
    /// If the system does not allow it, or a tensor cannot have its shape.
    pub fn create(
        path: &Path,
        metadata: &[(String, MetadataValue)],
        tensors: Vec<TensorInfo>,
    ) -> Result<Self> {
        let file = File::options().write(true).create_new(true).open(path);
        let file = file.map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        Self::new(file, path, metadata, tensors)
    }

    /// Like [`GgufWriter::create`], into an empty open file. path: its name, for messages.
    pub fn new(
        file: File,
        path: &Path,
        metadata: &[(String, MetadataValue)],
        tensors: Vec<TensorInfo>,
    ) -> Result<Self> {
        let mut head = MAGIC.to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            write_string(&mut head, key);
            value.write(&mut head);
        }
        let mut offset = 0;
        for tensor in &tensors {
            write_string(&mut head, &tensor.name);
            head.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor
                .dims
                .iter()
                .for_each(|dim| head.extend((*dim as u64).to_le_bytes()));
            head.extend(tensor.dtype.id().to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += tensor
                .num_bytes()?
                .next_multiple_of(ALIGNMENT_DEFAULT as usize);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
        let pieces = Pieces::new(file, path, &head, ALIGNMENT_DEFAULT as usize)?;
        Ok(Self { pieces, tensors })
    }

    /// Begins the next tensor of the list and returns it; its bytes follow through
    /// [`GgufWriter::write`].
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If the tensor before is incomplete, or all are written.
    pub fn begin_tensor(&mut self) -> Result<&TensorInfo> {
        let tensor = &self.tensors[self.pieces.num_begun()];
        self.pieces.begin(tensor.num_bytes()?)?;
        Ok(tensor)
    }

    /// Appends bytes to the current tensor.
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If the tensor has less room.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pieces.write(bytes)
    }

    /// Flushes everything to the disk. Returns the tensors with the checksums of their bytes.
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If a tensor is missing or incomplete.
    pub fn finish(self) -> Result<Vec<(TensorInfo, Checksum)>> {
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
