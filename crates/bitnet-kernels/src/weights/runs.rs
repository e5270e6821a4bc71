//! [`Runs`]: rows or columns of weights, each a run of lines.

use crate::layout::runs::{RUN_LINE_BYTES, RUN_LINE_WEIGHTS};
use crate::threads::memory::Huge;

/// Rows or columns, each a run of lines.
pub(crate) struct Runs {
    pub(crate) bytes: Huge<u8>,
    /// Lines in a run.
    run_lines: usize,
}

impl Runs {
    pub(crate) fn new(num_runs: usize, run_len: usize) -> Self {
        let run_lines = run_len.div_ceil(RUN_LINE_WEIGHTS);
        Self {
            bytes: Huge::zeros(num_runs * run_lines * RUN_LINE_BYTES),
            run_lines,
        }
    }

    /// All lines; the lines of run `i` begin at `i · run_lines`.
    #[inline(always)]
    pub(crate) fn lines(&self) -> &[[u8; RUN_LINE_BYTES]] {
        self.bytes.as_chunks().0
    }

    /// Lines in a run.
    #[inline(always)]
    pub(crate) fn run_lines(&self) -> usize {
        self.run_lines
    }

    pub(crate) fn run_bytes(&self) -> usize {
        self.run_lines * RUN_LINE_BYTES
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.bytes.len()
    }
}
