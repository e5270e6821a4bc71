//! Products with group scales: codes of 2 bits with `vpmaddubsw`, signs by table lookup with
//! `vpshufb`.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::vector::{broadcast, load_quarter, store8};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{
    CELL_COLS, CELL_LINES, CELL_SIGN_RUNS, GroupChunk, SCALE_BYTES, SignRun,
};
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::{BLOCK_ROWS, Line};
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::GroupMatrix;

pub(crate) const KERNELS: GroupKernels = GroupKernels { signs, two_bits };

/// Eight rows of weights a register, 32 rows a block.
const QUARTERS: usize = 4;
/// Dwords of activations that a cell meets.
const CELL_DWORDS: usize = CELL_COLS / 4;

/// `acc + float(sum) · d`, as `portable::fold_run` and `portable::fold_group` say.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fold(acc: __m256, sum: __m256, scale: __m256) -> __m256 {
    _mm256_add_ps(acc, _mm256_mul_ps(sum, scale))
}

/// The scales of rows `8 quarter` to `8 quarter + 7`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_scales(scales: &[u8], quarter: usize) -> __m256 {
    let bytes = &scales[16 * quarter..16 * quarter + 16];
    // SAFETY: 16 readable bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

// ---- codes of 2 bits ----

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx2,f16c")]
fn two_bits(
    matrix: &GroupMatrix,
    blocks: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let chunks: Vec<GroupChunk> = matrix.layout().chunks().collect();
    for block in blocks {
        for tile in 0..activations.num_tiles() {
            let first_row = tile * TILE_ROWS;
            let tile = activations.tile(tile);
            macro_rules! of_rows {
                ($($n:literal)*) => {
                    match tile.rows {
                        $($n => {
                            let mut sums = [[_mm256_setzero_ps(); QUARTERS]; $n];
                            for chunk in &chunks {
                                let bytes = matrix.chunk(block, chunk);
                                add_two_bits::<$n>(matrix, bytes, &tile, activations.run_cols(), &mut sums);
                            }
                            for (row, sums) in (first_row..).zip(&sums) {
                                // SAFETY: each block of outputs is computed by one thread.
                                let out = unsafe { output.block(row, block) };
                                for (out, sum) in out.chunks_exact_mut(8).zip(sums) {
                                    store8(out, *sum);
                                }
                            }
                        })*
                        rows => unreachable!("a tile of {rows} rows"),
                    }
                };
            }
            of_rows!(1 2 3 4 5 6 7 8);
        }
    }
}

/// Adds all groups of a block to the sums of 32 rows with the `N` rows of a tile.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_two_bits<const N: usize>(
    matrix: &GroupMatrix,
    block: &[u8],
    tile: &GroupTile<'_>,
    run_cols: usize,
    sums: &mut [[__m256; QUARTERS]; N],
) {
    let layout = matrix.layout();
    let run_cells = run_cols / CELL_COLS;
    let group_runs = layout.group_cols / run_cols;
    let groups = block.chunks(layout.group_bytes()).enumerate();
    for (group, bytes) in groups {
        let (cells, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let lines: &[Line] = cells.as_chunks().0;
        for quarter in 0..QUARTERS {
            let mut of_runs = [_mm256_setzero_ps(); N];
            let runs = lines.chunks(run_cells * CELL_LINES);
            for (run, lines) in (group * group_runs..).zip(runs) {
                let first = run * run_cells * CELL_DWORDS;
                let products = run_products::<N>(lines, quarter, first, tile);
                for (i, (of_runs, product)) in of_runs.iter_mut().zip(products).enumerate() {
                    let sum = _mm256_madd_epi16(product, _mm256_set1_epi16(1));
                    let sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(tile.sums[run * N + i]));
                    let scale = _mm256_set1_ps(tile.scales[run * N + i]);
                    *of_runs = fold(*of_runs, _mm256_cvtepi32_ps(sum), scale);
                }
            }
            let scales = load_scales(scales, quarter);
            for (sums, of_runs) in sums.iter_mut().zip(of_runs) {
                sums[quarter] = fold(sums[quarter], of_runs, scales);
            }
        }
    }
}

/// `Σ code · q` of 8 rows over the lines of a run, in 16 bits, by twos of products.
///
/// A lane takes 2 products of at most 3 · 127 for each four columns: 64 of them, 24,384, in the 128
/// columns that a run has at most.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn run_products<const N: usize>(
    lines: &[Line],
    quarter: usize,
    first_dword: usize,
    tile: &GroupTile<'_>,
) -> [__m256i; N] {
    let mask = _mm256_set1_epi8(3);
    let mut acc = [_mm256_setzero_si256(); N];
    for (index, line) in lines.iter().enumerate() {
        let codes = load_quarter(line, quarter);
        let fields = [
            _mm256_and_si256(codes, mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
        ];
        let dwords = (first_dword + 4 * index) * N;
        let values = &tile.values[4 * dwords..4 * (dwords + 4 * N)];
        for (s, field) in fields.into_iter().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                let q = broadcast(values, s * N + i);
                *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(field, q));
            }
        }
    }
    acc
}

// ---- signs ----

/// The sums that four activations make with all 16 choices of signs, + [`BIAS`]: 16 low parts of 5
/// bits, then 16 high ones.
type SignTable = [u8; 32];

/// What is added to a sum of four activations, so that both parts of it are not negative.
const BIAS: i32 = 512;
/// Tables that a cell takes.
const CELL_TABLES: usize = CELL_COLS / 4;
/// Rows of activations whose tables stay in a core's second cache: at most 8 KiB each.
const ROWS_AT_ONCE: usize = 32;
/// Blocks that meet the tables of one row of activations while those are in the first cache.
const BLOCKS_AT_ONCE: usize = 4;

thread_local! {
    /// Kept, so that a decode step allocates nothing.
    static TABLES: Cell<Vec<SignTable>> = const { Cell::new(Vec::new()) };
}

/// See [`crate::sets::groups::GroupMultiply`].
///
/// A table lookup finds four products of 32 rows at once, and the sums of eight lookups still fit
/// into bytes: at most 8 · 31. So a cell is widened once. Each thread makes all tables for itself.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn signs(
    matrix: &GroupMatrix,
    blocks: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let layout = matrix.layout();
    let mut tables = TABLES.take();
    for first in (0..activations.rows()).step_by(ROWS_AT_ONCE) {
        let rows = first..activations.rows().min(first + ROWS_AT_ONCE);
        for chunk in layout.chunks() {
            let first_cell = chunk.first_group * layout.group_cols / CELL_COLS;
            let end_cell = layout
                .num_cells()
                .min((chunk.first_group + chunk.num_groups) * layout.group_cols / CELL_COLS);
            let row_tables = (end_cell - first_cell) * CELL_TABLES;
            tables.resize((rows.len() * row_tables).max(tables.len()), [0; 32]);
            for (row, tables) in rows.clone().zip(tables.chunks_exact_mut(row_tables)) {
                let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
                for (at, table) in (first_cell * CELL_TABLES..).zip(tables) {
                    make_table(broadcast(tile.values, at * tile.rows + index), table);
                }
            }
            for some in blocks.clone().step_by(BLOCKS_AT_ONCE) {
                let some = some..blocks.end.min(some + BLOCKS_AT_ONCE);
                for (row, tables) in rows.clone().zip(tables.chunks_exact(row_tables)) {
                    for block in some.clone() {
                        // SAFETY: each block of outputs is computed by one thread.
                        let out = unsafe { output.block(row, block) };
                        if chunk.first_group == 0 {
                            out.fill(0.0);
                        }
                        let bytes = matrix.chunk(block, &chunk);
                        add_signs(matrix, &chunk, bytes, tables, activations, row, out);
                    }
                }
            }
        }
    }
    TABLES.set(tables);
}

/// The table of four activations, which are the same in every dword of `q`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn make_table(q: __m256i, table: &mut SignTable) {
    // Dword i of the first half has the signs of index 0 to 3 and 8 to 11, of the second those of 4
    // to 7 and 12 to 15, so that packing brings them into order.
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
    let parts = _mm256_permute4x64_epi64::<0b11_01_10_00>(parts);
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), parts) }
}

/// Adds a chunk of a block to the sums of its 32 rows with one row of activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_signs(
    matrix: &GroupMatrix,
    chunk: &GroupChunk,
    bytes: &[u8],
    tables: &[SignTable],
    activations: &GroupActivations,
    row: usize,
    out: &mut [f32],
) {
    let layout = matrix.layout();
    let run_cells = activations.run_cols() / CELL_COLS;
    let group_runs = layout.group_cols / activations.run_cols();
    let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
    let out: &mut [f32; BLOCK_ROWS] = out.try_into().expect("a block of outputs");
    let mut sums = load32(out);
    let groups = bytes.chunks(layout.group_bytes());
    let of_groups = tables.chunks(layout.group_cols / 4);
    for ((group, bytes), tables) in (chunk.first_group..).zip(groups).zip(of_groups) {
        let (cells, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let signs: &[SignRun] = cells.as_chunks().0;
        let mut of_runs = [_mm256_setzero_ps(); QUARTERS];
        let runs = signs.chunks(run_cells * CELL_SIGN_RUNS);
        let of_run = tables.chunks(run_cells * CELL_TABLES);
        for ((run, signs), tables) in (group * group_runs..).zip(runs).zip(of_run) {
            let scale = _mm256_set1_ps(tile.scales[run * tile.rows + index]);
            for (of_runs, sum) in of_runs.iter_mut().zip(run_sums(signs, tables)) {
                *of_runs = fold(*of_runs, sum, scale);
            }
        }
        for (quarter, (sums, of_runs)) in sums.iter_mut().zip(of_runs).enumerate() {
            *sums = fold(*sums, of_runs, load_scales(scales, quarter));
        }
    }
    for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        store8(out, sum);
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load32(from: &[f32; BLOCK_ROWS]) -> [__m256; QUARTERS] {
    let mut out = [_mm256_setzero_ps(); QUARTERS];
    for (out, from) in out.iter_mut().zip(from.as_chunks::<8>().0) {
        // SAFETY: 8 readable floats; the load needs no alignment.
        *out = unsafe { _mm256_loadu_ps(from.as_ptr()) };
    }
    out
}

/// `Σ ±q` of 32 rows over the cells of a run, exactly.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn run_sums(signs: &[SignRun], tables: &[SignTable]) -> [__m256; QUARTERS] {
    // Sixteen bits hold four cells: 4 · 8 · 1020 = 32,640.
    let mut words = [_mm256_setzero_si256(); 2];
    let cells = signs.chunks_exact(CELL_SIGN_RUNS);
    let of_cells = tables.chunks_exact(CELL_TABLES);
    let num_cells = cells.len();
    for (signs, tables) in cells.zip(of_cells) {
        let [low, high] = cell_sums(signs, tables);
        let weights = _mm256_set1_epi16(1 | 32 << 8);
        for (words, parts) in words.iter_mut().zip([
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        ]) {
            *words = _mm256_add_epi16(*words, _mm256_maddubs_epi16(parts, weights));
        }
    }
    // 2^23 in the upper half of a float makes the word below it an integer of that float, exactly:
    // less than an instruction to widen and one to convert, and the biases go with it.
    let float = _mm256_set1_epi16(0x4b00);
    let bias = _mm256_set1_ps((8_388_608 + BIAS * (CELL_TABLES * num_cells) as i32) as f32);
    [
        _mm256_unpacklo_epi16(words[0], float),
        _mm256_unpackhi_epi16(words[0], float),
        _mm256_unpacklo_epi16(words[1], float),
        _mm256_unpackhi_epi16(words[1], float),
    ]
    .map(|bits| _mm256_sub_ps(_mm256_castsi256_ps(bits), bias))
}

/// The low and the high parts of a cell's sums, a byte for each row.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn cell_sums(signs: &[SignRun], tables: &[SignTable]) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (signs, tables) in signs.iter().zip(tables.as_chunks::<2>().0) {
        let signs = load_quarter(signs, 0);
        let indices = [
            _mm256_and_si256(signs, mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(signs), mask),
        ];
        for (index, table) in indices.into_iter().zip(tables) {
            for (sum, part) in sums.iter_mut().zip(table.as_chunks::<16>().0) {
                // SAFETY: 16 readable bytes; the load needs no alignment.
                let part = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
                let part = _mm256_broadcastsi128_si256(part);
                *sum = _mm256_add_epi8(*sum, _mm256_shuffle_epi8(part, index));
            }
        }
    }
    sums
}
