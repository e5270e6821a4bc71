//! Ternary products with `vpmaddubsw`.
//!
//! A 16-bit lane holds few products, so its sums are added to 32-bit lanes before any input can
//! overflow it.
//!
//! For up to a tile of rows of activations the kernel extracts the codes in registers. For more
//! rows it unpacks the codes of some columns to bytes, a panel that stays in the first-level cache
//! while all rows are multiplied by it; then it goes on to the next columns.
//!
//! With several rows, products take longer than reading the weights, and all reads of a panel come
//! in one burst before them. So the kernel prefetches the lines of later panels while it
//! multiplies.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::vector::{broadcast, load_quarter, store8};
use crate::layout::activations::{Activations, TILE_ROWS, Tile};
use crate::layout::lines::{LINE_BYTES, LINE_COLS, Line};
use crate::sets::output::Output;
use crate::weights::matrix::{LineScratch, TernaryMatrix};

/// Lines in a panel. A 16-bit lane takes eight products of 0–2 by at most 127 a line: 2032, so
/// sixteen lines give 32,512 at most.
const PANEL_LINES: usize = 16;

/// Bytes between the lines that are multiplied and those that are prefetched: two panels.
const PREFETCH_BYTES: usize = 2 * PANEL_LINES * LINE_BYTES;

/// Quarters of a line, each with the codes of eight rows.
const QUARTERS: usize = 4;

/// A line unpacked: for four columns at a time, a byte for each of 32 rows and each column.
type UnpackedLine = [[__m256i; 4]; LINE_COLS / 4];

/// The sums of 32 rows with one row of activations.
type Sums = [__m256i; 4];

thread_local! {
    /// Running sums, one for each row of activations. Kept, so that a step allocates nothing.
    static SUMS: Cell<Vec<Sums>> = const { Cell::new(Vec::new()) };
}

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and tiles of activations.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn ternary(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tiles: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    let mut scratch = LineScratch::take();
    let mut sums = SUMS.take();
    let rows = activations.rows().min(tiles.end * TILE_ROWS) - tiles.start * TILE_ROWS;
    sums.resize(sums.len().max(rows), [_mm256_setzero_si256(); 4]);
    let sums_of_rows = &mut sums[..rows];
    for block in blocks {
        let lines = scratch
            .unpack(matrix, block)
            .unwrap_or_else(|| matrix.lines(block));
        match tiles.len() {
            1 => tile_sums(lines, &activations.tile(tiles.start), sums_of_rows),
            _ => many_sums(lines, tiles.clone(), activations, sums_of_rows),
        }
        for tile_index in tiles.clone() {
            let (rows, tile) = (
                activations.tile_rows(tile_index),
                activations.tile(tile_index),
            );
            let sums = &sums_of_rows[rows.start - tiles.start * TILE_ROWS..][..rows.len()];
            for (index, sums) in sums.iter().enumerate() {
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(rows.start + index, block) };
                for (out, sums) in out.chunks_exact_mut(8).zip(sums) {
                    let sums = _mm256_sub_epi32(*sums, _mm256_set1_epi32(tile.sums[index]));
                    let quotient =
                        _mm256_div_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(tile.scales[index]));
                    store8(
                        out,
                        _mm256_mul_ps(quotient, _mm256_set1_ps(matrix.scale(block))),
                    );
                }
            }
        }
    }
    SUMS.set(sums);
}

/// `Σ code · q` of 32 rows with the rows of a tile.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn tile_sums(lines: &[Line], tile: &Tile<'_>, sums: &mut [Sums]) {
    match tile.scales.len() {
        1 => sums[0] = row_sums(lines, tile),
        2 => few_sums::<2, 2>(lines, tile, sums),
        3 => few_sums::<3, 2>(lines, tile, sums),
        4 => few_sums::<4, 2>(lines, tile, sums),
        5 => few_sums::<5, 1>(lines, tile, sums),
        6 => few_sums::<6, 1>(lines, tile, sums),
        7 => few_sums::<7, 1>(lines, tile, sums),
        8 => few_sums::<8, 1>(lines, tile, sums),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

/// Prefetches lines that follow the given ones.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch(lines: &[Line]) {
    for cache_line in lines.as_flattened().chunks_exact(64) {
        let ahead = cache_line.as_ptr().wrapping_add(PREFETCH_BYTES);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
    }
}

/// The codes of the field at position `S`, shifted down.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn field<const S: usize>(codes: __m256i) -> __m256i {
    let down = match S {
        0 => codes,
        1 => _mm256_srli_epi16::<2>(codes),
        2 => _mm256_srli_epi16::<4>(codes),
        _ => _mm256_srli_epi16::<6>(codes),
    };
    _mm256_and_si256(down, _mm256_set1_epi8(3))
}

/// The same for all rows of a line.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fields<const S: usize>(quarters: [__m256i; 4]) -> [__m256i; 4] {
    quarters.map(|codes| field::<S>(codes))
}

/// `acc + Σ codes · q` in 16 bits, sums of two products.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_products(acc: __m256i, codes: __m256i, q: __m256i) -> __m256i {
    _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, q))
}

/// `sum + acc`, from 16 bits to 32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(sum: __m256i, acc: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)))
}

/// `Σ code · q` of 32 rows with one row of activations.
///
/// Fields 0 and 2 are used as 0–2, fields 1 and 3 as 0, 4, 8 where they lie. A 16-bit lane takes
/// two products of each field a line: at most 2 · 2 · 8 · 127 = 4064 for the larger ones, so eight
/// lines give 32,512 at most.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn row_sums(lines: &[Line], tile: &Tile<'_>) -> Sums {
    const LINES: usize = 8;
    let (mask, mask4) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    let zero = _mm256_setzero_si256();
    let mut sums = [zero; 4];
    for (lines, values) in lines
        .chunks(LINES)
        .zip(tile.values.chunks(LINES * LINE_COLS))
    {
        let (mut by_one, mut by_four) = ([zero; 4], [zero; 4]);
        for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS)) {
            let q: [__m256i; 4] = std::array::from_fn(|s| broadcast(values, s));
            for quarter in 0..4 {
                let codes = load_quarter(line, quarter);
                let high = _mm256_srli_epi16::<4>(codes);
                let one = _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), q[0]);
                let four = _mm256_maddubs_epi16(_mm256_and_si256(codes, mask4), q[1]);
                let one = add_products(one, _mm256_and_si256(high, mask), q[2]);
                let four = add_products(four, _mm256_and_si256(high, mask4), q[3]);
                by_one[quarter] = _mm256_add_epi16(by_one[quarter], one);
                by_four[quarter] = _mm256_add_epi16(by_four[quarter], four);
            }
        }
        for quarter in 0..4 {
            let four = _mm256_srai_epi32::<2>(widen(zero, by_four[quarter]));
            sums[quarter] = widen(_mm256_add_epi32(sums[quarter], four), by_one[quarter]);
        }
    }
    sums
}

/// `Σ code · q` of 32 rows with the `N` rows of a tile, `Q` quarters of lines at a time.
///
/// `N · Q` sums of 16 bits must leave some of the 16 registers for codes and activations. The
/// kernel takes some lines and goes through them for all quarters before it takes the next, so that
/// it reads memory in one stream.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn few_sums<const N: usize, const Q: usize>(lines: &[Line], tile: &Tile<'_>, sums: &mut [Sums]) {
    let sums = &mut sums[..N];
    sums.fill([_mm256_setzero_si256(); QUARTERS]);
    for (lines, values) in lines
        .chunks(PANEL_LINES)
        .zip(tile.values.chunks(PANEL_LINES * LINE_COLS * N))
    {
        prefetch(lines);
        for first in (0..QUARTERS).step_by(Q) {
            let acc = quarter_sums::<N, Q>(lines, values, first);
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (sum, acc) in sums[first..first + Q].iter_mut().zip(acc) {
                    *sum = widen(*sum, acc);
                }
            }
        }
    }
}

/// `Σ code · q` of `Q` quarters of at most [`PANEL_LINES`] lines with the `N` rows of a tile, in 16
/// bits.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn quarter_sums<const N: usize, const Q: usize>(
    lines: &[Line],
    values: &[i8],
    first: usize,
) -> [[__m256i; Q]; N] {
    let mut acc = [[_mm256_setzero_si256(); Q]; N];
    for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS * N)) {
        let quarters: [__m256i; Q] = std::array::from_fn(|i| load_quarter(line, first + i));
        macro_rules! add_field {
            ($s:literal) => {
                let codes = quarters.map(|codes| field::<$s>(codes));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let q = broadcast(values, $s * N + i);
                    for (acc, codes) in acc.iter_mut().zip(codes) {
                        *acc = add_products(*acc, codes, q);
                    }
                }
            };
        }
        add_field!(0);
        add_field!(1);
        add_field!(2);
        add_field!(3);
    }
    acc
}

/// `Σ code · q` of 32 rows with the rows of some tiles.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn many_sums(lines: &[Line], tiles: Range<usize>, activations: &Activations, sums: &mut [Sums]) {
    let mut panel: [UnpackedLine; PANEL_LINES] = [[[_mm256_setzero_si256(); 4]; 4]; PANEL_LINES];
    sums.fill([_mm256_setzero_si256(); 4]);
    for (index, lines) in lines.chunks(PANEL_LINES).enumerate() {
        let panel = &mut panel[..lines.len()];
        prefetch(lines);
        for (line, unpacked) in lines.iter().zip(&mut *panel) {
            let codes = std::array::from_fn(|quarter| load_quarter(line, quarter));
            *unpacked = [
                fields::<0>(codes),
                fields::<1>(codes),
                fields::<2>(codes),
                fields::<3>(codes),
            ];
        }
        for tile_index in tiles.clone() {
            let tile = activations.tile(tile_index);
            let rows = tile.scales.len();
            let sums = &mut sums[(tile_index - tiles.start) * TILE_ROWS..][..rows];
            let start = index * PANEL_LINES * LINE_COLS * rows;
            let values = &tile.values[start..start + panel.len() * LINE_COLS * rows];
            let mut first = 0;
            macro_rules! rows_at_once {
                ($n:literal) => {
                    while rows - first >= $n {
                        panel_sums::<$n>(panel, values, rows, first, &mut sums[first..first + $n]);
                        first += $n;
                    }
                };
            }
            // The sums of two quarters and five rows take ten of the 16 registers.
            rows_at_once!(5);
            rows_at_once!(4);
            rows_at_once!(3);
            rows_at_once!(2);
            rows_at_once!(1);
        }
    }
}

/// Adds `Σ code · q` of the columns of a panel with `N` rows of a tile of `rows`, from row `first`
/// on, to their sums.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn panel_sums<const N: usize>(
    panel: &[UnpackedLine],
    values: &[i8],
    rows: usize,
    first: usize,
    sums: &mut [Sums],
) {
    for pair in 0..2 {
        let mut acc = [[_mm256_setzero_si256(); 2]; N];
        for (codes, values) in panel
            .as_flattened()
            .iter()
            .zip(values.chunks_exact(4 * rows))
        {
            let values = &values[4 * first..4 * first + 4 * N];
            for (i, acc) in acc.iter_mut().enumerate() {
                let q = broadcast(values, i);
                *acc = [
                    add_products(acc[0], codes[2 * pair], q),
                    add_products(acc[1], codes[2 * pair + 1], q),
                ];
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            sums[2 * pair] = widen(sums[2 * pair], acc[0]);
            sums[2 * pair + 1] = widen(sums[2 * pair + 1], acc[1]);
        }
    }
}
