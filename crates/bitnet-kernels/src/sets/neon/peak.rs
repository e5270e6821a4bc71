//! Loops that measure this set's peak rate of products, with all operands in registers.

use super::vector::dot;
use std::arch::aarch64::*;
use std::hint::black_box;

/// `smlal` on twelve independent chains. Each chain multiplies its own sum, since the compiler
/// would move a constant product out of the loop.
#[target_feature(enable = "neon")]
pub(super) fn i8(rounds: usize) -> usize {
    let mut acc = [vdupq_n_s16(black_box(1)); 12];
    let q = vdup_n_s8(black_box(2));
    for _ in 0..rounds {
        acc = acc.map(|acc| vmlal_s8(acc, vget_low_s8(vreinterpretq_s8_s16(acc)), q));
    }
    black_box(acc);
    rounds * acc.len() * 8
}

/// `sdot` on twelve chains.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn i8_dotprod(rounds: usize) -> usize {
    let mut acc = [vdupq_n_s32(black_box(1)); 12];
    let (codes, q) = (vdupq_n_u8(black_box(1)), vdupq_n_s8(black_box(2)));
    for _ in 0..rounds {
        acc = acc.map(|acc| dot::<0>(acc, codes, q));
    }
    black_box(acc);
    rounds * acc.len() * 16
}

/// A product and a sum on sixteen chains, which tend to 2.
#[target_feature(enable = "neon")]
pub(super) fn f32(rounds: usize) -> usize {
    let mut acc = [vdupq_n_f32(black_box(1.0)); 16];
    let (half, one) = (vdupq_n_f32(black_box(0.5)), vdupq_n_f32(black_box(1.0)));
    for _ in 0..rounds {
        acc = acc.map(|acc| vaddq_f32(vmulq_f32(acc, half), one));
    }
    black_box(acc);
    rounds * acc.len() * 4
}
