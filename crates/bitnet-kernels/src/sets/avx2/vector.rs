//! Loads and stores of registers.

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
