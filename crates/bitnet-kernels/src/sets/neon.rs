//! NEON: 4 lanes of f32, and two sets. `neon` runs on every 64-bit ARM CPU and multiplies bytes
//! into 16 bits; `neon-dotprod` uses `sdot`, which multiplies 16 pairs of bytes and adds the
//! products of each four to a 32-bit lane.
//!
//! Everything but the ternary product is the same in both. `sdot` and `fcvtl` (f16 to f32) are
//! written as assembly: their intrinsics are not stable in every Rust version that this crate
//! compiles with.

mod attention;
mod groups;
mod peak;
mod screen;
mod signs;
mod sparse;
mod ternary;
mod tl;
mod vector;

use std::arch::aarch64::*;

use vector::{convert_f16, load_f32, store4};

use crate::layout::packing::Packing;
use crate::sets::portable;
use crate::sets::table::{KernelSet, kernel_set};

kernel_set!(
    NEON = "neon",
    #[target_feature(enable = "neon")]
    own {
        screen_block: screen::screen_block,
        sparse: sparse::KERNELS,
        groups: groups::KERNELS,
        ternary: ternary::ternary,
        ternary_tile: None,
        ternary_wide: None,
        lookup: tl::LOOKUP,
        packing: Packing::Two,
        matvec_f16: matvec_f16,
        round_f16: attention::round_f16,
        attend_f16: attention::attend_f16,
        attend_f32: attention::attend_f32,
        peak_i8: Some(peak::i8),
        peak_f32: Some(peak::f32),
    }
);

/// The table of NEON with the dot product of Armv8.2 and later.
pub(crate) static NEON_DOTPROD: KernelSet = KernelSet {
    name: "neon-dotprod",
    ternary: ternary::ternary_dotprod,
    groups: groups::KERNELS_DOTPROD,
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
            *acc = [
                vaddq_f32(acc[0], vmulq_f32(row[0], x[0])),
                vaddq_f32(acc[1], vmulq_f32(row[1], x[1])),
            ];
        }
    }
    if x_rest.is_empty() {
        return reduce(acc.as_flattened());
    }
    let mut lanes = [[0.0; 16]; 4];
    for (acc, lanes) in acc
        .as_flattened()
        .iter()
        .zip(lanes.as_flattened_mut().as_chunks_mut().0)
    {
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
    let quarter = |i: usize| {
        vaddq_f32(
            vaddq_f32(acc[i], acc[4 + i]),
            vaddq_f32(acc[8 + i], acc[12 + i]),
        )
    };
    let v4 = vaddq_f32(
        vaddq_f32(quarter(0), quarter(2)),
        vaddq_f32(quarter(1), quarter(3)),
    );
    let v2 = vadd_f32(vget_low_f32(v4), vget_high_f32(v4));
    vpadds_f32(v2)
}
