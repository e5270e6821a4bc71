//! The part of a [`Device`] that is a GPU.

use std::sync::Arc;

use bitnet_models::{Config, KvCache, LanguageModel, LoadOptions, LoadProgress, LogitRows};
use bitnet_wgpu::{Adapter, DeviceLimits, Gpu, LOGITS_BYTES, OpenGpu, Probe, TOP_MAX};

use super::{AdapterFacts, Device};
use crate::error::{Error, Result};
use crate::memory::Holding;
use crate::options::{DRAFTING_MAX, EngineOptions};
use crate::runner::{Model, ModelRunner, Opened, Runner, SharedModel};

/// The adapter that runs models.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    adapter: &'static Adapter,
    limits: DeviceLimits,
    /// The engine that a load leaves room for.
    engine: Option<EngineOptions>,
}

/// Loads a model on a backend.
type Load<'a> = dyn Fn(&Gpu, &LoadOptions) -> bitnet_models::Result<LanguageModel<Gpu>> + 'a;

impl Choice {
    /// The first adapter whose name contains `name`, or the best GPU. `memory_max`: the most bytes
    /// of its memory that may be used.
    pub fn new(name: Option<&str>, memory_max: Option<u64>) -> bitnet_wgpu::Result<Self> {
        let adapter = match name {
            Some(name) => bitnet_wgpu::adapter_by_name(name)?,
            None => bitnet_wgpu::best_gpu()?,
        };
        Ok(Self {
            adapter,
            limits: DeviceLimits {
                total_bytes: memory_max,
                ..DeviceLimits::default()
            },
            engine: None,
        })
    }

    /// See [`Device::for_engine`].
    pub fn for_engine(self, options: EngineOptions) -> Self {
        Self {
            engine: Some(options),
            ..self
        }
    }

    pub fn facts(&self) -> AdapterFacts {
        facts(self.adapter)
    }

    pub fn probe(&self) -> Result<Probe> {
        let open = OpenGpu::new(self.adapter, self.limits).map_err(Error::Gpu)?;
        Ok(Probe::new(&open)?)
    }

    /// Opens the device, checks that the model fits, and loads it.
    pub fn load(
        &self,
        device: Device,
        config: &Config,
        options: &LoadOptions,
        load: &Load<'_>,
    ) -> Result<Arc<dyn Model>> {
        let open = OpenGpu::new(self.adapter, self.limits).map_err(Error::Gpu)?;
        let gpu = open.start(device.threads());
        gpu.check_options(options)?;
        gpu.check_config(config)?;
        self.check_room(&open, device, options, load)?;
        let model = load(&gpu, options)?;
        match open.finish() {
            Some(problem) => Err(Error::DeviceFailed(problem)),
            None => Ok(Arc::new(SharedModel::new(model, open))),
        }
    }

    /// Counts what the model takes, with the engine if one is known, before any of it is allocated.
    fn check_room(
        &self,
        open: &OpenGpu,
        device: Device,
        options: &LoadOptions,
        load: &Load<'_>,
    ) -> Result<()> {
        let counting = open.counting();
        let without_bar = LoadOptions {
            progress: LoadProgress::default(),
            ..options.clone()
        };
        let model = Arc::new(load(&counting.start(device.threads()), &without_bar)?);
        // Its memory counts as long as it lives.
        let _runner = match &self.engine {
            Some(engine) => Some(rehearse(&counting, &model, device, engine)?),
            None => None,
        };
        Ok(open.check_room(&counting.memory())?)
    }
}

impl Opened<Gpu> for OpenGpu {
    fn start(&self, device: Device) -> Gpu {
        OpenGpu::start(self, device.threads())
    }

    fn check_room(
        &self,
        model: &Arc<LanguageModel<Gpu>>,
        device: Device,
        options: &EngineOptions,
    ) -> Result<()> {
        let counting = self.counting();
        let runner = rehearse(&counting, model, device, options)?;
        let needed = counting.memory();
        drop(runner);
        Ok(OpenGpu::check_room(self, &needed)?)
    }

    fn failure(&self) -> Option<String> {
        OpenGpu::failure(self)
    }

    fn lose(&self) {
        OpenGpu::lose(self);
    }
}

/// Runs the largest steps of an engine on a device that only counts. As long as the result lives,
/// [`OpenGpu::memory`] has the bytes that the engine takes.
fn rehearse(
    counting: &OpenGpu,
    model: &Arc<LanguageModel<Gpu>>,
    device: Device,
    options: &EngineOptions,
) -> Result<ModelRunner<Gpu>> {
    let gpu = OpenGpu::start(counting, 1);
    let mut runner = ModelRunner::new(Arc::clone(model), gpu, device, options)?;
    let mut before = None;
    // Buffers change places in a step, so that a size reaches all of them after a few.
    while before != Some(counting.memory()) {
        before = Some(counting.memory());
        for logits in [LogitRows::Last, LogitRows::All] {
            let prompt = options.prefill_chunk.clamp(1, options.context.max(1));
            rehearse_step(&mut runner, options, &[prompt], logits);
        }
        let mut sequences = vec![1; options.running_max.max(1)];
        let prompt = options.prefill_chunk.max(options.mixed_chunk);
        sequences.push(prompt.clamp(1, options.context.max(1)));
        rehearse_step(&mut runner, options, &sequences, LogitRows::Last);
        let draft = vec![1 + options.draft_max; options.running_max.clamp(1, DRAFTING_MAX)];
        rehearse_step(&mut runner, options, &draft, LogitRows::All);
    }
    match runner.failure() {
        Some(problem) => Err(Error::DeviceFailed(problem)),
        None => Ok(runner),
    }
}

/// A step of sequences with these numbers of tokens, at the end of their contexts.
fn rehearse_step(
    runner: &mut ModelRunner<Gpu>,
    options: &EngineOptions,
    lengths: &[usize],
    logits: LogitRows,
) {
    let blocks = vec![0; options.context.div_ceil(KvCache::BLOCK).max(1)];
    let held = |len: usize| {
        let mut held = Holding::new(None, 0, 0);
        held.blocks.clone_from(&blocks);
        held.computed = options.context.saturating_sub(len);
        held
    };
    let sequences: Vec<(Holding, Vec<u32>)> = lengths
        .iter()
        .map(|len| (held(*len), vec![0; *len]))
        .collect();
    let mut chunks = sequences
        .iter()
        .map(|(held, tokens)| held.chunk(tokens, logits));
    let num_rows = runner.step(&mut chunks);
    // More rows are read in several parts.
    let rows_max = LOGITS_BYTES / (4 * runner.model().config.vocab_size);
    let rows: Vec<usize> = (0..num_rows.min(rows_max.max(1))).collect();
    runner.logits(&rows, &mut Vec::new());
    let k = TOP_MAX.min(runner.model().config.vocab_size);
    runner.top_logits(&rows, k, &mut Vec::new());
}

/// Facts about an adapter as plain values.
pub(super) fn facts(adapter: &Adapter) -> AdapterFacts {
    AdapterFacts {
        name: adapter.name().to_owned(),
        driver: adapter.driver(),
        interface: adapter.interface(),
        kind: adapter.kind(),
        is_software: adapter.is_software(),
        binding_bytes_max: adapter.binding_bytes_max(),
        missing: adapter.missing(),
    }
}
