//! One model in every form gives the same logits, bit for bit; invalid models are refused with an
//! error that names the problem.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo, TensorType, Value};
use bitnet_kernels::{Cpu, Kernel, KernelSet, Packing};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use bitnet_models::{
    Architecture, Config, Error, InputRounding, KvType, LanguageModel, LoadOptions, matrix_shapes,
};
use bitnet_quantization::dense::Dense;
use bitnet_quantization::i2_s::Form;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{TernaryFormat, iq_bn, tl1, tl2};

use crate::{assert_same_bits, logits, some_logits};

const I2_S: TernaryFormat = TernaryFormat::I2_S(Form::Block128);
const TL1: TernaryFormat = TernaryFormat::TL1(tl1::Tile {
    tile_rows: 64,
    block_cols: 32,
    inner_rows: 32,
});
const TL2: TernaryFormat = TernaryFormat::TL2(tl2::Tile {
    tile_rows: 32,
    block_cols: 96,
});

fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 2)
}

/// TQ blocks divide the columns of all shapes, unless `ffn_size` says otherwise.
fn shapes() -> [(&'static str, Shape); 3] {
    let shape = Shape {
        ffn_size: 512,
        ..Shape::default()
    };
    [
        ("b1.58", shape.clone()),
        (
            "1bitllm",
            Shape {
                architecture: Architecture::Bitnet,
                head_dim: 96,
                heads: 8,
                kv_heads: 8,
                ..shape.clone()
            },
        ),
        (
            "llama",
            Shape {
                architecture: Architecture::Llama,
                tied: false,
                rope_theta: 1_000_042.0,
                ..shape
            },
        ),
    ]
}

fn load_gguf(path: &Path, options: &LoadOptions, cpu: &Cpu) -> Result<LanguageModel<Cpu>, Error> {
    LanguageModel::from_gguf(&Arc::new(Gguf::open(path)?), options, cpu)
}

fn load_checkpoint(path: &Path, cpu: &Cpu) -> Result<LanguageModel<Cpu>, Error> {
    LanguageModel::from_checkpoint(&Checkpoint::open(path)?, &LoadOptions::default(), cpu)
}

/// A GGUF file's pairs and tensors, which tests change and write again.
type Parts = (Vec<(String, MetadataValue)>, Vec<(TensorInfo, Vec<u8>)>);

fn rewrite(path: &Path, change: impl FnOnce(&mut Parts)) {
    let gguf = Gguf::open(path).unwrap();
    let value = |value: Value<'_>| match value {
        Value::U32(x) => MetadataValue::U32(x),
        Value::F32(x) => MetadataValue::F32(x),
        Value::Bool(x) => MetadataValue::Bool(x),
        Value::Str(x) => MetadataValue::String(x.to_owned()),
        Value::Array(x) => match x.strings() {
            Some(texts) => MetadataValue::Strings(texts.map(str::to_owned).collect()),
            None => MetadataValue::I32s(x.iter().map(|v| v.as_integer().unwrap() as i32).collect()),
        },
        other => panic!("{other}"),
    };
    let pairs = gguf
        .metadata()
        .iter()
        .map(|(key, v)| (key.to_owned(), value(v)))
        .collect();
    let info = |name: &str, dtype, dims: &[usize]| TensorInfo {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
    };
    let tensors = gguf
        .tensors()
        .map(|t| (info(t.name, t.dtype, t.dims), t.data.to_vec()))
        .collect();
    let mut parts = (pairs, tensors);
    change(&mut parts);
    std::fs::remove_file(path).unwrap();
    let infos = parts.1.iter().map(|(info, _)| info.clone()).collect();
    let mut writer = GgufWriter::create(path, &parts.0, infos).unwrap();
    for (_, bytes) in &parts.1 {
        writer.begin_tensor().unwrap();
        writer.write(bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The configuration of a small llama file with further pairs, or the error.
fn config_with(pairs: &[(&str, MetadataValue)]) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let shape = Shape {
        architecture: Architecture::Llama,
        num_layers: 1,
        ..Shape::default()
    };
    SyntheticModel { shape, seed: 7 }
        .write_gguf(&path, &|_, _| I2_S)
        .unwrap();
    rewrite(&path, |(all, _)| {
        for (key, value) in pairs {
            let key = format!("llama.{key}");
            all.retain(|(known, _)| *known != key);
            all.push((key, value.clone()));
        }
    });
    Config::from_gguf(&Gguf::open(&path).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn rope_and_attention_keys_mean_the_same_as_in_llama_cpp() {
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let (kind, factor, old) = (
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
    );
    let scaling = |pairs: &[(&str, MetadataValue)]| config_with(pairs).unwrap().rope_scaling_factor;
    let four = || MetadataValue::F32(4.0);
    assert_eq!(scaling(&[]), 1.0);
    assert_eq!(scaling(&[(factor, four())]), 4.0);
    assert_eq!(scaling(&[(old, four())]), 4.0);
    assert_eq!(
        scaling(&[(old, four()), (factor, MetadataValue::F32(2.0))]),
        2.0
    );
    assert_eq!(scaling(&[(factor, MetadataValue::F32(0.0))]), 1.0);
    assert_eq!(scaling(&[(kind, text("none")), (factor, four())]), 1.0);
    assert_eq!(scaling(&[(kind, text("linear")), (old, four())]), 4.0);
    assert_eq!(
        scaling(&[("rope.scaling.attn_factor", MetadataValue::F32(1.0))]),
        1.0
    );
    for (pairs, expected) in [
        (
            (kind, text("yarn")),
            "llama.rope.scaling.type is \"yarn\"; none and linear are supported",
        ),
        (
            (kind, text("linear")),
            "metadata key llama.rope.scaling.factor is missing",
        ),
        (
            ("rope.scaling.attn_factor", MetadataValue::F32(1.3)),
            "rope.scaling.attn_factor is 1.3; 1 is supported",
        ),
        (
            ("attention.causal", MetadataValue::Bool(false)),
            "llama.attention.causal is false",
        ),
    ] {
        let error = config_with(&[pairs]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    config_with(&[("attention.causal", MetadataValue::Bool(true))]).unwrap();
}

#[test]
fn sizes_may_be_lists_with_the_same_number_for_every_layer() {
    let plain = config_with(&[]).unwrap();
    let list = |numbers: &[usize]| {
        MetadataValue::I32s(numbers.iter().map(|number| *number as i32).collect())
    };
    let lists = config_with(&[
        ("attention.head_count", list(&[plain.attention.heads; 2])),
        (
            "attention.head_count_kv",
            list(&[plain.attention.kv_heads; 2]),
        ),
        ("feed_forward_length", list(&[plain.ffn_size; 2])),
    ]);
    assert_eq!(lists.unwrap(), plain);
    for (numbers, expected) in [
        (
            &[256, 512][..],
            "feed_forward_length is a list with 256 and 512; layers of one shape",
        ),
        (&[], "feed_forward_length is an empty list"),
        (&[0, 0], "feed_forward_length is 0, expected 1 to"),
    ] {
        let error = config_with(&[("feed_forward_length", list(numbers))]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_form_of_a_model_gives_the_same_bits() {
    let cpu = cpu();
    for (name, shape) in shapes() {
        let directory = tempfile::tempdir().unwrap();
        let architecture = shape.architecture;
        let model = SyntheticModel { shape, seed: 7 };
        let path = directory.path().join("packed");
        model
            .write_checkpoint(&path, CheckpointWeights::Packed, 1)
            .unwrap();
        let expected = some_logits(&load_checkpoint(&path, &cpu).unwrap(), &cpu);
        assert!(
            expected.iter().any(|x| x.abs() > 0.1),
            "{name}: logits that say nothing"
        );
        let mut formats = vec![
            I2_S,
            TernaryFormat::I2_S(Form::Block64),
            TernaryFormat::I2_S(Form::Row4),
            TL1,
            TL2,
            TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN),
        ];
        if architecture != Architecture::Llama {
            // A scale that the file stores as its inverse is not an f16 number.
            formats.extend([Kind::TQ1_0, Kind::TQ2_0].map(TernaryFormat::TQ));
            formats.push(TernaryFormat::Q4_0);
            formats.push(TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN));
        }
        for format in formats {
            let path = directory.path().join("model.gguf");
            model.write_gguf(&path, &|_, _| format).unwrap();
            let mut options = LoadOptions::default();
            if let TernaryFormat::I2_S(form) = format {
                options.i2_s_form = form;
            }
            let found = some_logits(&load_gguf(&path, &options, &cpu).unwrap(), &cpu);
            assert_same_bits(&format!("{name} {format:?}"), &found, &expected);
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn packings_by_shape_apply_to_matrices_of_that_shape() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("packed");
    SyntheticModel {
        shape: Shape::default(),
        seed: 5,
    }
    .write_checkpoint(&path, CheckpointWeights::Packed, 1)
    .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let shapes = matrix_shapes(checkpoint.config());
    assert_eq!(shapes, [(512, 256), (256, 256), (768, 256), (256, 384)]);
    let packings = vec![(shapes[0], Packing::Tl1), (shapes[3], Packing::Tl2)];
    let options = LoadOptions {
        packings,
        ..LoadOptions::default()
    };
    let model = LanguageModel::from_checkpoint(&checkpoint, &options, &cpu).unwrap();
    let expected = some_logits(&load_checkpoint(&path, &cpu).unwrap(), &cpu);
    cpu.counters().reset();
    assert_same_bits("some looked up", &some_logits(&model, &cpu), &expected);
    let layers = checkpoint.config().num_layers as u64;
    let calls = [Kernel::I2sGemm, Kernel::Tl1Gemm, Kernel::Tl2Gemm]
        .map(|kernel| cpu.counters().get(kernel).calls);
    assert_eq!(calls, [2 * layers, layers, layers]);
}

#[test]
fn shards_and_float_types_change_nothing() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let model = SyntheticModel {
        shape: Shape::default(),
        seed: 3,
    };
    let logits = |weights, num_shards| {
        let path = directory.path().join(format!("{weights:?}-{num_shards}"));
        model.write_checkpoint(&path, weights, num_shards).unwrap();
        some_logits(&load_checkpoint(&path, &cpu).unwrap(), &cpu)
    };
    let (packed, online) = (
        logits(CheckpointWeights::Packed, 1),
        logits(CheckpointWeights::Bf16, 1),
    );
    assert_same_bits(
        "packed in three files",
        &logits(CheckpointWeights::Packed, 3),
        &packed,
    );
    assert_same_bits(
        "f32 in two files",
        &logits(CheckpointWeights::F32, 2),
        &online,
    );
    // The packed form rounds the scale to bf16, the online form does not.
    let worst = packed
        .iter()
        .zip(&online)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.5, "{worst}");
}

#[test]
fn columns_that_are_not_a_multiple_of_128_run_in_the_forms_that_hold_them() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let model = SyntheticModel {
        shape: Shape {
            ffn_size: 544,
            ..Shape::default()
        },
        seed: 1,
    };
    let path = directory.path().join("packed");
    model
        .write_checkpoint(&path, CheckpointWeights::Packed, 1)
        .unwrap();
    let expected = some_logits(&load_checkpoint(&path, &cpu).unwrap(), &cpu);
    for format in [TL1, TL2, I2_S] {
        let path = directory.path().join(format!("{format:?}.gguf"));
        // 544 rows are 17 times 32.
        let tl1 = TernaryFormat::TL1(tl1::Tile {
            tile_rows: 32,
            block_cols: 32,
            inner_rows: 32,
        });
        model
            .write_gguf(&path, &|_, _| if format == TL1 { tl1 } else { format })
            .unwrap();
        let found = some_logits(
            &load_gguf(&path, &LoadOptions::default(), &cpu).unwrap(),
            &cpu,
        );
        assert_same_bits(&format!("{format:?}"), &found, &expected);
    }
}

#[test]
fn tiles_come_from_options_or_the_file_and_are_required() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let model = SyntheticModel {
        shape: Shape::default(),
        seed: 2,
    };
    for format in [TL1, TL2] {
        model.write_gguf(&path, &|_, _| format).unwrap();
        let expected = some_logits(
            &load_gguf(&path, &LoadOptions::default(), &cpu).unwrap(),
            &cpu,
        );
        rewrite(&path, |(pairs, _)| {
            pairs.retain(|(key, _)| !key.contains(".tile."))
        });
        let error = load_gguf(&path, &LoadOptions::default(), &cpu)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("whose tile is not known; metadata key bitnet.tl"),
            "{error}"
        );
        let mut options = LoadOptions::default();
        for shape in [(256, 256), (128, 256), (384, 256), (256, 384)] {
            match format {
                TernaryFormat::TL1(tile) => options.tl1_tiles.push((shape, tile)),
                TernaryFormat::TL2(tile) => options.tl2_tiles.push((shape, tile)),
                _ => {}
            }
        }
        let found = some_logits(&load_gguf(&path, &options, &cpu).unwrap(), &cpu);
        assert_same_bits(&format!("{format:?}"), &found, &expected);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_scale_beside_a_tensor_multiplies_the_scale_inside_it() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    SyntheticModel {
        shape: Shape::default(),
        seed: 4,
    }
    .write_gguf(&path, &|_, _| I2_S)
    .unwrap();
    let expected = some_logits(
        &load_gguf(&path, &LoadOptions::default(), &cpu).unwrap(),
        &cpu,
    );
    rewrite(&path, |(_, tensors)| {
        let mut scales = vec![];
        for (info, bytes) in tensors
            .iter_mut()
            .filter(|(info, _)| info.dtype == TensorType::I2_S)
        {
            let at = bytes.len() - 32;
            let name = info.name.replace(".weight", ".scale");
            scales.push((
                TensorInfo {
                    name,
                    dtype: TensorType::F32,
                    dims: vec![1],
                },
                bytes[at..at + 4].to_vec(),
            ));
            bytes[at..at + 4].copy_from_slice(&1.0f32.to_le_bytes());
        }
        tensors.append(&mut scales);
    });
    assert_same_bits(
        "scales",
        &some_logits(
            &load_gguf(&path, &LoadOptions::default(), &cpu).unwrap(),
            &cpu,
        ),
        &expected,
    );
}

#[test]
fn an_unsupported_gguf_is_refused_with_its_tensor() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let model = SyntheticModel {
        shape: Shape {
            ffn_size: 512,
            ..Shape::default()
        },
        seed: 5,
    };
    let refused = |format, change: &dyn Fn(&mut Parts), expected: &str| {
        model.write_gguf(&path, &|_, _| format).unwrap();
        rewrite(&path, change);
        let error = load_gguf(&path, &LoadOptions::default(), &cpu)
            .err()
            .expect("it loaded");
        let message = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        assert!(
            message.contains(expected),
            "{message:?} does not say {expected:?}"
        );
        std::fs::remove_file(&path).unwrap();
    };
    fn tensor<'a>(parts: &'a mut Parts, name: &str) -> &'a mut (TensorInfo, Vec<u8>) {
        parts
            .1
            .iter_mut()
            .find(|(info, _)| info.name == name)
            .unwrap()
    }
    let float = |name: &str, len: usize| {
        (
            TensorInfo {
                name: name.to_owned(),
                dtype: TensorType::F32,
                dims: vec![len],
            },
            vec![0; 4 * len],
        )
    };
    let q = "blk.0.attn_q.weight";
    refused(
        I2_S,
        &|parts| parts.1.push(float("blk.0.attn_q.bias", 256)),
        "blk.0.attn_q.bias has no place",
    );
    refused(
        I2_S,
        &|parts| parts.1.push(float("blk.2.attn_norm.weight", 256)),
        "blk.2.attn_norm.weight has no place",
    );
    refused(
        I2_S,
        &|parts| parts.1.retain(|(info, _)| info.name != q),
        "tensor blk.0.attn_q.weight is missing",
    );
    refused(
        I2_S,
        &|parts| tensor(parts, q).0.dims = vec![512, 128],
        "has shape [512, 128], expected [256, 256]",
    );
    refused(
        I2_S,
        &|parts| tensor(parts, q).1[7] = 0xff,
        "tensor blk.0.attn_q.weight: I2_S code at row 0, column 7 is 3",
    );
    refused(
        I2_S,
        &|parts| tensor(parts, "blk.1.ffn_norm.weight").1[..4].fill(0xff),
        "element 0 is NaN",
    );
    refused(
        I2_S,
        &|parts| {
            *tensor(parts, q) = (
                TensorInfo {
                    dtype: TensorType::I8_S,
                    ..tensor(parts, q).0.clone()
                },
                vec![0; 65568],
            )
        },
        "type I8_S, int8 with a scale, which is not ternary; a projection can be I2_S, TL1",
    );
    refused(
        TL1,
        &|parts| {
            let key = "bitnet.tl1.tile.256x256";
            parts.0.iter_mut().find(|(k, _)| k == key).unwrap().1 =
                MetadataValue::I32s(vec![64, -32, 32]);
        },
        "bitnet.tl1.tile.256x256 is [64, -32, 32]; 3 sizes are expected",
    );
}

#[test]
fn blocks_with_their_own_scales_run_as_weights_with_group_scales() {
    let cpu = cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let model = SyntheticModel {
        shape: Shape {
            ffn_size: 512,
            ..Shape::default()
        },
        seed: 5,
    };
    let format = TernaryFormat::TQ(Kind::TQ2_0);
    let options = LoadOptions {
        group_inputs: InputRounding::None,
        ..LoadOptions::default()
    };
    let logits_of = |names: &[&str]| {
        model.write_gguf(&path, &|_, _| format).unwrap();
        rewrite(&path, |parts: &mut Parts| {
            for (_, bytes) in parts
                .1
                .iter_mut()
                .filter(|(info, _)| names.contains(&&*info.name))
            {
                // The next f16 differs too little to matter, but then the blocks have two different
                // scales.
                let block = &mut bytes[66 * 9 + 64..66 * 10];
                let scale = u16::from_le_bytes([block[0], block[1]]) + 1;
                block.copy_from_slice(&scale.to_le_bytes());
            }
        });
        let loaded = load_gguf(&path, &options, &cpu).expect("it loads");
        std::fs::remove_file(&path).unwrap();
        (loaded.packing(), some_logits(&loaded, &cpu))
    };
    let (packing, ternary) = logits_of(&[]);
    assert!(!packing.contains("groups"), "{packing}");
    for names in [
        &["blk.0.attn_q.weight"][..],
        &["blk.0.ffn_up.weight"],
        &["blk.1.ffn_down.weight", "blk.0.attn_output.weight"],
    ] {
        let (packing, grouped) = logits_of(names);
        assert!(packing.contains("-bit groups"), "{packing}");
        let pairs = || {
            ternary
                .iter()
                .zip(&grouped)
                .map(|(a, b)| (f64::from(*a), f64::from(*b)))
        };
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        let squares: [f64; 2] = [
            pairs().map(|(a, _)| a * a).sum(),
            pairs().map(|(_, b)| b * b).sum(),
        ];
        let cosine = dot / (squares[0] * squares[1]).sqrt();
        assert!(cosine > 0.999, "{names:?}: {cosine}");
    }
}

#[test]
fn group_scales_behind_q8_0_are_recovered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for graph in ["minicpm", "qwen3"] {
        let original = crate::graphs::folder(graph);
        std::fs::copy(original.join("model.gguf"), &path).unwrap();
        rewrite(&path, |(_, tensors)| {
            let projections = tensors
                .iter_mut()
                .filter(|(info, _)| info.name.starts_with("blk.") && info.dims.len() == 2);
            for (info, bytes) in projections {
                let stored = info.dtype.dense().unwrap();
                let mut values = vec![0.0; info.dims.iter().product()];
                stored.dequantize(bytes, &mut values).unwrap();
                let len = Dense::Q8_0.size_bytes(info.dims[1], info.dims[0]).unwrap();
                *bytes = vec![0; len];
                Dense::Q8_0.quantize(&values, bytes).unwrap();
                info.dtype = TensorType::Q8_0;
            }
        });
        let (cpu, tokens) = (cpu(), crate::graphs::tokens(&original));
        let [found, expected] = [directory.path(), &original].map(|folder| {
            let model = crate::groups::load(folder, InputRounding::None, &cpu);
            logits(&model, &cpu, &tokens, KvType::F32, 8)
        });
        let largest = expected
            .iter()
            .fold(0.0f32, |largest, x| largest.max(x.abs()));
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        // Scales come back within their last bit: 2^-11.
        assert!(worst < largest / 500.0, "{graph}: {worst} of {largest}");
    }
}
