//! Checkpoint directories, valid and broken: errors name the missing or contradictory part with the
//! numbers.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use bitnet_models::{Architecture, Error, LanguageModel, LoadOptions};
use serde_json::{Value, json};

use crate::{assert_same_bits, golden, logits, read_npy, read_tokens, some_logits};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SECOND_OF_TWO: &str = "model-00002-of-00002.safetensors";

pub(crate) fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 1)
}

pub(crate) fn load(path: &Path) -> Result<LanguageModel<Cpu>, Error> {
    LanguageModel::from_checkpoint(&Checkpoint::open(path)?, &LoadOptions::default(), &cpu())
}

/// A directory with a small model in it.
pub(crate) struct Directory(pub(crate) tempfile::TempDir);

impl Directory {
    pub(crate) fn new(
        architecture: Architecture,
        weights: CheckpointWeights,
        num_shards: usize,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shape = Shape {
            architecture,
            num_layers: 1,
            ..Shape::default()
        };
        let shape = Shape {
            hidden_size: 128,
            heads: 2,
            kv_heads: 1,
            ffn_size: 256,
            ..shape
        };
        SyntheticModel { shape, seed: 6 }
            .write_checkpoint(directory.path(), weights, num_shards)
            .unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(self.path(file), json.to_string()).unwrap();
    }

    /// Changes the header of a safetensors file, as text, and fixes its length.
    pub(crate) fn edit_header(&self, file: &str, edit: impl FnOnce(String) -> String) {
        let bytes = std::fs::read(self.path(file)).unwrap();
        let len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header = edit(String::from_utf8(bytes[8..8 + len].to_vec()).unwrap());
        let edited = [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            &bytes[8 + len..],
        ]
        .concat();
        std::fs::write(self.path(file), edited).unwrap();
    }

    fn edit_bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(file)).unwrap();
        edit(&mut bytes);
        std::fs::write(self.path(file), bytes).unwrap();
    }

    #[track_caller]
    pub(crate) fn refused(&self, expected: &str) {
        let error = load(self.0.path()).err().expect("it loaded");
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message += &format!(": {cause}");
            source = cause.source();
        }
        assert!(
            message.contains(expected),
            "{message:?} does not say {expected:?}"
        );
        assert!(!message.contains('\n'), "{message:?}");
    }
}

fn packed() -> Directory {
    Directory::new(Architecture::BitnetB158, CheckpointWeights::Packed, 1)
}

fn sharded() -> Directory {
    Directory::new(Architecture::BitnetB158, CheckpointWeights::Packed, 2)
}

#[test]
fn shards_that_contradict_their_index_are_named() {
    let directory = sharded();
    std::fs::remove_file(directory.path(SECOND_OF_TWO)).unwrap();
    directory.refused("of its tensors are in model-00002-of-00002.safetensors, which is missing");

    let directory = sharded();
    let norm = "model.norm.weight";
    directory.edit_json(INDEX, |json| {
        json["weight_map"][norm] = "model-00001-of-00002.safetensors".into()
    });
    directory.refused("the index lists tensor model.norm.weight in model-00001-of-00002.safetensors, which does not");

    let directory = sharded();
    directory.edit_json(INDEX, |json| {
        drop(json["weight_map"].as_object_mut().unwrap().remove(norm))
    });
    directory.refused(
        "tensor model.norm.weight of model-00002-of-00002.safetensors is not listed for that file",
    );

    let directory = sharded();
    directory.edit_json(INDEX, |json| {
        json["weight_map"][norm] = "../elsewhere.safetensors".into()
    });
    directory.refused("tensor model.norm.weight is in no file of this directory");

    let directory = sharded();
    directory.edit_json(INDEX, |json| *json = json!([]));
    directory.refused("there is no object \"weight_map\"");

    let directory = sharded();
    std::fs::remove_file(directory.path(INDEX)).unwrap();
    directory.refused("there is neither model.safetensors nor model.safetensors.index.json");

    let directory = packed();
    std::fs::remove_file(directory.path("config.json")).unwrap();
    directory.refused("config.json");
    std::fs::write(directory.path("config.json"), "{\"a\": ").unwrap();
    directory.refused("config.json: EOF while parsing a value at line 1 column 6");
}

#[test]
fn broken_safetensors_files_are_refused_with_the_numbers() {
    let with = |edit: &dyn Fn(String) -> String, expected: &str| {
        let directory = packed();
        directory.edit_header(SINGLE, edit);
        directory.refused(expected);
    };
    with(
        &|h| h.replace("\"U8\"", "\"U3\""),
        "has type U3; known are BOOL, U8",
    );
    with(
        &|h| h.replacen("[128]", "[129]", 1),
        "needs 258 bytes, it has bytes",
    );
    with(
        &|h| h.replacen("[128]", "[18446744073709551615, 18446744073709551615]", 1),
        "needs more than 2^64 bytes",
    );
    with(
        &|h| h.replacen("[128]", "[-1]", 1),
        "invalid value: integer `-1`",
    );
    with(
        &|h| h.replacen("[128]", "[1,1,1,1,1,1,1,1,128]", 1),
        "has 9 dimensions, at most 8 are supported",
    );
    with(
        &|h| {
            h.replacen(
                "{",
                "{\"model.norm.weight\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
                1,
            )
        },
        "twice",
    );
    with(
        &|h| {
            h.replacen(
                "{",
                "{\"x\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]},",
                1,
            )
        },
        "the one before it ends at",
    );
    with(&|_| "[]".into(), "expected an object of tensors");

    let directory = packed();
    directory.edit_bytes(SINGLE, |bytes| bytes.truncate(bytes.len() - 1));
    directory.refused("needs");
    let directory = packed();
    directory.edit_bytes(SINGLE, |bytes| bytes.push(0));
    directory.refused("safetensors file");
    directory.edit_bytes(SINGLE, |bytes| bytes[..8].fill(0xff));
    directory.refused("header has 18446744073709551615 bytes");
    directory.edit_bytes(SINGLE, |bytes| bytes.truncate(5));
    directory.refused("header needs 8 bytes for its length, the file has 5");
}

#[test]
fn every_truncation_and_many_mutations_of_a_shard_are_clean_errors_or_clean_loads() {
    let directory = packed();
    let bytes = std::fs::read(directory.path(SINGLE)).unwrap();
    let header_len = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let opens = |bytes: &[u8]| {
        std::fs::write(directory.path(SINGLE), bytes).unwrap();
        load(directory.0.path()).is_ok()
    };
    for len in (0..header_len)
        .step_by(7)
        .chain((header_len..bytes.len()).step_by(9973))
    {
        assert!(!opens(&bytes[..len]), "the first {len} bytes loaded");
    }
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let opened = (0..300).filter(|_| {
        let mut mutated = bytes.clone();
        mutated[random(header_len)] = b"0123456789[]{},:\"AZ \\\xff"[random(22)];
        opens(&mutated)
    });
    assert!(opened.count() < 290, "the mutations hit nothing");
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    let directory = packed();
    directory.edit_json("config.json", |json| json["intermediate_size"] = 260.into());
    directory.refused(
        "tensor model.layers.0.mlp.gate_proj.weight has shape [64, 128], expected [65, 128]",
    );

    let directory = packed();
    directory.edit_json("config.json", |json| json["vocab_size"] = 511.into());
    directory.refused("tensor model.embed_tokens.weight has shape [512, 128], expected [511, 128]");

    let directory = packed();
    directory.edit_json("config.json", |json| json["num_hidden_layers"] = 2.into());
    directory.refused("tensor model.layers.1.input_layernorm.weight is missing");

    let directory = packed();
    directory.edit_header(SINGLE, |header| {
        header.replace("self_attn.q_proj.weight\"", "self_attn.q_proj.bias_\"")
    });
    directory.refused(
        "tensor model.layers.0.self_attn.q_proj.bias_ has no place in the BitNetForCausalLM graph",
    );

    let directory = packed();
    directory.edit_header(SINGLE, |header| {
        header.replace(
            "model.norm.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        )
    });
    directory.refused("tensor model.norm.weight is missing");

    let directory = packed();
    directory.edit_json("config.json", |json| {
        json["tie_word_embeddings"] = false.into()
    });
    directory.refused("tensor lm_head.weight (tie_word_embeddings is false) is missing");

    let directory = packed();
    directory.edit_json("config.json", |json| {
        json["quantization_config"]["quantization_mode"] = "online".into()
    });
    directory.refused("q_proj.weight: packed weights, but quantization_mode is \"online\"");

    let directory = packed();
    directory.edit_header(SINGLE, |header| {
        header.replace("q_proj.weight_scale", "rotary_emb.inv_freq")
    });
    directory.refused("q_proj.weight: packed weights without a weight_scale beside them");

    let directory = packed();
    directory.edit_header(SINGLE, |header| {
        header.replace(
            "\"BF16\",\"shape\":[512,128]",
            "\"I16\",\"shape\":[512,128]",
        )
    });
    directory.refused("tensor model.embed_tokens.weight has type I16; an embedding or a head can be F32, F16 or BF16");
}

#[test]
fn configurations_that_cannot_be_run_are_refused_by_name() {
    let with = |edit: &dyn Fn(&mut Value), expected: &str| {
        let directory = packed();
        directory.edit_json("config.json", edit);
        directory.refused(expected);
    };
    fn quantization(json: &mut Value) -> &mut Value {
        &mut json["quantization_config"]
    }
    with(
        &|json| quantization(json)["quant_method"] = "gptq".into(),
        "quant_method is \"gptq\"; bitnet is supported",
    );
    with(
        &|json| quantization(json)["linear_class"] = "linear".into(),
        "linear_class is \"linear\"; bitlinear or",
    );
    with(
        &|json| quantization(json)["quantization_mode"] = "none".into(),
        "quantization_mode is \"none\"; offline or",
    );
    with(
        &|json| quantization(json)["use_rms_norm"] = true.into(),
        "use_rms_norm is true, which is not supported for",
    );
    with(
        &|json| {
            quantization(json)["modules_to_not_convert"] =
                json!(["lm_head", "model.layers.0.mlp.up_proj"])
        },
        "modules_to_not_convert is \"model.layers.0.mlp.up_proj\", which keeps model.layers.0.mlp.up_proj in floats",
    );
    with(
        &|json| quantization(json)["modules_to_not_convert"] = json!(["lm_head", "_proj"]),
        "modules_to_not_convert is \"_proj\", which keeps model.layers.0.self_attn.q_proj in floats",
    );
    for list in [json!([]), json!(["lm_head.weight"]), json!(["down"])] {
        with(
            &|json| quantization(json)["modules_to_not_convert"] = list.clone(),
            "without lm_head, so the head is quantized, too",
        );
    }
    with(
        &|json| quantization(json)["modules_to_not_convert"] = json!(["("]),
        "modules_to_not_convert is \"(\": is not a regular expression",
    );
    with(
        &|json| json["architectures"] = json!(["MistralForCausalLM"]),
        "\"MistralForCausalLM\" is not supported; supported are",
    );
    with(
        &|json| json["architectures"] = json!([]),
        "architectures is missing or not a list of names, and there is no model_type",
    );
    with(
        &|json| json["hidden_act"] = "gelu".into(),
        "hidden_act is \"gelu\"; relu2 and silu are supported",
    );
    with(
        &|json| json["attention_bias"] = true.into(),
        "attention_bias is true; biases are not supported",
    );
    with(
        &|json| json["hidden_size"] = json!(1u64 << 60),
        "hidden_size is 1152921504606846976, expected 1 to 131072",
    );
    with(
        &|json| json["hidden_size"] = json!(-5),
        "hidden_size is -5, expected 1 to 131072",
    );
    with(
        &|json| json["num_hidden_layers"] = json!(1_000_000_000),
        "num_hidden_layers is 1000000000, expected 1 to 20",
    );
    with(
        &|json| json["num_attention_heads"] = json!("2"),
        "num_attention_heads is \"2\", expected 1 to 4096",
    );
    with(
        &|json| json["num_key_value_heads"] = json!(3),
        "num_key_value_heads is 3, expected 1 to 2",
    );
    with(
        &|json| json["head_dim"] = json!(63),
        "the head size is 63; even sizes",
    );
    with(&|json| json["rms_norm_eps"] = json!(0), "epsilon is 0");
    with(
        &|json| json["rope_theta"] = json!(1e300),
        "the rotary base is inf",
    );
    with(
        &|json| json["rope_scaling"] = json!({"type": "yarn"}),
        "rope_scaling.rope_type is \"yarn\"; default, linear and",
    );
    with(
        &|json| json["rope_scaling"] = json!({"type": "linear"}),
        "rope_scaling.factor is missing",
    );
    with(
        &|json| drop(json.as_object_mut().unwrap().remove("vocab_size")),
        "vocab_size is missing",
    );
    with(&|json| *json = json!(7), "config.json is not an object");
}

#[test]
fn newer_and_older_files_mean_the_same() {
    let directory = packed();
    let expected = some_logits(&load(directory.0.path()).unwrap(), &cpu());
    directory.edit_header(SINGLE, |header| {
        header
            .replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
            .replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm")
    });
    directory.edit_json("config.json", |json| {
        let theta = json["rope_theta"].take();
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
    });
    assert_same_bits(
        "older names",
        &some_logits(&load(directory.0.path()).unwrap(), &cpu()),
        &expected,
    );
}

#[test]
fn norms_of_each_projection_and_llama3_scaling_give_the_references_logits() {
    let Some(folder) = golden("strict-rms") else {
        return;
    };
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let tokens = read_tokens(&folder, "tokens");
    for (form, expected) in [
        ("hf-packed", "logits.npy"),
        ("hf-bf16", "logits-online.npy"),
    ] {
        let model = load(&folder.join(form)).unwrap();
        for chunk in [64, 3] {
            let found = logits(&model, &cpu, &tokens, bitnet_models::KvType::F32, chunk);
            let expected = read_npy(&folder.join(expected));
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(
                found.len() == expected.len() && worst <= 1e-5,
                "{form}: {worst:e}"
            );
        }
    }
}
