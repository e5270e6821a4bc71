//! Tests of models in all their forms: against known logits, against each other, and errors for
//! invalid models.

mod checkpoint;
mod convert;
mod determinism;
mod directories;
mod forms;
mod golden;
mod graphs;
mod group_convert;
mod groups;
mod hybrid_directory;
mod kept;
mod left_out;
mod rotation;
mod sparsity;
mod transformers;

use std::path::{Path, PathBuf};

use bitnet_kernels::Cpu;
use bitnet_models::{
    CacheShape, Chunk, FfnActivity, KvCache, KvType, LanguageModel, LogitRows, Workspace,
};

/// The folder of a golden model: in `shared/` beside this repository, where it has all forms, or in
/// the repository.
fn golden(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [
        root.join("../shared/golden").join(name),
        root.join("tests/data/golden").join(name),
    ];
    let found = places
        .into_iter()
        .find(|path| path.join("logits.npy").exists());
    if found.is_none() {
        eprintln!("skipped: no golden model {name} here");
    }
    found
}

/// The f32 values of a version 1 `.npy` file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a readable npy file");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// The list of integers behind a key of `tokens.json`.
fn read_tokens(folder: &Path, key: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(folder.join("tokens.json")).expect("tokens.json");
    let start = text.find(&format!("\"{key}\": [")).expect("the key") + key.len() + 5;
    text[start..]
        .split(']')
        .next()
        .expect("a list")
        .split(',')
        .map(|n| n.trim().parse().expect("an id"))
        .collect()
}

/// Logits of all tokens, run in chunks of the given length.
fn logits(
    model: &LanguageModel<Cpu>,
    cpu: &Cpu,
    tokens: &[u32],
    kv_type: KvType,
    chunk: usize,
) -> Vec<f32> {
    run(model, cpu, tokens, kv_type, chunk, &mut Workspace::new())
}

/// The counts of the feed-forward networks with these tokens.
fn activity(
    model: &LanguageModel<Cpu>,
    cpu: &Cpu,
    tokens: &[u32],
    chunk: usize,
) -> Vec<FfnActivity> {
    let mut workspace = Workspace::new();
    run(model, cpu, tokens, KvType::F16, chunk, &mut workspace);
    workspace.ffn_activity().to_vec()
}

fn run(
    model: &LanguageModel<Cpu>,
    cpu: &Cpu,
    tokens: &[u32],
    kv_type: KvType,
    chunk: usize,
    workspace: &mut Workspace<Cpu>,
) -> Vec<f32> {
    let config = model.config();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(KvCache::BLOCK) as u32)
        .rev()
        .collect();
    let shape = CacheShape {
        attention: config.attention,
        num_layers: config.num_attention_layers(),
        kv_type,
        num_blocks: blocks.len(),
        state_len: config.state_len(),
        num_states: 1,
    };
    let mut cache = KvCache::with_shape(&shape).expect("memory");
    let mut all = Vec::new();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let chunk = Chunk {
            tokens: part,
            position: index * chunk,
            blocks: &blocks,
            state: 0,
            logits: LogitRows::All,
        };
        all.extend_from_slice(model.forward(cpu, workspace, &mut cache, &[chunk]));
    }
    all
}

/// Logits of a model for some tokens, one chunk, on two threads.
fn some_logits(model: &LanguageModel<Cpu>, cpu: &Cpu) -> Vec<f32> {
    let tokens: Vec<u32> = (0..12)
        .map(|i| i * 37 % model.config().vocab_size as u32)
        .collect();
    logits(model, cpu, &tokens, KvType::F32, tokens.len())
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
        "{name}: the first logit that differs; {} of them",
        a.len()
    );
}
