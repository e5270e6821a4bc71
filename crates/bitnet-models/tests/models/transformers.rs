//! Checkpoints have the same meaning as in transformers 5.24. The expected values come from running
//! it on such configurations.

use bitnet_models::huggingface::Checkpoint;
use bitnet_models::synthetic::CheckpointWeights;
use bitnet_models::{Architecture, Config, LanguageModel, LoadOptions};
use serde_json::{Value, json};

use crate::checkpoint::{Directory, cpu, load};
use crate::{assert_same_bits, some_logits};

fn packed(architecture: Architecture) -> Directory {
    Directory::new(architecture, CheckpointWeights::Packed, 1)
}

fn edited(architecture: Architecture, edit: impl FnOnce(&mut Value)) -> Directory {
    let directory = packed(architecture);
    directory.edit_json("config.json", edit);
    directory
}

fn remove(json: &mut Value, key: &str) {
    json.as_object_mut().unwrap().remove(key).unwrap();
}

fn config(directory: &Directory) -> Config {
    let checkpoint = Checkpoint::open(directory.0.path()).unwrap();
    checkpoint.config().clone()
}

fn logits(directory: &Directory) -> Vec<f32> {
    some_logits(&load(directory.0.path()).unwrap(), &cpu())
}

#[test]
fn missing_keys_have_the_defaults_of_their_class() {
    for (architecture, theta, eps) in [
        (Architecture::BitnetB158, 500_000.0, 1e-5),
        (Architecture::Llama, 10_000.0, 1e-6),
    ] {
        let config = config(&edited(architecture, |json| {
            remove(json, "rope_theta");
            remove(json, "rms_norm_eps");
        }));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (theta, eps));
    }
    let kv_heads = |edit: fn(&mut Value)| {
        config(&edited(Architecture::Llama, edit))
            .attention
            .kv_heads
    };
    assert_eq!(kv_heads(|json| remove(json, "num_key_value_heads")), 2);
    let directory = edited(Architecture::BitnetB158, |json| {
        remove(json, "num_key_value_heads")
    });
    directory.refused(
        "num_key_value_heads is missing; BitNetForCausalLM has 5 by default, more than 2 heads",
    );
}

#[test]
fn without_architectures_the_model_type_decides() {
    for (architecture, model_type) in [
        (Architecture::BitnetB158, "bitnet"),
        (Architecture::Llama, "llama"),
    ] {
        let directory = edited(architecture, |json| {
            remove(json, "architectures");
            json["model_type"] = model_type.into();
        });
        assert_eq!(config(&directory).architecture, architecture);
    }
    let directory = edited(Architecture::Llama, |json| {
        remove(json, "architectures");
        json["model_type"] = "t5".into();
    });
    directory.refused("\"t5\" is not supported");
}

#[test]
fn rope_scaling_replaces_rope_parameters_and_their_base() {
    let rope = |edit: &dyn Fn(&mut Value)| {
        let config = config(&edited(Architecture::Llama, |json| edit(json)));
        (config.rope_theta, config.rope_scaling_factor)
    };
    let parameters = json!({"rope_type": "default", "rope_theta": 5.0});
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let both = |scaling: &Value| {
        rope(&|json| {
            json["rope_theta"] = 7.into();
            json["rope_parameters"] = parameters.clone();
            json["rope_scaling"] = scaling.clone();
        })
    };
    assert_eq!(both(&linear), (7.0, 2.0));
    assert_eq!(both(&json!({})), (5.0, 1.0));
    assert_eq!(both(&json!({"factor": 2.0})), (7.0, 1.0));
    let untyped = |scaling: Value| {
        let directory = edited(Architecture::Llama, |json| json["rope_scaling"] = scaling);
        Checkpoint::open(directory.0.path())
            .unwrap()
            .untyped_rope_factor()
    };
    assert_eq!(untyped(json!({"factor": 2.0})), Some(2.0));
    assert_eq!(untyped(linear.clone()), None);
    assert_eq!(untyped(json!({"type": "linear", "factor": 2.0})), None);
    let without_base = |json: &mut Value| {
        remove(json, "rope_theta");
        json["rope_parameters"] = linear.clone();
    };
    assert_eq!(rope(&without_base), (10_000.0, 2.0));
    let directory = edited(Architecture::Llama, |json| {
        json["rope_parameters"] = json!({"rope_theta": 5.0, "partial_rotary_factor": 0.5});
    });
    directory.refused("rope_parameters.partial_rotary_factor is 0.5; 1 is supported");
}

#[test]
fn the_original_context_beside_rope_scaling_overrides_the_one_in_it() {
    let with = |beside: Option<u32>, inside: Option<u32>| {
        logits(&edited(Architecture::Llama, |json| {
            json["max_position_embeddings"] = 64.into();
            json["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0});
            if let Some(context) = beside {
                json["original_max_position_embeddings"] = context.into();
            }
            if let Some(context) = inside {
                json["rope_scaling"]["original_max_position_embeddings"] = context.into();
            }
        }))
    };
    let (long, short) = (with(None, Some(64)), with(None, Some(8)));
    assert_ne!(long, short);
    assert_same_bits("beside", &with(Some(8), Some(64)), &short);
    assert_same_bits("neither", &with(None, None), &long);
}

#[test]
fn a_stored_head_that_differs_from_the_embedding_is_used_although_tied() {
    let directory = packed(Architecture::Llama);
    let expected = logits(&directory);
    directory.edit_json("config.json", |json| {
        json["tie_word_embeddings"] = true.into()
    });
    assert_same_bits("tied by name only", &logits(&directory), &expected);
}

#[test]
fn with_tied_embeddings_a_head_alone_is_the_embedding() {
    let directory = packed(Architecture::BitnetB158);
    let expected = logits(&directory);
    directory.edit_header("model.safetensors", |header| {
        header.replace("model.embed_tokens.weight", "lm_head.weight")
    });
    assert_same_bits("only the head is stored", &logits(&directory), &expected);
    directory.edit_json("config.json", |json| remove(json, "tie_word_embeddings"));
    directory.refused("tensor model.embed_tokens.weight is missing");
}

#[test]
fn floats_without_a_quantization_config_are_rounded_only_on_request() {
    for architecture in [Architecture::BitnetB158, Architecture::Llama] {
        let directory = Directory::new(architecture, CheckpointWeights::Bf16, 1);
        let expected = logits(&directory);
        directory.edit_json("config.json", |json| remove(json, "quantization_config"));
        directory.refused("so they are not ternary; `bitnet quantize` rounds them");
        let rounding = Checkpoint::open(directory.0.path())
            .unwrap()
            .rounding_floats();
        let model =
            LanguageModel::from_checkpoint(&rounding, &LoadOptions::default(), &cpu()).unwrap();
        assert_same_bits(
            "rounded on request",
            &some_logits(&model, &cpu()),
            &expected,
        );
    }
}
