//! Ternary products with `vpmaddubsw`.
//!
//! A 16-bit lane holds few products, so its sums are added to 32-bit lanes before any input can
//! overflow it.
//!
//! For a few rows of activations the kernel extracts the codes from each line as it reads it. For
//! more rows it unpacks the codes of some columns to bytes, a panel that stays in the first-level
//! cache while all rows are multiplied by it; then it goes on to the next columns.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::vector::{broadcast, load_quarter, store8};
use crate::layout::activations::{Activations, Tile};
use crate::layout::lines::{LINE_COLS, Line};
use crate::sets::output::Output;
use crate::weights::matrix::{LineScratch, TernaryMatrix};

/// Maximum number of rows for which codes are extracted as lines are read.
const FEW_ROWS: usize = 4;

/// Lines in a panel. A 16-bit lane takes eight products of 0–2 by at most 127 a line: 2032, so
/// sixteen lines give 32,512 at most.
const PANEL_LINES: usize = 16;

/// A line unpacked: for four columns at a time, a byte for each of 32 rows and each column.
type UnpackedLine = [[__m256i; 4]; LINE_COLS / 4];

/// The sums of 32 rows with one row of activations.
type Sums = [__m256i; 4];

thread_local! {
    /// Running sums, one for each row of activations. Kept, so that a step allocates nothing.
    static SUMS: Cell<Vec<Sums>> = const { Cell::new(Vec::new()) };
}

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and all activation rows.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn ternary(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    let mut scratch = LineScratch::take();
    let mut sums = SUMS.take();
    sums.resize(
        sums.len().max(activations.rows()),
        [_mm256_setzero_si256(); 4],
    );
    let sums_of_rows = &mut sums[..activations.rows()];
    for block in blocks {
        let lines = scratch
            .unpack(matrix, block)
            .unwrap_or_else(|| matrix.lines(block));
        match activations.rows() {
            1 => sums_of_rows[0] = row_sums(lines, &activations.tile(0)),
            2 => few_sums::<2>(lines, &activations.tile(0), sums_of_rows),
            3 => few_sums::<3>(lines, &activations.tile(0), sums_of_rows),
            FEW_ROWS => few_sums::<FEW_ROWS>(lines, &activations.tile(0), sums_of_rows),
            _ => many_sums(lines, activations, sums_of_rows),
        }
        for tile_index in 0..activations.num_tiles() {
            let (rows, tile) = (
                activations.tile_rows(tile_index),
                activations.tile(tile_index),
            );
            for (index, sums) in sums_of_rows[rows.clone()].iter().enumerate() {
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

/// `Σ code · q` of 32 rows, 16 at a time, with the `N` rows of a tile.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn few_sums<const N: usize>(lines: &[Line], tile: &Tile<'_>, sums: &mut [Sums]) {
    for pair in 0..2 {
        let mut totals = [[_mm256_setzero_si256(); 2]; N];
        for (lines, values) in lines
            .chunks(PANEL_LINES)
            .zip(tile.values.chunks(PANEL_LINES * LINE_COLS * N))
        {
            let mut acc = [[_mm256_setzero_si256(); 2]; N];
            for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS * N)) {
                let halves = [
                    load_quarter(line, 2 * pair),
                    load_quarter(line, 2 * pair + 1),
                ];
                macro_rules! add_field {
                    ($s:literal) => {
                        let codes = [field::<$s>(halves[0]), field::<$s>(halves[1])];
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let q = broadcast(values, $s * N + i);
                            *acc = [
                                add_products(acc[0], codes[0], q),
                                add_products(acc[1], codes[1], q),
                            ];
                        }
                    };
                }
                add_field!(0);
                add_field!(1);
                add_field!(2);
                add_field!(3);
            }
            for (total, acc) in totals.iter_mut().zip(acc) {
                *total = [widen(total[0], acc[0]), widen(total[1], acc[1])];
            }
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            [sums[2 * pair], sums[2 * pair + 1]] = total;
        }
    }
}

/// `Σ code · q` of 32 rows with all rows of activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn many_sums(lines: &[Line], activations: &Activations, sums: &mut [Sums]) {
    let mut panel: [UnpackedLine; PANEL_LINES] = [[[_mm256_setzero_si256(); 4]; 4]; PANEL_LINES];
    sums.fill([_mm256_setzero_si256(); 4]);
    for (index, lines) in lines.chunks(PANEL_LINES).enumerate() {
        let panel = &mut panel[..lines.len()];
        for (line, unpacked) in lines.iter().zip(&mut *panel) {
            let codes = std::array::from_fn(|quarter| load_quarter(line, quarter));
            *unpacked = [
                fields::<0>(codes),
                fields::<1>(codes),
                fields::<2>(codes),
                fields::<3>(codes),
            ];
        }
        for tile_index in 0..activations.num_tiles() {
            let tile = activations.tile(tile_index);
            let rows = tile.scales.len();
            let sums = &mut sums[activations.tile_rows(tile_index)];
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
            rows_at_once!(4);
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
