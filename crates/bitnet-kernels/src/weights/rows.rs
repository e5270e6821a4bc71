//! [`TernaryRows`]: a matrix by rows, for steps that read only some rows.

use bytes::Bytes;

use crate::layout::lines::BLOCK_ROWS;
use crate::layout::runs::{RUN_LINE_BYTES, copy_rows};
use crate::threads::pool::Pool;
use crate::weights::matrix::{LineScratch, Part, TernaryMatrix};
use crate::weights::runs::Runs;

/// One matrix row by row, for products that need only few rows.
pub struct TernaryRows {
    pub(crate) runs: Runs,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) scale: f32,
}

impl TernaryRows {
    /// Copies one part of a stack, on all threads of `pool`.
    #[must_use]
    pub fn new(pool: &Pool, matrix: &TernaryMatrix, part: usize) -> Self {
        let (rows, scale) = (matrix.parts()[part].rows, matrix.parts()[part].scale);
        let first_block = matrix.part_blocks(part).start;
        let runs = Runs::pack(rows, matrix.cols(), |bytes, run_lines| {
            let run_bytes = run_lines * RUN_LINE_BYTES;
            pool.split_mut(bytes, run_bytes, BLOCK_ROWS, &|share, out| {
                let mut scratch = LineScratch::take();
                for (block, out) in (first_block + share.start / BLOCK_ROWS..)
                    .zip(out.chunks_mut(BLOCK_ROWS * run_bytes))
                {
                    let lines = scratch
                        .unpack(matrix, block)
                        .unwrap_or_else(|| matrix.lines(block));
                    copy_rows(lines, out, run_bytes);
                }
            });
        });
        Self {
            runs,
            rows,
            cols: matrix.cols(),
            scale,
        }
    }

    /// Rows that were packed before, from `part`, with `cols` columns. `None` if the number of
    /// bytes is wrong.
    #[must_use]
    pub fn from_packed(part: Part, cols: usize, bytes: Bytes) -> Option<Self> {
        let Part { rows, scale } = part;
        Some(Self {
            runs: Runs::from_packed(rows, cols, bytes)?,
            rows,
            cols,
            scale,
        })
    }

    /// The packed rows, for [`Self::from_packed`].
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        self.runs.bytes()
    }

    /// Bytes of the weights, padding included.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.runs.num_bytes()
    }
}
