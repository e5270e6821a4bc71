//! Servers in the process of the test, which controls their loaders and devices.

mod device_loss;
mod draining;
mod loading;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_inference::{Device, EngineOptions, ModelSource, OpenModel, SamplingParams};
use bitnet_models::LoadOptions;
use bitnet_server::{
    AllowedHosts, Conversation, CorsOrigins, FileLimits, KeyLimits, Limits, LoadedModel,
    LoaderError, ModelSpec, ServeOptions,
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

fn model_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf")
}

/// A small model without a tokenizer: prompts and answers are token ids.
fn open_model(device: Device) -> OpenModel {
    let source = ModelSource::Path(model_path());
    OpenModel::open(source, device, LoadOptions::default()).expect("the golden model loads")
}

/// The same with an engine of `context` positions.
fn served(model: &OpenModel, context: usize) -> LoadedModel {
    let options = EngineOptions {
        context,
        cache: 4 * context,
        ..EngineOptions::default()
    };
    LoadedModel {
        engine: model.engine(options).expect("an engine"),
        remake: model.remake(options),
        tokenizer: None,
        conversation: Conversation::Unavailable("this model has no tokenizer".to_owned()),
        sampling: SamplingParams::default(),
        block_size: 32,
        bytes: 0,
        files: vec![model_path()],
    }
}

/// A model that `load` loads.
fn spec(
    name: &str,
    load: impl FnMut() -> Result<LoadedModel, LoaderError> + Send + 'static,
) -> ModelSpec {
    ModelSpec {
        names: vec![name.to_owned()],
        bytes: 0,
        outline: None,
        load: Box::new(load),
        preview: Box::new(|| Err("it is not needed".into())),
    }
}

/// Sends a request. The answer must begin within a minute, and go on within another.
fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(MINUTE)).expect("a socket");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    );
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("a request");
    stream
}

/// Status and the rest of an answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = send(address, method, path, body);
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
