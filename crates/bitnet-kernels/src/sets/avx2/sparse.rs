//! Products of few rows or few columns: reads line 0 of 64 runs, then line 1 of the 64 runs, and so
//! on.

use std::arch::x86_64::*;

use super::vector::fields;
use crate::layout::runs::{LIST_SLACK, RUN_LINE_BYTES, RUN_LINE_WEIGHTS, RUNS_AT_ONCE};
use crate::sets::sparse::{SparseKernels, starts, unrolled};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;
use crate::weights::runs::Runs;

pub(super) const KERNELS: SparseKernels = SparseKernels {
    positive,
    nonzero,
    active_rows,
    active_columns,
};

/// Prefetches a line into the second-level cache.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch(line: &[u8; RUN_LINE_BYTES]) {
    _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
}

/// Prefetches all lines of the first runs, which no earlier step has prefetched.
#[target_feature(enable = "avx2,f16c")]
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
#[target_feature(enable = "avx2,f16c")]
fn load<T: Copy>(values: &[T; 32]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// Half of a line.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_half(line: &[u8; RUN_LINE_BYTES], half: usize) -> __m256i {
    load(&line.as_chunks().0[half])
}

/// `Σ code · q` of each active row, with one accumulator for each row; the accumulators stay in the
/// first-level cache.
///
/// A 16-bit lane takes two products of at most 2 · 127 from each of eight registers a line: 4064.
/// It is then added to a 32-bit lane.
#[target_feature(enable = "avx2,f16c")]
fn active_rows(
    matrix: &TernaryRows,
    active: &[u32],
    values: &[[i8; RUN_LINE_WEIGHTS]],
    sums: &mut [i32],
) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    let ones = _mm256_set1_epi16(1);
    prefetch_first(&matrix.runs, active);
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
    let mut acc = [_mm256_setzero_si256(); RUNS_AT_ONCE];
    for sums in sums.chunks_mut(RUNS_AT_ONCE) {
        let rows = chunks.next().unwrap_or_default();
        let (now, next) = (
            starts(rows, run_lines),
            starts(chunks.peek().unwrap_or(&rows), run_lines),
        );
        let acc = &mut acc[..rows.len().next_multiple_of(8)];
        acc.fill(_mm256_setzero_si256());
        for (index, values) in values.iter().enumerate() {
            let q = values.as_chunks::<32>().0;
            let eights = acc
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(now.as_chunks::<8>().0)
                .zip(next.as_chunks::<8>().0);
            for ((acc, now), next) in eights {
                unrolled!(J in 0 1 2 3 4 5 6 7 => {
                    prefetch(&lines[next[J] + index]);
                    let line = &lines[now[J] + index];
                    let mut sum = _mm256_setzero_si256();
                    for half in 0..2 {
                        for (s, codes) in fields(load_half(line, half)).into_iter().enumerate() {
                            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, load(&q[2 * s + half])));
                        }
                    }
                    acc[J] = _mm256_add_epi32(acc[J], _mm256_madd_epi16(sum, ones));
                });
            }
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = reduce(*acc);
        }
    }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn reduce(acc: __m256i) -> i32 {
    let v4 = _mm_add_epi32(
        _mm256_castsi256_si128(acc),
        _mm256_extracti128_si256::<1>(acc),
    );
    let v2 = _mm_add_epi32(v4, _mm_unpackhi_epi64(v4, v4));
    _mm_cvtsi128_si32(_mm_add_epi32(v2, _mm_shuffle_epi32::<1>(v2)))
}

/// `Σ code · q` of all rows over the active columns: 128 rows in eight registers while 64 columns
/// pass.
///
/// Bytes of two columns are interleaved, so that a word holds the same row of both. A 16-bit lane
/// takes 32 sums of two products of at most 2 · 127: 16,256.
#[target_feature(enable = "avx2,f16c")]
fn active_columns(matrix: &TernaryColumns, active: &[u32], values: &[i8], sums: &mut [i32]) {
    let (lines, run_lines) = (matrix.runs.lines(), matrix.runs.run_lines());
    sums.fill(0);
    prefetch_first(&matrix.runs, active);
    let mut chunks = active.chunks(RUNS_AT_ONCE).peekable();
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
            q.as_chunks::<2>().0.as_chunks::<4>().0,
        );
        for (index, sums) in sums.chunks_exact_mut(RUN_LINE_WEIGHTS).enumerate() {
            for half in 0..2 {
                let mut acc = [[_mm256_setzero_si256(); 4]; 2];
                for ((now, next), q) in now.iter().zip(next).zip(q).take(eights) {
                    next[4 * half..4 * half + 4]
                        .iter()
                        .for_each(|next| prefetch(&lines[next + index]));
                    unrolled!(PAIR in 0 1 2 3 => {
                        let q = _mm256_set1_epi16(i16::from_le_bytes(q[PAIR]));
                        let a = load_half(&lines[now[2 * PAIR] + index], half);
                        let b = load_half(&lines[now[2 * PAIR + 1] + index], half);
                        let codes = [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
                        for (acc, codes) in acc.iter_mut().zip(codes) {
                            for (acc, codes) in acc.iter_mut().zip(fields(codes)) {
                                *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(codes, q));
                            }
                        }
                    });
                }
                // In each half of a register, words 0–3 are four rows, and words 4–7 are the rows
                // 16 below them.
                for (u, acc) in acc.into_iter().enumerate() {
                    for (s, acc) in acc.into_iter().enumerate() {
                        let first = 128 * u + 32 * s + 8 * half;
                        add_to(
                            &mut sums[first..],
                            _mm256_srai_epi32::<16>(_mm256_unpacklo_epi16(acc, acc)),
                        );
                        add_to(
                            &mut sums[first + 16..],
                            _mm256_srai_epi32::<16>(_mm256_unpackhi_epi16(acc, acc)),
                        );
                    }
                }
            }
        }
    }
}

/// Adds eight sums to the first eight elements.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_to(sums: &mut [i32], more: __m256i) {
    let sums = &mut sums[..8];
    // SAFETY: 32 readable and writable bytes; load and store need no alignment.
    unsafe {
        let sum = _mm256_loadu_si256(sums.as_ptr().cast());
        _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi32(sum, more));
    }
}

/// For each mask of eight lanes, the indices of its set lanes as bytes, ascending.
static LANES: [u64; 256] = {
    let mut table = [0; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut count) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                table[set] |= lane << (8 * count);
                count += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

/// Number of set lanes in each mask.
static NUM_LANES: [u8; 256] = {
    let mut table = [0; 256];
    let mut set = 0;
    while set < 256 {
        table[set] = (set as u8).count_ones() as u8;
        set += 1;
    }
    table
};

/// Writes `first` + the index of each set lane of a mask to `places[len..]`. Returns the new
/// length.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn list_lanes(lanes: u8, first: usize, places: &mut [u32], len: usize) -> usize {
    let numbers = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES[usize::from(lanes)] as i64));
    let places = &mut places[len..len + LIST_SLACK];
    // SAFETY: 8 writable places of 32 bits; the store needs no alignment.
    unsafe {
        _mm256_storeu_si256(
            places.as_mut_ptr().cast(),
            _mm256_add_epi32(numbers, _mm256_set1_epi32(first as i32)),
        );
    }
    len + usize::from(NUM_LANES[usize::from(lanes)])
}

#[target_feature(enable = "avx2,f16c")]
pub(crate) fn positive(values: &[f32], places: &mut [u32]) -> usize {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut len = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        // SAFETY: 8 readable floats; the load needs no alignment.
        let values = unsafe { _mm256_loadu_ps(chunk.as_ptr()) };
        let lanes =
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(values, _mm256_setzero_ps())) as u8;
        len = list_lanes(lanes, 8 * index, places, len);
    }
    let lanes = rest.iter().enumerate().fold(0, |lanes, (lane, value)| {
        lanes | u8::from(*value > 0.0) << lane
    });
    list_lanes(lanes, 8 * chunks.len(), places, len)
}

#[target_feature(enable = "avx2,f16c")]
pub(crate) fn nonzero(values: &[i8], places: &mut [u32]) -> usize {
    let (chunks, rest) = values.as_chunks::<32>();
    let mut len = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        let zeros = _mm256_cmpeq_epi8(load(chunk), _mm256_setzero_si256());
        let lanes = !(_mm256_movemask_epi8(zeros) as u32);
        for (eight, lanes) in lanes.to_le_bytes().into_iter().enumerate() {
            len = list_lanes(lanes, 32 * index + 8 * eight, places, len);
        }
    }
    for (eight, values) in rest.chunks(8).enumerate() {
        let lanes = values.iter().enumerate().fold(0, |lanes, (lane, value)| {
            lanes | u8::from(*value != 0) << lane
        });
        len = list_lanes(lanes, 32 * chunks.len() + 8 * eight, places, len);
    }
    len
}
