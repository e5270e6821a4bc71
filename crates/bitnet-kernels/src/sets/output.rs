//! [`Output`]: where the threads of a matrix product write.

use crate::layout::lines::BLOCK_ROWS;
use crate::threads::disjoint::Disjoint;

/// The destination of a matrix product: rows of `stride` floats.
pub(crate) struct Output<'a> {
    data: Disjoint<'a, f32>,
    stride: usize,
    /// The block that lies first in a row.
    first_block: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self::with_first_block(data, stride, 0)
    }

    /// Rows that begin with output `first_block`.
    pub(crate) fn with_first_block(data: &'a mut [f32], stride: usize, first_block: usize) -> Self {
        Self {
            data: Disjoint::new(data),
            stride,
            first_block,
        }
    }

    /// Output `block` of `row`.
    ///
    /// # Safety
    /// No other thread may hold the same block of the same row.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "threads write different blocks, as the caller promises"
    )]
    pub(crate) unsafe fn block(&self, row: usize, block: usize) -> &mut [f32] {
        let start = row * self.stride + (block - self.first_block) * BLOCK_ROWS;
        // SAFETY: the caller guarantees that no other thread has this block.
        unsafe { self.data.slice(start..start + BLOCK_ROWS) }
    }
}
