//! Ternary products with `vpdpbusd`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::store16;
use crate::activations::{Activations, Tile};
use crate::matrix::{LINE_BYTES, LINE_COLS, TernaryMatrix};
use crate::set::Output;

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and all activation rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn ternary(matrix: &TernaryMatrix, blocks: Range<usize>, activations: &Activations, output: &Output<'_>) {
    for block in blocks {
        let (lines, scale) = matrix.block(block);
        for tile_index in 0..activations.num_tiles() {
            let tile = activations.tile(tile_index);
            let first_row = activations.tile_rows(tile_index).start;
            let store = |index: usize, sums: [__m512i; 2]| {
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(first_row + index, block) };
                let (low, high) = out.split_at_mut(16);
                store16(low, finish(sums[0], tile.scales[index], scale));
                store16(high, finish(sums[1], tile.scales[index], scale));
            };
            match tile.scales.len() {
                1 => store(0, row_sums(lines, &tile)),
                2 => tile_sums::<2>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                3 => tile_sums::<3>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                4 => tile_sums::<4>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                5 => tile_sums::<5>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                6 => tile_sums::<6>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                7 => tile_sums::<7>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
                _ => tile_sums::<8>(lines, &tile).into_iter().enumerate().for_each(|(i, sums)| store(i, sums)),
            }
        }
    }
}

/// `sum / s · scale`, in that order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn finish(sums: __m512i, activation_scale: f32, scale: f32) -> __m512 {
    let quotient = _mm512_div_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(activation_scale));
    _mm512_mul_ps(quotient, _mm512_set1_ps(scale))
}

/// Four activations, the same in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn broadcast(values: &[i8], dword: usize) -> __m512i {
    let v = &values[4 * dword..4 * dword + 4];
    _mm512_set1_epi32(i32::from_le_bytes([v[0] as u8, v[1] as u8, v[2] as u8, v[3] as u8]))
}

/// The two halves of a line: rows 0–15 and 16–31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_line(line: &[u8]) -> [__m512i; 2] {
    assert!(line.len() == LINE_BYTES);
    // SAFETY: the line is 128 readable bytes; the loads need no alignment.
    unsafe { [_mm512_loadu_si512(line.as_ptr().cast()), _mm512_loadu_si512(line.as_ptr().add(64).cast())] }
}

/// `Σ w · q` of 32 rows with one row of activations: bound by memory, so the codes are masked where they lie instead of
/// shifted down, each field in an accumulator of its own that ends as a multiple of 4^s.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_sums(lines: &[u8], tile: &Tile<'_>) -> [__m512i; 2] {
    let mut acc = [[_mm512_setzero_si512(); 4]; 2];
    let masks: [__m512i; 4] =
        [_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30), _mm512_set1_epi8(0xc0u8 as i8)];
    for (line, values) in lines.chunks_exact(LINE_BYTES).zip(tile.values.chunks_exact(LINE_COLS)) {
        let halves = load_line(line);
        for s in 0..4 {
            let q = broadcast(values, s);
            for half in 0..2 {
                let codes = _mm512_and_si512(halves[half], masks[s]);
                acc[half][s] = _mm512_dpbusd_epi32(acc[half][s], codes, q);
            }
        }
    }
    acc.map(|[a, b, c, d]| {
        let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
        _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(tile.sums[0]))
    })
}

/// `Σ w · q` of 32 rows with the `N` rows of a tile: bound by `vpdpbusd`, so shifts and masks go to the idle ports.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile_sums<const N: usize>(lines: &[u8], tile: &Tile<'_>) -> [[__m512i; 2]; N] {
    let mut acc: [[__m512i; 2]; N] = std::array::from_fn(|i| [_mm512_set1_epi32(-tile.sums[i]); 2]);
    let mask = _mm512_set1_epi8(3);
    for (line, values) in lines.chunks_exact(LINE_BYTES).zip(tile.values.chunks_exact(LINE_COLS * N)) {
        let halves = load_line(line);
        macro_rules! field {
            ($s:literal, $codes:expr) => {
                let codes: [__m512i; 2] = $codes;
                for (i, acc) in acc.iter_mut().enumerate() {
                    let q = broadcast(values, $s * N + i);
                    acc[0] = _mm512_dpbusd_epi32(acc[0], codes[0], q);
                    acc[1] = _mm512_dpbusd_epi32(acc[1], codes[1], q);
                }
            };
        }
        field!(0, halves.map(|h| _mm512_and_si512(h, mask)));
        field!(1, halves.map(|h| _mm512_and_si512(_mm512_srli_epi16::<2>(h), mask)));
        field!(2, halves.map(|h| _mm512_and_si512(_mm512_srli_epi16::<4>(h), mask)));
        field!(3, halves.map(|h| _mm512_and_si512(_mm512_srli_epi16::<6>(h), mask)));
    }
    acc
}
