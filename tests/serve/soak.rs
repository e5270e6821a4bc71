//! Mixed faults of clients, files and the log's reader for a long time, while other clients must
//! get the same whole answers as before.
//!
//! Runs for seconds as a test. The variable BITNET_SOAK_SECONDS makes it longer, and
//! BITNET_SOAK_PAUSE_MS makes each client slower, to spare the machine for hours.

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Open, Response, Server, completion, soak_seconds, with, write_request};

const COMPLETIONS: &str = "/v1/completions";
const RUNNING: usize = 4;
const QUEUE: usize = 8;
/// Maximum growth of resident memory from one third of the time to the end: the cache, whose memory
/// is taken as it is first used, and as much for all else.
const GROWTH_MIB_MAX: f64 = 32.0;
/// Threads that the server may have more at the end than at the start: those for text, which end
/// after some idle seconds.
const THREADS_MORE_MAX: usize = 16;
/// Files that the server may have more open at the end than at the start: pipes of helpers.
const FILES_MORE_MAX: usize = 8;
/// SHA-256 of `secret` and of `other`.
const ALICE: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b alice\n";
const BOB: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa bob\n";
/// The key of the clients that must always be answered: Alice's.
const KEY: (&str, &str) = ("authorization", "Bearer secret");

#[test]
fn mixed_faults_change_no_answer_of_a_bitnet_model() {
    soak("models/stories/stories.gguf", false);
}

#[test]
fn mixed_faults_change_no_answer_of_a_bitnet_model_with_keys() {
    soak("models/stories/stories.gguf", true);
}

#[test]
fn mixed_faults_change_no_answer_of_a_hybrid_model() {
    soak(HYBRID, false);
}

#[test]
fn mixed_faults_change_no_answer_of_a_hybrid_model_with_keys() {
    soak(HYBRID, true);
}

const HYBRID: &str = "tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf";

fn pause_ms() -> Option<u64> {
    std::env::var("BITNET_SOAK_PAUSE_MS").ok()?.parse().ok()
}

/// A server under faults.
struct Soak {
    server: Server,
    folder: tempfile::TempDir,
    /// The bytes of the model.
    model: Vec<u8>,
    start: Instant,
    time: Duration,
    /// Pause of each client between two requests.
    pause: Duration,
    /// Requests with the texts that answer them.
    expected: Vec<(Value, String)>,
    num_whole: AtomicUsize,
    num_refused: AtomicUsize,
    num_faults: AtomicUsize,
    samples: Mutex<Vec<Sample>>,
}

/// The server's process at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: u64,
    resident_mib: f64,
    files: usize,
    threads: usize,
    lost_lines: f64,
}

/// Ends the server of a failed test, so that the reader of its log ends.
struct KillIfPanicking<'a>(&'a Server);

impl Drop for KillIfPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.signal("KILL");
        }
    }
}

/// A client that repeats one thing; it gets the number of its round.
type Client = fn(&Soak, usize);

/// The clients and the number of each.
const CLIENTS: [(Client, usize); 12] = [
    (whole_answer, 2),
    (streamed_answer, 2),
    (small_form, 1),
    (hang_up, 2),
    (slow_reader, 2),
    (half_request, 2),
    (idle_connections, 1),
    (large_form, 1),
    (form_without_client, 1),
    (invalid_request, 1),
    (probes, 1),
    (burst, 1),
];

fn soak(model: &str, has_keys: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().expect("a folder");
    let model = std::fs::read(root.join(model)).expect("a model");
    std::fs::write(folder.path().join("model.gguf"), &model).expect("a copy");
    std::fs::write(folder.path().join("keys"), ALICE).expect("a file");
    let (log, to_log) = std::io::pipe().expect("a pipe");
    let server = start(folder.path(), to_log, has_keys);
    let mut soak = Soak {
        server,
        folder,
        model,
        start: Instant::now(),
        time: Duration::from_secs(soak_seconds().unwrap_or(2)),
        pause: Duration::from_millis(pause_ms().unwrap_or(50)),
        expected: Vec::new(),
        num_whole: AtomicUsize::new(0),
        num_refused: AtomicUsize::new(0),
        num_faults: AtomicUsize::new(0),
        samples: Mutex::default(),
    };
    soak.expected = expected(&soak.server);
    small_form(&soak, 0);
    let before = soak.sample();
    std::thread::scope(|scope| {
        let _kill = KillIfPanicking(&soak.server);
        let lines = scope.spawn(|| read_log(&soak, log));
        run(&soak, scope, has_keys);
        check_rest(&soak, before);
        soak.server.signal("TERM");
        let num_lines = lines.join().expect("no panic");
        println!("{num_lines} lines of the log were read");
    });
    soak.report();
    assert!(soak.server.wait().success());
}

fn start(folder: &Path, log: std::io::PipeWriter, has_keys: bool) -> Server {
    let path = |name: &str| folder.join(name).to_str().expect("a path").to_owned();
    let (model, keys) = (path("model.gguf"), path("keys"));
    let (running, queue) = (RUNNING.to_string(), QUEUE.to_string());
    let mut arguments = vec![
        "-m",
        &model,
        "--running",
        &running,
        "--queue-requests",
        &queue,
    ];
    arguments.extend([
        "--ctx-size",
        "512",
        "--kv-memory",
        "16M",
        "--connections",
        "96",
    ]);
    arguments.extend(["--header-timeout", "15", "--body-timeout", "15"]);
    arguments.extend(["--write-timeout", "15", "--form-memory", "1M"]);
    if has_keys {
        arguments.extend(["--api-key-file", &keys]);
    }
    Server::start_logging_to(log, &arguments)
}

/// Asks each request once, with nothing else to do for the server.
fn expected(server: &Server) -> Vec<(Value, String)> {
    let prompts = ["Once upon a time", "The dog", "A little girl", "a"];
    let requests = prompts.map(|prompt| completion(prompt, json!({ "ignore_eos": true })));
    let answer = |request: Value| {
        let response = server.post_with(COMPLETIONS, &request, &[KEY]);
        assert_eq!(response.status, 200, "{}", response.text());
        let text = response.json()["choices"][0]["text"]
            .as_str()
            .map(str::to_owned);
        (request, text.expect("a text"))
    };
    requests.into_iter().map(answer).collect()
}

/// Runs all clients until the time is over.
fn run<'scope>(soak: &'scope Soak, scope: &'scope Scope<'scope, '_>, has_keys: bool) {
    let repeat = move |client: Client| {
        let rounds = move || {
            for round in (0..).take_while(|_| !soak.is_over()) {
                client(soak, round);
                sleep(soak.pause);
            }
        };
        scope.spawn(rounds)
    };
    let mut threads = Vec::new();
    for (client, count) in CLIENTS {
        threads.extend((0..count).map(|_| repeat(client)));
    }
    threads.push(repeat(replaced_model));
    if has_keys {
        threads.push(repeat(changed_keys));
    }
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
    assert!(results.iter().all(Result::is_ok), "a client failed");
}

impl Soak {
    fn is_over(&self) -> bool {
        self.start.elapsed() >= self.time
    }

    fn post(&self, body: &Value) -> Response {
        self.server.post_with(COMPLETIONS, body, &[KEY])
    }

    /// Sends a request, or its beginning, without waiting for the answer.
    fn send(&self, body: &[u8], length: usize) -> std::net::TcpStream {
        let mut stream = self.server.connect();
        let length = length.to_string();
        let headers = [
            ("content-type", "application/json"),
            ("content-length", &*length),
            KEY,
        ];
        // The server may refuse the request before it is whole.
        let _ = write_request(&mut stream, "POST", COMPLETIONS, &headers, b"");
        let _ = stream.write_all(body);
        stream
    }

    fn request(&self, round: usize) -> &(Value, String) {
        &self.expected[round % self.expected.len()]
    }

    /// Counts an answer, which must be whole and as expected, or a refusal, which must be allowed.
    #[track_caller]
    fn check(&self, response: &Response, expected: &str) {
        if self.is_refused(response) {
            return;
        }
        let is_stream = response.header("transfer-encoding") == Some("chunked");
        let (text, last) = if is_stream {
            let events = response.events();
            let mut choices = events.iter().map(|event| &event["choices"][0]);
            let text = choices
                .clone()
                .filter_map(|choice| choice["text"].as_str())
                .collect();
            (text, choices.next_back().cloned().unwrap_or_default())
        } else {
            let choice = response.json()["choices"][0].clone();
            (
                choice["text"].as_str().unwrap_or_default().to_owned(),
                choice,
            )
        };
        assert_eq!(
            (&*text, &last["finish_reason"]),
            (expected, &json!("length")),
            "{last}"
        );
        self.num_whole.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a request was refused because the server is full; fails for other refusals.
    #[track_caller]
    fn is_refused(&self, response: &Response) -> bool {
        match response.status {
            200 => return false,
            429 => assert!(response.header("retry-after").is_some()),
            503 => assert_eq!(response.json()["error"]["code"], "too_many_connections"),
            status => panic!("{status}: {}", response.text()),
        }
        self.num_refused.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn count_fault(&self) {
        self.num_faults.fetch_add(1, Ordering::Relaxed);
    }

    fn sample(&self) -> Sample {
        let process = Path::new("/proc").join(self.server.id().to_string());
        let count = |folder: &str| {
            std::fs::read_dir(process.join(folder))
                .expect("a list")
                .count()
        };
        let resident = self.server.sample("process_resident_memory_bytes");
        Sample {
            seconds: self.start.elapsed().as_secs(),
            resident_mib: resident / f64::from(1 << 20),
            files: count("fd"),
            threads: count("task"),
            lost_lines: self.server.sample("bitnet_log_lines_lost_total"),
        }
    }

    fn report(&self) {
        let [whole, refused, faults] = [&self.num_whole, &self.num_refused, &self.num_faults]
            .map(|count| count.load(Ordering::Relaxed));
        println!(
            "{whole} whole answers, {refused} refusals, {faults} faults in {:?}",
            self.time
        );
        assert!(whole > 0 && faults > 0);
    }
}

fn whole_answer(soak: &Soak, round: usize) {
    let (request, text) = soak.request(round);
    soak.check(&soak.post(request), text);
}

fn streamed_answer(soak: &Soak, round: usize) {
    let (request, text) = soak.request(round);
    soak.check(
        &soak.post(&with(request.clone(), json!({ "stream": true }))),
        text,
    );
}

fn small_form(soak: &Soak, _round: usize) {
    let form = json!({ "structured_outputs": { "choice": ["yes", "no"] } });
    let response = soak.post(&completion("Once", form));
    if !soak.is_refused(&response) {
        let text = response.json()["choices"][0]["text"].clone();
        assert!(text == "yes" || text == "no", "{text}");
    }
}

/// Hangs up while it waits or reads.
fn hang_up(soak: &Soak, round: usize) {
    let more = json!({ "stream": round.is_multiple_of(2), "max_tokens": 300, "n": 1 + round % 3 });
    let body = with(soak.request(round).0.clone(), more).to_string();
    let stream = soak.send(body.as_bytes(), body.len());
    sleep(Duration::from_millis((round * 37 % 200) as u64));
    drop(stream);
    soak.count_fault();
}

/// Reads a stream slowly, to its end or not.
fn slow_reader(soak: &Soak, round: usize) {
    let (request, text) = soak.request(round);
    let body = with(request.clone(), json!({ "stream": true, "logprobs": 5 })).to_string();
    let stream = soak.send(body.as_bytes(), body.len());
    sleep(soak.pause);
    let mut answer: Open = Response::read(stream);
    if answer.response.status == 200 {
        for _ in 0..round % 20 {
            if answer.read_chunk() == 0 {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
    soak.count_fault();
    if round.is_multiple_of(2) {
        soak.check(&answer.finish(), text);
    }
}

/// Sends a part of a request's headers or body, and waits for a while.
fn half_request(soak: &Soak, round: usize) {
    let body = soak.request(round).0.to_string();
    let stream = match round % 3 {
        0 => {
            let mut stream = soak.server.connect();
            let _ = stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n");
            stream
        }
        1 => soak.send(b"", body.len()),
        _ => soak.send(&body.as_bytes()[..body.len() / 2], body.len()),
    };
    sleep(soak.pause * (1 + round as u32 % 4));
    if round.is_multiple_of(16) && soak.time > Duration::from_secs(60) {
        // Until the server gives up.
        let _ = BufReader::new(stream).read_line(&mut String::new());
    }
    soak.count_fault();
}

fn idle_connections(soak: &Soak, _round: usize) {
    let idle: Vec<_> = (0..48).map(|_| soak.server.connect()).collect();
    sleep(soak.pause * 4);
    drop(idle);
    soak.count_fault();
}

/// A schema that needs more memory than a helper has; each round has another one.
fn schema(round: usize, num_fields: usize) -> Value {
    let field = |index| (format!("field{round}_{index}"), json!({ "type": "string" }));
    let fields: serde_json::Map<_, _> = (0..num_fields).map(field).collect();
    let schema = json!({ "type": "object", "properties": fields });
    completion("Once", json!({ "structured_outputs": { "json": schema } }))
}

fn large_form(soak: &Soak, round: usize) {
    let response = soak.post(&schema(round, 300));
    if response.status == 400 {
        let message = response.json()["error"]["message"].to_string();
        assert!(message.contains("or 1024 KiB of memory"), "{message}");
        soak.count_fault();
    } else {
        assert!(soak.is_refused(&response), "it needs more than 1 MiB");
    }
}

/// Hangs up while its form is compiled.
fn form_without_client(soak: &Soak, round: usize) {
    let body = schema(usize::MAX - round, 30 + round % 200).to_string();
    let stream = soak.send(body.as_bytes(), body.len());
    sleep(Duration::from_millis((round * 11 % 60) as u64));
    drop(stream);
    soak.count_fault();
}

fn invalid_request(soak: &Soak, round: usize) {
    let bodies = [
        r#"{"prompt": "#,
        r"[]",
        r#"{"prompt": 1e999}"#,
        r#"{"prompt": "x", "max_tokens": -1}"#,
        r#"{"prompt": [4000000000]}"#,
        r#"{"prompt": "x", "temperature": "hot"}"#,
        r#"{"prompt": "x", "unknown": true}"#,
        r#"{"prompt": "x", "structured_outputs": {"regex": "("}}"#,
    ];
    let body = bodies[round % bodies.len()];
    let headers = [("content-type", "application/json"), KEY];
    let response = soak
        .server
        .send("POST", COMPLETIONS, &headers, body.as_bytes());
    if response.status == 400 {
        soak.count_fault();
    } else {
        assert!(soak.is_refused(&response), "{body}");
    }
}

/// Probes are answered at any time; every tenth one notes the state of the process.
fn probes(soak: &Soak, round: usize) {
    for probe in ["/livez", "/readyz", "/health"] {
        let response = soak.server.get(probe);
        assert_eq!(response.status, 200, "{}", response.text());
    }
    if round.is_multiple_of(10) {
        soak.samples.lock().expect("samples").push(soak.sample());
    }
}

/// Three times as many clients at once as run and wait.
fn burst(soak: &Soak, round: usize) {
    std::thread::scope(|scope| {
        for client in 0..3 * (RUNNING + QUEUE) {
            scope.spawn(move || whole_answer(soak, round + client));
        }
    });
    soak.count_fault();
    let next = soak.start + soak.pause * 20 * (round as u32 + 1);
    sleep(
        next.saturating_duration_since(Instant::now())
            .min(soak.time),
    );
}

/// Renames another file over the model's: a copy, or one that is no model.
fn replaced_model(soak: &Soak, round: usize) {
    let next = soak.folder.path().join("next.gguf");
    let bytes = if round.is_multiple_of(2) {
        &*soak.model
    } else {
        b"no model"
    };
    std::fs::write(&next, bytes).expect("a file");
    std::fs::rename(&next, soak.folder.path().join("model.gguf")).expect("a new name");
    soak.count_fault();
    sleep(soak.pause * 10);
}

/// Adds and removes Bob's key; in between the file is empty, invalid or away.
fn changed_keys(soak: &Soak, round: usize) {
    let keys = soak.folder.path().join("keys");
    match round % 5 {
        0 => std::fs::write(&keys, [ALICE, BOB].concat()),
        1 => std::fs::write(&keys, "nonsense"),
        2 => std::fs::write(&keys, ALICE),
        3 => std::fs::write(&keys, ""),
        _ => std::fs::remove_file(&keys),
    }
    .expect("a file");
    soak.count_fault();
    let bob = ("authorization", "Bearer other");
    let (request, text) = soak.request(round);
    let response = soak.server.post_with(COMPLETIONS, request, &[bob]);
    if response.status != 401 {
        soak.check(&response, text);
    }
    sleep(soak.pause * 3);
}

/// Reads the log, but sleeps from one quarter of the time to one half. Returns the number of lines,
/// all of which must be whole.
fn read_log(soak: &Soak, log: PipeReader) -> usize {
    let mut num_lines = 0;
    let mut has_slept = false;
    for line in BufReader::new(log).lines() {
        let line = line.expect("a line");
        let entry: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(!entry["message"].to_string().contains("panicked"), "{line}");
        num_lines += 1;
        if !has_slept && soak.start.elapsed() > soak.time / 4 {
            has_slept = true;
            sleep(soak.time / 4);
            soak.count_fault();
        }
    }
    num_lines
}

/// Checks that nothing of the clients is left in the server.
fn check_rest(soak: &Soak, before: Sample) {
    let zeros = [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "bitnet_inflight_body_bytes",
        "bitnet_text_running",
        "bitnet_forms_compiling",
        "bitnet_forms_waiting",
        "bitnet_engine_panics_total",
        "bitnet_model_file_changed",
        "bitnet_accept_failures_total",
    ];
    for zero in zeros {
        soak.server
            .wait_until(zero, || soak.server.sample(zero) == 0.0);
    }
    let connections = || soak.server.sample("bitnet_connections");
    soak.server.wait_until("alone", || connections() == 1.0);
    let after = soak.sample();
    let samples = soak.samples.lock().expect("samples");
    let step = samples.len().div_ceil(40).max(1);
    for sample in [before]
        .iter()
        .chain(samples.iter().step_by(step))
        .chain([&after])
    {
        println!("{sample:?}");
    }
    let is_short = soak.time < Duration::from_secs(60);
    assert!(
        !is_short || after.lost_lines == 0.0,
        "the queue of the log has room for all"
    );
    assert!(
        after.threads <= before.threads + THREADS_MORE_MAX,
        "{before:?} {after:?}"
    );
    assert!(
        after.files <= before.files + FILES_MORE_MAX,
        "{before:?} {after:?}"
    );
    let third = samples
        .iter()
        .find(|sample| sample.seconds >= soak.time.as_secs() / 3);
    let third = third.expect("a sample").resident_mib;
    assert!(
        after.resident_mib < third + GROWTH_MIB_MAX,
        "{third} MiB resident, then {after:?}"
    );
}
