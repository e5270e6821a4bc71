//! Products of few rows or few columns: reads line 0 of 64 runs, then line 1 of the 64 runs, and so
//! on.

use std::arch::x86_64::*;

use crate::layout::runs::{RUN_LINE_BYTES, RUN_LINE_WEIGHTS, RUNS_AT_ONCE};
use crate::sets::avx2;
use crate::sets::sparse::{SparseKernels, starts, unrolled};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;
use crate::weights::runs::Runs;

pub(super) const KERNELS: SparseKernels = SparseKernels {
    positive: avx2::sparse::positive,
    nonzero: avx2::sparse::nonzero,
    active_rows,
    active_columns,
};

/// Prefetches a line into the second-level cache.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch(line: &[u8; RUN_LINE_BYTES]) {
    _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
}

/// Prefetches all lines of the first runs, which no earlier step has prefetched.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch_first(runs: &Runs, active: &[u32]) {
    let first = &active[..active.len().min(RUNS_AT_ONCE)];
    let starts = starts(first, runs.run_lines());
    for index in 0..runs.run_lines() {
        starts[..first.len()]
            .iter()
            .for_each(|start| prefetch(&runs.lines()[start + index]));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load<T: Copy>(values: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_sums(sums: &[i32; 16]) -> __m512i {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn store_sums(sums: &mut [i32; 16], value: __m512i) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), value) }
}

/// `Σ code · q` of each active row, with one accumulator for each row; the accumulators stay in the
/// first-level cache.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn active_rows(
    matrix: &TernaryRows,
    active: &[u32],
    values: &[[i8; RUN_LINE_WEIGHTS]],
    sums: &mut [i32],
) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    let mask = _mm512_set1_epi8(3);
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
    let mut acc = [_mm512_setzero_si512(); RUNS_AT_ONCE];
    prefetch_first(&matrix.runs, active);
    for sums in sums.chunks_mut(RUNS_AT_ONCE) {
        let rows = chunks.next().unwrap_or_default();
        let (now, next) = (
            starts(rows, run_lines),
            starts(chunks.peek().unwrap_or(&rows), run_lines),
        );
        let acc = &mut acc[..rows.len().next_multiple_of(8)];
        acc.fill(_mm512_setzero_si512());
        for (index, values) in values.iter().enumerate() {
            let values = values.as_chunks::<RUN_LINE_BYTES>().0;
            let q: [__m512i; 4] = [
                load(&values[0]),
                load(&values[1]),
                load(&values[2]),
                load(&values[3]),
            ];
            let eights = acc
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(now.as_chunks::<8>().0)
                .zip(next.as_chunks::<8>().0);
            for ((acc, now), next) in eights {
                unrolled!(J in 0 1 2 3 4 5 6 7 => {
                    prefetch(&lines[next[J] + index]);
                    let codes = load(&lines[now[J] + index]);
                    let mut sum = _mm512_dpbusd_epi32(acc[J], _mm512_and_si512(codes, mask), q[0]);
                    sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask), q[1]);
                    sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask), q[2]);
                    acc[J] = _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask), q[3]);
                });
            }
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = _mm512_reduce_add_epi32(*acc);
        }
    }
}

/// `Σ code · q` of all rows over the active columns: 256 rows in sixteen registers while 64 columns
/// pass.
///
/// Bytes of four columns are interleaved, so that a dword holds the same row of each; the fields
/// are masked without a shift, so the sums of field s are multiples of 4^s. The largest sum is 2 ·
/// 64 · 127 · 2^17 for 2^17 columns, which 32 bits hold.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn active_columns(matrix: &TernaryColumns, active: &[u32], values: &[i8], sums: &mut [i32]) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    let masks: [__m512i; 4] = [
        _mm512_set1_epi8(0x03),
        _mm512_set1_epi8(0x0c),
        _mm512_set1_epi8(0x30),
        _mm512_set1_epi8(0xc0u8 as i8),
    ];
    // Each accumulator has sixteen rows: number 4 t + s begins at row 128 (t / 2) + 32 s + 16 (t %
    // 2).
    let sums = sums.as_chunks_mut::<16>().0.as_chunks_mut::<16>().0;
    let place = |t: usize, s: usize| 8 * (t / 2) + 2 * s + t % 2;
    sums.as_flattened_mut().as_flattened_mut().fill(0);
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
    prefetch_first(&matrix.runs, active);
    while let Some(columns) = chunks.next() {
        let (now, next) = (
            starts(columns, run_lines),
            starts(chunks.peek().unwrap_or(&columns), run_lines),
        );
        let mut q = [0u8; RUNS_AT_ONCE];
        for (q, column) in q.iter_mut().zip(columns) {
            *q = values[*column as usize] as u8;
        }
        let eights = columns.len().div_ceil(8);
        let (now, next, q) = (
            now.as_chunks::<8>().0,
            next.as_chunks::<8>().0,
            q.as_chunks::<4>().0.as_chunks::<2>().0,
        );
        for (index, sums) in sums.iter_mut().enumerate() {
            let mut acc: [[__m512i; 4]; 4] = [[_mm512_setzero_si512(); 4]; 4];
            for t in 0..4 {
                for s in 0..4 {
                    acc[t][s] = load_sums(&sums[place(t, s)]);
                }
            }
            for ((now, next), q) in now.iter().zip(next).zip(q).take(eights) {
                next.iter().for_each(|next| prefetch(&lines[next + index]));
                unrolled!(HALF in 0 1 => {
                    let q = _mm512_set1_epi32(i32::from_le_bytes(q[HALF]));
                    let [a, b, c, d] = [
                        load(&lines[now[4 * HALF] + index]),
                        load(&lines[now[4 * HALF + 1] + index]),
                        load(&lines[now[4 * HALF + 2] + index]),
                        load(&lines[now[4 * HALF + 3] + index]),
                    ];
                    let (low_ab, high_ab) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
                    let (low_cd, high_cd) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
                    let codes = [
                        _mm512_unpacklo_epi16(low_ab, low_cd),
                        _mm512_unpackhi_epi16(low_ab, low_cd),
                        _mm512_unpacklo_epi16(high_ab, high_cd),
                        _mm512_unpackhi_epi16(high_ab, high_cd),
                    ];
                    for (acc, codes) in acc.iter_mut().zip(codes) {
                        for (acc, mask) in acc.iter_mut().zip(masks) {
                            *acc = _mm512_dpbusd_epi32(*acc, _mm512_and_si512(codes, mask), q);
                        }
                    }
                });
            }
            for t in 0..4 {
                for s in 0..4 {
                    store_sums(&mut sums[place(t, s)], acc[t][s]);
                }
            }
        }
    }
    for sums in sums {
        for t in 0..4 {
            for s in 0..4 {
                let sums = &mut sums[place(t, s)];
                store_sums(
                    sums,
                    _mm512_srav_epi32(load_sums(sums), _mm512_set1_epi32(2 * s as i32)),
                );
            }
        }
    }
}
