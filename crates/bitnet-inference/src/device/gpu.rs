//! The part of a [`Device`](super::Device) that is a GPU.

use std::sync::Arc;

use bitnet_models::{Config, LanguageModel, LoadOptions};
use bitnet_wgpu::{Adapter, DeviceLimits, Gpu, OpenGpu, Probe};

use super::AdapterFacts;
use crate::error::{Error, Result};
use crate::runner::{Model, SharedModel};

/// The adapter that runs models.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    adapter: &'static Adapter,
    limits: DeviceLimits,
}

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
        })
    }

    pub fn facts(&self) -> AdapterFacts {
        facts(self.adapter)
    }

    pub fn probe(&self) -> Result<Probe> {
        let open = OpenGpu::new(self.adapter, self.limits).map_err(Error::Gpu)?;
        Ok(Probe::new(&open)?)
    }

    /// Opens the device and loads a model on it.
    pub fn load(
        &self,
        threads: usize,
        config: &Config,
        options: &LoadOptions,
        load: impl FnOnce(&Gpu) -> bitnet_models::Result<LanguageModel<Gpu>>,
    ) -> Result<Arc<dyn Model>> {
        let open = OpenGpu::new(self.adapter, self.limits).map_err(Error::Gpu)?;
        let gpu = open.start(threads);
        gpu.check_options(options)?;
        gpu.check_config(config)?;
        let model = load(&gpu)?;
        let start = move |device: super::Device| open.start(device.threads());
        Ok(Arc::new(SharedModel::new(model, start)))
    }
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
