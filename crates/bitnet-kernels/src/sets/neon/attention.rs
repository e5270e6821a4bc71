//! Attention: panels of four queries by sixteen columns.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::vector::{convert_f16, load_f32, store4};
use crate::sets::segment::{self, Panel, Panels, Partial, Segment, SegmentScratch};

#[target_feature(enable = "neon")]
pub(super) fn attend_f16(
    segment: &Segment<'_, f16>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f16::<Neon>(segment, scratch, partial, widen) }
}

#[target_feature(enable = "neon")]
pub(super) fn attend_f32(
    segment: &Segment<'_, f32>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: this function enables every feature that the set's panels use.
    unsafe { segment::attend_f32::<Neon>(segment, scratch, partial) }
}

#[target_feature(enable = "neon")]
pub(super) fn round_f16(from: &[f32], to: &mut [f16]) {
    let (from, from_rest) = from.as_chunks::<4>();
    let (to, to_rest) = to.as_chunks_mut::<4>();
    for (from, to) in from.iter().zip(to) {
        let halves: uint16x4_t;
        // SAFETY: 4 readable floats; then one instruction that touches nothing but these registers
        // and that every CPU with NEON has; then 8 writable bytes. No access needs alignment.
        unsafe {
            let floats = vld1q_f32(from.as_ptr());
            asm!(
                "fcvtn {halves:v}.4h, {floats:v}.4s",
                halves = lateout(vreg) halves,
                floats = in(vreg) floats,
                options(pure, nomem, nostack, preserves_flags)
            );
            vst1_u16(to.as_mut_ptr().cast(), halves);
        }
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = f16::from_f32(*from);
    }
}

/// Converts f16 to f32; both slices have a multiple of 8 elements.
#[target_feature(enable = "neon")]
fn widen(from: &[f16], to: &mut [f32]) {
    for (from, to) in from
        .as_chunks::<8>()
        .0
        .iter()
        .zip(to.as_chunks_mut::<8>().0)
    {
        // SAFETY: this function has NEON.
        let floats = unsafe { f16::load8(from) };
        for (floats, to) in floats.into_iter().zip(to.as_chunks_mut().0) {
            store4(to, floats);
        }
    }
}

/// Eight elements of the cache as f32.
trait Load8: Copy {
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2];
}

impl Load8 for f16 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2] {
        // SAFETY: 16 readable bytes; the load needs no alignment. The caller promises that the CPU
        // has NEON.
        unsafe { convert_f16(vld1q_u16(from.as_ptr().cast())) }
    }
}

impl Load8 for f32 {
    #[inline(always)]
    unsafe fn load8(from: &[Self; 8]) -> [float32x4_t; 2] {
        // SAFETY: the caller promises that the CPU has NEON.
        unsafe { load_f32(from) }
    }
}

/// The panels of this set.
enum Neon {}

impl<T: Load8> Panels<T> for Neon {
    const QUERIES: usize = 4;

    #[inline(always)]
    unsafe fn panel(panel: Panel<'_, T>) {
        // SAFETY: the caller promises that the CPU has NEON.
        unsafe {
            match panel.queries {
                1 => multiply::<T, 1>(panel),
                2 => multiply::<T, 2>(panel),
                3 => multiply::<T, 3>(panel),
                _ => multiply::<T, 4>(panel),
            }
        }
    }
}

/// Sixteen columns at once. Each step also prefetches one line of the next data; each set of
/// columns prefetches other lines.
#[target_feature(enable = "neon")]
fn multiply<T: Load8, const Q: usize>(panel: Panel<'_, T>) {
    panel.check();
    assert!(panel.queries == Q);
    for column in (0..panel.width).step_by(16) {
        let mut sums = [[[vdupq_n_f32(0.0); 2]; 2]; Q];
        if panel.adds {
            for (q, sums) in sums.iter_mut().enumerate() {
                let out = &panel.out[q * panel.out_stride + column..][..16];
                for (sums, out) in sums.iter_mut().zip(out.as_chunks::<8>().0) {
                    *sums = load_f32(out);
                }
            }
        }
        let mut fetch = segment::Fetch::new(panel.next, column / 16 * panel.steps);
        for step in 0..panel.steps {
            prefetch(fetch.line());
            let row = panel.data[step * panel.stride + column..][..16]
                .as_chunks::<8>()
                .0;
            // SAFETY: this function has NEON.
            let data: [[float32x4_t; 2]; 2] = std::array::from_fn(|c| unsafe { T::load8(&row[c]) });
            for (q, sums) in sums.iter_mut().enumerate() {
                let coef = vdupq_n_f32(panel.coefs[q * panel.coef_stride + step]);
                for (sum, data) in sums.as_flattened_mut().iter_mut().zip(data.as_flattened()) {
                    *sum = vaddq_f32(*sum, vmulq_f32(*data, coef));
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            let out = &mut panel.out[q * panel.out_stride + column..][..16];
            for (sum, out) in sums.as_flattened().iter().zip(out.as_chunks_mut().0) {
                store4(out, *sum);
            }
        }
    }
}

/// Prefetches the line of an address. The address need not be readable.
#[inline]
#[target_feature(enable = "neon")]
fn prefetch(line: *const i8) {
    // SAFETY: a hint, which never faults and changes nothing that a program sees.
    unsafe {
        asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(readonly, nostack, preserves_flags))
    };
}
