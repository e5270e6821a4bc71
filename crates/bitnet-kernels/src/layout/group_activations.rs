//! [`GroupActivations`]: rows quantized to int8 with a scale for each run of inputs.

use std::ops::Range;

use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::CELL_COLS;

/// Rows of activations as int8. Each run of 32, 64 or 128 inputs has its own scale.
///
/// A run begins at a multiple of its length; the last may be shorter. Its values are q, its scale
/// is d = absmax / 127, and an input is about q · d. Rows are taken [`TILE_ROWS`] at a time and
/// interleaved by dwords, as in [`crate::Activations`]; columns are padded with zeros to a multiple
/// of 32.
#[derive(Default)]
pub struct GroupActivations {
    rows: usize,
    cols: usize,
    run_cols: usize,
    values: Vec<i8>,
    /// `[runs, rows in the tile]` for each tile: the scale of each run.
    scales: Vec<f32>,
    /// `[runs, rows in the tile]` for each tile: what each run adds to sums of codes times values.
    offsets: Vec<Offset>,
}

/// What a run adds to its sum of codes times values, so that the sum becomes one of weights times
/// values: a code of 2 bits is a weight + 1. So it is −Σ q.
#[derive(Clone, Copy, Default)]
pub(crate) struct Offset {
    /// −Σ q.
    pub whole: i32,
    /// The same number as the sum of two words, in the lower and the upper half. Each is at most
    /// 8128 in magnitude, half of 128 values of at most 127.
    #[cfg_attr(
        not(any(target_arch = "x86_64", test)),
        expect(dead_code, reason = "only sums of pairs of words read it")
    )]
    pub words: i32,
}

impl Offset {
    /// The offset of a run whose values have this sum.
    pub fn of_sum(sum: i32) -> Self {
        let (low, high) = (-sum >> 1, -sum - (-sum >> 1));
        Self {
            whole: -sum,
            words: high << 16 | low & 0xffff,
        }
    }
}

/// The rows of one tile.
#[derive(Clone, Copy)]
pub(crate) struct GroupTile<'a> {
    /// Rows in the tile.
    pub rows: usize,
    /// `[padded cols / 4, rows, 4]`
    pub values: &'a [i8],
    /// The factor of each run's values, `[runs, rows]`.
    pub scales: &'a [f32],
    /// `[runs, rows]`, see [`Offset`].
    pub offsets: &'a [Offset],
}

/// The buffers of all rows, which the caller fills.
pub(crate) struct GroupTileMut<'a> {
    pub values: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub offsets: &'a mut [Offset],
}

impl GroupActivations {
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

    /// Inputs that share a scale.
    #[must_use]
    pub fn run_cols(&self) -> usize {
        self.run_cols
    }

    /// Runs in a row.
    #[must_use]
    pub fn num_runs(&self) -> usize {
        self.cols.div_ceil(self.run_cols.max(1))
    }

    /// The length of a row with its padding.
    pub(crate) fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(CELL_COLS)
    }

    /// Makes room for `rows` rows of `cols` in runs of `run_cols`; their values are unspecified
    /// until written. Allocates only to grow.
    pub(crate) fn reset(&mut self, rows: usize, cols: usize, run_cols: usize) {
        (self.rows, self.cols, self.run_cols) = (rows, cols, run_cols);
        let (values, runs) = (rows * self.padded_cols(), rows * self.num_runs());
        self.values.resize(values.max(self.values.len()), 0);
        self.scales.resize(runs.max(self.scales.len()), 0.0);
        self.offsets
            .resize(runs.max(self.offsets.len()), Offset::default());
    }

    /// The rows of a tile.
    pub(crate) fn tile_rows(&self, tile: usize) -> Range<usize> {
        tile * TILE_ROWS..self.rows.min((tile + 1) * TILE_ROWS)
    }

    pub(crate) fn tile(&self, tile: usize) -> GroupTile<'_> {
        let rows = self.tile_rows(tile);
        let (cols, runs) = (self.padded_cols(), self.num_runs());
        GroupTile {
            rows: rows.len(),
            values: &self.values[rows.start * cols..rows.end * cols],
            scales: &self.scales[rows.start * runs..rows.end * runs],
            offsets: &self.offsets[rows.start * runs..rows.end * runs],
        }
    }

    pub(crate) fn all_mut(&mut self) -> GroupTileMut<'_> {
        let (cols, runs) = (self.padded_cols(), self.num_runs());
        GroupTileMut {
            values: &mut self.values[..self.rows * cols],
            scales: &mut self.scales[..self.rows * runs],
            offsets: &mut self.offsets[..self.rows * runs],
        }
    }

    /// One row's int8 values in natural order, `[cols]`: for tests and inspection.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<i8> {
        let tile = self.tile(row / TILE_ROWS);
        let index = row % TILE_ROWS;
        let at = |col: usize| tile.values[(col / 4 * tile.rows + index) * 4 + col % 4];
        (0..self.cols).map(at).collect()
    }

    /// The scales of one row, `[runs]`: for tests and inspection.
    #[must_use]
    pub fn row_scales(&self, row: usize) -> Vec<f32> {
        let tile = self.tile(row / TILE_ROWS);
        let scales = tile.scales[row % TILE_ROWS..].iter();
        scales.step_by(tile.rows).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_offset_add_up_to_it() {
        for sum in [0, 1, -1, 127, -128, 16_256, -16_256, 4_063] {
            let offset = Offset::of_sum(sum);
            let (low, high) = (offset.words as i16, (offset.words >> 16) as i16);
            assert_eq!(i32::from(low) + i32::from(high), -sum);
            assert_eq!(offset.whole, -sum);
            assert!(low.abs() <= 8128 && high.abs() <= 8128, "{low} {high}");
        }
    }
}
