//! Products of signs with group scales, by table lookup with `vpshufb`.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::vector::{broadcast, fold, load_quarter, load_scales, store8};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, CELL_SIGN_RUNS, GroupLayout, SCALE_BYTES, SignRun};
use crate::layout::group_activations::GroupActivations;
use crate::sets::output::Output;
use crate::weights::groups::GroupBlocks;

/// Registers for the sums of a block: 8 of its 32 rows in each.
const QUARTERS: usize = 4;
/// Dwords of activations for one cell.
const CELL_DWORDS: usize = CELL_COLS / 4;

/// The sums of four activations for all 16 choices of signs, + [`BIAS`]: first 16 low parts of 5
/// bits, then 16 high parts.
type SignTable = [u8; 32];
/// The tables of the columns of a cell.
type CellTables = [SignTable; CELL_COLS / 4];
/// The signs of a cell.
type SignCell = [SignRun; CELL_SIGN_RUNS];

/// Added to a sum of four activations, so that neither of its parts is negative.
const BIAS: i32 = 512;
/// Rows of activations whose tables stay in a core's second-level cache: at most 8 KiB each.
const ROWS_AT_ONCE: usize = 32;
/// Blocks that use the tables of one row of activations while the tables are in the first-level
/// cache.
const BLOCKS_AT_ONCE: usize = 4;

/// The tables and scales of some rows of activations for the products with a chunk of columns.
#[derive(Default)]
struct SignScratch {
    /// `[rows, cells]`
    tables: Vec<CellTables>,
    /// `[rows, runs]`
    scales: Vec<f32>,
}

/// The tables of one row of activations, and the scales of its runs.
#[derive(Clone, Copy)]
struct RowTables<'a> {
    tables: &'a [CellTables],
    scales: &'a [f32],
}

thread_local! {
    /// Kept, so that a decode step allocates nothing.
    static SCRATCH: Cell<SignScratch> = const {
        Cell::new(SignScratch { tables: Vec::new(), scales: Vec::new() })
    };
}

/// See [`crate::sets::groups::GroupMultiply`].
///
/// A table lookup finds four products of 32 rows at once, and the sums of eight lookups still fit
/// into bytes: at most 8 · 31. So the sums of a cell are widened once. Each thread builds all
/// tables itself.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn signs(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    match activations.run_cols() / CELL_COLS {
        1 => signs_in_runs::<1>(matrix, blocks, rows, activations, output),
        2 => signs_in_runs::<2>(matrix, blocks, rows, activations, output),
        _ => signs_in_runs::<4>(matrix, blocks, rows, activations, output),
    }
}

/// The same for runs of `R` cells. `R` is a constant, so the compiler unrolls the loops over cells,
/// and few instructions remain between the lookups.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn signs_in_runs<const R: usize>(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let layout = matrix.layout();
    let group_cells = layout.group_cols / CELL_COLS;
    let mut scratch = SCRATCH.take();
    for first in rows.clone().step_by(ROWS_AT_ONCE) {
        let rows = first..rows.end.min(first + ROWS_AT_ONCE);
        for chunk in layout.chunks() {
            let first_cell = chunk.first_group * group_cells;
            let end_cell = layout
                .num_cells()
                .min(first_cell + chunk.num_groups * group_cells);
            let cells = first_cell..end_cell;
            scratch.fill::<R>(rows.clone(), cells.clone(), activations);
            for some in blocks.clone().step_by(BLOCKS_AT_ONCE) {
                let some = some..blocks.end.min(some + BLOCKS_AT_ONCE);
                for index in (0..rows.len()).step_by(2) {
                    let pair = SignRows {
                        layout,
                        first_row: rows.start + index,
                        from_zero: chunk.first_group == 0,
                        output,
                    };
                    let first = scratch.row::<R>(index, cells.len());
                    if index + 1 < rows.len() {
                        let second = scratch.row::<R>(index + 1, cells.len());
                        for block in some.clone() {
                            let bytes = matrix.chunk(block, &chunk);
                            pair.add::<2, R>(block, bytes, [first, second]);
                        }
                    } else {
                        for block in some.clone() {
                            pair.add::<1, R>(block, matrix.chunk(block, &chunk), [first]);
                        }
                    }
                }
            }
        }
    }
    SCRATCH.set(scratch);
}

impl SignScratch {
    /// Makes the tables of some cells for some rows of activations, and copies the scales of their
    /// runs of `R` cells.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn fill<const R: usize>(
        &mut self,
        rows: Range<usize>,
        cells: Range<usize>,
        activations: &GroupActivations,
    ) {
        self.tables.clear();
        self.scales.clear();
        for row in rows {
            let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
            for cell in cells.clone() {
                let mut tables = [[0; 32]; CELL_COLS / 4];
                for (dword, table) in (cell * CELL_DWORDS..).zip(&mut tables) {
                    let at = 4 * (dword * tile.rows + index);
                    let parts = sums_of_four(&tile.values[at..at + 4]);
                    // SAFETY: 32 writable bytes; the store needs no alignment.
                    unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), parts) };
                }
                self.tables.push(tables);
            }
            let runs = cells.start / R..cells.end.div_ceil(R);
            let scales = runs.map(|run| tile.scales[run * tile.rows + index]);
            self.scales.extend(scales);
        }
    }

    /// The tables and the scales of one of the rows.
    fn row<const R: usize>(&self, index: usize, cells: usize) -> RowTables<'_> {
        let runs = cells.div_ceil(R);
        RowTables {
            tables: &self.tables[index * cells..(index + 1) * cells],
            scales: &self.scales[index * runs..(index + 1) * runs],
        }
    }
}

/// The sums of four activations for all 16 choices of signs, + [`BIAS`]: first 16 low parts, then
/// 16 high parts.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn sums_of_four(q: &[i8]) -> __m256i {
    let q = broadcast(q, 0);
    // The first half has the signs of indices 0 to 3 and 8 to 11, the second half has the signs of
    // indices 4 to 7 and 12 to 15. Packing, which works on each 128-bit half, then brings them into
    // order.
    const SIGNS: [[i8; 32]; 2] = {
        let mut signs = [[-1; 32]; 2];
        let mut index = 0;
        while index < 16 {
            let mut bit = 0;
            while bit < 4 {
                if index >> bit & 1 == 1 {
                    signs[index / 4 % 2][4 * (index % 4 + 4 * (index / 8)) + bit] = 1;
                }
                bit += 1;
            }
            index += 1;
        }
        signs
    };
    let ones = _mm256_set1_epi8(1);
    let [low, high] = SIGNS.map(|signs| {
        // SAFETY: 32 readable bytes; the load needs no alignment.
        let signs = unsafe { _mm256_loadu_si256(signs.as_ptr().cast()) };
        let pairs = _mm256_maddubs_epi16(ones, _mm256_sign_epi8(q, signs));
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    });
    let sums = _mm256_packs_epi32(low, high);
    let sums = _mm256_add_epi16(sums, _mm256_set1_epi16(BIAS as i16));
    let low = _mm256_and_si256(sums, _mm256_set1_epi16(31));
    let parts = _mm256_packus_epi16(low, _mm256_srli_epi16::<5>(sums));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(parts)
}

/// One or two rows of activations whose products with a chunk are added to the output.
struct SignRows<'a> {
    layout: GroupLayout,
    first_row: usize,
    /// Whether the sums begin with this chunk.
    from_zero: bool,
    output: &'a Output<'a>,
}

impl SignRows<'_> {
    /// Adds a chunk of a block to the sums of its 32 rows with `N` rows of activations. The rows
    /// share the indices, which are extracted once.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn add<const N: usize, const R: usize>(
        &self,
        block: usize,
        bytes: &[u8],
        rows: [RowTables<'_>; N],
    ) {
        let mut sums = [[_mm256_setzero_ps(); QUARTERS]; N];
        if !self.from_zero {
            for (row, sums) in (self.first_row..).zip(&mut sums) {
                // SAFETY: each block of outputs is computed by one thread.
                *sums = load32(unsafe { self.output.block(row, block) });
            }
        }
        let group_cells = self.layout.group_cols / CELL_COLS;
        for (group, bytes) in bytes.chunks(self.layout.group_bytes()).enumerate() {
            let (cells, of_rows) = bytes.split_at(bytes.len() - SCALE_BYTES);
            let cells: &[SignCell] = cells.as_chunks().0.as_chunks().0;
            let rows = rows.map(|row| row.skip(group * group_cells, group * group_cells / R));
            let of_runs = group_runs::<N, R>(cells, rows);
            for (sums, of_runs) in sums.iter_mut().zip(of_runs) {
                for (quarter, (sums, of_runs)) in sums.iter_mut().zip(of_runs).enumerate() {
                    *sums = fold(*sums, of_runs, load_scales(of_rows, quarter));
                }
            }
        }
        for (row, sums) in (self.first_row..).zip(sums) {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { self.output.block(row, block) };
            for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                store8(out, sum);
            }
        }
    }
}

impl<'a> RowTables<'a> {
    /// What follows the tables of some cells and the scales of some runs.
    #[inline(always)]
    fn skip(self, cells: usize, runs: usize) -> Self {
        Self {
            tables: &self.tables[cells..],
            scales: &self.scales[runs..],
        }
    }
}

/// `Σ_a float(Σ ±q) · d_a` of a group over the runs a, for `N` rows of activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn group_runs<const N: usize, const R: usize>(
    cells: &[SignCell],
    rows: [RowTables<'_>; N],
) -> [[__m256; QUARTERS]; N] {
    let mut of_runs = [[_mm256_setzero_ps(); QUARTERS]; N];
    let (runs, last_run) = cells.as_chunks::<R>();
    for (index, cells) in runs.iter().enumerate() {
        let words = run_words(cells, &rows, index * R);
        for ((of_runs, words), row) in of_runs.iter_mut().zip(words).zip(&rows) {
            fold_run(of_runs, words, R, row.scales[index]);
        }
    }
    if !last_run.is_empty() {
        let words = run_words(last_run, &rows, runs.len() * R);
        for ((of_runs, words), row) in of_runs.iter_mut().zip(words).zip(&rows) {
            fold_run(of_runs, words, last_run.len(), row.scales[runs.len()]);
        }
    }
    of_runs
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load32(from: &[f32]) -> [__m256; QUARTERS] {
    let mut out = [_mm256_setzero_ps(); QUARTERS];
    for (out, from) in out.iter_mut().zip(from.as_chunks::<8>().0) {
        // SAFETY: 8 readable floats; the load needs no alignment.
        *out = unsafe { _mm256_loadu_ps(from.as_ptr()) };
    }
    out
}

/// `Σ ±q` of 32 rows over the cells of a run, which begin at `first_cell`, and [`BIAS`] for
/// each table, in 16 bits, for `N` rows of activations: 16 bits hold four cells, at most 4 · 8 ·
/// 1020 = 32,640.
///
/// Loops over the rows, not `array::map`: the compiler left that as a call for each cell, and runs of
/// one cell took more than twice as long.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn run_words<const N: usize>(
    cells: &[SignCell],
    rows: &[RowTables<'_>; N],
    first_cell: usize,
) -> [[__m256i; 2]; N] {
    let weights = _mm256_set1_epi16(1 | 32 << 8);
    let mut words = [[_mm256_setzero_si256(); 2]; N];
    for (index, cell) in (first_cell..).zip(cells) {
        let sums = cell_sums(cell, rows, index);
        for (words, [low, high]) in words.iter_mut().zip(sums) {
            let parts = [
                _mm256_unpacklo_epi8(low, high),
                _mm256_unpackhi_epi8(low, high),
            ];
            for (words, parts) in words.iter_mut().zip(parts) {
                *words = _mm256_add_epi16(*words, _mm256_maddubs_epi16(parts, weights));
            }
        }
    }
    words
}

/// Adds the exact sums of a run of `num_cells` cells times its scale.
///
/// To convert a 16-bit sum to f32, the kernel puts the bit pattern of 2^23 into the upper half of a
/// float and the sum into the lower half: the float is then exactly 2^23 + sum, and one subtraction
/// removes 2^23 and the biases. That is faster than widening and converting.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fold_run(of_runs: &mut [__m256; QUARTERS], words: [__m256i; 2], num_cells: usize, scale: f32) {
    let float = _mm256_set1_epi16(0x4b00);
    let bias = (1 << 23) + BIAS * (CELL_DWORDS * num_cells) as i32;
    let (bias, scale) = (_mm256_set1_ps(bias as f32), _mm256_set1_ps(scale));
    let bits = [
        _mm256_unpacklo_epi16(words[0], float),
        _mm256_unpackhi_epi16(words[0], float),
        _mm256_unpacklo_epi16(words[1], float),
        _mm256_unpackhi_epi16(words[1], float),
    ];
    for (of_runs, bits) in of_runs.iter_mut().zip(bits) {
        let sum = _mm256_sub_ps(_mm256_castsi256_ps(bits), bias);
        *of_runs = fold(*of_runs, sum, scale);
    }
}

/// The low and the high parts of the sums of cell `index`, a byte for each row, for `N` rows of
/// activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn cell_sums<const N: usize>(
    signs: &SignCell,
    rows: &[RowTables<'_>; N],
    index: usize,
) -> [[__m256i; 2]; N] {
    let mask = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for (run, signs) in signs.iter().enumerate() {
        let signs = load_quarter(signs, 0);
        let indices = [
            _mm256_and_si256(signs, mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(signs), mask),
        ];
        for (half, places) in indices.into_iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(rows) {
                let table = row.tables[index][2 * run + half].as_chunks::<16>().0;
                for (sum, part) in sums.iter_mut().zip(table) {
                    // SAFETY: 16 readable bytes; the load needs no alignment.
                    let part = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
                    let part = _mm256_broadcastsi128_si256(part);
                    *sum = _mm256_add_epi8(*sum, _mm256_shuffle_epi8(part, places));
                }
            }
        }
    }
    sums
}
