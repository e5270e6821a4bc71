//! NEON: 4 lanes of f32, and two sets. `neon` needs no more than every 64-bit ARM has and multiplies bytes into 16 bits;
//! `neon-dotprod` has `sdot`, which multiplies 16 pairs of bytes and adds them by fours into 32 bits.
//!
//! Everything but the ternary product is the same in both. `sdot` and `fcvtl` (f16 to f32) are written as assembly: their
//! intrinsics are not stable in every Rust version that this crate compiles with.

mod peak;
mod screen;
mod sparse;
mod ternary;

use std::arch::aarch64::*;
use std::arch::asm;

use crate::packing::Packing;
use crate::portable;
use crate::set::{
    CACHE_BLOCK, KernelSet, Partial, SEGMENT_HEADS, SEGMENT_KEYS, Scores, Segment, kernel_set, softmax_heads,
};

kernel_set!(
    NEON = "neon",
    #[target_feature(enable = "neon")]
    own {
        screen_block: screen::screen_block,
        sparse: sparse::KERNELS,
        ternary: ternary::ternary,
        packing: Packing::Two,
        matvec_f16: matvec_f16,
        attend_f16: attend_f16,
        attend_f32: attend_f32,
        peak_i8: Some(peak::i8),
        peak_f32: Some(peak::f32),
    }
);

/// The table of NEON with the dot product of Armv8.2 and later.
pub(crate) static NEON_DOTPROD: KernelSet = KernelSet {
    name: "neon-dotprod",
    ternary: ternary::ternary_dotprod,
    screen_block: screen::screen_block_dotprod,
    peak_i8: Some(peak::i8_dotprod),
    ..NEON
};

#[target_feature(enable = "neon")]
fn matvec_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(2 * x.len()).zip(out) {
        *out = dot_f16(row, x);
    }
}

/// `Σ row · x` over the virtual lanes, sixteen registers of four.
#[inline]
#[target_feature(enable = "neon")]
fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    let mut acc = [[vdupq_n_f32(0.0); 2]; 8];
    let (row_chunks, row_rest) = row.as_chunks::<128>();
    let (x_chunks, x_rest) = x.as_chunks::<64>();
    for (row, x) in row_chunks.iter().zip(x_chunks) {
        let (row, x) = (row.as_chunks::<16>().0, x.as_chunks::<8>().0);
        for ((acc, row), x) in acc.iter_mut().zip(row).zip(x) {
            // SAFETY: 16 readable bytes; the load needs no alignment.
            let row = convert_f16(unsafe { vreinterpretq_u16_u8(vld1q_u8(row.as_ptr())) });
            let x = load_f32(x);
            *acc = [vaddq_f32(acc[0], vmulq_f32(row[0], x[0])), vaddq_f32(acc[1], vmulq_f32(row[1], x[1]))];
        }
    }
    if x_rest.is_empty() {
        return reduce(acc.as_flattened());
    }
    let mut lanes = [[0.0; 16]; 4];
    for (acc, lanes) in acc.as_flattened().iter().zip(lanes.as_flattened_mut().as_chunks_mut().0) {
        store4(lanes, *acc);
    }
    for (i, (bytes, x)) in row_rest.as_chunks::<2>().0.iter().zip(x_rest).enumerate() {
        lanes[i / 16][i % 16] += half::f16::from_le_bytes(*bytes).to_f32() * x;
    }
    portable::reduce(&lanes)
}

/// The tree of `portable::reduce`, in registers.
#[inline]
#[target_feature(enable = "neon")]
fn reduce(acc: &[float32x4_t]) -> f32 {
    let quarter = |i: usize| vaddq_f32(vaddq_f32(acc[i], acc[4 + i]), vaddq_f32(acc[8 + i], acc[12 + i]));
    let v4 = vaddq_f32(vaddq_f32(quarter(0), quarter(2)), vaddq_f32(quarter(1), quarter(3)));
    let v2 = vadd_f32(vget_low_f32(v4), vget_high_f32(v4));
    vpadds_f32(v2)
}

/// The bits of eight f16 as f32, exactly.
#[inline]
#[target_feature(enable = "neon")]
fn convert_f16(bits: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: one instruction that touches nothing but these registers; every CPU with NEON has it.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {bits:v}.4h",
            low = lateout(vreg) low,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: as above.
    unsafe {
        asm!(
            "fcvtl2 {high:v}.4s, {bits:v}.8h",
            high = lateout(vreg) high,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Eight floats.
#[inline]
#[target_feature(enable = "neon")]
fn load_f32(from: &[f32; 8]) -> [float32x4_t; 2] {
    // SAFETY: 8 readable floats; the loads need no alignment.
    unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn store4(out: &mut [f32; 4], value: float32x4_t) {
    // SAFETY: 4 writable floats; the store needs no alignment.
    unsafe { vst1q_f32(out.as_mut_ptr(), value) }
}

/// Eight elements of the cache as f32.
trait Load8: Copy {
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2];
}

impl Load8 for half::f16 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2] {
        // SAFETY: 16 readable bytes; the load needs no alignment. The caller vouches for the CPU.
        unsafe { convert_f16(vld1q_u16(from.as_ptr().cast())) }
    }
}

impl Load8 for f32 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { load_f32(from) }
    }
}

#[target_feature(enable = "neon")]
fn attend_f16(segment: &Segment<'_, half::f16>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

#[target_feature(enable = "neon")]
fn attend_f32(segment: &Segment<'_, f32>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

#[inline]
#[target_feature(enable = "neon")]
fn attend<T: Load8>(segment: &Segment<'_, T>, partial: &mut Partial<'_>) {
    let Segment { heads, head_dim, value_dim, num_keys, .. } = *segment;
    let mut scores: Scores = [[0.0; SEGMENT_KEYS]; SEGMENT_HEADS];
    let queries: [&[f32]; SEGMENT_HEADS] =
        std::array::from_fn(|h| segment.queries.get(h * head_dim..(h + 1) * head_dim).unwrap_or_default());
    // Two heads at a time: with more, the accumulators of a block of keys would not fit into 32 registers.
    for first in (0..heads).step_by(2) {
        if heads - first >= 2 {
            score_keys::<T, 2>(segment, &queries[first..], &mut scores[first..]);
        } else {
            score_keys::<T, 1>(segment, &queries[first..], &mut scores[first..]);
        }
    }
    softmax_heads(&mut scores, num_keys, partial);
    for dim in (0..value_dim).step_by(16) {
        match heads {
            1 => weigh_values::<T, 1>(segment, &scores, dim, partial.acc),
            2 => weigh_values::<T, 2>(segment, &scores, dim, partial.acc),
            3 => weigh_values::<T, 3>(segment, &scores, dim, partial.acc),
            _ => weigh_values::<T, 4>(segment, &scores, dim, partial.acc),
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn score_keys<T: Load8, const H: usize>(
    segment: &Segment<'_, T>,
    queries: &[&[f32]],
    scores: &mut [[f32; SEGMENT_KEYS]],
) {
    let scale = vdupq_n_f32(segment.scale);
    for (block, keys) in segment.keys[..segment.num_keys.div_ceil(CACHE_BLOCK)].iter().enumerate() {
        let mut acc = [[[vdupq_n_f32(0.0); 2]; CACHE_BLOCK / 8]; H];
        for (d, keys) in keys.as_chunks::<8>().0.as_chunks::<{ CACHE_BLOCK / 8 }>().0.iter().enumerate() {
            let q: [float32x4_t; H] = std::array::from_fn(|h| vdupq_n_f32(queries[h][d]));
            for (i, keys) in keys.iter().enumerate() {
                // SAFETY: this function has NEON.
                let keys = unsafe { T::load8(keys) };
                for (acc, q) in acc.iter_mut().zip(q) {
                    acc[i][0] = vaddq_f32(acc[i][0], vmulq_f32(q, keys[0]));
                    acc[i][1] = vaddq_f32(acc[i][1], vmulq_f32(q, keys[1]));
                }
            }
        }
        for (acc, scores) in acc.iter().zip(scores.iter_mut()) {
            let out = &mut scores[block * CACHE_BLOCK..(block + 1) * CACHE_BLOCK];
            for (acc, out) in acc.as_flattened().iter().zip(out.as_chunks_mut().0) {
                store4(out, vmulq_f32(*acc, scale));
            }
        }
    }
}

/// `acc = Σ weight · value` over the keys for 16 dimensions from `dim` on.
#[inline]
#[target_feature(enable = "neon")]
fn weigh_values<T: Load8, const H: usize>(segment: &Segment<'_, T>, weights: &Scores, dim: usize, out: &mut [f32]) {
    let mut acc = [[[vdupq_n_f32(0.0); 2]; 2]; H];
    let row_chunks = segment.value_dim / 8;
    for (block, first_key) in segment.values.iter().zip((0..segment.num_keys).step_by(CACHE_BLOCK)) {
        let rows = block.as_chunks::<8>().0.chunks_exact(row_chunks);
        for (key, row) in (first_key..segment.num_keys).zip(rows) {
            let row = &row[dim / 8..dim / 8 + 2];
            // SAFETY: this function has NEON.
            let values: [[float32x4_t; 2]; 2] = std::array::from_fn(|c| unsafe { T::load8(&row[c]) });
            for (acc, weights) in acc.iter_mut().zip(weights) {
                let weight = vdupq_n_f32(weights[key]);
                for (acc, values) in acc.as_flattened_mut().iter_mut().zip(values.as_flattened()) {
                    *acc = vaddq_f32(*acc, vmulq_f32(weight, *values));
                }
            }
        }
    }
    for (acc, out) in acc.iter().zip(out.chunks_exact_mut(segment.value_dim)) {
        for (acc, out) in acc.as_flattened().iter().zip(out[dim..].as_chunks_mut().0) {
            store4(out, *acc);
        }
    }
}
