//! Estimates of logits with `vpdpbusd`.

use std::arch::x86_64::*;

use super::vector::{broadcast, load_half};
use crate::layout::activations::Tile;
use crate::layout::lines::LINE_BYTES;
use crate::layout::screen::{ScreenSums, ScreenTile};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn screen_block(
    lines: &[u8],
    ahead: &[u8],
    tile: &ScreenTile<'_>,
    sums: &mut ScreenSums,
) {
    let tile = &tile.planes;
    match tile.scales.len() {
        2 => screen_planes::<2>(lines, ahead, tile, sums),
        4 => screen_planes::<4>(lines, ahead, tile, sums),
        6 => screen_planes::<6>(lines, ahead, tile, sums),
        _ => screen_planes::<8>(lines, ahead, tile, sums),
    }
}

/// `Σ integer · q` of 32 rows with the `N` planes of a tile. The bytes are integers + 128, so the
/// kernel subtracts 128 · Σ q from each sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn screen_planes<const N: usize>(
    lines: &[u8],
    ahead: &[u8],
    tile: &Tile<'_>,
    sums: &mut ScreenSums,
) {
    let step = ahead.len() * LINE_BYTES / lines.len();
    let mut acc = [[_mm512_setzero_si512(); 2]; N];
    for (at, (line, values)) in lines
        .chunks_exact(LINE_BYTES)
        .zip(tile.values.chunks_exact(4 * N))
        .enumerate()
    {
        if !ahead.is_empty() {
            _mm_prefetch::<_MM_HINT_T1>(ahead.as_ptr().wrapping_add(at * step).cast());
        }
        let halves = [load_half(line, 0), load_half(line, 1)];
        for (i, acc) in acc.iter_mut().enumerate() {
            let q = broadcast(values, i);
            acc[0] = _mm512_dpbusd_epi32(acc[0], halves[0], q);
            acc[1] = _mm512_dpbusd_epi32(acc[1], halves[1], q);
        }
    }
    for ((acc, sums), plane_sum) in acc.iter().zip(sums).zip(tile.sums) {
        let excess = _mm512_set1_epi32(128 * plane_sum);
        for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<16>().0) {
            // SAFETY: 16 writable integers; the store needs no alignment.
            unsafe {
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_sub_epi32(*acc, excess))
            };
        }
    }
}
