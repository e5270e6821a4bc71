//! Faults of clients (slow, stalled, disconnected, too many), disks, files and readers do not
//! affect other clients.

use std::io::{Read, Seek, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Response, Server, chat, key_file, soak_seconds, write_request};

const CHAT: &str = "/v1/chat/completions";

/// An answer that takes minutes.
fn endless(more: Value) -> Value {
    crate::client::with(
        chat(
            "Once upon a time",
            json!({ "ignore_eos": true, "max_tokens": 90_000 }),
        ),
        more,
    )
}

#[test]
fn a_disconnected_client_is_cancelled_in_every_phase() {
    let server = Server::start(&["--ctx-size", "100000", "--running", "1"]);
    let long_prompt = "Once upon a time there was a dog. ".repeat(2000);
    let bodies = [
        // Clients disconnect during decoding (streamed or not), during prefill, and while they wait
        // in the queue.
        endless(json!({ "stream": true })),
        endless(json!({})),
        chat(&long_prompt, json!({ "max_tokens": 8 })),
        endless(json!({ "n": 4 })),
    ];
    let streams: Vec<_> = bodies
        .iter()
        .map(|body| {
            let stream = server.post_unread(CHAT, body, &[]);
            std::thread::sleep(Duration::from_millis(100));
            stream
        })
        .collect();
    drop(streams);
    let answer = server.answer(CHAT, &chat("Once upon a time", json!({})));
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    let gone = || {
        server
            .log()
            .iter()
            .filter(|line| line["outcome"] == "client gone")
            .count()
    };
    server.wait_until("all logged", || gone() == bodies.len());
    server.wait_until("free", || server.sample("vllm:kv_cache_usage_perc") == 0.0);
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    let server = Server::start(&[
        "--ctx-size",
        "100000",
        "--running",
        "1",
        "--queue-requests",
        "2",
        "--queue-tokens",
        "500",
    ]);
    let mut running = server.open(CHAT, &endless(json!({ "stream": true })));
    running.read_chunk();
    // A stream's headers are sent when the queue admits it.
    let first = server.open(CHAT, &endless(json!({ "stream": true })));
    let many_tokens = chat(&"the dog ".repeat(300), json!({}));
    for refused in [
        server.post(CHAT, &many_tokens),
        server.post(CHAT, &chat("Once", json!({ "n": 2 }))),
    ] {
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (429, &json!("queue_full"))
        );
        let seconds: u64 = refused
            .header("retry-after")
            .expect("a time")
            .parse()
            .expect("seconds");
        assert!((1..=600).contains(&seconds));
    }
    let second = server.open(CHAT, &endless(json!({ "stream": true })));
    assert_eq!(server.refusal(CHAT, &chat("Once", json!({}))).0, 429);
    assert_eq!(
        server.get("/readyz").status,
        200,
        "a server with work to do is ready"
    );
    drop((running, first, second));
    server.wait_until("room", || {
        server.post(CHAT, &chat("Once", json!({}))).status == 200
    });
}

#[test]
fn an_answer_that_exceeds_the_time_limit_is_cancelled() {
    let server = Server::start(&["--ctx-size", "100000", "--request-timeout", "0.5"]);
    let refused = server.post(CHAT, &endless(json!({})));
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (504, &json!("answer_timeout"))
    );
    // A busy machine may not reach the first token in half a second.
    server.wait_until("sent earlier tokens", || {
        let events = server
            .post(CHAT, &endless(json!({ "stream": true })))
            .events();
        assert_eq!(
            events.last().expect("chunks")["error"]["code"],
            "answer_timeout"
        );
        events.len() > 2
    });
}

#[test]
fn slow_senders_time_out() {
    // Long enough for whole requests on a busy machine.
    let server = Server::start(&["--header-timeout", "5", "--body-timeout", "5"]);
    let mut silent = server.connect();
    let mut halting = server.connect();
    halting
        .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        .expect("half a request");
    let mut stream = server.connect();
    let headers = [
        ("content-type", "application/json"),
        ("content-length", "100"),
    ];
    write_request(&mut stream, "POST", CHAT, &headers, b"").expect("a head");
    for stream in [&mut silent, &mut halting] {
        let mut rest = Vec::new();
        // The server closes the connection, with or without a response.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        assert!(!String::from_utf8_lossy(&rest).contains(" 200 "));
    }
    let response = Response::read(stream).finish();
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (408, &json!("request_timeout"))
    );
}

#[test]
fn headers_without_end_are_refused() {
    let server = Server::start(&["--header-bytes", "4K"]);
    let long = "x".repeat(5000);
    assert_eq!(
        server
            .send("GET", "/health", &[("x-long", &long)], b"")
            .status,
        431
    );
    assert_eq!(
        server
            .send("GET", "/health", &[("x-long", &long[..3000])], b"")
            .status,
        200
    );
}

#[test]
fn a_stalled_reader_is_disconnected() {
    let server = Server::start(&["--ctx-size", "100000", "--write-timeout", "0.3"]);
    // Events with the log-probabilities of 20 tokens fill the buffers of a connection quickly.
    let body = endless(json!({ "stream": true, "logprobs": true, "top_logprobs": 20 }));
    let stalled = server.open(CHAT, &body);
    assert_eq!(stalled.response.status, 200);
    let gone = || {
        server
            .log()
            .iter()
            .any(|line| line["outcome"] == "client gone")
    };
    server.wait_until("cancelled", gone);
    assert_eq!(server.post(CHAT, &chat("Once", json!({}))).status, 200);
}

#[test]
fn a_stalled_reader_of_another_api_is_disconnected() {
    let server = Server::start(&["--ctx-size", "100000", "--write-timeout", "0.3"]);
    let user = json!([{ "role": "user", "content": "Once upon a time" }]);
    let logprobs = ["message.output_text.logprobs"];
    let bodies = [
        (
            "/v1/responses",
            json!({ "input": "Once upon a time", "stream": true, "ignore_eos": true,
                "max_output_tokens": 90_000, "include": logprobs, "top_logprobs": 20 }),
        ),
        (
            "/api/chat",
            json!({ "model": "stories", "messages": user, "logprobs": true, "top_logprobs": 20,
                "options": { "num_predict": 90_000, "logit_bias": no_end(&server) } }),
        ),
    ];
    for (path, body) in bodies {
        let stalled = server.open(path, &body);
        assert_eq!(stalled.response.status, 200, "{path}");
        let gone = || {
            let of_path = |line: &Value| line["route"] == path && line["outcome"] == "client gone";
            server.log().iter().any(of_path)
        };
        server.wait_until("cancelled", gone);
    }
    assert_eq!(server.sample("vllm:num_requests_running"), 0.0);
}

/// A bias that keeps the built-in model from ending its answer.
fn no_end(server: &Server) -> Value {
    let info = server.get("/tokenizer_info").json();
    let ask = json!({ "prompt": info["eos_token"], "add_special_tokens": false });
    let tokens = server.answer("/tokenize", &ask)["tokens"].clone();
    json!({ tokens[0].to_string(): -100 })
}

/// Answers stay whole while `server` logs more than its reader reads: 600 requests with a line
/// each, beside 4 streams. The server still stops after a signal.
#[cfg(target_os = "linux")]
fn answers_are_whole(server: Server) {
    let more = json!({ "stream": true, "ignore_eos": true, "max_tokens": 200 });
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| server.post(CHAT, &chat("Once upon a time", more.clone()))))
            .collect();
        for _ in 0..600 {
            assert_eq!(server.get("/health").status, 200);
        }
        for stream in streams {
            let events = stream.join().expect("no panic").events();
            let last = events.last().expect("chunks");
            assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
        }
    });
    server.signal("TERM");
    assert!(server.wait().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_disk_changes_no_answer_and_its_lost_lines_are_counted() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let server = Server::start_logging_to(full.expect("a full disk"), &[]);
    assert_eq!(server.post(CHAT, &chat("Once", json!({}))).status, 200);
    server.wait_until("counted", || {
        server.sample("bitnet_log_lines_lost_total") > 1.0
    });
    answers_are_whole(server);
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_with_a_closed_reader_changes_no_answer() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let server = Server::start_logging_to(writer, &[]);
    drop(reader);
    answers_are_whole(server);
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_with_a_stalled_reader_changes_no_answer() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // A line of the log has some 200 bytes, so the 64 KiB of the pipe are full after 300.
    answers_are_whole(Server::start_logging_to(writer, &["--log-level", "debug"]));
    drop(reader);
}

#[cfg(target_os = "linux")]
#[test]
fn commands_whose_errors_cannot_be_written_end_with_their_exit_code() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("a full disk")
    };
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(full());
        command.status().expect("the program runs").code()
    };
    assert_eq!(run(&["run", "-m", "no/model.gguf", "Once"]), Some(1));
    assert_eq!(run(&["chat", "-m", "no/model.gguf"]), Some(1));
    assert_eq!(run(&["run", "--temp", "-1", "Once"]), Some(2));
    assert_eq!(run(&["run", "-n", "2", "Once"]), Some(0));
}

#[test]
fn the_server_still_answers_after_200_clients_hang_up() {
    let server = Server::start(&["--ctx-size", "2048", "--kv-memory", "64M"]);
    assert_eq!(server.sample("vllm:kv_cache_usage_perc"), 0.0);
    let mut streams = Vec::new();
    for index in 0..200 {
        let body = endless(json!({ "stream": index % 2 == 0, "max_tokens": 1500, "seed": index }));
        streams.push((server.post_unread(CHAT, &body, &[]), Instant::now()));
    }
    for (stream, sent) in streams {
        std::thread::sleep(Duration::from_millis(500).saturating_sub(sent.elapsed()));
        drop(stream);
    }
    let start = Instant::now();
    server.wait_until("answered", || {
        let response = server.post(CHAT, &chat("Once upon a time", json!({})));
        assert!(matches!(response.status, 200 | 429), "{}", response.text());
        response.status == 200
    });
    // Only where nothing else runs beside it.
    if soak_seconds().is_some() {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "answered after {:?}",
            start.elapsed()
        );
    }
    server.wait_until("free", || server.sample("vllm:kv_cache_usage_perc") == 0.0);
    let statuses = || {
        let log = server.log();
        log.iter()
            .filter(|line| line["route"] == CHAT)
            .map(|line| line["status"].as_u64())
            .collect::<Vec<_>>()
    };
    server.wait_until("all logged", || statuses().len() > 200);
    assert!(
        statuses()
            .iter()
            .flatten()
            .all(|status| [200, 429].contains(status)),
        "{:?}",
        statuses()
    );
}

#[test]
fn cancelled_slow_forms_delay_no_other_client() {
    let server = Server::start(&["--ctx-size", "2048"]);
    let form = |index: usize| {
        let one = |i: usize, j: usize| json!({ "properties": { format!("p{index}_{i}_{j}"): { "type": "integer" } } });
        let all: Vec<_> = (0..10)
            .map(|i| json!({ "anyOf": [one(i, 0), one(i, 1)] }))
            .collect();
        chat(
            "Once",
            json!({ "structured_outputs": { "json": { "type": "object", "allOf": all } } }),
        )
    };
    let streams: Vec<_> = (0..200)
        .map(|index| server.post_unread(CHAT, &form(index), &[]))
        .collect();
    let of = |name: &str| server.sample(name);
    server.wait_until("full", || {
        of("bitnet_forms_compiling") == 2.0 && of("bitnet_forms_waiting") == 8.0
    });
    drop(streams);
    server.wait_until("free", || {
        of("bitnet_forms_compiling") + of("bitnet_forms_waiting") + of("bitnet_text_running") == 0.0
    });
    // Two were compiled and some more begun before the server noticed that their clients had gone.
    let num_begun = of("bitnet_forms_compiled_total");
    assert!(num_begun <= 20.0, "{num_begun} of 200");
    server.answer(CHAT, &chat("Once upon a time", json!({})));
}

/// The ids of a server's helper processes.
#[cfg(target_os = "linux")]
fn helpers(server: &Server) -> Vec<String> {
    let parent = server.id().to_string();
    let processes = std::fs::read_dir("/proc").expect("a list").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let is_helper = |id: &String| {
        // `id (name) state parent …`; the name may have spaces.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        after_name.split(' ').nth(1) == Some(&parent)
    };
    ids.filter(is_helper).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn the_helper_of_a_cancelled_form_is_killed() {
    let server = Server::start(&["--form-timeout", "100"]);
    // Takes seconds.
    let stream = server.post_unread(CHAT, &chat("Once", many_fields(2000)), &[]);
    server.wait_until("compiling", || helpers(&server).len() == 1);
    let helper = helpers(&server);
    drop(stream);
    server.wait_until("cancelled", || {
        server.sample("bitnet_forms_compiling") == 0.0
    });
    // A helper that has done its job waits for the next one.
    assert_ne!(helpers(&server), helper);
    assert_eq!(server.sample("bitnet_forms_compiled_total"), 1.0);
}

#[test]
fn under_overload_memory_stays_flat_and_each_request_gets_an_answer_or_a_refusal() {
    overload(&[], "a big dog ");
}

/// Three times as many clients as a server has places, whose prompts repeat `words`, get answers or
/// refusals, and the server takes no more memory after a while. Returns the server.
pub fn overload(more: &[&str], words: &str) -> Server {
    let arguments = [
        "--ctx-size",
        "512",
        "--kv-memory",
        "16M",
        "--running",
        "4",
        "--queue-requests",
        "8",
    ];
    let server = Server::start(&[&arguments, more].concat());
    // Three times as many as run and wait.
    let num_clients = 3 * (4 + 8);
    let soak = Duration::from_secs(soak_seconds().unwrap_or(3));
    let start = Instant::now();
    // Enough to touch all of the cache, and as many again.
    let num_warm = 4 * num_clients as u64;
    let num_whole = AtomicU64::new(0);
    let client = |index: usize| {
        let (mut num_answered, mut num_refused) = (0, 0);
        let is_stream = index.is_multiple_of(3);
        while start.elapsed() < soak || num_whole.load(Ordering::Relaxed) < 2 * num_warm {
            let text = words.repeat(10 + 10 * (index % 5));
            let more = json!({ "stream": is_stream, "max_tokens": 30, "seed": index + 100 * num_answered });
            let body = chat(&text, more);
            if index % 7 == 6 {
                // Some clients hang up at a random moment.
                let mut stream = server.connect();
                let headers = [("content-type", "application/json")];
                let body = body.to_string();
                // The server may refuse the request before it is whole.
                let _ = write_request(&mut stream, "POST", CHAT, &headers, body.as_bytes());
                std::thread::sleep(Duration::from_millis(index as u64));
                continue;
            }
            let response = server.post(CHAT, &body);
            match response.status {
                200 if is_stream => {
                    let last = response.events().pop().expect("chunks");
                    assert!(last["choices"][0]["finish_reason"].is_string(), "{last}");
                    num_answered += 1;
                    num_whole.fetch_add(1, Ordering::Relaxed);
                }
                200 => {
                    num_answered += 1;
                    num_whole.fetch_add(1, Ordering::Relaxed);
                }
                429 => {
                    assert!(response.header("retry-after").is_some());
                    num_refused += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                status => panic!("{status}: {}", response.text()),
            }
        }
        (num_answered, num_refused)
    };
    let resident = || server.sample("process_resident_memory_bytes") / f64::from(1 << 20);
    let (before, totals) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..num_clients)
            .map(|index| scope.spawn(move || client(index)))
            .collect();
        std::thread::sleep(soak / 3);
        server.wait_until("warm", || num_whole.load(Ordering::Relaxed) >= num_warm);
        let before = resident();
        let totals: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"))
            .collect();
        (before, totals)
    });
    let (answered, refused) = totals.iter().fold((0, 0), |(a, r), (answered, refused)| {
        (a + answered, r + refused)
    });
    assert!(
        answered > 0 && refused > 0,
        "{answered} answered, {refused} refused"
    );
    let after = resident();
    println!(
        "{answered} answered, {refused} refused in {soak:?}; {before:.1} MiB resident, then {after:.1} MiB"
    );
    assert!(
        after < before + 16.0,
        "{before} MiB resident, then {after} MiB"
    );
    server.wait_until("free", || server.sample("vllm:kv_cache_usage_perc") == 0.0);
    server
}

/// A schema that needs some work: `count` fields.
fn many_fields(count: usize) -> Value {
    let fields = (0..count).map(|index| (format!("field{index}"), json!({ "type": "string" })));
    let fields: serde_json::Map<_, _> = fields.collect();
    json!({ "structured_outputs": { "json": { "type": "object", "properties": fields } } })
}

/// Checks that a server with low limits refuses a form for the reason `words`, that an answer under
/// way stays whole, and that forms and texts are still answered.
#[track_caller]
fn refuses_one_form(arguments: &[&str], words: &str, takes_small_forms: bool) {
    let server = Server::start(arguments);
    let more = json!({ "stream": true, "ignore_eos": true, "max_tokens": 300 });
    let stream = server.open(CHAT, &chat("Once upon a time", more));
    let refused = server.post(CHAT, &chat("Once", many_fields(300)));
    let message = refused.json()["error"]["message"].to_string();
    assert_eq!(refused.status, 400, "{message}");
    assert!(message.contains(words), "{message}");
    let events = stream.finish().events();
    let last = events.last().expect("chunks");
    assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
    server.answer(CHAT, &chat("Once", json!({})));
    if takes_small_forms {
        let small = json!({ "structured_outputs": { "choice": ["yes", "no"] } });
        server.answer(CHAT, &chat("Once", small));
    }
    let panicked = |line: &Value| line["message"].to_string().contains("panicked");
    assert!(!server.whole_log().iter().any(panicked));
}

#[test]
fn a_form_that_takes_too_long_to_compile_is_refused_alone() {
    refuses_one_form(
        &["--form-timeout", "0.001"],
        "takes longer than 0.001 s",
        false,
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_form_that_takes_too_much_memory_is_refused_alone() {
    refuses_one_form(&["--form-memory", "1M"], "or 1024 KiB of memory", true);
}

#[test]
fn a_form_that_overflows_its_stack_is_refused_alone() {
    refuses_one_form(&["--form-stack", "48K"], "more than 48 KiB of stack", false);
}

#[test]
fn a_form_that_is_too_large_is_refused_before_it_is_compiled() {
    let server = Server::start(&[]);
    let form = json!({ "structured_outputs": { "regex": "a|".repeat(4097) } });
    let refused = server.post(CHAT, &chat("Once", form));
    let message = refused.json()["error"]["message"].to_string();
    assert_eq!(refused.status, 400, "{message}");
    assert!(message.contains("it has 4097 alternatives"), "{message}");
    assert_eq!(server.sample("bitnet_forms_compiled_total"), 0.0);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn requests_that_are_not_read_fail_the_readiness_probe() {
    let server = Server::start(&["--stall-timeout", "0.001"]);
    let long = json!({ "prompt": "Once upon a time there was a dog. ".repeat(20_000) });
    let is_seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The threads end if this one fails, too.
        let _end = SetOnDrop(&is_seen);
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_seen.load(Ordering::Relaxed) {
                    server.answer("/tokenize", &long);
                }
            });
        }
        let is_stalled = || server.get("/readyz").json()["status"] == "text stalled";
        server.wait_until("stalled", is_stalled);
    });
    assert_eq!(server.get("/livez").status, 200);
    server.wait_until("ready", || server.get("/readyz").status == 200);
}

#[test]
fn a_cached_form_needs_no_helper() {
    let server = Server::start(&[]);
    let form = json!({ "structured_outputs": { "choice": ["yes", "no"] } });
    server.answer(CHAT, &chat("Once", form.clone()));
    let num_helpers = || server.sample("bitnet_forms_compiled_total");
    assert_eq!(num_helpers(), 1.0);
    server.answer(CHAT, &chat("Twice", form));
    assert_eq!(num_helpers(), 1.0);
}

#[test]
fn probes_are_answered_when_every_connection_is_busy() {
    let server = Server::start(&["--ctx-size", "100000", "--connections", "4"]);
    let busy: Vec<_> = (0..4)
        .map(|_| server.open(CHAT, &endless(json!({ "stream": true }))))
        .collect();
    assert_eq!(server.get("/livez").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.sample("bitnet_connections"), 5.0);
    let (status, code, _) = server.refusal(CHAT, &chat("Once", json!({})));
    assert_eq!((status, &*code), (503, "too_many_connections"));
    drop(busy);
    server.wait_until("room", || {
        server.post(CHAT, &chat("Once", json!({}))).status == 200
    });
}

#[test]
fn one_address_holds_only_its_part_of_all_connections() {
    let arguments = ["--connections", "8", "--connections-per-address", "2"];
    let server = Server::start(&[&arguments[..], &["--ctx-size", "100000"]].concat());
    let busy = [(); 2].map(|()| server.open(CHAT, &endless(json!({ "stream": true }))));
    let (status, code, _) = server.refusal(CHAT, &chat("Once", json!({})));
    assert_eq!((status, &*code), (503, "too_many_connections"));
    drop(busy);
}

/// Lowers a server's limit on open files to the number that it has open.
#[cfg(target_os = "linux")]
fn leave_no_file_descriptor(server: &Server) {
    let id = server.id().to_string();
    let num_open = std::fs::read_dir(format!("/proc/{id}/fd"))
        .expect("a list")
        .count();
    let mut command = Command::new("prlimit");
    command.args(["--pid", &id, &format!("--nofile={num_open}:")]);
    assert!(command.status().expect("prlimit runs").success());
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_connection_is_closed_when_no_file_descriptor_is_left() {
    let server = Server::start(&["--header-timeout", "3600"]);
    let idle: Vec<_> = (0..8).map(|_| server.connect()).collect();
    server.wait_until("open", || server.sample("bitnet_connections") == 9.0);
    leave_no_file_descriptor(&server);
    server.answer(CHAT, &chat("Once", json!({})));
    assert!(server.sample("bitnet_accept_failures_total") >= 1.0);
    assert!(server.sample("bitnet_connections_closed_idle_total") >= 1.0);
    drop(idle);
}

#[test]
fn idle_connections_make_room_for_others() {
    let server = Server::start(&["--connections", "4"]);
    // Some connections send nothing; others are kept alive after a request.
    let silent: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let alive: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = server.connect();
            let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
            stream.write_all(request).expect("it is sent");
            Response::read(stream)
        })
        .collect();
    assert!(alive.iter().all(|open| open.response.status == 200));
    // After a second, connections without a request count as idle.
    server.wait_until("room", || {
        server.post(CHAT, &chat("Once", json!({}))).status == 200
    });
    assert!(server.sample("bitnet_connections_closed_idle_total") >= 1.0);
    drop((silent, alive));
}

/// A copy of the built-in model, and a server that serves it.
fn with_model_file() -> (tempfile::TempDir, std::path::PathBuf, Server) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let story_teller = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/stories/stories.gguf"
    );
    std::fs::copy(story_teller, &path).expect("a copy");
    let server = Server::start(&["-m", path.to_str().expect("a path")]);
    (folder, path, server)
}

const COMPLETIONS: &str = "/v1/completions";

#[cfg(unix)]
#[test]
fn a_truncated_model_file_fails_requests_with_its_name() {
    let (_folder, path, server) = with_model_file();
    let ask = || {
        server.post(
            COMPLETIONS,
            &crate::client::completion("Once upon", json!({})),
        )
    };
    assert_eq!(ask().status, 200);
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_len(100_000).expect("a cut");
    let refused = ask();
    let message = refused.json()["error"]["message"].to_string();
    assert_eq!(refused.status, 500, "{message}");
    assert!(
        message.contains("model.gguf of the model was changed"),
        "{message}"
    );
    server.wait_until("noticed", || server.get("/livez").status == 503);
    assert_eq!(server.get("/livez").json()["status"], "model changed");
    assert_eq!(server.sample("bitnet_model_file_changed"), 1.0);
    assert_eq!(ask().status, 500);
    let log = format!("{:?}", server.whole_log());
    assert!(log.contains("model.gguf was cut"), "{log}");
}

#[test]
fn a_changed_model_file_fails_the_liveness_probe() {
    let (_folder, path, server) = with_model_file();
    assert_eq!(server.get("/livez").status, 200);
    let mut file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("a file");
    file.seek(std::io::SeekFrom::End(-1)).expect("its end");
    file.write_all(b"x").expect("a byte");
    let later = std::time::SystemTime::now() + Duration::from_secs(2);
    file.set_modified(later).expect("a time");
    server.wait_until("noticed", || server.get("/livez").status == 503);
    assert_eq!(server.get("/readyz").json()["status"], "model changed");
}

#[test]
fn a_model_file_replaced_by_renaming_is_logged_and_the_old_one_stays_in_use() {
    let (folder, path, server) = with_model_file();
    let ask = || {
        server.answer(
            COMPLETIONS,
            &crate::client::completion("Once upon", json!({})),
        )["choices"][0]["text"]
            .clone()
    };
    let before = ask();
    let next = folder.path().join("next.gguf");
    std::fs::write(&next, b"another model").expect("a file");
    std::fs::rename(&next, &path).expect("a new name");
    server.wait_until("logged", || {
        format!("{:?}", server.log()).contains("a file of the model was replaced or deleted")
    });
    assert_eq!(ask(), before);
    assert_eq!(server.get("/livez").status, 200);
    assert_eq!(server.sample("bitnet_model_file_changed"), 0.0);
}

#[test]
fn bodies_of_all_requests_together_are_bounded() {
    let server = Server::start(&["--body-bytes", "1M", "--inflight-bytes", "1M"]);
    let large = chat(&"x".repeat(700_000), json!({})).to_string();
    let withheld = large.len() - 1;
    let mut first = server.connect();
    let length = large.len().to_string();
    let headers = [
        ("content-type", "application/json"),
        ("content-length", &*length),
    ];
    write_request(&mut first, "POST", CHAT, &headers, b"").expect("a head");
    first
        .write_all(&large.as_bytes()[..withheld])
        .expect("most of a body");
    server.wait_until("read", || {
        server.sample("bitnet_inflight_body_bytes") == withheld as f64
    });
    let (status, code, _) = server.refusal(CHAT, &chat(&"x".repeat(700_000), json!({})));
    assert_eq!((status, &*code), (429, "queue_full"));
    server.answer(CHAT, &chat("Once", json!({})));
    drop(first);
    server.wait_until("given back", || {
        server.sample("bitnet_inflight_body_bytes") == 0.0
    });
}

/// A burst of bodies that clients withhold the end of. After the first one the allocator keeps
/// buffers of their size.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn memory_is_given_back_after_a_burst() {
    let server = Server::start(&[]);
    let resident = || server.sample("process_resident_memory_bytes") / f64::from(1 << 20);
    server.answer(CHAT, &chat("Once", json!({})));
    let before = resident();
    let body = chat(&"x".repeat(1_900_000), json!({})).to_string();
    let length = body.len().to_string();
    let headers = [
        ("content-type", "application/json"),
        ("content-length", &*length),
    ];
    let withheld = 60.0 * (body.len() - 1) as f64;
    for _ in 0..2 {
        let clients: Vec<_> = (0..60)
            .map(|_| {
                let mut stream = server.connect();
                write_request(&mut stream, "POST", CHAT, &headers, b"").expect("a head");
                stream
                    .write_all(&body.as_bytes()[1..])
                    .expect("most of a body");
                stream
            })
            .collect();
        server.wait_until("read", || {
            server.sample("bitnet_inflight_body_bytes") == withheld
        });
        assert!(resident() > before + 100.0);
        drop(clients);
        server.wait_until("given back", || resident() < before + 20.0);
    }
}

#[test]
fn a_body_with_too_large_a_content_length_gets_no_continue() {
    let server = Server::start(&["--body-bytes", "1K"]);
    for length in ["1025", "9223372036854775807"] {
        let mut stream = server.connect();
        let headers = [
            ("content-type", "application/json"),
            ("content-length", length),
            ("expect", "100-continue"),
        ];
        write_request(&mut stream, "POST", CHAT, &headers, b"").expect("a head");
        // The first line is the error, not `100 Continue`.
        assert_eq!(Response::read(stream).finish().status, 413, "{length}");
    }
}

#[test]
fn transfer_codings_other_than_chunked_are_refused() {
    let server = Server::start(&[]);
    for (coding, status) in [("gzip, chunked", 501), ("chunked, chunked", 400)] {
        let headers = [
            ("content-type", "application/json"),
            ("transfer-encoding", coding),
        ];
        let response = server.send("POST", CHAT, &headers, b"");
        assert_eq!(response.status, status, "{coding}: {}", response.text());
        assert_eq!(response.header("connection"), Some("close"));
    }
}

#[test]
fn a_burst_from_one_client_does_not_delay_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = key_file(folder.path());
    let arguments = [
        "--running",
        "1",
        "--ctx-size",
        "4096",
        "--api-key-file",
        &keys,
    ];
    let server = Server::start(&arguments);
    let body = chat(
        "Once upon a time",
        json!({ "ignore_eos": true, "n": 16, "max_tokens": 3000 }),
    );
    let _burst = server.post_unread(CHAT, &body, &[("authorization", "Bearer secret")]);
    server.wait_until("running", || {
        server.sample("vllm:num_requests_running") == 1.0
    });
    let other = chat("Once upon a time", json!({ "max_tokens": 2 }));
    let other = server.post_with(CHAT, &other, &[("authorization", "Bearer other")]);
    assert_eq!(other.status, 200, "{}", other.text());
    let waiting = server.sample("vllm:num_requests_waiting");
    assert!(waiting > 8.0, "{waiting} of the burst still wait");
}
