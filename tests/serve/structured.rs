//! Structured answers: JSON, schemas, expressions, grammars, and tool calls.

use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};

const CHAT: &str = "/v1/chat/completions";

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no text in {answer}"))
}

#[test]
fn json_answers_fit_the_schema() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 99 },
            "mood": { "enum": ["good", "bad"] },
        },
        "required": ["name", "age", "mood"],
        "additionalProperties": false,
    });
    for seed in 0..8 {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": schema } });
        let more = json!({ "response_format": format, "seed": seed, "max_tokens": 200, "temperature": 1.5 });
        let answer = server.answer(CHAT, &chat("Once upon a time", more.clone()));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        let value: Value =
            serde_json::from_str(content(&answer)).unwrap_or_else(|_| panic!("{answer}"));
        assert_eq!(
            value.as_object().map(serde_json::Map::len),
            Some(3),
            "{value}"
        );
        assert!(
            value["name"]
                .as_str()
                .is_some_and(|name| name.chars().count() <= 12),
            "{value}"
        );
        assert!(
            value["age"].as_u64().is_some_and(|age| age <= 99),
            "{value}"
        );
        assert!(
            ["good", "bad"].contains(&value["mood"].as_str().expect("a mood")),
            "{value}"
        );
        let events = server
            .post(
                CHAT,
                &chat("Once upon a time", with(more, json!({ "stream": true }))),
            )
            .events();
        let pieces = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(pieces.collect::<String>(), content(&answer));
    }
    let any = json!({ "response_format": { "type": "json_object" }, "max_tokens": 400, "n": 3 });
    let answer = server.answer(CHAT, &chat("Once", any));
    for choice in answer["choices"].as_array().expect("answers") {
        if choice["finish_reason"] == "stop" {
            let text = choice["message"]["content"].as_str().expect("a text");
            assert!(
                serde_json::from_str::<Value>(text)
                    .expect("JSON")
                    .is_object()
            );
        }
    }
}

#[test]
fn answers_fit_expressions_grammars_and_choices() {
    let server = Server::start(&[]);
    let ask = |outputs: Value| {
        let body = completion(
            "Once",
            json!({ "structured_outputs": outputs, "temperature": 2, "max_tokens": 60 }),
        );
        let answer = server.answer("/v1/completions", &body);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        answer["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    let date = ask(json!({ "regex": "[0-9]{4}-[01][0-9]-[0-3][0-9]" }));
    assert!(
        date.len() == 10 && date.split('-').all(|part| part.parse::<u32>().is_ok()),
        "{date}"
    );
    let ask_grammar = |syntax: &str, definition: &str| {
        let format =
            json!({ "type": "grammar", "grammar": { "syntax": syntax, "definition": definition } });
        let answer = server.answer(
            CHAT,
            &chat(
                "Once",
                json!({ "response_format": format, "temperature": 2 }),
            ),
        );
        content(&answer).to_owned()
    };
    assert_eq!(ask_grammar("regex", "(ab){3}"), "ababab");
    assert_eq!(
        ask_grammar("lark", "start: \"to be\" OR \"not\"\nOR: / or /"),
        "to be or not"
    );
    let choices = ["yes", "no \"maybe\"\n", "ünsure"];
    assert!(choices.contains(&&*ask(json!({ "choice": choices }))));
    let sum =
        ask(json!({ "grammar": "start: NUMBER (\" + \" NUMBER){1,3}\nNUMBER: /[1-9][0-9]{0,2}/" }));
    assert!(
        sum.split(" + ").count() > 1 && sum.split(" + ").all(|part| part.parse::<u32>().is_ok()),
        "{sum}"
    );
    assert!(
        serde_json::from_str::<Value>(&ask(
            json!({ "json": { "type": "array", "items": { "type": "boolean" }, "maxItems": 3 } })
        ))
        .expect("JSON")
        .is_array()
    );
}

#[test]
fn an_impossible_form_is_a_client_error() {
    let server = Server::start(&[]);
    for outputs in [
        json!({ "grammar": "start: NONE\nNONE: /a+/ & /b+/" }),
        json!({ "regex": "a{2,1}" }),
        json!({ "json": { "type": "string", "minLength": 3, "maxLength": 2 } }),
        json!({ "json": { "type": "integer", "minimum": 3, "maximum": 2 } }),
        json!({ "json": { "enum": [] } }),
    ] {
        let (status, code, _) = server.refusal(
            CHAT,
            &chat("Once", json!({ "structured_outputs": outputs })),
        );
        assert!(
            status == 400 && ["invalid_value", "form_failed"].contains(&&*code),
            "{outputs}: {status} {code}"
        );
    }
    // The first token takes too much work, and the error is found before a stream begins.
    let properties: serde_json::Map<_, _> = (0..3000)
        .map(|index| (format!("p{index}"), json!({ "type": "string" })))
        .collect();
    let outputs = json!({ "json": { "type": "object", "properties": properties } });
    let body = chat(
        "Once",
        json!({ "structured_outputs": outputs, "stream": true }),
    );
    assert_eq!(
        server.refusal(CHAT, &body).2.as_deref(),
        Some("structured_outputs")
    );
    // The work for a form is limited, and does not slow down other requests.
    let regex = format!("({}){{1,3000}}", "(a|b|c)*a(a|b|c){1,50}|".repeat(20) + "x");
    let response = server.post(
        CHAT,
        &chat("Once", json!({ "structured_outputs": { "regex": regex } })),
    );
    assert!([200, 400].contains(&response.status), "{}", response.text());
    server.answer(CHAT, &chat("Once", json!({})));
}

fn tools() -> Value {
    let weather = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "maxLength": 10 }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    json!([
        { "type": "function", "function": { "name": "get_weather", "description": "The weather.", "parameters": weather } },
        { "type": "function", "function": { "name": "stop" } },
    ])
}

/// Calls of a message as names and arguments, which must be JSON.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"]
        .as_array()
        .unwrap_or_else(|| panic!("no calls in {message}"));
    let call = |call: &Value| {
        assert!(
            call["type"] == "function"
                && call["id"]
                    .as_str()
                    .is_some_and(|id| id.starts_with("call_")),
            "{call}"
        );
        let arguments = call["function"]["arguments"].as_str().expect("a string");
        let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| panic!("{call}"));
        (
            call["function"]["name"]
                .as_str()
                .expect("a name")
                .to_owned(),
            arguments,
        )
    };
    calls.iter().map(call).collect()
}

fn check_call(name: &str, arguments: &Value) {
    match name {
        "get_weather" => {
            assert!(
                arguments["city"].is_string()
                    && (1..=9).contains(&arguments["days"].as_u64().expect("a number"))
            );
            assert_eq!(arguments.as_object().map(serde_json::Map::len), Some(2));
        }
        "stop" => assert_eq!(arguments, &json!({})),
        name => panic!("there is no tool {name}"),
    }
}

#[test]
fn required_tools_are_called_with_valid_arguments() {
    let server = Server::start(&[]);
    for seed in 0..6 {
        let ask = json!({ "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200 });
        let body = chat(
            "Once upon a time",
            with(ask, json!({ "seed": seed, "temperature": 1.2 })),
        );
        let answer = server.answer(CHAT, &body);
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
        let whole = calls(&choice["message"]);
        assert_eq!(whole.len(), 1);
        check_call(&whole[0].0, &whole[0].1);

        let events = server
            .post(CHAT, &with(body, json!({ "stream": true })))
            .events();
        let (mut name, mut arguments, mut reason) = (String::new(), String::new(), Value::Null);
        for event in &events {
            let choice = &event["choices"][0];
            let call = &choice["delta"]["tool_calls"][0];
            if !call.is_null() {
                assert_eq!(call["index"], 0);
                assert_eq!(
                    call["id"].is_string(),
                    name.is_empty(),
                    "only the chunk with the name has the id"
                );
                name += call["function"]["name"].as_str().unwrap_or_default();
                arguments += call["function"]["arguments"].as_str().expect("a piece");
            }
            reason = choice["finish_reason"].clone();
        }
        assert_eq!(reason, "tool_calls");
        assert_eq!(
            (name, serde_json::from_str(&arguments).ok()),
            (whole[0].0.clone(), Some(whole[0].1.clone()))
        );
    }
    let named = json!({ "type": "function", "function": { "name": "get_weather" } });
    let answer = server.answer(
        CHAT,
        &chat(
            "Once",
            json!({ "tools": tools(), "tool_choice": named, "max_tokens": 200 }),
        ),
    );
    let (name, arguments) = calls(&answer["choices"][0]["message"]).remove(0);
    assert_eq!(name, "get_weather");
    check_call(&name, &arguments);
    let many = json!({ "tools": tools(), "tool_choice": "required", "max_tokens": 400, "n": 4, "temperature": 1.5 });
    let answer = server.answer(CHAT, &chat("Once", many));
    for choice in answer["choices"].as_array().expect("answers") {
        // Only a complete answer has complete calls.
        if choice["finish_reason"] == "tool_calls" {
            calls(&choice["message"])
                .iter()
                .for_each(|(name, arguments)| check_call(name, arguments));
        }
    }
}

#[test]
fn calls_have_the_form_of_the_template() {
    let folder = tempfile::tempdir().expect("a folder");
    let show =
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}";
    let xml = "<tool_call>\n<function=NAME>\n<parameter=KEY>\n";
    let path = folder.path().join("xml.jinja");
    std::fs::write(&path, format!("{{# {xml} #}}{show}")).expect("a file");
    let server = Server::start(&["--chat-template", path.to_str().expect("a path")]);
    for seed in 0..6 {
        let ask = json!({ "tools": tools(), "tool_choice": "required", "max_tokens": 200, "seed": seed,
            "parallel_tool_calls": false, "temperature": 1.2, "logprobs": true });
        let body = chat("Once upon a time", ask);
        let answer = server.answer(CHAT, &body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let (name, arguments) = calls(&choice["message"]).remove(0);
        check_call(&name, &arguments);
        let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
        let bytes = tokens
            .iter()
            .flat_map(|token| token["bytes"].as_array().expect("bytes"));
        let bytes: Vec<u8> = bytes
            .map(|byte| byte.as_u64().expect("a byte") as u8)
            .collect();
        let written = String::from_utf8_lossy(&bytes).trim_start().to_owned();
        let begin = format!("<tool_call>\n<function={name}>\n");
        assert!(written.starts_with(&begin), "{written}");
        let events = server
            .post(CHAT, &with(body, json!({ "stream": true })))
            .events();
        let pieces = events.iter().filter_map(|event| {
            event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
        });
        let streamed: Value = serde_json::from_str(&pieces.collect::<String>()).expect("JSON");
        assert_eq!(streamed, arguments);
    }
}

#[test]
fn a_call_that_is_cut_off_has_part_of_its_arguments() {
    let server = Server::start(&[]);
    let must_call =
        json!({ "tools": tools(), "tool_choice": "required", "n": 4, "temperature": 1.5 });
    for max_tokens in [20, 30, 40, 50] {
        let ask = with(must_call.clone(), json!({ "max_tokens": max_tokens }));
        let answer = server.answer(CHAT, &chat("Once", ask));
        for choice in answer["choices"].as_array().expect("answers") {
            if choice["finish_reason"] == "tool_calls" {
                calls(&choice["message"])
                    .iter()
                    .for_each(|(name, arguments)| check_call(name, arguments));
                continue;
            }
            assert_eq!(choice["finish_reason"], "length", "{choice}");
            for call in choice["message"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let arguments = call["function"]["arguments"].as_str().expect("a text");
                assert!(
                    arguments.is_empty() || arguments.starts_with('{'),
                    "{choice}"
                );
            }
        }
    }
    // The client sees a call once it has begun.
    let named = json!({ "type": "function", "function": { "name": "get_weather" } });
    let ask = |max_tokens: u64| {
        let ask = json!({ "tools": tools(), "tool_choice": named, "max_tokens": max_tokens, "temperature": 0 });
        server.answer(CHAT, &chat("Once", ask))
    };
    let whole = ask(200)["usage"]["completion_tokens"]
        .as_u64()
        .expect("a number");
    // The cut is within the last argument, since the text after the arguments takes fewer tokens.
    let choice = ask(whole - 16)["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length", "{choice}");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "get_weather", "{choice}");
    let arguments = function["arguments"].as_str().expect("a text");
    assert!(
        arguments.starts_with("{") && serde_json::from_str::<Value>(arguments).is_err(),
        "{choice}"
    );
}

#[test]
fn stop_strings_do_not_apply_to_a_required_call() {
    let server = Server::start(&[]);
    let must_call = json!({ "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false,
        "max_tokens": 200, "seed": 3 });
    let plain = server.answer(CHAT, &chat("Once", must_call.clone()));
    let expected = calls(&plain["choices"][0]["message"]);
    for stop in [
        json!({ "stop": "name" }),
        json!({ "stop": ["Observation:", "\""] }),
        json!({ "stop": [], "stop_token_ids": [7] }),
    ] {
        let answer = server.answer(CHAT, &chat("Once", with(must_call.clone(), stop.clone())));
        assert_eq!(calls(&answer["choices"][0]["message"]), expected, "{stop}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn objects_are_closed_in_tools_and_response_formats() {
    let server = Server::start(&[]);
    // Pydantic writes schemas like this, without a rule for further properties.
    let open = json!({ "type": "object", "required": ["ok", "n"], "properties": {
        "ok": { "type": "boolean" }, "n": { "type": "integer", "minimum": 0, "maximum": 9 },
    } });
    let form = |strict: bool| json!({ "type": "json_schema", "json_schema": { "strict": strict, "schema": open } });
    let tool = json!([{ "type": "function", "function": { "name": "f", "parameters": open } }]);
    for seed in 0..6 {
        let ask = json!({ "seed": seed, "max_tokens": 120, "temperature": 1.2 });
        let format = with(
            ask.clone(),
            json!({ "response_format": form(seed % 2 == 0) }),
        );
        let answer = server.answer(CHAT, &chat("Once upon a time", format));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        let value: Value = serde_json::from_str(content(&answer)).expect("JSON");
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(2));
        let call =
            json!({ "tools": tool, "tool_choice": "required", "parallel_tool_calls": false });
        let answer = server.answer(CHAT, &chat("Once upon a time", with(ask, call)));
        let (_, arguments) = calls(&answer["choices"][0]["message"]).remove(0);
        assert_eq!(arguments.as_object().map(serde_json::Map::len), Some(2));
    }
}

#[test]
fn errors_in_schemas_name_field_place_and_keyword() {
    let server = Server::start(&[]);
    let schema = |p: Value| json!({ "type": "object", "properties": { "p": p } });
    let message = |more: Value| {
        let answer = server.post(CHAT, &chat("Once", more)).json();
        let error = &answer["error"];
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    };
    for (wrong, place, keyword) in [
        (json!({ "type": "str" }), "/type'", "\"str\""),
        (json!({ "$ref": "#/$defs/none" }), "/$ref'", "names nothing"),
        (json!({ "type": "string", "pattern": "(" }), "'", "regex"),
        (
            json!({ "type": "integer", "minimum": 2, "maximum": 1 }),
            "'",
            "'minimum' is 2",
        ),
    ] {
        let place = format!("at '#/properties/p{place}");
        let right = json!({ "type": "function", "function": { "name": "f" } });
        let tool = json!({ "type": "function", "function": { "name": "g", "parameters": schema(wrong.clone()) } });
        let (param, text) = message(json!({ "tools": [right, tool] }));
        assert_eq!(param, "tools[1].function.parameters", "{text}");
        assert!(text.contains(&place) && text.contains(keyword), "{text}");
        let (param, text) = message(json!({ "structured_outputs": { "json": schema(wrong) } }));
        assert!(param.starts_with("structured_outputs"), "{param}: {text}");
        assert!(text.contains(&place) && text.contains(keyword), "{text}");
    }
    // `format` in a tool is an annotation; a request that asserts it is refused by name.
    let odd = schema(json!({ "type": "string", "format": "path", "not": { "const": "" } }));
    for (strict, expected) in [
        (json!(false), None),
        (json!(null), None),
        (json!(true), Some("'path'")),
    ] {
        let tool = json!({ "type": "function", "function": { "name": "f", "parameters": odd, "strict": strict } });
        let (_, text) = message(json!({ "tools": [tool], "max_tokens": 1 }));
        assert!(
            expected.map_or(text.is_empty(), |name| text.contains(name)),
            "{text}"
        );
    }
    let form =
        json!({ "type": "json_schema", "json_schema": { "schema": schema(json!({ "not": {} })) } });
    let (param, text) = message(json!({ "response_format": form }));
    assert_eq!(param, "response_format.json_schema.schema");
    assert!(
        text.contains("at '#/properties/p/not'") && text.contains("'not'"),
        "{text}"
    );
}

#[test]
fn optional_tools_do_not_change_answers_without_calls() {
    let server = Server::start(&[]);
    let plain = server.answer(CHAT, &chat("Once upon a time", json!({})));
    for choice in ["auto", "none"] {
        let answer = server.answer(
            CHAT,
            &chat(
                "Once upon a time",
                json!({ "tools": tools(), "tool_choice": choice }),
            ),
        );
        assert_eq!(
            answer["choices"][0]["message"], plain["choices"][0]["message"],
            "{choice}"
        );
    }
    let events = server
        .post(
            CHAT,
            &chat(
                "Once upon a time",
                json!({ "tools": tools(), "stream": true }),
            ),
        )
        .events();
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), content(&plain));
}

#[test]
fn a_conversation_continues_after_a_call() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "stop", "arguments": "{}" } });
    let messages = json!([
        { "role": "user", "content": "Stop." },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "done" },
    ]);
    let body = json!({ "messages": messages, "tools": tools(), "max_tokens": 4 });
    let prompt = server.answer("/v1/chat/completions/render", &body)["prompt"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(
        prompt.starts_with("<|im_start|>system\nYou may call these functions:"),
        "{prompt}"
    );
    assert!(prompt.contains("\"name\":\"get_weather\""), "{prompt}");
    let written = "<|im_start|>assistant\n<tool_call>{\"name\": \"stop\", \"arguments\": {}}</tool_call><|im_end|>\n";
    assert!(
        prompt.contains(written) && prompt.contains("<|im_start|>tool\ndone<|im_end|>"),
        "{prompt}"
    );
    server.answer(CHAT, &body);
}

#[test]
fn constraints_of_one_request_do_not_affect_another() {
    let server = Server::start(&[]);
    let plain = chat("Once upon a time", json!({ "max_tokens": 60 }));
    let expected = content(&server.answer(CHAT, &plain)).to_owned();
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let outputs = json!({ "structured_outputs": { "regex": "[a-f]{20}" }, "seed": seed, "max_tokens": 60 });
                let answer = server.answer(CHAT, &chat("Once upon a time", outputs));
                let text = content(&answer);
                assert!(text.len() == 20 && text.bytes().all(|byte| (b'a'..=b'f').contains(&byte)), "{text}");
            });
            let (plain, expected) = (&plain, &expected);
            scope.spawn(move || assert_eq!(content(&server.answer(CHAT, plain)), expected));
        }
    });
}
