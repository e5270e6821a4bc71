//! [`Table`]: a matrix with a row for each token, as the embedding and the head are stored: read where it lies in the file.

use std::sync::Arc;

use bitnet_kernels::Cpu;
use bitnet_quantization::dense::Dense;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorRange, TensorType};

/// Rows of floats or blocks, `[rows, cols]`.
#[derive(Clone)]
pub struct Table {
    bytes: Bytes,
    format: Dense,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

/// Where the bytes are.
#[derive(Clone)]
enum Bytes {
    Gguf(Arc<Gguf>, TensorRange),
}

impl Table {
    /// The tensor of that name, which must be `[rows, cols]` in a format that rows can be read from.
    ///
    /// # Errors
    /// If it is missing, of another shape, or of a type that is not supported here.
    pub(crate) fn from_gguf(gguf: &Arc<Gguf>, name: &str, rows: usize, cols: usize) -> Result<Self> {
        let tensor = gguf.require_tensor(name)?;
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            return Err(Error::Shape { tensor: name.to_owned(), found: tensor.dims.to_vec(), expected: vec![cols, rows] });
        }
        let format = dense_format(tensor.dtype).ok_or_else(|| Error::TensorUse {
            tensor: name.to_owned(),
            found: tensor.dtype.name(),
            used_as: "an embedding or a head",
            supported: "F32, F16, BF16, Q8_0, Q6_K, Q4_0",
        })?;
        let row_bytes = format.size_bytes(1, cols).map_err(|source| Error::Tensor { tensor: name.to_owned(), source })?;
        Ok(Self { bytes: Bytes::Gguf(Arc::clone(gguf), tensor.range()), format, rows, cols, row_bytes })
    }

    /// Rows: one for each token.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How the rows are stored.
    #[must_use]
    pub fn format(&self) -> Dense {
        self.format
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Gguf(gguf, range) => gguf.bytes(*range),
        }
    }

    /// Row `index` as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn read_row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.cols, "row {index} of {} into {}", self.rows, out.len());
        decode(self.format, &self.bytes()[index * self.row_bytes..(index + 1) * self.row_bytes], out);
    }

    /// `out[t] = rows · x[t]`, x: `[n, cols]`, out: `[n, rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn project(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        let bytes = self.bytes();
        match self.format {
            Dense::F16 => cpu.project_f16(bytes, x, self.cols, out),
            format => cpu.project(self.row_bytes, bytes, x, self.cols, out, &|row, values| decode(format, row, values)),
        }
    }
}

/// A row as f32. Its length was checked when the table was made.
fn decode(format: Dense, row: &[u8], out: &mut [f32]) {
    if let Err(error) = format.dequantize(row, out) {
        unreachable!("a row of a checked table: {error}");
    }
}

/// The format of a tensor that is not ternary.
pub(crate) fn dense_format(dtype: TensorType) -> Option<Dense> {
    Some(match dtype {
        TensorType::F32 => Dense::F32,
        TensorType::F16 => Dense::F16,
        TensorType::BF16 => Dense::BF16,
        TensorType::Q8_0 => Dense::Q8_0,
        TensorType::Q6_K => Dense::Q6_K,
        TensorType::Q4_0 => Dense::Q4_0,
        _ => return None,
    })
}
