//! Exit codes and messages of failures; completions and manual pages.

use crate::{failure, golden, output};

#[test]
fn wrong_usage_is_exit_code_2() {
    let golden = golden();
    for arguments in [
        &["run", "-m", &golden, "hello", "--temp", "-1"][..],
        &["run", "-m", &golden, "hello", "--kernels", "abacus"],
        &["run", "-m", &golden, "hello", "--kv-type", "int3"],
        &["run", "-m", &golden, "--prompt-tokens", "1,two"],
        &["run", "-m", &golden, "--prompt-tokens", "1,99999"],
        &["run", "-m", &golden, "hello", "--logit-bias", "600+1"],
        &["bench", "-m", &golden, "-r", "0"],
        &["dance"],
        &[],
    ] {
        let (code, message) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}: {message}");
        assert!(!message.is_empty(), "{arguments:?}");
    }
}

#[cfg(not(feature = "built-in-model"))]
#[test]
fn without_a_model_the_error_says_how_to_get_one() {
    let (code, message) = failure(&["run", "hello"]);
    assert_eq!(code, 2);
    assert!(
        message.contains("huggingface.co/microsoft/bitnet-b1.58-2B-4T-gguf"),
        "{message}"
    );
}

#[test]
fn other_failures_are_exit_code_1_and_one_line() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.gguf").display().to_string();
    let whole = std::fs::read(&golden).expect("the file");
    std::fs::write(&broken, &whole[..whole.len() - 1]).expect("a file");
    let long = vec!["1"; 600].join(",");
    for (arguments, said) in [
        (
            &["run", "-m", "nowhere.gguf", "hello"][..],
            &["nowhere.gguf"][..],
        ),
        (&["run", "-m", &broken, "hello"], &["broken.gguf", "bytes"]),
        (
            &["run", "-m", &golden, "-f", "nowhere.txt"],
            &["nowhere.txt"],
        ),
        (
            &["run", "-m", &golden, "--prompt-tokens", &long],
            &["context", "600", "512"],
        ),
        (
            &["run", "-m", &golden, "hello", "-n", "5000"],
            &["context", "5000", "512"],
        ),
        (
            &["run", "-m", &golden, "hello", "-c", "4"],
            &["context", "4"],
        ),
        (
            &[
                "logits",
                "-m",
                &golden,
                "--tokens",
                "1",
                "-o",
                "/nowhere/at/all.npy",
            ],
            &["/nowhere/at/all.npy"],
        ),
        (&["chat", "-m", &golden], &["chat template"]),
    ] {
        let (code, message) = failure(arguments);
        assert_eq!(code, 1, "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(
            said.iter().all(|word| message.contains(word)),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(
            output(&["completions", shell]).contains("bitnet"),
            "{shell}"
        );
    }
    assert!(output(&["man"]).contains(".TH bitnet"));
    assert!(output(&["man", "run"]).contains("prompt"));
}
