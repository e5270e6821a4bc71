//! Loads and stores of registers, and the step of the sums with group scales.

use std::arch::x86_64::*;

/// Four activations, the same in every lane.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn broadcast(values: &[i8], dword: usize) -> __m256i {
    let v = &values[4 * dword..4 * dword + 4];
    _mm256_set1_epi32(i32::from_le_bytes([
        v[0] as u8, v[1] as u8, v[2] as u8, v[3] as u8,
    ]))
}

/// Rows `8 quarter` to `8 quarter + 7` of a line.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn load_quarter(line: &[u8], quarter: usize) -> __m256i {
    let bytes = &line[32 * quarter..32 * quarter + 32];
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn store8(out: &mut [f32], value: __m256) {
    assert!(out.len() == 8);
    // SAFETY: 8 writable floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) }
}

/// `acc + sum · scale`, as `portable::fold_run` and `portable::fold_group` say.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn fold(acc: __m256, sum: __m256, scale: __m256) -> __m256 {
    _mm256_add_ps(acc, _mm256_mul_ps(sum, scale))
}

/// The scales of rows `8 quarter` to `8 quarter + 7`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn load_scales(scales: &[u8], quarter: usize) -> __m256 {
    let bytes = &scales[16 * quarter..16 * quarter + 16];
    // SAFETY: 16 readable bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The codes of 2 bits in each byte, the lowest first: four columns of a quarter of a line.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn fields(codes: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(codes, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
    ]
}
