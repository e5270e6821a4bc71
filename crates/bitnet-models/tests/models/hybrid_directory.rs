//! Qwen3.5 text models as Hugging Face directories: the logits of transformers.

use std::path::{Path, PathBuf};

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{InputRounding, KvType, LanguageModel, LoadOptions};

use crate::groups::integers;
use crate::{logits, read_npy};

/// A tiny model with three value heads for each key head, and its logits: see
/// `xtask/scripts/make_hybrid_golden.py`.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden-hf/qwen3_5-text")
}

fn load(path: &Path) -> bitnet_models::Result<LanguageModel<Cpu>> {
    let options = LoadOptions {
        group_inputs: InputRounding::None,
        ..LoadOptions::default()
    };
    let cpu = Cpu::new(KernelSet::detect(), 2);
    LanguageModel::from_checkpoint(&Checkpoint::open(path)?, &options, &cpu)
}

fn found(model: &LanguageModel<Cpu>, chunk: usize) -> Vec<f32> {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let tokens = integers(&folder().join("tokens.json"), Some("tokens"));
    logits(model, &cpu, &tokens, KvType::F32, chunk)
}

/// A copy of the directory with another `config.json` and other names of tensors.
fn copy(
    config: impl Fn(String) -> String,
    tensors: impl Fn(String) -> String,
) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(folder().join("config.json")).expect("a file");
    std::fs::write(copy.path().join("config.json"), config(text)).expect("a file");
    let bytes = std::fs::read(folder().join("model.safetensors")).expect("a file");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = String::from_utf8(bytes[8..8 + len].to_vec()).expect("JSON");
    let header = tensors(header.trim_end().to_owned());
    let parts = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &bytes[8 + len..],
    ];
    std::fs::write(copy.path().join("model.safetensors"), parts.concat()).expect("a file");
    copy
}

#[test]
fn a_directory_of_qwen3_5_gives_the_logits_of_transformers() {
    let checkpoint = Checkpoint::open(&folder()).expect("a directory");
    checkpoint.check().expect("all tensors");
    let expected = read_npy(&folder().join("logits.npy"));
    let model = load(&folder()).expect("a model");
    for chunk in [40, 7, 1] {
        let found = found(&model, chunk);
        let pairs = found.iter().zip(&expected);
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_eq!(found.len(), expected.len());
        assert!(worst <= 1e-4, "{worst} apart in chunks of {chunk}");
    }
}

#[test]
fn a_model_that_sees_runs_as_the_text_model_in_it() {
    let config = |text: String| {
        format!(
            "{{\"architectures\": [\"Qwen3_5ForConditionalGeneration\"], \"model_type\": \
             \"qwen3_5\", \"tie_word_embeddings\": false, \"text_config\": {}}}",
            text.replace("\"Qwen3_5ForCausalLM\"", "")
                .replace("[\n    \n  ]", "null")
        )
    };
    let tensors = |header: String| {
        let header = header.replace("\"model.", "\"model.language_model.");
        // Two more tensors, which are empty.
        header.replacen(
            '{',
            "{\"mtp.fc.weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\
            \"model.visual.x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},",
            1,
        )
    };
    let copy = copy(config, tensors);
    let checkpoint = Checkpoint::open(copy.path()).expect("a directory");
    assert_eq!(checkpoint.num_left_out(), 2);
    let model = load(copy.path()).expect("a model");
    let text = load(&folder()).expect("a model");
    assert_eq!(found(&model, 40), found(&text, 40));
}

#[test]
fn numbers_that_no_graph_has_are_errors_that_name_the_key() {
    for (from, to, expected) in [
        (
            "\"linear_conv_kernel_dim\": 4",
            "\"linear_conv_kernel_dim\": 3",
            "linear_conv_kernel_dim is 3; 4",
        ),
        (
            "\"linear_value_head_dim\": 64",
            "\"linear_value_head_dim\": 32",
            "linear_value_head_dim is 32; 64",
        ),
        (
            "\"linear_num_value_heads\": 6",
            "\"linear_num_value_heads\": 5",
            "linear_num_value_heads is 5; a multiple",
        ),
        (
            "\"full_attention\"",
            "\"sliding_attention\"",
            "layer_types is no list of 3 names",
        ),
        (
            "\"partial_rotary_factor\": 0.25",
            "\"partial_rotary_factor\": 1.5",
            "partial_rotary_factor is 1.5",
        ),
    ] {
        let copy = copy(|text| text.replace(from, to), |header| header);
        let error = load(copy.path()).err().expect(to).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
