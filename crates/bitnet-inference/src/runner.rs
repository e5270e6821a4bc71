//! [`Runner`]: the interface between an engine and a model. Object-safe, so that the engine knows
//! neither the backend nor its buffers; called only a few times per step, so dynamic dispatch costs
//! nothing.
//!
//! A step is: [`Runner::step`] with the chunks of all sequences; then [`Runner::top_logits`],
//! [`Runner::estimate`] or [`Runner::logits`]; then, for each sampled token, [`Runner::exact`] in a few rounds.

use std::sync::Arc;

use bitnet_kernels::{Counters, Estimates};
use bitnet_models::{Backend, CacheShape, Chunk, FfnActivity, LanguageModel, ModelInfo, Workspace};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::options::EngineOptions;

/// A model on a device, with its cache.
pub trait Runner: Send {
    /// Facts about the model.
    fn model(&self) -> &ModelInfo;

    /// The device that runs it.
    fn device(&self) -> Device;

    /// The position at which attention takes as long as the rest of a token's work: a token there
    /// takes twice the time of the first. At least 1.
    fn halfway(&self) -> usize;

    /// Bytes of one sequence's recurrent state; 0 for a model without recurrent layers.
    fn state_bytes(&self) -> usize;

    /// Copies a recurrent state from one slot to another.
    ///
    /// # Panics
    /// If there is no such slot.
    fn copy_state(&mut self, from: u32, to: u32);

    /// Runs chunks of different sequences through the model; returns the number of rows whose
    /// logits the chunks ask for. The cache then holds the keys and values of all their tokens.
    ///
    /// # Panics
    /// If a token is outside the vocabulary, a chunk is empty, or a block table is too short.
    fn step<'a>(&mut self, chunks: &mut dyn Iterator<Item = Chunk<'a>>) -> usize;

    /// The hidden state of a row of the last step, after the last norm: `out` becomes `[hidden]`.
    ///
    /// # Panics
    /// If there is no such row.
    fn hidden(&self, row: usize, out: &mut Vec<f32>);

    /// All logits of some rows of the last step: `out` becomes `[rows, vocab]`.
    ///
    /// # Panics
    /// If there is no such row.
    fn logits(&self, rows: &[usize], out: &mut Vec<f32>);

    /// The first `k` logits of some rows of the last step, with their tokens: the larger first, the
    /// lower token first among equals, NaN last. `out` becomes `[rows, k]`; `k` is at most the
    /// number of tokens. False if the backend cannot: [`Runner::logits`] will do.
    ///
    /// # Panics
    /// If there is no such row.
    fn top_logits(&self, rows: &[usize], k: usize, out: &mut Vec<(u32, f32)>) -> bool;

    /// Estimates the logits of all rows of the last step. False if the model cannot: only
    /// [`Runner::logits`] will do.
    fn estimate(&mut self) -> bool;

    /// The estimated logits of a row, `[vocab]`, after [`Runner::estimate`] returned true.
    ///
    /// # Panics
    /// If there is no such row.
    fn estimates(&self, row: usize) -> Estimates<'_>;

    /// The exact logits of some tokens for a row of the last step: `out` becomes `[tokens]`.
    ///
    /// # Panics
    /// If there is no such row or token.
    fn exact(&self, row: usize, tokens: &[u32], out: &mut Vec<f32>);

    /// Counts the logits that [`Runner::exact`] computed for one row. `decided`: they were enough
    /// to choose a token; otherwise they were wasted.
    fn count_exact(&self, num_exact: usize, decided: bool);

    /// The kernels that ran so far.
    fn counters(&self) -> &Counters;

    /// Counts of the feed-forward network of each layer so far; empty before the first step.
    fn ffn_activity(&self) -> &[FfnActivity];

    /// Why results are worthless since some step, such as a lost device; `None` as long as they are
    /// right.
    fn failure(&self) -> Option<String>;
}

/// A loaded model: engines create their runners from it and share its weights.
pub trait Model: Send + Sync {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Creates a runner with its own cache, as large as an engine with these options needs.
    ///
    /// # Errors
    /// If there is not enough memory for the cache, or the device has failed.
    fn runner(&self, device: Device, options: &EngineOptions) -> Result<Box<dyn Runner>>;

    /// Why no runner of the model works any more, such as a lost device: the model must be loaded
    /// again. `None` as long as they work.
    fn failure(&self) -> Option<String>;

    /// Loses the device, as a driver does that resets it. For tests of what follows. Does nothing
    /// on the CPU.
    fn lose_device(&self);
}

/// A model of one backend that runners share.
pub(crate) struct SharedModel<B: Backend> {
    model: Arc<LanguageModel<B>>,
    info: ModelInfo,
    opened: Box<dyn Opened<B>>,
}

/// An open device of one backend.
pub(crate) trait Opened<B: Backend>: Send + Sync {
    /// Starts a backend, with the threads of `device` on the host.
    fn start(&self, device: Device) -> B;

    /// Checks that the device has room for a runner of the model.
    ///
    /// # Errors
    /// If it has not, with the numbers.
    fn check_room(
        &self,
        _model: &Arc<LanguageModel<B>>,
        _device: Device,
        _options: &EngineOptions,
    ) -> Result<()> {
        Ok(())
    }

    /// Why nothing runs on the device any more; `None` as long as it works.
    fn failure(&self) -> Option<String> {
        None
    }

    /// See [`Model::lose_device`].
    fn lose(&self) {}
}

impl<B: Backend> SharedModel<B> {
    /// A model that was loaded on an open device.
    pub fn new(model: LanguageModel<B>, opened: impl Opened<B> + 'static) -> Self {
        Self {
            info: model.info(),
            model: Arc::new(model),
            opened: Box::new(opened),
        }
    }
}

impl<B: Backend> Model for SharedModel<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn runner(&self, device: Device, options: &EngineOptions) -> Result<Box<dyn Runner>> {
        self.opened.check_room(&self.model, device, options)?;
        let (model, backend) = (Arc::clone(&self.model), self.opened.start(device));
        let runner = ModelRunner::new(model, backend, device, options)?;
        match self.failure() {
            Some(problem) => Err(Error::DeviceFailed(problem)),
            None => Ok(Box::new(runner)),
        }
    }

    fn failure(&self) -> Option<String> {
        self.opened.failure()
    }

    fn lose_device(&self) {
        self.opened.lose();
    }
}

/// A model on a backend, with the cache and buffers of one engine.
pub struct ModelRunner<B: Backend> {
    model: Arc<LanguageModel<B>>,
    info: ModelInfo,
    device: Device,
    backend: B,
    cache: B::Cache,
    workspace: Workspace<B>,
}

/// Number of 8-bit ternary products that take as long as one f32 product of attention, measured
/// with AVX-512 and VNNI.
const ATTENTION_MAC_COST: usize = 4;

impl<B: Backend> ModelRunner<B> {
    /// A runner with a cache as large as an engine with these options needs. `backend` was started
    /// on `device`.
    ///
    /// # Errors
    /// If there is not enough memory for the cache.
    pub fn new(
        model: Arc<LanguageModel<B>>,
        backend: B,
        device: Device,
        options: &EngineOptions,
    ) -> Result<Self> {
        let info = model.info();
        let cache = backend.cache(&CacheShape {
            attention: info.config.attention,
            num_layers: info.config.num_attention_layers(),
            kv_type: options.kv_type,
            num_blocks: options.num_blocks(),
            state_len: info.state_len,
            num_states: options.states.max(1),
        })?;
        Ok(Self {
            model,
            info,
            device,
            backend,
            cache,
            workspace: Workspace::new(),
        })
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn device(&self) -> Device {
        self.device
    }

    fn halfway(&self) -> usize {
        let config = &self.info.config;
        let attention_macs =
            2 * config.num_attention_layers() * config.attention.heads * config.attention.head_dim;
        (self.info.num_ternary_weights / (ATTENTION_MAC_COST * attention_macs)).max(1)
    }

    fn state_bytes(&self) -> usize {
        B::state_bytes(&self.cache)
    }

    fn copy_state(&mut self, from: u32, to: u32) {
        self.backend.copy_state(&mut self.cache, from, to);
    }

    fn step<'a>(&mut self, chunks: &mut dyn Iterator<Item = Chunk<'a>>) -> usize {
        let Self {
            model,
            backend,
            cache,
            workspace,
            ..
        } = self;
        model.hidden_states(backend, workspace, cache, chunks)
    }

    fn hidden(&self, row: usize, out: &mut Vec<f32>) {
        self.model.hidden(&self.backend, &self.workspace, row, out);
    }

    fn logits(&self, rows: &[usize], out: &mut Vec<f32>) {
        self.model.logits(&self.backend, &self.workspace, rows, out);
    }

    fn top_logits(&self, rows: &[usize], k: usize, out: &mut Vec<(u32, f32)>) -> bool {
        let (backend, workspace) = (&self.backend, &self.workspace);
        self.model.top_logits(backend, workspace, rows, k, out)
    }

    fn estimate(&mut self) -> bool {
        self.model.estimate(&self.backend, &mut self.workspace)
    }

    fn estimates(&self, row: usize) -> Estimates<'_> {
        self.workspace.estimates(row, self.info.config.vocab_size)
    }

    fn exact(&self, row: usize, tokens: &[u32], out: &mut Vec<f32>) {
        self.model
            .exact(&self.backend, &self.workspace, row, tokens, out);
    }

    fn count_exact(&self, num_exact: usize, decided: bool) {
        self.model.count_exact(&self.backend, num_exact, decided);
    }

    fn counters(&self) -> &Counters {
        self.backend.counters()
    }

    fn ffn_activity(&self) -> &[FfnActivity] {
        self.workspace.ffn_activity()
    }

    fn failure(&self) -> Option<String> {
        self.backend.failure()
    }
}
