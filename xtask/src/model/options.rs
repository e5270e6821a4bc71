//! Options for commands that run a model.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_inference::{Device, Engine, EngineOptions, Loaded, load};
use bitnet_kernels::{KernelSet, default_threads};
use bitnet_models::{KvType, LoadOptions};

use crate::repository;

/// The file of the built-in model in the repository.
const BUILT_IN: &str = "models/stories/stories.gguf";

/// The model and how to run it.
#[derive(clap::Args)]
pub struct ModelOptions {
    /// A GGUF file or Hugging Face directory (default: the built-in model's file)
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
    /// Element type of the key/value cache: f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv_type)]
    kv_type: KvType,
    /// Maximum number of tokens per forward pass
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    prefill_chunk: u16,
}

/// The CPU and its threads.
#[derive(clap::Args)]
pub struct DeviceOptions {
    /// Threads (default: the number of physical cores this process may use)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Instruction set (default: the best this CPU has)
    #[arg(long, value_name = "NAME", value_parser = parse_kernels)]
    pub kernels: Option<&'static KernelSet>,
}

impl DeviceOptions {
    pub fn device(&self) -> Device {
        let threads = self.threads.map_or_else(default_threads, usize::from);
        Device::with_kernels(self.kernels.unwrap_or_else(KernelSet::detect), threads)
    }
}

impl ModelOptions {
    /// The model's path.
    pub fn path(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(built_in)
    }

    /// The path for a receipt: as typed, or the built-in model's file relative to the repository.
    pub fn stated_path(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(BUILT_IN))
    }

    /// The instruction set given by name.
    pub fn kernels(&self) -> Option<&'static KernelSet> {
        self.device.kernels
    }

    /// Loads the model, with room for `context` positions.
    pub fn open(&self, context: usize) -> anyhow::Result<Engine> {
        let options = EngineOptions {
            context,
            cache: context,
            kv_type: self.kv_type,
            prefill_chunk: usize::from(self.prefill_chunk),
            ..EngineOptions::default()
        };
        open(
            &self.path(),
            &LoadOptions::default(),
            self.device.device(),
            options,
        )
    }
}

/// The file of the model that is built into the program.
pub fn built_in() -> PathBuf {
    repository().join(BUILT_IN)
}

/// Loads a model without its tokenizer.
pub fn open(
    path: &Path,
    load_options: &LoadOptions,
    device: Device,
    options: EngineOptions,
) -> anyhow::Result<Engine> {
    let loaded = load(path, load_options, device)
        .with_context(|| format!("cannot load {}", path.display()))?;
    let Loaded { model, .. } = loaded;
    Ok(Engine::new(model, None, device, options)?)
}

pub fn parse_kv_type(name: &str) -> Result<KvType, String> {
    [KvType::F16, KvType::F32]
        .into_iter()
        .find(|kv_type| kv_type.name() == name)
        .ok_or("expected f16 or f32".into())
}

fn parse_kernels(name: &str) -> Result<&'static KernelSet, String> {
    KernelSet::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = KernelSet::available().map(|set| set.name).collect();
        format!(
            "unknown, or not on this CPU, which has {}",
            names.join(", ")
        )
    })
}
