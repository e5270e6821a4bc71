//! Products of few rows or few columns: the functions of a set, and the code that the sets share.
//!
//! A hardware prefetcher that sees a run of lines fetches past its end, into lines that the kernel
//! skips: simple skipping gains nothing until most lines are skipped. So the kernels take 64 runs
//! at a time and read line 0 of each, then line 1 of each, and so on, and prefetch the same line of
//! the next 64 at the same time. Then the time falls with the number of active runs.

use crate::layout::runs::{RUN_LINE_WEIGHTS, RUNS_AT_ONCE};
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;

/// Activations in the order of the fields of a row's lines, `[run_lines, 4, 64]`.
type Arranged = [[i8; RUN_LINE_WEIGHTS]];

/// The functions of an instruction set for products of few rows or columns.
#[derive(Clone, Copy)]
pub(crate) struct SparseKernels {
    /// Lists the positions of numbers above zero and returns their count. The list must have
    /// [`LIST_SLACK`] places more than there are numbers.
    pub positive: unsafe fn(&[f32], &mut [u32]) -> usize,
    /// The same for int8 values that are not zero.
    pub nonzero: unsafe fn(&[i8], &mut [u32]) -> usize,
    /// `Σ code · q` of each active row.
    pub active_rows: unsafe fn(&TernaryRows, &[u32], &Arranged, &mut [i32]),
    /// `Σ code · q` of all rows over the active columns, `[run_lines, 256]`; the activations in
    /// natural order.
    pub active_columns: unsafe fn(&TernaryColumns, &[u32], &[i8], &mut [i32]),
}

/// Where the runs of a chunk begin, in lines. Unused places begin where the first run does.
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

/// Repeats a step of a loop in the source, once for each value, so that each load is its own
/// instruction.
///
/// Prefetchers learn the strides of each load instruction. A single load over all runs shows them a
/// pattern, and they fetch the skipped lines, which costs half the gain at 50 % sparsity. Eight
/// loads avoid this.
macro_rules! unrolled {
    ($name:ident in $($value:literal)* => $step:block) => {
        $({
            const $name: usize = $value;
            $step
        })*
    };
}
pub(crate) use unrolled;

/// Lists the positions of the active values and returns their count. The list must have at least
/// [`LIST_SLACK`] places more than there are values.
#[inline(always)]
pub(crate) fn positions<T>(
    values: &[T],
    is_active: impl Fn(&T) -> bool,
    places: &mut [u32],
) -> usize {
    // Without branches, which would be mispredicted half the time: the loop writes every position
    // and advances only past active ones, so the next write replaces an inactive position.
    let mut len = 0;
    for (index, value) in values.iter().enumerate() {
        places[len] = index as u32;
        len += usize::from(is_active(value));
    }
    len
}
