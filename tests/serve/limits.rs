//! What each client may use.

use serde_json::{Value, json};

use crate::client::{Server, chat, key_file};

const CHAT: &str = "/v1/chat/completions";

fn server(arguments: &[&str]) -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = key_file(folder.path());
    let arguments = [&["--api-key-file", &keys][..], arguments].concat();
    (Server::start(&arguments), folder)
}

/// The status, the code and `Retry-After` of a request with a key.
fn ask(server: &Server, path: &str, key: &str, more: Value) -> (u16, Value, Option<u64>) {
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", authorization.as_str())];
    let response = server.post_with(path, &chat("Once", more), &headers);
    let wait = response.header("retry-after");
    let wait = wait.map(|seconds| seconds.parse().expect("a number"));
    (
        response.status,
        response.json()["error"]["code"].clone(),
        wait,
    )
}

#[test]
fn a_key_that_has_used_its_requests_waits_and_others_do_not() {
    let (server, _folder) = server(&["--key-requests", "2"]);
    let few = json!({ "max_tokens": 1 });
    let chat = |key: &str| ask(&server, CHAT, key, few.clone());
    assert_eq!(chat("secret").0, 200);
    assert_eq!(ask(&server, "/v1/messages", "secret", few.clone()).0, 200);
    let (status, code, wait) = chat("secret");
    assert_eq!((status, code), (429, json!("rate_limit_exceeded")));
    assert!((1..=30).contains(&wait.expect("a time")), "{wait:?}");
    assert_eq!(chat("other").0, 200);
    // Requests that generate nothing are free.
    let counted = ask(&server, "/v1/messages/count_tokens", "secret", few);
    assert_eq!(counted.0, 200);
}

#[test]
fn a_key_that_has_used_its_tokens_waits() {
    let (server, _folder) = server(&["--key-tokens", "40"]);
    let chat = |tokens: u32| {
        let more = json!({ "max_tokens": tokens, "ignore_eos": true });
        ask(&server, CHAT, "secret", more)
    };
    assert_eq!(chat(60).0, 200);
    let (status, code, wait) = chat(1);
    assert_eq!((status, code), (429, json!("rate_limit_exceeded")));
    assert!(wait.is_some_and(|seconds| seconds >= 30), "{wait:?}");
}

#[test]
fn a_key_has_few_answers_at_once() {
    let (server, _folder) = server(&["--key-concurrency", "2", "--ctx-size", "4096"]);
    let long = chat(
        "Once",
        json!({ "n": 2, "ignore_eos": true, "stream": true, "max_tokens": 3000 }),
    );
    let stream = server.post_unread(CHAT, &long, &[("authorization", "Bearer secret")]);
    server.wait_until("running", || {
        server.sample("vllm:num_requests_running") == 2.0
    });
    let few = json!({ "max_tokens": 1 });
    let (status, code, wait) = ask(&server, CHAT, "secret", few.clone());
    assert_eq!(
        (status, code, wait),
        (429, json!("rate_limit_exceeded"), Some(1))
    );
    assert_eq!(ask(&server, CHAT, "other", few.clone()).0, 200);
    drop(stream);
    server.wait_until("free", || {
        ask(&server, CHAT, "secret", few.clone()).0 == 200
    });
}
