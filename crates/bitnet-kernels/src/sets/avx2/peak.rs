//! Loops that measure this set's peak rate of products, with all operands in registers.

use std::arch::x86_64::*;
use std::hint::black_box;

/// `vpmaddubsw` and its addition on twelve independent chains. Each chain multiplies its own sum,
/// since the compiler would move a constant product out of the loop.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn i8(rounds: usize) -> usize {
    let mut acc = [_mm256_set1_epi16(black_box(1)); 12];
    let q = _mm256_set1_epi8(black_box(2));
    for _ in 0..rounds {
        acc = acc.map(|acc| _mm256_add_epi16(acc, _mm256_maddubs_epi16(acc, q)));
    }
    black_box(acc);
    rounds * acc.len() * 32
}

/// A product and a sum on twelve chains, which tend to 2.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn f32(rounds: usize) -> usize {
    let mut acc = [_mm256_set1_ps(black_box(1.0)); 12];
    let (half, one) = (
        _mm256_set1_ps(black_box(0.5)),
        _mm256_set1_ps(black_box(1.0)),
    );
    for _ in 0..rounds {
        acc = acc.map(|acc| _mm256_add_ps(_mm256_mul_ps(acc, half), one));
    }
    black_box(acc);
    rounds * acc.len() * 8
}
