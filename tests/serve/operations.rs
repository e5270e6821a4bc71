//! Operation of the server: settings, keys, health, logs, start and stop.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::client::{Response, Server, chat, write_request};

const CHAT: &str = "/v1/chat/completions";

/// SHA-256 of `secret` and of `other`.
const KEYS: &str = "\
# keys
2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b alice
d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa -
";

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn only_requests_with_a_key_are_answered() {
    let folder = folder();
    let server = Server::start(&["--api-key-file", &file(&folder, "keys", KEYS)]);
    let ask = |headers: &[(&str, &str)]| server.post_with(CHAT, &chat("Once", json!({})), headers);
    for headers in [
        &[][..],
        &[("authorization", "Bearer hunter2")],
        &[("authorization", "Basic secret")],
    ] {
        let refused = ask(headers);
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    let answered = ask(&[("authorization", "Bearer secret")]);
    assert_eq!(answered.status, 200);
    assert_eq!(
        server.record(answered.header("x-request-id").expect("an id"))["key"],
        "alice"
    );
    assert_eq!(ask(&[("authorization", "Bearer other")]).status, 200);
    assert_eq!(server.get("/v1/models").status, 401);
    for path in ["/health", "/livez", "/readyz", "/startupz"] {
        assert_eq!(server.get(path).status, 200, "{path} needs no key");
    }
    let log = format!("{:?}", server.whole_log());
    assert!(
        !log.contains("secret") && !log.contains("hunter2"),
        "keys are not logged"
    );
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let folder = folder();
    let arguments = [
        "--api-key-file",
        &file(&folder, "keys", KEYS),
        "--running",
        "1",
    ];
    let server = Server::start(
        &[
            &arguments[..],
            &["--ctx-size", "100000", "--queue-requests", "1"],
        ]
        .concat(),
    );
    let send = |path: &str, key: &str| {
        let mut stream = server.connect();
        let headers = [("authorization", key), ("content-type", "application/json")];
        let body = chat(&"x".repeat(1_000_000), json!({})).to_string();
        write_request(&mut stream, "POST", path, &headers, body.as_bytes())
            .expect("the server reads it all");
        Response::read(stream).finish().status
    };
    let endless = chat(
        "Once upon a time",
        json!({ "stream": true, "ignore_eos": true, "max_tokens": 90_000 }),
    );
    let open = || {
        let mut stream = server.connect();
        let headers = [
            ("authorization", "Bearer secret"),
            ("content-type", "application/json"),
        ];
        write_request(
            &mut stream,
            "POST",
            CHAT,
            &headers,
            endless.to_string().as_bytes(),
        )
        .expect("it is sent");
        Response::read(stream)
    };
    let mut running = open();
    running.read_chunk();
    let waiting = open();
    for _ in 0..12 {
        assert_eq!(send(CHAT, "Bearer hunter2"), 401);
        assert_eq!(send(CHAT, "Bearer secret"), 429);
        assert_eq!(send("/v1/nothing", "Bearer secret"), 404);
    }
    drop((running, waiting));
}

#[test]
fn keys_are_added_and_removed_while_the_server_runs() {
    let folder = folder();
    let (alice, other) = KEYS.split_at(KEYS.find("d9298a").expect("a second key"));
    let path = file(&folder, "keys", alice);
    let server = Server::start(&["--api-key-file", &path]);
    let status = |key: &str| {
        server
            .send(
                "GET",
                "/v1/models",
                &[("authorization", &format!("Bearer {key}"))],
                b"",
            )
            .status
    };
    assert_eq!((status("secret"), status("other")), (200, 401));
    let write = |text: &str| std::fs::write(&path, text).expect("a file");
    write(KEYS);
    server.wait_until("added", || status("other") == 200);
    assert_eq!(status("secret"), 200);
    write(other);
    server.wait_until("removed", || status("secret") == 401);
    assert_eq!(status("other"), 200);
    let is_logged = |text: &str| {
        server
            .log()
            .iter()
            .any(|line| line["error"].as_str().is_some_and(|e| e.contains(text)))
    };
    write("nonsense");
    server.wait_until("logged", || is_logged("line 1"));
    std::fs::remove_file(&path).expect("a file");
    server.wait_until("logged", || is_logged("cannot read it"));
    assert_eq!(
        (status("other"), status("secret")),
        (200, 401),
        "the keys that were read last stay valid"
    );
    write(alice);
    server.wait_until("read again", || status("secret") == 200);
}

#[test]
fn cache_isolation_separates_the_owners_of_keys() {
    let folder = folder();
    let server = Server::start(&[
        "--cache-salt",
        "key",
        "--api-key-file",
        &file(&folder, "keys", KEYS),
    ]);
    let long = "Once upon a time there was a little girl who had a red ball. ".repeat(6);
    let cached = |key: &str| {
        let answer = server.post_with(
            CHAT,
            &chat(&long, json!({})),
            &[("authorization", &format!("Bearer {key}"))],
        );
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .expect("a number")
    };
    assert_eq!((cached("secret"), cached("other")), (0, 0));
    assert!(cached("secret") > 0 && cached("other") > 0);
}

#[test]
fn only_pages_of_listed_sites_may_send_requests() {
    let server = Server::start(&["--cors-origin", "https://a.example,https://b.example:8443"]);
    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization, content-type",
            ),
        ];
        server.send("OPTIONS", CHAT, &headers, b"")
    };
    let allowed = preflight("https://b.example:8443");
    assert_eq!(allowed.status, 204);
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        Some("https://b.example:8443")
    );
    assert_eq!(
        allowed.header("access-control-allow-headers"),
        Some("authorization, content-type")
    );
    assert_eq!(
        preflight("https://evil.example").header("access-control-allow-origin"),
        None
    );
    let answer = server.post_with(
        CHAT,
        &chat("Once", json!({})),
        &[("origin", "https://a.example")],
    );
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(answer.header("vary"), Some("origin"));
}

#[test]
fn a_request_is_logged_with_its_id_and_trace() {
    let server = Server::start(&[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [
        ("x-request-id", "my-request-1"),
        ("traceparent", traceparent.as_str()),
    ];
    let response = server.post_with(CHAT, &chat("Once upon a time", json!({})), &headers);
    assert_eq!(response.header("x-request-id"), Some("my-request-1"));
    let usage = &response.json()["usage"];
    let record = server.record("my-request-1");
    assert_eq!(record["message"], "request");
    assert_eq!(record["trace_id"], trace);
    assert_eq!(
        (&record["route"], &record["status"], &record["outcome"]),
        (&json!(CHAT), &json!(200), &json!("answered"))
    );
    assert_eq!(
        (&record["prompt_tokens"], &record["generated_tokens"]),
        (&usage["prompt_tokens"], &usage["completion_tokens"])
    );
    assert_eq!(
        (&record["finish_reason"], &record["model"]),
        (&json!("length"), &json!("stories"))
    );
    let ms = |name: &str| {
        record[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} in {record}"))
    };
    assert!(
        ms("queue_ms") <= ms("first_token_ms") && ms("first_token_ms") <= ms("duration_ms"),
        "{record}"
    );
    let refused = server.post_with(
        CHAT,
        &json!({ "x": 1 }),
        &[("x-request-id", "my-request-2")],
    );
    assert_eq!(refused.status, 400);
    let record = server.record("my-request-2");
    assert_eq!(record["status"], 400);
    assert_eq!(
        (&record["error"], &record["param"]),
        (&json!("missing_required_parameter"), &json!("messages"))
    );
}

#[test]
fn prompts_and_answers_are_not_logged() {
    let server = Server::start(&["--log-level", "trace"]);
    let secret = "TOPSECRET ".repeat(1000);
    let word = &secret[..9];
    for (index, (body, status)) in [
        (chat(&secret[..200], json!({ "max_tokens": 2 })), 200),
        (json!({ "messages": &secret }), 400),
        (
            json!({ "messages": [{ "role": &secret, "content": &secret }] }),
            400,
        ),
        (chat("Once", json!({ "stop": [&secret] })), 400),
        (chat("Once", json!({ "temperature": &secret })), 400),
        (
            chat("Once", json!({ "response_format": { "type": &secret } })),
            400,
        ),
        (
            chat(
                "Once",
                json!({ "structured_outputs": { "regex": format!("{secret}(") } }),
            ),
            400,
        ),
        (
            chat(
                "Once",
                json!({ "tools": [{ "type": "function", "function": { "name": &secret } }] }),
            ),
            400,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("secret-{index}");
        let response = server.post_with(CHAT, &body, &[("x-request-id", &id)]);
        assert_eq!(response.status, status, "{}", response.text());
        assert!(
            response.text().len() < 2000,
            "{} bytes of an answer",
            response.text().len()
        );
        let record = server.record(&id).to_string();
        assert!(!record.contains(word), "{record}");
    }
    assert!(!format!("{:?}", server.log()).contains(word));
    let refused = server.post(CHAT, &json!({ "messages": &secret }));
    let message = refused.json()["error"]["message"].clone();
    assert!(
        message
            .as_str()
            .is_some_and(|message| message.contains("expected a list")),
        "{message}"
    );
}

#[cfg(unix)]
#[test]
fn a_draining_server_finishes_its_requests_and_refuses_new_ones() {
    let server = Server::start(&[]);
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": null });
    let mut stream = server.open(CHAT, &chat("Once upon a time", endless));
    assert_eq!(stream.response.status, 200);
    stream.read_chunk();
    server.signal("TERM");
    server.wait_until("draining", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/readyz").json()["status"], "draining");
    assert_eq!(
        (server.get("/livez").status, server.get("/startupz").status),
        (200, 200)
    );
    let refused = server.post(CHAT, &chat("Once", json!({})));
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (503, &json!("draining"))
    );
    assert_eq!(
        refused.header("retry-after"),
        None,
        "another server need not wait"
    );
    let events = stream.finish().events();
    assert_eq!(
        events.last().expect("chunks")["choices"][0]["finish_reason"],
        "length"
    );
    assert!(server.wait().success());
}

#[cfg(unix)]
#[test]
fn connections_stay_open_until_balancers_see_the_drain() {
    let server = Server::start(&[]);
    assert_eq!(
        server.get("/readyz").status,
        200,
        "asked for the second time"
    );
    let mut idle = server.connect();
    server.signal("TERM");
    server.wait_until("draining", || {
        server
            .log()
            .iter()
            .any(|line| line["message"].to_string().contains("draining"))
    });
    let body = chat("Once", json!({})).to_string();
    write_request(
        &mut idle,
        "POST",
        CHAT,
        &[("content-type", "application/json")],
        body.as_bytes(),
    )
    .expect("it is open");
    let refused = Response::read(idle).finish();
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (503, &json!("draining"))
    );
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(server.get("/readyz").status, 503);
    assert!(server.wait().success());
}

#[cfg(unix)]
#[test]
fn a_drain_under_load_breaks_no_answer() {
    let server = Server::start(&["--running", "4"]);
    let bodies: Vec<_> = (0..12)
        .map(|index| {
            let more = json!({ "stream": index % 2 == 0, "ignore_eos": true, "max_tokens": 400, "seed": index });
            chat("Once upon a time", more)
        })
        .collect();
    std::thread::scope(|scope| {
        let server = &server;
        let answers: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || server.post(CHAT, body)))
            .collect();
        let admitted = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:e2e_request_latency_seconds_count",
        ];
        let num_admitted = || admitted.map(|name| server.sample(name)).iter().sum::<f64>();
        server.wait_until("admitted", || num_admitted() == 12.0);
        server.signal("TERM");
        for (answer, body) in answers.into_iter().zip(&bodies) {
            let response = answer.join().expect("an answer");
            assert_eq!(response.status, 200, "{}", response.text());
            let last = match body["stream"] == true {
                true => response.events().pop().expect("chunks"),
                false => response.json(),
            };
            assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
        }
    });
    assert!(server.wait().success());
}

#[test]
fn a_stuck_engine_is_reported_until_it_continues() {
    // A step may take longer than that timeout.
    let server = Server::start(&["--stall-timeout", "0.0001", "--ctx-size", "100000"]);
    let endless = json!({ "ignore_eos": true, "max_tokens": 90_000, "stream": true });
    let answer = server.open(CHAT, &chat("Once upon a time", endless));
    server.wait_until("stuck", || {
        let response = server.get("/livez");
        response.status == 503 && response.json()["status"] == "stalled"
    });
    drop(answer);
    server.wait_until("alive", || server.get("/livez").status == 200);
    let is_logged = |text: &str| {
        server
            .log()
            .iter()
            .any(|line| line["message"].as_str().is_some_and(|m| m.contains(text)))
    };
    server.wait_until("logged", || is_logged("is stuck") && is_logged("goes on"));
}

#[cfg(unix)]
#[test]
fn a_second_signal_stops_at_once() {
    let server = Server::start(&["--ctx-size", "100000"]);
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": 90_000 });
    let mut stream = server.open(CHAT, &chat("Once upon a time", endless));
    stream.read_chunk();
    server.signal("TERM");
    server.wait_until("draining", || server.get("/readyz").status == 503);
    server.signal("INT");
    server.wait_until("logged the cause", || {
        server
            .log()
            .iter()
            .any(|line| line.to_string().contains("1 requests were answered"))
    });
    // The server cuts off an answer that is not complete in time, even if its client still reads.
    let log = server.log();
    assert!(
        !log.iter()
            .any(|line| line["message"].to_string().contains("did not take the end")),
        "{log:#?}"
    );
    assert!(
        log.iter().any(|line| line["outcome"] == "client gone"),
        "{log:#?}"
    );
    assert_eq!(server.wait().code(), Some(1));
}

#[cfg(unix)]
#[test]
fn an_answer_that_takes_too_long_to_drain_is_cut() {
    let server = Server::start(&["--ctx-size", "100000", "--drain-timeout", "0.2"]);
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": 90_000 });
    let mut stream = server.open(CHAT, &chat("Once upon a time", endless));
    stream.read_chunk();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(1));
}

#[test]
fn settings_come_from_the_command_line_before_the_environment_before_the_file() {
    let folder = folder();
    let file = file(
        &folder,
        "serve.toml",
        "model-name = [\"from-file\", \"second\"]\nlenient = true\nctx-size = 128\ntemp = 0.0\n",
    );
    let name = |server: &Server| server.get("/v1/models").json()["data"][0]["id"].clone();
    let server = Server::start(&["--config", &file]);
    assert_eq!(name(&server), "from-file");
    assert_eq!(
        server.get("/v1/models").json()["data"][1]["max_model_len"],
        128
    );
    assert_eq!(
        server
            .post(CHAT, &chat("Once", json!({ "frobnicate": 1 })))
            .status,
        200,
        "it is lenient"
    );
    let environment = [
        ("BITNET_SERVE_CONFIG", file.as_str()),
        ("BITNET_SERVE_MODEL_NAME", "from-variable"),
        ("BITNET_SERVE_LENIENT", "off"),
    ];
    let server = Server::start_with(&[], &environment);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    assert_eq!(name(&server), "from-variable");
    assert_eq!(
        server
            .post(CHAT, &chat("Once", json!({ "frobnicate": 1 })))
            .status,
        400
    );
    let server = Server::start_with(&["--model-name", "typed"], &environment);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    assert_eq!(name(&server), "typed");
}

/// Runs `bitnet serve --check-config`.
fn check(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command
        .args(["serve", "--check-config"])
        .args(arguments)
        .envs(environment.iter().copied());
    command.output().expect("the program runs")
}

#[test]
fn a_hybrid_model_without_layers_of_attention_can_be_checked() {
    let golden = "../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf";
    let mut model =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(golden)).expect("a model");
    // The key, the type u32, and the value: every fourth layer is one of attention.
    let key = b"qwen35.block_count\x04\0\0\0";
    let found = model.windows(key.len()).position(|window| window == key);
    model[found.expect("the key") + key.len()] = 3;
    let folder = folder();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, model).expect("a file");
    for memory in [&["--kv-memory", "16M"][..], &[]] {
        let path = path.to_str().expect("a path");
        let output = check(&[&["-m", path], memory].concat(), &[]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{message}");
    }
}

#[test]
fn settings_can_be_checked_without_serving() {
    let folder = folder();
    let path = file(
        &folder,
        "serve.toml",
        "port = 80\ncors-origin = [\"https://a.example\", \"https://b.example\"]\n",
    );
    let output = check(
        &["--config", &path, "--queue-requests", "7", "--temp", ".5"],
        &[("BITNET_SERVE_LENIENT", "1")],
    );
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        format!("port = 80 # {path}"),
        format!("cors-origin = [\"https://a.example\", \"https://b.example\"] # {path}"),
        "queue-requests = 7 # the command line".to_owned(),
        "lenient = true # BITNET_SERVE_LENIENT".to_owned(),
        "temp = \".5\" # the command line".to_owned(),
        "host = \"127.0.0.1\" # the defaults".to_owned(),
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line:?} is missing in\n{text}"
        );
    }
    // The output is a file with the same settings.
    let again = file(&folder, "again.toml", &text);
    let output = check(&["--config", &again], &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let without_origins = |text: &str| {
        text.lines()
            .map(|line| line.split(" #").next().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        without_origins(&String::from_utf8(output.stdout).expect("UTF-8")),
        without_origins(&text)
    );
}

#[test]
fn invalid_settings_are_named_with_their_source() {
    let folder = folder();
    let missing = Path::new("no").join("file").display().to_string();
    for (arguments, environment, exit_code, words) in [
        (vec!["--port", "99999"], vec![], 2, vec!["99999", "--port"]),
        (
            vec![],
            vec![("BITNET_SERVE_PORT", "http")],
            2,
            vec!["http", "--port", "BITNET_SERVE_PORT"],
        ),
        (
            vec![],
            vec![("BITNET_SERVE_LENIENT", "maybe")],
            2,
            vec!["lenient", "maybe"],
        ),
        (
            vec!["--config", &file(&folder, "a", "prot = 80")],
            vec![],
            2,
            vec!["\"prot\""],
        ),
        (
            vec!["--config", &file(&folder, "b", "port = {}")],
            vec![],
            2,
            vec!["port is a table"],
        ),
        (
            vec!["--config", &file(&folder, "c", "port 80")],
            vec![],
            2,
            vec!["TOML"],
        ),
        (
            vec!["--config", &file(&folder, "d", "drain-timeout = -1")],
            vec![],
            2,
            vec!["--drain-timeout", "expected seconds"],
        ),
        (
            vec!["--config", &missing],
            vec![],
            1,
            vec!["cannot read settings"],
        ),
        (
            vec!["--api-key-file", &missing],
            vec![],
            1,
            vec!["cannot read"],
        ),
        (
            vec!["--api-key-file", &file(&folder, "keys", "secret\n")],
            vec![],
            1,
            vec!["line 1", "64 hexadecimal digits"],
        ),
        (
            vec![],
            vec![("BITNET_SERVE_QUEUE_REQUEST", "5")],
            2,
            vec!["BITNET_SERVE_QUEUE_REQUEST"],
        ),
        (
            vec!["--temp", "1000"],
            vec![],
            2,
            vec!["temperature is 1000"],
        ),
        (
            vec!["--logit-bias", "9999999+1"],
            vec![],
            2,
            vec!["9999999", "the vocabulary ends at"],
        ),
        (
            vec!["--kv-memory", "64K"],
            vec![],
            1,
            vec!["--kv-memory holds"],
        ),
        (
            vec!["--chat-template", "nonsense"],
            vec![],
            2,
            vec!["nonsense", "llama3"],
        ),
        (
            vec!["--threads", "1,2"],
            vec![],
            2,
            vec!["one number of threads"],
        ),
        (
            vec!["--cache-salt", "key"],
            vec![],
            2,
            vec!["--cache-salt key", "--api-key-file"],
        ),
        (
            vec!["--cors-origin", "example.org"],
            vec![],
            2,
            vec!["example.org", "scheme://"],
        ),
        (
            vec!["--model", "no/such/model.gguf"],
            vec![],
            1,
            vec!["no/such/model.gguf"],
        ),
    ] {
        let output = check(&arguments, &environment);
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            output.status.code(),
            Some(exit_code),
            "{arguments:?} {environment:?}: {message}"
        );
        for word in words {
            assert!(
                message.contains(word),
                "{arguments:?} {environment:?}: no {word:?} in {message}"
            );
        }
    }
}

#[cfg(feature = "otlp")]
#[test]
fn an_unsupported_telemetry_protocol_is_refused() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    for (name, value, is_refused) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", true),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf", true),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", true),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc", false),
    ] {
        let output = check(&[], &[endpoint, (name, value)]);
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            output.status.code(),
            Some(if is_refused { 2 } else { 0 }),
            "{name}={value}: {message}"
        );
        assert!(
            !is_refused || message.contains(&format!("{name} is {value}")),
            "{message}"
        );
        assert!(
            check(&[], &[(name, value)]).status.success(),
            "nothing is sent"
        );
    }
    let both = [
        endpoint,
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
    ];
    assert!(
        !check(&[], &both).status.success(),
        "metrics would go by http/json"
    );
    assert!(
        check(
            &[],
            &[both.as_slice(), &[("OTEL_METRICS_EXPORTER", "none")]].concat()
        )
        .status
        .success()
    );
}

#[test]
fn a_server_that_cannot_start_reports_the_cause() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet"))
            .arg("serve")
            .args(arguments)
            .output()
            .expect("it runs");
        (
            output.status.code(),
            String::from_utf8(output.stderr).expect("UTF-8"),
        )
    };
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let (exit_code, message) = run(&["--port", &port]);
    assert_eq!(exit_code, Some(1));
    assert!(
        message.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{message}"
    );
    let (exit_code, message) = run(&["--port", "0", "--model", "no/model.gguf"]);
    assert_eq!(exit_code, Some(1));
    assert!(message.contains("no/model.gguf"), "{message}");
    let (exit_code, message) = run(&["--port", "0", "--kv-memory", "64K"]);
    assert_eq!(exit_code, Some(1));
    assert!(message.contains("--kv-memory holds"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_memory_limit_causes_an_error_and_no_crash() {
    let run = |limit_kib: u32, arguments: &[&str]| {
        let script = format!("ulimit -v {limit_kib}; exec \"$0\" serve --port 0 \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_bitnet")])
            .args(arguments);
        let output = command.output().expect("a shell");
        (
            output.status.code(),
            String::from_utf8(output.stderr).expect("UTF-8"),
        )
    };
    let (exit_code, message) = run(2 << 20, &["--kv-memory", "8G"]);
    assert_eq!(exit_code, Some(1), "{message}");
    assert!(message.contains("memory"), "{message}");
    let server = Server::start_under("ulimit -v 2097152", &["--kv-memory", "256M"]);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    assert_eq!(server.post(CHAT, &chat("Once", json!({}))).status, 200);
}

#[test]
fn the_page_connects_only_to_its_server() {
    let server = Server::start(&[]);
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/chat.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
    ] {
        let file = server.get(path);
        assert_eq!(
            (file.status, file.header("content-type")),
            (200, Some(content_type))
        );
        let policy = file.header("content-security-policy").expect("a policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"),
            "{policy}"
        );
        let text = file.text();
        assert!(!text.contains("http://") && !text.contains("https://"));
    }
    assert_eq!(server.get("/page/other.js").status, 404);
}

#[test]
fn the_document_of_the_api_is_served() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths");
    for path in [
        CHAT,
        "/v1/completions",
        "/v1/models",
        "/tokenize",
        "/readyz",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
}

#[test]
fn the_load_generator_measures_what_the_server_counts() {
    let server = Server::start(&[]);
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command
            .args([
                "bench-server",
                &format!("http://{}", server.address),
                "--json",
                "--warmup",
                "0",
            ])
            .args(arguments);
        let output = command.output().expect("the program runs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.success(),
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(),
            message,
        )
    };
    let (passed, report, message) = bench(&[
        "-c",
        "3",
        "-n",
        "6",
        "-p",
        "20",
        "--shared-words",
        "10",
        "--max-tokens",
        "9",
    ]);
    assert!(passed, "{message}");
    assert_eq!(
        (
            &report["answered"],
            &report["output_tokens"],
            &report["concurrency"]
        ),
        (&json!(6), &json!(54), &json!(3))
    );
    let ms = |figure: &str, share: &str| {
        report[figure][share]
            .as_f64()
            .unwrap_or_else(|| panic!("{report}"))
    };
    assert!(
        ms("first_token_ms", "p50") > 0.0 && ms("first_token_ms", "p50") <= ms("answer_ms", "p50")
    );
    assert!(ms("gap_ms", "p50") <= ms("gap_ms", "p99"));
    let (passed, report, message) = bench(&[
        "--rate",
        "50",
        "-n",
        "4",
        "--endpoint",
        "chat",
        "--max-tokens",
        "3",
    ]);
    assert!(passed, "{message}");
    assert_eq!(
        (&report["answered"], &report["rate"]),
        (&json!(4), &json!(50.0))
    );
    let (passed, report, message) = bench(&["-n", "2", "--max-tokens", "100000"]);
    assert!(
        !passed && message.contains("2 of 2 requests failed"),
        "{message}"
    );
    assert!(
        report["failed"]
            .to_string()
            .contains("maximum context length"),
        "{report}"
    );
}

#[test]
fn logs_in_json_are_objects_one_per_line() {
    let server = Server::start(&[]);
    server.get("/health");
    server.wait_until("logged", || {
        server.log().iter().any(|line| line["route"] == "/health")
    });
    for line in server.log() {
        assert!(
            line.is_object() && line["level"].is_string() && line["timestamp"].is_string(),
            "{line}"
        );
        assert!(
            line["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{line}"
        );
    }
    let ready: Vec<Value> = server
        .log()
        .into_iter()
        .filter(|line| line["message"] == "ready")
        .collect();
    assert_eq!(ready.len(), 1);
    assert_eq!(ready[0]["model"], "stories");
}

#[test]
fn foreign_host_names_are_refused() {
    let server = Server::start(&["--allowed-host", "gpu.lan"]);
    let status = |head: &str| {
        let mut stream = server.connect();
        let request = format!("GET /v1/models {head}connection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("it is sent");
        Response::read(stream).finish().status
    };
    for (head, expected) in [
        ("HTTP/1.1\r\nhost: localhost:8080\r\n", 200),
        ("HTTP/1.1\r\nhost: 127.0.0.1\r\n", 200),
        ("HTTP/1.1\r\nhost: gpu.lan:80\r\n", 200),
        ("HTTP/1.1\r\nhost: evil.example:8080\r\n", 403),
        ("HTTP/1.1\r\n", 400),
        ("HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n", 400),
        ("HTTP/1.0\r\n", 200),
    ] {
        assert_eq!(status(head), expected, "{head}");
    }
}

#[test]
fn a_server_with_keys_answers_under_every_name() {
    let folder = folder();
    let server = Server::start(&["--api-key-file", &file(&folder, "keys", KEYS)]);
    let headers = [("authorization", "Bearer secret"), ("host", "gpu.example")];
    let mut stream = server.connect();
    let head = "GET /v1/models HTTP/1.1\r\nconnection: close\r\n";
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    std::io::Write::write_all(&mut stream, format!("{head}{lines}\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(stream).finish().status, 200);
}

#[cfg(unix)]
#[test]
fn a_key_file_that_becomes_a_pipe_does_not_block_the_server() {
    let folder = folder();
    let (alice, other) = KEYS.split_at(KEYS.find("d9298a").expect("a second key"));
    let path = file(&folder, "keys", alice);
    let server = Server::start(&["--api-key-file", &path]);
    let status = |key: &str| {
        let key = format!("Bearer {key}");
        server
            .send("GET", "/v1/models", &[("authorization", &key)], b"")
            .status
    };
    std::fs::remove_file(&path).expect("a file");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .expect("mkfifo runs")
            .success()
    );
    server.wait_until("logged", || {
        let log = server.log();
        log.iter()
            .any(|line| line["error"] == "it is not a regular file")
    });
    assert_eq!(
        (status("secret"), status("other")),
        (200, 401),
        "the keys that were read last stay valid"
    );
    std::fs::remove_file(&path).expect("a pipe");
    std::fs::write(&path, other).expect("a file");
    server.wait_until("read again", || status("other") == 200);
    assert_eq!(status("secret"), 401);
}

#[cfg(unix)]
#[test]
fn sighup_drains_and_other_signals_have_no_effect() {
    let server = Server::start(&[]);
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": null });
    let mut stream = server.open(CHAT, &chat("Once upon a time", endless));
    stream.read_chunk();
    server.signal("USR1");
    server.signal("USR2");
    assert_eq!(server.get("/readyz").status, 200);
    server.signal("HUP");
    // A server that was started under `nohup`, as in some test runs, ignores SIGHUP.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.map(|mask| u64::from_str_radix(mask.trim(), 16).expect("a mask"));
    if ignored.is_some_and(|mask| mask & 1 == 1) {
        assert_eq!(server.get("/readyz").status, 200);
        server.signal("QUIT");
    }
    let events = stream.finish().events();
    let last = events.last().expect("chunks");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(server.wait().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_under_nohup_ignores_sighup() {
    let server = Server::start_under("trap '' HUP", &[]);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    server.signal("HUP");
    // The signals arrive in this order.
    server.signal("USR1");
    for _ in 0..20 {
        assert_eq!(server.get("/readyz").status, 200);
    }
    server.signal("TERM");
    assert!(server.wait().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_soft_limit_on_file_descriptors_is_raised() {
    let server = Server::start_under("ulimit -S -n 100", &["--connections", "200"]);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    let idle: Vec<_> = (0..150).map(|_| server.connect()).collect();
    server.wait_until("open", || server.sample("bitnet_connections") >= 150.0);
    assert_eq!(server.sample("bitnet_accept_failures_total"), 0.0);
    drop(idle);
}

#[cfg(target_os = "linux")]
#[test]
fn the_server_warns_at_start_about_few_file_descriptors() {
    let mut command = Command::new("sh");
    // A server that starts anyway ends with another exit code.
    let script = "ulimit -n 40; exec timeout 100 \"$0\" serve --port 0";
    let output = command
        .args(["-c", script, env!("CARGO_BIN_EXE_bitnet")])
        .output();
    let output = output.expect("a shell");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("may open 40 files"), "{message}");
    let server = Server::start_under("ulimit -n 100", &[]);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    let log = server.whole_log();
    let warns = |line: &Value| line["message"].to_string().contains("--connections is 36");
    assert!(log.iter().any(warns), "{log:#?}");
    // More clients than descriptors: the idle ones make room.
    let _idle: Vec<_> = (0..150).map(|_| server.connect()).collect();
    server.wait_until("room", || {
        server.post(CHAT, &chat("Once", json!({}))).status == 200
    });
}

#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_a_one_line_error() {
    for (limit_mib, command) in [
        (96, "serve --port 0"),
        (400, "serve --port 0"),
        (96, "run -n 1 x"),
    ] {
        let limit_kib = limit_mib << 10;
        // A server that starts anyway ends with another exit code.
        let script = format!("ulimit -v {limit_kib}; exec timeout 100 \"$0\" {command}");
        let mut shell = Command::new("sh");
        let output = shell
            .args(["-c", &script, env!("CARGO_BIN_EXE_bitnet")])
            .output();
        let output = output.expect("a shell");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{limit_mib} {command}: {message}"
        );
        assert!(
            message.contains("memory"),
            "{limit_mib} {command}: {message}"
        );
    }
}
