//! Exact activation sparsity of the feed-forward networks: which layers have copies of `up` and
//! `down` that let a decode step leave out what adds nothing, and how much of that there is.
//!
//! With `relu(gate)² · up`, rows of `up` whose gate is not positive are not needed; with any gate,
//! nor are columns of `down` whose int8 activation is zero. The copies hold a row or a column in
//! one piece (`TernaryRows`, `TernaryColumns`), so they come on top of the matrices that prompts
//! and dense steps use: 4.4 MB each in a layer of a 2B model. What is computed does not depend on
//! them.

use bitnet_kernels::{Cpu, Gate, InnerZeros, TernaryColumns, TernaryRows};

use crate::backend::Backend;
use crate::cache::{KvCache, KvType};
use crate::cpu::{SparseCopy, SparseWeights};
use crate::error::Result;
use crate::forward::{Chunk, LogitRows, Workspace};
use crate::model::{LanguageModel, Products};

/// Whether decode steps leave out what adds nothing in the feed-forward networks; the text does not
/// depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FfnSparsity {
    /// Always, with copies for all layers.
    On,
    /// Never, without copies.
    Off,
    /// With copies where a short trial shows that it pays, in the steps where it does.
    #[default]
    Auto,
}

impl FfnSparsity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::On, Self::Off, Self::Auto];

    /// What `--ffn-sparsity` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Auto => "auto",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// The share of rows or columns up to which a step takes those alone.
///
/// Measured with a 2B model on two Zen 4 cores: when memory gives 35 GB/s, half of them take 0.6 of
/// the time of all, and 70 % take 0.83; when it gives 60 GB/s, so that arithmetic weighs more, half
/// take 0.83.
const SHARE_MAX: f32 = 0.6;
/// The share that a trial must find at most for copies to be made: a layer near the limit would
/// gain nothing.
const TRIAL_SHARE_MAX: f32 = 0.55;
/// The smallest matrix that is copied: smaller ones come out of a cache, and the lists and joins
/// take longer than that.
const COPIED_BYTES_MIN: usize = 1 << 20;
/// Tokens of a trial, a small batch: 0.1 s for a 2B model on two cores.
const TRIAL_TOKENS: usize = 24;

/// What went through the feed-forward network of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FfnActivity {
    /// Inner values, one a neuron and row, without those of dead neurons.
    pub num_values: u64,
    /// Gates that were not positive.
    pub num_closed_gates: u64,
    /// Values that were zero as int8.
    pub num_zeros: u64,
}

impl FfnActivity {
    pub(crate) fn add(&mut self, num_values: usize, zeros: InnerZeros) {
        self.num_values += num_values as u64;
        self.num_closed_gates += zeros.closed_gates as u64;
        self.num_zeros += zeros.zeros as u64;
    }

    /// The share of gates that were not positive; `None` if there were none.
    #[must_use]
    pub fn closed_gates(&self) -> Option<f64> {
        (self.num_values > 0).then(|| self.num_closed_gates as f64 / self.num_values as f64)
    }

    /// The share of values that were zero as int8; `None` if there were none.
    #[must_use]
    pub fn zeros(&self) -> Option<f64> {
        (self.num_values > 0).then(|| self.num_zeros as f64 / self.num_values as f64)
    }
}

impl std::iter::Sum for FfnActivity {
    fn sum<I: Iterator<Item = Self>>(activities: I) -> Self {
        activities.fold(Self::default(), |sum, more| Self {
            num_values: sum.num_values + more.num_values,
            num_closed_gates: sum.num_closed_gates + more.num_closed_gates,
            num_zeros: sum.num_zeros + more.num_zeros,
        })
    }
}

/// How a layer's feed-forward network is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfnLayer {
    /// Neurons that are always zero and were left out.
    pub num_dead_neurons: usize,
    /// Bytes of the copy of `up` row by row, if there is one.
    pub up_copy_bytes: Option<usize>,
    /// Bytes of the copy of `down` column by column, if there is one.
    pub down_copy_bytes: Option<usize>,
}

impl<B: Backend> LanguageModel<B> {
    /// How the feed-forward network of each layer is held.
    pub fn ffn_layers(&self) -> impl Iterator<Item = FfnLayer> {
        self.layers.iter().map(|layer| FfnLayer {
            num_dead_neurons: layer.neurons.num_neurons - layer.neurons.num_live(),
            up_copy_bytes: layer
                .gate_up
                .stacked()
                .and_then(|matrix| B::matrix_facts(matrix).copy_bytes),
            down_copy_bytes: B::matrix_facts(&layer.ffn_down).copy_bytes,
        })
    }

    /// Whether decode steps leave out what adds nothing.
    #[must_use]
    pub fn ffn_sparsity(&self) -> FfnSparsity {
        self.ffn_sparsity
    }
}

impl FfnSparsity {
    /// The most of `len` rows or columns that a step reads one by one.
    fn active_max(self, len: usize) -> usize {
        match self {
            Self::On => len,
            Self::Off => 0,
            Self::Auto => (SHARE_MAX * len as f32) as usize,
        }
    }
}

impl LanguageModel<Cpu> {
    /// Makes the copies that the model's `ffn_sparsity` asks for.
    ///
    /// # Errors
    /// If there is no memory for the trial's cache.
    pub(crate) fn make_sparse_copies(&mut self, cpu: &Cpu) -> Result<()> {
        let relu = self.config.architecture.gate() == Gate::Relu2;
        let wanted: Vec<[bool; 2]> = match self.ffn_sparsity {
            FfnSparsity::Off => return Ok(()),
            FfnSparsity::On => vec![[relu, true]; self.layers.len()],
            FfnSparsity::Auto
                if self
                    .layers
                    .iter()
                    .all(|layer| layer.ffn_down.weights.num_bytes() < COPIED_BYTES_MIN) =>
            {
                return Ok(());
            }
            FfnSparsity::Auto => {
                let pays = |zeros: Option<f64>| {
                    zeros.is_some_and(|zeros| 1.0 - zeros <= f64::from(TRIAL_SHARE_MAX))
                };
                self.trial(cpu)?
                    .iter()
                    .map(|seen| [relu && pays(seen.closed_gates()), pays(seen.zeros())])
                    .collect()
            }
        };
        for (layer, [up, down]) in self.layers.iter_mut().zip(wanted) {
            let active_max = self.ffn_sparsity.active_max(layer.neurons.num_live());
            let copy = |weights| SparseCopy {
                weights,
                active_max,
            };
            // Projections with norms of their own do not share their input, so the gates of one
            // cannot choose rows of the other before both are rounded.
            if let Products::Stacked(matrix) = &mut layer.gate_up.products
                && up
            {
                let rows = TernaryRows::new(cpu.pool(), &matrix.weights, 1);
                matrix.copy = Some(copy(SparseWeights::GatedRows(rows)));
            }
            if down {
                let columns = TernaryColumns::new(cpu.pool(), &layer.ffn_down.weights);
                layer.ffn_down.copy = Some(copy(SparseWeights::Columns(columns)));
            }
        }
        Ok(())
    }

    /// Runs made-up tokens through the layers to see how much of each is zero. It leaves the
    /// counters at zero.
    fn trial(&self, cpu: &Cpu) -> Result<Vec<FfnActivity>> {
        let config = &self.config;
        let num_tokens = TRIAL_TOKENS.min(config.context_length).max(1);
        // Any tokens do, as long as they are spread over the vocabulary and always the same.
        let token = |index: usize| (index.wrapping_mul(0x9e37_79b9) % config.vocab_size) as u32;
        let tokens: Vec<u32> = (0..num_tokens).map(token).collect();
        let num_blocks = num_tokens.div_ceil(KvCache::BLOCK);
        let blocks: Vec<u32> = (0..num_blocks as u32).collect();
        let mut cache = KvCache::new(config.attention, config.num_layers, KvType::F16, num_blocks)?;
        let mut workspace = Workspace::new();
        let chunk = Chunk {
            tokens: &tokens,
            position: 0,
            blocks: &blocks,
            logits: LogitRows::All,
        };
        self.hidden_states(cpu, &mut workspace, &mut cache, std::iter::once(chunk));
        cpu.counters().reset();
        Ok(workspace.ffn_activity().to_vec())
    }
}
