//! `/v1/messages`: its events, its blocks, and its errors.

use serde_json::{Value, json};

use crate::client::{Server, chat, types, with};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const CHAT: &str = "/v1/chat/completions";
const RENDER: &str = "/v1/chat/completions/render";
/// A model that thinks; see `thinking.rs`.
const THINKING_MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf"
);
/// The tag that opens its thinking.
const BEGIN: u32 = 411;

fn ask(text: &str, more: Value) -> Value {
    chat(text, more)
}

/// The events of a stream. Each name equals the type of its data.
#[track_caller]
fn events(server: &Server, body: &Value) -> Vec<Value> {
    let body = with(body.clone(), json!({ "stream": true }));
    let events = server.post(MESSAGES, &body).named_events();
    for (name, event) in &events {
        assert_eq!(&event["type"], name, "{event}");
    }
    events.into_iter().map(|(_, event)| event).collect()
}

/// The status, kind and message of a refusal.
#[track_caller]
fn refusal(server: &Server, path: &str, body: &Value) -> (u16, String, String) {
    let response = server.post(path, body);
    let body = response.json();
    assert_eq!(body["type"], "error", "{body}");
    let id = response.header("x-request-id").expect("an id");
    assert_eq!(body["request_id"], id);
    let text = |name: &str| body["error"][name].as_str().expect("a text").to_owned();
    (response.status, text("type"), text("message"))
}

/// The blocks that the events of a stream add up to.
fn added_up(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut arguments = String::new();
    for event in events {
        match event["type"].as_str() {
            Some("content_block_start") => {
                assert_eq!(event["index"], blocks.len());
                blocks.push(event["content_block"].clone());
            }
            Some("content_block_delta") => {
                assert_eq!(event["index"], blocks.len() - 1);
                let (block, delta) = (blocks.last_mut().expect("a block"), &event["delta"]);
                let field = match delta["type"].as_str() {
                    Some("text_delta") => "text",
                    Some("thinking_delta") => "thinking",
                    Some("signature_delta") => "signature",
                    _ => {
                        arguments += delta["partial_json"].as_str().expect("a text");
                        continue;
                    }
                };
                let more = delta[field].as_str().expect("a text");
                block[field] = (block[field].as_str().expect("a text").to_owned() + more).into();
            }
            Some("content_block_stop") if !arguments.is_empty() => {
                let block = blocks.last_mut().expect("a block");
                block["input"] = serde_json::from_str(&arguments).expect("JSON");
                arguments.clear();
            }
            _ => {}
        }
    }
    blocks
}

#[test]
fn a_message_has_the_text_of_the_chat_and_its_events_add_up_to_it() {
    let server = Server::start(&[]);
    let of_chat = server.answer(CHAT, &chat("Once upon a time", json!({})));
    let body = ask("Once upon a time", json!({ "model": "stories" }));
    let whole = server.answer(MESSAGES, &body);
    let content = &of_chat["choices"][0]["message"]["content"];
    assert_eq!(
        whole["content"],
        json!([{ "type": "text", "text": content, "citations": null }])
    );
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["model"]),
        (&json!("message"), &json!("assistant"), &json!("stories"))
    );
    assert_eq!(whole["stop_reason"], "max_tokens");
    let usage = &whole["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a number");
    assert_eq!(count("output_tokens"), 24);
    assert_eq!(
        count("input_tokens") + count("cache_read_input_tokens"),
        of_chat["usage"]["prompt_tokens"]
            .as_u64()
            .expect("a number")
    );
    let counted = server.answer(COUNT, &with(body.clone(), json!({ "max_tokens": null })));
    assert_eq!(counted["input_tokens"], of_chat["usage"]["prompt_tokens"]);

    let events = events(&server, &body);
    assert_eq!(
        types(&events),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let start = &events[0]["message"];
    assert_eq!(
        (&start["content"], &start["stop_reason"]),
        (&json!([]), &Value::Null)
    );
    assert_eq!(start["usage"]["input_tokens"], counted["input_tokens"]);
    assert_eq!(
        added_up(&events).into_iter().collect::<Value>(),
        whole["content"]
    );
    let end = &events[events.len() - 2];
    assert_eq!(
        end["delta"],
        json!({ "stop_reason": "max_tokens", "stop_sequence": null })
    );
    assert_eq!(end["usage"]["output_tokens"], 24);
}

#[test]
fn each_reason_of_an_end_has_its_name() {
    let server = Server::start(&["--ctx-size", "256"]);
    let long = json!({ "max_tokens": 200, "stop_sequences": ["zebra", "."] });
    let stopped = server.answer(MESSAGES, &ask("Once upon a time", long));
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!("."))
    );
    let text = stopped["content"][0]["text"].as_str().expect("a text");
    assert!(!text.is_empty() && !text.contains('.'), "{text}");
    // Beyond the context there is no room.
    let more = json!({ "max_tokens": 100_000, "ignore_eos": true });
    let full = server.answer(MESSAGES, &ask("Once upon a time", more));
    assert_eq!(full["stop_reason"], "model_context_window_exceeded");
    let usage = &full["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a number");
    let total = ["input_tokens", "cache_read_input_tokens", "output_tokens"].map(count);
    assert_eq!(total.iter().sum::<u64>(), 256);
    let ended = server.answer(
        MESSAGES,
        &ask(
            "The end",
            json!({ "max_tokens": 240, "logit_bias": bias_to_end(&server) }),
        ),
    );
    assert_eq!(
        (
            &ended["stop_reason"],
            &ended["stop_sequence"],
            &ended["content"]
        ),
        (&json!("end_turn"), &Value::Null, &json!([]))
    );
}

/// A bias that makes the model end at once.
fn bias_to_end(server: &Server) -> Value {
    let info = server.get("/tokenizer_info").json();
    let ask = json!({ "prompt": info["eos_token"], "add_special_tokens": false });
    let tokens = server.answer("/tokenize", &ask)["tokens"].clone();
    json!({ tokens[0].to_string(): 100 })
}

#[test]
fn a_tool_is_called_and_its_result_is_read() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let tool = json!({ "name": "get_weather", "description": "The weather.",
        "input_schema": { "type": "object", "properties": { "city": { "enum": ["Paris"] } },
            "required": ["city"], "additionalProperties": false } });
    for choice in [
        json!({ "type": "any" }),
        json!({ "type": "tool", "name": "get_weather" }),
    ] {
        let choice = with(choice, json!({ "disable_parallel_tool_use": true }));
        let more = json!({ "tools": [tool], "tool_choice": choice, "max_tokens": 100 });
        let body = ask("The weather in Paris?", more);
        let whole = server.answer(MESSAGES, &body);
        let block = &whole["content"][0];
        assert_eq!(
            (&block["type"], &block["name"], &block["input"]),
            (
                &json!("tool_use"),
                &json!("get_weather"),
                &json!({ "city": "Paris" })
            )
        );
        assert_eq!(whole["stop_reason"], "tool_use");
        let [streamed] = &added_up(&events(&server, &body))[..] else {
            panic!("one block");
        };
        assert_eq!(
            (&streamed["name"], &streamed["input"]),
            (&block["name"], &block["input"])
        );
    }
    let messages = json!([
        { "role": "user", "content": [{ "type": "text", "text": "The weather in Paris?",
            "cache_control": { "type": "ephemeral" } }] },
        { "role": "assistant", "content": [
            { "type": "text", "text": "I look." },
            { "type": "tool_use", "id": "toolu_1", "name": "get_weather",
              "input": { "city": "Paris" } },
        ] },
        { "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": "toolu_1", "is_error": true,
              "content": [{ "type": "text", "text": "no net" }] },
            { "type": "text", "text": "Guess!" },
        ] },
    ]);
    let call = json!({ "id": "toolu_1", "type": "function",
        "function": { "name": "get_weather", "arguments": "{\"city\":\"Paris\"}" } });
    let of_chat = json!([
        { "role": "system", "content": "Be kind." },
        { "role": "user", "content": "The weather in Paris?" },
        { "role": "assistant", "content": "I look.", "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "toolu_1", "content": "Error: no net" },
        { "role": "user", "content": "Guess!" },
    ]);
    let rendered = server.answer(RENDER, &json!({ "messages": of_chat }));
    let num_tokens = rendered["token_ids"].as_array().expect("tokens").len();
    let system = json!([{ "type": "text", "text": "Be kind." }]);
    for system in [json!("Be kind."), system] {
        let body = json!({ "messages": messages, "system": system });
        assert_eq!(server.answer(COUNT, &body)["input_tokens"], num_tokens);
    }
}

#[test]
fn the_message_of_the_assistant_is_continued() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let messages = json!([
        { "role": "user", "content": "Tell a story." },
        { "role": "assistant", "content": "Once upon" },
    ]);
    let body = json!({ "messages": messages });
    let continued = with(
        body.clone(),
        json!({ "continue_final_message": true, "add_generation_prompt": false }),
    );
    let rendered = server.answer(RENDER, &continued);
    assert!(
        rendered["prompt"]
            .as_str()
            .expect("a text")
            .ends_with("Once upon")
    );
    let num_tokens = rendered["token_ids"].as_array().expect("tokens").len();
    assert_eq!(server.answer(COUNT, &body)["input_tokens"], num_tokens);
}

#[test]
fn thinking_is_a_block_of_its_own_if_the_client_wants_it() {
    let server = Server::start(&["-m", THINKING_MODEL, "--ctx-size", "512"]);
    let think = |thinking: Value| {
        let more = json!({ "logit_bias": { BEGIN.to_string(): 100 }, "temperature": 0,
            "max_tokens": 12, "thinking": thinking });
        ask("Hi", more)
    };
    let body = think(json!({ "type": "enabled", "budget_tokens": 3 }));
    let whole = server.answer(MESSAGES, &body);
    let [thinking, text] = &whole["content"].as_array().expect("a list")[..] else {
        panic!("two blocks: {whole}");
    };
    assert_eq!(thinking["thinking"], "<think>".repeat(3));
    // SHA-256 of three tags, from sha256sum.
    let hash = "959782f846313568c86e49fab9afe23380cd79b3b1c1b66c636861c7a4f973d2";
    assert_eq!(
        (&thinking["type"], &thinking["signature"]),
        (&json!("thinking"), &json!(hash))
    );
    assert_eq!(text["text"], "<think>".repeat(4));
    assert_eq!(
        whole["usage"]["output_tokens_details"]["thinking_tokens"],
        6
    );
    let streamed = added_up(&events(&server, &body));
    assert_eq!(streamed.into_iter().collect::<Value>(), whole["content"]);
    let omitted = json!({ "type": "enabled", "budget_tokens": 3, "display": "omitted" });
    let hidden = server.answer(MESSAGES, &think(omitted));
    assert_eq!(hidden["content"], json!([text]));
    for off in [Value::Null, json!({ "type": "disabled" })] {
        let plain = server.answer(MESSAGES, &think(off));
        assert_eq!(plain["content"][0]["text"], "<think>".repeat(12));
    }
    let free = server.answer(MESSAGES, &think(json!({ "type": "adaptive" })));
    assert_eq!(free["content"][0]["thinking"], "<think>".repeat(11));
}

#[test]
fn a_message_has_its_form() {
    let server = Server::start(&[]);
    let schema = json!({ "type": "object", "properties": { "age": { "enum": [7] } },
        "required": ["age"], "additionalProperties": false });
    let config = json!({ "format": { "type": "json_schema", "schema": schema } });
    let more = json!({ "output_config": config, "max_tokens": 100 });
    let answer = server.answer(MESSAGES, &ask("Once", more));
    let text = answer["content"][0]["text"].as_str().expect("a text");
    assert_eq!(
        serde_json::from_str::<Value>(text).expect("JSON"),
        json!({ "age": 7 })
    );
}

#[test]
fn a_refused_message_names_its_field_in_the_form_of_the_api() {
    let server = Server::start(&[]);
    let user = |block: Value| json!({ "messages": [{ "role": "user", "content": [block] }] });
    for (more, field) in [
        (json!({ "frobnicate": 1 }), "frobnicate"),
        (json!({ "max_tokens": null }), "max_tokens"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "messages": [] }), "messages"),
        (
            json!({ "messages": [{ "role": "robot", "content": "x" }] }),
            "messages[0].role",
        ),
        (user(json!({ "type": "image", "source": {} })), "image"),
        (
            user(json!({ "type": "text" })),
            "messages[0].content[0].text",
        ),
        (
            user(json!({ "type": "text", "text": "x", "more": 1 })),
            "messages[0].content[0].more",
        ),
        (
            user(
                json!({ "type": "tool_result", "tool_use_id": "a", "content": [{ "type": "image" }] }),
            ),
            "image",
        ),
        (
            json!({ "tools": [{ "type": "web_search_20250305", "name": "web_search" }] }),
            "web_search",
        ),
        (
            json!({ "tools": [{ "name": "f", "input_schema": { "type": 1 } }] }),
            "tools[0].input_schema",
        ),
        (json!({ "tool_choice": { "type": "any" } }), "tool_choice"),
        (
            json!({ "tool_choice": { "type": "tool" } }),
            "tool_choice.name",
        ),
        (
            json!({ "thinking": { "type": "enabled" } }),
            "thinking.budget_tokens",
        ),
        (
            json!({ "thinking": { "type": "between_tools" } }),
            "thinking.type",
        ),
        (json!({ "container": "c" }), "container"),
        (json!({ "stop_sequences": [""] }), "stop_sequences"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "speed": "fast" }), "speed"),
    ] {
        let (status, kind, message) = refusal(&server, MESSAGES, &ask("x", more.clone()));
        assert_eq!((status, &*kind), (400, "invalid_request_error"), "{more}");
        assert!(message.contains(field), "{more}: {message}");
    }
    let (status, kind, _) = refusal(&server, MESSAGES, &ask("x", json!({ "model": "claude" })));
    assert_eq!((status, &*kind), (404, "not_found_error"));
    let long = ask(&"a ".repeat(5000), json!({}));
    let (status, _, message) = refusal(&server, MESSAGES, &long);
    assert!(
        status == 400 && message.contains("maximum context length"),
        "{message}"
    );
    let neutral = json!({ "service_tier": "standard_only", "metadata": { "user_id": "u" },
        "speed": "standard", "container": null, "top_k": 40, "tools": [] });
    server.answer(MESSAGES, &ask("x", neutral));
    let headers = [("content-type", "application/json")];
    let wrong = server.send("POST", MESSAGES, &headers, b"{");
    assert_eq!(
        (wrong.status, &wrong.json()["type"]),
        (400, &json!("error"))
    );
}

#[test]
fn a_key_may_come_as_x_api_key() {
    let server = Server::start_with(&[], &[("BITNET_API_KEY", "secret")]);
    let ask = |headers: &[(&str, &str)]| {
        let response = server.post_with(COUNT, &ask("x", json!({})), headers);
        (response.status, response.json())
    };
    server.wait_until("ready", || server.get("/readyz").status == 200);
    for (name, value, expected) in [
        ("x-api-key", "secret", 200),
        ("authorization", "Bearer secret", 200),
        ("x-api-key", "other", 401),
        ("anthropic-version", "2023-06-01", 401),
    ] {
        let (status, body) = ask(&[(name, value)]);
        assert_eq!(status, expected, "{name}: {body}");
        if status == 401 {
            assert_eq!(body["error"]["type"], "authentication_error");
        }
    }
}
