//! AVX2: 8 lanes of f32, and `vpmaddubsw`, which multiplies 32 pairs of bytes and adds neighbouring
//! products into sixteen 16-bit lanes.

mod attention;
pub(crate) mod group_prompt;
mod groups;
mod peak;
mod prompt;
mod screen;
pub(crate) mod signs;
pub(crate) mod sparse;
mod sums;
mod ternary;
pub(crate) mod tl;
mod vector;

use std::arch::x86_64::*;

use vector::store8;

use crate::layout::packing::Packing;
use crate::sets::portable;
use crate::sets::table::kernel_set;

kernel_set!(
    AVX2 = "avx2",
    #[target_feature(enable = "avx2,f16c")]
    own {
        screen_block: screen::screen_block,
        sparse: sparse::KERNELS,
        groups: groups::KERNELS,
        ternary: ternary::ternary,
        ternary_tile: None,
        ternary_wide: Some(prompt::ternary_wide),
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

#[target_feature(enable = "avx2,f16c")]
fn matvec_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(2 * x.len()).zip(out) {
        *out = dot_f16(row, x);
    }
}

/// `Σ row · x` over the virtual lanes, eight registers of eight.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 8];
    let (row_chunks, row_rest) = row.as_chunks::<128>();
    let (x_chunks, x_rest) = x.as_chunks::<64>();
    for (row, x) in row_chunks.iter().zip(x_chunks) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: 16 bytes from 16 i of 128, and 8 floats from 8 i of 64; the loads need no
            // alignment.
            let (row, x) = unsafe {
                (
                    _mm_loadu_si128(row.as_ptr().add(16 * i).cast()),
                    _mm256_loadu_ps(x.as_ptr().add(8 * i)),
                )
            };
            *acc = _mm256_add_ps(*acc, _mm256_mul_ps(_mm256_cvtph_ps(row), x));
        }
    }
    if x_rest.is_empty() {
        return reduce(acc);
    }
    let mut lanes = [[0.0; 16]; 4];
    for (acc, lanes) in acc.as_chunks::<2>().0.iter().zip(&mut lanes) {
        store8(&mut lanes[..8], acc[0]);
        store8(&mut lanes[8..], acc[1]);
    }
    for (i, (bytes, x)) in row_rest.as_chunks::<2>().0.iter().zip(x_rest).enumerate() {
        lanes[i / 16][i % 16] += half::f16::from_le_bytes(*bytes).to_f32() * x;
    }
    portable::reduce(&lanes)
}

/// The tree of `portable::reduce`, in registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn reduce(acc: [__m256; 8]) -> f32 {
    let half = |i: usize| {
        _mm256_add_ps(
            _mm256_add_ps(acc[i], acc[2 + i]),
            _mm256_add_ps(acc[4 + i], acc[6 + i]),
        )
    };
    let v8 = _mm256_add_ps(half(0), half(1));
    let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
    let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
}
