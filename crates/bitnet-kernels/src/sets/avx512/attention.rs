//! Attention: a panel of f16 in 256-bit registers, where converting f16 to f32 costs least, and a
//! panel of f32 in 512-bit registers.
//!
//! The multiplication reads each coefficient from memory and broadcasts it itself (`{1to8}`,
//! `{1to16}`). The compiler would broadcast it into a register first, and then the same sums take a
//! sixth to a third longer on Zen 4. This is why the multiplication is assembly.

use std::arch::asm;
use std::arch::x86_64::*;

use half::f16;

use crate::sets::segment::{self, Panel, Panels, Partial, Segment, SegmentScratch};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) fn attend_f16(
    segment: &Segment<'_, f16>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f16::<Avx512>(segment, scratch, partial, widen) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) fn attend_f32(
    segment: &Segment<'_, f32>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f32::<Avx512>(segment, scratch, partial) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) fn round_f16(from: &[f32], to: &mut [f16]) {
    let (from, from_rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 readable floats, 32 writable bytes; neither access needs alignment.
        unsafe {
            let halves =
                _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(from.as_ptr()));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = f16::from_f32(*from);
    }
}

/// Converts f16 to f32; both slices have a multiple of 16 elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn widen(from: &[f16], to: &mut [f32]) {
    for (from, to) in from
        .as_chunks::<16>()
        .0
        .iter()
        .zip(to.as_chunks_mut::<16>().0)
    {
        // SAFETY: 32 readable bytes, 16 writable floats; neither access needs alignment.
        unsafe {
            _mm512_storeu_ps(
                to.as_mut_ptr(),
                _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())),
            )
        }
    }
}

/// The panels of this set.
enum Avx512 {}

impl Panels<f16> for Avx512 {
    const QUERIES: usize = 8;

    #[inline(always)]
    unsafe fn panel(panel: Panel<'_, f16>) {
        // SAFETY: the caller promises that the CPU has the features.
        unsafe {
            match panel.queries {
                1 => panel_f16::<1, 4>(panel),
                2 => panel_f16::<2, 4>(panel),
                3 => panel_f16::<3, 2>(panel),
                4 => panel_f16::<4, 2>(panel),
                5 => panel_f16::<5, 2>(panel),
                6 => panel_f16::<6, 2>(panel),
                7 => panel_f16::<7, 2>(panel),
                _ => panel_f16::<8, 2>(panel),
            }
        }
    }
}

impl Panels<f32> for Avx512 {
    const QUERIES: usize = 8;

    #[inline(always)]
    unsafe fn panel(panel: Panel<'_, f32>) {
        // SAFETY: the caller promises that the CPU has the features.
        unsafe {
            match panel.queries {
                1 => panel_f32::<1, 4>(panel),
                2 => panel_f32::<2, 4>(panel),
                3 => panel_f32::<3, 4>(panel),
                4 => panel_f32::<4, 4>(panel),
                5 => panel_f32::<5, 2>(panel),
                6 => panel_f32::<6, 2>(panel),
                7 => panel_f32::<7, 2>(panel),
                _ => panel_f32::<8, 2>(panel),
            }
        }
    }
}

/// The panel of a type in registers of `lanes` lanes: takes `C` registers of columns at once, and
/// the remaining columns one register at a time.
macro_rules! panel {
    ($name:ident, $columns:ident: $element:ty, $register:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $add:ident,
     $times:ident, $element_load:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
        fn $name<const Q: usize, const C: usize>(mut panel: Panel<'_, $element>) {
            panel.check();
            assert!(panel.queries == Q);
            let mut column = 0;
            while column + C * $lanes <= panel.width {
                $columns::<Q, C>(&mut panel, column);
                column += C * $lanes;
            }
            while column < panel.width {
                $columns::<Q, 1>(&mut panel, column);
                column += $lanes;
            }
        }

        /// `C` registers of columns from `column` on. Each step also prefetches one line of the
        /// next data; each set of columns prefetches other lines.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
        fn $columns<const Q: usize, const C: usize>(
            panel: &mut Panel<'_, $element>,
            column: usize,
        ) {
            let mut sums = [[$zero(); C]; Q];
            if panel.adds {
                for (q, sums) in sums.iter_mut().enumerate() {
                    let out = &panel.out[q * panel.out_stride + column..][..C * $lanes];
                    for (sum, out) in sums.iter_mut().zip(out.as_chunks::<$lanes>().0) {
                        // SAFETY: a register of readable floats; the load needs no alignment.
                        *sum = unsafe { $load(out.as_ptr()) };
                    }
                }
            }
            let coefs: [*const f32; Q] =
                std::array::from_fn(|q| panel.coefs[q * panel.coef_stride..].as_ptr());
            let mut fetch = segment::Fetch::new(panel.next, column / (C * $lanes) * panel.steps);
            for step in 0..panel.steps {
                _mm_prefetch::<_MM_HINT_T1>(fetch.line());
                let row = step * panel.stride + column;
                // SAFETY: `check` found `width` elements in each row, and `column + C · lanes` is
                // at most that.
                let data: [$register; C] = std::array::from_fn(|c| unsafe {
                    let data = panel.data.as_ptr().add(row + c * $lanes);
                    $element_load(data)
                });
                for (sums, coefs) in sums.iter_mut().zip(coefs) {
                    for (sum, data) in sums.iter_mut().zip(data) {
                        // SAFETY: `check` found `steps` coefficients of each query.
                        *sum = $add(*sum, unsafe { $times(data, coefs, step) });
                    }
                }
            }
            for (q, sums) in sums.iter().enumerate() {
                let out = &mut panel.out[q * panel.out_stride + column..][..C * $lanes];
                for (sum, out) in sums.iter().zip(out.as_chunks_mut::<$lanes>().0) {
                    // SAFETY: a register of writable floats; the store needs no alignment.
                    unsafe { $store(out.as_mut_ptr(), *sum) };
                }
            }
        }
    };
}

panel!(
    panel_f16, columns_f16: f16, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, times8,
    |data: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(data.cast()))
);
panel!(
    panel_f32, columns_f32: f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, times16,
    |data: *const f32| _mm512_loadu_ps(data)
);

/// `data · coefs[index]` in each lane.
///
/// # Safety
/// `coefs[index]` is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn times8(data: __m256, coefs: *const f32, index: usize) -> __m256 {
    let product;
    // SAFETY: one instruction that reads these registers and a float that the caller promises is
    // readable.
    unsafe {
        asm!(
            "vmulps {product}, {data}, dword ptr [{coefs} + 4 * {index}]{{1to8}}",
            product = lateout(ymm_reg) product,
            data = in(ymm_reg) data,
            coefs = in(reg) coefs,
            index = in(reg) index,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    product
}

/// The same in sixteen lanes.
///
/// # Safety
/// `coefs[index]` is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn times16(data: __m512, coefs: *const f32, index: usize) -> __m512 {
    let product;
    // SAFETY: one instruction that reads these registers and a float that the caller promises is
    // readable.
    unsafe {
        asm!(
            "vmulps {product}, {data}, dword ptr [{coefs} + 4 * {index}]{{1to16}}",
            product = lateout(zmm_reg) product,
            data = in(zmm_reg) data,
            coefs = in(reg) coefs,
            index = in(reg) index,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    product
}
