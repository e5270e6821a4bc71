//! Loops that measure this set's peak rate of products, with all operands in registers.

use std::arch::x86_64::*;
use std::hint::black_box;

/// `vpdpbusd` on twelve chains, enough to hide its latency.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn i8(rounds: usize) -> usize {
    let mut acc = [_mm512_set1_epi32(black_box(1)); 12];
    let (codes, q) = (
        _mm512_set1_epi8(black_box(1)),
        _mm512_set1_epi8(black_box(2)),
    );
    for _ in 0..rounds {
        acc = acc.map(|acc| _mm512_dpbusd_epi32(acc, codes, q));
    }
    black_box(acc);
    rounds * acc.len() * 64
}

/// A product and a sum on sixteen chains, which tend to 2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn f32(rounds: usize) -> usize {
    let mut acc = [_mm512_set1_ps(black_box(1.0)); 16];
    let (half, one) = (
        _mm512_set1_ps(black_box(0.5)),
        _mm512_set1_ps(black_box(1.0)),
    );
    for _ in 0..rounds {
        acc = acc.map(|acc| _mm512_add_ps(_mm512_mul_ps(acc, half), one));
    }
    black_box(acc);
    rounds * acc.len() * 16
}
