//! [`EngineFacts`]: the model, options and counts of an engine, as plain values that outlive the
//! engine and can move between threads.

use bitnet_kernels::{Count, Kernel};
use bitnet_models::{FfnActivity, ModelInfo};

use crate::counts::HeadUse;
use crate::device::Device;
use crate::engine::Engine;
use crate::options::EngineOptions;

/// The model, options and counts of an engine.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// Facts about the model.
    pub model: ModelInfo,
    /// Where it runs.
    pub device: Device,
    /// The engine's bounds.
    pub options: EngineOptions,
    /// The counts of every kernel that was called since the counters were last reset.
    pub kernel_counts: Vec<(Kernel, Count)>,
    /// Uses of the screened head since the engine was made.
    pub head_use: HeadUse,
    /// The activity of the feed-forward network of each layer since the engine was made; empty if
    /// nothing has run.
    pub ffn_activity: Vec<FfnActivity>,
}

impl Engine {
    /// The facts of this engine now.
    #[must_use]
    pub fn facts(&self) -> EngineFacts {
        let counts = Kernel::ALL.map(|kernel| (kernel, self.counters().get(kernel)));
        EngineFacts {
            model: self.model().clone(),
            device: self.device(),
            options: self.options(),
            kernel_counts: counts
                .into_iter()
                .filter(|(_, count)| count.calls > 0)
                .collect(),
            head_use: self.head_use(),
            ffn_activity: self.ffn_activity().to_vec(),
        }
    }
}
