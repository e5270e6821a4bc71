//! Disconnected clients, overload and little memory, with a model whose layers keep a state for each
//! sequence: as with other models, and no state is lost.

use serde_json::json;

use crate::client::{HYBRID, Server, chat, completion, with};
use crate::faults::overload;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Slots for recurrent states that are `held`, `saved` or `free`.
#[track_caller]
pub fn states(server: &Server, kind: &str) -> usize {
    let metrics = server.get("/metrics").text();
    let label = format!("kind=\"{kind}\"");
    let mut lines = metrics.lines();
    let line =
        lines.find(|line| line.starts_with("bitnet_recurrent_states") && line.contains(&label));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {kind} in {metrics}"))
}

#[test]
fn a_disconnected_client_gives_its_state_back_in_every_phase() {
    let arguments = ["-m", HYBRID, "--running", "1", "--draft", "auto"];
    let server = Server::start(&arguments);
    let endless = json!({ "ignore_eos": true, "max_tokens": 3000 });
    let long_prompt: Vec<u32> = (0..3500).map(|i| i * 7 % 250).collect();
    // Clients disconnect while the server decodes, while it reads a prompt, and while they wait.
    let bodies = [
        (
            CHAT,
            chat("Hi", with(endless.clone(), json!({ "stream": true }))),
        ),
        (
            COMPLETIONS,
            completion(long_prompt, json!({ "max_tokens": 8 })),
        ),
        (CHAT, chat("Hi", with(endless, json!({ "n": 4 })))),
    ];
    let streams: Vec<_> = bodies
        .iter()
        .map(|(path, body)| {
            let stream = server.post_unread(path, body, &[]);
            server.wait_until("an answer is under way", || states(&server, "held") > 0);
            stream
        })
        .collect();
    drop(streams);
    server.answer(CHAT, &chat("Hi", json!({})));
    server.wait_until("free", || {
        states(&server, "held") == 0 && server.sample("vllm:kv_cache_usage_perc") == 0.0
    });
}

#[test]
fn under_overload_each_request_gets_an_answer_or_a_refusal_and_no_state_is_lost() {
    let state_bytes = 841_728;
    let memory = (6 * state_bytes).to_string();
    // Fewer states than drafts and saved states would take.
    let server = overload(
        &["-m", HYBRID, "--state-memory", &memory, "--draft", "auto"],
        "a ",
    );
    server.wait_until("no state is held", || states(&server, "held") == 0);
    assert_eq!(states(&server, "saved") + states(&server, "free"), 6);
}

#[cfg(target_os = "linux")]
#[test]
fn states_that_do_not_fit_into_memory_are_an_error_and_no_crash() {
    let script = "ulimit -v 2097152; exec \"$0\" serve --port 0 -m \"$1\" --state-memory 8G";
    let output = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_bitnet"), HYBRID])
        .output()
        .expect("a shell");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("memory"), "{message}");
    let arguments = ["-m", HYBRID, "--state-memory", "64M", "--kv-memory", "64M"];
    let server = Server::start_under("ulimit -v 2097152", &arguments);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    assert_eq!(server.post(CHAT, &chat("Hi", json!({}))).status, 200);
}
