//! [`Device`]: where a model runs. The one place between programs and backends: everything above
//! it names a device, everything below it a backend.

#[cfg(feature = "gpu")]
mod gpu;

use std::sync::Arc;
use std::time::Duration;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet, ReadProbe, default_threads};
#[cfg(feature = "gpu")]
use bitnet_models::Config;
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Keeper, LanguageModel, LoadOptions};

use crate::error::{Error, Result};
use crate::options::EngineOptions;
use crate::runner::{Model, Opened, SharedModel};

/// The device, kernels and threads that run a model.
#[derive(Clone, Copy)]
pub struct Device {
    kernels: &'static KernelSet,
    threads: usize,
    #[cfg(feature = "gpu")]
    gpu: Option<gpu::Choice>,
}

/// A GPU of this machine, or a driver that computes on the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    /// The name that the driver gives it.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// The interface to the driver: `vulkan`, `metal` or `dx12`.
    pub interface: &'static str,
    /// Its kind in words.
    pub kind: &'static str,
    /// Whether it computes on the CPU; the device `auto` and `gpu` never mean such an adapter.
    pub is_software: bool,
    /// The most bytes of one binding of a kernel.
    pub binding_bytes_max: u64,
    /// The features and limits that the kernels need and it does not have.
    pub missing: Option<String>,
}

/// The device that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    Gpu,
    /// The first adapter whose name contains this text, in any case.
    Named(String),
}

impl DeviceName {
    /// The device of `auto`, `cpu`, `gpu` or a part of an adapter's name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            name => Self::Named(name.to_owned()),
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::cpu(default_threads())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kernels = self.kernel_names();
        write!(
            f,
            "{} ({kernels}, {} threads)",
            self.backend(),
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
        Self {
            kernels,
            threads,
            #[cfg(feature = "gpu")]
            gpu: None,
        }
    }

    /// The same device with another number of threads of the host.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The device of this name, with the threads of `self` on the host. `memory_max`: the most bytes
    /// of a GPU's memory that may be used; `None` for as much as its driver gives.
    ///
    /// Also returns why [`DeviceName::Auto`] means the CPU, if it does.
    ///
    /// # Errors
    /// If there is no such device; the error says what was looked for and what was found.
    pub fn named(
        self,
        name: &DeviceName,
        memory_max: Option<u64>,
    ) -> Result<(Self, Option<String>)> {
        match name {
            DeviceName::Cpu => Ok((self, None)),
            DeviceName::Auto => match self.on_gpu(None, memory_max) {
                Ok(device) => Ok((device, None)),
                Err(error) => Ok((self, Some(error.to_string()))),
            },
            DeviceName::Gpu => Ok((self.on_gpu(None, memory_max)?, None)),
            DeviceName::Named(name) => Ok((self.on_gpu(Some(name), memory_max)?, None)),
        }
    }

    /// The GPU of that name, or the best one.
    #[cfg(feature = "gpu")]
    fn on_gpu(self, name: Option<&str>, memory_max: Option<u64>) -> Result<Self> {
        let gpu = gpu::Choice::new(name, memory_max).map_err(Error::Gpu)?;
        Ok(Self {
            gpu: Some(gpu),
            ..self
        })
    }

    /// There is none without the feature.
    #[cfg(not(feature = "gpu"))]
    fn on_gpu(self, _: Option<&str>, _: Option<u64>) -> Result<Self> {
        Err(Error::NoGpuSupport)
    }

    /// The same device, whose loads check before anything is allocated on a GPU that an engine with
    /// these options fits, too.
    #[must_use]
    pub fn for_engine(self, options: EngineOptions) -> Self {
        #[cfg(feature = "gpu")]
        return Self {
            gpu: self.gpu.map(|choice| choice.for_engine(options)),
            ..self
        };
        #[cfg(not(feature = "gpu"))]
        {
            let _ = options;
            self
        }
    }

    /// The backend's name in receipts.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        if self.is_cpu() { "cpu" } else { "gpu" }
    }

    /// Whether the CPU's kernels run the model.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.adapter().is_none()
    }

    /// The adapter that runs the model; `None` for the CPU.
    #[must_use]
    pub fn adapter(&self) -> Option<AdapterFacts> {
        #[cfg(feature = "gpu")]
        return self.gpu.as_ref().map(gpu::Choice::facts);
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// The CPU's kernels in use. On a GPU they run nothing of a model.
    #[must_use]
    pub fn kernels(&self) -> &'static KernelSet {
        self.kernels
    }

    /// The name of the kernels that run the model: a set of the CPU's, or `wgsl`.
    #[must_use]
    pub fn kernel_names(&self) -> &'static str {
        if self.is_cpu() {
            self.kernels.name
        } else {
            "wgsl"
        }
    }

    /// The threads in use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Starts threads that measure the device's peak rates.
    ///
    /// # Errors
    /// If a GPU cannot be opened, or has no memory for the measurement.
    pub fn probe(&self) -> Result<DeviceProbe> {
        #[cfg(feature = "gpu")]
        if let Some(choice) = &self.gpu {
            return Ok(DeviceProbe(Probed::Gpu(Box::new(choice.probe()?))));
        }
        Ok(DeviceProbe(Probed::Cpu(Box::new(self.start()))))
    }

    pub(crate) fn load_gguf(
        self,
        gguf: &Arc<Gguf>,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Arc<dyn Model>> {
        #[cfg(feature = "gpu")]
        if let Some(choice) = &self.gpu {
            let config = Config::from_gguf(gguf)?;
            return choice.load(self, &config, options, &|gpu, options| {
                LanguageModel::from_gguf(gguf, options, gpu)
            });
        }
        let model = LanguageModel::from_gguf_with(gguf, options, &self.start(), keeper)?;
        Ok(self.share(model))
    }

    pub(crate) fn load_checkpoint(
        self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Arc<dyn Model>> {
        #[cfg(feature = "gpu")]
        if let Some(choice) = &self.gpu {
            return choice.load(self, checkpoint.config(), options, &|gpu, options| {
                LanguageModel::from_checkpoint(checkpoint, options, gpu)
            });
        }
        let cpu = self.start();
        let model = LanguageModel::from_checkpoint_with(checkpoint, options, &cpu, keeper)?;
        Ok(self.share(model))
    }

    fn share(self, model: LanguageModel<Cpu>) -> Arc<dyn Model> {
        Arc::new(SharedModel::new(model, Threads))
    }

    /// The CPU's kernels on the threads of this device.
    pub(crate) fn start(self) -> Cpu {
        Cpu::new(self.kernels, self.threads)
    }
}

/// The CPU as an open device: its threads start with each backend.
struct Threads;

impl Opened<Cpu> for Threads {
    fn start(&self, device: Device) -> Cpu {
        device.start()
    }
}

/// Whether this program can use GPUs: the feature `gpu`.
pub const GPU_SUPPORT: bool = cfg!(feature = "gpu");

/// The GPUs of this machine, discrete ones first, software last; none without the feature `gpu`.
#[must_use]
pub fn adapters() -> Vec<AdapterFacts> {
    #[cfg(feature = "gpu")]
    return bitnet_wgpu::adapters().iter().map(gpu::facts).collect();
    #[cfg(not(feature = "gpu"))]
    Vec::new()
}

/// Measures a device's peak rates, from which benchmarks compute floors.
pub struct DeviceProbe(Probed);

enum Probed {
    Cpu(Box<Cpu>),
    #[cfg(feature = "gpu")]
    Gpu(Box<bitnet_wgpu::Probe>),
}

impl DeviceProbe {
    /// The peak rate of int8 products per second; `None` if the kernels have no such loop.
    #[must_use]
    pub fn peak_i8_macs_per_s(&self) -> Option<f64> {
        match &self.0 {
            Probed::Cpu(cpu) => cpu.peak_i8_macs_per_s(),
            #[cfg(feature = "gpu")]
            Probed::Gpu(probe) => Some(probe.peak_i8_macs_per_s()),
        }
    }

    /// The median time to run an empty job on all threads, or an empty submission on a GPU.
    #[must_use]
    pub fn join_latency(&self) -> Duration {
        match &self.0 {
            Probed::Cpu(cpu) => cpu.join_latency(),
            #[cfg(feature = "gpu")]
            Probed::Gpu(probe) => probe.submission_latency(),
        }
    }

    /// The rate, in bytes per second, at which all threads together read the buffer of `probe`
    /// once; a GPU reads a buffer of its own.
    #[must_use]
    pub fn read_bytes_per_s(&self, probe: &ReadProbe) -> f64 {
        match &self.0 {
            Probed::Cpu(cpu) => probe.bytes_per_s(cpu.pool()),
            #[cfg(feature = "gpu")]
            Probed::Gpu(gpu) => gpu.read_bytes_per_s(),
        }
    }
}
