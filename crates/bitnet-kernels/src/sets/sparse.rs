//! Products of few rows or few columns: what a set does for them, and what the sets share.
//!
//! A hardware prefetcher that sees a run of lines fetches on past its end, into what was to be
//! skipped: naive skipping gains nothing until most is skipped. So the kernels take 64 runs at a
//! time and read line 0 of each, then line 1 of each, and so on, and ask for the same line of the
//! next 64 meanwhile. Then the time falls with the number of active runs.

use crate::layout::runs::{RUN_LINE_WEIGHTS, RUNS_AT_ONCE};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;

/// Activations in the order in which the fields of a row's lines meet them, `[run_lines, 4, 64]`.
type Arranged = [[i8; RUN_LINE_WEIGHTS]];

/// What an instruction set does for products of few rows or columns.
#[derive(Clone, Copy)]
pub(crate) struct SparseKernels {
    /// Lists the positions of numbers above zero in places that are [`LIST_SLACK`] more; returns
    /// how many there are.
    pub positive: unsafe fn(&[f32], &mut [u32]) -> usize,
    /// The same of int8 values that are not zero.
    pub nonzero: unsafe fn(&[i8], &mut [u32]) -> usize,
    /// `Σ code · q` of each active row.
    pub active_rows: unsafe fn(&TernaryRows, &[u32], &Arranged, &mut [i32]),
    /// `Σ code · q` of all rows over the active columns, `[run_lines, 256]`; the activations in
    /// natural order.
    pub active_columns: unsafe fn(&TernaryColumns, &[u32], &[i8], &mut [i32]),
}

/// Where the runs of a chunk begin, in lines; places that no run has begin where the first does.
#[inline(always)]
pub(crate) fn starts(runs: &[u32], run_lines: usize) -> [usize; RUNS_AT_ONCE] {
    let start = |run: u32| run as usize * run_lines;
    let mut starts = [runs.first().map_or(0, |first| start(*first)); RUNS_AT_ONCE];
    starts
        .iter_mut()
        .zip(runs)
        .for_each(|(to, run)| *to = start(*run));
    starts
}

/// Writes a step of a loop once for each value, so that each load is an instruction of its own.
///
/// Prefetchers learn each instruction's strides: in those of a single load over all runs they make
/// out a pattern, and fetch what is skipped. At 50 % sparsity that would cost half the gain; with
/// eight loads it does not happen.
macro_rules! unrolled {
    ($name:ident in $($value:literal)* => $step:block) => {
        $({
            const $name: usize = $value;
            $step
        })*
    };
}
pub(crate) use unrolled;

/// Lists the positions of what is active in places of at least [`LIST_SLACK`] more, and returns how
/// many there are.
#[inline(always)]
pub(crate) fn positions<T>(
    values: &[T],
    is_active: impl Fn(&T) -> bool,
    places: &mut [u32],
) -> usize {
    // No branches, which would be mispredicted half the time: every position is written, and kept
    // if the next is not written over it.
    let mut len = 0;
    for (index, value) in values.iter().enumerate() {
        places[len] = index as u32;
        len += usize::from(is_active(value));
    }
    len
}
