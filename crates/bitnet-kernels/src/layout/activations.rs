//! [`Activations`]: rows quantized to int8, in the order in which the kernels read them.

use std::ops::Range;

use crate::layout::lines::LINE_COLS;

/// Rows in a tile: the maximum number that one step of a kernel multiplies by the same weights.
pub const TILE_ROWS: usize = 8;

/// Rows that are multiplied at once where a set makes tables of sums for them: four tiles.
pub(crate) const WIDE_ROWS: usize = 4 * TILE_ROWS;

/// Rows of activations as int8, each with the factor it was multiplied by and the sum of its
/// values.
///
/// Rows are taken [`TILE_ROWS`] at a time. A tile of `n` rows (the last may be smaller) interleaves
/// them by dwords: four consecutive values of row 0, the same four of row 1, … row n − 1, then the
/// next four of each. So a single row keeps its natural order. Columns are padded with zeros to a
/// multiple of 16.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// The rows of one tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// `[padded cols / 4, rows, 4]`
    pub values: &'a [i8],
    /// The factor that each row was multiplied by before rounding.
    pub scales: &'a [f32],
    /// The sum of each row's int8 values.
    pub sums: &'a [i32],
}

/// A tile that the caller fills.
pub(crate) struct TileMut<'a> {
    pub values: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
}

impl Activations {
    /// No rows yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row, without padding.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The length of a row with its padding.
    #[must_use]
    pub fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(LINE_COLS)
    }

    /// Makes room for `rows` rows of `cols`; their values are unspecified until written. Allocates
    /// only to grow.
    pub(crate) fn reset(&mut self, rows: usize, cols: usize) {
        self.rows = rows;
        self.cols = cols;
        let values = rows * self.padded_cols();
        if self.values.len() < values {
            self.values.resize(values, 0);
        }
        if self.scales.len() < rows {
            self.scales.resize(rows, 0.0);
            self.sums.resize(rows, 0);
        }
    }

    /// Number of tiles that hold the rows.
    pub(crate) fn num_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The rows of a tile.
    pub(crate) fn tile_rows(&self, tile: usize) -> Range<usize> {
        tile * TILE_ROWS..self.rows.min((tile + 1) * TILE_ROWS)
    }

    pub(crate) fn tile(&self, tile: usize) -> Tile<'_> {
        let rows = self.tile_rows(tile);
        let cols = self.padded_cols();
        Tile {
            values: &self.values[rows.start * cols..rows.end * cols],
            scales: &self.scales[rows.clone()],
            sums: &self.sums[rows],
        }
    }

    /// The buffers that the caller fills: values, scales and sums of all rows.
    pub(crate) fn all_mut(&mut self) -> TileMut<'_> {
        let cols = self.padded_cols();
        TileMut {
            values: &mut self.values[..self.rows * cols],
            scales: &mut self.scales[..self.rows],
            sums: &mut self.sums[..self.rows],
        }
    }

    /// Copies one row's values in natural order, from column `first` on and in whole dwords; zeros
    /// follow the last.
    pub(crate) fn copy_row(&self, row: usize, first: usize, to: &mut [i16]) {
        let tile = self.tile(row / TILE_ROWS);
        let rows = tile.scales.len();
        let (copied, padding) = to.split_at_mut(to.len().min(self.padded_cols() - first));
        if rows == 1 {
            for (to, value) in copied.iter_mut().zip(&tile.values[first..]) {
                *to = i16::from(*value);
            }
        } else {
            let dwords = tile.values.as_chunks::<4>().0[first / 4 * rows + row % TILE_ROWS..]
                .iter()
                .step_by(rows);
            for (to, dword) in copied.as_chunks_mut::<4>().0.iter_mut().zip(dwords) {
                *to = dword.map(i16::from);
            }
        }
        padding.fill(0);
    }

    /// Writes a row given in natural order, `[padded cols]`.
    pub(crate) fn set_row(&mut self, row: usize, values: &[i8], scale: f32, sum: i32) {
        let rows = self.tile_rows(row / TILE_ROWS);
        let padded = self.padded_cols();
        let tile = &mut self.values[rows.start * padded..rows.end * padded];
        interleave(&values[..padded], tile, rows.len(), row - rows.start);
        (self.scales[row], self.sums[row]) = (scale, sum);
    }

    /// One row's int8 values in natural order, `[cols]`: for tests and inspection.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<i8> {
        let tile = self.tile(row / TILE_ROWS);
        let rows = tile.scales.len();
        let index = row % TILE_ROWS;
        (0..self.cols)
            .map(|col| tile.values[(col / 4 * rows + index) * 4 + col % 4])
            .collect()
    }

    /// The factor `127 / max(absmax, 1e-5)` of a row.
    #[must_use]
    pub fn scale(&self, row: usize) -> f32 {
        self.scales[..self.rows][row]
    }
}

/// Spreads a row of int8 values in natural order over a tile of `rows` rows, as row `index` of it.
pub(crate) fn interleave(row: &[i8], tile: &mut [i8], rows: usize, index: usize) {
    for (dword, place) in row
        .as_chunks::<4>()
        .0
        .iter()
        .zip(tile.chunks_exact_mut(4 * rows))
    {
        place[4 * index..4 * index + 4].copy_from_slice(dword);
    }
}
