//! `/v1/responses`: its events, its items, and the responses that it keeps.

use serde_json::{Value, json};

use crate::client::{Server, chat, types, with};

const RESPONSES: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";
/// A model that thinks; see `thinking.rs`.
const THINKING_MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf"
);
/// The tag that opens its thinking.
const BEGIN: u32 = 411;

fn ask(input: impl Into<Value>, more: Value) -> Value {
    with(
        json!({ "input": input.into(), "seed": 7, "max_output_tokens": 24 }),
        more,
    )
}

/// The events of a stream. Each name equals the type of its data, and the numbers count from 0.
#[track_caller]
fn events(server: &Server, body: &Value) -> Vec<Value> {
    let body = with(body.clone(), json!({ "stream": true }));
    let events = server.post(RESPONSES, &body).named_events();
    for (index, (name, event)) in events.iter().enumerate() {
        assert_eq!(&event["type"], name, "{event}");
        assert_eq!(event["sequence_number"], index, "{event}");
    }
    events.into_iter().map(|(_, event)| event).collect()
}

/// A response or item without what differs between two answers to the same request.
fn without_ids(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| {
                !matches!(
                    &***name,
                    "id" | "call_id" | "created_at" | "completed_at" | "usage"
                )
            })
            .map(|(name, value)| (name.clone(), without_ids(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(without_ids).collect(),
        value => value.clone(),
    }
}

fn text(response: &Value) -> &str {
    let texts = response["output"].as_array().expect("an output");
    let message = texts.iter().find(|item| item["type"] == "message");
    message.expect("a message")["content"][0]["text"]
        .as_str()
        .expect("a text")
}

#[test]
fn a_response_has_the_text_of_the_chat_and_its_events_add_up_to_it() {
    let server = Server::start(&[]);
    let chat = server.answer(CHAT, &chat("Once upon a time", json!({})));
    let body = ask("Once upon a time", json!({ "metadata": { "a": "b" } }));
    let whole = server.answer(RESPONSES, &body);
    assert_eq!(text(&whole), chat["choices"][0]["message"]["content"]);
    assert_eq!(whole["object"], "response");
    assert_eq!(
        (&whole["status"], &whole["model"]),
        (&json!("incomplete"), &json!("stories"))
    );
    assert_eq!(
        whole["incomplete_details"],
        json!({ "reason": "max_output_tokens" })
    );
    assert_eq!(whole["metadata"], json!({ "a": "b" }));
    assert_eq!(whole["output"][0]["status"], "incomplete");
    let (usage, of_chat) = (&whole["usage"], &chat["usage"]);
    assert_eq!(usage["input_tokens"], of_chat["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], 24);
    assert_eq!(usage["total_tokens"], of_chat["total_tokens"]);
    assert!(usage["input_tokens_details"]["cached_tokens"].is_u64());
    let events = events(&server, &body);
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let begin = &events[0]["response"];
    assert_eq!(
        (&begin["status"], &begin["output"]),
        (&json!("in_progress"), &json!([]))
    );
    let deltas = events.iter().filter_map(|event| event["delta"].as_str());
    assert_eq!(deltas.collect::<String>(), text(&whole));
    let last = &events.last().expect("an event")["response"];
    assert_eq!(without_ids(last), without_ids(&whole));
    let done = &events[events.len() - 2];
    assert_eq!(done["item"], last["output"][0]);
    let ended = server.answer(
        RESPONSES,
        &ask("The dog", json!({ "max_output_tokens": null })),
    );
    assert_eq!(ended["status"], "completed");
    assert!(ended["completed_at"].is_u64() && ended["incomplete_details"].is_null());
}

#[test]
fn a_function_is_called_and_its_output_is_read() {
    let server = Server::start(&[]);
    let tool = json!({ "type": "function", "name": "get_weather", "description": "The weather.",
        "parameters": { "type": "object", "properties": { "city": { "enum": ["Paris"] } },
            "required": ["city"], "additionalProperties": false }, "strict": true });
    let calling = json!({ "tools": [tool], "tool_choice": "required",
        "parallel_tool_calls": false, "max_output_tokens": 100 });
    let body = ask("The weather in Paris?", calling);
    let whole = server.answer(RESPONSES, &body);
    let call = &whole["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (
            &json!("function_call"),
            &json!("get_weather"),
            &json!("completed")
        )
    );
    let arguments = call["arguments"].as_str().expect("a string");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert_eq!(arguments, json!({ "city": "Paris" }));
    assert_eq!(whole["status"], "completed");
    let events = events(&server, &body);
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    // The same conversation as a chat has the same tokens.
    let id = &call["call_id"];
    let items = json!([
        { "role": "user", "content": [{ "type": "input_text", "text": "The weather in Paris?" }] },
        call,
        { "type": "function_call_output", "call_id": id, "output": "Rain." },
    ]);
    let answer = server.answer(RESPONSES, &ask(items, json!({})));
    let call = json!({ "id": id, "type": "function",
        "function": { "name": "get_weather", "arguments": call["arguments"] } });
    let messages = json!([
        { "role": "user", "content": "The weather in Paris?" },
        { "role": "assistant", "tool_calls": [call] },
        { "role": "tool", "tool_call_id": id, "content": "Rain." },
    ]);
    let chat = server.answer(CHAT, &chat("", json!({ "messages": messages })));
    assert_eq!(text(&answer), chat["choices"][0]["message"]["content"]);
    // A reference stands for the item of a stored response.
    let items = json!([
        { "role": "user", "content": "The weather in Paris?" },
        { "type": "item_reference", "id": whole["output"][0]["id"] },
        { "type": "function_call_output", "call_id": id, "output": "Rain." },
    ]);
    let again = server.answer(RESPONSES, &ask(items, json!({})));
    assert_eq!(
        without_ids(&again["output"]),
        without_ids(&answer["output"])
    );
}

#[test]
fn a_conversation_continues_from_a_stored_response() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let first = server.answer(RESPONSES, &ask("Hi", json!({ "instructions": "Be kind." })));
    let stored = |response: &Value| {
        let path = format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"));
        server.get(&path)
    };
    assert_eq!(stored(&first).json(), first);
    let more = json!({ "previous_response_id": first["id"] });
    let second = server.answer(RESPONSES, &ask("And then?", more.clone()));
    // Instructions are not carried over.
    let items = json!([
        { "role": "user", "content": "Hi" },
        first["output"][0],
        { "role": "user", "content": "And then?" },
    ]);
    let spelled = server.answer(RESPONSES, &ask(items, json!({ "store": false })));
    assert_eq!(text(&second), text(&spelled));
    assert_eq!(
        second["usage"]["input_tokens"],
        spelled["usage"]["input_tokens"]
    );
    assert_eq!(second["previous_response_id"], first["id"]);
    assert_eq!(stored(&spelled).status, 404);

    let path = format!(
        "{RESPONSES}/{}/input_items",
        second["id"].as_str().expect("an id")
    );
    let all = server.get(&format!("{path}?order=asc")).json();
    let contents: Vec<_> = all["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| {
            item["content"][0]["text"]
                .as_str()
                .expect("a text")
                .to_owned()
        })
        .collect();
    assert_eq!(contents, ["Hi", text(&first), "And then?"]);
    let last = server.get(&format!("{path}?limit=1")).json();
    assert_eq!(
        (&last["has_more"], &last["data"][0]),
        (&json!(true), &all["data"][2])
    );
    let after = last["last_id"].as_str().expect("an id");
    let rest = server.get(&format!("{path}?after={after}")).json();
    assert_eq!(
        (&rest["has_more"], &rest["data"][0]),
        (&json!(false), &all["data"][1])
    );
    assert_eq!(server.get(&format!("{path}?limit=0")).status, 400);
    assert_eq!(server.get(&format!("{path}?order=up")).status, 400);

    let first_path = format!("{RESPONSES}/{}", first["id"].as_str().expect("an id"));
    let deleted = server.send("DELETE", &first_path, &[], b"").json();
    assert_eq!(
        (&deleted["id"], &deleted["deleted"]),
        (&first["id"], &json!(true))
    );
    assert_eq!(server.send("DELETE", &first_path, &[], b"").status, 404);
    assert_eq!(stored(&first).status, 404);
    let (status, code, field) = server.refusal(RESPONSES, &ask("x", more));
    assert_eq!(
        (status, &*code, field.as_deref()),
        (
            400,
            "previous_response_not_found",
            Some("previous_response_id")
        )
    );
    // The second response needs the first one.
    let more = json!({ "previous_response_id": second["id"] });
    assert_eq!(
        server.refusal(RESPONSES, &ask("x", more)).1,
        "previous_response_not_found"
    );
    assert_eq!(stored(&second).status, 200);
}

#[test]
fn a_restart_loses_no_response() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let state = state.to_str().expect("a path");
    let server = Server::start(&["--state-dir", state]);
    let first = server.answer(RESPONSES, &ask("Hi", json!({})));
    let streamed = events(
        &server,
        &ask("Ho", json!({ "previous_response_id": first["id"] })),
    );
    let second = &streamed.last().expect("an event")["response"];
    // Another server must not use the folder.
    let taken = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(["serve", "--port", "0", "--state-dir", state])
        .output()
        .expect("the program runs");
    assert!(!taken.status.success());
    let message = String::from_utf8_lossy(&taken.stderr);
    assert!(message.contains("responses.redb"), "{message}");
    // Killed, not stopped.
    drop(server);
    let server = Server::start(&["--state-dir", state]);
    for response in [&first, second] {
        let path = format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"));
        assert_eq!(server.get(&path).json(), *response);
    }
    let more = json!({ "previous_response_id": second["id"] });
    server.answer(RESPONSES, &ask("And then?", more));
}

#[test]
fn thinking_is_an_item_of_its_own() {
    let server = Server::start(&["-m", THINKING_MODEL, "--ctx-size", "512"]);
    let think = json!({ "logit_bias": { BEGIN.to_string(): 100 }, "temperature": 0,
        "thinking_token_budget": 3, "max_output_tokens": 12 });
    let body = ask("Hi", think);
    let whole = server.answer(RESPONSES, &body);
    let item = &whole["output"][0];
    assert_eq!(
        (&item["type"], &item["summary"]),
        (&json!("reasoning"), &json!([]))
    );
    assert_eq!(item["content"][0]["text"], "<think>".repeat(3));
    assert_eq!(text(&whole), "<think>".repeat(4));
    assert_eq!(
        whole["usage"]["output_tokens_details"]["reasoning_tokens"],
        6
    );
    let events = events(&server, &body);
    assert_eq!(
        types(&events)[2..9],
        [
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
        ]
    );
    let last = &events.last().expect("an event")["response"];
    assert_eq!(without_ids(last), without_ids(&whole));
    for off in [
        json!({ "reasoning": { "effort": "none" } }),
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
    ] {
        let plain = server.answer(RESPONSES, &with(body.clone(), off));
        assert_eq!(plain["output"][0]["type"], "message", "{plain}");
    }
    // Reasoning goes back to the model's template as chats send it.
    let (thinking, message) = (&whole["output"][0], &whole["output"][1]);
    let user = json!({ "role": "user", "content": "Hi" });
    let items = json!([user, thinking, message, user]);
    let counted = server.answer("/v1/responses/input_tokens", &ask(items, json!({})));
    let answer = json!({ "role": "assistant", "content": "<think>".repeat(4),
        "reasoning_content": "<think>".repeat(3) });
    let messages = json!([user, answer, user]);
    let rendered = server.answer(
        "/v1/chat/completions/render",
        &json!({ "messages": messages }),
    );
    let num_tokens = rendered["token_ids"].as_array().expect("tokens").len();
    assert_eq!(counted["input_tokens"], num_tokens);
}

#[test]
fn a_text_has_its_form_and_its_log_probabilities() {
    let server = Server::start(&[]);
    let schema = json!({ "type": "object", "properties": { "age": { "enum": [7] } },
        "required": ["age"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "person", "schema": schema });
    let more = json!({ "text": { "format": format }, "max_output_tokens": 100 });
    let answer = server.answer(RESPONSES, &ask("Once", more));
    let person: Value = serde_json::from_str(text(&answer)).expect("JSON");
    assert_eq!(person, json!({ "age": 7 }));
    assert_eq!(answer["text"]["format"], format);
    let more = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 2 });
    let body = ask("Once", more);
    let answer = server.answer(RESPONSES, &body);
    let logprobs = &answer["output"][0]["content"][0]["logprobs"];
    let logprobs = logprobs.as_array().expect("a list");
    assert_eq!(logprobs.len(), 24);
    let tokens = logprobs.iter().filter_map(|entry| entry["token"].as_str());
    assert_eq!(tokens.collect::<String>(), text(&answer));
    let events = events(&server, &body);
    let streamed: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .flat_map(|event| event["logprobs"].as_array().expect("a list"))
        .collect();
    assert_eq!(streamed, logprobs.iter().collect::<Vec<_>>());
}

#[test]
fn a_stream_that_is_cancelled_ends_as_failed() {
    let server = Server::start(&["--ctx-size", "4096"]);
    let long = json!({ "stream": true, "max_output_tokens": null, "ignore_eos": true });
    let mut open = server.open(RESPONSES, &ask("Once upon a time", long));
    open.read_chunk();
    let id = open.named_events()[0].1["response"]["id"].clone();
    let id = id.as_str().expect("an id");
    let path = format!("{RESPONSES}/{id}");
    let cancelled = server
        .send("POST", &format!("{path}/cancel"), &[], b"")
        .json();
    assert_eq!(
        (&cancelled["id"], &cancelled["status"]),
        (&json!(id), &json!("cancelled"))
    );
    let (name, last) = open.finish().named_events().pop().expect("an event");
    assert_eq!(
        (&*name, &last["response"]["status"]),
        ("response.failed", &json!("cancelled"))
    );
    assert_eq!(server.get(&path).json(), last["response"]);
    let again = server.send("POST", &format!("{path}/cancel"), &[], b"");
    assert_eq!(again.status, 400);
    let unknown = server.send("POST", &format!("{RESPONSES}/resp_0/cancel"), &[], b"");
    assert_eq!(unknown.status, 404);
}

#[test]
fn a_client_that_disconnects_cancels_its_response() {
    let server = Server::start(&["--ctx-size", "4096"]);
    let long = ask(
        "Once upon a time",
        json!({ "stream": true, "max_output_tokens": null, "ignore_eos": true }),
    );
    let stream = server.post_unread(RESPONSES, &long, &[]);
    server.wait_until("running", || {
        server.sample("vllm:num_requests_running") > 0.0
    });
    drop(stream);
    server.wait_until("cancelled", || {
        server.sample("vllm:num_requests_running") == 0.0
    });
}

#[test]
fn a_refused_response_names_its_field() {
    let server = Server::start(&[]);
    let (invalid, unsupported) = ("invalid_value", "unsupported_parameter");
    let missing = "missing_required_parameter";
    for (more, code, field) in [
        (
            json!({ "frobnicate": 1 }),
            "unknown_parameter",
            "frobnicate",
        ),
        (json!({ "background": true }), unsupported, "background"),
        (
            json!({ "conversation": "conv_1" }),
            unsupported,
            "conversation",
        ),
        (json!({ "truncation": "auto" }), unsupported, "truncation"),
        (json!({ "prompt": { "id": "p" } }), unsupported, "prompt"),
        (
            json!({ "tools": [{ "type": "web_search", "search_context_size": "low" }] }),
            unsupported,
            "tools[0].type",
        ),
        (
            json!({ "tools": [{ "type": "function" }] }),
            missing,
            "tools[0].name",
        ),
        (
            json!({ "tools": [{ "type": "function", "name": "f", "parameters": { "type": 1 } }] }),
            invalid,
            "tools[0].parameters",
        ),
        (json!({ "tool_choice": "required" }), invalid, "tool_choice"),
        (
            json!({ "tool_choice": { "type": "web_search" } }),
            unsupported,
            "tool_choice",
        ),
        (
            json!({ "max_output_tokens": 0 }),
            invalid,
            "max_output_tokens",
        ),
        (
            json!({ "reasoning": { "summary": "detailed" } }),
            unsupported,
            "reasoning.summary",
        ),
        (
            json!({ "text": { "verbosity": "low" } }),
            unsupported,
            "text.verbosity",
        ),
        (
            json!({ "text": { "format": { "type": "xml" } } }),
            invalid,
            "text.format.type",
        ),
        (
            json!({ "text": { "format": { "type": "json_schema", "schema": { "type": 1 } } } }),
            invalid,
            "text.format.schema",
        ),
        (json!({ "include": ["everything"] }), unsupported, "include"),
        (json!({ "input": [] }), missing, "input"),
        (json!({ "input": null }), missing, "input"),
        (
            json!({ "input": [{ "type": "web_search_call" }] }),
            unsupported,
            "input[0].type",
        ),
        (
            json!({ "input": [{ "role": "user", "content": "x", "extra": 1 }] }),
            "unknown_parameter",
            "input[0].extra",
        ),
        (
            json!({ "input": [{ "type": "item_reference", "id": "msg_1" }] }),
            "item_not_found",
            "input[0].id",
        ),
        (
            json!({ "max_output_tokens": 1_000_000 }),
            "context_length_exceeded",
            "input",
        ),
        (json!({ "model": "gpt-4o" }), "model_not_found", "model"),
        (json!({ "temperature": -1 }), invalid, "temperature"),
    ] {
        let (status, found, param) = server.refusal(RESPONSES, &ask("x", more.clone()));
        let expected = if code == "model_not_found" { 404 } else { 400 };
        assert_eq!(
            (status, &*found, param.as_deref()),
            (expected, code, Some(field)),
            "{more}"
        );
    }
    let neutral = json!({ "background": false, "truncation": "disabled", "service_tier": "auto",
        "reasoning": { "summary": "auto" }, "text": { "verbosity": "medium" }, "user": "u",
        "include": ["reasoning.encrypted_content"], "stream_options": null, "metadata": null,
        "conversation": null, "tools": [], "tool_choice": "auto", "prompt_cache_key": "k" });
    server.answer(RESPONSES, &ask("x", neutral));
    for (body, code) in [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        ("\"x\"", "invalid_json"),
    ] {
        let headers = [("content-type", "application/json")];
        let response = server.send("POST", RESPONSES, &headers, body.as_bytes());
        assert_eq!(response.status, 400);
        assert_eq!(response.json()["error"]["code"], code, "{body}");
    }
}
