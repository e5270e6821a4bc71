//! [`GgufWriter`]: a GGUF file, written front to back, so that no more of a model is in memory than is being written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{ALIGNMENT_DEFAULT, MAGIC, TensorType, Value};
use crate::error::{Error, Result, shown};

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types they hold")]
pub enum MetadataValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

impl MetadataValue {
    /// Whether a file has this value, of this type.
    pub(crate) fn is(&self, found: Option<Value<'_>>) -> bool {
        match (self, found) {
            (Self::U32(a), Some(Value::U32(b))) => *a == b,
            (Self::F32(a), Some(Value::F32(b))) => a.to_bits() == b.to_bits(),
            (Self::Bool(a), Some(Value::Bool(b))) => *a == b,
            (Self::String(a), Some(Value::Str(b))) => a == b,
            (Self::Strings(a), Some(Value::Array(b))) => {
                b.strings().is_some_and(|b| b.eq(a.iter().map(String::as_str)))
            }
            (Self::I32s(a), Some(Value::Array(b))) => b.iter().eq(a.iter().map(|x| Value::I32(*x))),
            (Self::F32s(a), Some(Value::Array(b))) => b.iter().eq(a.iter().map(|x| Value::F32(*x))),
            _ => false,
        }
    }

    /// The format's id of the type, then the value.
    fn write(&self, out: &mut Vec<u8>) {
        fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        }
        match self {
            Self::U32(value) => out.extend([4u32.to_le_bytes(), value.to_le_bytes()].concat()),
            Self::F32(value) => out.extend([6u32.to_le_bytes(), value.to_le_bytes()].concat()),
            Self::Bool(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::String(value) => {
                out.extend(8u32.to_le_bytes());
                write_string(out, value);
            }
            Self::Strings(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| write_string(out, value));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
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
        self.dtype.size_bytes(rows, self.dims[0]).map_err(|why| Error::Convert {
            problem: format!("tensor {} of shape {:?} cannot be {}: {why}", shown(&self.name), self.dims, self.dtype),
        })
    }
}

/// A file being written: first the metadata and the list of tensors, then each tensor's bytes in that order.
pub struct GgufWriter {
    path: PathBuf,
    out: BufWriter<File>,
    tensors: Vec<TensorInfo>,
    /// One for each tensor begun.
    hashes: Vec<u64>,
    /// Bytes of the tensor begun last that are still to come.
    left: usize,
    /// Bytes that align what follows it.
    padding: usize,
}

impl GgufWriter {
    /// Makes the file, which must not exist, and writes everything before the data.
    ///
    /// # Errors
    /// If the system does not allow it, or a tensor cannot have its shape.
    pub fn create(path: &Path, metadata: &[(String, MetadataValue)], tensors: Vec<TensorInfo>) -> Result<Self> {
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
            tensor.dims.iter().for_each(|dim| head.extend((*dim as u64).to_le_bytes()));
            head.extend(tensor.dtype.id().to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += tensor.num_bytes()?.next_multiple_of(ALIGNMENT_DEFAULT as usize);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
        let io = |source| Error::Write { path: path.to_owned(), source };
        let file = File::options().write(true).create_new(true).open(path).map_err(io)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head).map_err(io)?;
        Ok(Self { path: path.to_owned(), out, tensors, hashes: Vec::new(), left: 0, padding: 0 })
    }

    /// Begins the next tensor of the list and returns it; its bytes follow through [`GgufWriter::write`].
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If the one before is not complete, or there is none left.
    pub fn begin_tensor(&mut self) -> Result<&TensorInfo> {
        self.end_tensor()?;
        let tensor = &self.tensors[self.hashes.len()];
        self.left = tensor.num_bytes()?;
        self.padding = self.left.next_multiple_of(ALIGNMENT_DEFAULT as usize) - self.left;
        self.hashes.push(HASH_START);
        Ok(tensor)
    }

    /// Some bytes of the tensor begun last.
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If they are more than the tensor has.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.left, "{} bytes for a tensor that lacks {}", bytes.len(), self.left);
        self.left -= bytes.len();
        if let Some(hash) = self.hashes.last_mut() {
            *hash = hash_bytes(*hash, bytes);
        }
        self.write_all(bytes)
    }

    /// Hands everything to the system and waits until it is stored. Returns the tensors with the hash of their bytes.
    ///
    /// # Errors
    /// If the system does not allow it.
    ///
    /// # Panics
    /// If a tensor is missing or not complete.
    pub fn finish(mut self) -> Result<Vec<(TensorInfo, u64)>> {
        self.end_tensor()?;
        assert_eq!(self.hashes.len(), self.tensors.len(), "tensors written and announced");
        let Self { path, out, tensors, hashes, .. } = self;
        let io = |source| Error::Write { path: path.clone(), source };
        let file = out.into_inner().map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok(tensors.into_iter().zip(hashes).collect())
    }

    fn end_tensor(&mut self) -> Result<()> {
        assert_eq!(self.left, 0, "bytes that tensor {} lacks", self.hashes.len());
        let padding = std::mem::take(&mut self.padding);
        self.write_all(&[0; ALIGNMENT_DEFAULT as usize][..padding])
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// The hash of no bytes.
pub(crate) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, of what was hashed before and `bytes`: enough to find a byte that did not reach the disk.
pub(crate) fn hash_bytes(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
