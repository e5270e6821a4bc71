//! Conversion: bytes equal the output of the published converters, logits equal the source's
//! logits, and nothing is lost.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::Error as FileError;
use bitnet_files::gguf::{Gguf, TensorType};
use bitnet_files::safetensors::DType;
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::convert::{
    ConvertOptions, Input, Phase, Report, TableType, WeightType, to_checkpoint, to_gguf,
};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel, byte_level_tokenizer};
use bitnet_models::{Architecture, Error, LanguageModel, LoadOptions};
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::dense::Dense;
use bitnet_quantization::i2_s::Form;

use crate::{assert_same_bits, golden, some_logits};

const I2_S: TernaryFormat = TernaryFormat::I2_S(Form::Block128);

fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 2)
}

fn options(weights: WeightType) -> ConvertOptions {
    ConvertOptions {
        weights,
        ..ConvertOptions::default()
    }
}

/// Opens the model at `source` and writes it to `out`, as a directory if there is no `.gguf` in its
/// name.
fn convert_with(
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    quantize: bool,
) -> Result<Report, Error> {
    let mut last = (Phase::Writing, 0);
    let mut progress = |now: bitnet_models::convert::Progress<'_>| {
        if last.0 != now.phase {
            last = (now.phase, 0);
        }
        assert!(
            now.bytes_done > last.1 && now.bytes_done <= now.bytes_total,
            "{now:?}"
        );
        last.1 = now.bytes_done;
        ControlFlow::Continue(())
    };
    let load_options = LoadOptions::default();
    let (checkpoint, gguf);
    let (input, pairs) = if source.is_dir() {
        checkpoint = Checkpoint::open(source)?;
        (
            Input::Checkpoint(&checkpoint),
            byte_level_tokenizer(checkpoint.config().vocab_size),
        )
    } else {
        gguf = Arc::new(Gguf::open(source)?);
        (
            Input::Gguf {
                gguf: &gguf,
                options: &load_options,
                quantize,
            },
            Vec::new(),
        )
    };
    let cpu = cpu();
    let report = match out.extension() {
        Some(_) => to_gguf(input, out, options, &pairs, cpu.pool(), &mut progress),
        None => to_checkpoint(input, out, options, &[], cpu.pool(), &mut progress),
    }?;
    assert_eq!(last, (Phase::Checking, report.tensor_bytes));
    Ok(report)
}

fn convert(source: &Path, out: &Path, options: &ConvertOptions) -> Result<Report, Error> {
    convert_with(source, out, options, false)
}

fn load(path: &Path, cpu: &Cpu) -> Result<LanguageModel<Cpu>, Error> {
    if path.is_dir() {
        return LanguageModel::from_checkpoint(
            &Checkpoint::open(path)?,
            &LoadOptions::default(),
            cpu,
        );
    }
    LanguageModel::from_gguf(&Arc::new(Gguf::open(path)?), &LoadOptions::default(), cpu)
}

fn logits_of(path: &Path, cpu: &Cpu) -> Vec<f32> {
    some_logits(&load(path, cpu).unwrap(), cpu)
}

/// Every tensor of one file is in the other, with its bytes.
fn assert_same_tensors(name: &str, found: &Path, expected: &Path) {
    let (found, expected) = (Gguf::open(found).unwrap(), Gguf::open(expected).unwrap());
    assert_eq!(found.tensors().len(), expected.tensors().len(), "{name}");
    for tensor in expected.tensors() {
        let other = found.require_tensor(tensor.name).unwrap();
        assert_eq!(
            (other.dtype, other.dims),
            (tensor.dtype, tensor.dims),
            "{name} {}",
            tensor.name
        );
        assert!(
            other.data == tensor.data,
            "{name}: the bytes of {}",
            tensor.name
        );
    }
}

/// Models that every type can hold, with scales that are f16 numbers except in the graph of Llama.
fn shapes() -> [Shape; 3] {
    let shape = Shape {
        ffn_size: 512,
        ..Shape::default()
    };
    [
        shape.clone(),
        Shape {
            architecture: Architecture::Llama,
            tied: false,
            head_dim: 32,
            heads: 8,
            rope_theta: 5e5,
            ..shape.clone()
        },
        Shape {
            architecture: Architecture::Bitnet,
            head_dim: 96,
            heads: 8,
            ..shape
        },
    ]
}

fn files(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn golden_checkpoints_become_the_golden_files() {
    for name in [
        "strict-b158",
        "strict-1bitllm",
        "strict-llama",
        "tiny-b158",
        "tiny-llama",
    ] {
        let Some(folder) = golden(name).filter(|folder| folder.join("hf-packed").exists()) else {
            eprintln!("skipped: no packed checkpoint of {name} here");
            continue;
        };
        let directory = tempfile::tempdir().unwrap();
        let (out, expected) = (
            directory.path().join("model.gguf"),
            folder.join("model-i2_s.gguf"),
        );
        convert(&folder.join("hf-packed"), &out, &ConvertOptions::default()).unwrap();
        assert_same_tensors(name, &out, &expected);
        let (found, expected) = (Gguf::open(&out).unwrap(), Gguf::open(&expected).unwrap());
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
    for shape in shapes() {
        let name = format!("{:?}", shape.architecture);
        let directory = tempfile::tempdir().unwrap();
        let model = SyntheticModel { shape, seed: 11 };
        let direct = directory.path().join("direct.gguf");
        model.write_gguf(&direct, &|_, _| I2_S).unwrap();
        for weights in [CheckpointWeights::Packed, CheckpointWeights::Bf16] {
            let source = directory.path().join(format!("{weights:?}"));
            model.write_checkpoint(&source, weights, 2).unwrap();
            let expected = logits_of(&source, &cpu);
            for tables in [None, Some(TableType::BF16), Some(TableType::F32)] {
                let out = directory
                    .path()
                    .join(format!("{weights:?}-{tables:?}.gguf"));
                convert(
                    &source,
                    &out,
                    &ConvertOptions {
                        tables,
                        ..ConvertOptions::default()
                    },
                )
                .unwrap();
                assert_same_bits(
                    &format!("{name} {weights:?} {tables:?}"),
                    &logits_of(&out, &cpu),
                    &expected,
                );
                if (weights, tables) == (CheckpointWeights::Packed, None) {
                    assert_same_tensors(&name, &out, &direct);
                }
            }
        }
    }
}

#[test]
fn a_file_survives_conversion_through_every_type_and_a_directory() {
    use WeightType::{BF16, F16, F32, I2_S as I2S, PQ2_0, PTQ1_0, Q2_0, TL1, TL2, TQ1_0, TQ2_0};
    let cpu = cpu();
    for shape in shapes() {
        let is_llama = shape.architecture == Architecture::Llama;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let original = at("original.gguf");
        SyntheticModel { shape, seed: 15 }
            .write_gguf(&original, &|_, _| I2_S)
            .unwrap();
        let expected = logits_of(&original, &cpu);
        let mut current = original.clone();
        let types = [
            TL2, TQ1_0, F32, PTQ1_0, TL1, BF16, PQ2_0, TQ2_0, Q2_0, F16, I2S,
        ];
        for weights in types {
            if is_llama && !matches!(weights, TL2 | F32 | TL1 | I2S) {
                continue; // a scale that was divided by is no 16-bit number
            }
            let next = at(&format!("{weights:?}.gguf"));
            let report = convert(&current, &next, &options(weights)).unwrap();
            assert_eq!(
                (report.scales_rounded, report.scale_change_max),
                (0, 0.0),
                "{weights:?}"
            );
            assert_same_bits(&format!("{weights:?}"), &logits_of(&next, &cpu), &expected);
            let gguf = Gguf::open(&next).unwrap();
            assert_eq!(
                gguf.require_tensor("blk.1.ffn_down.weight").unwrap().dtype,
                weights.dtype()
            );
            current = next;
        }
        assert_same_tensors("back again", &current, &original);
        let (first, last) = (
            Gguf::open(&original).unwrap(),
            Gguf::open(&current).unwrap(),
        );
        for (key, value) in first.metadata().iter() {
            assert_eq!(last.metadata().get(key), Some(value), "{key}");
        }

        let (packed, again) = (at("packed"), at("again.gguf"));
        convert(&current, &packed, &ConvertOptions::default()).unwrap();
        assert_same_bits("packed", &logits_of(&packed, &cpu), &expected);
        convert(&packed, &again, &ConvertOptions::default()).unwrap();
        assert_same_tensors("from a directory", &again, &original);
        let json = std::fs::read_to_string(packed.join("config.json")).unwrap();
        assert!(
            json.contains("\"rms_norm_eps\": 0.00001") && json.contains("autobitlinear"),
            "{json}"
        );
    }
}

#[test]
fn float_weights_of_a_file_are_quantized_like_a_checkpoint() {
    let cpu = cpu();
    for shape in shapes() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let model = SyntheticModel { shape, seed: 16 };
        model
            .write_checkpoint(&at("bf16"), CheckpointWeights::Bf16, 1)
            .unwrap();
        convert(
            &at("bf16"),
            &at("expected.gguf"),
            &ConvertOptions::default(),
        )
        .unwrap();
        for format in [Dense::F32, Dense::BF16] {
            let (plain, out) = (at("plain.gguf"), at("quantized.gguf"));
            model.write_float_gguf(&plain, format).unwrap();
            let error = convert(&plain, &out, &ConvertOptions::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("blk.0.attn_q.weight") && error.contains("not ternary"),
                "{error}"
            );
            assert_eq!(
                load(&plain, &cpu).err().map(|error| error.to_string()),
                Some(error)
            );
            convert_with(&plain, &out, &ConvertOptions::default(), true).unwrap();
            assert_same_tensors("quantized", &out, &at("expected.gguf"));
            std::fs::remove_file(plain).unwrap();
            std::fs::remove_file(out).unwrap();
        }
        // Float weights that the reference code packed, and the same weights rounded to bf16.
        convert(&at("bf16"), &at("packed"), &ConvertOptions::default()).unwrap();
        assert_same_bits(
            "packed",
            &logits_of(&at("packed"), &cpu),
            &logits_of(&at("expected.gguf"), &cpu),
        );
        // Weights that are already ternary keep their scale.
        model.write_gguf(&at("ternary.gguf"), &|_, _| I2_S).unwrap();
        convert(
            &at("ternary.gguf"),
            &at("floats.gguf"),
            &options(WeightType::F32),
        )
        .unwrap();
        convert_with(
            &at("floats.gguf"),
            &at("back.gguf"),
            &ConvertOptions::default(),
            true,
        )
        .unwrap();
        assert_same_tensors("ternary floats", &at("back.gguf"), &at("ternary.gguf"));
    }
}

#[test]
fn tables_are_kept_or_quantized_as_asked() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    SyntheticModel {
        shape: shapes()[1].clone(),
        seed: 17,
    }
    .write_gguf(&at("f16.gguf"), &|_, _| I2_S)
    .unwrap();
    let types = |path: &Path| {
        let gguf = Gguf::open(path).unwrap();
        ["token_embd.weight", "output.weight"].map(|name| gguf.require_tensor(name).unwrap().dtype)
    };
    let embedding = |path: &Path| {
        let model = load(path, &cpu()).unwrap();
        let table = model
            .embedding()
            .rows()
            .expect("rows as the file stores them");
        let mut row = vec![0.0; table.cols()];
        table.read_row(7, &mut row);
        row
    };
    let exact = embedding(&at("f16.gguf"));
    for (tables, dtype, tolerance) in [
        (TableType::Q8_0, TensorType::Q8_0, 0.002),
        (TableType::Q6_K, TensorType::Q6_K, 0.008),
    ] {
        let (quantized, kept) = (
            at(&format!("{dtype}.gguf")),
            at(&format!("{dtype}-kept.gguf")),
        );
        convert(
            &at("f16.gguf"),
            &quantized,
            &ConvertOptions {
                tables: Some(tables),
                ..options(WeightType::TQ2_0)
            },
        )
        .unwrap();
        assert_eq!(types(&quantized), [dtype; 2]);
        let found = embedding(&quantized);
        let worst = exact
            .iter()
            .zip(&found)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < tolerance, "{dtype}: {worst}");
        convert(&quantized, &kept, &options(WeightType::I2_S)).unwrap();
        assert_eq!(types(&kept), [dtype; 2]);
        assert_eq!(
            embedding(&kept),
            found,
            "bytes that are copied do not change"
        );
        convert(
            &quantized,
            &at(&format!("{dtype}-packed")),
            &ConvertOptions::default(),
        )
        .unwrap();
        assert_eq!(
            embedding(&at(&format!("{dtype}-packed"))),
            found,
            "a directory has them as f32"
        );
    }
    let q6_k = ConvertOptions {
        tables: Some(TableType::Q6_K),
        ..ConvertOptions::default()
    };
    let error = convert(&at("f16.gguf"), &at("packed"), &q6_k).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("safetensors files cannot hold Q6_K"),
        "{error}"
    );
    let narrow = Shape {
        hidden_size: 384,
        heads: 6,
        ..Shape::default()
    };
    SyntheticModel {
        shape: narrow,
        seed: 18,
    }
    .write_gguf(&at("narrow.gguf"), &|_, _| I2_S)
    .unwrap();
    let error = convert(&at("narrow.gguf"), &at("narrow-q6_k.gguf"), &q6_k).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("token_embd.weight of shape [384, 512] cannot be Q6_K"),
        "{error}"
    );
}

#[test]
fn a_scale_that_a_type_cannot_keep_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    SyntheticModel {
        shape: shapes()[1].clone(),
        seed: 19,
    }
    .write_gguf(&at("llama.gguf"), &|_, _| I2_S)
    .unwrap();
    for (weights, most) in [
        (WeightType::TQ1_0, 1.0 / 2048.0),
        (WeightType::F16, 1.0 / 2048.0),
        (WeightType::BF16, 1.0 / 256.0),
    ] {
        let report = convert(
            &at("llama.gguf"),
            &at(&format!("{weights:?}.gguf")),
            &options(weights),
        )
        .unwrap();
        assert!(
            report.scales_rounded > 0 && report.scale_change_max > 0.0,
            "{report:?}"
        );
        assert!(
            report.scales_rounded <= 14 && report.scale_change_max <= most,
            "{report:?}"
        );
        assert!(
            !files(directory.path())
                .iter()
                .any(|name| name.contains("partial"))
        );
    }
}

#[test]
fn metadata_is_kept_except_keys_about_the_source_files_bytes() {
    use bitnet_files::gguf::{GgufWriter, MetadataValue, TensorInfo, Value};
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    SyntheticModel {
        shape: Shape::default(),
        seed: 20,
    }
    .write_gguf(&at("plain.gguf"), &|_, _| I2_S)
    .unwrap();
    let plain = Gguf::open(&at("plain.gguf")).unwrap();
    let mut pairs: Vec<(String, MetadataValue)> = plain
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let odd = [
        ("a.u8", Value::U8(7)),
        ("a.i64", Value::I64(-5)),
        ("a.f64", Value::F64(0.1)),
        ("a.text", Value::Str("ü")),
    ];
    pairs.extend(
        odd.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).into())),
    );
    pairs.push((
        "a.list".to_owned(),
        MetadataValue::F32s(vec![0.5, f32::NAN]),
    ));
    pairs.push(("general.alignment".to_owned(), MetadataValue::U32(32)));
    pairs.push(("split.count".to_owned(), MetadataValue::U32(1)));
    pairs.push((
        "bitnet.tl1.tile.1x1".to_owned(),
        MetadataValue::I32s(vec![1, 1, 1]),
    ));
    let infos = plain.tensors().map(|t| TensorInfo {
        name: t.name.into(),
        dtype: t.dtype,
        dims: t.dims.to_vec(),
    });
    let mut writer = GgufWriter::create(&at("odd.gguf"), &pairs, infos.collect()).unwrap();
    for tensor in plain.tensors() {
        writer.begin_tensor().unwrap();
        writer.write(tensor.data).unwrap();
    }
    writer.finish().unwrap();

    let named = ConvertOptions {
        name: Some("another".to_owned()),
        ..options(WeightType::TL2)
    };
    convert(&at("odd.gguf"), &at("out.gguf"), &named).unwrap();
    let out = Gguf::open(&at("out.gguf")).unwrap();
    for (key, value) in odd {
        assert_eq!(out.metadata().get(key), Some(value));
    }
    let keys: Vec<&str> = out.metadata().iter().map(|(key, _)| key).collect();
    let gone = ["general.alignment", "split.count", "bitnet.tl1.tile.1x1"];
    assert!(gone.iter().all(|key| !keys.contains(key)), "{keys:?}");
    let expected: Vec<&str> = plain.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..expected.len()], expected, "the order is kept");
    assert_eq!(out.metadata().require_u32("general.file_type").unwrap(), 39);
    assert_eq!(
        out.metadata().require_str("general.name").unwrap(),
        "another"
    );
    let tiles = keys
        .iter()
        .filter(|key| key.starts_with("bitnet.tl2.tile."))
        .count();
    assert_eq!(tiles, 4, "{keys:?}");
}

#[test]
fn rope_scaling_survives_conversion() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let source = at("source");
    let shape = Shape {
        architecture: Architecture::Llama,
        ..Shape::default()
    };
    SyntheticModel { shape, seed: 12 }
        .write_checkpoint(&source, CheckpointWeights::Packed, 1)
        .unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    let logits = |scaling: &str| {
        let scaling = format!("{{\"rope_scaling\": {scaling}, {}", &text[1..]);
        std::fs::write(source.join("config.json"), &scaling).unwrap();
        let direct = logits_of(&source, &cpu);
        convert(&source, &at("model.gguf"), &force).unwrap();
        assert_same_bits(&scaling, &logits_of(&at("model.gguf"), &cpu), &direct);
        // A conversion from a directory keeps its whole configuration.
        convert(&source, &at("packed"), &force).unwrap();
        assert_same_bits(&scaling, &logits_of(&at("packed"), &cpu), &direct);
        let factors = Gguf::open(&at("model.gguf")).unwrap();
        let factors = factors
            .tensor("rope_freqs.weight")
            .map(|t| (t.dtype, t.dims.to_vec()));
        let back = convert(&at("model.gguf"), &at("back"), &force);
        match &factors {
            None => assert_same_bits(&scaling, &logits_of(&at("back"), &cpu), &direct),
            Some(_) => assert!(back.unwrap_err().to_string().contains("rope_freqs.weight")),
        }
        (direct, factors)
    };
    let (plain, none) = logits("null");
    let (linear, also_none) = logits(r#"{"type": "linear", "factor": 4.0}"#);
    let (llama3, factors) = logits(
        r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}"#,
    );
    assert!(plain != linear && plain != llama3 && linear != llama3);
    assert_eq!(
        (none, also_none, factors),
        (None, None, Some((TensorType::F32, vec![32])))
    );
}

/// A directory with a source of 14 ternary tensors, and the options to write it.
fn some_source(weights: CheckpointWeights) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    SyntheticModel {
        shape: Shape::default(),
        seed: 13,
    }
    .write_checkpoint(&source, weights, 1)
    .unwrap();
    (directory, source)
}

#[test]
fn nothing_is_overwritten_or_left_behind() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let out = directory.path().join("model.gguf");
    std::fs::write(&out, "precious").unwrap();
    let error = convert(&source, &out, &ConvertOptions::default()).unwrap_err();
    assert!(
        matches!(error, Error::File(FileError::OutputExists { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");

    // A code 3 in the last ternary tensor makes the conversion fail when most is written.
    let weights = source.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let good = bytes.clone();
    let at = bytes.len() - 2 * (256 + 256 + 384) - 2 - 100;
    bytes[at] = 0xff;
    std::fs::write(&weights, bytes).unwrap();
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    let error = convert(&source, &out, &force).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert!(convert(&source, &directory.path().join("packed"), &force).is_err());
    assert_eq!(files(directory.path()), ["model.gguf", "source"]);

    std::fs::write(&weights, good).unwrap();
    convert(&source, &out, &force).unwrap();
    assert_eq!(files(directory.path()), ["model.gguf", "source"]);
    assert_eq!(
        Gguf::open(&out)
            .unwrap()
            .metadata()
            .require_str("general.name")
            .unwrap(),
        "source"
    );
}

#[test]
fn only_directories_of_models_are_replaced() {
    let (directory, source) = some_source(CheckpointWeights::Bf16);
    let at = |name: &str| directory.path().join(name);
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    std::fs::create_dir(at("home")).unwrap();
    std::fs::write(at("home/letter.txt"), "dear").unwrap();
    std::fs::write(at("file"), "x").unwrap();
    let problem = |out: &str, options: &ConvertOptions| {
        convert(&source, &at(out), options).unwrap_err().to_string()
    };
    assert!(problem("home", &ConvertOptions::default()).contains("exists"));
    assert!(problem("home", &force).contains("holds letter.txt"));
    assert!(problem("file", &force).contains("is a file"));
    std::fs::create_dir(at("out.gguf")).unwrap();
    assert!(problem("out.gguf", &force).contains("is a directory"));
    assert!(problem("..", &force).contains("not a name"));

    convert(&source, &at("packed"), &ConvertOptions::default()).unwrap();
    let first = std::fs::read(at("packed/model.safetensors")).unwrap();
    std::fs::write(at("packed/tokenizer.json"), "{}").unwrap();
    assert!(problem("packed", &ConvertOptions::default()).contains("exists"));
    convert(&source, &at("packed"), &force).unwrap();
    assert!(std::fs::read(at("packed/model.safetensors")).unwrap() == first);
    assert_eq!(files(&at("packed")), ["config.json", "model.safetensors"]);
    assert_eq!(
        files(directory.path()),
        ["file", "home", "out.gguf", "packed", "source"]
    );
    let packed = Checkpoint::open(&at("packed")).unwrap();
    let types: Vec<DType> = packed.tensors().map(|tensor| tensor.dtype).collect();
    assert_eq!(
        types.iter().filter(|dtype| **dtype == DType::U8).count(),
        14
    );
}

/// transformers multiplies hidden states only with weights of their own type, and unpacks ternary
/// weights to the type that `config.json` states.
#[test]
fn float_tensors_of_a_directory_promote_to_the_type_that_its_config_states() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let at = |name: &str| directory.path().join(name);
    let types = |path: &Path| {
        let text = std::fs::read_to_string(path.join("config.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let packed = Checkpoint::open(path).unwrap();
        let floats = packed.tensors().map(|tensor| (tensor.name, tensor.dtype));
        let floats = floats.filter(|(_, dtype)| *dtype != DType::U8);
        let (tables, others): (Vec<_>, Vec<_>) =
            floats.partition(|(name, _)| name.contains("embed") || name.contains("lm_head"));
        let all = |list: Vec<(&str, DType)>| {
            let mut types: Vec<_> = list.into_iter().map(|(_, dtype)| dtype).collect();
            types.dedup();
            types
        };
        (all(tables), all(others), json["torch_dtype"].clone())
    };
    let default = ConvertOptions::default();
    let bf16 = vec![DType::BF16];
    convert(&source, &at("f16.gguf"), &default).unwrap();
    for from in [source, at("f16.gguf")] {
        let out = at("exact-in-bf16");
        let force = ConvertOptions {
            force: true,
            ..ConvertOptions::default()
        };
        convert(&from, &out, &force).unwrap();
        assert_eq!(types(&out), (bf16.clone(), bf16.clone(), "bfloat16".into()));
    }
    let q8_0 = ConvertOptions {
        tables: Some(TableType::Q8_0),
        ..ConvertOptions::default()
    };
    convert(&at("f16.gguf"), &at("q8_0.gguf"), &q8_0).unwrap();
    convert(&at("q8_0.gguf"), &at("not-exact"), &default).unwrap();
    let expected = (vec![DType::F32], bf16, "float32".into());
    assert_eq!(types(&at("not-exact")), expected);
}

#[test]
fn directories_with_weights_in_several_files_are_replaced() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    let out = directory.path().join("sharded");
    SyntheticModel {
        shape: Shape::default(),
        seed: 1,
    }
    .write_checkpoint(&out, CheckpointWeights::Packed, 2)
    .unwrap();
    assert!(
        files(&out).contains(&"model-00001-of-00002.safetensors".to_owned()),
        "{:?}",
        files(&out)
    );
    convert(&source, &out, &force).unwrap();
    assert_eq!(files(&out), ["config.json", "model.safetensors"]);
}

#[test]
fn a_directory_that_a_killed_process_was_replacing_is_restored() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let at = |name: &str| directory.path().join(name);
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    convert(&source, &at("packed"), &ConvertOptions::default()).unwrap();
    std::fs::rename(at("packed"), at(".packed.replaced")).unwrap();
    let error = convert(&source, &at("packed"), &ConvertOptions::default()).unwrap_err();
    assert!(
        matches!(error, Error::File(FileError::OutputExists { .. })),
        "{error}"
    );
    assert_eq!(files(directory.path()), ["packed", "source"]);

    std::fs::rename(at("packed"), at(".packed.replaced")).unwrap();
    convert(&source, &at("packed"), &force).unwrap();
    assert_eq!(files(directory.path()), ["packed", "source"]);
    std::fs::create_dir(at(".packed.replaced")).unwrap();
    convert(&source, &at("packed"), &force).unwrap();
    assert_eq!(files(directory.path()), ["packed", "source"]);
}

#[test]
fn an_existing_target_is_refused_before_weights_are_read() {
    let (directory, source) = some_source(CheckpointWeights::Bf16);
    // Weights that are not finite have no scale.
    let weights = source.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let content = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[content..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let out = directory.path().join("packed");
    let error = convert(&source, &out, &ConvertOptions::default()).unwrap_err();
    assert!(
        !matches!(error, Error::File(FileError::OutputExists { .. })),
        "{error}"
    );
    std::fs::create_dir(&out).unwrap();
    let error = convert(&source, &out, &ConvertOptions::default()).unwrap_err();
    assert!(
        matches!(error, Error::File(FileError::OutputExists { .. })),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_kept() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let (directory, source) = some_source(CheckpointWeights::Packed);
    let at = |name: &str| directory.path().join(name);
    let force = ConvertOptions {
        force: true,
        ..ConvertOptions::default()
    };
    std::fs::create_dir_all(at("elsewhere/packed")).unwrap();
    std::fs::write(at("elsewhere/model.gguf"), "of before").unwrap();
    for name in ["model.gguf", "packed"] {
        symlink(Path::new("elsewhere").join(name), at(name)).unwrap();
        let error = convert(&source, &at(name), &ConvertOptions::default()).unwrap_err();
        assert!(
            matches!(error, Error::File(FileError::OutputExists { .. })),
            "{error}"
        );
        convert(&source, &at(name), &force).unwrap();
        assert!(std::fs::symlink_metadata(at(name)).unwrap().is_symlink());
    }
    Gguf::open(&at("elsewhere/model.gguf")).unwrap();
    Checkpoint::open(&at("elsewhere/packed")).unwrap();
    assert_eq!(files(&at("elsewhere")), ["model.gguf", "packed"]);

    let pipe = at("pipe.gguf");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let error = convert(&source, &pipe, &force).unwrap_err().to_string();
    assert!(error.contains("not a file"), "{error}");
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    symlink("nowhere", at("dangling.gguf")).unwrap();
    assert!(convert(&source, &at("dangling.gguf"), &force).is_err());
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let input = Input::Checkpoint(&checkpoint);
    let cpu = cpu();
    for name in ["model.gguf", "packed"] {
        let out = directory.path().join(name);
        for calls in 0..100 {
            let mut left = calls;
            let mut progress = |_: bitnet_models::convert::Progress<'_>| {
                left -= 1;
                if left < 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let options = ConvertOptions::default();
            let result = match name {
                "packed" => to_checkpoint(input, &out, &options, &[], cpu.pool(), &mut progress),
                _ => to_gguf(input, &out, &options, &[], cpu.pool(), &mut progress),
            };
            match result {
                Err(Error::Interrupted) => {
                    assert_eq!(files(directory.path()), ["source"], "{name} {calls}")
                }
                other => {
                    // Each tensor was written, and read back.
                    assert!(
                        other.is_ok() && calls >= 2 * 24,
                        "{name} {calls}: {other:?}"
                    );
                    break;
                }
            }
        }
        load(&out, &cpu).unwrap();
        match name {
            "packed" => std::fs::remove_dir_all(out).unwrap(),
            _ => std::fs::remove_file(out).unwrap(),
        }
    }
}

#[test]
fn leftovers_of_a_killed_process_are_reused_and_files_of_a_running_one_are_not() {
    let (directory, source) = some_source(CheckpointWeights::Packed);
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at(".model.gguf.partial"), vec![0xff; 5_000_000]).unwrap();
    std::fs::create_dir(at(".packed.partial")).unwrap();
    std::fs::write(at(".packed.partial/.lock"), "").unwrap();
    std::fs::write(
        at(".packed.partial/model.safetensors"),
        vec![0xff; 5_000_000],
    )
    .unwrap();

    let busy = [".model.gguf.partial", ".packed.partial/.lock"]
        .map(|name| std::fs::File::open(at(name)).unwrap());
    busy.iter().for_each(|file| file.lock().unwrap());
    for name in ["model.gguf", "packed"] {
        let error = convert(&source, &at(name), &ConvertOptions::default()).unwrap_err();
        let cause = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            cause.contains("another process is writing it"),
            "{error} {cause}"
        );
    }
    assert_eq!(
        files(directory.path()),
        [".model.gguf.partial", ".packed.partial", "source"]
    );
    drop(busy);

    for name in ["model.gguf", "packed"] {
        convert(&source, &at(name), &ConvertOptions::default()).unwrap();
        load(&at(name), &cpu()).unwrap();
    }
    assert_eq!(files(directory.path()), ["model.gguf", "packed", "source"]);
    assert_eq!(files(&at("packed")), ["config.json", "model.safetensors"]);
}

#[test]
fn unsupported_models_are_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let problem = |shape: Shape, weights: WeightType| {
        let source = at("source");
        let model = SyntheticModel { shape, seed: 14 };
        model
            .write_checkpoint(&source, CheckpointWeights::Packed, 1)
            .unwrap();
        convert(&source, &at("model.gguf"), &options(weights))
            .unwrap_err()
            .to_string()
    };
    let shape = Shape {
        ffn_size: 544,
        ..Shape::default()
    };
    let expected = "cannot convert: Down has 544 columns, I2_S needs a multiple of 128";
    assert_eq!(problem(shape.clone(), WeightType::I2_S), expected);
    let expected = "cannot convert: Down has 544 columns, TQ2_0 needs a multiple of 256";
    assert_eq!(problem(shape, WeightType::TQ2_0), expected);
    let shape = Shape {
        ffn_size: 368,
        ..Shape::default()
    };
    let expected = "cannot convert: Gate has shape [368, 256], which no tile of TL2 divides";
    assert_eq!(problem(shape, WeightType::TL2), expected);
    assert_eq!(files(directory.path()), ["source"]);
}
