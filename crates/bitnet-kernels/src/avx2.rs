//! AVX2: 8 lanes of f32, and `vpmaddubsw`, which multiplies 32 pairs of bytes and adds them by twos into 16 bits.

mod peak;
mod screen;
pub(crate) mod sparse;
mod ternary;

use std::arch::x86_64::*;

use crate::packing::Packing;
use crate::portable;
use crate::set::{CACHE_BLOCK, Partial, SEGMENT_HEADS, SEGMENT_KEYS, Scores, Segment, kernel_set, softmax_heads};

kernel_set!(
    AVX2 = "avx2",
    #[target_feature(enable = "avx2,f16c")]
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
            // SAFETY: 16 bytes from 16 i of 128, and 8 floats from 8 i of 64; the loads need no alignment.
            let (row, x) =
                unsafe { (_mm_loadu_si128(row.as_ptr().add(16 * i).cast()), _mm256_loadu_ps(x.as_ptr().add(8 * i))) };
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
    let half = |i: usize| _mm256_add_ps(_mm256_add_ps(acc[i], acc[2 + i]), _mm256_add_ps(acc[4 + i], acc[6 + i]));
    let v8 = _mm256_add_ps(half(0), half(1));
    let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
    let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store8(out: &mut [f32], value: __m256) {
    assert!(out.len() == 8);
    // SAFETY: 8 writable floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) }
}

/// Eight elements of the cache as f32.
trait Load8: Copy {
    /// # Safety
    /// The CPU must have AVX and F16C.
    unsafe fn load8(from: &[Self; 8]) -> __m256;
}

impl Load8 for half::f16 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> __m256 {
        // SAFETY: 16 readable bytes; the load needs no alignment. The caller vouches for the CPU.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
}

impl Load8 for f32 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> __m256 {
        // SAFETY: 8 readable floats; the load needs no alignment. The caller vouches for the CPU.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn attend_f16(segment: &Segment<'_, half::f16>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

#[target_feature(enable = "avx2,f16c")]
fn attend_f32(segment: &Segment<'_, f32>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

/// Heads two at a time: with more, the accumulators no longer fit into sixteen registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn attend<T: Load8>(segment: &Segment<'_, T>, partial: &mut Partial<'_>) {
    let Segment { heads, head_dim, value_dim, num_keys, .. } = *segment;
    let mut scores: Scores = [[0.0; SEGMENT_KEYS]; SEGMENT_HEADS];
    let queries: [&[f32]; SEGMENT_HEADS] =
        std::array::from_fn(|h| segment.queries.get(h * head_dim..(h + 1) * head_dim).unwrap_or_default());
    for first in (0..heads).step_by(2) {
        if heads - first >= 2 {
            score_keys::<T, 2>(segment, &queries[first..], &mut scores[first..]);
        } else {
            score_keys::<T, 1>(segment, &queries[first..], &mut scores[first..]);
        }
    }
    softmax_heads(&mut scores, num_keys, partial);
    for first in (0..heads).step_by(2) {
        let out = &mut partial.acc[first * value_dim..];
        for dim in (0..value_dim).step_by(16) {
            if heads - first >= 2 {
                weigh_values::<T, 2>(segment, &scores[first..], dim, out);
            } else {
                weigh_values::<T, 1>(segment, &scores[first..], dim, out);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn score_keys<T: Load8, const H: usize>(
    segment: &Segment<'_, T>,
    queries: &[&[f32]],
    scores: &mut [[f32; SEGMENT_KEYS]],
) {
    let scale = _mm256_set1_ps(segment.scale);
    for (block, keys) in segment.keys[..segment.num_keys.div_ceil(CACHE_BLOCK)].iter().enumerate() {
        let mut acc = [[_mm256_setzero_ps(); 4]; H];
        for (d, keys) in keys.as_chunks::<8>().0.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: this function has AVX and F16C.
            let keys: [__m256; 4] = std::array::from_fn(|i| unsafe { T::load8(&keys[i]) });
            for (acc, query) in acc.iter_mut().zip(queries) {
                let q = _mm256_set1_ps(query[d]);
                for (acc, keys) in acc.iter_mut().zip(keys) {
                    *acc = _mm256_add_ps(*acc, _mm256_mul_ps(q, keys));
                }
            }
        }
        for (acc, scores) in acc.iter().zip(scores.iter_mut()) {
            let out = &mut scores[block * CACHE_BLOCK..(block + 1) * CACHE_BLOCK];
            for (acc, out) in acc.iter().zip(out.chunks_exact_mut(8)) {
                store8(out, _mm256_mul_ps(*acc, scale));
            }
        }
    }
}

/// `acc = Σ weight · value` over the keys for 16 dimensions from `dim` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn weigh_values<T: Load8, const H: usize>(
    segment: &Segment<'_, T>,
    weights: &[[f32; SEGMENT_KEYS]],
    dim: usize,
    out: &mut [f32],
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; H];
    let row_chunks = segment.value_dim / 8;
    for (block, first_key) in segment.values.iter().zip((0..segment.num_keys).step_by(CACHE_BLOCK)) {
        let rows = block.as_chunks::<8>().0.chunks_exact(row_chunks);
        for (key, row) in (first_key..segment.num_keys).zip(rows) {
            let row = &row[dim / 8..dim / 8 + 2];
            // SAFETY: this function has AVX and F16C.
            let values: [__m256; 2] = std::array::from_fn(|c| unsafe { T::load8(&row[c]) });
            for (acc, weights) in acc.iter_mut().zip(weights) {
                let weight = _mm256_set1_ps(weights[key]);
                for (acc, values) in acc.iter_mut().zip(values) {
                    *acc = _mm256_add_ps(*acc, _mm256_mul_ps(weight, values));
                }
            }
        }
    }
    for (acc, out) in acc.iter().zip(out.chunks_exact_mut(segment.value_dim)) {
        for (acc, out) in acc.iter().zip(out[dim..].chunks_exact_mut(8)) {
            store8(out, *acc);
        }
    }
}
