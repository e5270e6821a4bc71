//! [`DeviceMemory`]: the bytes of a device that a model takes, by their use.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Packed matrices, norms and other constants.
    Weights,
    /// The embedding and the head.
    Tables,
    /// Keys and values.
    Cache,
    /// States of linear attention.
    States,
    /// Activations, plans of steps, logits and what the host reads.
    Workspace,
}

/// Bytes of device memory, by their use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Packed matrices, norms and other constants.
    pub weights: u64,
    /// The embedding and the head.
    pub tables: u64,
    /// Keys and values.
    pub cache: u64,
    /// States of linear attention.
    pub states: u64,
    /// Activations, plans of steps, logits and what the host reads.
    pub workspace: u64,
}

impl DeviceMemory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.tables + self.cache + self.states + self.workspace
    }
}

impl fmt::Display for DeviceMemory {
    /// The sum, then the parts that are not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("tables", self.tables),
            ("key/value cache", self.cache),
            ("recurrent states", self.states),
            ("workspace", self.workspace),
        ];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = parts
            .map(|(name, bytes)| format!("{name} {bytes}"))
            .collect();
        write!(f, "{} bytes ({})", self.total(), parts.join(", "))
    }
}

/// Counts the bytes of living buffers.
#[derive(Default)]
pub(crate) struct Tally([AtomicU64; 5]);

impl Tally {
    pub fn add(&self, part: Part, bytes: u64) {
        self.0[part as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn subtract(&self, part: Part, bytes: u64) {
        self.0[part as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn memory(&self) -> DeviceMemory {
        let [weights, tables, cache, states, workspace] =
            [0, 1, 2, 3, 4].map(|part: usize| self.0[part].load(Ordering::Relaxed));
        DeviceMemory {
            weights,
            tables,
            cache,
            states,
            workspace,
        }
    }
}
