//! Conversions of models with group scales: nothing is lost, or the first tensor that would lose
//! something is named; floats are quantized by the rule of the target.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::Pool;
use bitnet_models::convert::{
    ConvertOptions, DirectoryForm, Input, Progress, WeightType, to_checkpoint, to_gguf,
};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Error, InputRounding, KvType, LanguageModel, LoadOptions};
use bitnet_quantization::GroupFormat;
use half::f16;

use crate::checkpoint::cpu;
use crate::directories::{Copy, with_causes};
use crate::graphs::{assert_near, folder, tokens};
use crate::groups::{golden_model, integers, load};
use crate::{assert_same_bits, logits, read_npy};

fn write(input: Input<'_>, to: &Path, weights: WeightType) -> Result<(), Error> {
    let options = ConvertOptions {
        weights,
        ..ConvertOptions::default()
    };
    let pool = Pool::new(2);
    to_gguf(input, to, &options, &[], &pool, &mut |_| {
        ControlFlow::Continue(())
    })
    .map(|_| ())
}

/// Converts a file, perhaps quantizing floats.
fn convert(from: &Path, to: &Path, weights: WeightType, quantize: bool) -> Result<(), Error> {
    let gguf = Arc::new(Gguf::open(from)?);
    let options = LoadOptions::default();
    let input = Input::Gguf {
        gguf: &gguf,
        options: &options,
        quantize,
    };
    write(input, to, weights)
}

/// A folder for files that a test writes.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// A model folder as `load` takes it; the caller writes its `model.gguf`.
    fn model(&self, name: &str) -> PathBuf {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        folder.join("model.gguf")
    }
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let gguf = Gguf::open(path).expect("it opens");
    let mut tensors: Vec<_> = gguf
        .tensors()
        .map(|tensor| (tensor.name.to_owned(), tensor.data.to_vec()))
        .collect();
    tensors.sort();
    tensors
}

#[track_caller]
fn assert_same_tensors(name: &str, a: &Path, b: &Path) {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.len(), b.len(), "{name}");
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b, "{name}: {} differs from {}", a.0, b.0);
    }
}

#[test]
fn tensors_come_back_with_the_same_bytes_after_all_forms_that_hold_them() {
    use WeightType::{PQ2_0, PTQ1_0, Q1_0, Q2_0};
    let files = Files::new();
    for (model, forms) in [
        ("minicpm", &[PQ2_0, Q2_0, PTQ1_0][..]),
        ("minicpm-longrope", &[PQ2_0, PTQ1_0]),
        ("hunyuan-dense", &[Q2_0, PTQ1_0, PQ2_0, Q1_0]),
    ] {
        let original = folder(model).join("model.gguf");
        let mut from = original.clone();
        let (tokens, cpu) = (tokens(&folder(model)), cpu());
        for (index, form) in forms.iter().enumerate() {
            let to = files.model(&format!("{model}-{index}"));
            convert(&from, &to, *form, false).expect(model);
            let converted = load(
                to.parent().expect("a folder"),
                InputRounding::default(),
                &cpu,
            );
            let found = logits(&converted, &cpu, &tokens, KvType::F32, 8);
            let expected = read_npy(&folder(model).join("logits-int8.npy"));
            assert_near(&format!("{model} as {form:?}"), &found, &expected);
            from = to;
        }
        assert_same_tensors(model, &from, &original);
    }
}

#[test]
fn floats_hold_group_scales_and_give_them_back() {
    let files = Files::new();
    let (floats, again) = (files.model("floats"), files.model("again"));
    let original = folder("qwen2");
    for form in [WeightType::F16, WeightType::F32] {
        convert(&original.join("model.gguf"), &floats, form, false).expect("floats");
        let cpu = cpu();
        let tokens = tokens(&original);
        let expected = load(&original, InputRounding::default(), &cpu);
        let expected = logits(&expected, &cpu, &tokens, KvType::F32, 8);
        // Floats run as they are, too.
        convert(&floats, &again, WeightType::Q2_0, false).expect("groups");
        for path in [&floats, &again] {
            let found = load(
                path.parent().expect("a folder"),
                InputRounding::default(),
                &cpu,
            );
            let found = logits(&found, &cpu, &tokens, KvType::F32, 8);
            assert_same_bits(&format!("{form:?}"), &found, &expected);
        }
        std::fs::remove_file(&floats).expect("removed");
        std::fs::remove_file(&again).expect("removed");
    }
}

#[test]
fn a_conversion_that_would_lose_something_names_the_tensor() {
    let files = Files::new();
    let out = files.model("never");
    for (model, form, problem) in [
        (
            "qwen2",
            WeightType::PQ2_0,
            "Down has 192 columns, PQ2_0 needs a multiple of 128",
        ),
        ("qwen2", WeightType::BF16, "which BF16 cannot hold"),
        ("minicpm", WeightType::Q1_0, "code at row 0, column "),
        (
            "minicpm",
            WeightType::I2_S,
            "one scale per tensor is supported",
        ),
        (
            "hunyuan-dense",
            WeightType::TQ2_0,
            "128 columns, TQ2_0 needs a multiple of 256",
        ),
    ] {
        let from = folder(model).join("model.gguf");
        let error = convert(&from, &out, form, false).expect_err("it would lose weights");
        let text = with_causes(&error);
        assert!(text.contains(problem), "{model} {form:?}: {text}");
        assert!(!out.exists());
    }
}

#[test]
fn hybrid_and_rotated_models_keep_their_metadata_and_bits() {
    let files = Files::new();
    for name in ["qwen3-ptq1_0", "qwen35-ptq1_0-rot512-part"] {
        let Some(original) = golden_model(name) else {
            continue;
        };
        let to = files.model(name);
        convert(&original.join("model.gguf"), &to, WeightType::PQ2_0, false).expect(name);
        let cpu = cpu();
        let tokens = integers(&original.join("tokens.json"), Some("tokens"));
        let [expected, found] = [&original, to.parent().expect("a folder")].map(|folder: &Path| {
            let model = load(folder, InputRounding::default(), &cpu);
            logits(&model, &cpu, &tokens, KvType::F32, 16)
        });
        assert_same_bits(name, &found, &expected);
    }
}

#[test]
fn directories_become_files_with_the_same_bits() {
    let files = Files::new();
    for (model, form, directories) in [
        ("qwen2", WeightType::Q2_0, &["hf", "mlx"][..]),
        ("qwen3", WeightType::Q1_0, &["hf", "mlx"]),
        ("hunyuan-dense", WeightType::Q1_0, &["hf"]),
        ("minicpm-longrope", WeightType::PTQ1_0, &["hf"]),
    ] {
        let original = folder(model);
        let (tokens, cpu) = (tokens(&original), cpu());
        let expected = load(&original, InputRounding::default(), &cpu);
        let expected = logits(&expected, &cpu, &tokens, KvType::F32, 8);
        for directory in directories {
            let checkpoint = Checkpoint::open(&original.join(directory)).expect("it opens");
            let to = files.model(&format!("{model}-{directory}"));
            write(Input::Checkpoint(&checkpoint), &to, form).expect(model);
            let found = load(
                to.parent().expect("a folder"),
                InputRounding::default(),
                &cpu,
            );
            let found = logits(&found, &cpu, &tokens, KvType::F32, 8);
            assert_same_bits(&format!("{model} {directory}"), &found, &expected);
        }
    }
}

/// Writes a directory of MLX.
fn write_mlx(from: &Path, to: &Path, rounds: bool) -> Result<(), Error> {
    let gguf = Arc::new(Gguf::open(from)?);
    let options = LoadOptions::default();
    let input = Input::Gguf {
        gguf: &gguf,
        options: &options,
        quantize: false,
    };
    let form = ConvertOptions {
        directory: DirectoryForm::Mlx,
        bf16_scales: rounds,
        ..ConvertOptions::default()
    };
    let mut progress = |_: Progress<'_>| ControlFlow::Continue(());
    to_checkpoint(input, to, &form, &[], cpu().pool(), &mut progress).map(|_| ())
}

#[test]
fn directories_of_mlx_hold_group_scales_and_give_them_back() {
    let files = Files::new();
    for (model, form) in [("qwen2", WeightType::Q2_0), ("qwen3", WeightType::Q1_0)] {
        let original = folder(model).join("model.gguf");
        let directory = files.0.path().join(format!("{model}-mlx"));
        write_mlx(&original, &directory, false).expect(model);

        let checkpoint = Checkpoint::open(&directory).expect("it opens");
        let given = Checkpoint::open(&folder(model).join("mlx")).expect("it opens");
        let tensors_of = |checkpoint: &Checkpoint| {
            let mut tensors: Vec<_> = checkpoint
                .tensors()
                .map(|tensor| (tensor.name.to_owned(), tensor.shape.to_vec()))
                .collect();
            tensors.sort();
            tensors
        };
        assert_eq!(tensors_of(&checkpoint), tensors_of(&given), "{model}");

        let (tokens, cpu) = (tokens(&folder(model)), cpu());
        let expected = load(&folder(model), InputRounding::default(), &cpu);
        let expected = logits(&expected, &cpu, &tokens, KvType::F32, 8);
        let options = LoadOptions::default();
        let found = LanguageModel::from_checkpoint(&checkpoint, &options, &cpu).expect(model);
        let found = logits(&found, &cpu, &tokens, KvType::F32, 8);
        assert_same_bits(model, &found, &expected);

        let back = files.model(&format!("{model}-back"));
        write(Input::Checkpoint(&checkpoint), &back, form).expect(model);
        assert_same_tensors(model, &back, &original);
    }
}

#[test]
fn directories_of_mlx_refuse_what_they_cannot_hold() {
    let files = Files::new();
    let to = files.0.path().join("mlx");
    for (model, rounds, expected) in [
        ("minicpm", false, "Llama, Qwen2 and Qwen3, this is minicpm"),
        ("qwen2-i2_s", false, "convert to pq2_0 first"),
        ("qwen2", true, "--bf16-scales is for packed directories"),
    ] {
        let error = write_mlx(&folder(model).join("model.gguf"), &to, rounds);
        let error = with_causes(&error.expect_err(model));
        assert!(error.contains(expected), "{model}: {error}");
        assert!(!to.exists(), "{model}");
    }
    // The way that the error names.
    let groups = files.model("groups");
    let original = folder("qwen2-i2_s").join("model.gguf");
    convert(&original, &groups, WeightType::PQ2_0, false).expect("groups");
    write_mlx(&groups, &to, false).expect("a directory");
}

#[test]
fn floats_are_quantized_by_the_rule_of_the_target() {
    let directory = Copy::of("qwen3", "hf");
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut floats = Vec::new();
    directory.edit_tensor(name, |bytes| {
        let mut x = 7u32;
        for bytes in bytes.as_chunks_mut::<2>().0 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f16::from_f32((x >> 8) as f32 / (1 << 24) as f32 - 0.5);
            floats.push(value.to_f32());
            *bytes = value.to_le_bytes();
        }
    });
    let files = Files::new();
    let checkpoint = || Checkpoint::open(directory.path()).expect("it opens");
    for (form, format) in [
        (WeightType::Q1_0, GroupFormat::Q1_0),
        (WeightType::Q2_0, GroupFormat::Q2_0),
        (WeightType::PTQ1_0, GroupFormat::PTQ1_0),
    ] {
        let to = files.model(format.name());
        let checkpoint_as_it_is = checkpoint();
        let error = write(Input::Checkpoint(&checkpoint_as_it_is), &to, form);
        let error = with_causes(&error.expect_err("floats are no groups"));
        assert!(error.contains(name), "{error}");

        let rounding = checkpoint().rounding_floats();
        write(Input::Checkpoint(&rounding), &to, form).expect("quantized");
        let mut expected = vec![0; format.size_bytes(128, 128).expect("a size")];
        format
            .quantize(&floats, 128, 128, &mut expected)
            .expect("quantized");
        let tensors = tensors(&to);
        let (_, found) = tensors
            .iter()
            .find(|(name, _)| name == "blk.1.ffn_up.weight")
            .expect("the tensor");
        assert!(*found == expected, "{format:?}");
    }
}
