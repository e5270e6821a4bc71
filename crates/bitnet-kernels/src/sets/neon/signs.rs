//! Products of signs with group scales, by table lookup with `tbl`.

use std::arch::aarch64::*;
use std::cell::Cell;
use std::ops::Range;

use super::vector::{LINE_REGISTERS, fold, fold_group, store_rows};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, CELL_SIGN_RUNS, GroupLayout, SCALE_BYTES, SignRun};
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::BLOCK_ROWS;
use crate::sets::output::Output;
use crate::weights::groups::GroupBlocks;

/// The sums of four activations for all 16 choices of signs, + [`BIAS`]: low parts of 5 bits, then
/// high parts.
type SignTable = [uint8x16_t; 2];
/// The tables of the columns of a cell.
type CellTables = [SignTable; CELL_COLS / 4];

/// Added to a sum of four activations, so that neither of its parts is negative.
const BIAS: i16 = 512;
/// Rows of activations whose tables stay in a core's second-level cache: at most 8 KiB each.
const ROWS_AT_ONCE: usize = 32;

thread_local! {
    /// Kept, so that a decode step allocates nothing.
    static TABLES: Cell<Vec<CellTables>> = const { Cell::new(Vec::new()) };
}

/// See [`crate::sets::groups::GroupMultiply`].
///
/// A table lookup finds four products of 16 rows at once, and the sums of eight lookups still fit
/// into bytes: at most 8 · 31. So the sums of a cell are widened once. Each thread builds all
/// tables itself.
#[target_feature(enable = "neon")]
pub(super) fn signs(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let (layout, run_cells) = (matrix.layout(), activations.run_cols() / CELL_COLS);
    let group_cells = layout.group_cols / CELL_COLS;
    let mut tables = TABLES.take();
    for first_row in rows.clone().step_by(ROWS_AT_ONCE) {
        let rows = first_row..rows.end.min(first_row + ROWS_AT_ONCE);
        for chunk in layout.chunks() {
            let first = chunk.first_group * group_cells;
            let end = layout
                .num_cells()
                .min(first + chunk.num_groups * group_cells);
            tables.clear();
            for row in rows.clone() {
                let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
                tables.extend((first..end).map(|cell| cell_tables(cell, &tile, index)));
            }
            for block in blocks.clone() {
                for (row, tables) in rows.clone().zip(tables.chunks_exact(end - first)) {
                    let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
                    let of_runs = &tile.scales[first / run_cells * tile.rows + index..];
                    let scales = of_runs.iter().step_by(tile.rows);
                    // SAFETY: each block of outputs is computed by one thread.
                    let out = unsafe { output.block(row, block) };
                    if chunk.first_group == 0 {
                        out.fill(0.0);
                    }
                    let bytes = matrix.chunk(block, &chunk);
                    add_signs(layout, run_cells, bytes, tables, scales, out);
                }
            }
        }
    }
    TABLES.set(tables);
}

/// The tables of a cell for row `index` of a tile.
#[inline]
#[target_feature(enable = "neon")]
fn cell_tables(cell: usize, tile: &GroupTile<'_>, index: usize) -> CellTables {
    let dwords = tile.values.as_chunks::<4>().0;
    std::array::from_fn(|i| make_table(&dwords[(cell * CELL_COLS / 4 + i) * tile.rows + index]))
}

/// The table of four activations.
#[inline]
#[target_feature(enable = "neon")]
fn make_table(q: &[i8; 4]) -> SignTable {
    // The sign of activation `bit` in each index.
    const SIGNS: [[i16; 16]; 4] = {
        let mut signs = [[-1; 16]; 4];
        let mut at = 0;
        while at < 64 {
            if at % 16 >> (at / 16) & 1 == 1 {
                signs[at / 16][at % 16] = 1;
            }
            at += 1;
        }
        signs
    };
    let mut sums = [vdupq_n_s16(BIAS); 2];
    for (q, signs) in q.iter().zip(&SIGNS) {
        for (sums, signs) in sums.iter_mut().zip(signs.as_chunks::<8>().0) {
            // SAFETY: 8 readable words; the load needs no alignment.
            let signs = unsafe { vld1q_s16(signs.as_ptr()) };
            *sums = vmlaq_n_s16(*sums, signs, i16::from(*q));
        }
    }
    let [first, second] = sums.map(|sums| vreinterpretq_u16_s16(sums));
    let low = vmovn_high_u16(vmovn_u16(first), second);
    let high = vmovn_high_u16(vmovn_u16(vshrq_n_u16::<5>(first)), vshrq_n_u16::<5>(second));
    [vandq_u8(low, vdupq_n_u8(31)), high]
}

/// Adds a chunk of a block to the sums of its 32 rows with one row of activations, given the row's
/// tables and scales for this chunk.
#[inline]
#[target_feature(enable = "neon")]
fn add_signs<'a>(
    layout: GroupLayout,
    run_cells: usize,
    bytes: &[u8],
    mut tables: &[CellTables],
    mut scales: impl Iterator<Item = &'a f32>,
    out: &mut [f32],
) {
    let out: &mut [f32; BLOCK_ROWS] = out.try_into().expect("a block of outputs");
    let mut sums = [vdupq_n_f32(0.0); LINE_REGISTERS];
    for (sum, from) in sums.iter_mut().zip(out.as_chunks::<4>().0) {
        // SAFETY: 4 readable floats; the load needs no alignment.
        *sum = unsafe { vld1q_f32(from.as_ptr()) };
    }
    for bytes in bytes.chunks(layout.group_bytes()) {
        let (cells, of_rows) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let cells: &[[SignRun; CELL_SIGN_RUNS]] = cells.as_chunks().0.as_chunks().0;
        let (of_group, rest) = tables.split_at(cells.len());
        tables = rest;
        let mut of_runs = [vdupq_n_f32(0.0); LINE_REGISTERS];
        let runs = cells.chunks(run_cells).zip(of_group.chunks(run_cells));
        for ((cells, tables), scale) in runs.zip(&mut scales) {
            let bias = vdupq_n_s32(i32::from(BIAS) * (CELL_COLS / 4 * cells.len()) as i32);
            let scale = vdupq_n_f32(*scale);
            let products = run_words(cells, tables);
            for (of_runs, product) in of_runs.iter_mut().zip(products) {
                let sum = vcvtq_f32_s32(vsubq_s32(product, bias));
                *of_runs = fold(*of_runs, sum, scale);
            }
        }
        fold_group(&mut sums, &of_runs, of_rows);
    }
    store_rows(&sums, out);
}

/// `Σ ±q` of 32 rows over the cells of a run, and [`BIAS`] for each table.
#[inline]
#[target_feature(enable = "neon")]
fn run_words(
    cells: &[[SignRun; CELL_SIGN_RUNS]],
    tables: &[CellTables],
) -> [int32x4_t; LINE_REGISTERS] {
    // Sixteen bits hold four cells: 4 · 8 · 1020 = 32,640.
    let mut words = [[vdupq_n_u16(0); 2]; 2];
    for (cell, tables) in cells.iter().zip(tables) {
        for (half, words) in words.iter_mut().enumerate() {
            let [low, high] = cell_sums(cell, tables, half);
            let of_high = [
                vshll_n_u8::<5>(vget_low_u8(high)),
                vshll_high_n_u8::<5>(high),
            ];
            words[0] = vaddq_u16(words[0], vaddw_u8(of_high[0], vget_low_u8(low)));
            words[1] = vaddq_u16(words[1], vaddw_high_u8(of_high[1], low));
        }
    }
    // Bytes 4 k to 4 k + 3 of half h are rows 8 k + 4 h to 8 k + 4 h + 3.
    let mut sums = [vdupq_n_s32(0); LINE_REGISTERS];
    for (half, words) in words.into_iter().enumerate() {
        for (k, words) in words.into_iter().enumerate() {
            let fours = [vmovl_u16(vget_low_u16(words)), vmovl_high_u16(words)];
            for (i, four) in fours.into_iter().enumerate() {
                sums[2 * (2 * k + i) + half] = vreinterpretq_s32_u32(four);
            }
        }
    }
    sums
}

/// The low and the high parts of a cell's sums, from the bytes of half of the rows.
#[inline]
#[target_feature(enable = "neon")]
fn cell_sums(
    cell: &[SignRun; CELL_SIGN_RUNS],
    tables: &CellTables,
    half: usize,
) -> [uint8x16_t; 2] {
    let mut sums = [vdupq_n_u8(0); 2];
    for (signs, tables) in cell.iter().zip(tables.as_chunks::<2>().0) {
        let bytes = &signs.as_chunks::<16>().0[half];
        // SAFETY: 16 readable bytes; the load needs no alignment.
        let signs = unsafe { vld1q_u8(bytes.as_ptr()) };
        let indices = [vandq_u8(signs, vdupq_n_u8(15)), vshrq_n_u8::<4>(signs)];
        for (index, table) in indices.into_iter().zip(tables) {
            for (sum, part) in sums.iter_mut().zip(table) {
                *sum = vaddq_u8(*sum, vqtbl1q_u8(*part, index));
            }
        }
    }
    sums
}
