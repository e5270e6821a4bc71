//! [`ServeOptions`]: what the program settles before it serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bitnet_inference::SamplingParams;

use crate::auth::ApiKeys;
use crate::cors::CorsOrigins;
use crate::forms::FormHelper;
use crate::hosts::AllowedHosts;
#[cfg(feature = "otlp")]
use crate::otlp::OtlpSignals;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to listen; port 0 takes one that is free.
    pub address: SocketAddr,
    /// Names under which requests may ask for the model, the first being the one that answers bear;
    /// without any, the name the model has by itself.
    pub model_names: Vec<String>,
    /// Who may ask; `None` for everyone.
    pub api_keys: Option<ApiKeys>,
    /// Pages of which sites may ask.
    pub cors_origins: CorsOrigins,
    /// Under which names the server answers.
    pub allowed_hosts: AllowedHosts,
    /// How forms of answers are compiled; `None` compiles them in this process, where one that
    /// overflows the stack ends it.
    pub form_helper: Option<FormHelper>,
    /// Whether fields that are unknown or not supported are left unread, and any model's name is
    /// taken for ours.
    pub is_lenient: bool,
    /// How tokens are chosen where a request does not say.
    pub sampling: SamplingParams,
    /// The seed of requests that bring none; `None` for a random one each.
    pub seed: Option<u64>,
    /// Whether the owners of different keys share nothing of what is cached of their prompts.
    pub separate_caches: bool,
    /// What is sent to OpenTelemetry.
    #[cfg(feature = "otlp")]
    pub otlp: OtlpSignals,
    /// What is too much.
    pub limits: Limits,
    /// How long requests under way may take to finish once the server is told to stop.
    pub drain_timeout: Duration,
    /// The server counts as stuck when the engine has not finished a step for so long.
    pub stall_timeout: Duration,
    /// The number of log lines that could not be written; the program counts, `/metrics` shows it.
    pub lost_log_lines: Arc<AtomicU64>,
}

/// What is too much, too long or too slow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait for the engine.
    pub queue_requests: usize,
    /// Prompt tokens of the requests that wait. One request may wait alone however long it is.
    pub queue_tokens: usize,
    /// Answers that one HTTP request may ask for: prompts × `n`.
    pub choices: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// From the opening of a connection, or its last answer, to the end of a request's headers.
    pub header_timeout: Duration,
    /// From a request's headers to the end of its body.
    pub body_timeout: Duration,
    /// Without a byte of an answer being taken.
    pub write_timeout: Duration,
    /// From a request's body to the end of its answer.
    pub request_timeout: Duration,
    /// Bytes of all bodies that are read or waiting to be read.
    pub inflight_bytes: usize,
    /// Open connections, beside some that answer probes only.
    pub connections: usize,
    /// Open connections of one address.
    pub connections_per_address: usize,
}

#[cfg(test)]
impl Limits {
    /// Large ones.
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
