//! While the model loads, the server is alive and reports that it is not ready.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bitnet_inference::{Device, Engine, EngineOptions, Loaded, SamplingParams, load};
use bitnet_models::LoadOptions;
use bitnet_server::{
    AllowedHosts, Conversation, CorsOrigins, Error, FileLimits, KeyLimits, Limits, LoadedModel,
    LoaderError, ModelSpec, ServeOptions, ServerEvent, serve,
};

const MINUTE: Duration = Duration::from_secs(60);

fn options() -> ServeOptions {
    ServeOptions {
        lost_log_lines: Default::default(),
        allowed_hosts: AllowedHosts::any(),
        form_helper: None,
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        preload: true,
        models_memory: None,
        keep_alive: None,
        api_keys: None,
        cors_origins: CorsOrigins::default(),
        is_lenient: false,
        seed: None,
        pooling: None,
        state_dir: None,
        file_limits: FileLimits {
            file_bytes: 1 << 20,
            total_bytes: 1 << 20,
        },
        key_limits: KeyLimits::default(),
        tls: None,
        separate_caches: false,
        #[cfg(feature = "otlp")]
        otlp: bitnet_server::OtlpSignals {
            metrics: false,
            traces: false,
        },
        limits: Limits {
            queue_requests: 8,
            queue_tokens: 1000,
            choices: 1,
            body_bytes: 1000,
            header_bytes: 8192,
            header_timeout: MINUTE,
            body_timeout: MINUTE,
            write_timeout: MINUTE,
            request_timeout: MINUTE,
            inflight_bytes: 1 << 20,
            connections: 8,
            connections_per_address: 8,
        },
        drain_timeout: MINUTE,
        stall_timeout: MINUTE,
    }
}

fn served() -> LoadedModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let device = || Device::cpu(1);
    let Loaded { model, .. } =
        load(&path, &LoadOptions::default(), device()).expect("the golden model loads");
    let options = EngineOptions {
        context: 64,
        cache: 256,
        ..EngineOptions::default()
    };
    let remake = Box::new(move || Engine::new(Arc::clone(&model), None, device(), options));
    LoadedModel {
        engine: remake().expect("an engine"),
        remake,
        tokenizer: None,
        conversation: Conversation::Unavailable("this model has no tokenizer".to_owned()),
        sampling: SamplingParams::default(),
        block_size: 32,
        bytes: 0,
        files: vec![path],
    }
}

/// A model that `load` loads.
fn spec(load: impl FnMut() -> Result<LoadedModel, LoaderError> + Send + 'static) -> ModelSpec {
    ModelSpec {
        names: vec!["golden".to_owned()],
        bytes: 0,
        outline: None,
        load: Box::new(load),
        preview: Box::new(|| Err("it is not needed".into())),
    }
}

/// Status and the rest of an answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    );
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (
        status.unwrap_or_else(|| panic!("{text}")),
        text.to_ascii_lowercase(),
    )
}

#[test]
fn a_server_that_loads_is_alive_but_not_ready() {
    let (go, wait) = mpsc::channel::<()>();
    let (events, told) = mpsc::channel();
    thread::spawn(move || {
        let load = move || {
            // Wait until the test has seen enough, or has failed.
            let _ = wait.recv();
            Ok(served())
        };
        let tell = move |event| {
            // The test may be over.
            let _ = events.send(event);
        };
        serve(options(), vec![spec(load)], tell)
    });
    let Ok(ServerEvent::Listening(address)) = told.recv() else {
        panic!("the server does not listen")
    };
    let tokens = r#"{"prompt": [1, 2, 3], "max_tokens": 2}"#;
    assert_eq!(ask(address, "GET", "/livez", "").0, 200);
    for path in ["/readyz", "/startupz", "/health"] {
        let (status, text) = ask(address, "GET", path, "");
        assert!(
            status == 503 && text.contains(r#"{"status":"loading"}"#),
            "{path}: {text}"
        );
    }
    for (method, path, body) in [
        ("POST", "/v1/completions", tokens),
        ("GET", "/v1/models", ""),
    ] {
        let (status, text) = ask(address, method, path, body);
        assert!(
            status == 503 && text.contains(r#""code":"loading""#),
            "{path}: {text}"
        );
        assert!(text.contains("retry-after: 5\r\n"), "{path}: {text}");
    }
    go.send(()).expect("the loader waits");
    assert_eq!(told.recv(), Ok(ServerEvent::Ready));
    for path in ["/readyz", "/startupz", "/health", "/v1/models"] {
        assert_eq!(ask(address, "GET", path, "").0, 200, "{path}");
    }
    // Without a tokenizer, prompts and answers are token ids.
    let (status, text) = ask(address, "POST", "/v1/completions", tokens);
    assert!(
        status == 200 && text.contains(r#""completion_tokens":2"#),
        "{text}"
    );
    let (status, text) = ask(
        address,
        "POST",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": ""}]}"#,
    );
    assert!(
        status == 400 && text.contains("this model has no tokenizer"),
        "{text}"
    );
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let missing = spec(|| Err("it is not there".into()));
    let error = serve(options(), vec![missing], |_| {}).expect_err("there is no model");
    assert!(
        matches!(&error, Error::Load(_)) && error.to_string() == "it is not there",
        "{error}"
    );
}
