//! Loads and stores of registers.

use std::arch::x86_64::*;

/// Four activations, the same in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn broadcast(values: &[i8], dword: usize) -> __m512i {
    let v = &values[4 * dword..4 * dword + 4];
    _mm512_set1_epi32(i32::from_le_bytes([
        v[0] as u8, v[1] as u8, v[2] as u8, v[3] as u8,
    ]))
}

/// Rows `16 half` to `16 half + 15` of a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_half(line: &[u8], half: usize) -> __m512i {
    let bytes = &line[64 * half..64 * half + 64];
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn store16(out: &mut [f32], value: __m512) {
    assert!(out.len() == 16);
    // SAFETY: 16 writable floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) }
}
