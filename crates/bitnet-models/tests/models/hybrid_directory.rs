//! Qwen3.5 text models as Hugging Face directories: the logits of transformers.

use std::path::{Path, PathBuf};

use bitnet_files::safetensors::{DType, SafetensorsWriter, TensorEntry};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{InputRounding, KvType, LanguageModel, LoadOptions};

use half::bf16;

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

/// Tensors of a directory: name, type, shape and bytes.
type Tensors = Vec<(String, DType, Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let bytes = std::fs::read(folder().join("model.safetensors")).expect("a file");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    let number = |value: &serde_json::Value| value.as_u64().expect("a size") as usize;
    let entries = header.as_object().expect("tensors").iter();
    let entries = entries.filter(|(name, _)| *name != "__metadata__");
    let tensor = |(name, entry): (&String, &serde_json::Value)| {
        let shape = entry["shape"].as_array().expect("a shape");
        let [begin, end] = [0, 1].map(|i| 8 + len + number(&entry["data_offsets"][i]));
        let shape = shape.iter().map(number).collect();
        (name.clone(), DType::BF16, shape, bytes[begin..end].to_vec())
    };
    entries.map(tensor).collect()
}

fn write(config: &str, tensors: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config).expect("a file");
    let path = folder.path().join("model.safetensors");
    let entry = |(name, dtype, shape, _): &(String, DType, Vec<usize>, Vec<u8>)| TensorEntry {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let file = std::fs::File::create(&path).expect("a file");
    let entries = tensors.iter().map(entry).collect();
    let mut writer = SafetensorsWriter::new(file, &path, entries).expect("a header");
    for (_, _, _, bytes) in tensors {
        writer.begin_tensor().expect("a tensor");
        writer.write(bytes).expect("bytes");
    }
    writer.finish().expect("all tensors");
    folder
}

fn f32_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Codes of two bits for groups of 64 columns, as MLX stores them, and the weights they stand for.
fn quantized(rows: usize, cols: usize) -> ([Vec<u8>; 3], Vec<f32>) {
    let code = |i: usize| (i * 7 + i / 5) % 4;
    let (scale, bias) = (|group: usize| 0.25 + group as f32 / 64.0, -0.5f32);
    let words = (0..rows * cols).step_by(4);
    let byte = |i: usize| (0..4).fold(0, |byte, at| byte | (code(i + at) as u8) << (2 * at));
    let groups = 0..rows * cols / 64;
    let parts = [
        words.map(byte).collect(),
        f32_bytes(groups.clone().map(scale)),
        f32_bytes(groups.map(|_| bias)),
    ];
    let weights = (0..rows * cols).map(|i| code(i) as f32 * scale(i / 64) + bias);
    (parts, weights.collect())
}

#[test]
fn a_directory_that_mlx_lm_has_converted_gives_the_same_logits() {
    let text = std::fs::read_to_string(folder().join("config.json")).expect("a file");
    let (mut plain, mut mlx) = (tensors(), Tensors::new());
    for (name, dtype, shape, bytes) in &mut plain {
        let renamed = format!("language_model.{name}");
        if name.ends_with("in_proj_a.weight") {
            let (rows, cols) = (shape[0], shape[1]);
            let ([codes, scales, biases], weights) = quantized(rows, cols);
            (*dtype, *bytes) = (DType::F32, f32_bytes(weights.into_iter()));
            let module = renamed.trim_end_matches(".weight");
            let groups = vec![rows, cols / 64];
            mlx.push((renamed.clone(), DType::U32, vec![rows, cols / 16], codes));
            mlx.push((
                format!("{module}.scales"),
                DType::F32,
                groups.clone(),
                scales,
            ));
            mlx.push((format!("{module}.biases"), DType::F32, groups, biases));
        } else if name.ends_with("conv1d.weight") {
            mlx.push((renamed, *dtype, vec![shape[0], shape[2], 1], bytes.clone()));
        } else if name.ends_with("norm.weight") && !name.contains("linear_attn.norm") {
            let values = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32());
            mlx.push((
                renamed,
                DType::F32,
                shape.clone(),
                f32_bytes(values.map(|x| x + 1.0)),
            ));
        } else {
            mlx.push((renamed, *dtype, shape.clone(), bytes.clone()));
        }
    }
    mlx.push(("vision_tower.x".into(), DType::F32, vec![0], Vec::new()));
    let nested = format!(
        "{{\"architectures\": [\"Qwen3_5ForConditionalGeneration\"], \"model_type\": \"qwen3_5\", \
         \"quantization\": {{\"group_size\": 64, \"bits\": 2, \"mode\": \"affine\"}}, \
         \"text_config\": {}}}",
        text.replace("\"Qwen3_5ForCausalLM\"", "")
            .replace("[\n    \n  ]", "null")
    );
    let (plain, mlx) = (write(&text, &plain), write(&nested, &mlx));
    let checkpoint = Checkpoint::open(mlx.path()).expect("a directory");
    checkpoint.check().expect("all tensors");
    assert_eq!(checkpoint.num_left_out(), 1);
    let [expected, found] =
        [plain, mlx].map(|folder| found(&load(folder.path()).expect("a model"), 40));
    assert_eq!(found, expected);
}

#[test]
fn a_tensor_with_the_name_of_a_module_is_refused() {
    let text = std::fs::read_to_string(folder().join("config.json")).expect("a file");
    let mut tensors = tensors();
    tensors.push((
        "model.layers.0.mlp.up_proj".into(),
        DType::F32,
        vec![0],
        Vec::new(),
    ));
    let error = load(write(&text, &tensors).path())
        .err()
        .expect("unknown")
        .to_string();
    assert!(error.contains("model.layers.0.mlp.up_proj"), "{error}");
}
