//! Several models: loaded on first use, unloaded in time or to make room, each on its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// The built-in model as a file.
const STORIES: &str = "models/stories/stories.gguf";
/// A tiny model with a tokenizer and a template.
const TINY: &str = "tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf";
/// A tiny model without a tokenizer.
const TOKENS: &str = "tests/data/golden/strict-b158/model-i2_s.gguf";

/// A file of the repository.
fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// A folder with copies of models, by their file names.
fn folder(models: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, model) in models {
        std::fs::copy(in_tree(model), folder.path().join(name)).expect("a copy");
    }
    folder
}

/// A server with a folder of models, small caches, and these arguments.
fn serve(folder: &Path, arguments: &[&str]) -> Server {
    let small = [
        "--ctx-size",
        "256",
        "--kv-memory",
        "8M",
        "--state-memory",
        "8M",
    ];
    let folder = ["-m", folder.to_str().expect("a path")];
    Server::start(&[&folder[..], &small, arguments].concat())
}

/// The text of an answer to a prompt of tokens or text.
#[track_caller]
fn text(server: &Server, model: &str, prompt: impl Into<Value>) -> String {
    let answer = server.answer(COMPLETIONS, &completion(prompt, json!({ "model": model })));
    assert_eq!(answer["model"], model);
    answer["choices"][0]["text"]
        .as_str()
        .expect("a text")
        .to_owned()
}

/// Whether a model is loaded, as the list of models says.
fn status(server: &Server, model: &str) -> String {
    let card = server.get(&format!("/v1/models/{model}")).json();
    card["status"]["value"]
        .as_str()
        .expect("a status")
        .to_owned()
}

#[track_caller]
fn wait_for_status(server: &Server, model: &str, expected: &str) {
    server.wait_until(&format!("{model} {expected}"), || {
        status(server, model) == expected
    });
}

/// The value of a metric of one model.
fn sample(server: &Server, name: &str, model: &str) -> f64 {
    let text = server.get("/metrics").text();
    let start = format!("{name}{{model_name=\"{model}\",engine=\"0\"}} ");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(&start)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {start} in\n{text}"))
}

/// A request that streams 200 tokens.
fn long(model: &str) -> Value {
    let more = json!({ "model": model, "max_tokens": 200, "ignore_eos": true, "stream": true });
    completion("Once upon a time", more)
}

/// The text of a stream.
fn streamed(events: &[Value]) -> String {
    let parts = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str());
    parts.collect()
}

#[test]
fn each_model_is_loaded_on_first_use_and_answers_as_if_it_were_alone() {
    let folder = folder(&[
        ("stories.gguf", STORIES),
        ("tiny.gguf", TINY),
        ("tokens.gguf", TOKENS),
    ]);
    let server = serve(folder.path(), &[]);
    let list = server.get("/v1/models").json();
    let cards = list["data"].as_array().expect("a list");
    let cards: Vec<_> = cards
        .iter()
        .map(|card| {
            (
                &card["id"],
                &card["status"]["value"],
                &card["max_model_len"],
            )
        })
        .collect();
    let unloaded = |name: &'static str| (json!(name), json!("unloaded"), json!(256));
    let expected = ["stories", "tiny", "tokens"].map(unloaded);
    let expected = expected
        .each_ref()
        .map(|(name, status, len)| (name, status, len));
    assert_eq!(cards, expected);

    let prompts = [
        ("stories", json!("Once upon a time")),
        ("tiny", json!("Hello")),
        ("tokens", json!([1, 2, 3])),
    ];
    for (name, prompt) in prompts {
        let file = folder.path().join(format!("{name}.gguf"));
        let alone = serve(&file, &[]);
        let more = json!({ "model": name, "return_token_ids": true });
        let body = completion(prompt, more);
        let answer = |server: &Server| server.answer(COMPLETIONS, &body)["choices"].clone();
        let tokens = answer(&alone)[0]["token_ids"].as_array().map(Vec::len);
        assert_eq!(tokens, Some(24));
        assert_eq!(answer(&server), answer(&alone));
        assert_eq!(status(&server, name), "loaded");
        assert_eq!(sample(&server, "bitnet_model_loaded", name), 1.0);
        assert!(sample(&server, "vllm:generation_tokens_total", name) > 0.0);
    }
    // Without a name, the first model answers.
    let unnamed = server.answer(COMPLETIONS, &completion("Once upon a time", json!({})));
    assert_eq!(unnamed["model"], "stories");
    let unknown = server.post(CHAT, &chat("Hi", json!({ "model": "gpt-4o" })));
    assert_eq!(unknown.status, 404);
    assert_eq!(
        unknown.json()["error"]["message"],
        "The model 'gpt-4o' does not exist; this server has 'stories', 'tiny', 'tokens'."
    );
    // An error of a request names the field, as on a server of one model.
    let invalid = chat("Hi", json!({ "model": "tiny", "n": 0 }));
    let (status, _, field) = server.refusal(CHAT, &invalid);
    assert_eq!((status, field.as_deref()), (400, Some("n")));
    let info = server.get("/tokenizer_info?model=tiny").json();
    assert_eq!(info["model_max_length"], 256);
    assert_eq!(
        server.get("/props?model=tokens").json()["model_alias"],
        "tokens"
    );
}

#[test]
fn ollamas_clients_see_all_models_and_decide_how_long_they_stay() {
    let folder = folder(&[("stories.gguf", STORIES), ("tiny.gguf", TINY)]);
    let server = serve(folder.path(), &[]);
    let names = |path: &str| -> Vec<String> {
        let list = server.get(path).json();
        let models = list["models"].as_array().expect("a list");
        let names = models
            .iter()
            .map(|model| model["name"].as_str().expect("a name"));
        names.map(str::to_owned).collect()
    };
    assert_eq!(names("/api/tags"), ["stories:latest", "tiny:latest"]);
    assert_eq!(names("/api/ps"), [""; 0]);
    // Editors ask for the description of every model.
    let described = server.answer("/api/show", &json!({ "model": "tiny:latest" }));
    assert_eq!(described["model_info"]["general.architecture"], "qwen35");
    assert!(
        !described["template"]
            .as_str()
            .expect("a template")
            .is_empty()
    );
    assert_eq!(names("/api/ps"), [""; 0], "they are not loaded for it");
    assert_eq!(
        server.post("/api/show", &json!({ "model": "no" })).status,
        404
    );

    let load = |keep_alive: Value| {
        let body = json!({ "model": "tiny", "keep_alive": keep_alive });
        server.answer("/api/generate", &body)["done_reason"].clone()
    };
    assert_eq!(load(json!("1h")), "load");
    assert_eq!(names("/api/ps"), ["tiny:latest"]);
    let expires = server.get("/api/ps").json()["models"][0]["expires_at"].clone();
    assert!(
        expires.as_str().is_some_and(|time| time.starts_with("20")),
        "{expires}"
    );
    assert_eq!(load(json!(-1)), "load");
    let expires = server.get("/api/ps").json()["models"][0]["expires_at"].clone();
    assert_eq!(expires, "9999-12-31T23:59:59Z");
    assert_eq!(load(json!(0)), "unload");
    wait_for_status(&server, "tiny", "unloaded");
    assert_eq!(load(json!(0)), "unload", "it is not loaded for that");
    assert_eq!(names("/api/ps"), [""; 0]);
    // An answer, then the time.
    let more = json!({ "keep_alive": "1ms", "stream": false, "options": { "num_predict": 4 } });
    let body = with(json!({ "model": "tiny", "prompt": "Hello" }), more);
    assert_eq!(server.answer("/api/generate", &body)["eval_count"], 4);
    wait_for_status(&server, "tiny", "unloaded");
    let wrong = json!({ "model": "tiny", "prompt": "Hello", "keep_alive": "soon" });
    let wrong = server.post("/api/generate", &wrong);
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    assert!(wrong.text().contains("'keep_alive'"), "{}", wrong.text());
}

#[test]
fn models_are_unloaded_after_their_time_and_loaded_again() {
    let stories = in_tree(STORIES);
    // Also a server of one model, if the option is given.
    let server = serve(&stories, &["--keep-alive", "0"]);
    let first = text(&server, "stories", "Once upon a time");
    wait_for_status(&server, "stories", "unloaded");
    assert_eq!(sample(&server, "bitnet_model_loaded", "stories"), 0.0);
    let tokens = sample(&server, "vllm:generation_tokens_total", "stories");
    let steps = sample(&server, "bitnet_engine_steps_total", "stories");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(text(&server, "stories", "Once upon a time"), first);
    wait_for_status(&server, "stories", "unloaded");
    let again = |name: &str| sample(&server, name, "stories");
    assert_eq!(again("vllm:generation_tokens_total"), 2.0 * tokens);
    assert_eq!(again("bitnet_engine_steps_total"), 2.0 * steps);
}

#[test]
fn streams_go_on_while_other_models_are_loaded_and_models_in_use_stay() {
    let folder = folder(&[("stories.gguf", STORIES), ("tiny.gguf", TINY)]);
    let server = serve(folder.path(), &["--keep-alive", "0"]);
    let whole = server.post(COMPLETIONS, &long("stories")).events();
    let mut stream = server.open(COMPLETIONS, &long("stories"));
    assert!(stream.read_chunk() > 0);
    for _ in 0..3 {
        text(&server, "tiny", "Hello");
        wait_for_status(&server, "tiny", "unloaded");
    }
    // Also if a client asks to unload it now.
    let now = json!({ "model": "stories", "keep_alive": 0 });
    let unloads = server.answer("/api/generate", &now);
    assert_eq!(unloads["done_reason"], "unload");
    let events = stream.finish().events();
    assert_eq!(streamed(&events), streamed(&whole));
    assert!(streamed(&whole).len() > 200);
    wait_for_status(&server, "stories", "unloaded");
}

/// Bytes that a model takes by the refusal of a server with too little memory.
fn needed(folder: &Path, model: &str) -> u64 {
    let server = serve(folder, &["--models-memory", "1K"]);
    let refused = server.post(COMPLETIONS, &completion("Once", json!({ "model": model })));
    let error = refused.json()["error"].clone();
    let message = error["message"].as_str().expect("a message");
    assert_eq!(
        (refused.status, &error["code"]),
        (507, &json!("model_too_large")),
        "{error}"
    );
    assert!(
        message.contains("all models together may take 1024"),
        "{message}"
    );
    let mut numbers = message
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    numbers.next().expect("a number")
}

#[test]
fn a_model_waits_for_memory_until_another_one_has_finished_its_requests() {
    let folder = folder(&[("a.gguf", STORIES), ("b.gguf", STORIES)]);
    let bytes = needed(folder.path(), "a");
    assert!(bytes > 8 << 20, "the model with its cache: {bytes}");
    // Room for one of the models.
    let memory = (bytes + bytes / 2).to_string();
    let server = serve(folder.path(), &["--models-memory", &memory]);
    let whole = streamed(&server.post(COMPLETIONS, &long("a")).events());
    let mut stream = server.open(COMPLETIONS, &long("a"));
    assert!(stream.read_chunk() > 0);
    // The request waits for the stream, which is not cut. A further one for the first model waits
    // its turn.
    std::thread::scope(|scope| {
        let b = scope.spawn(|| text(&server, "b", "Once upon a time"));
        let rest = scope.spawn(|| stream.finish());
        let b = b.join().expect("an answer");
        assert_eq!(status(&server, "a"), "unloaded");
        assert_eq!(b, text(&server, "a", "Once upon a time"));
        assert_eq!(status(&server, "b"), "unloaded");
        let events = rest.join().expect("a stream").events();
        assert_eq!(streamed(&events), whole);
    });
}

#[test]
fn a_model_that_cannot_be_loaded_fails_only_its_own_requests() {
    let folder = folder(&[("good.gguf", STORIES)]);
    std::fs::write(folder.path().join("broken.gguf"), b"GGUF, but not really").expect("a file");
    std::fs::write(folder.path().join("notes.txt"), b"not a model").expect("a file");
    let server = serve(folder.path(), &[]);
    for _ in 0..2 {
        let refused = server.post(COMPLETIONS, &completion("Hi", json!({ "model": "broken" })));
        let error = refused.json()["error"].clone();
        let found = (refused.status, &error["code"]);
        assert_eq!(found, (500, &json!("model_load_failed")), "{error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("'broken' cannot be loaded"), "{message}");
        let path = folder.path().to_str().expect("a path");
        assert!(
            !message.contains(path),
            "clients need not know folders: {message}"
        );
    }
    assert!(!text(&server, "good", "Once upon").is_empty());
    assert_eq!(server.get("/livez").status, 200);
    let listed = server.get("/v1/models").json()["data"]
        .as_array()
        .map(Vec::len);
    assert_eq!(listed, Some(2));
}

#[cfg(unix)]
#[test]
fn a_model_whose_file_was_cut_is_loaded_again_and_the_others_go_on() {
    let folder = folder(&[("a.gguf", STORIES), ("b.gguf", STORIES)]);
    let server = serve(folder.path(), &[]);
    let good = text(&server, "a", "Once upon");
    assert_eq!(text(&server, "b", "Once upon"), good);
    let path = folder.path().join("b.gguf");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_len(100_000).expect("a cut");
    wait_for_status(&server, "b", "unloaded");
    let refused = server.post(COMPLETIONS, &completion("Once", json!({ "model": "b" })));
    assert_eq!(refused.json()["error"]["code"], "model_load_failed");
    assert_eq!(text(&server, "a", "Once upon"), good);
    assert_eq!(server.get("/livez").status, 200);
    std::fs::copy(in_tree(STORIES), &path).expect("the whole file");
    assert_eq!(text(&server, "b", "Once upon"), good);
}

#[test]
fn a_response_is_continued_by_its_model() {
    let folder = folder(&[("a.gguf", STORIES), ("b.gguf", STORIES)]);
    let server = serve(folder.path(), &["--chat-template", "chatml"]);
    let ask = |more: Value| {
        let body = json!({ "input": "Once upon a time", "seed": 7, "max_output_tokens": 16 });
        server.answer("/v1/responses", &with(body, more))
    };
    let first = ask(json!({ "model": "b" }));
    assert_eq!(first["model"], "b");
    let next = ask(json!({ "previous_response_id": first["id"] }));
    assert_eq!(next["model"], "b");
    assert_eq!(ask(json!({}))["model"], "a");
}

#[test]
fn models_get_their_names_in_order_and_no_two_have_the_same() {
    let (stories, tokens) = (in_tree(STORIES), in_tree(TOKENS));
    let (stories, tokens) = (
        stories.to_str().expect("a path"),
        tokens.to_str().expect("a path"),
    );
    let server = Server::start(&[
        "-m",
        stories,
        "-m",
        tokens,
        "--model-name",
        "story,ids",
        "--ctx-size",
        "64",
    ]);
    // The first model is loaded at the start.
    assert_eq!(status(&server, "story"), "loaded");
    assert_eq!(status(&server, "ids"), "unloaded");
    text(&server, "ids", json!([1, 2, 3]));
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        let output = command
            .args(["serve", "--check-config"])
            .args(arguments)
            .output()
            .expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (code, text) = check(&["-m", stories, "-m", tokens, "--keep-alive", "5m"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("keep-alive = \"5m\""), "{text}");
    for (arguments, expected) in [
        (
            &["-m", stories, "-m", stories][..],
            "have the same name, \"stories\"",
        ),
        (
            &["-m", stories, "-m", tokens, "--model-name", "a"],
            "--model-name is given 1 times, but there are 2 models",
        ),
        (
            &["-m", stories, "-m", tokens, "--model-name", "a,a:latest"],
            "have the same name, \"a\"",
        ),
        (&["-m", stories, "--keep-alive", "soon"], "expected seconds"),
    ] {
        let (code, text) = check(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let (code, text) = check(&["-m", stories, "-m", tokens, "--models-memory", "1M"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("but --models-memory is 1048576"), "{text}");
}
