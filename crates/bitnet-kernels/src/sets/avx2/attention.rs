//! Attention: panels of four queries by sixteen columns. Their sums take eight of the sixteen
//! registers and leave room for data and coefficients.

use std::arch::x86_64::*;

use half::f16;

use crate::sets::segment::{self, Panel, Panels, Partial, Segment, SegmentScratch};

#[target_feature(enable = "avx2,f16c")]
pub(super) fn attend_f16(
    segment: &Segment<'_, f16>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f16::<Avx2>(segment, scratch, partial, widen) }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn attend_f32(
    segment: &Segment<'_, f32>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f32::<Avx2>(segment, scratch, partial) }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn round_f16(from: &[f32], to: &mut [f16]) {
    let (from, from_rest) = from.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 8 readable floats, 16 writable bytes; neither access needs alignment.
        unsafe {
            let halves =
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
        }
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = f16::from_f32(*from);
    }
}

/// Converts f16 to f32; both slices have a multiple of 8 elements.
#[target_feature(enable = "avx2,f16c")]
fn widen(from: &[f16], to: &mut [f32]) {
    for (from, to) in from
        .as_chunks::<8>()
        .0
        .iter()
        .zip(to.as_chunks_mut::<8>().0)
    {
        // SAFETY: 16 readable bytes, 8 writable floats; neither access needs alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), f16::load8(from.as_ptr())) }
    }
}

/// The panels of this set.
enum Avx2 {}

impl<T: Load8> Panels<T> for Avx2 {
    const QUERIES: usize = 4;

    #[inline(always)]
    unsafe fn panel(panel: Panel<'_, T>) {
        // SAFETY: the caller promises that the CPU has the features.
        unsafe {
            match panel.queries {
                1 => multiply::<T, 1, 4>(panel),
                2 => multiply::<T, 2, 4>(panel),
                3 => multiply::<T, 3, 2>(panel),
                _ => multiply::<T, 4, 2>(panel),
            }
        }
    }
}

/// Eight elements of the cache as f32.
trait Load8: Copy {
    /// # Safety
    /// The CPU must have AVX and F16C; eight elements must be readable.
    unsafe fn load8(from: *const Self) -> __m256;
}

impl Load8 for f16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller promises 16 readable bytes and the CPU's features; the load needs no
        // alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl Load8 for f32 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller promises 8 readable floats and the CPU's features; the load needs no
        // alignment.
        unsafe { _mm256_loadu_ps(from) }
    }
}

/// `C` registers of columns at once, the rest two registers each.
#[target_feature(enable = "avx2,f16c")]
fn multiply<T: Load8, const Q: usize, const C: usize>(mut panel: Panel<'_, T>) {
    panel.check();
    assert!(panel.queries == Q);
    let mut column = 0;
    while column + 8 * C <= panel.width {
        multiply_columns::<T, Q, C>(&mut panel, column);
        column += 8 * C;
    }
    while column < panel.width {
        multiply_columns::<T, Q, 2>(&mut panel, column);
        column += 16;
    }
}

/// `C` registers of columns from `column` on. Each step also prefetches one line of the next data;
/// each set of columns prefetches other lines.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply_columns<T: Load8, const Q: usize, const C: usize>(
    panel: &mut Panel<'_, T>,
    column: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); C]; Q];
    if panel.adds {
        for (q, sums) in sums.iter_mut().enumerate() {
            let out = &panel.out[q * panel.out_stride + column..][..8 * C];
            for (sum, out) in sums.iter_mut().zip(out.as_chunks::<8>().0) {
                // SAFETY: 8 readable floats; the load needs no alignment.
                *sum = unsafe { _mm256_loadu_ps(out.as_ptr()) };
            }
        }
    }
    let coefs: [*const f32; Q] =
        std::array::from_fn(|q| panel.coefs[q * panel.coef_stride..].as_ptr());
    let mut fetch = segment::Fetch::new(panel.next, column / (8 * C) * panel.steps);
    for step in 0..panel.steps {
        _mm_prefetch::<_MM_HINT_T1>(fetch.line());
        let row = step * panel.stride + column;
        // SAFETY: `check` found `width` elements in each row, and `column + 8 C` is at most that.
        let data: [__m256; C] =
            std::array::from_fn(|c| unsafe { T::load8(panel.data.as_ptr().add(row + 8 * c)) });
        for (sums, coefs) in sums.iter_mut().zip(coefs) {
            // SAFETY: `check` found `steps` coefficients of each query.
            let coef = _mm256_set1_ps(unsafe { *coefs.add(step) });
            for (sum, data) in sums.iter_mut().zip(data) {
                *sum = _mm256_add_ps(*sum, _mm256_mul_ps(data, coef));
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        let out = &mut panel.out[q * panel.out_stride + column..][..8 * C];
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: 8 writable floats; the store needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *sum) };
        }
    }
}
