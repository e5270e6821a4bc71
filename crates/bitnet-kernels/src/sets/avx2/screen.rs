//! Estimates of logits with `vpmaddwd`.

use std::arch::x86_64::*;

use super::vector::load_quarter;
use crate::layout::lines::LINE_BYTES;
use crate::layout::screen::{CHUNK_COLS, SCREEN_LINE_COLS, ScreenSums, ScreenTile};

/// Bytes of a chunk of columns of a block: a quarter of a first-level cache.
const CHUNK_BYTES: usize = CHUNK_COLS / SCREEN_LINE_COLS * LINE_BYTES;
/// Quarters of a line, each with eight rows of the head.
const QUARTERS: usize = 4;

/// `Σ integer · H` of 32 rows with each state of a tile.
///
/// `vpmaddubsw` saturates with integers and planes of 8 bits, so this kernel multiplies words: the
/// even and the odd bytes of a line by the whole H. Two planes then cost as much as one.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn screen_block(
    lines: &[u8],
    ahead: &[u8],
    tile: &ScreenTile<'_>,
    sums: &mut ScreenSums,
) {
    match tile.states() {
        1 => screen_states::<1, 4>(lines, ahead, tile, sums),
        2 => screen_states::<2, 2>(lines, ahead, tile, sums),
        3 => screen_states::<3, 2>(lines, ahead, tile, sums),
        4 => screen_states::<4, 2>(lines, ahead, tile, sums),
        states => unreachable!("a tile of {states} states"),
    }
}

/// The same for `N` states, `Q` quarters of the lines of a chunk at a time: their sums and operands
/// then fit into 16 registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn screen_states<const N: usize, const Q: usize>(
    lines: &[u8],
    ahead: &[u8],
    tile: &ScreenTile<'_>,
    sums: &mut ScreenSums,
) {
    let low_byte = _mm256_set1_epi32(0xff);
    // The bits of the sums of the chunks above the lowest eight, and those eight.
    let mut parts = [[[_mm256_setzero_si256(); QUARTERS]; 2]; N];
    let chunks = lines.chunks(CHUNK_BYTES);
    let num_chunks = chunks.len();
    for (index, ((lines, words), biases)) in chunks
        .zip(tile.words.chunks(CHUNK_COLS * N))
        .zip(tile.biases.as_chunks::<N>().0)
        .enumerate()
    {
        if N > 1 {
            prefetch(lines, ahead, index, num_chunks);
        }
        for first in (0..QUARTERS).step_by(Q) {
            let sums = chunk_sums::<N, Q>(lines, words, biases, first);
            for (parts, sums) in parts.iter_mut().zip(sums) {
                for (quarter, sum) in (first..).zip(sums) {
                    let (high, low) =
                        (_mm256_srai_epi32::<8>(sum), _mm256_and_si256(sum, low_byte));
                    parts[0][quarter] = _mm256_add_epi32(parts[0][quarter], high);
                    parts[1][quarter] = _mm256_add_epi32(parts[1][quarter], low);
                }
            }
        }
    }
    for (parts, sums) in parts.as_flattened().iter().zip(sums) {
        for (part, sums) in parts.iter().zip(sums.as_chunks_mut::<8>().0) {
            // SAFETY: 8 writable integers; the store needs no alignment.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *part) };
        }
    }
}

/// `Σ integer · H` over a chunk, of `Q` quarters of its lines with `N` states. The bytes are
/// integers + 128, which the biases undo; sums on the way may wrap.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn chunk_sums<const N: usize, const Q: usize>(
    lines: &[u8],
    words: &[i16],
    biases: &[i32; N],
    first: usize,
) -> [[__m256i; Q]; N] {
    let low_bytes = _mm256_set1_epi16(0xff);
    let mut acc = biases.map(|bias| [_mm256_set1_epi32(bias); Q]);
    for (line, words) in lines
        .chunks_exact(LINE_BYTES)
        .zip(words.chunks_exact(SCREEN_LINE_COLS * N))
    {
        let quarters: [__m256i; Q] = std::array::from_fn(|i| load_quarter(line, first + i));
        let even = quarters.map(|bytes| _mm256_and_si256(bytes, low_bytes));
        let odd = quarters.map(|bytes| _mm256_srli_epi16::<8>(bytes));
        for (acc, words) in acc.iter_mut().zip(words.as_chunks::<4>().0) {
            let (of_even, of_odd) = (broadcast_words(words, 0), broadcast_words(words, 2));
            for ((acc, even), odd) in acc.iter_mut().zip(even).zip(odd) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(even, of_even));
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(odd, of_odd));
            }
        }
    }
    acc
}

/// Two words, the same in every lane.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn broadcast_words(words: &[i16; 4], first: usize) -> __m256i {
    let [a, b] = [words[first], words[first + 1]].map(i16::to_le_bytes);
    _mm256_set1_epi32(i32::from_le_bytes([a[0], a[1], b[0], b[1]]))
}

/// Prefetches the chunk after the next or, if several tiles use a block, this chunk's part of what
/// the next block needs.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch(lines: &[u8], ahead: &[u8], index: usize, num_chunks: usize) {
    if ahead.is_empty() {
        for cache_line in lines.chunks_exact(64) {
            let next = cache_line.as_ptr().wrapping_add(CHUNK_BYTES);
            _mm_prefetch::<_MM_HINT_T0>(next.cast());
        }
        return;
    }
    let part = ahead.len().div_ceil(num_chunks);
    let ahead = ahead.get(index * part..).unwrap_or_default();
    for cache_line in ahead[..part.min(ahead.len())].chunks(64) {
        _mm_prefetch::<_MM_HINT_T1>(cache_line.as_ptr().cast());
    }
}
