//! [`Table`]: a matrix with a row for each token, as files store the embedding and the head. Its
//! rows stay in the mapped file.

use bitnet_files::Extent;
use bitnet_quantization::dense::Dense;

use crate::error::{Error, Result};

/// Rows of floats or blocks, `[rows, cols]`.
#[derive(Clone)]
pub struct Table {
    bytes: Extent,
    format: Dense,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

impl Table {
    /// A table with this name, shape and bytes.
    ///
    /// # Errors
    /// If the format cannot hold rows of that length, or the number of bytes is wrong.
    pub(crate) fn new(
        name: &str,
        bytes: Extent,
        format: Dense,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        let of_tensor = |source| Error::Tensor {
            tensor: name.to_owned(),
            source,
        };
        let row_bytes = format.size_bytes(1, cols).map_err(of_tensor)?;
        let expected = format.size_bytes(rows, cols).map_err(of_tensor)?;
        if bytes.len() != expected {
            let problem = format!("{} bytes, expected {expected}", bytes.len());
            return Err(Error::TensorValues {
                tensor: name.to_owned(),
                problem,
            });
        }
        Ok(Self {
            bytes,
            format,
            rows,
            cols,
            row_bytes,
        })
    }

    /// Number of rows: one for each token.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
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

    /// All rows as they are stored, `[rows, row_bytes]`.
    #[must_use]
    pub fn stored_rows(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets the system take back the memory of rows that were read; later reads come from the file
    /// again.
    pub(crate) fn advise_done(&self) {
        self.bytes.advise_done();
    }

    /// Row `index` as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn read_row(&self, index: usize, out: &mut [f32]) {
        assert!(
            index < self.rows && out.len() == self.cols,
            "row {index} of {} into {}",
            self.rows,
            out.len()
        );
        decode(self.format, self.stored_row(index), out);
    }

    /// Row `index` as it is stored.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn stored_row(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.row_bytes..(index + 1) * self.row_bytes]
    }
}

/// A row as f32. [`Table::new`] has checked its length.
pub(crate) fn decode(format: Dense, row: &[u8], out: &mut [f32]) {
    if let Err(error) = format.dequantize(row, out) {
        unreachable!("a row of a checked table: {error}");
    }
}
