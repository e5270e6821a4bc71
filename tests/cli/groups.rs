//! Models with group scales and recurrent states.

use std::path::Path;

use serde_json::Value;

use crate::{bitnet, bitnet_with_input, data, json, text};

#[test]
fn models_with_group_scales_and_states_give_the_reference_text() {
    for (name, layers, state) in [
        ("qwen3-ptq1_0", 4, 0),
        (
            "qwen35-ptq1_0-rot512-part",
            8,
            6 * (8 * 64 * 64 + 3 * 12 * 64) * 4,
        ),
    ] {
        let folder = data("golden-group").join(name);
        let model = folder.join("model.gguf").display().to_string();
        let facts = json(&["inspect", &model, "--json"]);
        assert_eq!(facts["model"]["layers"], layers, "{name}");
        assert_eq!(facts["model"]["state_bytes"], state, "{name}");
        assert_eq!(facts["odd"], serde_json::json!([]), "{name}");
        let thinks = serde_json::json!(["<think>", "</think>"]);
        assert_eq!(facts["tokenizer"]["thinks"], thinks, "{name}");
        assert_eq!(
            facts["tokenizer"]["chat_template_names"],
            serde_json::json!([])
        );
        let greedy = std::fs::read(folder.join("greedy.json")).expect("greedy.json");
        let greedy: Value = serde_json::from_slice(&greedy).expect("JSON");
        let prompt = greedy["prompt"].as_array().expect("ids");
        let prompt: Vec<String> = prompt.iter().map(Value::to_string).collect();
        let run = |more: &[&str]| {
            let prompt = prompt.join(",");
            let mut arguments = vec!["run", "-m", &model, "--prompt-tokens", &prompt, "-n", "16"];
            arguments.extend(["--temp", "0", "--kv-type", "f32", "--json"]);
            arguments.extend(more);
            json(&arguments)["tokens"].clone()
        };
        assert_eq!(run(&[]), greedy["int8-32"]["continuation"], "{name}");
        assert_eq!(
            run(&["--group-inputs", "f32"]),
            greedy["continuation"],
            "{name}"
        );
        let one_thread = run(&["-t", "1", "--prefill-chunk", "7"]);
        assert_eq!(one_thread, greedy["int8-32"]["continuation"], "{name}");
    }
}

#[test]
fn a_group_model_is_converted_without_loss_or_the_tensor_is_named() {
    let folder = data("golden-group/qwen3-ptq1_0");
    let model = folder.join("model.gguf").display().to_string();
    let directory = tempfile::tempdir().expect("a folder");
    let out = directory
        .path()
        .join("converted.gguf")
        .display()
        .to_string();
    let written = json(&["convert", &model, "-o", &out, "--type", "q2_0", "--json"]);
    assert_eq!(written["scales_rounded"], 0);
    let greedy = std::fs::read(folder.join("greedy.json")).expect("greedy.json");
    let greedy: Value = serde_json::from_slice(&greedy).expect("JSON");
    let prompt = greedy["prompt"].as_array().expect("ids");
    let prompt: Vec<String> = prompt.iter().map(Value::to_string).collect();
    let prompt = prompt.join(",");
    let mut run = vec!["run", "-m", &out, "--prompt-tokens", &prompt, "-n", "16"];
    run.extend(["--temp", "0", "--kv-type", "f32", "--json"]);
    assert_eq!(json(&run)["tokens"], greedy["int8-32"]["continuation"]);

    let lost = directory.path().join("lost.gguf").display().to_string();
    let result = bitnet(&["convert", &model, "-o", &lost]);
    assert!(!result.status.success() && !Path::new(&lost).exists());
    let message = text(&result.stderr);
    assert!(
        message.contains("tensor blk.0.attn_q.weight")
            && message.contains("one scale per tensor is supported"),
        "{message}"
    );
}

#[test]
fn a_chat_prints_and_keeps_a_tool_call_and_hides_thinking() {
    let model = data("golden-group/qwen35-ptq1_0-rot512-part/model.gguf");
    let model = model.display().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("chat.json");
    // The answer repeats the token with this id.
    let answer = |token: u32, thinking: &str| {
        let bias = format!("{token}+100");
        let arguments = [
            "chat",
            "-m",
            &model,
            "-n",
            "3",
            "--temp",
            "0",
            "--logit-bias",
            &bias,
        ];
        let arguments = [&arguments[..], &["--thinking", thinking]].concat();
        let _ = std::fs::remove_file(&file);
        let input = format!("Hi\n/save {}\n", file.display());
        let output = bitnet_with_input(&arguments, &input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let saved = std::fs::read(&file).expect("the conversation");
        let saved: Value = serde_json::from_slice(&saved).expect("JSON");
        let first_line = text(&output.stdout).lines().next().map(str::to_owned);
        (first_line, saved["messages"][1].clone())
    };
    let calls = "<tool_call>".repeat(3);
    let (shown, message) = answer(409, "off");
    assert_eq!(shown.as_deref(), Some(&*calls));
    assert_eq!(message["content"], calls);
    let (shown, message) = answer(411, "on");
    assert_eq!(shown.as_deref(), Some(""));
    assert_eq!(message["content"], "");
    assert_eq!(message["reasoning_content"], "<think>".repeat(2));
}
