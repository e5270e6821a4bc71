//! The API: answers follow the request's fields, in the form that OpenAI's clients read.

use std::process::Command;

use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn text(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["text"]
        .as_str()
        .or_else(|| choice["message"]["content"].as_str())
        .expect("a text")
}

#[test]
fn a_streamed_chat_equals_the_whole_chat() {
    let server = Server::start(&[]);
    let whole = server.answer(CHAT, &chat("Once upon a time", json!({})));
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "stories");
    assert!(
        whole["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("chatcmpl-"))
    );
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(
        (&choice["index"], &choice["finish_reason"]),
        (&json!(0), &json!("length"))
    );
    let usage = &whole["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    let prompt_tokens = usage["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(usage["total_tokens"], prompt_tokens + 24);

    let stream = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let response = server.post(CHAT, &chat("Once upon a time", stream));
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    let events = response.events();
    let (usage_chunk, chunks) = events.split_last().expect("chunks");
    assert_eq!(
        (
            &usage_chunk["choices"],
            &usage_chunk["usage"]["total_tokens"]
        ),
        (&json!([]), &usage["total_tokens"])
    );
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&chunks[0]["id"], &chunks[0]["created"])
        );
        assert!(
            chunk["usage"].is_null()
                && chunk
                    .as_object()
                    .is_some_and(|chunk| chunk.contains_key("usage"))
        );
    }
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    let last = &chunks.last().expect("a chunk")["choices"][0];
    assert_eq!(
        (&last["delta"], &last["finish_reason"]),
        (&json!({}), &json!("length"))
    );
    let middle = &chunks[1..chunks.len() - 1];
    assert!(middle.len() > 8, "the answer is streamed in several chunks");
    assert!(
        middle
            .iter()
            .all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
    );
    let pieces = middle.iter().map(|chunk| {
        chunk["choices"][0]["delta"]["content"]
            .as_str()
            .expect("a piece")
    });
    assert_eq!(pieces.collect::<String>(), text(&whole));
    let plain = server
        .post(CHAT, &chat("Once upon a time", json!({ "stream": true })))
        .events();
    assert!(
        plain.iter().all(|chunk| chunk.get("usage").is_none()),
        "no usage unless it is asked for"
    );
    assert_eq!(plain.len(), chunks.len());
}

#[test]
fn a_completion_equals_the_output_of_the_command_line() {
    let server = Server::start(&[]);
    let output = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(["run", "The little dog", "-n", "20", "--seed", "5", "--json"])
        .output()
        .expect("the program runs");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let ask = json!({ "max_tokens": 20, "seed": 5, "return_token_ids": true });
    let answer = server.answer(COMPLETIONS, &completion("The little dog", ask.clone()));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(text(&answer), printed["text"]);
    assert_eq!(answer["choices"][0]["token_ids"], printed["tokens"]);
    // Token ids are a valid prompt, and so are lists of prompts.
    let tokens = &printed["prompt_tokens"];
    let both = completion(json!([tokens, tokens]), with(ask, json!({ "echo": true })));
    let both = server.answer(COMPLETIONS, &both);
    let expected = format!(
        "The little dog{}",
        printed["text"].as_str().expect("a text")
    );
    for index in 0..2 {
        assert_eq!(both["choices"][index]["index"], index);
        assert_eq!(both["choices"][index]["text"], expected);
    }
    assert_eq!(both["usage"]["completion_tokens"], 40);
    // By default an answer has 16 tokens.
    let short = server.answer(
        COMPLETIONS,
        &json!({ "prompt": "The little dog", "ignore_eos": true }),
    );
    assert_eq!(short["usage"]["completion_tokens"], 16);
}

#[test]
fn a_streamed_completion_begins_with_the_echoed_prompt() {
    let server = Server::start(&[]);
    let ask = json!({ "n": 2, "echo": true });
    let whole = server.answer(
        COMPLETIONS,
        &completion(json!(["A cat", "A dog"]), ask.clone()),
    );
    let stream = completion(
        json!(["A cat", "A dog"]),
        with(ask, json!({ "stream": true })),
    );
    let mut texts = vec![String::new(); 4];
    let mut reasons = vec![Value::Null; 4];
    for chunk in server.post(COMPLETIONS, &stream).events() {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("a number") as usize;
        assert!(
            reasons[index].is_null(),
            "no chunk follows the finish reason"
        );
        texts[index] += choice["text"].as_str().expect("a text");
        reasons[index] = choice["finish_reason"].clone();
    }
    for (index, (text, reason)) in texts.iter().zip(&reasons).enumerate() {
        assert!(text.starts_with(["A cat", "A dog"][index / 2]), "{text}");
        assert_eq!(
            (
                &whole["choices"][index]["text"],
                &whole["choices"][index]["finish_reason"]
            ),
            (&json!(text), reason)
        );
    }
}

#[test]
fn answer_i_equals_an_answer_with_seed_plus_i() {
    let server = Server::start(&[]);
    let four = server.answer(CHAT, &chat("Lily found", json!({ "n": 4, "seed": 100 })));
    let texts: Vec<&str> = (0..4)
        .map(|index| {
            four["choices"][index]["message"]["content"]
                .as_str()
                .expect("a text")
        })
        .collect();
    for (index, expected) in texts.iter().enumerate() {
        let one = server.answer(CHAT, &chat("Lily found", json!({ "seed": 100 + index })));
        assert_eq!(text(&one), *expected);
    }
    assert!(texts.iter().any(|text| *text != texts[0]));
    let random = || {
        server.answer(
            CHAT,
            &chat("Lily found", json!({ "seed": null, "max_tokens": 40 })),
        )
    };
    assert_ne!(
        text(&random()),
        text(&random()),
        "without a seed it is another story each time"
    );
}

#[test]
fn an_answer_has_the_same_bits_alone_and_in_a_batch() {
    // The cache holds only a few of the sequences, so that some are preempted.
    let server = Server::start(&["--ctx-size", "256", "--kv-memory", "3M"]);
    let ask = json!({ "logprobs": true, "top_logprobs": 5, "temperature": 1.2, "max_tokens": 100, "ignore_eos": true });
    let body = |seed: u64| {
        chat(
            "Once upon a time there was a",
            with(ask.clone(), json!({ "seed": seed })),
        )
    };
    let alone: Vec<Value> = (0..3)
        .map(|seed| server.answer(CHAT, &body(seed))["choices"].clone())
        .collect();
    std::thread::scope(|scope| {
        for (seed, alone) in (0..).zip(&alone).cycle().take(9) {
            let (server, body) = (&server, body(seed));
            scope.spawn(move || {
                assert_eq!(server.answer(CHAT, &body)["choices"], *alone, "seed {seed}")
            });
        }
        for other in 0..6 {
            let body = completion(
                "The big dog ".repeat(10 + other),
                json!({ "seed": other, "max_tokens": 80 }),
            );
            let server = &server;
            scope.spawn(move || server.answer(COMPLETIONS, &body));
        }
    });
}

#[test]
fn stop_bias_and_penalties_take_effect() {
    let server = Server::start(&[]);
    let ask = |more| {
        server.answer(
            COMPLETIONS,
            &completion("Once upon a time", with(json!({ "temperature": 0 }), more)),
        )
    };
    let full = ask(json!({}));
    let word = text(&full).split_whitespace().nth(3).expect("some words");
    let stopped = ask(json!({ "stop": [word, "never said"] }));
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        text(&stopped),
        text(&full).split_once(word).expect("the word").0
    );
    assert_eq!(text(&ask(json!({ "stop": word }))), text(&stopped));
    // The bias first forbids the first token of the greedy answer, then forces it.
    let ids = ask(json!({ "return_token_ids": true }))["choices"][0]["token_ids"].clone();
    let first = ids[0].to_string();
    let forbidden = ask(json!({ "logit_bias": { &first: -100 }, "return_token_ids": true }));
    assert!(
        forbidden["choices"][0]["token_ids"]
            .as_array()
            .expect("ids")
            .iter()
            .all(|id| *id != ids[0])
    );
    let demanded = ask(json!({ "logit_bias": { &first: 100 }, "return_token_ids": true }));
    assert!(
        demanded["choices"][0]["token_ids"]
            .as_array()
            .expect("ids")
            .iter()
            .all(|id| *id == ids[0])
    );
    let ended = ask(json!({ "stop_token_ids": [ids[4]] }));
    assert_eq!(
        (
            &ended["usage"]["completion_tokens"],
            &ended["choices"][0]["finish_reason"]
        ),
        (&json!(5), &json!("stop"))
    );
    let penalized =
        ask(json!({ "repetition_penalty": 2, "presence_penalty": 1, "frequency_penalty": 1 }));
    assert_ne!(text(&penalized), text(&full));
    // With a single candidate token, sampling equals greedy decoding.
    assert_eq!(
        text(&ask(json!({ "temperature": 2, "top_k": 1 }))),
        text(&full)
    );
    assert_eq!(
        text(&ask(json!({ "temperature": 2, "min_p": 1, "top_k": -1 }))),
        text(&full)
    );
}

#[test]
fn an_answer_does_not_end_before_min_tokens() {
    let server = Server::start(&[]);
    let ask = |more: Value| {
        let ask = json!({ "temperature": 0, "max_tokens": 20, "return_token_ids": true });
        server.answer(
            COMPLETIONS,
            &completion("Once upon a time", with(ask, more)),
        )
    };
    let free = ask(json!({}));
    let ids = free["choices"][0]["token_ids"].clone();
    let ended = |answer: &Value| {
        answer["usage"]["completion_tokens"]
            .as_u64()
            .expect("a number")
    };
    let stop = json!({ "stop_token_ids": [ids[2]] });
    assert_eq!(ended(&ask(stop.clone())), 3);
    let longer = ask(with(stop, json!({ "min_tokens": 10 })));
    assert!(ended(&longer) > 10);
    let first = longer["choices"][0]["token_ids"].as_array().expect("ids")[..10].to_vec();
    assert!(!first.contains(&ids[2]), "{longer}");
    let word = text(&free).split_whitespace().nth(1).expect("some words");
    let stop = json!({ "stop": word });
    assert!(!text(&ask(stop.clone())).contains(word));
    let longer = ask(with(stop, json!({ "min_tokens": 10 })));
    assert!(
        ended(&longer) > 10 && text(&longer).contains(word),
        "{longer}"
    );
}

#[test]
fn control_tokens_appear_in_the_text_if_requested() {
    let server = Server::start(&[]);
    let tokens = server.answer("/tokenize", &json!({ "prompt": "" }));
    let bos = tokens["tokens"][0].to_string();
    let ask = |skip: bool| {
        let ask = json!({ "logit_bias": { &bos: 100 }, "max_tokens": 2, "ignore_eos": true,
            "skip_special_tokens": skip });
        let answer = server.answer(COMPLETIONS, &completion("Once", ask));
        text(&answer).to_owned()
    };
    assert_eq!(ask(true), "");
    let shown = ask(false);
    let (first, second) = shown.split_at(shown.len() / 2);
    assert!(!first.is_empty() && first == second, "{shown}");
}

#[test]
fn the_name_of_a_control_token_stops_at_the_token() {
    let server = Server::start(&[]);
    let tokens = server.answer(
        "/tokenize",
        &json!({ "prompt": "", "return_token_strs": true }),
    );
    let (bos, name) = (tokens["tokens"][0].to_string(), &tokens["token_strs"][0]);
    let ask = |stop: Value| {
        let ask = json!({ "logit_bias": { &bos: 100 }, "max_tokens": 6, "ignore_eos": true, "stop": stop });
        let answer = server.answer(COMPLETIONS, &completion("Once", ask));
        let usage = answer["usage"]["completion_tokens"].as_u64();
        (usage, answer["choices"][0]["finish_reason"].clone())
    };
    assert_eq!(ask(json!(null)), (Some(6), json!("length")));
    for stop in [json!(name), json!(["never said", name])] {
        assert_eq!(ask(stop.clone()), (Some(1), json!("stop")), "{stop}");
    }
}

#[test]
fn each_chunk_has_the_usage_if_requested() {
    let server = Server::start(&[]);
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let ask = json!({ "stream": true, "stream_options": options, "ignore_eos": true });
    for (path, body) in [
        (CHAT, chat("Once upon a time", ask.clone())),
        (COMPLETIONS, completion("Once upon a time", ask)),
    ] {
        let events = server.post(path, &body).events();
        let counts: Vec<u64> = events
            .iter()
            .map(|event| {
                event["usage"]["completion_tokens"]
                    .as_u64()
                    .expect("a number")
            })
            .collect();
        assert!(
            counts.is_sorted() && counts.last() == Some(&24),
            "{counts:?}"
        );
        assert!(counts[counts.len() / 2] < 24, "{counts:?}");
        let prompt = &events[0]["usage"]["prompt_tokens"];
        assert!(prompt.as_u64() > Some(0) && *prompt == events[5]["usage"]["prompt_tokens"]);
    }
    let alone = json!({ "stream": true, "stream_options": { "continuous_usage_stats": true } });
    let events = server.post(CHAT, &chat("Once", alone)).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_prompt_is_scored_without_an_answer() {
    let server = Server::start(&[]);
    let ask = |max_tokens: u32| {
        let ask =
            json!({ "max_tokens": max_tokens, "echo": true, "logprobs": 2, "temperature": 0 });
        server.answer(COMPLETIONS, &completion("Once upon a time", ask))
    };
    let (none, one) = (ask(0), ask(1));
    assert_eq!(text(&none), "Once upon a time");
    assert_eq!(none["choices"][0]["finish_reason"], "length");
    assert_eq!(none["usage"]["completion_tokens"], 0);
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let list = |answer: &Value| {
            let list = answer["choices"][0]["logprobs"][name].as_array();
            list.expect("a list").clone()
        };
        let (none, one) = (list(&none), list(&one));
        assert_eq!(none[..], one[..one.len() - 1], "{name}");
    }
    let plain = json!({ "max_tokens": 0, "echo": true, "n": 2 });
    let plain = server.answer(COMPLETIONS, &completion("Once upon a time", plain));
    assert_eq!(plain["choices"][1]["text"], "Once upon a time");
}

#[test]
fn log_probabilities_belong_to_their_tokens() {
    let server = Server::start(&[]);
    let ask = json!({ "temperature": 0, "max_tokens": 8, "logprobs": true, "top_logprobs": 3 });
    let answer = server.answer(CHAT, &chat("Once upon a time", ask.clone()));
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("a list");
    assert_eq!(content.len(), 8);
    let joined: String = content
        .iter()
        .map(|entry| entry["token"].as_str().expect("a token"))
        .collect();
    assert_eq!(joined, text(&answer));
    for entry in content {
        let top = entry["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 3);
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"]),
            (&entry["token"], &entry["logprob"]),
            "the most probable one"
        );
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).expect("bytes");
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            entry["token"].as_str().expect("a token")
        );
        let probabilities = top
            .iter()
            .map(|entry| entry["logprob"].as_f64().expect("a number").exp());
        assert!(probabilities.sum::<f64>() <= 1.000_001);
    }
    let events = server
        .post(
            CHAT,
            &chat("Once upon a time", with(ask, json!({ "stream": true }))),
        )
        .events();
    let streamed = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), content);

    let ask = completion(
        "Once upon a time",
        json!({ "temperature": 0, "max_tokens": 8, "logprobs": 2 }),
    );
    let lists = server.answer(COMPLETIONS, &ask)["choices"][0]["logprobs"].clone();
    for (index, entry) in content.iter().enumerate() {
        assert_eq!(
            (&lists["tokens"][index], &lists["token_logprobs"][index]),
            (&entry["token"], &entry["logprob"])
        );
        let top = lists["top_logprobs"][index].as_object().expect("an object");
        let top: Vec<_> = top.iter().collect();
        assert_eq!(top.len(), 2);
        for (place, (token, logprob)) in top.into_iter().enumerate() {
            let expected = &entry["top_logprobs"][place];
            assert_eq!(
                (&json!(token), logprob),
                (&expected["token"], &expected["logprob"])
            );
        }
    }
    // Offsets count from the beginning of the prompt, as in OpenAI's API.
    let offsets: Vec<u64> = serde_json::from_value(lists["text_offset"].clone()).expect("numbers");
    assert!(offsets[0] == 16 && offsets.is_sorted());
    let events = server
        .post(COMPLETIONS, &with(ask, json!({ "stream": true })))
        .events();
    let streamed = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"][0].as_u64());
    assert_eq!(streamed.collect::<Vec<_>>(), offsets);
}

#[test]
fn a_sampled_token_is_among_its_most_probable_ones() {
    let server = Server::start(&[]);
    let ask = |logprobs: u32| {
        let ask = json!({ "temperature": 2, "max_tokens": 12, "seed": 4, "logprobs": logprobs });
        let answer = server.answer(COMPLETIONS, &completion("Once", ask));
        answer["choices"][0]["logprobs"].clone()
    };
    let lists = ask(1);
    let mut num_others = 0;
    for (index, token) in lists["tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .enumerate()
    {
        let top = &lists["top_logprobs"][index];
        let token = token.as_str().expect("a text");
        assert_eq!(top[token], lists["token_logprobs"][index], "{top}");
        num_others += top.as_object().expect("an object").len() - 1;
    }
    assert!(
        num_others > 0,
        "a token that is not the most probable one is added"
    );
    assert!(ask(0)["top_logprobs"].is_null() && ask(0)["token_logprobs"].is_array());
}

#[test]
fn tokens_with_partial_characters_have_distinct_texts() {
    let server = Server::start(&[]);
    let tokens = server.answer(
        "/tokenize",
        &json!({ "prompt": "\u{1f600}", "add_special_tokens": false }),
    );
    let ids = tokens["tokens"].as_array().expect("a list");
    assert!(
        ids.len() > 1,
        "the vocabulary has no token for this character"
    );
    let bias: serde_json::Map<_, _> = ids.iter().map(|id| (id.to_string(), json!(100))).collect();
    let ask = json!({ "logit_bias": bias, "logprobs": 20, "max_tokens": 3 });
    let answer = server.answer(COMPLETIONS, &completion("Once", ask));
    for token in answer["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .expect("a list")
    {
        let token = token.as_str().expect("a text");
        assert!(
            token.starts_with("bytes:\\x") && token.len() % 4 == 2,
            "{token}"
        );
    }
}

#[test]
fn echoed_prompts_have_log_probabilities() {
    let server = Server::start(&[]);
    let text_of = "Once upon a time there was a little dog. ".repeat(8);
    let ask = |prompt: &str, echo: bool| {
        let more = json!({ "temperature": 0, "max_tokens": 4, "logprobs": 2, "echo": echo, "return_token_ids": true });
        server.answer(COMPLETIONS, &completion(prompt, more))
    };
    let plain = ask(&text_of, false);
    let echoed = ask(&text_of, true);
    assert_eq!(
        echoed["choices"][0]["token_ids"],
        plain["choices"][0]["token_ids"]
    );
    assert_eq!(text(&echoed), text_of.clone() + text(&plain));
    let lists = &echoed["choices"][0]["logprobs"];
    let list = |name: &str| {
        lists[name]
            .as_array()
            .unwrap_or_else(|| panic!("{name} in {lists}"))
            .clone()
    };
    let num_prompt = echoed["usage"]["prompt_tokens"].as_u64().expect("a number") as usize;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let of_answer = &plain["choices"][0]["logprobs"][name];
        assert_eq!(list(name).len(), num_prompt + 4, "{name}");
        if name != "text_offset" {
            assert_eq!(
                list(name)[num_prompt..],
                of_answer.as_array().expect("a list")[..],
                "{name}"
            );
        }
    }
    assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null());
    assert!(
        list("token_logprobs")[1..]
            .iter()
            .all(|value| value.as_f64().is_some_and(|value| value <= 0.0))
    );
    assert_eq!(list("text_offset")[num_prompt], text_of.chars().count());
    // The tokens have the same log-probabilities in an answer as in a prompt.
    let longer = ask(&(text_of.clone() + text(&plain)), true);
    let again = longer["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .expect("a list");
    if longer["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .expect("a list")[..num_prompt + 4]
        == list("tokens")
    {
        assert_eq!(again[..num_prompt + 4], list("token_logprobs"));
    }
    assert_eq!(again[..num_prompt], list("token_logprobs")[..num_prompt]);
}

#[test]
fn a_refused_request_gets_an_error_with_its_field() {
    let server = Server::start(&[]);
    let unsupported = "unsupported_parameter";
    let many_biases: Value = (0..1025)
        .map(|token| (token.to_string(), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (more, code, field) in [
        (
            json!({ "frobnicate": 1 }),
            "unknown_parameter",
            "frobnicate",
        ),
        (
            json!({ "top_logprobs": 2 }),
            "invalid_value",
            "top_logprobs",
        ),
        (
            json!({ "logprobs": true, "top_logprobs": 21 }),
            "invalid_value",
            "top_logprobs",
        ),
        (
            json!({ "tools": [{ "type": "function" }] }),
            "missing_required_parameter",
            "tools[0].function",
        ),
        (
            json!({ "tools": [{ "type": "retrieval", "function": { "name": "f" } }] }),
            unsupported,
            "tools[0].type",
        ),
        (
            json!({ "tool_choice": "required" }),
            "invalid_value",
            "tool_choice",
        ),
        (
            json!({ "response_format": { "type": "xml" } }),
            "invalid_value",
            "response_format.type",
        ),
        (
            json!({ "response_format": { "type": "json_schema" } }),
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "odd" } } } }),
            "invalid_value",
            "response_format.json_schema.schema",
        ),
        (
            json!({ "response_format": { "type": "grammar", "grammar": { "syntax": "gbnf", "definition": "" } } }),
            "invalid_value",
            "response_format.grammar.syntax",
        ),
        (
            json!({ "response_format": { "type": "json_object", "json_schema": {} } }),
            "invalid_value",
            "response_format.json_schema",
        ),
        (
            json!({ "response_format": { "json_object": false } }),
            "missing_required_parameter",
            "response_format.type",
        ),
        (
            json!({ "structured_outputs": {} }),
            "invalid_value",
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "regex": "(" } }),
            "invalid_value",
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "choice": [] } }),
            "invalid_value",
            "structured_outputs.choice",
        ),
        (
            json!({ "structured_outputs": { "regex": "a", "json_object": true } }),
            "invalid_value",
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "regex": "a" }, "ignore_eos": true }),
            "invalid_value",
            "ignore_eos",
        ),
        (json!({ "store": true }), unsupported, "store"),
        (
            json!({ "modalities": ["text", "audio"] }),
            unsupported,
            "modalities",
        ),
        (
            json!({ "service_tier": "flex" }),
            unsupported,
            "service_tier",
        ),
        (
            json!({ "metadata": { "a": 1 } }),
            "invalid_value",
            "metadata.a",
        ),
        (
            json!({ "min_tokens": 25, "max_tokens": 24 }),
            "invalid_value",
            "min_tokens",
        ),
        (
            json!({ "prediction": { "type": "content", "content": "x" } }),
            unsupported,
            "prediction",
        ),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "n": 65 }), "invalid_value", "n"),
        (json!({ "n": 4_294_967_296_u64 }), "invalid_value", "n"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (
            json!({ "max_tokens": 3, "max_completion_tokens": 4 }),
            "invalid_value",
            "max_tokens",
        ),
        (
            json!({ "temperature": "hot" }),
            "invalid_value",
            "temperature",
        ),
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "top_p": 0 }), "invalid_value", "top_p"),
        (json!({ "top_k": -2 }), "invalid_value", "top_k"),
        (json!({ "min_p": 1.5 }), "invalid_value", "min_p"),
        (
            json!({ "repetition_penalty": 0 }),
            "invalid_value",
            "repetition_penalty",
        ),
        (json!({ "stop": [""] }), "invalid_value", "stop"),
        (json!({ "stop": vec!["x"; 17] }), "invalid_value", "stop"),
        (json!({ "stop": { "a": 1 } }), "invalid_value", "stop"),
        (
            json!({ "stop_token_ids": [99_999_999] }),
            "invalid_value",
            "stop_token_ids",
        ),
        (
            json!({ "logit_bias": many_biases }),
            "invalid_value",
            "logit_bias",
        ),
        (
            json!({ "logit_bias": { "99999999": 1 } }),
            "invalid_value",
            "logit_bias.99999999",
        ),
        (
            json!({ "logit_bias": { "the": 1 } }),
            "invalid_value",
            "logit_bias.the",
        ),
        (
            json!({ "logit_bias": { "5": 101 } }),
            "invalid_value",
            "logit_bias.5",
        ),
        (
            json!({ "stream_options": { "include_usage": true } }),
            "invalid_value",
            "stream_options",
        ),
        (
            json!({ "stream": true, "stream_options": { "x": 1 } }),
            "unknown_parameter",
            "stream_options.x",
        ),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": "hello" }), "invalid_value", "messages"),
        (
            json!({ "messages": null }),
            "missing_required_parameter",
            "messages",
        ),
        (
            json!({ "messages": [{ "content": "x" }] }),
            "missing_required_parameter",
            "messages[0].role",
        ),
        (
            json!({ "messages": [{ "role": "user" }] }),
            "missing_required_parameter",
            "messages[0].content",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": 7 }] }),
            "invalid_value",
            "messages[0].content",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            unsupported,
            "messages[0].content[0].type",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "content": "x", "audio": { "id": "a" } }] }),
            unsupported,
            "messages[0].audio",
        ),
    ] {
        let expected = (400, code.to_owned(), Some(field.to_owned()));
        assert_eq!(
            server.refusal(CHAT, &chat("Hello", more.clone())),
            expected,
            "{more}"
        );
    }
    for (more, code, field) in [
        (
            json!({ "prompt": null }),
            "missing_required_parameter",
            "prompt",
        ),
        (json!({ "prompt": [] }), "invalid_value", "prompt"),
        (json!({ "prompt": ["a", 1] }), "invalid_value", "prompt"),
        (json!({ "prompt": [-1] }), "invalid_value", "prompt[0]"),
        (json!({ "prompt": [99_999_999] }), "invalid_value", "prompt"),
        (json!({ "prompt": [[]] }), "invalid_value", "prompt"),
        (
            json!({ "prompt": vec!["a"; 65] }),
            "invalid_value",
            "prompt",
        ),
        (json!({ "suffix": "the end" }), unsupported, "suffix"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "best_of": 3 }), unsupported, "best_of"),
        (
            json!({ "logprobs": 1, "echo": true, "stream": true }),
            unsupported,
            "logprobs",
        ),
    ] {
        let expected = (400, code.to_owned(), Some(field.to_owned()));
        assert_eq!(
            server.refusal(COMPLETIONS, &completion("Hello", more.clone())),
            expected,
            "{more}"
        );
    }
}

#[test]
fn fields_without_effect_are_accepted() {
    let server = Server::start(&[]);
    // Fields that clients send by default, and an earlier answer as a message.
    let harmless = json!({
           "model": "stories", "logprobs": false, "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "store": false,
           "metadata": { "a": "b" }, "service_tier": "auto", "prediction": null, "audio": null, "functions": [],
    "modalities": ["text"], "response_format": { "type": "text" },
           "user": "me", "safety_identifier": "me", "prompt_cache_key": "x", "logit_bias": {}, "n": 1, "stop": [],
           "messages": [
               { "role": "system", "content": "Tell stories." },
               { "role": "user", "name": "Tom", "content": [
                   { "type": "text", "text": "Once", "cache_control": { "type": "ephemeral" } }, { "type": "text", "text": "upon" },
               ] },
               { "role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": null, "refusal": null, "annotations": [], "tool_calls": null, "audio": null },
               { "role": "user", "content": "Once upon" },
           ],
       });
    let neutral = json!({
        "best_of": 1, "prompt_logprobs": null, "min_tokens": 0, "skip_special_tokens": true, "verbosity": "medium",
        "use_beam_search": false, "length_penalty": 1.0, "mirostat": 0,
    });
    let harmless = with(harmless, neutral);
    let answer = server.answer(CHAT, &chat("", harmless));
    assert_eq!(
        text(&answer),
        text(&server.answer(CHAT, &chat("Once upon", json!({}))))
    );
}

#[test]
fn a_lenient_server_ignores_fields_that_it_does_not_support() {
    let server = Server::start(&["--lenient"]);
    let odd = json!({ "frobnicate": { "deep": 1 }, "store": true, "model": "gpt-4o", "messages": [
        { "role": "user", "content": "Once upon", "mood": "good", "audio": { "id": "a" } },
    ] });
    let answer = server.answer(CHAT, &chat("", odd));
    assert_eq!(
        text(&answer),
        text(&server.answer(CHAT, &chat("Once upon", json!({}))))
    );
    // Invalid values are still refused.
    assert_eq!(
        server.refusal(CHAT, &chat("x", json!({ "top_p": 7 }))).0,
        400
    );
}

#[test]
fn a_prompt_that_is_too_long_is_refused_with_both_numbers() {
    let server = Server::start(&["--ctx-size", "64"]);
    let long = "the cat sat on the mat. ".repeat(20);
    let tokens = server.answer("/tokenize", &json!({ "prompt": &long }));
    let (count, room) = (
        tokens["count"].as_u64().expect("a number"),
        tokens["max_model_len"].as_u64(),
    );
    assert_eq!(room, Some(64));
    let message = |body: &Value, path: &str, field: &str| {
        assert_eq!(
            server.refusal(path, body),
            (
                400,
                "context_length_exceeded".to_owned(),
                Some(field.to_owned())
            )
        );
        server.post(path, body).json()["error"]["message"]
            .as_str()
            .expect("a message")
            .to_owned()
    };
    let told = message(&completion(long.as_str(), json!({})), COMPLETIONS, "prompt");
    assert!(
        told.contains(" 64 tokens") && told.contains(&format!("({count} in the prompt, 24 ")),
        "{told}"
    );
    let told = message(
        &chat(&long, json!({ "max_tokens": null })),
        CHAT,
        "messages",
    );
    assert!(
        told.contains(" 64 tokens") && told.contains("resulted in"),
        "{told}"
    );
    // A prompt that just fits gets an answer that ends with the context.
    let fits = server.answer(
        CHAT,
        &chat("the cat", json!({ "max_tokens": null, "ignore_eos": true })),
    );
    assert_eq!(fits["choices"][0]["finish_reason"], "length");
    assert_eq!(fits["usage"]["total_tokens"], 64);
}

#[test]
fn models_are_listed_under_their_names() {
    let server = Server::start(&["--model-name", "tiny,org/tiny"]);
    let list = server.get("/v1/models").json();
    let names: Vec<_> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|card| card["id"].clone())
        .collect();
    assert_eq!(names, ["tiny", "org/tiny"]);
    assert!(
        list["data"][0]["max_model_len"]
            .as_u64()
            .is_some_and(|positions| positions > 0)
    );
    assert_eq!(server.get("/v1/models/org/tiny").json()["root"], "tiny");
    assert_eq!(
        server.get("/v1/models/%ff").json()["error"]["param"],
        "model"
    );
    let unknown = server.get("/v1/models/stories");
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    assert_eq!(
        server.answer(CHAT, &chat("Once", json!({ "model": "org/tiny" })))["model"],
        "tiny"
    );
    let refused = server.refusal(CHAT, &chat("Once", json!({ "model": "gpt-4o" })));
    assert_eq!(
        refused,
        (404, "model_not_found".to_owned(), Some("model".to_owned()))
    );
}

#[test]
fn all_endpoints_report_the_same_tokens() {
    let server = Server::start(&[]);
    let tokens = server.answer(
        "/tokenize",
        &json!({ "prompt": "A big red ball", "return_token_strs": true }),
    );
    let list = tokens["tokens"].as_array().expect("a list");
    assert_eq!(tokens["count"], list.len());
    let pieces: Vec<&str> = tokens["token_strs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|piece| piece.as_str().expect("a text"))
        .collect();
    assert_eq!(pieces.len(), list.len());
    let bare = server.answer(
        "/tokenize",
        &json!({ "prompt": "A big red ball", "add_special_tokens": false }),
    );
    assert_eq!(
        server.answer("/detokenize", &json!({ "tokens": bare["tokens"] }))["prompt"],
        "A big red ball"
    );
    let rendered = server.answer(
        "/v1/completions/render",
        &completion(json!(["A big red ball", "x"]), json!({})),
    );
    assert_eq!(rendered[0]["token_ids"], tokens["tokens"]);
    assert_eq!(rendered.as_array().map(Vec::len), Some(2));
    let messages = json!([{ "role": "user", "content": "A big red ball" }]);
    let rendered = server.answer(
        "/v1/chat/completions/render",
        &json!({ "messages": messages }),
    );
    assert_eq!(rendered["prompt"], "A big red ball");
    assert_eq!(
        rendered["token_ids"],
        server.answer("/tokenize", &json!({ "messages": messages }))["tokens"]
    );
    let answer = server.answer(CHAT, &chat("A big red ball", json!({})));
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        rendered["token_ids"]
            .as_array()
            .map(Vec::len)
            .expect("a list")
    );
    let info = server.get("/tokenizer_info").json();
    assert_eq!(info["add_bos_token"], true);
    assert_eq!(info["model_max_length"], tokens["max_model_len"]);
    let bos = json!({ "tokens": [tokens["tokens"][0]] });
    assert_eq!(
        server.answer("/detokenize", &bos)["prompt"],
        info["bos_token"]
    );
    assert!(info["eos_token"].is_string() && info["chat_template"].is_null());
    assert_eq!(server.refusal("/tokenize", &json!({})).0, 400);
    assert_eq!(
        server
            .refusal("/detokenize", &json!({ "tokens": [1, 99_999_999] }))
            .2
            .as_deref(),
        Some("tokens[1]")
    );
}

#[test]
fn the_server_uses_the_chat_template_of_its_option() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let messages = json!([{ "role": "developer", "content": "Be kind." }, { "role": "user", "content": "Hi" }]);
    let rendered = server.answer(
        "/v1/chat/completions/render",
        &json!({ "messages": messages }),
    );
    let expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered["prompt"], expected);
    let bad_role = json!({ "messages": [{ "role": "a b", "content": "x" }] });
    assert_eq!(
        server.refusal(CHAT, &bad_role).2.as_deref(),
        Some("messages")
    );
}

/// A template that writes each of the inputs that a request can give it.
const SHOWING: &str = "{% for message in messages %}[{{ message.role }}]{{ message.content }}\
    {% if not loop.last %};{% endif %}{% endfor %}\
    {% for document in documents or [] %} doc {{ document.title }}{% endfor %}\
    {% if enable_thinking is defined %} thinks {{ enable_thinking }}{% endif %}\
    {% if reasoning_effort is defined %} effort {{ reasoning_effort }}{% endif %}\
    {% if add_generation_prompt %} answer:{% endif %}";

#[test]
fn a_template_receives_the_inputs_of_the_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("showing.jinja");
    std::fs::write(&path, SHOWING).expect("a file");
    let server = Server::start(&["--chat-template", path.to_str().expect("a path")]);
    let messages = json!([
        { "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Well" },
    ]);
    let ask = |more: Value| with(json!({ "messages": messages }), more);
    let begin = "[user]Hi;[assistant]Well";
    for (more, expected) in [
        (json!({}), " answer:"),
        (json!({ "add_generation_prompt": false }), ""),
        (json!({ "continue_final_message": true }), ""),
        (
            json!({ "documents": [{ "title": "A" }, { "title": "B" }] }),
            " doc A doc B answer:",
        ),
        (json!({ "reasoning_effort": "low" }), " effort low answer:"),
        (
            json!({ "chat_template_kwargs": { "enable_thinking": false } }),
            " thinks False answer:",
        ),
        (
            json!({ "chat_template_kwargs": { "reasoning_effort": "high" }, "reasoning_effort": "low" }),
            " effort high answer:",
        ),
    ] {
        let body = ask(more.clone());
        let rendered = server.answer("/v1/chat/completions/render", &body);
        assert_eq!(rendered["prompt"], format!("{begin}{expected}"), "{more}");
        server.answer(CHAT, &with(body, json!({ "max_tokens": 1 })));
    }
    let tokens = |more: Value| server.answer("/tokenize", &ask(more))["tokens"].clone();
    let rendered =
        |more: Value| server.answer("/v1/chat/completions/render", &ask(more))["token_ids"].clone();
    for more in [
        json!({ "continue_final_message": true }),
        json!({ "chat_template_kwargs": { "enable_thinking": true } }),
    ] {
        assert_eq!(tokens(more.clone()), rendered(more.clone()), "{more}");
    }
    let refusal = |more: Value| server.refusal(CHAT, &ask(more)).2;
    let both = json!({ "continue_final_message": true, "add_generation_prompt": true });
    assert_eq!(refusal(both).as_deref(), Some("continue_final_message"));
    let reserved = json!({ "chat_template_kwargs": { "messages": [] } });
    assert_eq!(refusal(reserved).as_deref(), Some("chat_template_kwargs"));
    let no_template = Server::start(&[]);
    let documents = chat("Hi", json!({ "documents": [{ "title": "A" }] }));
    assert_eq!(
        no_template.refusal(CHAT, &documents).2.as_deref(),
        Some("documents")
    );
}

#[test]
fn cached_tokens_are_reported_and_change_no_answer() {
    let server = Server::start(&[]);
    let long = "Once upon a time there was a little girl who had a red ball. ".repeat(6);
    let ask = |more| server.answer(COMPLETIONS, &completion(long.as_str(), more));
    let cached =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let (first, second, salted) = (
        ask(json!({})),
        ask(json!({})),
        ask(json!({ "cache_salt": "mine" })),
    );
    assert_eq!((cached(&first), cached(&salted)), (Some(0), Some(0)));
    assert!(cached(&second).is_some_and(|tokens| tokens > 32));
    assert_eq!(text(&first), text(&second));
    assert_eq!(text(&first), text(&salted));
}

#[test]
fn invalid_http_requests_get_an_error() {
    let server = Server::start(&["--body-bytes", "1000"]);
    let code = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let response = server.send(method, path, headers, body.as_bytes());
        (
            response.status,
            response.json()["error"]["code"]
                .as_str()
                .expect("a code")
                .to_owned(),
        )
    };
    let json_type = [("content-type", "application/json; charset=utf-8")];
    assert_eq!(
        code("GET", "/v1/nothing", &[], ""),
        (404, "unknown_url".to_owned())
    );
    assert_eq!(
        code("GET", CHAT, &[], ""),
        (405, "method_not_allowed".to_owned())
    );
    assert_eq!(
        code("POST", CHAT, &[("content-type", "text/plain")], "{}"),
        (415, "unsupported_media_type".to_owned())
    );
    assert_eq!(
        code("POST", CHAT, &[], "{}"),
        (415, "unsupported_media_type".to_owned())
    );
    let gzip = [json_type[0], ("content-encoding", "gzip")];
    assert_eq!(
        code("POST", CHAT, &gzip, "{}"),
        (415, "unsupported_media_type".to_owned())
    );
    for body in ["", "{", "{\"messages\":[]} x", "[]", "7", "\u{1}"] {
        assert_eq!(
            code("POST", CHAT, &json_type, body),
            (400, "invalid_json".to_owned()),
            "{body}"
        );
    }
    assert_eq!(
        code("POST", CHAT, &json_type, &"[".repeat(900)),
        (400, "invalid_json".to_owned())
    );
    assert_eq!(
        code("POST", CHAT, &json_type, &" ".repeat(1001)),
        (413, "request_too_large".to_owned())
    );
    let chunked = [
        ("content-type", "application/json"),
        ("transfer-encoding", "chunked"),
    ];
    let mut stream = server.connect();
    crate::client::write_request(&mut stream, "POST", CHAT, &chunked, b"").expect("a request");
    let chunk = format!("400\r\n{}\r\n0\r\n\r\n", " ".repeat(1024));
    std::io::Write::write_all(&mut stream, chunk.as_bytes()).expect("a chunk");
    assert_eq!(crate::client::Response::read(stream).finish().status, 413);
}
