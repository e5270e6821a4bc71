//! Ternary products of many rows of activations, with tables of sums.
//!
//! The kernel takes twelve lines of all blocks, turns their codes into indices, and goes through
//! the lines one after the other. Sums of 16 bits wait in the second-level cache between lines;
//! after the last they are added to sums of 32 bits.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::sums::{Indices, PanelTables, Sums, for_outputs, ternary_indices, wide_values, widened};
use super::vector::store8;
use crate::layout::activations::Activations;
use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES};
use crate::layout::packing::{GROUP_LINES, Packing, num_lines};
use crate::sets::output::Output;
use crate::weights::matrix::TernaryMatrix;

/// Lines whose products are added in 16 bits: 12 · 16 · 128 = 24,576 at most.
const STEP_LINES: usize = 2 * GROUP_LINES;

/// Sums of 32 bits of a row of weights, in the order of [`widened`].
type WideSums = [__m256i; 4];

/// A thread's buffers. Kept, so that a step allocates nothing.
struct Scratch {
    tables: PanelTables,
    /// `[lines of a step, blocks]`
    indices: Vec<[Indices; BLOCK_ROWS]>,
    /// `[blocks]`
    sums: Vec<[Sums; BLOCK_ROWS]>,
    /// `[blocks]`
    wide_sums: Vec<[WideSums; BLOCK_ROWS]>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// See [`crate::sets::table::TernaryWide`].
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn ternary_wide(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    let values = wide_values(&rows, |index| {
        let tile = activations.tile(index);
        (tile.values, tile.scales.len())
    });
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| Box::new(Scratch::new()));
        scratch.reset(blocks.len());
        for first_line in (0..num_lines(matrix.cols())).step_by(STEP_LINES) {
            let lines = scratch.read_indices(matrix, blocks.clone(), first_line);
            // What the next step reads of the first block.
            let group = (first_line + STEP_LINES) / GROUP_LINES;
            let ahead = matrix.bytes_from_group(blocks.start, group).as_ptr();
            for line in 0..lines {
                scratch.tables.fill::<false>(&values, first_line + line);
                let ahead = ahead.wrapping_add(line * LINE_BYTES);
                let stride = matrix.block_bytes();
                match (line == 0, line + 1 == lines) {
                    (true, true) => scratch.add_line::<true, true>(line, ahead, stride),
                    (true, false) => scratch.add_line::<true, false>(line, ahead, stride),
                    (false, true) => scratch.add_line::<false, true>(line, ahead, stride),
                    (false, false) => scratch.add_line::<false, false>(line, ahead, stride),
                }
            }
        }
        for (block, sums) in blocks.zip(&scratch.wide_sums) {
            let scale = _mm256_set1_ps(matrix.scale(block));
            for_outputs(sums, rows.len(), |row, first, sums| {
                let row = rows.start + row;
                let activation_scale = _mm256_set1_ps(activations.scale(row));
                let quotient = _mm256_div_ps(_mm256_cvtepi32_ps(sums), activation_scale);
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(row, block) };
                store8(&mut out[first..first + 8], _mm256_mul_ps(quotient, scale));
            });
        }
    });
}

impl Scratch {
    #[target_feature(enable = "avx2,f16c")]
    fn new() -> Self {
        Self {
            tables: PanelTables::new(),
            indices: Vec::new(),
            sums: Vec::new(),
            wide_sums: Vec::new(),
        }
    }

    /// Makes room for `blocks` blocks of weights and sets their sums to 0.
    #[target_feature(enable = "avx2,f16c")]
    fn reset(&mut self, blocks: usize) {
        let zero = _mm256_setzero_si256();
        self.indices.resize(STEP_LINES * blocks, [0; BLOCK_ROWS]);
        self.sums.resize(blocks, [[zero; 2]; BLOCK_ROWS]);
        self.wide_sums.clear();
        self.wide_sums.resize(blocks, [[zero; 4]; BLOCK_ROWS]);
    }

    /// Makes the indices of all lines of the step that begins at `first_line`; returns their
    /// number.
    #[target_feature(enable = "avx2,f16c")]
    fn read_indices(
        &mut self,
        matrix: &TernaryMatrix,
        blocks: Range<usize>,
        first_line: usize,
    ) -> usize {
        let num_blocks = blocks.len();
        let mut num_lines = 0;
        let mut spread = [[0; LINE_BYTES]; STEP_LINES];
        for (index, block) in blocks.enumerate() {
            let lines = if matrix.packing() == Packing::Two {
                let lines = &matrix.lines(block)[first_line..];
                &lines[..lines.len().min(STEP_LINES)]
            } else {
                matrix.spread_groups(block, first_line / GROUP_LINES, &mut spread)
            };
            num_lines = lines.len();
            for (line, codes) in lines.iter().enumerate() {
                ternary_indices(codes, &mut self.indices[line * num_blocks + index]);
            }
        }
        num_lines
    }

    /// Adds the products of line `line` of a step, which is its `FIRST` or `LAST`. Prefetches a line
    /// from `ahead` on, and another every `stride` bytes, for each block.
    #[target_feature(enable = "avx2,f16c")]
    fn add_line<const FIRST: bool, const LAST: bool>(
        &mut self,
        line: usize,
        ahead: *const u8,
        stride: usize,
    ) {
        let indices = &self.indices[line * self.sums.len()..];
        let rows = self.sums.iter_mut().zip(&mut self.wide_sums);
        for (block, ((sums, wide_sums), indices)) in rows.zip(indices).enumerate() {
            for cache_line in (0..LINE_BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(block * stride + cache_line).cast());
            }
            for ((sums, wide), indices) in sums.iter_mut().zip(wide_sums).zip(indices) {
                let before = if FIRST {
                    [_mm256_setzero_si256(); 2]
                } else {
                    *sums
                };
                let after = self.tables.add::<false>(before, *indices);
                if LAST {
                    for (wide, sums) in wide.iter_mut().zip(widened(after)) {
                        *wide = _mm256_add_epi32(*wide, sums);
                    }
                } else {
                    *sums = after;
                }
            }
        }
    }
}
