//! Products of few rows or few columns.

use crate::layout::runs::{RUN_LINE_BYTES, RUN_LINE_WEIGHTS, row_in_column_line};
use crate::sets::sparse::{SparseKernels, positions};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;

pub(super) const KERNELS: SparseKernels = SparseKernels {
    positive,
    nonzero,
    active_rows,
    active_columns,
};

pub(crate) fn positive(values: &[f32], places: &mut [u32]) -> usize {
    positions(values, |value| *value > 0.0, places)
}

pub(crate) fn nonzero(values: &[i8], places: &mut [u32]) -> usize {
    positions(values, |value| *value != 0, places)
}

fn active_rows(
    matrix: &TernaryRows,
    active: &[u32],
    values: &[[i8; RUN_LINE_WEIGHTS]],
    sums: &mut [i32],
) {
    let run_lines = matrix.runs.run_lines();
    for (row, out) in active.iter().zip(sums) {
        let run = &matrix.runs.lines()[*row as usize * run_lines..][..run_lines];
        *out = 0;
        for (line, values) in run.iter().zip(values) {
            for (s, values) in values.as_chunks::<RUN_LINE_BYTES>().0.iter().enumerate() {
                for (codes, q) in line.iter().zip(values) {
                    *out += i32::from(codes >> (2 * s) & 3) * i32::from(*q);
                }
            }
        }
    }
}

fn active_columns(matrix: &TernaryColumns, active: &[u32], values: &[i8], sums: &mut [i32]) {
    let run_lines = matrix.runs.run_lines();
    sums.fill(0);
    for col in active {
        let run = &matrix.runs.lines()[*col as usize * run_lines..][..run_lines];
        for (line, sums) in run.iter().zip(sums.chunks_exact_mut(RUN_LINE_WEIGHTS)) {
            for (byte, codes) in line.iter().enumerate() {
                for s in 0..4 {
                    sums[row_in_column_line(byte, s)] +=
                        i32::from(codes >> (2 * s) & 3) * i32::from(values[*col as usize]);
                }
            }
        }
    }
}
