//! Runs `bitnet pull`, `list` and `rm` against a server in this process, and uses a model's name in
//! place of a path.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
/// The repository of a short name, with the built-in model in place of the real one.
const NAME: &str = "microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf";

fn model() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories/stories.gguf");
    std::fs::read(path).expect("the built-in model")
}

/// The start offsets of the downloads that a server saw.
type Starts = Arc<Mutex<Vec<usize>>>;

/// Starts a Hub with one file, which it sends in pieces with pauses. Returns its address and the
/// start offsets of downloads.
fn serve(pause: Duration) -> (String, Starts) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let starts = Starts::default();
    let (bytes, log) = (Arc::new(model()), Arc::clone(&starts));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (bytes, log) = (Arc::clone(&bytes), Arc::clone(&log));
            std::thread::spawn(move || answer(&stream, &bytes, &log, pause));
        }
    });
    (endpoint, starts)
}

/// Answers one request; a client that is killed hangs up in the middle.
fn answer(
    mut stream: &TcpStream,
    bytes: &[u8],
    log: &Mutex<Vec<usize>>,
    pause: Duration,
) -> Option<()> {
    let lines = BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(|line| line.to_lowercase()).collect();
    let first = lines.first()?;
    if first.contains("/api/models/") {
        let body =
            json!({"sha": COMMIT, "siblings": [{"rfilename": "ggml-model-i2_s.gguf"}]}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        return stream.write_all((head + &body).as_bytes()).ok();
    }
    let range = lines.iter().find_map(|line| {
        line.strip_prefix("range: bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    let start = range.unwrap_or(0);
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let status = if start > 0 {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    let total = bytes.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{total}\r\n\
         x-linked-etag: \"{hash}\"\r\nx-linked-size: {total}\r\n\r\n",
        total - start,
        total - 1
    );
    stream.write_all(head.as_bytes()).ok()?;
    if first.starts_with("head") {
        return Some(());
    }
    log.lock().ok()?.push(start);
    for piece in bytes[start..].chunks(64 << 10) {
        stream.write_all(piece).ok()?;
        std::thread::sleep(pause);
    }
    Some(())
}

/// A home folder for downloads, and the program that uses it.
struct Home {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Home {
    fn new(endpoint: String) -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            endpoint,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_HOME", self.folder.path())
            .env("HF_ENDPOINT", &self.endpoint);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let result = self.run(arguments);
        assert!(
            result.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&result.stderr)
        );
        serde_json::from_slice(&result.stdout).expect("one JSON object")
    }

    fn failure(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let result = self.run(arguments);
        assert!(!result.status.success(), "{arguments:?} must fail");
        (
            result.status.code(),
            String::from_utf8(result.stderr).expect("UTF-8"),
        )
    }

    fn repo(&self) -> PathBuf {
        self.folder
            .path()
            .join("hub/models--microsoft--bitnet-b1.58-2B-4T-gguf")
    }
}

/// A size as the program says it.
fn said_size(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

#[test]
fn a_short_name_is_pulled_run_listed_and_removed() {
    let (endpoint, starts) = serve(Duration::ZERO);
    let home = Home::new(endpoint);
    let story = [
        "run",
        "-m",
        "2b4t",
        "Once upon a time",
        "-n",
        "8",
        "--temp",
        "0",
        "--json",
    ];
    let (code, message) = home.failure(&story);
    assert!(
        code == Some(1) && message.contains("bitnet pull microsoft/bitnet-b1.58-2B-4T-gguf"),
        "{message}"
    );

    let result = home.run(&["pull", "2b4t", "--json"]);
    let pulled: Value = serde_json::from_slice(&result.stdout).expect("JSON");
    assert_eq!(pulled["name"], NAME);
    let told = String::from_utf8(result.stderr).expect("UTF-8");
    let size = said_size(model().len());
    assert!(
        told.contains(&format!("downloading ggml-model-i2_s.gguf ({size})")),
        "{told}"
    );
    let path = PathBuf::from(pulled["path"].as_str().expect("a path"));
    assert!(path.starts_with(home.repo()) && std::fs::read(&path).expect("the file") == model());

    let told = home.json(&story);
    assert_eq!(told["tokens"].as_array().map(Vec::len), Some(8));
    assert_eq!(
        home.json(&["inspect", NAME, "--json"])["model"]["layers"],
        6
    );
    let out = home.folder.path().join("out.gguf").display().to_string();
    home.json(&["convert", "2b4t", "--type", "tl2", "-o", &out, "--json"]);
    assert_eq!(
        home.json(&["tokenize", "-m", "2b4t", "Once", "--json"]),
        home.json(&["tokenize", "-m", &out, "Once", "--json"])
    );

    let listed = home.json(&["list", "--json"])["models"].clone();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["short_name"]),
        (&json!(NAME), &json!("2b4t"))
    );
    assert_eq!(
        (&listed[0]["bytes"], &listed[0]["complete"]),
        (&json!(model().len()), &json!(true))
    );
    let lines = String::from_utf8(home.run(&["list"]).stdout).expect("UTF-8");
    assert!(lines.contains("2b4t (microsoft/"), "{lines}");

    home.json(&["pull", "2b4t", "--json"]);
    assert_eq!(
        *starts.lock().expect("the log"),
        [0],
        "complete files are not downloaded again"
    );
    let offline = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .expect("the program runs")
    };
    let result = offline(&["pull", "2b4t", "https://huggingface.co/microsoft/other"]);
    assert!(
        String::from_utf8_lossy(&result.stderr)
            .contains("microsoft/other cannot be downloaded: offline"),
        "{result:?}"
    );
    let result = offline(&["pull", "2b4t", "--json"]);
    assert!(
        result.status.success(),
        "a cached model needs no network: {result:?}"
    );
    let place: Value = serde_json::from_slice(&result.stdout).expect("JSON");
    assert_eq!(place, home.json(&["pull", "2b4t", "--json"]));
    let mut offline = home.command(&story);
    assert!(
        offline
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .expect("the program runs")
            .status
            .success()
    );

    home.json(&["rm", "2b4t", "--json"]);
    assert!(!home.repo().exists());
    assert!(
        String::from_utf8(home.run(&["list"]).stdout)
            .expect("UTF-8")
            .starts_with("no models in")
    );
    assert_eq!(home.failure(&["rm", "2b4t"]).0, Some(1));
    assert_eq!(home.failure(&["pull", "../../etc"]).0, Some(2));
    let (code, message) = home.failure(&["pull", "no-short-name"]);
    assert!(code == Some(2) && message.contains("2b4t"), "{message}");
}

/// Runs only on systems that can send signals.
#[cfg(unix)]
#[test]
fn a_download_can_be_killed_at_any_moment() {
    let (endpoint, starts) = serve(Duration::from_millis(4));
    let home = Home::new(endpoint);
    let begin = Instant::now();
    home.json(&["pull", "2b4t", "--json"]);
    let whole = begin.elapsed();
    let hash: String = Sha256::digest(model())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let blob = home.repo().join("blobs").join(&hash);
    let pointer = home
        .repo()
        .join(format!("snapshots/{COMMIT}/ggml-model-i2_s.gguf"));
    let mut unfinished = 0;
    for signal in ["-KILL", "-INT"] {
        std::fs::remove_dir_all(home.repo()).expect("it was there");
        for moment in 0..20 {
            let mut child = home
                .command(&["pull", "2b4t"])
                .spawn()
                .expect("the program starts");
            std::thread::sleep(whole * moment / 20);
            // The process may have ended already.
            let _ = Command::new("kill")
                .args([signal, &child.id().to_string()])
                .stderr(Stdio::null())
                .status();
            let code = child.wait().expect("the program ends").code();
            for name in [&blob, &pointer] {
                assert!(
                    !name.exists() || std::fs::read(name).expect("a file") == model(),
                    "{signal} at {moment}/20"
                );
            }
            if pointer.exists() {
                // Each run continues the last download, which would soon be complete: restart from
                // nothing.
                std::fs::remove_dir_all(home.repo()).expect("it was there");
            } else {
                unfinished += 1;
                assert!(
                    matches!((signal, code), ("-KILL", None) | ("-INT", Some(130) | None)),
                    "{signal}: {code:?}"
                );
            }
        }
        home.json(&["pull", "2b4t", "--json"]);
        assert!(
            std::fs::read(&pointer).expect("the file") == model(),
            "after {signal}"
        );
        assert!(!blob.with_extension("incomplete").exists());
    }
    let resumed = starts
        .lock()
        .expect("the log")
        .iter()
        .filter(|start| **start > 0)
        .count();
    assert!(
        unfinished >= 10 && resumed >= 5,
        "{unfinished} of 40 were interrupted, {resumed} downloads went on"
    );
}
