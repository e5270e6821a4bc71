//! The safe functions of a set: each checks the shapes, then calls the function in the table.

use crate::layout::cache::{CACHE_BLOCK, SEGMENT_KEYS};
use crate::sets::segment::{CacheElement, Partial, Segment, SegmentScratch};
use crate::sets::table::{Gate, KernelSet};

impl KernelSet {
    /// `out[r] = Σ rows[r] · x` for rows of little-endian f16, `[out.len(), x.len()]`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn matvec_f16(&self, rows: &[u8], x: &[f32], out: &mut [f32]) {
        assert_eq!(
            rows.len(),
            2 * x.len() * out.len(),
            "f16 matrix bytes for {} rows of {}",
            out.len(),
            x.len()
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { (self.matvec_f16)(rows, x, out) }
    }

    /// `out[r] = Σ rows[r] · x` for rows of f32, `[out.len(), x.len()]`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn matvec_f32(&self, rows: &[f32], x: &[f32], out: &mut [f32]) {
        assert!(!x.is_empty(), "a matrix without columns");
        assert_eq!(
            rows.len(),
            x.len() * out.len(),
            "matrix elements for {} rows of {}",
            out.len(),
            x.len()
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { (self.matvec_f32)(rows, x, out) }
    }

    /// `out = weight · (x / sqrt(mean(x²) + eps))`, all of one length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(
            x.len() == weight.len() && x.len() == out.len(),
            "rms_norm of {} by {}",
            x.len(),
            weight.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// Quantizes `x` to int8 by its largest magnitude; zeros follow where `out` is longer. Returns
    /// `s` and `Σ q`: `s = 127 / max(absmax, 1e-5)` by one division, `q = round_half_even(x · s)`.
    ///
    /// # Panics
    /// If `out` is shorter than `x`.
    pub fn quantize(&self, x: &[f32], out: &mut [i8]) -> (f32, i32) {
        assert!(
            out.len() >= x.len(),
            "{} values into {}",
            x.len(),
            out.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.quantize)(x, out) }
    }

    /// Quantizes `x` to int8 in runs of `run_cols`: for each d = absmax / 127 and `q =
    /// round_half_even(x / d)`; the last run may be shorter, and a run of zeros gives zeros.
    /// `scales` gets the d, `sums` the `Σ q` of each run.
    ///
    /// # Panics
    /// If a run has no columns, or the lengths do not fit together.
    pub fn quantize_runs(
        &self,
        x: &[f32],
        run_cols: usize,
        q: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
    ) {
        let runs = x.len().div_ceil(run_cols);
        assert!(
            q.len() == x.len() && scales.len() == runs && sums.len() == runs,
            "{} values in {runs} runs into {} values, {} scales and {} sums",
            x.len(),
            q.len(),
            scales.len(),
            sums.len()
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { (self.quantize_runs)(x, run_cols, q, scales, sums) }
    }

    /// `out = act(gate) · up`, with the function of `kind`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate_mul(&self, kind: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(
            gate.len() == up.len() && gate.len() == out.len(),
            "gate {} and up {}",
            gate.len(),
            up.len()
        );
        let multiply = match kind {
            Gate::Relu2 => self.relu2_mul,
            Gate::Silu => self.silu_mul,
            Gate::Gelu => self.gelu_mul,
        };
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { multiply(gate, up, out) }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "the terms of a sum");
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.add)(x, y) }
    }

    /// Rotates each head of `x`, `[heads, 2 · cos.len()]`, pairing element `i` with `i +
    /// cos.len()`.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length or do not divide `x`.
    pub fn rope_half_split(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let head_dim = 2 * cos.len();
        assert!(
            cos.len() == sin.len() && head_dim > 0 && x.len().is_multiple_of(head_dim),
            "heads of {head_dim}"
        );
        for head in x.chunks_exact_mut(head_dim) {
            // SAFETY: a set exists only on a CPU that can run it.
            unsafe { (self.rope_half_split)(head, cos, sin) }
        }
    }

    /// Attends over one segment of the cache.
    ///
    /// # Panics
    /// If a slice is shorter than the shapes say.
    pub fn attend<T: CacheElement>(
        &self,
        segment: &Segment<'_, T>,
        scratch: &mut SegmentScratch,
        partial: &mut Partial<'_>,
    ) {
        let Segment {
            head_dim,
            value_dim,
            num_keys,
            ..
        } = *segment;
        let queries = num_keys.len();
        let most = num_keys.iter().copied().max().unwrap_or(0);
        assert!(
            num_keys.iter().all(|n| (1..=SEGMENT_KEYS).contains(n)),
            "{num_keys:?} keys"
        );
        assert!(
            value_dim.is_multiple_of(16) && value_dim >= head_dim,
            "value rows of {value_dim} for heads of {head_dim}"
        );
        assert!(
            segment.queries.len() == queries * head_dim,
            "{queries} queries"
        );
        for block in 0..most.div_ceil(CACHE_BLOCK) {
            assert!(
                segment.keys[block].len() == head_dim * CACHE_BLOCK,
                "key block {block}"
            );
            assert!(
                segment.values[block].len() == CACHE_BLOCK * value_dim,
                "value block {block}"
            );
        }
        assert!(
            partial.max.len() == queries
                && partial.sum.len() == queries
                && partial.acc.len() == queries * value_dim,
            "partial"
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { T::attend(self)(segment, scratch, partial) }
    }

    /// Rounds to the element type of the cache, to nearest, half to even.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn round<T: CacheElement>(&self, from: &[f32], to: &mut [T]) {
        assert_eq!(from.len(), to.len(), "elements to round");
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { T::round(self)(from, to) }
    }

    /// Merges the partial result of a later segment of one head into the result of the earlier
    /// segments.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn merge_segment(
        &self,
        max: &mut f32,
        sum: &mut f32,
        acc: &mut [f32],
        later: (f32, f32, &[f32]),
    ) {
        assert_eq!(acc.len(), later.2.len(), "partial results");
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.merge_segment)(max, sum, acc, later.0, later.1, later.2) }
    }
}

impl std::fmt::Debug for KernelSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KernelSet").field(&self.name).finish()
    }
}
