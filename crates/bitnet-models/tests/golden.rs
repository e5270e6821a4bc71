//! Models with known logits: ours equal them, and equal themselves whatever the threads, kernels and chunks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::gguf::Gguf;
use bitnet_models::{Chunk, KvCache, KvType, LanguageModel, LoadOptions, LogitRows, Workspace};

/// The folder of a golden model: in this repository, or in `shared/` beside it.
fn golden(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [root.join("tests/data/golden").join(name), root.join("../shared/golden").join(name)];
    let found = places.into_iter().find(|path| path.join("logits.npy").exists());
    if found.is_none() {
        eprintln!("skipped: no golden model {name} here");
    }
    found
}

/// The f32 values of a version 1 `.npy` file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a readable npy file");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The list of integers behind a key of `tokens.json`.
fn read_tokens(folder: &Path, key: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(folder.join("tokens.json")).expect("tokens.json");
    let start = text.find(&format!("\"{key}\": [")).expect("the key") + key.len() + 5;
    text[start..].split(']').next().expect("a list").split(',').map(|n| n.trim().parse().expect("an id")).collect()
}

fn load(folder: &Path, cpu: &Cpu) -> LanguageModel {
    let gguf = Arc::new(Gguf::open(&folder.join("model-i2_s.gguf")).expect("a golden file opens"));
    LanguageModel::from_gguf(&gguf, LoadOptions::default(), cpu.pool()).expect("a golden file loads")
}

/// Logits of all tokens, run in chunks of the given length.
fn logits(model: &LanguageModel, cpu: &Cpu, tokens: &[u32], kv_type: KvType, chunk: usize) -> Vec<f32> {
    let config = model.config();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(KvCache::BLOCK) as u32).rev().collect();
    let mut cache = KvCache::new(config.attention, config.num_layers, kv_type, blocks.len()).expect("memory");
    let mut workspace = Workspace::new();
    let mut all = Vec::new();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let chunk = Chunk { tokens: part, position: index * chunk, blocks: &blocks, logits: LogitRows::All };
        all.extend_from_slice(model.forward(cpu, &mut workspace, &mut cache, &[chunk]));
    }
    all
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    u32::try_from(best).expect("a small vocabulary")
}

#[test]
fn strict_models_are_within_1e_5_at_every_position() {
    for name in ["strict-b158", "strict-1bitllm", "strict-llama"] {
        let Some(folder) = golden(name) else { continue };
        let cpu = Cpu::new(KernelSet::detect(), 2);
        let model = load(&folder, &cpu);
        let tokens = read_tokens(&folder, "tokens");
        let found = logits(&model, &cpu, &tokens, KvType::F32, 64);
        let expected = read_npy(&folder.join("logits.npy"));
        assert_eq!(found.len(), expected.len(), "{name}");
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{name}: largest difference {worst:e}");
        assert!(worst <= 1e-5, "{name}: {worst:e}");
    }
}

#[test]
fn greedy_text_of_strict_models_is_the_references() {
    for name in ["strict-b158", "strict-1bitllm", "strict-llama"] {
        let Some(folder) = golden(name) else { continue };
        let cpu = Cpu::new(KernelSet::detect(), 1);
        let model = load(&folder, &cpu);
        let mut tokens = read_tokens(&folder, "greedy_prompt");
        let expected = read_tokens(&folder, "greedy_continuation");
        let prompt = tokens.len();
        for _ in &expected {
            let all = logits(&model, &cpu, &tokens, KvType::F32, 5);
            tokens.push(argmax(&all[all.len() - model.config().vocab_size..]));
        }
        assert_eq!(tokens[prompt..], expected, "{name}");
    }
}

#[test]
fn tiny_models_stay_close_after_rounding_flips() {
    for name in ["tiny-b158", "tiny-llama"] {
        let Some(folder) = golden(name) else { continue };
        let cpu = Cpu::new(KernelSet::detect(), 2);
        let model = load(&folder, &cpu);
        let tokens = read_tokens(&folder, "tokens");
        let found = logits(&model, &cpu, &tokens, KvType::F32, 64);
        let expected = read_npy(&folder.join("logits.npy"));
        let vocab = model.config().vocab_size;
        let mut same = 0;
        for (position, (a, b)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            assert!(cosine >= 0.99, "{name} position {position}: cosine {cosine}");
            same += usize::from(argmax(a) == argmax(b));
        }
        let mean = found.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / found.len() as f64;
        eprintln!("{name}: mean difference {mean:e}, same argmax at {same} of {}", tokens.len());
        assert!(mean <= 0.1, "{name}: mean difference {mean}");
        assert!(same * 100 >= 85 * tokens.len(), "{name}: same argmax at {same} of {}", tokens.len());
    }
}

#[test]
fn logits_do_not_depend_on_threads_kernels_or_chunks() {
    for name in ["strict-b158", "strict-1bitllm", "tiny-b158", "tiny-llama"] {
        let Some(folder) = golden(name) else { continue };
        let tokens = read_tokens(&folder, "tokens");
        let reference = Cpu::new(KernelSet::by_name("scalar").expect("always there"), 1);
        let model = load(&folder, &reference);
        for kv_type in [KvType::F16, KvType::F32] {
            let expected = logits(&model, &reference, &tokens, kv_type, tokens.len());
            for set in KernelSet::available() {
                for (threads, chunk) in [(1, 1), (2, 5), (3, 64), (2, 1)] {
                    let found = logits(&model, &Cpu::new(set, threads), &tokens, kv_type, chunk);
                    let equal = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "{name} {kv_type:?}: {} on {threads} threads in chunks of {chunk}", set.name);
                }
            }
        }
    }
}

#[test]
fn rows_of_several_sequences_equal_each_alone() {
    let Some(folder) = golden("strict-b158") else { return };
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let model = load(&folder, &cpu);
    let tokens = read_tokens(&folder, "tokens");
    let (a, b) = (&tokens[..9], &tokens[3..16]);
    let config = model.config();
    let mut cache = KvCache::new(config.attention, config.num_layers, KvType::F16, 2).expect("memory");
    let chunk = |tokens, block| Chunk { tokens, position: 0, blocks: block, logits: LogitRows::Last };
    let mut workspace = Workspace::new();
    let both = model.forward(&cpu, &mut workspace, &mut cache, &[chunk(a, &[1]), chunk(b, &[0])]).to_vec();
    let vocab = config.vocab_size;
    for (tokens, found) in [a, b].into_iter().zip(both.chunks(vocab)) {
        let alone = logits(&model, &cpu, tokens, KvType::F16, 4);
        assert_eq!(found, &alone[alone.len() - vocab..]);
    }
}
