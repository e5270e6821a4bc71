//! [`GroupMatrix`]: weights with one scale for each group of columns of a row.

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

/// Matrices of equal width, stacked as in [`crate::TernaryMatrix`], of signs or codes of 2 bits
/// with a scale for each 64 or 128 columns of a row.
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
        let mut bytes = Huge::zeros(blocks.len() * layout.block_bytes());
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
                for chunk in layout.chunks() {
                    let start = chunk.start(block, blocks.len());
                    // SAFETY: each block is in one thread's share, and chunks do not overlap.
                    let bytes = unsafe { output.slice(start..start + chunk.block_bytes) };
                    pack_chunk(layout, &chunk, codes, scales, bytes);
                }
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
        (num_blocks.checked_mul(layout.block_bytes()) == Some(bytes.len())).then(|| Self {
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
        for (group, out) in out.chunks_mut(self.group_cols()).enumerate() {
            let bytes = self.group(group).of(block);
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
        self.layout.block_bytes() / BLOCK_ROWS
    }

    pub(crate) fn layout(&self) -> GroupLayout {
        self.layout
    }

    /// A group of all blocks.
    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> GroupOfBlocks<'_> {
        let place = |block| self.layout.group_place(block, group, self.num_blocks);
        let ((first, code_bytes), (second, _)) = (place(0), place(1));
        GroupOfBlocks {
            bytes: &self.bytes,
            first,
            stride: second - first,
            len: code_bytes + SCALE_BYTES,
        }
    }

    /// The groups of a chunk of one block, one after the other.
    #[inline(always)]
    pub(crate) fn chunk(&self, block: usize, chunk: &GroupChunk) -> &[u8] {
        let start = chunk.start(block, self.num_blocks);
        &self.bytes[start..start + chunk.block_bytes]
    }
}

/// A group of columns of all blocks.
pub(crate) struct GroupOfBlocks<'a> {
    bytes: &'a [u8],
    /// Where the group of the first block begins.
    first: usize,
    /// Bytes from there to the group of the next block.
    stride: usize,
    len: usize,
}

impl<'a> GroupOfBlocks<'a> {
    /// The codes of one block, and its scales after them.
    #[inline(always)]
    pub(crate) fn of(&self, block: usize) -> &'a [u8] {
        &self.bytes[self.first + block * self.stride..][..self.len]
    }
}

impl GroupCodes {
    /// The kernels that count products: with a single row of activations, and with several.
    #[must_use]
    pub fn kernels(self) -> [Kernel; 2] {
        match self {
            Self::Signs => [Kernel::SignGemv, Kernel::SignGemm],
            Self::TwoBits => [Kernel::TwoBitGemv, Kernel::TwoBitGemm],
        }
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
