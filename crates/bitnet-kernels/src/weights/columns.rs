//! [`TernaryColumns`]: a matrix by columns, for steps that read only some columns.

use bytes::Bytes;

use crate::layout::lines::{LINE_BYTES, LINE_COLS};
use crate::layout::packing::GROUP_LINES;
use crate::layout::runs::{BLOCKS_OF_RUN_LINE, RUN_LINE_BYTES, copy_columns};
use crate::threads::disjoint::Disjoint;
use crate::threads::pool::Pool;
use crate::weights::matrix::{Part, TernaryMatrix};
use crate::weights::runs::Runs;

/// One matrix column by column, for activations that are mostly zero.
pub struct TernaryColumns {
    pub(crate) runs: Runs,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) scale: f32,
}

impl TernaryColumns {
    /// Copies a matrix, on all threads of `pool`.
    ///
    /// # Panics
    /// If it is a stack of several.
    #[must_use]
    pub fn new(pool: &Pool, matrix: &TernaryMatrix) -> Self {
        assert!(
            matrix.parts().len() == 1,
            "columns of a stack of {} matrices",
            matrix.parts().len()
        );
        let (rows, scale, cols) = (
            matrix.parts()[0].rows,
            matrix.parts()[0].scale,
            matrix.cols(),
        );
        let unpacked = matrix.unpacked(pool);
        let matrix = unpacked.as_ref().unwrap_or(matrix);
        let num_lines = cols.div_ceil(LINE_COLS);
        let runs = Runs::pack(num_lines * LINE_COLS, rows, |bytes, run_lines| {
            let group_bytes = LINE_COLS * run_lines * RUN_LINE_BYTES;
            let out = Disjoint::new(bytes);
            pool.split(num_lines.div_ceil(GROUP_LINES), 1, &|share| {
                let mut unpacked = [[[0; LINE_BYTES]; GROUP_LINES]; BLOCKS_OF_RUN_LINE];
                for group in share {
                    for index in 0..run_lines {
                        let blocks = BLOCKS_OF_RUN_LINE * index..matrix.num_blocks();
                        let num_blocks = blocks.len().min(BLOCKS_OF_RUN_LINE);
                        let lens = blocks
                            .zip(&mut unpacked)
                            .map(|(block, to)| matrix.unpack_group(block, group, to));
                        let len = lens.fold(0, usize::max);
                        for line in group * GROUP_LINES..group * GROUP_LINES + len {
                            let of_block = |block: usize| &unpacked[block][line % GROUP_LINES];
                            let lines = std::array::from_fn(|block| {
                                (block < num_blocks).then(|| of_block(block))
                            });
                            // SAFETY: each group of lines is in one thread's share, and no other
                            // group has its columns.
                            let out =
                                unsafe { out.slice(line * group_bytes..(line + 1) * group_bytes) };
                            copy_columns(&lines, out.as_chunks_mut().0, run_lines, index);
                        }
                    }
                }
            });
        });
        Self {
            runs,
            rows,
            cols,
            scale,
        }
    }

    /// Columns that were packed before, from a matrix with the rows and the scale of `part` and
    /// `cols` columns. `None` if the number of bytes is wrong.
    #[must_use]
    pub fn from_packed(part: Part, cols: usize, bytes: Bytes) -> Option<Self> {
        let Part { rows, scale } = part;
        let num_runs = cols.checked_next_multiple_of(LINE_COLS)?;
        Some(Self {
            runs: Runs::from_packed(num_runs, rows, bytes)?,
            rows,
            cols,
            scale,
        })
    }

    /// The packed columns, for [`Self::from_packed`].
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
