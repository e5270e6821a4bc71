//! `/api/*`: the lines of Ollama's API, and its description of the model.

use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};

const CHAT: &str = "/v1/chat/completions";
/// A model that thinks; see `thinking.rs`.
const THINKING_MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf"
);
/// The tag that opens its thinking.
const BEGIN: u32 = 411;
/// A model for embeddings.
const EMBEDDING_MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-graphs/qwen3-embedding/model.gguf"
);

fn ask(text: &str, more: Value) -> Value {
    let body = json!({ "model": "stories:latest",
        "messages": [{ "role": "user", "content": text }],
        "options": { "seed": 7, "num_predict": 24 } });
    with(body, more)
}

/// The lines of a stream.
#[track_caller]
fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let response = server.post(path, body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        response.header("content-type"),
        Some("application/x-ndjson")
    );
    let text = response.text();
    assert!(text.ends_with('\n'), "{text}");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn whole(server: &Server, path: &str, body: &Value) -> Value {
    server.answer(path, &with(body.clone(), json!({ "stream": false })))
}

#[test]
fn a_chat_has_the_text_of_openais_and_its_lines_add_up_to_it() {
    let server = Server::start(&[]);
    let of_openai = server.answer(CHAT, &chat("Once upon a time", json!({})));
    let body = ask("Once upon a time", json!({}));
    let whole = whole(&server, "/api/chat", &body);
    let message = json!({ "role": "assistant",
        "content": of_openai["choices"][0]["message"]["content"] });
    assert_eq!(whole["message"], message);
    assert_eq!(
        (&whole["model"], &whole["done"], &whole["done_reason"]),
        (&json!("stories"), &json!(true), &json!("length"))
    );
    assert_eq!(whole["eval_count"], 24);
    assert_eq!(
        whole["prompt_eval_count"],
        of_openai["usage"]["prompt_tokens"]
    );
    assert!(
        whole["total_duration"]
            .as_u64()
            .is_some_and(|time| time > 0)
    );
    let lines = lines(&server, "/api/chat", &body);
    let (last, pieces) = lines.split_last().expect("lines");
    let text = pieces.iter().map(|line| {
        assert_eq!(line["done"], false);
        line["message"]["content"].as_str().expect("a text")
    });
    assert_eq!(text.collect::<String>(), message["content"]);
    assert!(pieces.len() > 8, "the answer is streamed in several lines");
    assert_eq!(
        (&last["done"], &last["eval_count"]),
        (&json!(true), &json!(24))
    );
    assert_eq!(last["message"]["content"], "");
}

#[test]
fn a_prompt_is_continued_raw_or_as_a_message() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let ask = |more: Value| {
        let body = json!({ "model": "stories", "prompt": "Once upon a time",
            "options": { "seed": 7, "num_predict": 24 } });
        with(body, more)
    };
    let raw = whole(&server, "/api/generate", &ask(json!({ "raw": true })));
    let text = server.answer(
        "/v1/completions",
        &completion("Once upon a time", json!({})),
    );
    assert_eq!(raw["response"], text["choices"][0]["text"]);
    let system = whole(
        &server,
        "/api/generate",
        &ask(json!({ "system": "Be kind." })),
    );
    let messages = json!([{ "role": "system", "content": "Be kind." },
        { "role": "user", "content": "Once upon a time" }]);
    let of_chat = server.answer(CHAT, &chat("", json!({ "messages": messages })));
    assert_eq!(
        system["response"],
        of_chat["choices"][0]["message"]["content"]
    );
    let lines = lines(&server, "/api/generate", &ask(json!({ "raw": true })));
    let pieces = lines.iter().filter_map(|line| line["response"].as_str());
    assert_eq!(pieces.collect::<String>(), raw["response"]);
    for (path, body) in [
        ("/api/generate", json!({ "model": "stories" })),
        (
            "/api/chat",
            json!({ "model": "stories:latest", "messages": [] }),
        ),
    ] {
        let loaded = server.answer(path, &body);
        assert_eq!(
            (&loaded["done"], &loaded["done_reason"]),
            (&json!(true), &json!("load"))
        );
    }
}

#[test]
fn calls_and_results_of_tools_are_read() {
    let server = Server::start(&["--chat-template", "chatml"]);
    let tool = json!({ "type": "function", "function": { "name": "get_weather",
        "description": "The weather.", "parameters": { "type": "object",
            "properties": { "city": { "enum": ["Paris"] } }, "required": ["city"],
            "additionalProperties": false } } });
    let messages = json!([
        { "role": "user", "content": "The weather in Paris?" },
        { "role": "assistant", "tool_calls":
            [{ "function": { "name": "get_weather", "arguments": { "city": "Paris" } } }] },
        { "role": "tool", "tool_name": "get_weather", "content": "Rain." },
    ]);
    let body = ask("", json!({ "messages": messages, "tools": [tool] }));
    let whole = whole(&server, "/api/chat", &body);
    assert!(whole["message"]["content"].is_string(), "{whole}");
}

#[test]
fn thinking_is_a_field_of_its_own() {
    let server = Server::start(&["-m", THINKING_MODEL, "--model-name", "stories"]);
    let options = json!({ "logit_bias": { BEGIN.to_string(): 100 }, "temperature": 0,
        "num_predict": 12 });
    let body = |think: Value| ask("Hi", json!({ "options": options, "think": think }));
    let thought = whole(&server, "/api/chat", &body(json!(true)));
    assert_eq!(thought["message"]["thinking"], "<think>".repeat(11));
    let plain = whole(&server, "/api/chat", &body(json!(false)));
    assert_eq!(plain["message"]["content"], "<think>".repeat(12));
    assert_eq!(plain["message"]["thinking"], Value::Null);
    let streamed = lines(&server, "/api/chat", &body(json!("low")));
    let pieces = streamed
        .iter()
        .filter_map(|line| line["message"]["thinking"].as_str());
    assert_eq!(pieces.collect::<String>(), "<think>".repeat(11));
}

#[test]
fn an_answer_has_its_form() {
    let server = Server::start(&[]);
    let schema = json!({ "type": "object", "properties": { "age": { "enum": [7] } },
        "required": ["age"], "additionalProperties": false });
    let more = json!({ "format": schema, "options": { "seed": 7, "num_predict": 100 } });
    let answer = whole(&server, "/api/chat", &ask("Once", more));
    let text = answer["message"]["content"].as_str().expect("a text");
    assert_eq!(
        serde_json::from_str::<Value>(text).expect("JSON"),
        json!({ "age": 7 })
    );
    let more = json!({ "logprobs": true, "top_logprobs": 2 });
    let answer = whole(&server, "/api/chat", &ask("Once", more));
    let logprobs = answer["logprobs"].as_array().expect("a list");
    assert_eq!(logprobs.len(), 24);
    assert!(
        logprobs
            .iter()
            .all(|entry| entry["top_logprobs"].as_array().is_some())
    );
}

#[test]
fn the_model_is_described() {
    let server = Server::start(&["--model-name", "stories,tiny"]);
    let names = |path: &str| {
        let models = server.get(path).json()["models"].clone();
        let models = models.as_array().expect("a list").clone();
        let names = models
            .iter()
            .map(|model| model["name"].as_str().expect("a name").to_owned());
        (names.collect::<Vec<_>>(), models)
    };
    let (tags, models) = names("/api/tags");
    assert_eq!(tags, ["stories:latest", "tiny:latest"]);
    assert_ne!(models[0]["digest"], models[1]["digest"]);
    assert_eq!(models[0]["details"]["format"], "gguf");
    let (running, models) = names("/api/ps");
    assert_eq!(running, tags);
    assert!(models[0]["context_length"].is_u64());
    let shown = server.answer("/api/show", &json!({ "model": "tiny:latest" }));
    let info = &shown["model_info"];
    let architecture = info["general.architecture"].as_str().expect("a name");
    assert_eq!(
        info[format!("{architecture}.context_length")],
        models[0]["context_length"]
    );
    assert!(
        info["general.parameter_count"]
            .as_u64()
            .is_some_and(|count| count > 1000)
    );
    assert_eq!(shown["capabilities"], json!(["completion", "tools"]));
    assert!(server.get("/api/version").json()["version"].is_string());
}

#[test]
fn a_request_needs_a_type_only_if_a_web_page_sends_it() {
    let server = Server::start(&[]);
    let body = json!({ "model": "stories", "prompt": "Once", "options": { "num_predict": 1 } });
    let status = |headers: &[(&str, &str)]| {
        let body = body.to_string();
        let answer = server.send("POST", "/api/generate", headers, body.as_bytes());
        answer.status
    };
    // curl names this type for every body if no other is given.
    let of_curl = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(status(&[]), 200);
    assert_eq!(status(&[of_curl]), 200);
    for sender in [
        ("origin", "https://example.org"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        assert_eq!(status(&[sender]), 415, "{sender:?}");
        assert_eq!(status(&[of_curl, sender]), 415, "{sender:?}");
    }
    assert_eq!(status(&[("content-type", "text/plain")]), 415);
    let openai = json!({ "prompt": "Once" }).to_string();
    let answer = server.send("POST", "/v1/completions", &[of_curl], openai.as_bytes());
    assert_eq!(answer.status, 415);
}

#[test]
fn a_refused_request_gets_an_error_in_the_form_of_the_api() {
    let server = Server::start(&[]);
    for (more, status, word) in [
        (json!({ "frobnicate": 1 }), 400, "frobnicate"),
        (json!({ "model": "llama3" }), 404, "llama3"),
        (
            json!({ "options": { "frobnicate": 1 } }),
            400,
            "options.frobnicate",
        ),
        (
            json!({ "options": { "mirostat": 2 } }),
            400,
            "options.mirostat",
        ),
        (
            json!({ "options": { "num_ctx": 1_000_000 } }),
            400,
            "options.num_ctx",
        ),
        (
            json!({ "options": { "num_predict": 0 } }),
            400,
            "options.num_predict",
        ),
        (
            json!({ "options": { "temperature": -1 } }),
            400,
            "options.temperature",
        ),
        (json!({ "format": "xml" }), 400, "format"),
        (json!({ "think": 3 }), 400, "think"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "images": ["aa"] }] }),
            400,
            "images",
        ),
    ] {
        let response = server.post("/api/chat", &ask("x", more.clone()));
        let message = response.json()["error"]
            .as_str()
            .expect("a text")
            .to_owned();
        assert_eq!(response.status, status, "{more}: {message}");
        assert!(message.contains(word), "{more}: {message}");
    }
    let neutral = json!({ "keep_alive": "5m", "options": { "num_ctx": 128, "num_gpu": 1,
        "num_thread": 4, "mirostat": 0, "num_predict": 2 } });
    whole(&server, "/api/chat", &ask("x", neutral));
    let headers = [("content-type", "application/json")];
    let wrong = server.send("POST", "/api/chat", &headers, b"{");
    assert!(wrong.status == 400 && wrong.json()["error"].is_string());
}

/// The numbers of a vector.
fn numbers(vector: &Value) -> Vec<f64> {
    let numbers = vector.as_array().expect("a list").iter();
    numbers
        .map(|number| number.as_f64().expect("a number"))
        .collect()
}

fn embedding_server() -> Server {
    let context = ["--ctx-size", "16", "--model-name", "tiny"];
    Server::start(&[&["-m", EMBEDDING_MODEL][..], &context].concat())
}

#[test]
fn texts_become_the_vectors_of_openais() {
    let server = embedding_server();
    let texts = json!(["a text", "another"]);
    let of_openai = server.answer("/v1/embeddings", &json!({ "input": texts }));
    let vector = |index: usize| &of_openai["data"][index]["embedding"];
    let ask = |more: Value| {
        let body = with(json!({ "model": "tiny:latest", "keep_alive": "5m" }), more);
        server.answer("/api/embed", &body)
    };
    let answer = ask(json!({ "input": texts }));
    assert_eq!(answer["model"], "tiny");
    assert_eq!(answer["embeddings"], json!([vector(0), vector(1)]));
    assert_eq!(
        answer["prompt_eval_count"],
        of_openai["usage"]["prompt_tokens"]
    );
    assert!(answer["total_duration"].as_u64().is_some_and(|ns| ns > 0));
    let alone = ask(json!({ "input": "a text", "truncate": true, "options": { "num_ctx": 16 } }));
    assert_eq!(alone["embeddings"], json!([vector(0)]));
    let short = server.answer(
        "/v1/embeddings",
        &json!({ "input": "a text", "dimensions": 5 }),
    );
    let shortened = ask(json!({ "input": "a text", "dimensions": 5 }));
    assert_eq!(shortened["embeddings"][0], short["data"][0]["embedding"]);
    for empty in [json!({}), json!({ "input": "" }), json!({ "input": [] })] {
        assert_eq!(ask(empty)["embeddings"], json!([]));
    }
    let shown = server.answer("/api/show", &json!({ "model": "tiny" }));
    let capabilities = shown["capabilities"].as_array().expect("a list");
    assert!(capabilities.contains(&json!("embedding")));
}

#[test]
fn the_older_path_returns_the_vector_as_long_as_the_model_makes_it() {
    let server = embedding_server();
    let ask = |more: Value| {
        let body = with(json!({ "model": "tiny" }), more);
        server.answer("/api/embeddings", &body)["embedding"].clone()
    };
    let vector = numbers(&ask(json!({ "prompt": "a text" })));
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() > 1e-3, "it is not scaled: {length}");
    let of_openai = server.answer("/v1/embeddings", &json!({ "input": "a text" }));
    let expected = numbers(&of_openai["data"][0]["embedding"]);
    assert_eq!(vector.len(), expected.len());
    for (found, expected) in vector.iter().zip(&expected) {
        assert!((found / length - expected).abs() < 1e-6);
    }
    assert_eq!(ask(json!({})), json!([]));
}

#[test]
fn a_text_that_does_not_fit_is_refused_or_cut_on_request() {
    let server = embedding_server();
    let text = "a long text ".repeat(20);
    for more in [json!({}), json!({ "truncate": false })] {
        let body = with(json!({ "model": "tiny", "input": text }), more);
        let refused = server.post("/api/embed", &body);
        assert_eq!(refused.status, 400, "{}", refused.text());
        let message = refused.json()["error"].to_string();
        assert!(message.contains("context length is 16"), "{message}");
    }
    let tokens = |text: &str| {
        let tokens = server.answer("/tokenize", &json!({ "prompt": text }))["tokens"].clone();
        tokens.as_array().expect("a list").clone()
    };
    // What the model expects after a text stays.
    let (whole, last) = (tokens(&text), tokens(""));
    let kept = [&whole[..16 - last.len()], &last].concat();
    let by_ids = server.answer("/v1/embeddings", &json!({ "input": kept }));
    let body = json!({ "model": "tiny", "input": [text, "a text"], "truncate": true });
    let cut = server.answer("/api/embed", &body);
    assert_eq!(cut["embeddings"][0], by_ids["data"][0]["embedding"]);
    let short = tokens("a text").len();
    assert_eq!(cut["prompt_eval_count"], 16 + short);
}

#[test]
fn refused_embeddings_name_the_field() {
    let server = embedding_server();
    for (path, more, status, word) in [
        ("/api/embed", json!({ "model": "llama3" }), 404, "llama3"),
        ("/api/embed", json!({ "input": 7 }), 400, "input"),
        ("/api/embed", json!({ "input": [[1]] }), 400, "input"),
        ("/api/embed", json!({ "dimensions": 0 }), 400, "dimensions"),
        ("/api/embed", json!({ "prompt": "x" }), 400, "prompt"),
        (
            "/api/embed",
            json!({ "options": { "num_ctx": 17 } }),
            400,
            "options.num_ctx",
        ),
        ("/api/embeddings", json!({ "input": "x" }), 400, "input"),
        (
            "/api/embeddings",
            json!({ "prompt": "a long text ".repeat(20) }),
            400,
            "context length is 16",
        ),
    ] {
        let body = with(json!({ "model": "tiny" }), more.clone());
        let refused = server.post(path, &body);
        let message = refused.json()["error"].to_string();
        assert_eq!(refused.status, status, "{more}: {message}");
        assert!(message.contains(word), "{more}: {message}");
    }
    let chats = Server::start(&[]);
    let refused = chats.post("/api/embed", &json!({ "model": "stories", "input": "x" }));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].to_string().contains("--pooling"));
}
