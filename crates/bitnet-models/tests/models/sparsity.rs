//! Skipping feed-forward weights that add nothing changes no bit, and is counted.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, Kernel, KernelSet};
use bitnet_models::synthetic::{Shape, SyntheticModel};
use bitnet_models::{
    Architecture, FfnActivity, FfnSparsity, I2sForm, KvType, LanguageModel, LoadOptions,
};
use bitnet_quantization::TernaryFormat;

use crate::{assert_same_bits, golden, logits, read_tokens};

fn load(path: &Path, ffn_sparsity: FfnSparsity, cpu: &Cpu) -> LanguageModel<Cpu> {
    let options = LoadOptions {
        ffn_sparsity,
        ..LoadOptions::default()
    };
    LanguageModel::from_gguf(
        &Arc::new(Gguf::open(path).expect("it opens")),
        &options,
        cpu,
    )
    .expect("it loads")
}

/// Checks that a model with copies gives the same logits as without them, on every set and 1, 2 and
/// 3 threads: one token at a time, in chunks, and all at once.
fn assert_equal_with_copies(name: &str, path: &Path, tokens: &[u32]) {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let dense = load(path, FfnSparsity::Off, &cpu);
    assert!(
        dense
            .ffn_layers()
            .all(|layer| layer.up_copy_bytes.or(layer.down_copy_bytes).is_none())
    );
    let expected = logits(&dense, &cpu, tokens, KvType::F16, tokens.len());
    for set in KernelSet::available() {
        for (threads, chunk) in [(1, 1), (2, 1), (3, 1), (2, 5)] {
            let cpu = Cpu::new(set, threads);
            let sparse = load(path, FfnSparsity::On, &cpu);
            assert!(
                sparse
                    .ffn_layers()
                    .all(|layer| layer.down_copy_bytes.is_some())
            );
            let found = logits(&sparse, &cpu, tokens, KvType::F16, chunk);
            assert_same_bits(
                &format!(
                    "{name}: {} on {threads} threads, chunks of {chunk}",
                    set.name
                ),
                &expected,
                &found,
            );
        }
    }
}

#[test]
fn logits_of_golden_models_do_not_depend_on_sparsity() {
    for name in [
        "strict-b158",
        "strict-1bitllm",
        "strict-llama",
        "tiny-b158",
        "tiny-llama",
    ] {
        let Some(folder) = golden(name) else { continue };
        let tokens = read_tokens(&folder, "tokens");
        assert_equal_with_copies(
            name,
            &folder.join("model-i2_s.gguf"),
            &tokens[..tokens.len().min(20)],
        );
    }
}

#[test]
fn logits_of_odd_shapes_do_not_depend_on_sparsity() {
    let folder = tempfile::tempdir().expect("a folder");
    for (hidden_size, ffn_size, architecture) in [
        (128, 160, Architecture::BitnetB158),
        (384, 1056, Architecture::BitnetB158),
        (320, 416, Architecture::Llama),
    ] {
        let path = folder.path().join(format!("{hidden_size}.gguf"));
        let shape = Shape {
            architecture,
            hidden_size,
            ffn_size,
            num_layers: 3,
            ..Shape::default()
        };
        let format = |_, _| TernaryFormat::I2_S(I2sForm::Block128);
        SyntheticModel { shape, seed: 11 }
            .write_gguf(&path, &format)
            .expect("a file");
        let tokens: Vec<u32> = (0..18).map(|i| i * 41 % 512).collect();
        assert_equal_with_copies(&format!("{hidden_size} by {ffn_size}"), &path, &tokens);
    }
}

/// Writes a random model whose layers are large enough for copies.
fn write_large(path: &Path) {
    let shape = Shape {
        hidden_size: 512,
        ffn_size: 10752,
        num_layers: 2,
        ..Shape::default()
    };
    let format = |_, _| TernaryFormat::I2_S(I2sForm::Block128);
    SyntheticModel { shape, seed: 3 }
        .write_gguf(path, &format)
        .expect("a file");
}

#[test]
fn a_trial_chooses_the_layers_that_are_sparse() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_large(&path);
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let (dense, auto) = (
        load(&path, FfnSparsity::Off, &cpu),
        load(&path, FfnSparsity::Auto, &cpu),
    );
    assert_eq!(
        cpu.counters().get(Kernel::I2sGemm),
        Default::default(),
        "a trial leaves no counts"
    );
    // Random weights close half of the gates, and rounding turns some of the remaining values to
    // zero.
    for layer in auto.ffn_layers() {
        assert_eq!(layer.down_copy_bytes, Some(10752 * 512 / 4));
        assert_eq!(layer.num_dead_neurons, 0);
    }
    let tokens: Vec<u32> = (0..12).map(|i| i * 41 % 512).collect();
    let expected = logits(&dense, &cpu, &tokens, KvType::F16, 12);
    let dense_macs = cpu.counters().get(Kernel::I2sGemm).macs;
    for chunk in [1, 7] {
        cpu.counters().reset();
        assert_same_bits(
            "auto",
            &expected,
            &logits(&auto, &cpu, &tokens, KvType::F16, chunk),
        );
        let counts = [Kernel::I2sGemv, Kernel::I2sGemm].map(|kernel| cpu.counters().get(kernel));
        assert_eq!(
            counts
                .iter()
                .map(|count| count.macs + count.macs_skipped)
                .sum::<u64>(),
            dense_macs
        );
        assert_eq!(counts[0].macs_skipped > 0, chunk == 1);
    }
}

#[test]
fn counts_of_the_feed_forward_networks_do_not_depend_on_sparsity() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_large(&path);
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let tokens: Vec<u32> = (0..6).map(|i| i * 41 % 512).collect();
    let seen = |mode, chunk| crate::activity(&load(&path, mode, &cpu), &cpu, &tokens, chunk);
    let expected = seen(FfnSparsity::Off, 6);
    let sum: FfnActivity = expected.iter().copied().sum();
    assert_eq!((expected.len(), sum.num_values), (2, 2 * 6 * 10752));
    let (closed, zeros) = (
        sum.closed_gates().expect("values"),
        sum.zeros().expect("values"),
    );
    assert!(
        0.4 < closed && closed < 0.6 && closed < zeros && zeros < 1.0,
        "{closed} {zeros}"
    );
    assert_eq!(seen(FfnSparsity::On, 1), expected);
    assert_eq!(seen(FfnSparsity::On, 4), expected);
    assert_eq!(FfnActivity::default().zeros(), None);
}
