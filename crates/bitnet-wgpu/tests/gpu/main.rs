//! Tests on a device: Mesa's software driver or any other adapter of this machine. Each test says
//! that it skips if there is none.

mod batches;
mod features;
mod golden;
mod limits;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{
    Backend, CacheShape, Chunk, KvCache, KvType, LanguageModel, LoadOptions, LogitRows, Workspace,
};
use bitnet_wgpu::{Adapter, DeviceLimits, Gpu, OpenGpu, adapters};

/// The adapter of the tests: software, because every machine of CI can have it, or else any other.
fn adapter() -> Option<&'static Adapter> {
    let able = || {
        adapters()
            .iter()
            .filter(|adapter| adapter.missing().is_none())
    };
    let software = able().find(|adapter| adapter.is_software());
    let found = software.or_else(|| able().next());
    if found.is_none() {
        eprintln!(
            "skipped: no adapter here that can run the kernels (Debian: mesa-vulkan-drivers)"
        );
    }
    found
}

/// A backend on the device of the tests, which they share: kernels are compiled once.
fn gpu() -> Option<Gpu> {
    static OPEN: OnceLock<OpenGpu> = OnceLock::new();
    let adapter = adapter()?;
    let open = OPEN.get_or_init(|| {
        OpenGpu::new(adapter, DeviceLimits::default()).expect("an able adapter opens")
    });
    Some(open.start(2))
}

/// The same, if its driver promises the CPU's bits, as Mesa's software driver does.
fn exact_gpu() -> Option<Gpu> {
    let gpu = gpu()?;
    let is_exact = gpu.adapter().is_software();
    if !is_exact {
        eprintln!(
            "skipped: {:?} may round otherwise than the CPU",
            gpu.adapter()
        );
    }
    is_exact.then_some(gpu)
}

fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 2)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folders of golden models with this file: all of `shared/` beside this repository, or the ones
/// in the repository.
fn golden_folders(kind: &str, file: &str) -> Vec<PathBuf> {
    let places = [
        root().join("../shared").join(kind),
        root().join("tests/data").join(kind),
    ];
    let folder = places.into_iter().find(|folder| folder.exists());
    let folder = folder.expect("the repository has golden models");
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join(file).exists())
        .collect();
    found.sort();
    found
}

fn load<B: Backend>(path: &Path, backend: &B) -> LanguageModel<B> {
    let gguf = Arc::new(Gguf::open(path).expect("a golden file opens"));
    LanguageModel::from_gguf(&gguf, &LoadOptions::default(), backend).expect("a golden file loads")
}

/// Logits of all tokens, in chunks of this length.
fn logits<B: Backend>(
    model: &LanguageModel<B>,
    backend: &B,
    tokens: &[u32],
    kv_type: KvType,
    chunk: usize,
) -> Vec<f32> {
    let config = model.config();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(KvCache::BLOCK) as u32)
        .rev()
        .collect();
    let mut cache = cache(model, backend, kv_type, blocks.len());
    let (mut workspace, mut all) = (Workspace::new(), Vec::new());
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let chunk = Chunk {
            tokens: part,
            position: index * chunk,
            blocks: &blocks,
            state: 0,
            logits: LogitRows::All,
        };
        all.extend_from_slice(model.forward(backend, &mut workspace, &mut cache, &[chunk]));
    }
    assert_eq!(all.len(), tokens.len() * config.vocab_size);
    all
}

fn cache<B: Backend>(
    model: &LanguageModel<B>,
    backend: &B,
    kv_type: KvType,
    num_blocks: usize,
) -> B::Cache {
    let config = model.config();
    let shape = CacheShape {
        attention: config.attention,
        num_layers: config.num_attention_layers(),
        kv_type,
        num_blocks,
        state_len: config.state_len(),
        num_states: 4,
    };
    backend.cache(&shape).expect("memory")
}

/// The hidden states of all tokens, run at once.
fn hidden_states<B: Backend>(model: &LanguageModel<B>, backend: &B, tokens: &[u32]) -> Vec<f32> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(KvCache::BLOCK) as u32).collect();
    let mut cache = cache(model, backend, KvType::F16, blocks.len());
    let (mut workspace, mut all) = (Workspace::new(), Vec::new());
    let chunk = Chunk {
        tokens,
        position: 0,
        blocks: &blocks,
        state: 0,
        logits: LogitRows::All,
    };
    model.hidden_states(backend, &mut workspace, &mut cache, std::iter::once(chunk));
    for row in 0..tokens.len() {
        let mut state = Vec::new();
        model.hidden(backend, &workspace, row, &mut state);
        all.extend(state);
    }
    all
}

/// The most probable next tokens: the prompt in one pass, then a pass for each token.
fn greedy<B: Backend>(
    model: &LanguageModel<B>,
    backend: &B,
    prompt: &[u32],
    count: usize,
) -> Vec<u32> {
    let len = prompt.len() + count;
    let blocks: Vec<u32> = (0..len.div_ceil(KvCache::BLOCK) as u32).collect();
    let mut cache = cache(model, backend, KvType::F32, blocks.len());
    let (mut workspace, mut tokens) = (Workspace::new(), prompt.to_vec());
    let mut position = 0;
    for _ in 0..count {
        let chunk = Chunk {
            tokens: &tokens[position..],
            position,
            blocks: &blocks,
            state: 0,
            logits: LogitRows::Last,
        };
        let next = argmax(model.forward(backend, &mut workspace, &mut cache, &[chunk]));
        position = tokens.len();
        tokens.push(next);
    }
    tokens.split_off(prompt.len())
}

/// The f32 values of a version 1 `.npy` file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a readable npy file");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let numbers = bytes[10 + header..].as_chunks::<4>().0.iter();
    numbers.map(|b| f32::from_le_bytes(*b)).collect()
}

/// The list of integers after a word of a JSON file.
fn integers(path: &Path, after: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(path).expect("a readable file");
    let rest = text.split_once(&format!("\"{after}\"")).expect("the key").1;
    let list = rest
        .split_once('[')
        .expect("a list")
        .1
        .split_once(']')
        .expect("its end")
        .0;
    list.split(',')
        .map(|id| id.trim().parse().expect("an id"))
        .collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn assert_same_bits(name: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{name}");
    let differs = a
        .iter()
        .zip(b)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(
        differs,
        None,
        "{name}: the first logit that differs, of {}",
        a.len()
    );
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}
