//! [`TernaryMatrix`]: ternary weights in the order in which every instruction set streams them.
//!
//! Rows are taken 32 at a time. A block of 32 rows is a run of 128-byte lines, in which dword r is
//! row r; which columns a line holds, and in how many bits, is its [`Packing`]. (In the packings
//! for table lookup, byte r is row r: see `layout/lookup.rs`.)
//!
//! So a thread reads one sequential stream, which hardware prefetchers follow best. A vector lane
//! is a row, so no horizontal sum is needed: a line takes two loads with 512-bit registers, four
//! with 256-bit and eight with 128-bit. A single dot-product instruction multiplies the four bytes
//! of a lane by four consecutive activations, broadcast as one dword.

use std::cell::Cell;
use std::ops::Range;

use bytes::Bytes;

use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES, Line, MAX_COLS};
use crate::layout::lookup::{self, LookupChunk};
use crate::layout::packing::{
    GROUP_LINES, Group, Packing, num_lines, pack_block, split, spread, spread_group, squeeze,
};
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::threads::memory::Huge;
use crate::threads::pool::Pool;

/// One matrix of a stack: its output rows share one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Output rows.
    pub rows: usize,
    /// The factor of the integer sums of these rows.
    pub scale: f32,
}

/// Fills `[rows, cols]` codes −1, 0, 1 with some rows of a part: the part, the rows, the codes.
pub type Unpack<'a, E> = dyn Fn(usize, Range<usize>, &mut [i8]) -> Result<(), E> + Sync + 'a;

/// Ternary matrices of equal width, stacked so that one pass multiplies them all by the same
/// activations.
///
/// The parts (q, k and v, say) lie one after the other; each begins at a multiple of
/// [`BLOCK_ROWS`], and so does its output. Rows of padding are zero.
pub struct TernaryMatrix {
    parts: Vec<Part>,
    cols: usize,
    packing: Packing,
    /// One for each block of rows.
    scales: Vec<f32>,
    bytes: Bytes,
}

impl TernaryMatrix {
    /// Packs a stack of matrices, on all threads of `pool`.
    ///
    /// `unpack(part, rows, codes)` is called with up to [`BLOCK_ROWS`] rows of one part at a time,
    /// from any thread and in any order, and fills `codes`, `[rows, cols]` row-major, with −1, 0 or
    /// 1. Its first error ends the packing.
    ///
    /// # Errors
    /// The first error of `unpack`.
    ///
    /// # Panics
    /// If there are no columns or more than [`MAX_COLS`], or if `unpack` gives another code.
    pub fn pack<E: Send>(
        pool: &Pool,
        parts: &[Part],
        cols: usize,
        packing: Packing,
        unpack: &Unpack<'_, E>,
    ) -> Result<Self, E> {
        assert!(
            (1..=MAX_COLS).contains(&cols),
            "a ternary matrix of {cols} columns; 1 to {MAX_COLS} are possible"
        );
        let block_bytes = packing.block_bytes(cols);
        let blocks: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(index, part)| {
                (0..part.rows.div_ceil(BLOCK_ROWS)).map(move |block| (index, block * BLOCK_ROWS))
            })
            .collect();
        let mut bytes = Huge::zeros(blocks.len() * block_bytes);
        let failure = std::sync::Mutex::new(None);
        let output = Disjoint::new(&mut bytes);
        pool.split(blocks.len(), 1, &|share| {
            let mut codes = vec![0i8; BLOCK_ROWS * cols];
            let mut scratch = LineScratch::take();
            for index in share {
                let (part, first_row) = blocks[index];
                let rows = first_row..parts[part].rows.min(first_row + BLOCK_ROWS);
                let used = rows.len() * cols;
                codes[used..].fill(0);
                if let Err(error) = unpack(part, rows, &mut codes[..used]) {
                    *failure
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    return;
                }
                add_one(&mut codes);
                if let Some(cut) = packing.cut(cols) {
                    for chunk in cut.chunks() {
                        // SAFETY: each block index is in one thread's share, and chunks do not
                        // overlap.
                        let packed = unsafe { output.slice(chunk.place(index, blocks.len())) };
                        lookup::pack_chunk(&codes, cols, &chunk, packed);
                    }
                    continue;
                }
                // SAFETY: each block index is in one thread's share, so no two threads hold the
                // same range.
                let block = unsafe { output.slice(index * block_bytes..(index + 1) * block_bytes) };
                if packing == Packing::Two {
                    pack_block(&codes, cols, block.as_chunks_mut().0);
                } else {
                    let plain = scratch.lines(cols);
                    pack_block(&codes, cols, plain);
                    squeeze(plain, block);
                }
            }
        });
        if let Some(error) = failure
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            return Err(error);
        }
        Ok(Self {
            parts: parts.to_vec(),
            cols,
            packing,
            scales: block_scales(parts),
            bytes: Bytes::from_owner(bytes),
        })
    }

    /// A stack that was packed before, by [`Self::pack`] with the same parts, columns and packing.
    /// `None` if the number of bytes is wrong, or if a stack cannot have such columns.
    #[must_use]
    pub fn from_packed(
        parts: &[Part],
        cols: usize,
        packing: Packing,
        bytes: Bytes,
    ) -> Option<Self> {
        if !(1..=MAX_COLS).contains(&cols) {
            return None;
        }
        let blocks = parts.iter().map(|part| part.rows.div_ceil(BLOCK_ROWS));
        let num_blocks = blocks.fold(0usize, usize::saturating_add);
        if num_blocks.checked_mul(packing.block_bytes(cols)) != Some(bytes.len()) {
            return None;
        }
        Some(Self {
            parts: parts.to_vec(),
            cols,
            packing,
            scales: block_scales(parts),
            bytes,
        })
    }

    /// The packed weights, for [`Self::from_packed`].
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The matrices of the stack.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The length of an activation row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights lie in memory.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The length of an output row: each part's rows rounded up to [`BLOCK_ROWS`].
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.scales.len() * BLOCK_ROWS
    }

    /// Where a part's output lies in an output row.
    #[must_use]
    pub fn output_range(&self, part: usize) -> Range<usize> {
        let start: usize = self.parts[..part]
            .iter()
            .map(|p| p.rows.next_multiple_of(BLOCK_ROWS))
            .sum();
        start..start + self.parts[part].rows
    }

    /// The blocks of rows that hold a part.
    #[must_use]
    pub fn part_blocks(&self, part: usize) -> Range<usize> {
        let output = self.output_range(part);
        output.start / BLOCK_ROWS..output.end.div_ceil(BLOCK_ROWS)
    }

    /// Weights of all parts, without padding.
    #[must_use]
    pub fn num_weights(&self) -> usize {
        self.parts.iter().map(|part| part.rows * self.cols).sum()
    }

    /// Bytes of the packed weights, padding included: one pass over the matrix reads all of them.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Blocks of [`BLOCK_ROWS`] rows.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.scales.len()
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.packing.block_bytes(self.cols)
    }

    /// The same matrix with 2 bits per weight if its packing is for table lookup, else `None`:
    /// [`Self::unpack_group`] gives its lines.
    pub(crate) fn unpacked(&self, pool: &Pool) -> Option<Self> {
        self.packing.cut(self.cols)?;
        let packing = Packing::Two;
        let block_bytes = packing.block_bytes(self.cols);
        let mut bytes = Huge::zeros(self.num_blocks() * block_bytes);
        pool.split_mut(&mut bytes, block_bytes, 1, &|share, bytes| {
            for (block, lines) in share.zip(bytes.chunks_exact_mut(block_bytes)) {
                self.unpack(block, lines.as_chunks_mut().0);
            }
        });
        Some(Self {
            parts: self.parts.clone(),
            cols: self.cols,
            packing,
            scales: self.scales.clone(),
            bytes: Bytes::from_owner(bytes),
        })
    }

    /// Unpacks lines `GROUP_LINES · group` and following of one block to 2 bits; returns their
    /// number.
    pub(crate) fn unpack_group(
        &self,
        block: usize,
        group: usize,
        to: &mut [Line; GROUP_LINES],
    ) -> usize {
        let (lines, first) = match self.packing {
            Packing::Two => (self.lines(block), group * GROUP_LINES),
            _ => {
                let (groups, rest) = self.groups(block);
                if let Some(group) = groups.get(group) {
                    spread_group(group, to);
                    return GROUP_LINES;
                }
                (rest, 0)
            }
        };
        let len = GROUP_LINES.min(lines.len() - first);
        to[..len].copy_from_slice(&lines[first..first + len]);
        len
    }

    /// Unpacks the groups of one block from `group` on to 2 bits, as many as `to` has room for;
    /// returns their lines. For matrices of 1.67 bits.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn spread_groups<'a, const LINES: usize>(
        &self,
        block: usize,
        group: usize,
        to: &'a mut [Line; LINES],
    ) -> &'a [Line] {
        let (groups, rest) = self.groups(block);
        let mut len = 0;
        for (group, to) in groups[group..].iter().zip(to.as_chunks_mut().0) {
            spread_group(group, to);
            len += GROUP_LINES;
        }
        if len < LINES {
            to[len..len + rest.len()].copy_from_slice(rest);
            len += rest.len();
        }
        &to[..len]
    }

    /// The bytes of one block from line `GROUP_LINES · group` on. For matrices without table
    /// lookup.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn bytes_from_group(&self, block: usize, group: usize) -> &[u8] {
        let bytes = self.block(block);
        &bytes[bytes.len().min(group * self.packing.group_bytes())..]
    }

    /// Unpacks a block of a matrix in another packing into lines of 2 bits.
    #[inline(always)]
    pub(crate) fn unpack(&self, block: usize, lines: &mut [Line]) {
        match self.packing.cut(self.cols) {
            None => spread(self.groups(block), lines),
            Some(cut) => {
                let mut codes = vec![0; BLOCK_ROWS * self.cols];
                for chunk in cut.chunks() {
                    lookup::unpack_chunk(self.chunk(block, &chunk), self.cols, &chunk, &mut codes);
                }
                pack_block(&codes, self.cols, lines);
            }
        }
    }

    /// The kernel that counts a product with `rows` rows of activations.
    #[must_use]
    pub fn kernel(&self, rows: usize) -> Kernel {
        let [of_one, of_several] = self.packing.kernels();
        if rows == 1 { of_one } else { of_several }
    }

    /// A chunk of one block of a matrix whose packing is for table lookup.
    pub(crate) fn chunk(&self, block: usize, chunk: &LookupChunk) -> &[u8] {
        &self.bytes[chunk.place(block, self.num_blocks())]
    }

    #[inline(always)]
    fn block(&self, index: usize) -> &[u8] {
        let len = self.block_bytes();
        &self.bytes[index * len..(index + 1) * len]
    }

    /// The factor of the sums of the rows of one block.
    #[inline(always)]
    pub(crate) fn scale(&self, block: usize) -> f32 {
        self.scales[block]
    }

    /// The lines of one block of a matrix of 2 bits.
    #[inline(always)]
    pub(crate) fn lines(&self, block: usize) -> &[Line] {
        debug_assert!(self.packing == Packing::Two);
        self.block(block).as_chunks().0
    }

    /// The groups of 1.67 bits, and the lines of 2 bits after them, of one block of a matrix of
    /// 1.67 bits.
    #[inline(always)]
    pub(crate) fn groups(&self, block: usize) -> (&[Group], &[Line]) {
        debug_assert!(self.packing == Packing::FiveThirds);
        split(self.block(block), self.cols)
    }
}

impl Packing {
    /// The kernels that count products: with a single row of activations, and with several.
    #[must_use]
    pub fn kernels(self) -> [Kernel; 2] {
        match self {
            Self::Two | Self::FiveThirds => [Kernel::I2sGemv, Kernel::I2sGemm],
            Self::Tl1 => [Kernel::Tl1Gemv, Kernel::Tl1Gemm],
            Self::Tl2 => [Kernel::Tl2Gemv, Kernel::Tl2Gemm],
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// A thread's buffer for the lines of one block. Kept, so that a decode step allocates nothing.
pub(crate) struct LineScratch(Vec<Line>);

impl LineScratch {
    pub(crate) fn take() -> Self {
        Self(SCRATCH.take())
    }

    /// Room for a block of `cols` columns in 2 bits; its contents are unspecified.
    pub(crate) fn lines(&mut self, cols: usize) -> &mut [Line] {
        let lines = num_lines(cols);
        if self.0.len() < lines {
            self.0.resize(lines, [0; LINE_BYTES]);
        }
        &mut self.0[..lines]
    }

    /// Unpacks the lines of a block with 2 bits per weight; `None` if the matrix already has such
    /// lines.
    #[inline(always)]
    pub(crate) fn unpack(&mut self, matrix: &TernaryMatrix, block: usize) -> Option<&[Line]> {
        if matrix.packing() == Packing::Two {
            return None;
        }
        let lines = self.lines(matrix.cols());
        matrix.unpack(block, lines);
        Some(lines)
    }
}

impl Drop for LineScratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// The scale of each block of rows.
fn block_scales(parts: &[Part]) -> Vec<f32> {
    let of_part = |part: &Part| std::iter::repeat_n(part.scale, part.rows.div_ceil(BLOCK_ROWS));
    parts.iter().flat_map(of_part).collect()
}

/// Turns codes −1, 0, 1 into 0, 1, 2.
fn add_one(codes: &mut [i8]) {
    let mut seen = 0u8;
    for code in codes.iter_mut() {
        *code = code.wrapping_add(1);
        let byte = *code as u8;
        // The codes 0, 1 and 2 are valid: no bit above the second may be set, and not both of the
        // lowest two.
        seen |= byte & 0xfc | byte & byte >> 1;
    }
    assert!(seen == 0, "a ternary code outside −1, 0 and 1");
}
