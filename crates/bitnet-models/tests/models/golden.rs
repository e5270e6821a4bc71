//! Models with known logits: our logits equal them.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{KvType, LanguageModel, LoadOptions};

use crate::{golden, logits, read_npy, read_tokens};

fn load(folder: &Path, cpu: &Cpu) -> LanguageModel<Cpu> {
    let gguf = Arc::new(Gguf::open(&folder.join("model-i2_s.gguf")).expect("a golden file opens"));
    LanguageModel::from_gguf(&gguf, &LoadOptions::default(), cpu).expect("a golden file loads")
}

/// The model in all forms that exist here, each with the file of its logits.
fn load_all_forms(
    folder: &Path,
    cpu: &Cpu,
) -> Vec<(&'static str, LanguageModel<Cpu>, &'static str)> {
    let mut models = vec![("gguf", load(folder, cpu), "logits.npy")];
    for (form, logits) in [
        ("hf-packed", "logits.npy"),
        ("hf-bf16", "logits-online.npy"),
    ] {
        if folder.join(form).exists() {
            let checkpoint =
                Checkpoint::open(&folder.join(form)).expect("a golden checkpoint opens");
            let model = LanguageModel::from_checkpoint(&checkpoint, &LoadOptions::default(), cpu)
                .expect("a golden checkpoint loads");
            models.push((form, model, logits));
        }
    }
    models
}

fn argmax(row: &[f32]) -> u32 {
    let best = row
        .iter()
        .enumerate()
        .fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
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
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            eprintln!("{name} {form}: largest difference {worst:e}");
            assert!(worst <= 1e-5, "{name} {form}: {worst:e}");
        }
    }
}

#[test]
fn greedy_text_of_strict_models_equals_the_reference() {
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
            assert_close(
                &format!("{name} {form}"),
                &found,
                &expected,
                model.config().vocab_size,
            );
        }
    }
}

/// Checks that logits are as close to the reference as the reference is to itself with another
/// order of sums.
fn assert_close(name: &str, found: &[f32], expected: &[f32], vocab: usize) {
    let mut same = 0;
    for (position, (a, b)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let dot = |x: &[f32], y: &[f32]| {
            x.iter()
                .zip(y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>()
        };
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(
            cosine >= 0.99,
            "{name} position {position}: cosine {cosine}"
        );
        same += usize::from(argmax(a) == argmax(b));
    }
    let positions = found.len() / vocab;
    let mean = found
        .iter()
        .zip(expected)
        .map(|(a, b)| f64::from((a - b).abs()))
        .sum::<f64>()
        / found.len() as f64;
    eprintln!("{name}: mean difference {mean:e}, same argmax at {same} of {positions}");
    assert!(mean <= 0.1, "{name}: mean difference {mean}");
    assert!(
        same * 100 >= 85 * positions,
        "{name}: same argmax at {same} of {positions}"
    );
}
