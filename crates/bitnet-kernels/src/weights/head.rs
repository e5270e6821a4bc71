//! [`ScreenTable`]: an 8-bit copy of the head.

use crate::layout::lines::{BLOCK_ROWS, LINE_COLS};
use crate::threads::memory::Huge;

/// The head in 8 bits, with the numbers that bound the error of an estimated logit.
pub struct ScreenTable {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) lines: Huge<u8>,
    pub(crate) bounds: Vec<BlockBounds>,
}

/// The numbers for the estimates of a block: three for each row.
#[derive(Clone)]
pub(crate) struct BlockBounds {
    /// The factor of the row's integers.
    pub(crate) scale: [f32; BLOCK_ROWS],
    /// At least `‖e − scale · integers‖`; infinite for a row whose logit cannot be bounded.
    pub(crate) residual: [f32; BLOCK_ROWS],
    /// At least `‖e‖` and `‖scale · integers‖`.
    pub(crate) norm: [f32; BLOCK_ROWS],
}

impl ScreenTable {
    pub(crate) fn block_bytes(cols: usize) -> usize {
        cols.next_multiple_of(LINE_COLS) * BLOCK_ROWS
    }

    /// Rows of the table.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes kept: the integers and three numbers a row. One pass reads them all.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.lines.len() + size_of_val(self.bounds.as_slice())
    }
}
