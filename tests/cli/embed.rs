//! `embed`.

use serde_json::Value;

use crate::{bitnet_with_input, data, golden};

#[test]
fn embed_prints_vectors_of_texts_and_of_lines() {
    let model = data("golden-graphs/qwen3-embedding/model.gguf")
        .display()
        .to_string();
    let numbers = |line: &str| -> Vec<f32> {
        line.split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect()
    };
    let arguments = ["embed", "-m", &model, "--ctx-size", "64"];
    let with = |more: &[&str], input: &str| {
        let output = bitnet_with_input(&[&arguments[..], more].concat(), input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let lines = with(&["one", "two"], "");
    let vectors: Vec<Vec<f32>> = lines.lines().map(numbers).collect();
    assert_eq!(vectors.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128]);
    let length: f32 = vectors[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);
    assert_eq!(with(&["--file", "-"], "one\ntwo\n"), lines);
    let raw = numbers(with(&["--raw", "two"], "").trim_end());
    let ratio = raw[0] / vectors[1][0];
    for (raw, value) in raw.iter().zip(&vectors[1]) {
        assert!((raw - ratio * value).abs() < 1e-4);
    }
    let json: Value = serde_json::from_str(&with(&["--json", "one"], "")).expect("JSON");
    assert_eq!(
        json["data"][0]["embedding"].as_array().map(Vec::len),
        Some(128)
    );
}

#[test]
fn embed_says_what_is_missing() {
    let failure = |arguments: &[&str]| {
        let output = bitnet_with_input(arguments, "");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let golden = golden();
    assert!(failure(&["embed", "-m", &golden]).contains("no text given"));
    assert!(failure(&["embed", "-m", &golden, "text"]).contains("--pooling"));
    let too_many = [
        "embed",
        "-m",
        &golden,
        "--pooling",
        "mean",
        "--dimensions",
        "9999",
        "text",
    ];
    assert!(failure(&too_many).contains("9999"));
}
