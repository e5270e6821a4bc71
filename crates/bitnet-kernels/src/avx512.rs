//! AVX-512 with VNNI: 16 lanes of f32, and `vpdpbusd`, which multiplies 64 pairs of bytes and adds them by fours.

mod peak;
mod screen;
mod sparse;
mod ternary;

use std::arch::x86_64::*;

use crate::packing::Packing;
use crate::portable;
use crate::set::{
    CACHE_BLOCK, KernelSet, Partial, SEGMENT_HEADS, SEGMENT_KEYS, Scores, Segment, kernel_set, softmax_heads,
};

kernel_set!(
    AVX512 = "avx512",
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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

/// The table of AVX-512 with a lookup among 64 bytes (VBMI: Ice Lake, Zen 4 and later).
pub(crate) static AVX512_VBMI: KernelSet =
    KernelSet { name: "avx512-vbmi", ternary: ternary::ternary_vbmi, packing: Packing::FiveThirds, ..AVX512 };

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
            // SAFETY: 32 bytes from 32 i of 128, and 16 floats from 16 i of 64; the loads need no alignment.
            let (row, x) = unsafe {
                (_mm256_loadu_si256(row.as_ptr().add(32 * i).cast()), _mm512_loadu_ps(x.as_ptr().add(16 * i)))
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn store16(out: &mut [f32], value: __m512) {
    assert!(out.len() == 16);
    // SAFETY: 16 writable floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) }
}

/// Sixteen elements of the cache as f32.
trait Load16: Copy {
    /// # Safety
    /// The CPU must have AVX-512 F.
    unsafe fn load16(from: &[Self; 16]) -> __m512;
}

impl Load16 for half::f16 {
    #[inline(always)]
    unsafe fn load16(from: &[Self; 16]) -> __m512 {
        // SAFETY: 32 readable bytes; the load needs no alignment. The caller vouches for the CPU.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
}

impl Load16 for f32 {
    #[inline(always)]
    unsafe fn load16(from: &[Self; 16]) -> __m512 {
        // SAFETY: 16 readable floats; the load needs no alignment. The caller vouches for the CPU.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend_f16(segment: &Segment<'_, half::f16>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend_f32(segment: &Segment<'_, f32>, partial: &mut Partial<'_>) {
    attend(segment, partial);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend<T: Load16>(segment: &Segment<'_, T>, partial: &mut Partial<'_>) {
    match segment.heads {
        1 => attend_heads::<T, 1>(segment, partial),
        2 => attend_heads::<T, 2>(segment, partial),
        3 => attend_heads::<T, 3>(segment, partial),
        _ => attend_heads::<T, 4>(segment, partial),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend_heads<T: Load16, const H: usize>(segment: &Segment<'_, T>, partial: &mut Partial<'_>) {
    let Segment { head_dim, value_dim, num_keys, .. } = *segment;
    let queries: [&[f32]; H] = std::array::from_fn(|h| &segment.queries[h * head_dim..(h + 1) * head_dim]);
    let mut scores: Scores = [[0.0; SEGMENT_KEYS]; SEGMENT_HEADS];
    let scale = _mm512_set1_ps(segment.scale);
    for (block, keys) in segment.keys[..num_keys.div_ceil(CACHE_BLOCK)].iter().enumerate() {
        let mut acc = [[_mm512_setzero_ps(); 2]; H];
        for (d, keys) in keys.as_chunks::<16>().0.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: this function has AVX-512 F.
            let keys = unsafe { [T::load16(&keys[0]), T::load16(&keys[1])] };
            for (acc, query) in acc.iter_mut().zip(queries) {
                let q = _mm512_set1_ps(query[d]);
                acc[0] = _mm512_add_ps(acc[0], _mm512_mul_ps(q, keys[0]));
                acc[1] = _mm512_add_ps(acc[1], _mm512_mul_ps(q, keys[1]));
            }
        }
        for (acc, scores) in acc.iter().zip(&mut scores) {
            let out = &mut scores[block * CACHE_BLOCK..(block + 1) * CACHE_BLOCK];
            let (low, high) = out.split_at_mut(16);
            store16(low, _mm512_mul_ps(acc[0], scale));
            store16(high, _mm512_mul_ps(acc[1], scale));
        }
    }
    softmax_heads(&mut scores, num_keys, partial);
    let mut dim = 0;
    while dim + 64 <= value_dim {
        weigh_values::<T, H, 4>(segment, &scores, dim, partial.acc);
        dim += 64;
    }
    while dim < value_dim {
        weigh_values::<T, H, 1>(segment, &scores, dim, partial.acc);
        dim += 16;
    }
}

/// `acc = Σ weight · value` over the keys for `16 · C` dimensions from `dim` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weigh_values<T: Load16, const H: usize, const C: usize>(
    segment: &Segment<'_, T>,
    weights: &Scores,
    dim: usize,
    out: &mut [f32],
) {
    let mut acc = [[_mm512_setzero_ps(); C]; H];
    let row_chunks = segment.value_dim / 16;
    for (block, first_key) in segment.values.iter().zip((0..segment.num_keys).step_by(CACHE_BLOCK)) {
        let rows = block.as_chunks::<16>().0.chunks_exact(row_chunks);
        for (key, row) in (first_key..segment.num_keys).zip(rows) {
            let row = &row[dim / 16..dim / 16 + C];
            // SAFETY: this function has AVX-512 F.
            let values: [__m512; C] = std::array::from_fn(|c| unsafe { T::load16(&row[c]) });
            for (acc, weights) in acc.iter_mut().zip(weights) {
                let weight = _mm512_set1_ps(weights[key]);
                for (acc, values) in acc.iter_mut().zip(values) {
                    *acc = _mm512_add_ps(*acc, _mm512_mul_ps(weight, values));
                }
            }
        }
    }
    for (acc, out) in acc.iter().zip(out.chunks_exact_mut(segment.value_dim)) {
        for (acc, out) in acc.iter().zip(out[dim..].chunks_exact_mut(16)) {
            store16(out, *acc);
        }
    }
}
