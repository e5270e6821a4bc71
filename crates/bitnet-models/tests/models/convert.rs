//! Conversion: the bytes are those of the published converters, the logits those of the source, and nothing is lost.

use std::path::Path;
use std::sync::Arc;

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::convert::{ConvertOptions, TableType, convert};
use bitnet_models::gguf::{Gguf, TensorType};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel, byte_level_tokenizer};
use bitnet_models::{Architecture, Error, LanguageModel, LoadOptions};
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::i2_s::Form;

use crate::{assert_same_bits, golden, some_logits};

fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 2)
}

fn to_gguf(source: &Path, out: &Path, options: &ConvertOptions) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(source)?;
    let tokenizer = byte_level_tokenizer(checkpoint.config().vocab_size);
    let mut last = 0;
    let done = convert(&checkpoint, out, options, &tokenizer, cpu().pool(), &mut |progress| {
        assert!(progress.bytes_done > last && progress.bytes_done <= progress.bytes_total, "{progress:?}");
        last = progress.bytes_done;
    });
    done.map(|()| assert_eq!(last, Gguf::open(out).unwrap().tensors().map(|t| t.data.len()).sum::<usize>()))
}

fn gguf_logits(path: &Path, cpu: &Cpu) -> Vec<f32> {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    some_logits(&LanguageModel::from_gguf(&gguf, &LoadOptions::default(), cpu).unwrap(), cpu)
}

/// Every tensor of one file is in the other, with its bytes.
fn assert_same_tensors(name: &str, found: &Gguf, expected: &Gguf) {
    assert_eq!(found.tensors().len(), expected.tensors().len(), "{name}");
    for tensor in expected.tensors() {
        let other = found.require_tensor(tensor.name).unwrap();
        assert_eq!((other.dtype, other.dims), (tensor.dtype, tensor.dims), "{name} {}", tensor.name);
        assert!(other.data == tensor.data, "{name}: the bytes of {}", tensor.name);
    }
}

#[test]
fn golden_checkpoints_become_the_golden_files() {
    for name in ["strict-b158", "strict-1bitllm", "strict-llama", "tiny-b158", "tiny-llama"] {
        let Some(folder) = golden(name).filter(|folder| folder.join("hf-packed").exists()) else {
            eprintln!("skipped: no packed checkpoint of {name} here");
            continue;
        };
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("model.gguf");
        to_gguf(&folder.join("hf-packed"), &out, &ConvertOptions::default()).unwrap();
        let (found, expected) = (Gguf::open(&out).unwrap(), Gguf::open(&folder.join("model-i2_s.gguf")).unwrap());
        assert_same_tensors(name, &found, &expected);
        for (key, value) in expected.metadata().iter() {
            if !key.starts_with("tokenizer.") && key != "general.name" {
                assert_eq!(found.metadata().get(key), Some(value), "{name} {key}");
            }
        }
    }
}

#[test]
fn a_converted_checkpoint_gives_the_same_bits_and_the_bytes_of_a_file_written_directly() {
    let cpu = cpu();
    let shapes = [
        Shape::default(),
        Shape { architecture: Architecture::Llama, tied: false, head_dim: 32, rope_theta: 5e5, ..Shape::default() },
        Shape { architecture: Architecture::Bitnet, head_dim: 96, heads: 4, ..Shape::default() },
    ];
    for shape in shapes {
        let name = format!("{:?}", shape.architecture);
        let directory = tempfile::tempdir().unwrap();
        let model = SyntheticModel { shape, seed: 11 };
        let direct = directory.path().join("direct.gguf");
        model.write_gguf(&direct, &|_, _| TernaryFormat::I2_S(Form::Block128)).unwrap();
        for weights in [CheckpointWeights::Packed, CheckpointWeights::Bf16] {
            let source = directory.path().join(format!("{weights:?}"));
            model.write_checkpoint(&source, weights, 2).unwrap();
            let expected =
                LanguageModel::from_checkpoint(&Checkpoint::open(&source).unwrap(), &LoadOptions::default(), &cpu)
                    .unwrap();
            let expected = some_logits(&expected, &cpu);
            for tables in [TableType::F16, TableType::BF16, TableType::F32] {
                let out = directory.path().join(format!("{weights:?}-{tables:?}.gguf"));
                to_gguf(&source, &out, &ConvertOptions { tables, ..ConvertOptions::default() }).unwrap();
                assert_same_bits(&format!("{name} {weights:?} {tables:?}"), &gguf_logits(&out, &cpu), &expected);
                if (weights, tables) == (CheckpointWeights::Packed, TableType::F16) {
                    assert_same_tensors(&name, &Gguf::open(&out).unwrap(), &Gguf::open(&direct).unwrap());
                }
            }
        }
    }
}

#[test]
fn rope_scaling_survives_conversion() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    let shape = Shape { architecture: Architecture::Llama, ..Shape::default() };
    SyntheticModel { shape, seed: 12 }.write_checkpoint(&source, CheckpointWeights::Packed, 1).unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let logits = |scaling: &str| {
        let scaling = format!("{{\"rope_scaling\": {scaling}, {}", &text[1..]);
        std::fs::write(source.join("config.json"), &scaling).unwrap();
        let model =
            LanguageModel::from_checkpoint(&Checkpoint::open(&source).unwrap(), &LoadOptions::default(), &cpu).unwrap();
        let out = directory.path().join("model.gguf");
        to_gguf(&source, &out, &ConvertOptions { force: true, ..ConvertOptions::default() }).unwrap();
        let direct = some_logits(&model, &cpu);
        assert_same_bits(&scaling, &gguf_logits(&out, &cpu), &direct);
        (direct, Gguf::open(&out).unwrap().tensor("rope_freqs.weight").map(|t| (t.dtype, t.dims.to_vec())))
    };
    let (plain, none) = logits("null");
    let (linear, also_none) = logits(r#"{"type": "linear", "factor": 4.0}"#);
    let (llama3, factors) = logits(
        r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}"#,
    );
    assert!(plain != linear && plain != llama3 && linear != llama3);
    assert_eq!((none, also_none, factors), (None, None, Some((TensorType::F32, vec![32]))));
}

#[test]
fn nothing_is_overwritten_or_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    let model = SyntheticModel { shape: Shape::default(), seed: 13 };
    model.write_checkpoint(&source, CheckpointWeights::Packed, 1).unwrap();
    let files = || {
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let out = directory.path().join("model.gguf");
    std::fs::write(&out, "precious").unwrap();
    let error = to_gguf(&source, &out, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, Error::OutputExists { .. }), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");

    // A code 3 in the last ternary tensor: the failure comes when most is written.
    let weights = source.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let good = bytes.clone();
    let at = bytes.len() - 2 * (256 + 256 + 384) - 2 - 100;
    bytes[at] = 0xff;
    std::fs::write(&weights, bytes).unwrap();
    let force = ConvertOptions { force: true, ..ConvertOptions::default() };
    let error = to_gguf(&source, &out, &force).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(files(), ["model.gguf", "source"]);

    std::fs::write(&weights, good).unwrap();
    to_gguf(&source, &out, &force).unwrap();
    assert_eq!(files(), ["model.gguf", "source"]);
    assert_eq!(Gguf::open(&out).unwrap().metadata().require_str("general.name").unwrap(), "source");
}

#[test]
fn what_i2_s_cannot_hold_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    let model = SyntheticModel { shape: Shape { ffn_size: 544, ..Shape::default() }, seed: 14 };
    model.write_checkpoint(&source, CheckpointWeights::Packed, 1).unwrap();
    let error = to_gguf(&source, &directory.path().join("model.gguf"), &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot convert: Down has 544 columns, I2_S needs a multiple of 128");
}
