//! [`Runs`]: rows or columns of weights, each a run of lines.

use bytes::Bytes;

use crate::layout::runs::{RUN_LINE_BYTES, RUN_LINE_WEIGHTS};
use crate::threads::memory::Huge;

/// Rows or columns, each a run of lines.
pub(crate) struct Runs {
    bytes: Bytes,
    /// Lines in a run.
    run_lines: usize,
}

impl Runs {
    /// Makes `num_runs` runs of `run_len` weights. `fill(bytes, run_lines)` writes all lines, which
    /// are zeros at first; each run has `run_lines` lines.
    pub(crate) fn pack(
        num_runs: usize,
        run_len: usize,
        fill: impl FnOnce(&mut [u8], usize),
    ) -> Self {
        let run_lines = run_len.div_ceil(RUN_LINE_WEIGHTS);
        let mut bytes = Huge::zeros(num_runs * run_lines * RUN_LINE_BYTES);
        fill(&mut bytes, run_lines);
        Self {
            bytes: Bytes::from_owner(bytes),
            run_lines,
        }
    }

    /// Runs that were packed before; `None` if the number of bytes is wrong.
    pub(crate) fn from_packed(num_runs: usize, run_len: usize, bytes: Bytes) -> Option<Self> {
        let run_lines = run_len.div_ceil(RUN_LINE_WEIGHTS);
        let len = num_runs.checked_mul(run_lines)?.checked_mul(RUN_LINE_BYTES);
        (len == Some(bytes.len())).then_some(Self { bytes, run_lines })
    }

    /// The packed runs.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
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
