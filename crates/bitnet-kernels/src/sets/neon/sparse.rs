//! Products of few rows or few columns: reads line 0 of 64 runs, then line 1 of the 64 runs, and so
//! on. CPUs with and without dot products use the same functions.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::layout::runs::{RUN_LINE_BYTES, RUN_LINE_WEIGHTS, RUNS_AT_ONCE};
use crate::sets::scalar;
use crate::sets::sparse::{SparseKernels, starts, unrolled};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;

pub(super) const KERNELS: SparseKernels = SparseKernels {
    positive: scalar::sparse::positive,
    nonzero: scalar::sparse::nonzero,
    active_rows,
    active_columns,
};

/// Prefetches a line into the second-level cache.
#[inline]
#[target_feature(enable = "neon")]
fn prefetch(line: &[u8; RUN_LINE_BYTES]) {
    // SAFETY: one instruction that changes no register and no memory; any address may be
    // prefetched.
    unsafe {
        asm!("prfm pldl2keep, [{line}]", line = in(reg) line.as_ptr(), options(readonly, nostack, preserves_flags));
    }
}

/// The codes of the four fields of a quarter of a line.
#[inline]
#[target_feature(enable = "neon")]
fn fields(line: &[u8; RUN_LINE_BYTES], quarter: usize) -> [int8x16_t; 4] {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    let codes = unsafe { vld1q_u8(line.as_chunks::<16>().0[quarter].as_ptr()) };
    let mask = vdupq_n_u8(3);
    [
        vreinterpretq_s8_u8(vandq_u8(codes, mask)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<2>(codes), mask)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(codes), mask)),
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(codes)),
    ]
}

/// `Σ code · q` of each active row, with one accumulator for each row; the accumulators stay in the
/// first-level cache.
///
/// A 16-bit lane takes 32 products of at most 2 · 127 a line, 8128. They are then added to a 32-bit
/// lane.
#[target_feature(enable = "neon")]
fn active_rows(
    matrix: &TernaryRows,
    active: &[u32],
    values: &[[i8; RUN_LINE_WEIGHTS]],
    sums: &mut [i32],
) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
    let mut acc = [vdupq_n_s32(0); RUNS_AT_ONCE];
    for sums in sums.chunks_mut(RUNS_AT_ONCE) {
        let rows = chunks.next().unwrap_or_default();
        let (now, next) = (
            starts(rows, run_lines),
            starts(chunks.peek().unwrap_or(&rows), run_lines),
        );
        let acc = &mut acc[..rows.len().next_multiple_of(8)];
        acc.fill(vdupq_n_s32(0));
        for (index, values) in values.iter().enumerate() {
            let q = values.as_chunks::<16>().0;
            let eights = acc
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(now.as_chunks::<8>().0)
                .zip(next.as_chunks::<8>().0);
            for ((acc, now), next) in eights {
                unrolled!(J in 0 1 2 3 4 5 6 7 => {
                    prefetch(&lines[next[J] + index]);
                    let mut sum = vdupq_n_s16(0);
                    for quarter in 0..4 {
                        for (s, codes) in fields(&lines[now[J] + index], quarter).into_iter().enumerate() {
                            // SAFETY: 16 readable bytes; the load needs no alignment.
                            let q = unsafe { vld1q_s8(q[4 * s + quarter].as_ptr()) };
                            sum = vmlal_s8(sum, vget_low_s8(codes), vget_low_s8(q));
                            sum = vmlal_high_s8(sum, codes, q);
                        }
                    }
                    acc[J] = vpadalq_s16(acc[J], sum);
                });
            }
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = vaddvq_s32(*acc);
        }
    }
}

/// `Σ code · q` of all rows over the active columns: 64 rows in eight registers while 64 columns
/// pass.
///
/// A 16-bit lane takes a product of at most 2 · 127 from each: 16,256.
#[target_feature(enable = "neon")]
fn active_columns(matrix: &TernaryColumns, active: &[u32], values: &[i8], sums: &mut [i32]) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    sums.fill(0);
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
    while let Some(columns) = chunks.next() {
        let (now, next) = (
            starts(columns, run_lines),
            starts(chunks.peek().unwrap_or(&columns), run_lines),
        );
        for (index, sums) in sums.chunks_exact_mut(RUN_LINE_WEIGHTS).enumerate() {
            next.iter().for_each(|next| prefetch(&lines[next + index]));
            for quarter in 0..4 {
                let mut acc = [[vdupq_n_s16(0); 2]; 4];
                for (column, now) in columns.iter().zip(now) {
                    let q = vdupq_n_s8(values[*column as usize]);
                    for (acc, codes) in acc.iter_mut().zip(fields(&lines[now + index], quarter)) {
                        acc[0] = vmlal_s8(acc[0], vget_low_s8(codes), vget_low_s8(q));
                        acc[1] = vmlal_high_s8(acc[1], codes, q);
                    }
                }
                // The first register has four rows, then the four rows that lie 16 below; the
                // second register is 128 rows further.
                for (s, acc) in acc.into_iter().enumerate() {
                    for (u, acc) in acc.into_iter().enumerate() {
                        let first = 128 * u + 32 * s + 4 * quarter;
                        add_to(&mut sums[first..], vmovl_s16(vget_low_s16(acc)));
                        add_to(&mut sums[first + 16..], vmovl_high_s16(acc));
                    }
                }
            }
        }
    }
}

/// Adds four sums to the first four elements.
#[inline]
#[target_feature(enable = "neon")]
fn add_to(sums: &mut [i32], more: int32x4_t) {
    let sums = &mut sums[..4];
    // SAFETY: 16 readable and writable bytes; load and store need no alignment.
    unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(vld1q_s32(sums.as_ptr()), more)) }
}
