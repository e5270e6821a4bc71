//! Loads and stores of registers, and the instructions that `std::arch` lacks.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::layout::lines::BLOCK_ROWS;

/// Rows of weights in a register: 16 bytes of a line are 4 dwords.
pub(super) const REGISTER_ROWS: usize = 4;

/// Registers in a line.
pub(super) const LINE_REGISTERS: usize = BLOCK_ROWS / REGISTER_ROWS;

/// Rows `4 register` to `4 (register + R) − 1` of a line.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_registers<const R: usize>(line: &[u8], register: usize) -> [uint8x16_t; R] {
    let mut packed = [vdupq_n_u8(0); R];
    for (packed, bytes) in packed
        .iter_mut()
        .zip(line[16 * register..16 * (register + R)].as_chunks::<16>().0)
    {
        // SAFETY: 16 readable bytes; the load needs no alignment.
        *packed = unsafe { vld1q_u8(bytes.as_ptr()) };
    }
    packed
}

/// Four activations, the same in every dword.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn broadcast(values: &[i8], dword: usize) -> int8x16_t {
    let v = &values[4 * dword..4 * dword + 4];
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes([
        v[0] as u8, v[1] as u8, v[2] as u8, v[3] as u8,
    ])))
}

/// Adds to each lane the products of its four signed bytes of `codes` with bytes `4 LANE` to `4
/// LANE + 3` of `q`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot<const LANE: i32>(acc: int32x4_t, codes: uint8x16_t, q: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: one instruction that touches nothing but these registers; this function has dotprod.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {q:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            q = in(vreg) q,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store4(out: &mut [f32; 4], value: float32x4_t) {
    // SAFETY: 4 writable floats; the store needs no alignment.
    unsafe { vst1q_f32(out.as_mut_ptr(), value) }
}

/// The bits of eight f16 as f32, exactly.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn convert_f16(bits: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: one instruction that touches nothing but these registers; every CPU with NEON has it.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {bits:v}.4h",
            low = lateout(vreg) low,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: as above.
    unsafe {
        asm!(
            "fcvtl2 {high:v}.4s, {bits:v}.8h",
            high = lateout(vreg) high,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Eight floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f32(from: &[f32; 8]) -> [float32x4_t; 2] {
    // SAFETY: 8 readable floats; the loads need no alignment.
    unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))] }
}

/// The sums of 32 rows: register r holds rows `4 r` to `4 r + 3`.
pub(super) type RowSums = [float32x4_t; LINE_REGISTERS];

/// `acc + sum · scale`, as `portable::fold_run` and `portable::fold_group` say.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fold(acc: float32x4_t, sum: float32x4_t, scale: float32x4_t) -> float32x4_t {
    vaddq_f32(acc, vmulq_f32(sum, scale))
}

/// Adds the sums over the runs of a group times the scales of the 32 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fold_group(sums: &mut RowSums, of_runs: &RowSums, scales: &[u8]) {
    let registers = sums.as_chunks_mut::<2>().0.iter_mut();
    let eights = of_runs
        .as_chunks::<2>()
        .0
        .iter()
        .zip(scales.as_chunks::<16>().0);
    for (sums, (of_runs, scales)) in registers.zip(eights) {
        // SAFETY: 16 readable bytes; the load needs no alignment.
        let bits = unsafe { vld1q_u8(scales.as_ptr()) };
        let scales = convert_f16(vreinterpretq_u16_u8(bits));
        for ((sum, of_runs), scale) in sums.iter_mut().zip(of_runs).zip(scales) {
            *sum = fold(*sum, *of_runs, scale);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_rows(sums: &RowSums, out: &mut [f32]) {
    for (out, sum) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        store4(out, *sum);
    }
}
