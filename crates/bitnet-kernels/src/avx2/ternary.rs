//! Ternary products with `vpmaddubsw`.
//!
//! Sixteen bits hold few products, so sums move to 32 bits often enough that no input can overflow them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::store8;
use crate::activations::{Activations, Tile};
use crate::matrix::TernaryMatrix;
use crate::packing::{LINE_COLS, Line, Scratch};
use crate::set::Output;

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and all activation rows.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn ternary(matrix: &TernaryMatrix, blocks: Range<usize>, activations: &Activations, output: &Output<'_>) {
    let mut scratch = Scratch::take();
    for block in blocks {
        let scale = matrix.scale(block);
        let lines = scratch.unpack(matrix, block).unwrap_or_else(|| matrix.lines(block));
        for tile_index in 0..activations.num_tiles() {
            let tile = activations.tile(tile_index);
            let first_row = activations.tile_rows(tile_index).start;
            let store = |index: usize, quarter: usize, sums: __m256i| {
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(first_row + index, block) };
                let sums = _mm256_sub_epi32(sums, _mm256_set1_epi32(tile.sums[index]));
                let quotient = _mm256_div_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(tile.scales[index]));
                store8(&mut out[8 * quarter..8 * quarter + 8], _mm256_mul_ps(quotient, _mm256_set1_ps(scale)));
            };
            let rows = tile.scales.len();
            if rows == 1 {
                row_sums(lines, &tile).into_iter().enumerate().for_each(|(quarter, sums)| store(0, quarter, sums));
                continue;
            }
            for pair in 0..2 {
                let mut first = 0;
                macro_rules! rows_at_once {
                    ($n:literal) => {
                        while rows - first >= $n {
                            let sums = tile_sums::<$n>(lines, &tile, pair, first);
                            for (i, sums) in sums.into_iter().enumerate() {
                                store(first + i, 2 * pair, sums[0]);
                                store(first + i, 2 * pair + 1, sums[1]);
                            }
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
}

/// Four activations, the same in every lane.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn broadcast(values: &[i8], dword: usize) -> __m256i {
    let v = &values[4 * dword..4 * dword + 4];
    _mm256_set1_epi32(i32::from_le_bytes([v[0] as u8, v[1] as u8, v[2] as u8, v[3] as u8]))
}

/// Rows `8 quarter` to `8 quarter + 7` of a line.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn load_quarter(line: &[u8], quarter: usize) -> __m256i {
    let bytes = &line[32 * quarter..32 * quarter + 32];
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// `Σ code · q` of 32 rows with one row of activations.
///
/// Fields 0 and 2 are used as 0–2, fields 1 and 3 as 0, 4, 8 where they lie. A 16-bit lane takes two products of each
/// field a line: at most 2 · 2 · 8 · 127 = 4064 for the larger ones, so eight lines give 32,512 at most.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn row_sums(lines: &[Line], tile: &Tile<'_>) -> [__m256i; 4] {
    const LINES: usize = 8;
    let (mask, mask4) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); 4];
    let lines = lines.chunks(LINES);
    let values = tile.values.chunks(LINES * LINE_COLS);
    for (lines, values) in lines.zip(values) {
        let mut by_one = [_mm256_setzero_si256(); 4];
        let mut by_four = [_mm256_setzero_si256(); 4];
        for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS)) {
            let q: [__m256i; 4] = std::array::from_fn(|s| broadcast(values, s));
            for quarter in 0..4 {
                let codes = load_quarter(line, quarter);
                let high = _mm256_srli_epi16::<4>(codes);
                let one = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), q[0]),
                    _mm256_maddubs_epi16(_mm256_and_si256(high, mask), q[2]),
                );
                let four = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(codes, mask4), q[1]),
                    _mm256_maddubs_epi16(_mm256_and_si256(high, mask4), q[3]),
                );
                by_one[quarter] = _mm256_add_epi16(by_one[quarter], one);
                by_four[quarter] = _mm256_add_epi16(by_four[quarter], four);
            }
        }
        for quarter in 0..4 {
            let one = _mm256_madd_epi16(by_one[quarter], ones);
            let four = _mm256_srai_epi32::<2>(_mm256_madd_epi16(by_four[quarter], ones));
            sums[quarter] = _mm256_add_epi32(sums[quarter], _mm256_add_epi32(one, four));
        }
    }
    sums
}

/// `Σ code · q` of 16 rows (`pair` 0: rows 0–15, 1: rows 16–31) with `N` rows of a tile from `first` on.
///
/// A 16-bit lane takes eight products of 0–2 by at most 127 a line: 2032, so sixteen lines give 32,512 at most.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn tile_sums<const N: usize>(lines: &[Line], tile: &Tile<'_>, pair: usize, first: usize) -> [[__m256i; 2]; N] {
    const LINES: usize = 16;
    let rows = tile.scales.len();
    let mask = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    let lines = lines.chunks(LINES);
    let values = tile.values.chunks(LINES * LINE_COLS * rows);
    for (lines, values) in lines.zip(values) {
        let mut acc = [[_mm256_setzero_si256(); 2]; N];
        for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS * rows)) {
            let halves = [load_quarter(line, 2 * pair), load_quarter(line, 2 * pair + 1)];
            macro_rules! field {
                ($s:literal, $codes:expr) => {
                    let codes: [__m256i; 2] = $codes;
                    let values = &values[4 * ($s * rows + first)..][..4 * N];
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let q = broadcast(values, i);
                        acc[0] = _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(codes[0], q));
                        acc[1] = _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(codes[1], q));
                    }
                };
            }
            field!(0, halves.map(|h| _mm256_and_si256(h, mask)));
            field!(1, halves.map(|h| _mm256_and_si256(_mm256_srli_epi16::<2>(h), mask)));
            field!(2, halves.map(|h| _mm256_and_si256(_mm256_srli_epi16::<4>(h), mask)));
            field!(3, halves.map(|h| _mm256_and_si256(_mm256_srli_epi16::<6>(h), mask)));
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sum, acc) in sums.iter_mut().zip(acc) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(acc, ones));
            }
        }
    }
    sums
}
