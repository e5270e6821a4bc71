//! Writes weights that have a scale for each group of columns: from one format to another without
//! loss, as floats that hold them exactly, or by the rule of a format from floats.

use bitnet_quantization::dense::Dense;
use bitnet_quantization::group::repack;
use bitnet_quantization::{Error as NotStored, GroupFormat};

use super::tables::BATCH_WEIGHTS;
use crate::error::{Error, Result};
use crate::source::{GroupTensor, half_split_row, interleaved_row};
use crate::table::Table;

/// Takes the bytes of some rows.
pub(super) type Write<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// A matrix, and the order of its rows in the output file.
pub(super) struct GroupWriter<'a> {
    pub tensor: &'a GroupTensor,
    /// The head size, if the two elements of a rotated pair stand side by side there.
    pub interleave: Option<usize>,
}

impl GroupWriter<'_> {
    /// Writes the codes and scales in another format. A code or a scale that it does not hold is an
    /// error.
    pub(super) fn repack(&self, to: GroupFormat, write: &mut Write<'_>) -> Result<()> {
        let GroupTensor { format, cols, .. } = *self.tensor;
        let of_tensor = |source| self.of_tensor(source);
        let mut out = Vec::new();
        self.for_each_batch(&mut |first, bytes| {
            let rows = bytes.len() / self.row_bytes();
            out.resize(to.size_bytes(rows, cols).map_err(of_tensor)?, 0);
            repack(format, to, bytes, rows, cols, &mut out)
                .map_err(|error| of_tensor(moved(error, first, cols, format.group_len())))?;
            write(&out)
        })
    }

    /// Writes the weights as floats. A weight that they do not hold exactly is an error.
    pub(super) fn floats(&self, to: Dense, write: &mut Write<'_>) -> Result<()> {
        let cols = self.tensor.cols;
        let from = Dense::Group(self.tensor.format);
        let (mut values, mut stored) = (vec![0.0; cols], vec![0.0; cols]);
        let row_bytes = to
            .size_bytes(1, cols)
            .map_err(|source| self.of_tensor(source))?;
        self.for_each_batch(&mut |first, bytes| {
            let rows = bytes.chunks_exact(self.row_bytes());
            let mut out = vec![0; rows.len() * row_bytes];
            for (row, (bytes, out)) in rows.zip(out.chunks_exact_mut(row_bytes)).enumerate() {
                from.dequantize(bytes, &mut values)
                    .and_then(|()| to.quantize(&values, out))
                    .and_then(|()| to.dequantize(out, &mut stored))
                    .map_err(|source| self.of_tensor(source))?;
                if let Some(col) = (0..cols).find(|col| values[*col] != stored[*col]) {
                    let problem = format!(
                        "the weight at row {}, column {col} is {}, which {} cannot hold",
                        first + row,
                        values[col],
                        to.name()
                    );
                    return Err(Error::TensorValues {
                        tensor: self.tensor.name.clone(),
                        problem,
                    });
                }
            }
            write(&out)
        })
    }

    fn row_bytes(&self) -> usize {
        self.tensor.data.len() / self.tensor.rows
    }

    fn of_tensor(&self, source: NotStored) -> Error {
        Error::Tensor {
            tensor: self.tensor.name.clone(),
            source,
        }
    }

    /// Calls `visit(first row, bytes)` for consecutive runs of rows in the order of the output.
    fn for_each_batch(&self, visit: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let GroupTensor { rows, cols, .. } = *self.tensor;
        let row_bytes = self.row_bytes();
        self.tensor.data.advise_sequential();
        let batch = (BATCH_WEIGHTS / cols).clamp(1, rows);
        for first in (0..rows).step_by(batch) {
            let mut bytes = Vec::with_capacity(batch * row_bytes);
            for row in first..rows.min(first + batch) {
                let at = self.stored_row(row) * row_bytes;
                bytes.extend_from_slice(&self.tensor.data[at..at + row_bytes]);
            }
            self.tensor.data.advise_done();
            visit(first, &bytes)?;
        }
        Ok(())
    }

    /// Where a row of the output lies in the source.
    fn stored_row(&self, row: usize) -> usize {
        match (self.tensor.interleaved_heads, self.interleave) {
            (None, Some(head_dim)) => half_split_row(row, head_dim),
            (Some(head_dim), None) => interleaved_row(row, head_dim),
            _ => row,
        }
    }
}

/// Quantizes a matrix of floats by the rule of a format.
pub(super) fn quantize(
    name: &str,
    table: &Table,
    to: GroupFormat,
    write: &mut Write<'_>,
) -> Result<()> {
    let of_tensor = |source| Error::Tensor {
        tensor: name.to_owned(),
        source,
    };
    let cols = table.cols();
    let mut values = vec![0.0; cols];
    let mut out = vec![0; to.size_bytes(1, cols).map_err(of_tensor)?];
    for row in 0..table.rows() {
        table.read_row(row, &mut values);
        to.quantize(&values, 1, cols, &mut out)
            .map_err(|error| of_tensor(moved(error, row, cols, to.group_len())))?;
        write(&out)?;
    }
    table.advise_done();
    Ok(())
}

/// An error of some rows, as one of the whole tensor. first: the row that they begin with.
fn moved(error: NotStored, first: usize, cols: usize, group_len: usize) -> NotStored {
    match error {
        NotStored::GroupCode {
            format,
            row,
            col,
            code,
        } => NotStored::GroupCode {
            format,
            row: first + row,
            col,
            code,
        },
        NotStored::BlockScales {
            format,
            block,
            found,
            expected,
        } => NotStored::BlockScales {
            format,
            block: first * cols / group_len + block,
            found,
            expected,
        },
        NotStored::NotFinite { what, index, value } => NotStored::NotFinite {
            what,
            index: first * cols + index,
            value,
        },
        other => other,
    }
}
