//! [`Adapter`]: the GPUs of this machine, and how a name chooses one.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// A GPU, or a driver that computes on the CPU.
pub struct Adapter {
    pub(crate) raw: wgpu::Adapter,
    info: wgpu::AdapterInfo,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name())
    }
}

impl Adapter {
    /// The name that the driver gives it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The driver's name and version.
    #[must_use]
    pub fn driver(&self) -> String {
        let parts = [self.info.driver.trim(), self.info.driver_info.trim()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" ")
    }

    /// The interface to the driver: `vulkan`, `metal` or `dx12`.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        self.info.backend.to_str()
    }

    /// Its kind in words.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "unknown kind",
        }
    }

    /// Whether it computes on the CPU. Such an adapter is for tests: our own CPU kernels are
    /// faster.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// The most bytes that one binding of a kernel can reach: larger matrices and tables are split
    /// at rows.
    #[must_use]
    pub fn binding_bytes_max(&self) -> u64 {
        let limits = self.raw.limits();
        limits
            .max_storage_buffer_binding_size
            .min(limits.max_buffer_size)
    }

    /// The most lanes of a subgroup.
    pub(crate) fn subgroup_lanes_max(&self) -> usize {
        self.info.subgroup_max_size as usize
    }

    /// The first feature or limit that every kernel needs and this adapter lacks, with the numbers.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let limits = self.raw.limits();
        let least = [
            (
                "bytes of immediate data",
                limits.max_immediate_size,
                IMMEDIATE_BYTES,
            ),
            (
                "storage buffers of a kernel",
                limits.max_storage_buffers_per_shader_stage,
                8,
            ),
            (
                "threads of a workgroup",
                limits.max_compute_invocations_per_workgroup,
                256,
            ),
            (
                "bytes of workgroup memory",
                limits.max_compute_workgroup_storage_size,
                16 << 10,
            ),
        ];
        if !self.raw.features().contains(FEATURES) {
            return Some("immediate data".into());
        }
        let short = least.into_iter().find(|(_, has, needs)| has < needs);
        short.map(|(what, has, needs)| format!("{needs} {what}, only {has}"))
    }
}

/// The features that every kernel needs.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::IMMEDIATES;
/// Bytes of the parameters of a kernel.
pub(crate) const IMMEDIATE_BYTES: u32 = 64;

/// All adapters of this machine, discrete GPUs first, software last. Looked up once.
pub fn adapters() -> &'static [Adapter] {
    static ADAPTERS: OnceLock<Vec<Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(find)
}

fn find() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    // A driver that runs out of memory may hang; refusing earlier gives an error.
    descriptor.memory_budget_thresholds.for_resource_creation = Some(95);
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<Adapter> = found
        .into_iter()
        .map(|raw| Adapter {
            info: raw.get_info(),
            raw,
        })
        .collect();
    let rank = |adapter: &Adapter| match adapter.info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    adapters.sort_by_key(rank);
    adapters
}

/// The best GPU that can run every kernel. Software adapters are never chosen.
///
/// # Errors
/// If there is none.
pub fn best_gpu() -> Result<&'static Adapter> {
    let gpus = adapters().iter().filter(|adapter| !adapter.is_software());
    let mut able = gpus.filter(|adapter| adapter.missing().is_none());
    able.next().ok_or_else(|| Error::NoAdapter {
        wanted: "with Vulkan, Metal or DirectX 12".into(),
        found: found_words(),
    })
}

/// The first adapter whose name contains `name`, in any case, software adapters included.
///
/// # Errors
/// If there is none, or it cannot run the kernels.
pub fn adapter_by_name(name: &str) -> Result<&'static Adapter> {
    let wanted = name.to_lowercase();
    let mut named = adapters()
        .iter()
        .filter(|adapter| adapter.name().to_lowercase().contains(&wanted));
    let adapter = named.next().ok_or_else(|| Error::NoAdapter {
        wanted: format!("whose name contains {name:?}"),
        found: found_words(),
    })?;
    match adapter.missing() {
        None => Ok(adapter),
        Some(missing) => Err(Error::Adapter {
            adapter: adapter.name().into(),
            missing,
        }),
    }
}

/// The adapters of this machine, for errors.
fn found_words() -> String {
    if adapters().is_empty() {
        return "no adapter was found: Vulkan needs its loader (libvulkan1) and a driver".into();
    }
    let words = |adapter: &Adapter| match adapter.missing() {
        None => format!("{} ({})", adapter.name(), adapter.kind()),
        Some(missing) => format!("{} ({}, lacks {missing})", adapter.name(), adapter.kind()),
    };
    let names: Vec<String> = adapters().iter().map(words).collect();
    format!("adapters here: {}", names.join(", "))
}
