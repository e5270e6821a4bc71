//! The real program, tested from outside.

#[cfg(feature = "built-in-model")]
mod built_in;
mod embed;
mod failures;
mod files;
mod generation;
mod groups;
mod perplexity;
mod receipts;
mod speed;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A file of the test data.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data")
        .join(name)
}

fn golden() -> String {
    data("golden/strict-b158/model-i2_s.gguf")
        .display()
        .to_string()
}

/// Runs the program with these arguments and this standard input.
fn bitnet_with_input(arguments: &[&str], input: &str) -> Output {
    bitnet_with_cache(Path::new(env!("CARGO_TARGET_TMPDIR")), arguments, input)
}

/// The same, with this cache directory.
fn bitnet_with_cache(cache: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(arguments)
        // The tests must not depend on the tuning of this machine.
        .env("XDG_CACHE_HOME", cache)
        .env_remove("BITNET_SEED")
        .env_remove("BITNET_DETERMINISTIC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that fails early closes its input before it has read everything.
    let _ = child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

fn bitnet(arguments: &[&str]) -> Output {
    bitnet_with_input(arguments, "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The output of a command that must succeed.
fn output(arguments: &[&str]) -> String {
    let result = bitnet(arguments);
    assert!(
        result.status.success(),
        "{arguments:?}: {}",
        text(&result.stderr)
    );
    assert_eq!(text(&result.stderr), "", "{arguments:?} is quiet in a pipe");
    text(&result.stdout)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(arguments)).expect("one JSON object")
}

/// The exit code and the line on standard error of a command that must fail.
fn failure(arguments: &[&str]) -> (i32, String) {
    let result = bitnet(arguments);
    let message = text(&result.stderr);
    assert!(!result.status.success(), "{arguments:?} must fail");
    (result.status.code().expect("an exit code"), message)
}

fn tokens_json() -> Value {
    let file =
        std::fs::read_to_string(data("golden/strict-b158/tokens.json")).expect("tokens.json");
    serde_json::from_str(&file).expect("JSON")
}

fn list(tokens: &Value) -> String {
    tokens
        .as_array()
        .expect("a list")
        .iter()
        .map(Value::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
