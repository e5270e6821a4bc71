//! [`EngineFacts`]: what an engine is and what its kernels have counted, as plain values that
//! outlive the engine and can cross threads.

use bitnet_kernels::{Count, Kernel};
use bitnet_models::{Config, FfnSparsity, HeadMode};

use crate::engine::Engine;
use crate::options::EngineOptions;

/// What an engine is, and what its kernels have counted since the counters were last reset.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// The shape of the model.
    pub config: Config,
    /// The format of the ternary weights in the model's file, such as `I2_S`.
    pub quantization: String,
    /// Whether the output head is the embedding.
    pub is_tied: bool,
    /// The packings of the ternary weights in memory, joined by `+`.
    pub packing: String,
    /// How logits are computed; never `Auto`.
    pub head: HeadMode,
    /// Whether decoding leaves out weights that meet zeros.
    pub ffn_sparsity: FfnSparsity,
    /// The engine's bounds.
    pub options: EngineOptions,
    /// The name of the instruction set.
    pub kernel_set: &'static str,
    /// Threads that compute.
    pub threads: usize,
    /// The counts of every kernel that was called at least once.
    pub kernel_counts: Vec<(Kernel, Count)>,
}

impl Engine {
    /// The facts of this engine now.
    #[must_use]
    pub fn facts(&self) -> EngineFacts {
        let (model, device) = (self.model(), self.device());
        let counts = Kernel::ALL.map(|kernel| (kernel, self.counters().get(kernel)));
        EngineFacts {
            config: model.config.clone(),
            quantization: model.quantization.clone(),
            is_tied: model.is_tied,
            packing: model.packing.clone(),
            head: model.head_mode,
            ffn_sparsity: model.ffn_sparsity,
            options: self.options(),
            kernel_set: device.kernels().name,
            threads: device.threads(),
            kernel_counts: counts
                .into_iter()
                .filter(|(_, count)| count.calls > 0)
                .collect(),
        }
    }
}
