//! [`GroupTensor`]: a matrix with a scale for each group of columns.

use std::ops::Range;
use std::sync::Arc;

use bitnet_files::{Extent, ModelBytes};
use bitnet_kernels::{GroupCodes, Pool};
use bitnet_quantization::dense::Dense;
use bitnet_quantization::{GroupFormat, recover, recover_near};
use half::f16;

use super::heads::interleaved_row;
use super::ternary_tensor::stores_one_sign;
use crate::error::{Error, Result};
use crate::rotation::Rotation;
use crate::table::Table;

/// A matrix with a scale for each group of columns as it is in a file, `[rows, cols]`.
pub struct GroupTensor {
    /// Its name in the file.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs, a multiple of the group.
    pub cols: usize,
    /// How codes and scales lie in `data`.
    pub format: GroupFormat,
    /// The bytes of the tensor.
    pub data: Extent,
    /// How its input is rotated, if it is.
    pub rotation: Option<Rotation>,
    /// The head size, if the file keeps the two elements of a rotated pair side by side.
    /// [`GroupTensor::unpack_rows`] gives the first half of a head, then the second.
    pub interleaved_heads: Option<usize>,
}

impl GroupTensor {
    /// Codes and group length in which all these tensors can be stacked.
    #[must_use]
    pub fn common(tensors: &[Self]) -> (GroupCodes, usize) {
        let are_signs = tensors
            .iter()
            .all(|tensor| tensor.format == GroupFormat::Q1_0);
        let codes = if are_signs {
            GroupCodes::Signs
        } else {
            GroupCodes::TwoBits
        };
        let lens = tensors.iter().map(|tensor| tensor.format.group_len());
        // Kernels take groups of up to 128 columns; a longer group becomes several.
        (codes, lens.min().unwrap_or(128).min(128))
    }

    /// Unpacks `range` of the rows, in the order of the graph, into codes of `codes`,
    /// `[range.len(), cols]`, and scales of groups of `group_cols` columns, which must divide the
    /// file's groups.
    ///
    /// # Errors
    /// If the bytes contradict the format.
    pub fn unpack_rows(
        &self,
        range: Range<usize>,
        codes: GroupCodes,
        group_cols: usize,
        out: &mut [u8],
        scales: &mut [f16],
    ) -> Result<()> {
        let Some(head_dim) = self.interleaved_heads else {
            return self.unpack_stored(range, codes, group_cols, out, scales);
        };
        let rows = out
            .chunks_exact_mut(self.cols)
            .zip(scales.chunks_exact_mut(self.cols / group_cols));
        for (row, (out, scales)) in range.zip(rows) {
            let stored = interleaved_row(row, head_dim);
            self.unpack_stored(stored..stored + 1, codes, group_cols, out, scales)?;
        }
        Ok(())
    }

    /// The same in the order of the file.
    fn unpack_stored(
        &self,
        range: Range<usize>,
        codes: GroupCodes,
        group_cols: usize,
        out: &mut [u8],
        scales: &mut [f16],
    ) -> Result<()> {
        let (num_rows, len) = (range.len(), self.format.group_len());
        let mut signed = vec![0; num_rows * self.cols];
        let mut stored = vec![0.0; signed.len() / len];
        self.format
            .unpack_rows(
                &self.data,
                self.rows,
                self.cols,
                range,
                &mut signed,
                &mut stored,
            )
            .map_err(|source| Error::Tensor {
                tensor: self.name.clone(),
                source,
            })?;
        for (out, code) in out.iter_mut().zip(&signed) {
            *out = match codes {
                GroupCodes::Signs => u8::from(*code > 0),
                GroupCodes::Trits | GroupCodes::TwoBits => (code + 1) as u8,
            };
        }
        let repeats = len / group_cols;
        for (index, scale) in scales.iter_mut().enumerate() {
            *scale = f16::from_f32(stored[index / repeats]);
        }
        Ok(())
    }

    /// Float weights `[rows, cols]` whose groups have scales, packed without loss. Of blocks that a
    /// quantizer for floats has written, the values change by what that quantizer changed, and by
    /// the rounding of scales to f16.
    ///
    /// # Errors
    /// The reason why they cannot be: other weights, or columns that no format holds.
    pub(crate) fn recover(
        name: &str,
        (format, data): (Dense, &Extent),
        rows: usize,
        cols: usize,
        pool: &Pool,
    ) -> bitnet_quantization::Result<Self> {
        let row_bytes = data.len() / rows;
        let read_row = |row: usize, out: &mut [f32]| {
            format.dequantize(&data[row * row_bytes..(row + 1) * row_bytes], out)
        };
        let (format, bytes) = match format.block_len() {
            1 => recover(rows, cols, &read_row, pool),
            _ => recover_near(rows, cols, &read_row, stores_one_sign(format), pool),
        }?;
        Ok(Self::of_bytes(name, format, bytes, rows, cols))
    }

    /// Packed weights in memory.
    pub(crate) fn of_bytes(
        name: &str,
        format: GroupFormat,
        bytes: Vec<u8>,
        rows: usize,
        cols: usize,
    ) -> Self {
        let bytes = Arc::new(ModelBytes::Owned(bytes));
        Self {
            name: name.to_owned(),
            rows,
            cols,
            format,
            data: Extent::new(&bytes, 0, bytes.len()),
            rotation: None,
            interleaved_heads: None,
        }
    }

    /// Makes a table whose rows can be looked up.
    pub(crate) fn into_table(self) -> Result<Table> {
        let format = Dense::Group(self.format);
        Table::new(&self.name, self.data, format, self.rows, self.cols)
    }
}
