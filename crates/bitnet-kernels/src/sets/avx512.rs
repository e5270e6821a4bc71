//! AVX-512 with VNNI: 16 lanes of f32, and `vpdpbusd`, which multiplies 64 pairs of bytes and adds
//! the products of each four to a 32-bit lane.

mod attention;
mod groups;
mod mixed;
mod peak;
mod screen;
mod sparse;
mod ternary;
mod tl;
mod vector;

use std::arch::x86_64::*;

use vector::store16;

use crate::layout::packing::Packing;
use crate::sets::table::{KernelSet, kernel_set};
use crate::sets::{avx2, portable};

kernel_set!(
    AVX512 = "avx512",
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    own {
        screen_block: screen::screen_block,
        sparse: sparse::KERNELS,
        groups: groups::KERNELS,
        ternary: ternary::ternary,
        ternary_tile: None,
        ternary_wide: None,
        lookup: avx2::tl::LOOKUP,
        packing: Packing::Two,
        matvec_f16: matvec_f16,
        round_f16: attention::round_f16,
        attend_f16: attention::attend_f16,
        attend_f32: attention::attend_f32,
        peak_i8: Some(peak::i8),
        peak_f32: Some(peak::f32),
    }
);

/// The table of AVX-512 with a lookup among 64 bytes (VBMI: Ice Lake, Zen 4 and later).
pub(crate) static AVX512_VBMI: KernelSet = KernelSet {
    name: "avx512-vbmi",
    groups: groups::KERNELS_VBMI,
    ternary: ternary::ternary_vbmi,
    lookup: tl::LOOKUP,
    packing: Packing::FiveThirds,
    ..AVX512
};

/// The same for CPUs that can do lookups on ports that products do not use, such as AMD's since Zen
/// 4: with many rows they look up and multiply at the same time.
pub(crate) static AVX512_ZEN: KernelSet = KernelSet {
    name: "avx512-zen",
    ternary_tile: Some(mixed::ternary_tile),
    ..AVX512_VBMI
};

/// Whether AMD made this CPU. Other CPUs can run [`AVX512_ZEN`], too, but no measurement shows yet
/// that it is faster there.
pub(crate) fn made_by_amd() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"AuthenticAMD"
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn matvec_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(2 * x.len()).zip(out) {
        *out = dot_f16(row, x);
    }
}

/// `Σ row · x` over the virtual lanes, four registers of sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    let mut acc = [_mm512_setzero_ps(); 4];
    let (row_chunks, row_rest) = row.as_chunks::<128>();
    let (x_chunks, x_rest) = x.as_chunks::<64>();
    for (row, x) in row_chunks.iter().zip(x_chunks) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: 32 bytes from 32 i of 128, and 16 floats from 16 i of 64; the loads need no
            // alignment.
            let (row, x) = unsafe {
                (
                    _mm256_loadu_si256(row.as_ptr().add(32 * i).cast()),
                    _mm512_loadu_ps(x.as_ptr().add(16 * i)),
                )
            };
            *acc = _mm512_add_ps(*acc, _mm512_mul_ps(_mm512_cvtph_ps(row), x));
        }
    }
    if x_rest.is_empty() {
        return reduce(acc);
    }
    let mut lanes = acc.map(|acc| {
        let mut lanes = [0.0; 16];
        store16(&mut lanes, acc);
        lanes
    });
    for (i, (bytes, x)) in row_rest.as_chunks::<2>().0.iter().zip(x_rest).enumerate() {
        lanes[i / 16][i % 16] += half::f16::from_le_bytes(*bytes).to_f32() * x;
    }
    portable::reduce(&lanes)
}

/// The tree of `portable::reduce`, in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn reduce(acc: [__m512; 4]) -> f32 {
    let v16 = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v16)));
    let v8 = _mm256_add_ps(_mm512_castps512_ps256(v16), high);
    let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
    let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
}
