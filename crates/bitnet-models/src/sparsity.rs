//! Exact activation sparsity of the feed-forward networks on the CPU: decides which layers have
//! copies of `up` and `down`, with which a decode step skips weights that add nothing, and counts
//! such weights.
//!
//! With `relu(gate)² · up`, a step does not need the rows of `up` whose gate is not positive; with
//! any gate, it does not need the columns of `down` whose int8 activation is zero. In the copies
//! each row or column is contiguous (`TernaryRows`, `TernaryColumns`). They need memory beside the
//! matrices that prompts and dense steps use: 4.4 MB each in a layer of a 2B model. Results do not
//! depend on them.

use bitnet_kernels::{Cpu, Gate, TernaryColumns, TernaryRows};

use crate::activity::FfnActivity;
use crate::backend::Backend;
use crate::cache::{KvCache, KvType};
use crate::cpu::{CpuMatrix, SparseCopy, SparseWeights};
use crate::error::Result;
use crate::forward::{Chunk, LogitRows, Workspace};
use crate::kept::{Facts, Keeper, Packed};
use crate::model::{LanguageModel, Layer, Products};
use crate::options::FfnSparsity;

/// Maximum share of rows or columns that a step reads one by one.
///
/// Measured with a 2B model on two Zen 4 cores: when memory gives 35 GB/s, half of them take 0.6 of
/// the time of all, and 70 % take 0.83; when it gives 60 GB/s, so that arithmetic weighs more, half
/// take 0.83.
const SHARE_MAX: f32 = 0.6;
/// The largest share in a trial for which a layer gets copies: a layer near the limit would gain
/// nothing.
const TRIAL_SHARE_MAX: f32 = 0.55;
/// The smallest matrix that is copied: a smaller one stays in a processor's cache, and reading it
/// takes less time than listing active rows and joining threads.
const COPIED_BYTES_MIN: usize = 1 << 20;
/// Tokens of a trial, a small batch: 0.1 s for a 2B model on two cores.
const TRIAL_TOKENS: usize = 24;

/// How the weights of a layer's feed-forward network are stored.
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
    /// How the weights of each layer's feed-forward network are stored.
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

    /// Whether decode steps skip weights that add nothing.
    #[must_use]
    pub fn ffn_sparsity(&self) -> FfnSparsity {
        self.ffn_sparsity
    }
}

impl FfnSparsity {
    /// Maximum number of `len` rows or columns that a step reads one by one.
    fn active_max(self, len: usize) -> usize {
        match self {
            Self::On => len,
            Self::Off => 0,
            Self::Auto => (SHARE_MAX * len as f32) as usize,
        }
    }
}

/// The names of a layer's copies for a keeper.
fn rows_name(layer: usize) -> String {
    format!("layers.{layer}.up_rows")
}

fn columns_name(layer: usize) -> String {
    format!("layers.{layer}.down_columns")
}

impl LanguageModel<Cpu> {
    /// Makes the copies that the model's `ffn_sparsity` asks for.
    ///
    /// # Errors
    /// If there is no memory for the trial's cache.
    pub(crate) fn make_sparse_copies(&mut self, cpu: &Cpu, keeper: &Keeper) -> Result<()> {
        let is_grouped = |layer: &Layer<Cpu>| matches!(layer.ffn_down, CpuMatrix::Grouped(_));
        if keeper.is_kept() {
            self.restore_sparse_copies(keeper);
            return Ok(());
        }
        if self.layers.iter().any(is_grouped) {
            // The copies support only one scale for each matrix.
            return Ok(());
        }
        let relu = self.config.architecture.gate() == Gate::Relu2;
        let wanted: Vec<[bool; 2]> = match self.ffn_sparsity {
            FfnSparsity::Off => return Ok(()),
            FfnSparsity::On => vec![[relu, true]; self.layers.len()],
            FfnSparsity::Auto
                if self.layers.iter().all(|layer| {
                    Cpu::matrix_facts(&layer.ffn_down).num_bytes < COPIED_BYTES_MIN
                }) =>
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
        for (index, (layer, [up, down])) in self.layers.iter_mut().zip(wanted).enumerate() {
            let active_max = self.ffn_sparsity.active_max(layer.neurons.num_live());
            let copy = |weights| SparseCopy {
                weights,
                active_max,
            };
            // Projections with their own norms do not share their input, so the gates of one cannot
            // choose rows of the other before both are rounded.
            if let Products::Stacked(matrix) = &mut layer.gate_up.products
                && let Some(matrix) = matrix.ternary_mut()
                && up
            {
                let rows = TernaryRows::new(cpu.pool(), &matrix.weights, 1);
                let packed = || Some(Packed::new(Facts::Rows, vec![rows.bytes().clone()]));
                keeper.note(&rows_name(index), packed);
                matrix.copy = Some(copy(SparseWeights::GatedRows(rows)));
            }
            if let Some(matrix) = layer.ffn_down.ternary_mut()
                && down
            {
                let columns = TernaryColumns::new(cpu.pool(), &matrix.weights);
                let packed = || Some(Packed::new(Facts::Columns, vec![columns.bytes().clone()]));
                keeper.note(&columns_name(index), packed);
                matrix.copy = Some(copy(SparseWeights::Columns(columns)));
            }
        }
        Ok(())
    }

    /// Takes the copies that an earlier load made: its trial decides for this one, too.
    fn restore_sparse_copies(&mut self, keeper: &Keeper) {
        let bytes = |name: String, facts: Facts| match keeper.find(&name) {
            Some(packed) if packed.facts == facts => packed.pieces.first().cloned(),
            _ => None,
        };
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let active_max = self.ffn_sparsity.active_max(layer.neurons.num_live());
            let copy = |weights| SparseCopy {
                weights,
                active_max,
            };
            if let Products::Stacked(matrix) = &mut layer.gate_up.products
                && let Some(matrix) = matrix.ternary_mut()
                && let Some(bytes) = bytes(rows_name(index), Facts::Rows)
                && let [_, part] = *matrix.weights.parts()
            {
                let rows = TernaryRows::from_packed(part, matrix.weights.cols(), bytes);
                matrix.copy = rows.map(|rows| copy(SparseWeights::GatedRows(rows)));
            }
            if let Some(matrix) = layer.ffn_down.ternary_mut()
                && let Some(bytes) = bytes(columns_name(index), Facts::Columns)
                && let [part] = *matrix.weights.parts()
            {
                let columns = TernaryColumns::from_packed(part, matrix.weights.cols(), bytes);
                matrix.copy = columns.map(|columns| copy(SparseWeights::Columns(columns)));
            }
        }
    }

    /// Runs made-up tokens through the layers to count the zeros of each. Resets the counters.
    fn trial(&self, cpu: &Cpu) -> Result<Vec<FfnActivity>> {
        let config = &self.config;
        let num_tokens = TRIAL_TOKENS.min(config.context_length).max(1);
        // Any tokens work, if they are spread over the vocabulary and always the same.
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
            state: 0,
            logits: LogitRows::All,
        };
        self.hidden_states(cpu, &mut workspace, &mut cache, std::iter::once(chunk));
        cpu.counters().reset();
        Ok(workspace.ffn_activity().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitnet_files::gguf::Gguf;
    use bitnet_kernels::{Kernel, KernelSet};
    use bitnet_quantization::{TernaryFormat, i2_s};

    use super::*;
    use crate::config::Architecture;
    use crate::options::LoadOptions;
    use crate::source::gguf::GgufSource;
    use crate::synthetic::{Shape, SyntheticModel};

    /// Logits of 33 tokens, a chunk of 32 and one alone, and the multiply-accumulates executed and
    /// skipped.
    fn run(model: &LanguageModel<Cpu>, cpu: &Cpu) -> (Vec<u32>, u64, u64) {
        let config = model.config();
        let mut cache =
            KvCache::new(config.attention, config.num_layers, KvType::F16, 2).expect("memory");
        let mut workspace = Workspace::new();
        let tokens: Vec<u32> = (0..33).map(|i| i * 37 % 512).collect();
        cpu.counters().reset();
        let mut bits = Vec::new();
        for (tokens, position) in [(&tokens[..32], 0), (&tokens[32..], 32)] {
            let chunk = Chunk {
                tokens,
                position,
                blocks: &[1, 0],
                state: 0,
                logits: LogitRows::All,
            };
            let logits = model.forward(cpu, &mut workspace, &mut cache, &[chunk]);
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
        }
        let counts = [Kernel::I2sGemm, Kernel::I2sGemv].map(|kernel| cpu.counters().get(kernel));
        (
            bits,
            counts.iter().map(|count| count.macs).sum(),
            counts.iter().map(|count| count.macs_skipped).sum(),
        )
    }

    #[test]
    fn leaving_out_dead_neurons_changes_no_logit() {
        let folder = tempfile::tempdir().expect("a folder");
        for (architecture, ffn_size) in
            [(Architecture::BitnetB158, 416), (Architecture::Llama, 384)]
        {
            let shape = Shape {
                architecture,
                ffn_size,
                dead_neurons_percent: 40,
                ..Shape::default()
            };
            let path = folder.path().join(format!("{ffn_size}.gguf"));
            let format = |_, _| TernaryFormat::I2_S(i2_s::Form::Block128);
            SyntheticModel { shape, seed: 5 }
                .write_gguf(&path, &format)
                .expect("a file");
            let gguf = Arc::new(Gguf::open(&path).expect("it opens"));
            let load = |ffn_sparsity, drops_dead, cpu: &Cpu| {
                let options = LoadOptions {
                    ffn_sparsity,
                    ..LoadOptions::default()
                };
                let source = GgufSource::new(&gguf, &options).expect("a model");
                LanguageModel::load(&source, &options, cpu, drops_dead, &Keeper::off())
                    .expect("it loads")
            };
            let cpu = Cpu::new(KernelSet::detect(), 2);
            let whole = load(FfnSparsity::Off, false, &cpu);
            assert!(whole.ffn_layers().all(|layer| layer.num_dead_neurons == 0));
            let (expected, dense_macs, skipped) = run(&whole, &cpu);
            assert_eq!(skipped, 0);
            for set in KernelSet::available() {
                for (threads, ffn_sparsity) in [
                    (1, FfnSparsity::Off),
                    (2, FfnSparsity::On),
                    (3, FfnSparsity::On),
                ] {
                    let cpu = Cpu::new(set, threads);
                    let model = load(ffn_sparsity, true, &cpu);
                    for layer in model.ffn_layers() {
                        let dead = layer.num_dead_neurons * 100 / ffn_size;
                        assert!(
                            (30..50).contains(&dead),
                            "{dead} of a hundred neurons are dead"
                        );
                    }
                    assert_eq!(model.num_ternary_weights(), whole.num_ternary_weights());
                    let (found, macs, skipped) = run(&model, &cpu);
                    assert!(
                        found == expected,
                        "{architecture:?} {}, {ffn_sparsity:?} on {threads} threads",
                        set.name
                    );
                    assert_eq!(
                        macs + skipped,
                        dense_macs,
                        "executed and skipped products are the dense ones"
                    );
                }
            }
        }
    }
}
