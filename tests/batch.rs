//! `bitnet batch`, the real program: answers a file of requests, and continues after a kill.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("batch")
        .join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn command(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command
        .args(["batch", "in.jsonl", "-o", "out.jsonl", "--running", "4"])
        .args(more)
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn batch(folder: &Path, more: &[&str]) -> Output {
    command(folder, more).output().expect("the program runs")
}

#[track_caller]
fn counts(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn write(folder: &Path, lines: &[String]) {
    std::fs::write(folder.join("in.jsonl"), lines.join("\n")).expect("a file");
}

/// The lines of the output.
fn answers(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("out.jsonl")).expect("the output");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// A request of the built-in model.
fn line(id: &str, tokens: usize) -> String {
    let body = json!({ "prompt": format!("Once upon a time {id}"), "max_tokens": tokens, "seed": 7, "temperature": 1 });
    json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body }).to_string()
}

#[test]
fn each_line_gets_its_answer_or_its_error_in_order() {
    let folder = folder("order");
    let chat = json!({ "messages": [{ "role": "user", "content": "Once" }], "max_tokens": 3 });
    let with = |url: &str, method: &str, body: Value| {
        json!({ "custom_id": format!("{url} {method}"), "method": method, "url": url, "body": body })
            .to_string()
    };
    write(
        &folder,
        &[
            line("long", 60),
            line("short", 1),
            "not JSON".to_owned(),
            with("/v1/chat/completions", "POST", chat),
            line("short", 1),
            String::new(),
            with("/v1/embeddings", "POST", json!({ "input": "Once" })),
            with("/v1/nothing", "POST", json!({})),
            with("/v1/completions", "GET", json!({ "prompt": "Once" })),
            with("/metrics", "POST", json!({})),
            with(
                "/v1/completions",
                "POST",
                json!({ "prompt": "Once", "stream": true }),
            ),
            with(
                "/v1/completions",
                "POST ",
                json!({ "prompt": "Once", "top_p": 7 }),
            ),
            "[1]".to_owned(),
        ],
    );
    let output = batch(&folder, &["--json", "--pooling", "mean"]);
    let expected =
        json!({ "output": "out.jsonl", "earlier": 0, "answered": 4, "refused": 1, "invalid": 7 });
    assert_eq!(counts(&output), expected);
    let answers = answers(&folder);
    let status: Vec<Option<u64>> = answers
        .iter()
        .map(|answer| answer["response"]["status_code"].as_u64())
        .collect();
    let (ok, missing) = (Some(200), Some(404));
    assert_eq!(
        status,
        [
            ok, ok, None, ok, None, ok, missing, None, None, None, None, None
        ]
    );
    let code = |index: usize| answers[index]["error"]["code"].as_str();
    assert_eq!(code(2), Some("invalid_json_line"));
    assert_eq!(code(4), Some("duplicate_custom_id"));
    assert_eq!(code(7), Some("invalid_method"));
    assert_eq!(code(8), Some("invalid_url"));
    assert_eq!(code(9), Some("invalid_body"));
    assert_eq!(answers[0]["custom_id"], "long");
    assert_eq!(
        answers[0]["response"]["body"]["usage"]["completion_tokens"],
        60
    );
    assert_eq!(answers[0]["error"], Value::Null);
    assert_eq!(answers[5]["response"]["body"]["object"], "list");
}

/// The answers' texts by `custom_id`; each id once.
#[track_caller]
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let answers = answers(folder);
    let text = |answer: &Value, path: &str| {
        let text = answer.pointer(path).and_then(Value::as_str);
        text.expect("a text").to_owned()
    };
    let texts: BTreeMap<_, _> = answers
        .iter()
        .map(|answer| {
            let id = text(answer, "/custom_id");
            (id, text(answer, "/response/body/choices/0/text"))
        })
        .collect();
    assert_eq!(texts.len(), answers.len(), "an answer is there twice");
    texts
}

#[test]
fn a_killed_batch_continues_without_losing_or_repeating_a_line() {
    batch_is_killed("built-in", &[]);
}

#[test]
fn a_killed_batch_of_a_hybrid_model_continues_without_losing_or_repeating_a_line() {
    let golden = "tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf";
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(golden);
    let model = golden.to_str().expect("a path");
    batch_is_killed("hybrid", &["-m", model, "--draft", "auto"]);
}

/// Kills a batch several times. Its answers must equal the answers of a batch that was not killed.
fn batch_is_killed(name: &str, model: &[&str]) {
    let lines: Vec<String> = (0..60).map(|n| line(&format!("r{n}"), 40)).collect();
    let whole = folder(&format!("{name} whole"));
    write(&whole, &lines);
    let with = |more: &[&'static str]| [model, more].concat();
    counts(&batch(&whole, &with(&["--json"])));
    let expected = texts(&whole);
    assert_eq!(expected.len(), 60);

    let killed = folder(&format!("{name} killed"));
    write(&killed, &lines);
    let mut num_earlier = 0;
    for target in [1, 20, 41] {
        let mut child = command(&killed, model).spawn().expect("the program starts");
        let num_lines = || {
            let text = std::fs::read(killed.join("out.jsonl")).unwrap_or_default();
            text.iter().filter(|byte| **byte == b'\n').count()
        };
        while num_lines() < target && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        child.kill().expect("a signal");
        child.wait().expect("a child");
        // A line that was not written to its end.
        let mut out = std::fs::OpenOptions::new()
            .append(true)
            .open(killed.join("out.jsonl"))
            .expect("the output");
        out.write_all(b"{\"id\":\"batch_r")
            .expect("a part of a line");
        num_earlier = num_lines();
    }
    let finished = counts(&batch(&killed, &with(&["--json"])));
    assert_eq!(finished["earlier"], num_earlier);
    assert_eq!(texts(&killed), expected);
    // Nothing is left to do, not even to load a model.
    let again = counts(&batch(&killed, &["--json", "-m", "no/model.gguf"]));
    assert_eq!(
        (&again["earlier"], &again["answered"]),
        (&json!(60), &json!(0))
    );
}

#[test]
fn an_output_of_another_batch_stays_as_it_is() {
    let folder = folder("other");
    write(&folder, &[line("a", 2), line("b", 2)]);
    counts(&batch(&folder, &["--json"]));
    let before = std::fs::read(folder.join("out.jsonl")).expect("the output");
    write(&folder, &[line("a", 2), line("b", 3)]);
    let failure = |folder: &Path, more: &[&str]| {
        let output = batch(folder, more);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    assert!(failure(&folder, &[]).contains("line 2 of out.jsonl"));
    let after = std::fs::read(folder.join("out.jsonl")).expect("the output");
    assert_eq!(before, after);

    for notes in ["my notes\nof today\n", "my notes", "{}\n"] {
        std::fs::write(folder.join("out.jsonl"), notes).expect("a file");
        assert!(failure(&folder, &[]).contains("line 1 of out.jsonl"));
        let after = std::fs::read_to_string(folder.join("out.jsonl")).expect("the output");
        assert_eq!(after, notes);
    }

    write(&folder, &[]);
    assert!(failure(&folder, &[]).contains("in.jsonl has no requests"));
    std::fs::remove_file(folder.join("in.jsonl")).expect("the input");
    assert!(failure(&folder, &[]).contains("in.jsonl"));
}
