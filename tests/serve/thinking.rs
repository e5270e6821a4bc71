//! What a model thinks before it answers: kept apart, limited, and free of the answer's form.
//!
//! A bias of 100 on the tag that opens the thinking makes each token of these answers known: the
//! model repeats the tag where it may.

use serde_json::{Value, json};

use crate::client::{HYBRID, Server, with};

const CHAT: &str = "/v1/chat/completions";
/// The tag that opens the thinking.
const BEGIN: u32 = 411;

fn server() -> Server {
    Server::start(&["-m", HYBRID, "--ctx-size", "512"])
}

/// A request whose answer repeats the opening tag.
fn ask(more: Value) -> Value {
    let body = json!({
        "messages": [{ "role": "user", "content": "Hi" }],
        "logit_bias": { BEGIN.to_string(): 100 },
        "temperature": 0,
        "max_tokens": 12,
    });
    with(body, more)
}

/// The message and the usage of an answer, whole; a stream must say the same.
fn answer(server: &Server, more: Value) -> (Value, Value) {
    let whole = server.answer(CHAT, &ask(more.clone()));
    let message = whole["choices"][0]["message"].clone();
    let stream = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let events = server.post(CHAT, &ask(with(more, stream))).events();
    let joined = |field: &str| {
        let pieces = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"][field].as_str());
        pieces.collect::<String>()
    };
    for field in ["content", "reasoning_content"] {
        assert_eq!(
            joined(field),
            message[field].as_str().unwrap_or_default(),
            "{field}"
        );
    }
    let usage = &events.last().expect("a chunk")["usage"];
    assert_eq!(
        usage["completion_tokens_details"],
        whole["usage"]["completion_tokens_details"]
    );
    (message, whole["usage"].clone())
}

#[test]
fn thinking_is_kept_apart_and_ends_with_its_budget() {
    let server = server();
    let (message, usage) = answer(&server, json!({}));
    assert_eq!(message["reasoning_content"], "<think>".repeat(11));
    assert_eq!(message["content"], "");
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 12);
    for field in ["thinking_token_budget", "thinking_budget"] {
        let (message, usage) = answer(&server, json!({ field: 3 }));
        // The tag, 3 tokens, a line end, the closing tag; then two line ends and the answer.
        assert_eq!(message["reasoning_content"], "<think>".repeat(3), "{field}");
        assert_eq!(message["content"], "<think>".repeat(4), "{field}");
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 6);
    }
    let (message, _) = answer(
        &server,
        json!({ "thinking_budget": 3, "include_reasoning": false }),
    );
    assert_eq!(message["reasoning_content"], Value::Null);
    assert_eq!(message["content"], "<think>".repeat(4));
    let refusal = |more: Value| server.refusal(CHAT, &ask(more)).2;
    let negative = json!({ "thinking_token_budget": -2 });
    assert_eq!(refusal(negative).as_deref(), Some("thinking_token_budget"));
    let two = json!({ "thinking_token_budget": 1, "thinking_budget": 2 });
    assert_eq!(refusal(two).as_deref(), Some("thinking_budget"));
    answer(&server, json!({ "thinking_token_budget": -1 }));
}

#[test]
fn a_template_can_turn_thinking_off_or_open_it() {
    let server = server();
    let off = [
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
        json!({ "enable_thinking": false }),
    ];
    for more in off {
        let (message, usage) = answer(&server, with(more, json!({ "thinking_budget": 1 })));
        assert_eq!(message["reasoning_content"], Value::Null);
        assert_eq!(message["content"], "<think>".repeat(12));
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("opening.jinja");
    let template = "{{ messages[0].content }}<think>\n{# closed by </think> #}";
    std::fs::write(&path, template).expect("a file");
    let path = path.to_str().expect("a path");
    let server = Server::start(&["-m", HYBRID, "--ctx-size", "256", "--chat-template", path]);
    let (message, _) = answer(&server, json!({ "thinking_budget": 2 }));
    assert_eq!(message["reasoning_content"], "<think>".repeat(2));
    assert_eq!(message["content"], "<think>".repeat(6));
}

#[test]
fn a_form_begins_behind_the_thinking() {
    let server = server();
    let form = json!({ "structured_outputs": { "regex": "(ab){3}" }, "thinking_budget": 2,
        "max_tokens": 20 });
    let (message, _) = answer(&server, form.clone());
    assert_eq!(message["reasoning_content"], "<think>".repeat(2));
    assert_eq!(message["content"], "ababab");
    let off = with(form, json!({ "enable_thinking": false }));
    let (message, _) = answer(&server, off);
    assert_eq!(message["reasoning_content"], Value::Null);
    assert_eq!(message["content"], "ababab");
    let tool = json!({ "type": "function", "function": { "name": "stop" } });
    let calling = json!({ "tools": [tool], "tool_choice": "required", "thinking_budget": 2,
        "max_tokens": 100, "parallel_tool_calls": false });
    let whole = server.answer(CHAT, &ask(calling));
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["reasoning_content"], "<think>".repeat(2));
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["arguments"],
        "{}"
    );
}

#[test]
fn system_messages_that_are_not_first_are_joined_where_the_template_raises() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("strict.jinja");
    let template = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('System message must be at the beginning.') }}{% endif %}\
        [{{ m.role }}]{{ m.content }}{% endfor %}";
    std::fs::write(&path, template).expect("a file");
    let path = path.to_str().expect("a path");
    let server = Server::start(&["-m", HYBRID, "--ctx-size", "256", "--chat-template", path]);
    let messages = json!([
        { "role": "user", "content": "a" },
        { "role": "developer", "content": "b" },
        { "role": "assistant", "content": "c" },
        { "role": "system", "content": "d" },
    ]);
    let body = ask(json!({ "messages": messages }));
    let rendered = server.answer("/v1/chat/completions/render", &body);
    assert_eq!(rendered["prompt"], "[system]b\n\nd[user]a[assistant]c");
    server.answer(CHAT, &body);
}
