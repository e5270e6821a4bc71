//! Models with known logits: ours equal them, and equal themselves whatever the threads, kernels and chunks.

use std::path::Path;
use std::sync::Arc;

use bitnet_kernels::{Cpu, KernelSet, Packing};
use bitnet_models::gguf::Gguf;
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Chunk, KvCache, KvType, LanguageModel, LoadOptions, LogitRows, Workspace};

use crate::{golden, logits, read_npy, read_tokens};

fn load(folder: &Path, cpu: &Cpu) -> LanguageModel {
    load_packed(folder, cpu, None)
}

fn load_packed(folder: &Path, cpu: &Cpu, packing: Option<Packing>) -> LanguageModel {
    let gguf = Arc::new(Gguf::open(&folder.join("model-i2_s.gguf")).expect("a golden file opens"));
    let options = LoadOptions { packing, ..LoadOptions::default() };
    LanguageModel::from_gguf(&gguf, &options, cpu).expect("a golden file loads")
}

/// The model in all its forms that are here: each with the file of its logits.
fn load_all_forms(folder: &Path, cpu: &Cpu) -> Vec<(&'static str, LanguageModel, &'static str)> {
    let mut models = vec![("gguf", load(folder, cpu), "logits.npy")];
    for (form, logits) in [("hf-packed", "logits.npy"), ("hf-bf16", "logits-online.npy")] {
        if folder.join(form).exists() {
            let checkpoint = Checkpoint::open(&folder.join(form)).expect("a golden checkpoint opens");
            let model = LanguageModel::from_checkpoint(&checkpoint, &LoadOptions::default(), cpu)
                .expect("a golden checkpoint loads");
            models.push((form, model, logits));
        }
    }
    models
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    u32::try_from(best).expect("a small vocabulary")
}

#[test]
fn strict_models_are_within_1e_5_at_every_position_in_every_form() {
    for name in ["strict-b158", "strict-1bitllm", "strict-llama"] {
        let Some(folder) = golden(name) else { continue };
        let cpu = Cpu::new(KernelSet::detect(), 2);
        let tokens = read_tokens(&folder, "tokens");
        for (form, model, expected) in load_all_forms(&folder, &cpu) {
            let found = logits(&model, &cpu, &tokens, KvType::F32, 64);
            let expected = read_npy(&folder.join(expected));
            assert_eq!(found.len(), expected.len(), "{name} {form}");
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            eprintln!("{name} {form}: largest difference {worst:e}");
            assert!(worst <= 1e-5, "{name} {form}: {worst:e}");
        }
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
fn tiny_models_stay_close_after_rounding_flips_in_every_form() {
    for name in ["tiny-b158", "tiny-llama"] {
        let Some(folder) = golden(name) else { continue };
        let cpu = Cpu::new(KernelSet::detect(), 2);
        let tokens = read_tokens(&folder, "tokens");
        for (form, model, expected) in load_all_forms(&folder, &cpu) {
            let found = logits(&model, &cpu, &tokens, KvType::F32, 64);
            let expected = read_npy(&folder.join(expected));
            assert_close(&format!("{name} {form}"), &found, &expected, model.config().vocab_size);
        }
    }
}

/// As close as the reference is to itself in another order of its sums.
fn assert_close(name: &str, found: &[f32], expected: &[f32], vocab: usize) {
    let mut same = 0;
    for (position, (a, b)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine >= 0.99, "{name} position {position}: cosine {cosine}");
        same += usize::from(argmax(a) == argmax(b));
    }
    let positions = found.len() / vocab;
    let mean = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / found.len() as f64;
    eprintln!("{name}: mean difference {mean:e}, same argmax at {same} of {positions}");
    assert!(mean <= 0.1, "{name}: mean difference {mean}");
    assert!(same * 100 >= 85 * positions, "{name}: same argmax at {same} of {positions}");
}

#[test]
fn logits_do_not_depend_on_threads_kernels_chunks_or_packing() {
    for name in ["strict-b158", "strict-1bitllm", "tiny-b158", "tiny-llama"] {
        let Some(folder) = golden(name) else { continue };
        let tokens = read_tokens(&folder, "tokens");
        let reference = Cpu::new(KernelSet::by_name("scalar").expect("always there"), 1);
        let [model, packed] = Packing::ALL.map(|packing| load_packed(&folder, &reference, Some(packing)));
        assert!(packed.num_ternary_bytes() < model.num_ternary_bytes());
        for kv_type in [KvType::F16, KvType::F32] {
            let expected = logits(&model, &reference, &tokens, kv_type, tokens.len());
            for set in KernelSet::available() {
                for (threads, chunk) in [(1, 1), (2, 5), (3, 64), (2, 1)] {
                    for model in [&model, &packed] {
                        let found = logits(model, &Cpu::new(set, threads), &tokens, kv_type, chunk);
                        let equal = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        let how = format!("{} on {threads} threads in chunks of {chunk}", set.name);
                        assert!(equal, "{name} {kv_type:?}: {how}, {} bits", model.packing().name());
                    }
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
