//! The examples run and print the right things.

use std::path::PathBuf;

use bitnet_inference::{Request, SamplingParams};
use serde_json::Value;

#[path = "../examples/chat.rs"]
mod chat;
#[path = "../examples/generate.rs"]
mod generate;
#[path = "../examples/logits.rs"]
mod logits;

fn model() -> PathBuf {
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/stories/stories.gguf"
    )
    .into()
}

/// The tokens that Hugging Face's implementation generates greedily.
fn greedy() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/data/stories/greedy.json"
    );
    let text = std::fs::read_to_string(path).expect("the reference");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn every_example_runs() {
    generate::main().expect("generate");
    chat::main().expect("chat");
    logits::main().expect("logits");
}

#[test]
fn generate_continues_the_prompt_as_the_reference_does() {
    let request = Request {
        max_tokens: Some(12),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        ..Request::default()
    };
    let mut out = Vec::new();
    generate::generate(&model(), "Once upon a time", request, &mut out).expect("an answer");
    let model = bitnet_inference::load_tokenization(&model()).expect("a tokenizer");
    let tokens: Vec<_> = greedy()["tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .take(12)
        .map(|id| bitnet_tokenizers::TokenId(id.as_u64().expect("an id") as u32))
        .collect();
    let options = bitnet_tokenizers::DecodeOptions {
        strip_space_prefix: false,
        ..Default::default()
    };
    let expected = model.tokenizer.decode(&tokens, options);
    let found = String::from_utf8(out).expect("UTF-8");
    assert_eq!(found, format!("{expected}\n[12 tokens, length]\n"));
}

#[test]
fn the_second_turn_of_a_chat_starts_from_the_cache() {
    let questions = ["Tell me a long story about a cat and a dog.", "And then?"];
    let answers = chat::chat(&model(), &questions).expect("answers");
    assert_eq!(answers.len(), 2);
    assert!(answers[1].finish.timings.cached_tokens > 0);
}

#[test]
fn the_most_probable_token_is_the_one_that_the_reference_generates() {
    let top = logits::top_tokens(&model(), "Once upon a time", 5).expect("logits");
    assert_eq!(u64::from(top[0].0.0), greedy()["tokens"][0]);
    assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
}
