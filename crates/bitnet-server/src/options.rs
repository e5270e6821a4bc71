//! [`ServeOptions`]: the settings of a server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bitnet_inference::Pooling;

use crate::auth::ApiKeys;
use crate::cors::CorsOrigins;
use crate::forms::FormHelper;
use crate::hosts::AllowedHosts;
use crate::tls::Tls;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// Whether the first model is loaded before the server is ready. A server of several models is
    /// ready even if that fails.
    pub preload: bool,
    /// Maximum memory of all loaded models together, in bytes; `None` for no limit.
    pub models_memory: Option<usize>,
    /// How long models stay loaded after their last use, unless a request says otherwise; `None`
    /// for ever. A server of one model without a time never unloads it.
    pub keep_alive: Option<Duration>,
    /// Valid API keys; `None` accepts every request.
    pub api_keys: Option<ApiKeys>,
    /// What each client may use.
    pub key_limits: KeyLimits,
    /// The certificate of a server that speaks HTTPS; `None` for HTTP.
    pub tls: Option<Tls>,
    /// Sites whose pages may use the server.
    pub cors_origins: CorsOrigins,
    /// Host names that the server answers to.
    pub allowed_hosts: AllowedHosts,
    /// How forms are compiled. `None` compiles them in this process, where a stack overflow ends
    /// the server.
    pub form_helper: Option<FormHelper>,
    /// Whether to ignore unknown and unsupported fields, and to accept any model name.
    pub is_lenient: bool,
    /// Seed of requests without one; `None` for a random one each.
    pub seed: Option<u64>,
    /// How hidden states become an embedding; `None` for the model's own way.
    pub pooling: Option<Pooling>,
    /// The folder of the stored responses, files and batches. `None` keeps responses in memory, and
    /// has no files and batches.
    pub state_dir: Option<PathBuf>,
    /// Limits of the files.
    pub file_limits: FileLimits,
    /// Whether each owner of API keys has a separate prompt cache.
    pub separate_caches: bool,
    /// Signals that are sent to OpenTelemetry.
    #[cfg(feature = "otlp")]
    pub otlp: OtlpSignals,
    /// Limits of requests and connections.
    pub limits: Limits,
    /// Maximum time for requests under way after a signal to stop.
    pub drain_timeout: Duration,
    /// The server counts as stuck when a step of the engine takes longer.
    pub stall_timeout: Duration,
    /// The number of log lines that could not be written; the program counts, `/metrics` shows it.
    pub lost_log_lines: Arc<AtomicU64>,
}

/// Signals to send to OpenTelemetry.
#[cfg(feature = "otlp")]
#[derive(Clone, Copy, Debug)]
pub struct OtlpSignals {
    /// Send metrics.
    pub metrics: bool,
    /// Send traces.
    pub traces: bool,
}

/// What each client may use: the owner of an API key or, without keys, an address. `None` for no
/// limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests that generate, a minute.
    pub requests_per_minute: Option<usize>,
    /// Tokens of prompts and answers together, a minute.
    pub tokens_per_minute: Option<usize>,
    /// Answers that wait or run at once.
    pub concurrency: Option<usize>,
}

/// Limits of the files for batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of a file that a client uploads.
    pub file_bytes: u64,
    /// Bytes of all files, those with answers included.
    pub total_bytes: u64,
}

/// Limits of requests and connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of answers that wait for the engine.
    pub queue_requests: usize,
    /// Maximum number of their prompt tokens. One request of any length may wait alone.
    pub queue_tokens: usize,
    /// Maximum number of answers of one HTTP request: prompts × `n`.
    pub choices: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// Maximum time from the opening of a connection, or its last answer, to the end of a request's
    /// headers.
    pub header_timeout: Duration,
    /// Maximum time from a request's headers to the end of its body.
    pub body_timeout: Duration,
    /// Maximum time in which a client takes no byte of an answer.
    pub write_timeout: Duration,
    /// Maximum time from a request's body to the end of its answer.
    pub request_timeout: Duration,
    /// Bytes of all bodies that are read or waiting to be read.
    pub inflight_bytes: usize,
    /// Maximum number of open connections, in addition to some that answer only probes.
    pub connections: usize,
    /// Maximum number of open connections of one address.
    pub connections_per_address: usize,
}

#[cfg(test)]
impl ServeOptions {
    /// Large limits, no keys, no helper.
    pub(crate) fn for_tests() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            preload: true,
            models_memory: None,
            keep_alive: None,
            api_keys: None,
            key_limits: KeyLimits::default(),
            tls: None,
            cors_origins: CorsOrigins::default(),
            allowed_hosts: AllowedHosts::any(),
            form_helper: None,
            is_lenient: false,
            seed: None,
            pooling: None,
            state_dir: None,
            file_limits: FileLimits {
                file_bytes: 1 << 20,
                total_bytes: 1 << 20,
            },
            separate_caches: false,
            #[cfg(feature = "otlp")]
            otlp: OtlpSignals {
                metrics: false,
                traces: false,
            },
            limits: Limits::for_tests(),
            drain_timeout: minute,
            stall_timeout: minute,
            lost_log_lines: Arc::default(),
        }
    }
}

#[cfg(test)]
impl Limits {
    /// Large limits.
    pub(crate) fn for_tests() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            queue_requests: 100,
            queue_tokens: 100_000,
            choices: 100,
            body_bytes: 1 << 20,
            header_bytes: 8192,
            header_timeout: minute,
            body_timeout: minute,
            write_timeout: minute,
            request_timeout: minute,
            inflight_bytes: 1 << 30,
            connections: 100,
            connections_per_address: 100,
        }
    }
}
