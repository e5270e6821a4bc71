//! The limits of a template, and the budget of a rendering.
//!
//! A template comes from a file and its inputs from a client; neither may end the process or fill
//! its memory. So all resources are counted: the template's size and nesting when it is parsed;
//! steps, bytes built, bytes written, and depth of calls and of values when it runs.

use std::cell::Cell;

use super::fault::{Fault, Result};

/// The bounds of one template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TemplateLimits {
    /// Bytes of the template.
    pub(crate) source_bytes: usize,
    /// Maximum nesting of expressions and blocks in the template.
    pub(crate) nesting: usize,
    /// Maximum nesting of evaluation: expressions, blocks and calls together.
    pub(crate) depth: usize,
    /// Maximum number of steps of a rendering, plus the same number for each message.
    pub(crate) steps: u64,
    pub(crate) steps_per_message: u64,
    /// Maximum bytes of one value and of the rendered text, plus [`RATIO`](Self::RATIO) times the
    /// bytes of the input.
    pub(crate) value_bytes: usize,
    /// Maximum bytes of all values built during a rendering, plus
    /// [`TOTAL_RATIO`](Self::TOTAL_RATIO) times the bytes of the input.
    pub(crate) total_bytes: usize,
}

impl TemplateLimits {
    pub(crate) const RATIO: usize = 8;
    pub(crate) const TOTAL_RATIO: usize = 64;
    /// Maximum nesting of lists and maps. `serde_json` reads 128 levels.
    pub(crate) const VALUE_DEPTH: usize = 256;
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self {
            source_bytes: 1 << 20,
            nesting: 100,
            depth: 400,
            steps: 1_000_000,
            steps_per_message: 20_000,
            value_bytes: 1 << 20,
            total_bytes: 64 << 20,
        }
    }
}

/// The remaining resources of one rendering.
pub(crate) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<usize>,
    value_bytes: usize,
    total_bytes: usize,
    depth: Cell<usize>,
    depth_max: usize,
}

impl Budget {
    /// The budget of a rendering of `num_messages` messages with `input_bytes` of input.
    pub(crate) fn new(limits: &TemplateLimits, num_messages: usize, input_bytes: usize) -> Self {
        let more_steps = limits.steps_per_message.saturating_mul(num_messages as u64);
        // Long inputs get more steps: one for each 64 bytes.
        let more_steps = more_steps.saturating_add(input_bytes as u64);
        let total_bytes = input_bytes.saturating_mul(TemplateLimits::TOTAL_RATIO);
        let total_bytes = total_bytes.saturating_add(limits.total_bytes);
        Self {
            steps: Cell::new(limits.steps.saturating_add(more_steps)),
            bytes: Cell::new(total_bytes),
            value_bytes: input_bytes
                .saturating_mul(TemplateLimits::RATIO)
                .saturating_add(limits.value_bytes),
            total_bytes,
            depth: Cell::new(0),
            depth_max: limits.depth,
        }
    }

    /// Counts `count` steps.
    pub(crate) fn step(&self, count: usize) -> Result<()> {
        match self.steps.get().checked_sub(count as u64) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => Err(Fault::new("the template takes too many steps")),
        }
    }

    /// Counts the steps of reading `bytes`.
    pub(crate) fn read(&self, bytes: usize) -> Result<()> {
        self.step(1 + bytes / 64)
    }

    /// Checks that a value of `bytes` may be built. Operations whose result can be much larger than
    /// their inputs call it first.
    pub(crate) fn check(&self, bytes: usize) -> Result<()> {
        if bytes > self.value_bytes {
            let most = self.value_bytes;
            return Err(Fault::new(format!(
                "the template builds a value of {bytes} bytes, the maximum is {most}"
            )));
        }
        Ok(())
    }

    /// Checks that the rendered text may have `bytes`.
    pub(crate) fn check_output(&self, bytes: usize) -> Result<()> {
        if bytes > self.value_bytes {
            let most = self.value_bytes;
            return Err(Fault::new(format!(
                "the template writes more than {most} bytes"
            )));
        }
        Ok(())
    }

    /// Counts a value of `bytes` that was built.
    pub(crate) fn built(&self, bytes: usize) -> Result<()> {
        self.check(bytes)?;
        self.read(bytes)?;
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => {
                self.bytes.set(left);
                Ok(())
            }
            None => Err(Fault::new(format!(
                "the template builds more than {} bytes in all",
                self.total_bytes
            ))),
        }
    }

    /// Goes one level deeper; [`leave`](Self::leave) goes back.
    pub(crate) fn enter(&self) -> Result<()> {
        let depth = self.depth.get() + 1;
        if depth > self.depth_max {
            let most = self.depth_max;
            return Err(Fault::new(format!(
                "the template's evaluation nests deeper than {most} levels"
            )));
        }
        self.depth.set(depth);
        Ok(())
    }

    pub(crate) fn leave(&self) {
        self.depth.set(self.depth.get().saturating_sub(1));
    }
}
