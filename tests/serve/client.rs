//! A small HTTP client that can also misbehave, and a server under test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Maximum time of any step in these tests, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A small model whose layers of linear attention keep a state for each sequence.
pub const HYBRID: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf"
);

/// How long the tests that overload a server run, from the variable BITNET_SOAK_SECONDS, which
/// `cargo run -p xtask -- ci --full` sets.
pub fn soak_seconds() -> Option<u64> {
    std::env::var("BITNET_SOAK_SECONDS").ok()?.parse().ok()
}

/// A `bitnet serve` process on a free port.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    /// Starts a server with the built-in model, and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let server = Self::start_with(arguments, &[]);
        server.wait_until("ready", || server.get("/readyz").status == 200);
        server
    }

    /// Starts a server with environment variables. Does not wait until it is ready.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command.stderr(Stdio::piped());
        Self::start_as(command, arguments, environment)
    }

    /// Starts a server from a shell that runs a command first. Does not wait until it is ready.
    #[cfg(target_os = "linux")]
    pub fn start_under(first: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!("{first}; exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_bitnet"),
        ]);
        command.stderr(Stdio::piped());
        Self::start_as(command, arguments, &[])
    }

    /// Starts a server that logs to `stderr`, and waits until it is ready; [`log`](Self::log) stays
    /// empty.
    pub fn start_logging_to(stderr: impl Into<Stdio>, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command.stderr(stderr);
        let server = Self::start_as(command, arguments, &[]);
        server.wait_until("ready", || server.get("/readyz").status == 200);
        server
    }

    fn start_as(mut command: Command, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = command
            .args(["serve", "--port", "0", "--log-format", "json"])
            .args(arguments)
            .env_remove("BITNET_SEED")
            .env_remove("BITNET_DETERMINISTIC")
            .env_remove("BITNET_API_KEY")
            // Defaults that the arguments may override.
            .env("BITNET_SERVE_THREADS", "1")
            .env("BITNET_SERVE_LOG_LEVEL", "debug")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = child.stderr.take() {
            let lines = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    lines.lock().expect("a log").push(entry);
                }
            });
        }
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .and_then(|address| address.parse().ok());
        let Some(address) = address else {
            std::thread::sleep(Duration::from_millis(200));
            panic!(
                "the server says {line:?} and {:?}",
                log.lock().expect("a log")
            );
        };
        Self {
            child,
            address,
            log,
        }
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(
                start.elapsed() < PATIENCE,
                "not {what} after {PATIENCE:?}; the log: {:#?}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.post_with(path, body, &[])
    }

    pub fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Response {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send("POST", path, &headers, body.to_string().as_bytes())
    }

    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut stream = self.connect();
        // A server may refuse the request and close before it has read all of it.
        let _ = write_request(&mut stream, method, path, headers, body);
        Response::read(stream).finish()
    }

    /// Sends a request and reads the answer's headers.
    pub fn open(&self, path: &str, body: &Value) -> Open {
        Response::read(self.post_unread(path, body, &[]))
    }

    /// Sends a request and leaves the answer unread.
    pub fn post_unread(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> TcpStream {
        let mut stream = self.connect();
        let headers = [&[("content-type", "application/json")], headers].concat();
        let body = body.to_string();
        write_request(&mut stream, "POST", path, &headers, body.as_bytes())
            .expect("the request is sent");
        stream
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// The answer to a request that must succeed.
    #[track_caller]
    pub fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body);
        assert_eq!(response.status, 200, "{body}: {}", response.text());
        response.json()
    }

    /// The status, code and field of a request that must be refused.
    #[track_caller]
    pub fn refusal(&self, path: &str, body: &Value) -> (u16, String, Option<String>) {
        let response = self.post(path, body);
        let error = &response.json()["error"];
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{error}"
        );
        assert!(error["type"].is_string(), "{error}");
        let code = error["code"].as_str().expect("a code").to_owned();
        (
            response.status,
            code,
            error["param"].as_str().map(str::to_owned),
        )
    }

    /// A sample of /metrics with only the model's label.
    #[track_caller]
    pub fn sample(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let of = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(['{', ' '])?
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        };
        text.lines()
            .find_map(of)
            .unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
    }

    /// The id of the process.
    #[cfg(unix)]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`, `INT`.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the server has not ended; the log: {:#?}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines of the log with the lines of all answered requests.
    #[track_caller]
    pub fn whole_log(&self) -> Vec<Value> {
        let last = self.get("/health");
        self.record(last.header("x-request-id").expect("an id"));
        self.log()
    }

    /// The lines of the log so far; they arrive some milliseconds late.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().expect("a log").clone()
    }

    /// Waits for the log line of the request with this id.
    #[track_caller]
    pub fn record(&self, request_id: &str) -> Value {
        let find = || {
            self.log()
                .into_iter()
                .find(|line| line["request_id"] == request_id)
        };
        self.wait_until("logged", || find().is_some());
        find().expect("a line")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn write_request(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(body)
}

/// An answer, whole.
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// Reads status and headers.
    #[track_caller]
    pub fn read(stream: TcpStream) -> Open {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("the server says {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Open {
            reader,
            response: Self {
                status,
                headers,
                body: Vec::new(),
            },
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The names and data of server-sent events that have names.
    #[track_caller]
    pub fn named_events(&self) -> Vec<(String, Value)> {
        assert_eq!(
            self.header("content-type"),
            Some("text/event-stream; charset=utf-8"),
            "{}",
            self.text()
        );
        let text = self.text();
        let events = named_events(&text);
        let num_events = text.matches("\n\n").count() - text.matches(": still here").count();
        assert_eq!(events.len(), num_events, "{text}");
        events
    }

    /// The data of server-sent events. The last must be `[DONE]`, which is left out.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(
            self.header("content-type"),
            Some("text/event-stream; charset=utf-8"),
            "{}",
            self.text()
        );
        let text = self.text();
        let mut data: Vec<&str> = text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter()
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect()
    }
}

/// The types of some events, in order; equal ones in a row count once.
pub fn types(events: &[Value]) -> Vec<&str> {
    let types = events
        .iter()
        .map(|event| event["type"].as_str().expect("a type"));
    let mut types: Vec<_> = types.collect();
    types.dedup();
    types
}

/// The named events of a text; the last one may be cut off.
fn named_events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).ok()?))
    };
    text.split("\n\n").filter_map(event).collect()
}

/// An answer whose body has not been read to its end.
pub struct Open {
    reader: BufReader<TcpStream>,
    pub response: Response,
}

impl Open {
    /// The named events so far.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        named_events(&self.response.text())
    }

    /// Reads some of the body: at least one byte, or nothing at its end. Chunked bodies only.
    pub fn read_chunk(&mut self) -> usize {
        let mut line = String::new();
        self.reader
            .read_line(&mut line)
            .expect("the length of a chunk");
        let length = usize::from_str_radix(line.trim(), 16)
            .unwrap_or_else(|_| panic!("a chunk begins with {line:?}"));
        let start = self.response.body.len();
        self.response.body.resize(start + length, 0);
        self.reader
            .read_exact(&mut self.response.body[start..])
            .expect("a chunk");
        let mut end = [0; 2];
        self.reader
            .read_exact(&mut end)
            .expect("the end of a chunk");
        length
    }

    /// Reads the rest.
    pub fn finish(mut self) -> Response {
        if self.response.header("transfer-encoding") == Some("chunked") {
            while self.read_chunk() > 0 {}
        } else {
            self.reader
                .read_to_end(&mut self.response.body)
                .expect("a body");
        }
        self.response
    }
}

/// A file of API keys in a folder: alice's is `secret`, bob's is `other`.
pub fn key_file(folder: &Path) -> String {
    let keys = folder.join("keys");
    let hashes = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b alice\n\
                  d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa bob\n";
    std::fs::write(&keys, hashes).expect("a file");
    keys.to_str().expect("a path").to_owned()
}

/// A chat request with one message.
pub fn chat(text: &str, more: Value) -> Value {
    with(
        json!({ "messages": [{ "role": "user", "content": text }], "seed": 7, "max_tokens": 24 }),
        more,
    )
}

/// A completion.
pub fn completion(prompt: impl Into<Value>, more: Value) -> Value {
    with(
        json!({ "prompt": prompt.into(), "seed": 7, "max_tokens": 24 }),
        more,
    )
}

/// An object with the fields of another added; null removes a field.
pub fn with(mut object: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut object, more) else {
        panic!("two objects")
    };
    for (name, value) in more {
        match value {
            Value::Null => drop(fields.remove(&name)),
            value => drop(fields.insert(name, value)),
        }
    }
    object
}
