//! A lost device ends the requests in flight with an error. The server then loads the model again,
//! or ends.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bitnet_inference::{Device, DeviceName, Model, adapters};
use bitnet_server::{
    BatchFile, Ended, Error, LoadedModel, LoaderError, ModelSpec, ServeOptions, ServerEvent, serve,
};

use crate::{ask, open_model, options, send, served, spec};

/// An adapter that can run the kernels: software, because every machine of CI can have it, or else
/// any other.
fn gpu() -> Option<Device> {
    let able = || adapters().into_iter().filter(|gpu| gpu.missing.is_none());
    let found = able().find(|gpu| gpu.is_software).or_else(|| able().next());
    let Some(adapter) = found else {
        eprintln!(
            "skipped: no adapter here that can run the kernels (Debian: mesa-vulkan-drivers), or no feature gpu"
        );
        return None;
    };
    let named = Device::cpu(1).named(&DeviceName::Named(adapter.name), None);
    Some(named.expect("the adapter that was found").0)
}

/// The models that a loader has loaded so far.
type Loaded = Arc<Mutex<Vec<Arc<dyn Model>>>>;

/// Loads the golden model on a device, with room for a long answer.
fn load(device: Device, loaded: &Loaded) -> LoadedModel {
    let model = open_model(device);
    let mut loaded = loaded.lock().expect("no panic");
    loaded.push(Arc::clone(&model.model));
    served(&model, 2048)
}

/// Loses the device of the last model.
fn lose(loaded: &Loaded) {
    let loaded = loaded.lock().expect("no panic");
    loaded.last().expect("a model").lose_device();
}

/// What a loader does at one of its calls.
enum Load {
    Succeeds,
    Fails,
}

/// The golden model on a device. Each load after the first one waits until the test says what it
/// does.
fn controlled(name: &str, device: Device, loaded: &Loaded, next: Receiver<Load>) -> ModelSpec {
    let loaded = Arc::clone(loaded);
    let mut is_first = true;
    spec(name, move || {
        let step = match std::mem::take(&mut is_first) {
            true => Load::Succeeds,
            false => next.recv()?,
        };
        match step {
            Load::Succeeds => Ok(load(device, &loaded)),
            Load::Fails => Err(LoaderError::from("the device is gone")),
        }
    })
}

/// A server that has started.
fn start(
    options: ServeOptions,
    models: Vec<ModelSpec>,
) -> (SocketAddr, JoinHandle<Result<Ended, Error>>) {
    let (events, told) = mpsc::channel();
    let tell = move |event| {
        // The test may be over.
        let _ = events.send(event);
    };
    let server = thread::spawn(move || serve(options, models, tell));
    let Ok(ServerEvent::Listening(address)) = told.recv() else {
        panic!("the server does not listen")
    };
    assert_eq!(told.recv(), Ok(ServerEvent::Ready));
    (address, server)
}

/// Ids of the four most probable tokens after a prompt.
fn complete(address: SocketAddr, model: &str) -> Result<String, (u16, String)> {
    let body = format!(
        r#"{{"model": "{model}", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "return_token_ids": true}}"#
    );
    let (status, answer) = ask(address, "POST", "/v1/completions", &body);
    if status != 200 {
        return Err((status, answer));
    }
    let (_, ids) = answer.split_once(r#""token_ids":"#).expect("token ids");
    Ok(ids.split_once(']').expect("a list").0.to_owned())
}

/// A long answer as a stream, after its first token.
fn open_stream(address: SocketAddr, model: &str) -> BufReader<TcpStream> {
    let body = format!(
        r#"{{"model": "{model}", "prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": true, "stream": true}}"#
    );
    let mut reader = BufReader::new(send(address, "POST", "/v1/completions", &body));
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        let read = reader.read_line(&mut line).expect("a line");
        assert!(read > 0, "the stream ends before its first token");
    }
    reader
}

/// The last event of a stream before the mark of its end.
fn last_event(mut stream: BufReader<TcpStream>) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("an end");
    let is_event = |line: &&str| line.starts_with("data:") && *line != "data: [DONE]";
    let mut events = rest.lines().filter(is_event);
    events.next_back().expect("an event").to_owned()
}

/// The value of a counter of the first model.
fn counter(address: SocketAddr, name: &str) -> String {
    let (_, metrics) = ask(address, "GET", "/metrics", "");
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with(name)).expect("a metric");
    line.split(' ').nth(1).expect("a value").to_owned()
}

#[test]
fn a_server_whose_device_is_lost_loads_the_model_again() {
    let Some(device) = gpu() else { return };
    let (go, next) = mpsc::channel();
    let loaded = Loaded::default();
    let model = controlled("golden", device, &loaded, next);
    let (address, _) = start(options(), vec![model]);
    let before = complete(address, "golden").expect("an answer");
    let failures = "bitnet_engine_device_failures_total";
    assert_eq!(counter(address, failures), "0");

    let stream = open_stream(address, "golden");
    lose(&loaded);
    let end = last_event(stream);
    assert!(
        end.contains("device_failed") && end.contains("the device was lost"),
        "{end}"
    );
    for path in ["/readyz", "/health"] {
        let (status, text) = ask(address, "GET", path, "");
        let is_reloading = text.contains(r#"{"status":"reloading"}"#);
        assert!(status == 503 && is_reloading, "{path}: {text}");
    }
    assert_eq!(ask(address, "GET", "/livez", "").0, 200);

    let waiting = thread::spawn(move || complete(address, "golden"));
    go.send(Load::Succeeds).expect("the loader waits");
    let after = waiting.join().expect("no panic");
    assert_eq!(
        after.as_ref(),
        Ok(&before),
        "the answer of the request that waits"
    );
    assert_eq!(complete(address, "golden"), Ok(before));
    assert_eq!(ask(address, "GET", "/readyz", "").0, 200);
    assert_eq!(counter(address, failures), "1");
    assert_eq!(counter(address, "bitnet_engine_panics_total"), "0");
    let freed = Arc::strong_count(&loaded.lock().expect("no panic")[0]);
    assert_eq!(freed, 1, "the server holds the lost weights no more");
}

#[test]
fn a_request_without_a_stream_gets_503_and_when_to_try_again() {
    let Some(device) = gpu() else { return };
    let (go, next) = mpsc::channel();
    let loaded = Loaded::default();
    let model = controlled("golden", device, &loaded, next);
    let (address, _) = start(options(), vec![model]);
    let stream = open_stream(address, "golden");
    let body = r#"{"prompt": [4, 5], "max_tokens": 2000, "ignore_eos": true}"#;
    let whole = thread::spawn(move || ask(address, "POST", "/v1/completions", body));
    let mut running = std::iter::repeat_with(|| counter(address, "vllm:num_requests_running"));
    assert!(running.by_ref().take(10_000).any(|running| running == "2"));
    lose(&loaded);
    let (status, answer) = whole.join().expect("no panic");
    let words = ["retry-after: 5\r\n", r#""code":"device_failed""#];
    assert!(
        status == 503 && words.iter().all(|word| answer.contains(word)),
        "{status} {answer}"
    );
    assert!(last_event(stream).contains("device_failed"));
    go.send(Load::Succeeds).expect("the loader waits");
    complete(address, "golden").expect("an answer");
}

#[test]
fn a_server_whose_device_stays_lost_ends_with_an_error() {
    let Some(device) = gpu() else { return };
    let (go, next) = mpsc::channel();
    let loaded = Loaded::default();
    let model = controlled("golden", device, &loaded, next);
    let (address, server) = start(options(), vec![model]);
    let stream = open_stream(address, "golden");
    lose(&loaded);
    assert!(last_event(stream).contains("device_failed"));
    go.send(Load::Fails).expect("the loader waits");
    let error = server.join().expect("no panic").expect_err("no device");
    let error = error.to_string();
    let words = [
        "the device was lost",
        "cannot be loaded again: the device is gone",
    ];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn one_of_several_models_whose_device_stays_lost_is_loaded_for_a_later_request() {
    let Some(device) = gpu() else { return };
    let (go, next) = mpsc::channel();
    let (loaded, others) = (Loaded::default(), Loaded::default());
    let other = {
        let others = Arc::clone(&others);
        spec("other", move || Ok(load(Device::cpu(1), &others)))
    };
    let model = controlled("golden", device, &loaded, next);
    let (address, _) = start(options(), vec![model, other]);
    let before = complete(address, "golden").expect("an answer");
    let stream = open_stream(address, "golden");
    lose(&loaded);
    assert!(last_event(stream).contains("device_failed"));
    assert_eq!(ask(address, "GET", "/readyz", "").0, 200);
    complete(address, "other").expect("the other model answers");
    go.send(Load::Fails).expect("the loader waits");
    go.send(Load::Succeeds).expect("the loader waits");
    // Until the model is unloaded, requests for it fail.
    let mut answers = std::iter::repeat_with(|| complete(address, "golden")).take(1000);
    let after = answers.find(|answer| answer.is_ok()).expect("an answer");
    assert_eq!(after, Ok(before));
}

#[test]
fn a_batch_is_answered_whole_though_the_device_is_lost() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let line = |id: usize| {
        let body = format!(r#"{{"model": "golden", "prompt": [{id}], "max_tokens": 20}}"#);
        format!(
            r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/completions", "body": {body}}}"#
        )
    };
    let lines: Vec<String> = (1..9).map(line).collect();
    std::fs::write(&input, lines.join("\n")).expect("written");
    let (go, next) = mpsc::channel();
    go.send(Load::Succeeds).expect("the loader lives");
    let loaded = Loaded::default();
    let models = vec![controlled("golden", device, &loaded, next)];
    let mut num_written = 0;
    let written = || {
        num_written += 1;
        if num_written == 1 {
            lose(&loaded);
        }
    };
    let batch = BatchFile::open(&input, &output).expect("a batch");
    let counts = batch
        .answer(options(), models, 2, written)
        .expect("answers");
    assert_eq!((counts.answered, counts.refused), (8, 0));
    assert_eq!(
        loaded.lock().expect("no panic").len(),
        2,
        "loaded again once"
    );
}
