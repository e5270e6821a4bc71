//! Text, logits and conversations, and where prompts come from.

use serde_json::Value;

use crate::{
    bitnet, bitnet_with_input, data, failure, golden, json, list, output, text, tokens_json,
};

#[test]
fn greedy_text_equals_the_reference() {
    let tokens = tokens_json();
    let prompt = list(&tokens["greedy_prompt"]);
    let expected = &tokens["greedy_continuation"];
    let n = expected.as_array().expect("a list").len().to_string();
    let arguments = [
        "run",
        "-m",
        &golden(),
        "--prompt-tokens",
        &prompt,
        "-n",
        &n,
        "--temp",
        "0",
        "--ignore-eos",
        "--kv-type",
        "f32",
        "--json",
    ];
    let answer = json(&arguments);
    assert_eq!(&answer["tokens"], expected);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(list(&answer["prompt_tokens"]), prompt);
    assert_eq!(
        answer["timings"]["generated_tokens"],
        expected.as_array().expect("a list").len()
    );
}

#[test]
fn logits_are_identical_for_all_kernels_threads_and_chunks() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = list(&tokens_json()["tokens"]);
    let write = |name: &str, options: &[&str]| {
        let path = folder.path().join(name).display().to_string();
        let golden = golden();
        output(
            &[
                &["logits", "-m", &golden, "--tokens", &tokens, "-o", &path],
                options,
            ]
            .concat(),
        );
        std::fs::read(path).expect("the file")
    };
    for kv_type in ["f16", "f32"] {
        let expected = write(
            "reference.npy",
            &["--kv-type", kv_type, "--kernels", "scalar", "-t", "1"],
        );
        assert!(expected.starts_with(b"\x93NUMPY\x01\x00"));
        for options in [
            ["-t", "1", "--prefill-chunk", "1"],
            ["-t", "2", "--prefill-chunk", "5"],
            ["-t", "3", "--prefill-chunk", "64"],
            ["--packing", "2", "--prefill-chunk", "3"],
            ["--packing", "1.67", "--prefill-chunk", "7"],
            ["--packing", "1.67", "--kernels", "scalar"],
            ["--ffn-sparsity", "on", "--prefill-chunk", "1"],
            ["--packing", "tl1", "--prefill-chunk", "1"],
            ["--packing", "tl2", "--prefill-chunk", "1"],
            ["--ternary-kernel", "tl1", "--prefill-chunk", "6"],
            ["--ternary-kernel", "tl2", "--kernels", "scalar"],
        ] {
            assert!(
                expected
                    == write(
                        "other.npy",
                        &[&["--kv-type", kv_type], &options[..]].concat()
                    ),
                "{options:?}"
            );
        }
    }
}

#[test]
fn text_does_not_depend_on_sparsity() {
    let golden = golden();
    let run = |mode: &str| {
        let options = [
            "-n",
            "20",
            "-s",
            "3",
            "--ignore-eos",
            "--ffn-sparsity",
            mode,
            "--json",
        ];
        json(&[&["run", "-m", &golden, "ab"], &options[..]].concat())
    };
    let (on, off, auto) = (run("on"), run("off"), run("auto"));
    assert_eq!((&on["tokens"], &on["text"]), (&off["tokens"], &off["text"]));
    assert_eq!(
        (&auto["tokens"], &auto["text"]),
        (&off["tokens"], &off["text"])
    );
    for shares in ["closed_gates", "zeros", "dead_neurons"] {
        assert_eq!(
            on["ffn_sparsity"][shares], off["ffn_sparsity"][shares],
            "{shares}"
        );
    }
    assert!(on["ffn_sparsity"]["copy_bytes"].as_u64() > off["ffn_sparsity"]["copy_bytes"].as_u64());
}

#[test]
fn a_seed_gives_the_same_text_every_time() {
    let golden = golden();
    let run = |seed: &str| {
        json(&["run", "-m", &golden, "ab", "-n", "20", "-s", seed, "--json"])["tokens"].clone()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn prompts_come_from_arguments_files_and_standard_input() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt").display().to_string();
    std::fs::write(&file, "ab ab\n").expect("a file");
    let options = ["-m", &golden, "-n", "4", "--temp", "0"];
    let from_argument = output(&[&["run", "ab ab"], &options[..]].concat());
    assert!(from_argument.starts_with("ab ab"), "{from_argument:?}");
    assert_eq!(
        from_argument,
        output(&[&["run", "-p", "ab ab"], &options[..]].concat())
    );
    assert_eq!(
        from_argument,
        output(&[&["run", "-f", &file], &options[..]].concat())
    );
    let piped = bitnet_with_input(&[&["run"], &options[..]].concat(), "ab ab\n");
    assert_eq!(from_argument, text(&piped.stdout));
    let bare = output(&[&["run", "ab ab", "--no-display-prompt"], &options[..]].concat());
    assert_eq!(from_argument, format!("ab ab{bare}"));
}

#[test]
fn stop_strings_end_an_answer_before_themselves() {
    let golden = golden();
    let options = [
        "run",
        "-m",
        &golden,
        "ab",
        "-n",
        "30",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let whole = json(&options)["text"].as_str().expect("text").to_owned();
    let middle: String = whole
        .chars()
        .skip(whole.chars().count() / 2)
        .take(2)
        .collect();
    let answer = json(&[&options[..], &["--stop", &middle]].concat());
    let expected = &whole[..whole.find(&middle).expect("it is in there")];
    assert_eq!(answer["text"], expected);
    assert_eq!(answer["finish_reason"], "stop");
}

#[test]
fn tokenize_reads_every_format_with_a_tokenizer() {
    let gpt2 = data("tokenizers/ggml-vocab-gpt-2.gguf")
        .display()
        .to_string();
    let result = json(&["tokenize", "-m", &gpt2, "Hello world", "--json"]);
    assert_eq!(
        result,
        serde_json::json!({ "tokens": [15496, 995], "pieces": ["Hello", " world"] })
    );
    let golden = golden();
    let with_bos = json(&["tokenize", "-m", &golden, "ab", "--json"]);
    let without = json(&["tokenize", "-m", &golden, "ab", "--no-bos", "--json"]);
    assert_eq!(
        with_bos["tokens"].as_array().map(Vec::len),
        without["tokens"].as_array().map(|t| t.len() + 1)
    );
    let piped = bitnet_with_input(&["tokenize", "-m", &golden, "--json"], "ab");
    assert_eq!(
        serde_json::from_slice::<Value>(&piped.stdout).expect("JSON"),
        with_bos
    );
}

#[test]
fn tokenize_shows_the_ids_that_run_uses() {
    let golden = golden();
    for options in [&["-m", &golden][..], &["-m", &golden, "--no-bos"], &[]] {
        let text = "ab ab";
        let shown = json(&[&["tokenize", text, "--json"], options].concat());
        let used = json(&[&["run", text, "-n", "1", "--json"], options].concat());
        assert_eq!(shown["tokens"], used["prompt_tokens"], "{options:?}");
    }
}

#[test]
fn chat_answers_lines_and_runs_commands() {
    let golden = golden();
    let arguments = [
        "chat",
        "-m",
        &golden,
        "--chat-template",
        "chatml",
        "-n",
        "3",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let result = bitnet_with_input(
        &arguments,
        "hello\nand again\n/clear\nhello\n/quit\nnever read\n",
    );
    assert!(result.status.success(), "{}", text(&result.stderr));
    let answers: Vec<Value> = text(&result.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(
        answers[0]["tokens"], answers[2]["tokens"],
        "a cleared conversation starts again"
    );
    let cached = |answer: &Value| {
        answer["timings"]["cached_tokens"]
            .as_u64()
            .expect("a number")
    };
    assert!(
        cached(&answers[1]) > 0,
        "the second turn starts from the first one's cache"
    );
    let (code, message) = failure(&["chat", "-m", &golden, "--chat-template", "nonsense"]);
    assert_eq!(code, 2);
    assert!(message.contains("chatml"), "{message}");
}

#[cfg(unix)]
#[test]
fn logits_can_be_written_to_a_pipe_and_other_errors_do_not_name_it() {
    use std::os::unix::fs::FileTypeExt;
    let directory = tempfile::tempdir().expect("a folder");
    let at = |name: &str| directory.path().join(name);
    let (pipe, file) = (at("pipe"), at("file.npy").display().to_string());
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("a pipe")
    });
    let (model, name) = (golden(), pipe.display().to_string());
    output(&["logits", "-m", &model, "--tokens", "1,2", "-o", &name]);
    output(&["logits", "-m", &model, "--tokens", "1,2", "-o", &file]);
    let from_pipe = reader.join().expect("the reader ends");
    assert_eq!(from_pipe, std::fs::read(&file).expect("a file"));
    let kind = std::fs::symlink_metadata(&pipe)
        .expect("still there")
        .file_type();
    assert!(kind.is_fifo());

    let result = bitnet(&["logits", "-m", &model, "--tokens", "1,99999", "-o", &file]);
    let error = text(&result.stderr);
    assert_eq!(result.status.code(), Some(2), "{error}");
    assert!(error.contains("prompt token 1 is 99999"), "{error}");
    assert!(!error.contains("cannot write"), "{error}");
    assert_eq!(from_pipe, std::fs::read(&file).expect("the old file"));
}
