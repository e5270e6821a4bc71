//! Compares the built-in model, which is trained, with Hugging Face's results
//! (`models/stories/reference.py` made them).
#![cfg(feature = "built-in-model")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/stories")
        .join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(name)).expect("test data")).expect("JSON")
}

fn bitnet(arguments: &[&str]) -> Value {
    let result = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(arguments)
        .output()
        .expect("the program runs");
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    serde_json::from_slice(&result.stdout).expect("one JSON object")
}

/// The f32 values of a version 1 `.npy` file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a npy file");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn greedy_text_equals_hugging_faces() {
    let expected = read_json("greedy.json");
    let prompt = expected["prompt"].as_str().expect("a prompt");
    let options = [
        "run",
        prompt,
        "--temp",
        "0",
        "-n",
        "64",
        "--ignore-eos",
        "--kv-type",
        "f32",
        "--json",
    ];
    let found = bitnet(&options);
    assert_eq!(found["prompt_tokens"], expected["prompt_tokens"]);
    assert_eq!(found["tokens"], expected["tokens"], "{}", found["text"]);
}

#[test]
fn logits_are_close_to_hugging_faces() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("logits.npy");
    let tokens = read_json("greedy.json")["logits_tokens"].clone();
    let tokens: Vec<String> = tokens
        .as_array()
        .expect("a list")
        .iter()
        .map(Value::to_string)
        .collect();
    let path = file.display().to_string();
    bitnet(&[
        "logits",
        "--tokens",
        &tokens.join(","),
        "-o",
        &path,
        "--kv-type",
        "f32",
        "--json",
    ]);
    let (found, expected) = (read_npy(&file), read_npy(&data("logits.npy")));
    assert_eq!(found.len(), expected.len());
    // Its float sums can differ in the last bit, which can change the rounding of an activation.
    let vocab = found.len() / tokens.len();
    for (position, (a, b)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let dot = |x: &[f32], y: &[f32]| {
            x.iter()
                .zip(y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>()
        };
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine > 0.999, "position {position}: cosine {cosine}");
    }
}

#[test]
fn perplexity_equals_hugging_faces() {
    let expected = read_json("perplexity.json");
    let file = data("valid.txt").display().to_string();
    let found = bitnet(&[
        "perplexity",
        "-f",
        &file,
        "--documents",
        "--kv-type",
        "f32",
        "--json",
    ]);
    for key in ["documents", "tokens", "bytes"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    for key in ["nats", "perplexity", "bits_per_byte"] {
        let (a, b) = (
            found[key].as_f64().expect("a number"),
            expected[key].as_f64().expect("a number"),
        );
        assert!((a / b - 1.0).abs() < 1e-3, "{key}: {a} here, {b} there");
    }
}

#[test]
fn a_screened_head_generates_the_same_text_as_the_full_head() {
    let options: [&[&str]; 6] = [
        &["--temp", "0"],
        &[],
        &[
            "--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0",
        ],
        &[
            "--temp", "1", "--top-k", "0", "--top-p", "0.9", "--min-p", "0",
        ],
        &[
            "--temp", "1.3", "--top-k", "0", "--top-p", "1", "--min-p", "0.1",
        ],
        &[
            "--repeat-penalty",
            "1.3",
            "--frequency-penalty",
            "0.4",
            "--logit-bias",
            "100+3",
            "--logit-bias",
            "5-inf",
        ],
    ];
    for options in options {
        let run = |head: &str| {
            bitnet(
                &[
                    &[
                        "run",
                        "Once upon a time",
                        "-n",
                        "80",
                        "-s",
                        "11",
                        "--head",
                        head,
                        "--json",
                    ],
                    options,
                ]
                .concat(),
            )
        };
        let (full, screened) = (run("full"), run("screened"));
        assert_eq!(full["tokens"], screened["tokens"], "{options:?}");
        assert_eq!(full["head"]["screened_tokens"], 0);
        let sampled = screened["tokens"].as_array().expect("a list").len();
        assert_eq!(screened["head"]["screened_tokens"], sampled, "{options:?}");
    }
}
