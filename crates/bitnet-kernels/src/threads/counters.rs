//! Counts calls, multiply-accumulates and bytes of each kernel where the work is dispatched.

use std::cell::Cell;

/// The kernels that are counted, with the names that receipts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Rows of the embedding table turned into f32.
    EmbeddingLookup,
    /// A ternary matrix times one row of int8 activations.
    I2sGemv,
    /// A ternary matrix times several rows of int8 activations.
    I2sGemm,
    /// As [`Kernel::I2sGemv`], by lookup of pairs.
    Tl1Gemv,
    /// As [`Kernel::I2sGemm`], by lookup of pairs.
    Tl1Gemm,
    /// As [`Kernel::I2sGemv`], by lookup of triples.
    Tl2Gemv,
    /// As [`Kernel::I2sGemm`], by lookup of triples.
    Tl2Gemm,
    /// Signs with group scales times one row of int8 activations.
    SignGemv,
    /// Signs with group scales times several rows of int8 activations.
    SignGemm,
    /// Trits or codes of 2 bits with group scales times one row of int8 activations.
    TwoBitGemv,
    /// Trits or codes of 2 bits with group scales times several rows of int8 activations.
    TwoBitGemm,
    /// Rotary position embedding of queries and keys.
    RopeApply,
    /// Attention over the key/value cache.
    AttentionReal,
    /// A small matrix of f32 times rows of f32.
    FloatGemm,
    /// Gated DeltaNet: the convolution and the recurrence of each row; its bytes are the bytes of
    /// the states.
    DeltaNet,
    /// Estimates of all logits from the 8-bit copy of the head: two planes of 8 bits for each
    /// hidden state.
    LogitsScreen,
    /// Hidden states to logits: of the whole vocabulary, or of the tokens that the estimates could
    /// not exclude.
    LogitsProjection,
}

impl Kernel {
    /// All kernels, in the order of the forward pass.
    pub const ALL: [Self; 17] = [
        Self::EmbeddingLookup,
        Self::I2sGemv,
        Self::I2sGemm,
        Self::Tl1Gemv,
        Self::Tl1Gemm,
        Self::Tl2Gemv,
        Self::Tl2Gemm,
        Self::SignGemv,
        Self::SignGemm,
        Self::TwoBitGemv,
        Self::TwoBitGemm,
        Self::RopeApply,
        Self::AttentionReal,
        Self::FloatGemm,
        Self::DeltaNet,
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
            Self::Tl1Gemv => "tl1_gemv",
            Self::Tl1Gemm => "tl1_gemm",
            Self::Tl2Gemv => "tl2_gemv",
            Self::Tl2Gemm => "tl2_gemm",
            Self::SignGemv => "sign_gemv",
            Self::SignGemm => "sign_gemm",
            Self::TwoBitGemv => "two_bit_gemv",
            Self::TwoBitGemm => "two_bit_gemm",
            Self::RopeApply => "rope_apply",
            Self::AttentionReal => "attention_real",
            Self::FloatGemm => "float_gemm",
            Self::DeltaNet => "delta_net",
            Self::LogitsScreen => "logits_screen",
            Self::LogitsProjection => "logits_projection",
        }
    }
}

/// The counts of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times it was dispatched.
    pub calls: u64,
    /// Multiply-accumulates it executed, padding not counted.
    pub macs: u64,
    /// Multiply-accumulates that it skipped because they add nothing. `macs` plus this is the dense
    /// product.
    pub macs_skipped: u64,
    /// Bytes of weights, embedding rows or cache that it read, each byte once per call.
    pub bytes: u64,
}

/// The counts of all kernels since the start or the last reset.
#[derive(Default)]
pub struct Counters {
    counts: [Cells; Kernel::ALL.len()],
    is_off: Cell<bool>,
}

/// A [`Count`] with one cell for each field: a single cell would load and store the whole count for
/// each event.
#[derive(Default)]
struct Cells {
    calls: Cell<u64>,
    macs: Cell<u64>,
    macs_skipped: Cell<u64>,
    bytes: Cell<u64>,
}

impl Counters {
    /// Adds one call. A few nanoseconds; the dispatching thread alone counts, so nothing is atomic.
    #[inline]
    pub fn add(&self, kernel: Kernel, macs: usize, bytes: usize) {
        if self.is_off.get() {
            return;
        }
        let Cells {
            calls,
            macs: all_macs,
            bytes: all_bytes,
            ..
        } = &self.counts[kernel as usize];
        calls.set(calls.get() + 1);
        all_macs.set(all_macs.get() + macs as u64);
        all_bytes.set(all_bytes.get() + bytes as u64);
    }

    /// Adds multiply-accumulates that earlier, already counted calls skipped.
    #[inline]
    pub fn skip(&self, kernel: Kernel, macs: usize) {
        if self.is_off.get() {
            return;
        }
        let skipped = &self.counts[kernel as usize].macs_skipped;
        skipped.set(skipped.get() + macs as u64);
    }

    /// The counts of a kernel so far.
    #[must_use]
    pub fn get(&self, kernel: Kernel) -> Count {
        let Cells {
            calls,
            macs,
            macs_skipped,
            bytes,
        } = &self.counts[kernel as usize];
        Count {
            calls: calls.get(),
            macs: macs.get(),
            macs_skipped: macs_skipped.get(),
            bytes: bytes.get(),
        }
    }

    /// Stops or resumes counting, so that its cost can be measured. Work that runs while counting
    /// is stopped appears in no receipt.
    pub fn set_counting(&self, on: bool) {
        self.is_off.set(!on);
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        for Cells {
            calls,
            macs,
            macs_skipped,
            bytes,
        } in &self.counts
        {
            [calls, macs, macs_skipped, bytes]
                .into_iter()
                .for_each(|cell| cell.set(0));
        }
    }
}
