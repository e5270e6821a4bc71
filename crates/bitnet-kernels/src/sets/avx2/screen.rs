//! Estimates of logits with `vpmaddubsw`.

use std::arch::x86_64::*;

use super::vector::{broadcast, load_quarter};
use crate::layout::activations::Tile;
use crate::layout::lines::LINE_BYTES;
use crate::layout::screen::ScreenSums;

/// `Σ integer · q` of 32 rows with each plane of a tile, two planes at a time.
///
/// `vpmaddubsw` needs one unsigned operand: it gets the magnitudes of the integers, and `vpsignb`
/// moves their signs to the activations. Two products are then at most 2 · 127 · 127 = 32,258, so
/// 16 bits hold them.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn screen_block(lines: &[u8], _ahead: &[u8], tile: &Tile<'_>, sums: &mut ScreenSums) {
    let planes = tile.scales.len();
    let ones = _mm256_set1_epi16(1);
    for (pair, sums) in sums[..planes].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let mut acc = [[_mm256_setzero_si256(); 4]; 2];
        for (line, values) in lines
            .chunks_exact(LINE_BYTES)
            .zip(tile.values.chunks_exact(4 * planes))
        {
            let q = [broadcast(values, 2 * pair), broadcast(values, 2 * pair + 1)];
            for quarter in 0..4 {
                let integers =
                    _mm256_xor_si256(load_quarter(line, quarter), _mm256_set1_epi8(-128));
                let magnitudes = _mm256_abs_epi8(integers);
                for (acc, q) in acc.iter_mut().zip(q) {
                    let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(q, integers));
                    acc[quarter] = _mm256_add_epi32(acc[quarter], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (acc, sums) in acc.iter().zip(sums) {
            for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<8>().0) {
                // SAFETY: 8 writable integers; the store needs no alignment.
                unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *acc) };
            }
        }
    }
}
