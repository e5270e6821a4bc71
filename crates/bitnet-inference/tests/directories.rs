//! Settings that the files of a Hugging Face directory state besides the weights.

use std::path::Path;

use bitnet_inference::load_tokenization;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use serde_json::{Value, json};

fn stop_ids(directory: &Path) -> Vec<u32> {
    let tokenization = load_tokenization(directory).expect("a tokenizer");
    let ids = tokenization.tokenizer.stop_ids().iter();
    ids.map(|id| id.0).collect()
}

/// Expected values: the tokens at which `generate` of transformers 5.24 stops.
#[test]
fn answers_end_at_the_tokens_named_in_generation_config_or_config() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path();
    let model = SyntheticModel {
        shape: Shape::default(),
        seed: 26,
    };
    model
        .write_checkpoint(path, CheckpointWeights::Packed, 1)
        .expect("a directory");
    let text = std::fs::read(path.join("config.json")).expect("a file");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    let mut write = |eos: Value| {
        config["eos_token_id"] = eos;
        std::fs::write(path.join("config.json"), config.to_string()).expect("a file");
    };
    let own = {
        write(Value::Null);
        stop_ids(path)
    };
    assert_eq!(own.len(), 1, "the tokenizer's own end");
    write(json!(7));
    assert_eq!(stop_ids(path), [7]);
    write(json!([9, 7, 4_000_000_000u32]));
    assert_eq!(stop_ids(path), [7, 9]);
    let generation = json!({"eos_token_id": [11, 12]}).to_string();
    std::fs::write(path.join("generation_config.json"), generation).expect("a file");
    assert_eq!(stop_ids(path), [11, 12]);
}
