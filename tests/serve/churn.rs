//! State that comes and goes: responses, files and batches are stored, read and deleted, and models
//! are loaded and unloaded, while memory and the files of the state stay as large as they are.
//!
//! Runs for seconds as a test. The variable BITNET_SOAK_SECONDS makes it longer. In two minutes a
//! server has as many requests as in a day with one every few seconds.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::batches::{ended, id, upload};
use crate::client::{Server, completion, soak_seconds, with};

const RESPONSES: &str = "/v1/responses";
const COMPLETIONS: &str = "/v1/completions";
/// Responses that each client of responses keeps.
const KEPT: usize = 50;
/// Maximum growth of resident memory from the second third of the time to the last. The server
/// remembers batches that have ended, a kilobyte each.
const MEMORY_GROWTH_MIB_MAX: f64 = 8.0;
/// Maximum growth of the folder for state from the second third of the time to the last: some
/// batches, and pages that the databases have not reused yet.
const STATE_GROWTH_MIB_MAX: f64 = 4.0;

/// A server whose state comes and goes.
struct Churn {
    server: Server,
    state: PathBuf,
    start: Instant,
    time: Duration,
    num_requests: AtomicUsize,
}

/// Sizes at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: f64,
    resident_mib: f64,
    state_mib: f64,
}

#[test]
fn memory_and_state_stay_flat_while_responses_batches_and_models_come_and_go() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    std::fs::create_dir(&models).expect("a folder");
    for (name, model) in [
        ("stories.gguf", "models/stories/stories.gguf"),
        (
            "tiny.gguf",
            "tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf",
        ),
    ] {
        std::fs::copy(root.join(model), models.join(name)).expect("a copy");
    }
    let state = folder.path().join("state");
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    let folders = ["-m", &path(&models), "--state-dir", &path(&state)];
    let small = [
        "--ctx-size",
        "256",
        "--kv-memory",
        "8M",
        "--state-memory",
        "8M",
    ];
    let others = ["--keep-alive", "0", "--chat-template", "chatml"];
    let churn = Churn {
        server: Server::start(&[&folders[..], &small, &others].concat()),
        state,
        start: Instant::now(),
        time: Duration::from_secs(soak_seconds().unwrap_or(2)),
        num_requests: AtomicUsize::new(0),
    };
    let samples = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| churn.repeat(&mut Vec::new(), respond));
        scope.spawn(|| churn.repeat(&mut Vec::new(), respond));
        scope.spawn(|| churn.repeat(&mut (), |churn, ()| answer_batch(churn)));
        scope.spawn(|| churn.repeat(&mut (), |churn, ()| change_model(churn)));
        scope.spawn(|| {
            churn.repeat(&mut (), |churn, ()| {
                samples.lock().expect("samples").push(churn.sample());
                std::thread::sleep(churn.time / 40);
            });
        });
    });
    let mut samples = samples.into_inner().expect("samples");
    samples.push(churn.sample());
    check(&churn, &samples);
}

impl Churn {
    /// Repeats a task until the time is over.
    fn repeat<T>(&self, state: &mut T, task: impl Fn(&Self, &mut T)) {
        while self.start.elapsed() < self.time {
            task(self, state);
        }
    }

    /// The answer to a request that must succeed.
    #[track_caller]
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let kind = [("content-type", "application/json")];
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let response = self.server.send(method, path, &kind, body.as_bytes());
        assert_eq!(response.status, 200, "{method} {path}: {}", response.text());
        self.num_requests.fetch_add(1, Ordering::Relaxed);
        response.json()
    }

    fn sample(&self) -> Sample {
        let resident = self.server.sample("process_resident_memory_bytes");
        Sample {
            seconds: self.start.elapsed().as_secs_f64(),
            resident_mib: resident / f64::from(1 << 20),
            state_mib: bytes_below(&self.state) as f64 / f64::from(1 << 20),
        }
    }
}

/// Bytes of all files in a folder and its folders.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let bytes = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => bytes_below(&path),
            // A file may be deleted meanwhile.
            false => path.metadata().map_or(0, |metadata| metadata.len()),
        }
    });
    bytes.sum()
}

/// Stores a response, continues every other one, reads it, and deletes the oldest.
fn respond(churn: &Churn, kept: &mut Vec<String>) {
    let previous = kept.last().filter(|_| kept.len() % 2 == 1);
    let body = json!({
        "model": "stories", "input": "Once upon a time", "max_output_tokens": 8,
        "previous_response_id": previous,
    });
    let made = churn.send("POST", RESPONSES, &body);
    let path = format!("{RESPONSES}/{}", id(&made));
    assert_eq!(churn.send("GET", &path, &Value::Null)["id"], made["id"]);
    kept.push(id(&made).to_owned());
    if kept.len() > KEPT {
        // A pair, so that no conversation loses its beginning.
        for oldest in kept.drain(..2) {
            churn.send("DELETE", &format!("{RESPONSES}/{oldest}"), &Value::Null);
        }
    }
}

/// Uploads a file, has it answered, and deletes it and the answers.
fn answer_batch(churn: &Churn) {
    let line = |name: &str| {
        let body = completion("The dog", json!({ "model": "stories", "max_tokens": 8 }));
        json!({ "custom_id": name, "method": "POST", "url": COMPLETIONS, "body": body }).to_string()
    };
    let file = upload(&churn.server, &format!("{}\n{}", line("a"), line("b")));
    let ask = json!({
        "input_file_id": file["id"], "endpoint": COMPLETIONS, "completion_window": "24h",
    });
    let batch = ended(&churn.server, &churn.send("POST", "/v1/batches", &ask));
    assert_eq!(batch["request_counts"]["completed"], 2, "{batch}");
    for file in [&file["id"], &batch["output_file_id"]] {
        let path = format!("/v1/files/{}", file.as_str().expect("an id"));
        churn.send("DELETE", &path, &Value::Null);
    }
}

/// Uses the other model, which is unloaded after each use.
fn change_model(churn: &Churn) {
    let body = completion("Hello", json!({ "model": "tiny", "max_tokens": 2 }));
    churn.send("POST", COMPLETIONS, &with(body, json!({ "seed": null })));
}

/// Checks that nothing grows after one third of the time.
fn check(churn: &Churn, samples: &[Sample]) {
    let num_requests = churn.num_requests.load(Ordering::Relaxed);
    println!("{num_requests} requests");
    for sample in samples.iter().step_by(samples.len().div_ceil(20)) {
        println!("{sample:?}");
    }
    assert!(num_requests > 0);
    // Peaks, because models come and go between two samples.
    let peak = |from: f64, to: f64, size: fn(&Sample) -> f64| {
        let time = churn.time.as_secs_f64();
        let is_in = |sample: &&Sample| (from * time..to * time).contains(&sample.seconds);
        samples.iter().filter(is_in).map(size).fold(0.0, f64::max)
    };
    for (size, growth_max) in [
        (
            (|sample| sample.resident_mib) as fn(&Sample) -> f64,
            MEMORY_GROWTH_MIB_MAX,
        ),
        (|sample| sample.state_mib, STATE_GROWTH_MIB_MAX),
    ] {
        let (before, after) = (peak(1.0 / 3.0, 2.0 / 3.0, size), peak(2.0 / 3.0, 9.0, size));
        assert!(before > 0.0 && after > 0.0, "{samples:?}");
        assert!(
            after < before + growth_max,
            "{before} MiB, then {after} MiB"
        );
    }
}
