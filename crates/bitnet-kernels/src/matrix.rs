//! [`TernaryMatrix`]: ternary weights in the one layout that every instruction set streams.
//!
//! Rows are taken 32 at a time. A block of 32 rows is a run of 128-byte lines, one for each 16 columns:
//!
//! ```text
//! line g of a block, 128 bytes:   dword r (0..32) = row r
//!     byte j (0..4) of the dword, bits 2s..2s+1 (s 0..4)  =  weight + 1 of column 16 g + 4 s + j
//! ```
//!
//! So a thread reads one sequential stream (hardware prefetchers follow nothing else as well), a vector lane is a row and
//! no horizontal sum is ever needed: with 512-bit registers a line is two loads, with 256-bit four, with 128-bit eight.
//! Four consecutive activations, as one dword, meet the four bytes of a lane in a single dot-product instruction.

use std::ops::Range;

use memmap2::MmapMut;

use crate::pool::Pool;

/// Rows in a block: also what the output of each part of a matrix is padded to.
pub const BLOCK_ROWS: usize = 32;
/// Columns in a line.
pub const LINE_COLS: usize = 16;
/// Bytes in a line.
pub const LINE_BYTES: usize = BLOCK_ROWS * LINE_COLS / 4;
/// The most columns a matrix may have, so that no i32 accumulator can overflow: codes of the highest field weigh
/// 2 · 4^3 = 128, activations at most 128, and a fourth of the columns is in that field: 2^17 / 4 · 2^14 = 2^29.
pub const MAX_COLS: usize = 1 << 17;

/// One matrix of a stack: so many output rows, all with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Output rows.
    pub rows: usize,
    /// What the integer sums of these rows are multiplied by.
    pub scale: f32,
}

/// Fills `[rows, cols]` codes −1, 0, 1 with some rows of a part: the part, the rows, the codes.
pub type Unpack<'a, E> = dyn Fn(usize, Range<usize>, &mut [i8]) -> Result<(), E> + Sync + 'a;

/// Ternary matrices of equal width, stacked so that one pass multiplies them all by the same activations.
///
/// The parts (q, k and v, say) lie one after the other; each begins at a multiple of [`BLOCK_ROWS`], and so does its
/// output. Rows that only fill up a block are zero.
pub struct TernaryMatrix {
    parts: Vec<Part>,
    cols: usize,
    /// One for each block of rows.
    scales: Vec<f32>,
    bytes: Lines,
}

impl TernaryMatrix {
    /// Packs a stack of matrices, on all threads of `pool`.
    ///
    /// `unpack(part, rows, codes)` is called with up to [`BLOCK_ROWS`] rows of one part at a time, from any thread and in
    /// any order, and fills `codes`, `[rows, cols]` row-major, with −1, 0 or 1. Its first error ends the packing.
    ///
    /// # Errors
    /// What `unpack` returned.
    ///
    /// # Panics
    /// If there are no columns or more than [`MAX_COLS`], or if `unpack` gives another code.
    pub fn pack<E: Send>(pool: &Pool, parts: &[Part], cols: usize, unpack: &Unpack<'_, E>) -> Result<Self, E> {
        assert!((1..=MAX_COLS).contains(&cols), "a ternary matrix of {cols} columns; 1 to {MAX_COLS} are possible");
        let block_bytes = cols.div_ceil(LINE_COLS) * LINE_BYTES;
        let blocks: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(index, part)| (0..part.rows.div_ceil(BLOCK_ROWS)).map(move |block| (index, block * BLOCK_ROWS)))
            .collect();
        let mut bytes = Lines::new(blocks.len() * block_bytes);
        let failure = std::sync::Mutex::new(None);
        let output = crate::disjoint::Disjoint::new(bytes.as_mut_slice());
        pool.split(blocks.len(), 1, &|share| {
            let mut codes = vec![0i8; BLOCK_ROWS * cols];
            for index in share {
                let (part, first_row) = blocks[index];
                let rows = first_row..parts[part].rows.min(first_row + BLOCK_ROWS);
                let used = rows.len() * cols;
                codes[used..].fill(0);
                if let Err(error) = unpack(part, rows, &mut codes[..used]) {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    return;
                }
                // SAFETY: each block index is in one thread's share, so no two threads hold the same range.
                let block = unsafe { output.slice(index * block_bytes..(index + 1) * block_bytes) };
                pack_block(&mut codes, cols, block);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        let scales = blocks.iter().map(|&(part, _)| parts[part].scale).collect();
        Ok(Self { parts: parts.to_vec(), cols, scales, bytes })
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

    /// The length of an output row: each part's rows rounded up to [`BLOCK_ROWS`].
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.scales.len() * BLOCK_ROWS
    }

    /// Where a part's output lies in an output row.
    #[must_use]
    pub fn output_range(&self, part: usize) -> Range<usize> {
        let start: usize = self.parts[..part].iter().map(|p| p.rows.next_multiple_of(BLOCK_ROWS)).sum();
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

    /// Bytes of the packed weights, padding included: what one pass over the matrix reads.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.bytes.len
    }

    /// Blocks of [`BLOCK_ROWS`] rows.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.scales.len()
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.cols.div_ceil(LINE_COLS) * LINE_BYTES
    }

    /// The packed lines of one block and the scale of its rows.
    pub(crate) fn block(&self, index: usize) -> (&[u8], f32) {
        let len = self.block_bytes();
        (&self.bytes.as_slice()[index * len..(index + 1) * len], self.scales[index])
    }
}

/// Packs `[BLOCK_ROWS, cols]` codes −1, 0, 1 into the lines of one block; `codes` is left holding 0, 1, 2.
fn pack_block(codes: &mut [i8], cols: usize, block: &mut [u8]) {
    let mut seen = 0u8;
    for code in codes.iter_mut() {
        *code = code.wrapping_add(1);
        let byte = *code as u8;
        // 0, 1 and 2 are possible: none has a bit above the second, or both of these.
        seen |= byte & 0xfc | byte & byte >> 1;
    }
    assert!(seen == 0, "a ternary code outside −1, 0 and 1");
    for (row, codes) in codes.chunks_exact(cols).enumerate() {
        let (whole, rest) = codes.as_chunks::<LINE_COLS>();
        for (line, cols) in whole.iter().enumerate() {
            pack_line_row(cols, &mut block[line * LINE_BYTES + 4 * row..][..4]);
        }
        if !rest.is_empty() {
            // Columns past the end are zero weights.
            let mut cols = [1i8; LINE_COLS];
            cols[..rest.len()].copy_from_slice(rest);
            pack_line_row(&cols, &mut block[whole.len() * LINE_BYTES + 4 * row..][..4]);
        }
    }
}

#[inline(always)]
fn pack_line_row(cols: &[i8; LINE_COLS], dword: &mut [u8]) {
    let field = |s: usize| u32::from_le_bytes(std::array::from_fn(|j| cols[4 * s + j] as u8));
    let packed = field(0) | field(1) << 2 | field(2) << 4 | field(3) << 6;
    dword.copy_from_slice(&packed.to_le_bytes());
}

/// Bytes that begin at a multiple of 64, in huge pages where the system gives them.
pub(crate) struct Lines {
    map: MmapMut,
    start: usize,
    len: usize,
}

/// The size of a huge page on the systems that have them.
const HUGE_PAGE: usize = 2 << 20;

impl Lines {
    pub(crate) fn new(len: usize) -> Self {
        let huge = len >= HUGE_PAGE;
        let align = if huge { HUGE_PAGE } else { 64 };
        let mut map = MmapMut::map_anon((len + align).max(1)).unwrap_or_else(|error| {
            // As when the allocator finds no memory: there is nothing a caller could do with this error.
            panic!("no memory for {len} bytes of packed weights: {error}")
        });
        let start = map.as_mut_ptr().align_offset(align);
        // Whole huge pages only: a last one, half filled, would cost memory for nothing. And only a hint: without huge
        // pages everything works, a few per cent slower.
        #[cfg(target_os = "linux")]
        if huge {
            let _ = map.advise_range(memmap2::Advice::HugePage, start, len / HUGE_PAGE * HUGE_PAGE);
        }
        Self { map, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}
