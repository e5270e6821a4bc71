//! Weights that an earlier load has packed: a model made of their bytes has the same logits, bit
//! for bit, and is described alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet, Packing};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::{Shape, SyntheticModel};
use bitnet_models::{
    Architecture, FfnSparsity, HeadMode, I2sForm, Keeper, KeptIndex, LanguageModel, LoadOptions,
    Result,
};
use bitnet_quantization::TernaryFormat;
use bytes::Bytes;

use crate::{assert_same_bits, golden, groups::golden_model, some_logits};

fn load(
    path: &Path,
    options: &LoadOptions,
    cpu: &Cpu,
    keeper: &Keeper,
) -> Result<LanguageModel<Cpu>> {
    if path.is_dir() {
        let checkpoint = Checkpoint::open(path)?;
        return LanguageModel::from_checkpoint_with(&checkpoint, options, cpu, keeper);
    }
    LanguageModel::from_gguf_with(&Arc::new(Gguf::open(path)?), options, cpu, keeper)
}

/// Loads a model, keeps its weights, makes a keeper of copies of their bytes, and loads again.
fn check(name: &str, path: &Path, options: &LoadOptions, set: &'static KernelSet) {
    let cpu = Cpu::new(set, 2);
    let noting = Keeper::noting();
    let first = load(path, options, &cpu, &noting).expect("the model loads");
    let (index, pieces) = noting.into_noted().expect("it notes");
    assert!(!pieces.is_empty(), "{name}");
    let text = serde_json::to_string(&index).expect("an index is JSON");
    let index: KeptIndex = serde_json::from_str(&text).expect("and comes back");
    let pieces = pieces
        .iter()
        .map(|piece| Bytes::copy_from_slice(piece))
        .collect();
    let kept = Keeper::kept(index, pieces).expect("all pieces are there");
    let second = load(path, options, &cpu, &kept).expect("the model loads again");
    assert_eq!(kept.num_missed(), 0, "{name}: weights that were not kept");
    assert_eq!(first.packing(), second.packing(), "{name}");
    assert_eq!(first.quantization(), second.quantization(), "{name}");
    assert_eq!(first.head_mode(), second.head_mode(), "{name}");
    assert_eq!(first.num_ternary_bytes(), second.num_ternary_bytes());
    assert!(first.ffn_layers().eq(second.ffn_layers()), "{name}");
    let logits = |model| some_logits(model, &cpu);
    assert_same_bits(name, &logits(&first), &logits(&second));
}

fn gguf(name: &str) -> Option<PathBuf> {
    golden(name).map(|folder| folder.join("model-i2_s.gguf"))
}

#[test]
fn a_model_of_kept_weights_has_the_same_logits_with_every_set_and_packing() {
    let Some(path) = gguf("strict-b158") else {
        return;
    };
    for set in KernelSet::available() {
        for packing in Packing::ALL {
            let options = LoadOptions {
                packing: Some(packing),
                head: HeadMode::Screened,
                ffn_sparsity: FfnSparsity::On,
                ..LoadOptions::default()
            };
            check(&format!("{} {packing:?}", set.name), &path, &options, set);
        }
    }
}

#[test]
fn kept_weights_of_models_with_group_scales_are_the_same() {
    for name in ["qwen3-ptq1_0", "qwen35-ptq1_0-rot512-part"] {
        if let Some(folder) = golden_model(name) {
            let (path, options) = (folder.join("model.gguf"), LoadOptions::default());
            check(name, &path, &options, KernelSet::detect());
        }
    }
}

#[test]
fn kept_weights_of_models_with_norms_for_each_projection_and_of_directories_are_the_same() {
    for name in ["strict-1bitllm", "strict-rms", "strict-b158"] {
        let options = LoadOptions::default();
        let Some(folder) = golden(name) else { continue };
        let directories = std::fs::read_dir(&folder).expect("a readable folder");
        let directories = directories.map(|entry| entry.expect("an entry").path());
        let found: Vec<PathBuf> = directories
            .filter(|path| path.join("config.json").exists())
            .chain(folder.join("config.json").exists().then_some(folder))
            .collect();
        assert!(!found.is_empty(), "{name} has a directory");
        for path in found {
            let name = path.display().to_string();
            check(&name, &path, &options, KernelSet::detect());
        }
    }
}

#[test]
fn kept_weights_leave_out_the_same_dead_neurons() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dead.gguf");
    let shape = Shape {
        architecture: Architecture::BitnetB158,
        ffn_size: 416,
        dead_neurons_percent: 40,
        ..Shape::default()
    };
    SyntheticModel { shape, seed: 5 }
        .write_gguf(&path, &|_, _| TernaryFormat::I2_S(I2sForm::Block128))
        .expect("a file");
    for ffn_sparsity in FfnSparsity::ALL {
        let options = LoadOptions {
            ffn_sparsity,
            ..LoadOptions::default()
        };
        check("dead neurons", &path, &options, KernelSet::detect());
    }
}

#[test]
fn weights_that_were_not_kept_are_packed_again_and_counted() {
    let Some(path) = gguf("strict-b158") else {
        return;
    };
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let options = LoadOptions::default();
    let noting = Keeper::noting();
    let first = load(&path, &options, &cpu, &noting).expect("the model loads");
    let (index, mut pieces) = noting.into_noted().expect("it notes");
    let text = serde_json::to_string(&index).expect("an index is JSON");
    let renamed: KeptIndex =
        serde_json::from_str(&text.replace("layers.1.Query", "layers.1.other")).expect("JSON");
    let kept = Keeper::kept(renamed, pieces.clone()).expect("all pieces are there");
    let second = load(&path, &options, &cpu, &kept).expect("the model loads again");
    assert_eq!(kept.num_missed(), 1);
    let logits = |model| some_logits(model, &cpu);
    assert_same_bits("packed again", &logits(&first), &logits(&second));
    pieces.pop();
    assert!(Keeper::kept(index, pieces).is_none(), "a piece is missing");
}
