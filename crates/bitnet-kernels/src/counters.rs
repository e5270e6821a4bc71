//! What ran: calls, multiply-accumulates and bytes of each kernel, counted where the work is dispatched.

use std::cell::Cell;

/// The kernels that count, by the names that receipts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Rows of the embedding table turned into f32.
    EmbeddingLookup,
    /// A ternary matrix times one row of int8 activations.
    I2sGemv,
    /// A ternary matrix times several rows of int8 activations.
    I2sGemm,
    /// Rotary position embedding of queries and keys.
    RopeApply,
    /// Attention over the key/value cache.
    AttentionReal,
    /// Estimates of all logits from the 8-bit copy of the head: two planes of 8 bits for each hidden state.
    LogitsScreen,
    /// Hidden states to logits: of the whole vocabulary, or of the tokens that the estimates left in the running.
    LogitsProjection,
}

impl Kernel {
    /// All of them, in the order in which a token meets them.
    pub const ALL: [Self; 7] = [
        Self::EmbeddingLookup,
        Self::I2sGemv,
        Self::I2sGemm,
        Self::RopeApply,
        Self::AttentionReal,
        Self::LogitsScreen,
        Self::LogitsProjection,
    ];

    /// The id used in receipts.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::EmbeddingLookup => "embedding_lookup",
            Self::I2sGemv => "i2s_gemv",
            Self::I2sGemm => "i2s_gemm",
            Self::RopeApply => "rope_apply",
            Self::AttentionReal => "attention_real",
            Self::LogitsScreen => "logits_screen",
            Self::LogitsProjection => "logits_projection",
        }
    }
}

/// What one kernel did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times it was dispatched.
    pub calls: u64,
    /// Multiply-accumulates it executed, padding not counted.
    pub macs: u64,
    /// Multiply-accumulates it left out because they add nothing. With `macs` they make the dense product.
    pub macs_skipped: u64,
    /// Bytes of weights, embedding rows or cache it read, each byte once a call.
    pub bytes: u64,
}

/// The counts of all kernels since the start or the last reset.
#[derive(Default)]
pub struct Counters {
    counts: [Cell<Count>; Kernel::ALL.len()],
    is_off: Cell<bool>,
}

impl Counters {
    /// Adds one call. A few nanoseconds; the dispatching thread alone counts, so nothing is atomic.
    pub fn add(&self, kernel: Kernel, macs: usize, bytes: usize) {
        if self.is_off.get() {
            return;
        }
        let cell = &self.counts[kernel as usize];
        let mut count = cell.get();
        count.calls += 1;
        count.macs += macs as u64;
        count.bytes += bytes as u64;
        cell.set(count);
    }

    /// Adds multiply-accumulates that calls counted already have left out.
    pub fn skip(&self, kernel: Kernel, macs: usize) {
        let cell = &self.counts[kernel as usize];
        let count = cell.get();
        cell.set(Count { macs_skipped: count.macs_skipped + macs as u64, ..count });
    }

    /// What a kernel did so far.
    #[must_use]
    pub fn get(&self, kernel: Kernel) -> Count {
        self.counts[kernel as usize].get()
    }

    /// Stops or resumes counting, so that what it costs can be measured. What runs meanwhile leaves no receipt.
    pub fn set_counting(&self, on: bool) {
        self.is_off.set(!on);
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        self.counts.iter().for_each(|count| count.set(Count::default()));
    }
}
