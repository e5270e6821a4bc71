//! The graphs `qwen2`, `qwen3`, `minicpm`, `hunyuan-dense` and `gemma3`: their logits equal the
//! reference's, and every way to compute them gives the same bits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{Architecture, InputRounding, KvType, LoadOptions, check_gguf};

use crate::groups::{integers, load};
use crate::{assert_same_bits, logits, read_npy};

/// A golden model that `xtask/scripts/make_graph_golden.py` writes.
pub fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("tests/data/golden-graphs").join(name)
}

/// The models.
const MODELS: [(&str, Architecture); 8] = [
    ("qwen2", Architecture::Qwen2),
    ("qwen2-i2_s", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("minicpm", Architecture::MiniCpm),
    ("minicpm-longrope", Architecture::MiniCpm),
    ("hunyuan-dense", Architecture::HunyuanDense),
    ("qwen3-embedding", Architecture::Qwen3),
    ("gemma3-embedding", Architecture::Gemma3),
];

/// The models with one scale for each matrix; they always take rounded inputs.
const WITH_MATRIX_SCALES: [&str; 3] = ["qwen2-i2_s", "qwen3-embedding", "gemma3-embedding"];

pub fn tokens(folder: &Path) -> Vec<u32> {
    integers(&folder.join("tokens.json"), Some("tokens"))
}

#[track_caller]
pub fn assert_near(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    assert!(worst <= 1e-4, "{name}: {worst:e}");
}

#[test]
fn logits_equal_the_logits_of_transformers() {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    for (name, architecture) in MODELS {
        let folder = folder(name);
        let tokens = tokens(&folder);
        let model = load(&folder, InputRounding::Int8(32), &cpu);
        assert_eq!(model.config().architecture, architecture);
        let found = logits(&model, &cpu, &tokens, KvType::F32, 7);
        assert_near(name, &found, &read_npy(&folder.join("logits-int8.npy")));
        if !WITH_MATRIX_SCALES.contains(&name) {
            let model = load(&folder, InputRounding::None, &cpu);
            let found = logits(&model, &cpu, &tokens, KvType::F32, 7);
            assert_near(name, &found, &read_npy(&folder.join("logits.npy")));
        }
    }
}

#[test]
fn chunks_threads_and_sets_change_no_bit() {
    for (name, _) in MODELS {
        let folder = folder(name);
        let tokens = tokens(&folder);
        let reference = {
            let cpu = Cpu::new(KernelSet::by_name("scalar").expect("the reference"), 1);
            let model = load(&folder, InputRounding::default(), &cpu);
            logits(&model, &cpu, &tokens, KvType::F16, tokens.len())
        };
        for (index, set) in KernelSet::available().enumerate() {
            let cpu = Cpu::new(set, 1 + index % 3);
            let model = load(&folder, InputRounding::default(), &cpu);
            let found = logits(&model, &cpu, &tokens, KvType::F16, 1 + index);
            assert_same_bits(&format!("{name} {set:?}"), &found, &reference);
        }
    }
}

#[test]
fn files_are_checked_without_reading_weights() {
    for (name, _) in MODELS {
        let gguf = Gguf::open(&folder(name).join("model.gguf")).expect("a golden file opens");
        check_gguf(&Arc::new(gguf), &LoadOptions::default()).expect(name);
    }
}
