//! Hugging Face and MLX directories of models with group scales: their weights are taken exactly,
//! or the tensor that has others is named.

use std::path::Path;

use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{InputRounding, KvType, LanguageModel, LoadOptions};
use half::f16;
use serde_json::{Value, json};

use crate::checkpoint::{cpu, load};
use crate::graphs::{assert_near, folder, tokens};
use crate::groups::load as load_gguf;
use crate::{assert_same_bits, logits, read_npy};

/// A copy of a golden directory that a test may change.
pub struct Copy(tempfile::TempDir);

impl Copy {
    pub fn of(model: &str, form: &str) -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(
                folder(model).join(form).join(file),
                directory.path().join(file),
            )
            .expect("a copy");
        }
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path().join("config.json");
        let mut json: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        edit(&mut json);
        std::fs::write(path, json.to_string()).expect("written");
    }

    /// Changes the bytes of a tensor.
    pub fn edit_tensor(&self, name: &str, edit: impl FnOnce(&mut [u8])) {
        let path = self.path().join("model.safetensors");
        let mut file = std::fs::read(&path).expect("a file");
        let len = u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + len]).expect("a header");
        let offset = |i: usize| {
            8 + len + header[name]["data_offsets"][i].as_u64().expect("an offset") as usize
        };
        edit(&mut file[offset(0)..offset(1)]);
        std::fs::write(path, file).expect("written");
    }

    #[track_caller]
    fn refused(&self, expected: &[&str]) {
        let error = load(self.path()).err().expect("it loaded");
        let text = with_causes(&error);
        for expected in expected {
            assert!(
                text.contains(expected),
                "{text:?} does not say {expected:?}"
            );
        }
    }
}

/// An error with its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn directories_give_the_bits_of_their_gguf_files() {
    let cpu = cpu();
    for (model, forms, quantization) in [
        ("qwen2", &["hf", "mlx"][..], "Q2_0"),
        ("qwen3", &["hf", "mlx"], "Q1_0"),
        ("hunyuan-dense", &["hf"], "Q1_0"),
        // Floats do not say that a file had them in fewer bits.
        ("minicpm-longrope", &["hf"], "PQ2_0"),
    ] {
        let folder = folder(model);
        let tokens = tokens(&folder);
        let gguf = load_gguf(&folder, InputRounding::default(), &cpu);
        let expected = logits(&gguf, &cpu, &tokens, KvType::F32, 9);
        assert_near(model, &expected, &read_npy(&folder.join("logits-int8.npy")));
        for form in forms {
            let checkpoint = Checkpoint::open(&folder.join(form)).expect("it opens");
            checkpoint.check().expect("complete");
            let found = LanguageModel::from_checkpoint(&checkpoint, &LoadOptions::default(), &cpu)
                .expect("it loads");
            assert_eq!(found.quantization(), quantization, "{model} {form}");
            assert_eq!(found.config().yarn, gguf.config().yarn);
            let found = logits(&found, &cpu, &tokens, KvType::F32, 9);
            assert_same_bits(&format!("{model} {form}"), &found, &expected);
        }
    }
}

#[test]
fn a_weight_outside_its_group_is_refused_with_its_place() {
    let tensor = "model.layers.1.mlp.up_proj.weight";
    let copy = Copy::of("qwen3", "hf");
    copy.edit_tensor(tensor, |bytes| {
        let at = 2 * (5 * 128 + 70);
        let weight = f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(weight * 1.5).to_le_bytes());
    });
    copy.refused(&[tensor, "the 64 weights from row 5, column 64 on are not"]);
}

#[test]
fn master_weights_are_rounded_on_load_only_if_asked() {
    let copy = Copy::of("qwen3", "hf");
    let mut x = 9u32;
    for layer in 0..2 {
        for module in [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ] {
            let name = format!("model.layers.{layer}.{module}.weight");
            copy.edit_tensor(&name, |bytes| {
                for bytes in bytes.as_chunks_mut::<2>().0 {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = (x >> 8) as f32 / (1 << 24) as f32 - 0.5;
                    *bytes = f16::from_f32(value).to_le_bytes();
                }
            });
        }
    }
    copy.refused(&[
        "model.layers.0.self_attn.q_proj.weight",
        "are not -1, 0, 1 or 2 times one scale",
    ]);
    let checkpoint = Checkpoint::open(copy.path()).expect("it opens");
    let rounding = checkpoint.rounding_floats();
    let model = LanguageModel::from_checkpoint(&rounding, &LoadOptions::default(), &cpu());
    assert_eq!(model.expect("it loads").quantization(), "F16 absmean");
}

#[test]
fn scales_of_mlx_may_be_negative() {
    let cpu = cpu();
    let copy = Copy::of("qwen3", "mlx");
    let module = "model.layers.0.mlp.up_proj";
    for part in ["scales", "biases"] {
        copy.edit_tensor(&format!("{module}.{part}"), |bytes| {
            bytes
                .iter_mut()
                .skip(1)
                .step_by(2)
                .for_each(|high| *high ^= 0x80);
        });
    }
    // −2d and d for 2d and −d: the other code of each sign.
    copy.edit_tensor(&format!("{module}.weight"), |bytes| {
        bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
    });
    let folder = folder("qwen3");
    let tokens = tokens(&folder);
    let [expected, found] = [&folder.join("mlx"), copy.path()].map(|path: &Path| {
        let model = load(path).expect("it loads");
        logits(&model, &cpu, &tokens, KvType::F32, 9)
    });
    assert_same_bits("negative scales", &found, &expected);
}

#[test]
fn mlx_parameters_and_scales_that_are_not_ternary_are_refused_by_name() {
    let copy = Copy::of("qwen2", "mlx");
    let scales = "model.layers.0.self_attn.v_proj.scales";
    copy.edit_tensor(scales, |bytes| {
        bytes[..2].copy_from_slice(&f16::from_f32(0.3).to_le_bytes());
    });
    copy.refused(&[
        "model.layers.0.self_attn.v_proj.weight",
        "from row 0, column 0 on",
    ]);

    for (key, value, problem) in [
        ("bits", json!(4), "bits is 4; [1, 2] are supported"),
        (
            "group_size",
            json!(32),
            "group_size is 32; [64, 128] are supported",
        ),
        (
            "mode",
            json!("mxfp4"),
            "mode is \"mxfp4\"; \"affine\" is supported",
        ),
    ] {
        let copy = Copy::of("qwen2", "mlx");
        copy.edit_config(|json| json["quantization"][key] = value);
        copy.refused(&["quantization of model.embed_tokens", problem]);
    }
    let copy = Copy::of("qwen2", "mlx");
    let module = "model.layers.1.mlp.down_proj";
    copy.edit_config(|json| json["quantization"][module] = json!({"bits": 8, "group_size": 64}));
    copy.refused(&[&format!("quantization of {module}"), "bits is 8"]);

    let copy = Copy::of("qwen2", "mlx");
    copy.edit_config(|json| {
        let object = json.as_object_mut().expect("an object");
        object.remove("quantization");
        object.remove("quantization_config");
    });
    copy.refused(&["has no place"]);
}

#[test]
fn options_that_change_the_graph_are_refused() {
    for (key, value) in [
        ("use_sliding_window", json!(true)),
        ("attention_bias", json!(true)),
    ] {
        let copy = Copy::of("qwen3", "hf");
        copy.edit_config(|json| json[key] = value);
        copy.refused(&[key, "true"]);
    }
    for (key, value) in [
        ("mscale", json!(1.0)),
        ("truncate", json!(false)),
        ("factor", json!(0.5)),
    ] {
        let copy = Copy::of("qwen3", "hf");
        copy.edit_config(|json| json["rope_parameters"][key] = value);
        copy.refused(&[&format!("rope_parameters.{key}")]);
    }
}

#[test]
fn longrope_beyond_its_first_context_is_refused() {
    let copy = Copy::of("minicpm-longrope", "hf");
    copy.edit_config(|config| config["max_position_embeddings"] = 8192.into());
    copy.refused(&[
        "rope_scaling.original_max_position_embeddings is 4096, below max_position_embeddings 8192",
    ]);
    let copy = Copy::of("minicpm-longrope", "hf");
    copy.edit_config(|config| config["rope_scaling"]["short_factor"][3] = 0.into());
    copy.refused(&["rope_scaling.short_factor is expected 32 numbers above 0"]);
}
