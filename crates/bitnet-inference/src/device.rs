//! [`Device`]: where a model runs. The one place between programs and backends: everything above
//! it names a device, everything below it a backend.

use std::sync::Arc;
use std::time::Duration;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet, ReadProbe, default_threads};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Keeper, LanguageModel, LoadOptions};

use crate::error::Result;
use crate::runner::{Model, SharedModel};

/// The device, kernels and threads that run a model.
#[derive(Clone, Copy)]
pub struct Device {
    kernels: &'static KernelSet,
    threads: usize,
}

impl Default for Device {
    fn default() -> Self {
        Self::cpu(default_threads())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}, {} threads)",
            self.backend(),
            self.kernels.name,
            self.threads
        )
    }
}

impl Device {
    /// The CPU with its best kernels on `threads` threads, including the caller's.
    #[must_use]
    pub fn cpu(threads: usize) -> Self {
        Self::with_kernels(KernelSet::detect(), threads)
    }

    /// The CPU with the given kernels on `threads` threads, including the caller's.
    #[must_use]
    pub fn with_kernels(kernels: &'static KernelSet, threads: usize) -> Self {
        Self { kernels, threads }
    }

    /// The backend's name in receipts.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        "cpu"
    }

    /// The kernels in use.
    #[must_use]
    pub fn kernels(&self) -> &'static KernelSet {
        self.kernels
    }

    /// The threads in use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Starts threads that measure the device's peak rates.
    #[must_use]
    pub fn probe(&self) -> DeviceProbe {
        DeviceProbe(self.start())
    }

    pub(crate) fn load_gguf(
        self,
        gguf: &Arc<Gguf>,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Arc<dyn Model>> {
        let model = LanguageModel::from_gguf_with(gguf, options, &self.start(), keeper)?;
        Ok(self.share(model))
    }

    pub(crate) fn load_checkpoint(
        self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Arc<dyn Model>> {
        let cpu = self.start();
        let model = LanguageModel::from_checkpoint_with(checkpoint, options, &cpu, keeper)?;
        Ok(self.share(model))
    }

    fn share(self, model: LanguageModel<Cpu>) -> Arc<dyn Model> {
        Arc::new(SharedModel::new(model, |device| device.start()))
    }

    pub(crate) fn start(self) -> Cpu {
        Cpu::new(self.kernels, self.threads)
    }
}

/// Measures a device's peak rates, from which benchmarks compute floors.
pub struct DeviceProbe(Cpu);

impl DeviceProbe {
    /// The peak rate of int8 products per second; `None` if the kernels have no such loop.
    #[must_use]
    pub fn peak_i8_macs_per_s(&self) -> Option<f64> {
        self.0.peak_i8_macs_per_s()
    }

    /// The median time to run an empty job on all threads.
    #[must_use]
    pub fn join_latency(&self) -> Duration {
        self.0.join_latency()
    }

    /// The rate, in bytes per second, at which all threads together read the buffer of `probe`
    /// once.
    #[must_use]
    pub fn read_bytes_per_s(&self, probe: &ReadProbe) -> f64 {
        probe.bytes_per_s(self.0.pool())
    }
}
