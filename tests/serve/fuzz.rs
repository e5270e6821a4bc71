//! Random bodies: the OpenAPI document describes each answer, and the server keeps running.
//!
//! PROPTEST_CASES sets how many bodies each endpoint gets; `cargo run -p xtask -- ci --full` sends
//! many.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};

use crate::client::Server;

/// Default number of bodies for each endpoint.
const CASES: u32 = 48;

/// Any JSON, including numbers and texts that are often handled wrongly.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            json!(0),
            json!(-1),
            json!(1e308),
            json!(-0.0),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1u64 << 32),
            json!(""),
            json!("\u{0}"),
            json!("<|im_start|>system\n</s><unk>"),
            json!("\u{202e}\u{1f9d1}\u{200d}\u{1f680}\u{fffd}"),
        ]),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

/// A change of a valid body.
#[derive(Clone, Debug)]
enum Change {
    /// Replaces a value.
    Replace(Index, Value),
    /// Removes a field or an element.
    Remove(Index),
    /// Adds a field.
    Add(Index, String, Value),
    /// Truncates the text.
    Cut(Index),
    /// Replaces a byte.
    Flip(Index, u8),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<Index>(), any_json()).prop_map(|(at, value)| Change::Replace(at, value)),
        2 => any::<Index>().prop_map(Change::Remove),
        2 => (any::<Index>(), ".{0,8}", any_json()).prop_map(|(at, name, value)| Change::Add(at, name, value)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Flip(at, byte)),
    ]
}

/// The places in a value, itself included.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(index, value)| places(value, &format!("{at}/{index}"), out)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            places(value, &format!("{at}/{name}"), out);
        }),
        _ => {}
    }
}

fn changed(body: &Value, changes: &[Change]) -> Vec<u8> {
    let mut body = body.clone();
    for change in changes {
        let (Change::Replace(at, _) | Change::Remove(at) | Change::Add(at, ..)) = change else {
            continue;
        };
        let mut all = Vec::new();
        places(&body, "", &mut all);
        let place = at.get(&all);
        match change {
            Change::Replace(_, value) => {
                if let Some(old) = body.pointer_mut(place) {
                    *old = value.clone();
                }
            }
            Change::Remove(_) => {
                let Some((parent, name)) = place.rsplit_once('/') else {
                    continue;
                };
                match body.pointer_mut(parent) {
                    Some(Value::Object(fields)) => drop(fields.remove(name)),
                    Some(Value::Array(list)) => drop(list.pop()),
                    _ => {}
                }
            }
            Change::Add(_, name, value) => match body.pointer_mut(place) {
                Some(Value::Object(fields)) => drop(fields.insert(name.clone(), value.clone())),
                Some(Value::Array(list)) => list.push(value.clone()),
                _ => {}
            },
            Change::Cut(_) | Change::Flip(..) => {}
        }
    }
    let mut bytes = body.to_string().into_bytes();
    for change in changes {
        match change {
            Change::Cut(at) => bytes.truncate(at.index(bytes.len().max(1))),
            Change::Flip(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            _ => {}
        }
    }
    bytes
}

/// A body with most fields for each endpoint of OpenAI's Responses API, Anthropic's and Ollama's.
fn other_bodies(schema: &Value) -> [(&'static str, Value); 5] {
    let items = json!([
        { "role": "user", "content": [{ "type": "input_text", "text": "Once" }] },
        { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "x" }] },
        { "type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{}", "status": "completed" },
        { "type": "function_call_output", "call_id": "1", "output": "done" },
    ]);
    let responses = json!({
        "model": "stories", "input": items, "instructions": "Be brief.", "max_output_tokens": 4, "seed": 1, "temperature": 0.8,
        "top_p": 0.9, "top_k": 40, "stream": true, "store": true, "metadata": { "a": "b" }, "reasoning": { "effort": "low" },
        "tools": [{ "type": "function", "name": "f", "parameters": schema, "strict": false }], "tool_choice": "auto",
        "text": { "format": { "type": "text" } }, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    });
    let messages = json!([
        { "role": "user", "content": [{ "type": "text", "text": "Once", "cache_control": { "type": "ephemeral" } }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "x", "signature": "y" },
            { "type": "tool_use", "id": "1", "name": "f", "input": { "a": 1 } },
        ] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "1", "content": "done", "is_error": false }] },
    ]);
    let anthropic = json!({
        "model": "stories", "messages": messages, "system": [{ "type": "text", "text": "Be brief." }], "max_tokens": 4,
        "seed": 1, "temperature": 0.8, "top_k": 40, "stop_sequences": ["x"], "stream": true,
        "thinking": { "type": "enabled", "budget_tokens": 3 }, "metadata": { "user_id": "u" },
        "tools": [{ "name": "f", "description": "F.", "input_schema": schema }], "tool_choice": { "type": "auto" },
    });
    let options = json!({ "seed": 1, "num_predict": 4, "temperature": 0.8, "top_k": 40, "stop": ["x"], "num_ctx": 64 });
    let ollama = json!({
        "model": "stories:latest", "stream": true, "options": options, "think": false, "keep_alive": "5m", "format": "",
        "messages": [{ "role": "user", "content": "Once" }, { "role": "assistant", "content": "", "tool_calls":
            [{ "function": { "name": "f", "arguments": { "a": 1 } } }] }, { "role": "tool", "tool_name": "f", "content": "x" }],
    });
    [
        ("/v1/responses", responses),
        ("/v1/messages", anthropic.clone()),
        ("/v1/messages/count_tokens", anthropic),
        ("/api/chat", ollama),
        (
            "/api/generate",
            json!({ "model": "stories", "prompt": "Once", "system": "s", "raw": false, "options": options, "format": schema }),
        ),
    ]
}

/// A body with most fields for each endpoint.
fn bodies() -> Vec<(&'static str, Value)> {
    let sampling = json!({
        "model": "stories", "max_tokens": 4, "n": 2, "seed": 1, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.1,
        "typical_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "stop": ["x", "yz"],
        "stop_token_ids": [5], "ignore_eos": false, "logit_bias": { "7": 1 }, "cache_salt": "s", "return_token_ids": true,
        "stream": true, "stream_options": { "include_usage": true }, "user": "me",
    });
    let schema = json!({
        "type": "object",
        "properties": { "a": { "type": "string", "pattern": "^[a-z]{1,4}$" }, "b": { "$ref": "#/$defs/b" } },
        "required": ["a"], "$defs": { "b": { "anyOf": [{ "type": "integer", "minimum": 3 }, { "enum": ["x", null] }] } },
    });
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Once" }] },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } },
        ] },
        { "role": "tool", "tool_call_id": "1", "content": "done" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "description": "F.", "parameters": schema } }]);
    let chat = crate::client::with(
        sampling.clone(),
        json!({ "messages": messages, "tools": tools, "tool_choice": "auto", "logprobs": true, "top_logprobs": 2 }),
    );
    let format = json!({ "type": "json_schema", "json_schema": { "name": "f", "schema": schema } });
    let formed = crate::client::with(
        sampling,
        json!({ "prompt": ["Once", "The"], "echo": false, "logprobs": 1 }),
    );
    let formed = crate::client::with(formed, json!({ "response_format": format }));
    let mut bodies = vec![
        ("/v1/chat/completions", chat.clone()),
        ("/v1/completions", formed.clone()),
        ("/v1/chat/completions/render", chat.clone()),
        ("/v1/completions/render", formed),
        (
            "/tokenize",
            json!({ "messages": chat["messages"], "add_generation_prompt": true, "return_token_strs": true }),
        ),
        (
            "/detokenize",
            json!({ "model": "stories", "tokens": [1, 2, 3] }),
        ),
    ];
    bodies.extend(other_bodies(&schema));
    bodies
}

#[test]
fn no_body_makes_the_server_fail() {
    let server = Server::start(&[
        "--ctx-size",
        "512",
        "--choices",
        "4",
        "--chat-template",
        "chatml",
    ]);
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(CASES);
    for (path, body) in bodies() {
        let mut runner = TestRunner::new(Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        });
        let changes = prop::collection::vec(any_change(), 0..4);
        let outcome = runner.run(&changes, |changes| {
            let bytes = changed(&body, &changes);
            let response = server.send(
                "POST",
                path,
                &[("content-type", "application/json")],
                &bytes,
            );
            let (status, text) = (response.status, response.text());
            let is_failure = status >= 500 || text.contains("internal_error");
            if is_failure || ![200, 400, 404].contains(&status) {
                let body = String::from_utf8_lossy(&bytes).into_owned();
                return Err(TestCaseError::fail(format!("{status} {text} for {body}")));
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    assert_eq!(server.get("/health").status, 200);
    assert!(
        server
            .get("/metrics")
            .text()
            .contains("bitnet_engine_panics_total{model_name=\"stories\",engine=\"0\"} 0")
    );
}
