//! [`GroupMatrix`]: weights with one scale for each group of columns of a row.

use std::cell::Cell;
use std::ops::Range;

use bytes::Bytes;
use half::f16;

use crate::layout::cells::{GroupChunk, GroupCodes, GroupLayout, SCALE_BYTES, scale_of};
use crate::layout::lines::{BLOCK_ROWS, MAX_COLS};
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::threads::memory::Huge;
use crate::threads::pool::Pool;

/// Fills the codes, `[rows, cols]`, and the scales, `[rows, groups]`, of some rows of a part.
pub type UnpackGroups<'a, E> =
    dyn Fn(usize, Range<usize>, &mut [u8], &mut [f16]) -> Result<(), E> + Sync + 'a;

/// Matrices of equal width, stacked as in [`crate::TernaryMatrix`], of signs, trits or codes of 2
/// bits with a scale for each 32, 64 or 128 columns of a row.
///
/// A weight is [`GroupCodes::weight`] of its code times the scale of its group. The parts lie one
/// after the other; each begins at a multiple of 32 rows, and so does its output. Rows of padding
/// have scales of zero.
pub struct GroupMatrix {
    parts: Vec<usize>,
    layout: GroupLayout,
    num_blocks: usize,
    bytes: Bytes,
}

impl GroupMatrix {
    /// Packs a stack of matrices of `parts[i]` rows, on all threads of `pool`.
    ///
    /// `unpack(part, rows, codes, scales)` is called with up to 32 rows of one part at a time, from
    /// any thread and in any order. Its first error ends the packing.
    ///
    /// # Errors
    /// The first error of `unpack`.
    ///
    /// # Panics
    /// If there are no columns or more than a ternary matrix may have, if a group is not of 32, 64
    /// or 128 columns, or if `unpack` gives a code that `codes` does not have.
    pub fn pack<E: Send>(
        pool: &Pool,
        parts: &[usize],
        cols: usize,
        codes: GroupCodes,
        group_cols: usize,
        unpack: &UnpackGroups<'_, E>,
    ) -> Result<Self, E> {
        assert!(
            (1..=MAX_COLS).contains(&cols) && [32, 64, 128].contains(&group_cols),
            "a matrix of {cols} columns in groups of {group_cols}; 1 to {MAX_COLS} in groups of 32, 64 or 128 are possible"
        );
        let layout = GroupLayout {
            codes,
            cols,
            group_cols,
        };
        let blocks: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(part, rows)| (0..*rows).step_by(BLOCK_ROWS).map(move |row| (part, row)))
            .collect();
        let mut bytes = Huge::zeros(blocks.len() * layout.stored_bytes());
        let failure = std::sync::Mutex::new(None);
        let output = Disjoint::new(&mut bytes);
        pool.split(blocks.len(), 1, &|share| {
            let mut codes = vec![0; BLOCK_ROWS * cols];
            let mut scales = vec![f16::ZERO; BLOCK_ROWS * layout.num_groups()];
            for block in share {
                let (part, first_row) = blocks[block];
                let rows = first_row..parts[part].min(first_row + BLOCK_ROWS);
                let codes = &mut codes[..rows.len() * cols];
                let scales = &mut scales[..rows.len() * layout.num_groups()];
                if let Err(error) = unpack(part, rows, codes, scales) {
                    *failure
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    return;
                }
                assert!(
                    codes.iter().all(|code| *code < layout.codes.num_codes()),
                    "a code of {} or more",
                    layout.codes.num_codes()
                );
                // SAFETY: each block is in one thread's share.
                unsafe { pack_block(layout, block, blocks.len(), codes, scales, &output) };
            }
        });
        match failure
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(error) => Err(error),
            None => Ok(Self {
                parts: parts.to_vec(),
                layout,
                num_blocks: blocks.len(),
                bytes: Bytes::from_owner(bytes),
            }),
        }
    }

    /// A stack that was packed before, by [`Self::pack`] with the same parts, columns, codes and
    /// groups. `None` if the number of bytes is wrong, or if no stack has such columns.
    #[must_use]
    pub fn from_packed(
        parts: &[usize],
        cols: usize,
        codes: GroupCodes,
        group_cols: usize,
        bytes: Bytes,
    ) -> Option<Self> {
        if !(1..=MAX_COLS).contains(&cols) || ![32, 64, 128].contains(&group_cols) {
            return None;
        }
        let layout = GroupLayout {
            codes,
            cols,
            group_cols,
        };
        let blocks = parts.iter().map(|rows| rows.div_ceil(BLOCK_ROWS));
        let num_blocks = blocks.fold(0usize, usize::saturating_add);
        (num_blocks.checked_mul(layout.stored_bytes()) == Some(bytes.len())).then(|| Self {
            parts: parts.to_vec(),
            layout,
            num_blocks,
            bytes,
        })
    }

    /// The packed codes and scales, for [`Self::from_packed`].
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The rows of each matrix of the stack.
    #[must_use]
    pub fn parts(&self) -> &[usize] {
        &self.parts
    }

    /// The length of an activation row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.layout.cols
    }

    /// The set of its codes.
    #[must_use]
    pub fn codes(&self) -> GroupCodes {
        self.layout.codes
    }

    /// Columns that share a scale.
    #[must_use]
    pub fn group_cols(&self) -> usize {
        self.layout.group_cols
    }

    /// Scales of a row.
    #[must_use]
    pub fn num_groups(&self) -> usize {
        self.layout.num_groups()
    }

    /// The length of an output row: each part's rows rounded up to a multiple of 32.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.num_blocks * BLOCK_ROWS
    }

    /// Where a part's output lies in an output row.
    #[must_use]
    pub fn output_range(&self, part: usize) -> Range<usize> {
        let before = self.parts[..part].iter();
        let start: usize = before.map(|rows| rows.next_multiple_of(BLOCK_ROWS)).sum();
        start..start + self.parts[part]
    }

    /// Weights of all parts, without padding.
    #[must_use]
    pub fn num_weights(&self) -> usize {
        self.parts.iter().sum::<usize>() * self.cols()
    }

    /// Bytes of codes and scales, padding included: one pass over the matrix reads all of them.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Blocks of 32 rows.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// The kernel that counts a product with `rows` rows of activations.
    #[must_use]
    pub fn kernel(&self, rows: usize) -> Kernel {
        let [of_one, of_several] = self.layout.codes.kernels();
        if rows == 1 { of_one } else { of_several }
    }

    /// Writes row `row` of a part as f32, `[cols]`: each weight times its scale, exactly: a scale
    /// is an f16, so twice a scale never exceeds f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn read_row(&self, part: usize, row: usize, out: &mut [f32]) {
        assert!(
            row < self.parts[part] && out.len() == self.cols(),
            "row {row} of {} into {} values of {}",
            self.parts[part],
            out.len(),
            self.cols()
        );
        let at = self.output_range(part).start + row;
        let (block, lane) = (at / BLOCK_ROWS, at % BLOCK_ROWS);
        let mut scratch = BlockScratch::take();
        let blocks = match self.codes() {
            GroupCodes::Trits => self.blocks().spread(block, &mut scratch),
            GroupCodes::Signs | GroupCodes::TwoBits => self.blocks(),
        };
        for (group, out) in out.chunks_mut(self.group_cols()).enumerate() {
            let bytes = blocks.group(group).of(block);
            let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
            let scale = scale_of(scales, lane);
            for (col, out) in out.iter_mut().enumerate() {
                let code = self.layout.code(codes, lane, col);
                *out = f32::from(self.layout.codes.weight(code)) * scale;
            }
        }
    }

    /// Bytes that [`Self::read_row`] needs of a row: its codes and scales.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.layout.stored_bytes() / BLOCK_ROWS
    }

    /// All blocks.
    pub(crate) fn blocks(&self) -> GroupBlocks<'_> {
        GroupBlocks {
            layout: self.layout,
            first: 0,
            count: self.num_blocks,
            bytes: &self.bytes,
        }
    }
}

/// Some blocks of a matrix, for the kernels. Trits have to be spread first, or read with
/// [`GroupBlocks::stored`].
#[derive(Clone, Copy)]
pub(crate) struct GroupBlocks<'a> {
    layout: GroupLayout,
    /// The index of the first block in the matrix.
    first: usize,
    count: usize,
    bytes: &'a [u8],
}

impl<'a> GroupBlocks<'a> {
    pub(crate) fn layout(&self) -> GroupLayout {
        self.layout
    }

    /// A group of all blocks.
    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> GroupOfBlocks<'a> {
        let place = |block| self.layout.group_place(block, group, self.count);
        let ((start, code_bytes), (second, _)) = (place(0), place(1));
        GroupOfBlocks {
            bytes: self.bytes,
            first: self.first,
            start,
            stride: second - start,
            len: code_bytes + SCALE_BYTES,
        }
    }

    /// The groups of a chunk of one block, one after the other.
    #[inline(always)]
    pub(crate) fn chunk(&self, block: usize, chunk: &GroupChunk) -> &'a [u8] {
        let start = chunk.start(block - self.first, self.count);
        &self.bytes[start..start + chunk.block_bytes]
    }

    /// A block as it lies in memory.
    #[inline(always)]
    pub(crate) fn stored(&self, block: usize) -> &'a [u8] {
        let len = self.layout.stored_bytes();
        &self.bytes[(block - self.first) * len..][..len]
    }

    /// One block of trits with codes of 2 bits.
    pub(crate) fn spread<'s>(
        &self,
        block: usize,
        scratch: &'s mut BlockScratch,
    ) -> GroupBlocks<'s> {
        self.spread_with(block, scratch, |layout, stored, plain| {
            layout.spread(stored, plain);
        })
    }

    /// The same, with a function that spreads a block.
    #[inline(always)]
    pub(crate) fn spread_with<'s>(
        &self,
        block: usize,
        scratch: &'s mut BlockScratch,
        spread: impl Fn(GroupLayout, &[u8], &mut [u8]),
    ) -> GroupBlocks<'s> {
        let plain = scratch.bytes(self.layout.block_bytes());
        spread(self.layout, self.stored(block), plain);
        GroupBlocks {
            layout: self.layout,
            first: block,
            count: 1,
            bytes: plain,
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A thread's buffer for a block with codes of 2 bits. Kept, so that a step allocates nothing.
pub(crate) struct BlockScratch(Vec<u8>);

impl BlockScratch {
    pub(crate) fn take() -> Self {
        Self(SCRATCH.take())
    }

    /// Room for `len` bytes; its contents are unspecified.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

impl Drop for BlockScratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// A group of columns of some blocks.
pub(crate) struct GroupOfBlocks<'a> {
    bytes: &'a [u8],
    /// The index of the first block in the matrix.
    first: usize,
    /// Where the group of the first block begins.
    start: usize,
    /// Bytes from there to the group of the next block.
    stride: usize,
    len: usize,
}

impl<'a> GroupOfBlocks<'a> {
    /// The codes of one block, and its scales after them.
    #[inline(always)]
    pub(crate) fn of(&self, block: usize) -> &'a [u8] {
        &self.bytes[self.start + (block - self.first) * self.stride..][..self.len]
    }
}

impl GroupCodes {
    /// The kernels that count products: with a single row of activations, and with several.
    #[must_use]
    pub fn kernels(self) -> [Kernel; 2] {
        match self {
            Self::Signs => [Kernel::SignGemv, Kernel::SignGemm],
            Self::Trits | Self::TwoBits => [Kernel::TwoBitGemv, Kernel::TwoBitGemm],
        }
    }
}

/// Packs up to 32 rows of codes and scales into block `block` of `num_blocks`.
///
/// # Safety
/// No other thread may use the block.
unsafe fn pack_block(
    layout: GroupLayout,
    block: usize,
    num_blocks: usize,
    codes: &[u8],
    scales: &[f16],
    output: &Disjoint<'_, u8>,
) {
    if layout.codes == GroupCodes::Trits {
        let mut plain = vec![0; layout.block_bytes()];
        for chunk in layout.chunks() {
            pack_chunk(layout, &chunk, codes, scales, &mut plain);
        }
        let len = layout.stored_bytes();
        // SAFETY: the caller's promise.
        layout.squeeze(&plain, unsafe {
            output.slice(block * len..(block + 1) * len)
        });
        return;
    }
    for chunk in layout.chunks() {
        let start = chunk.start(block, num_blocks);
        // SAFETY: the caller's promise, and chunks do not overlap.
        let bytes = unsafe { output.slice(start..start + chunk.block_bytes) };
        pack_chunk(layout, &chunk, codes, scales, bytes);
    }
}

/// Packs the groups of a chunk of up to 32 rows of codes and scales.
fn pack_chunk(
    layout: GroupLayout,
    chunk: &GroupChunk,
    codes: &[u8],
    scales: &[f16],
    bytes: &mut [u8],
) {
    let rows = codes
        .chunks_exact(layout.cols)
        .zip(scales.chunks_exact(layout.num_groups()));
    for (lane, (codes, scales)) in rows.enumerate() {
        let first_col = chunk.first_group * layout.group_cols;
        let groups = bytes.chunks_mut(layout.group_bytes());
        for ((codes, scale), group) in codes[first_col..]
            .chunks(layout.group_cols)
            .zip(&scales[chunk.first_group..])
            .zip(groups)
        {
            layout.pack_row(codes, *scale, lane, group);
        }
    }
}
