//! [`Record`]: the facts about one HTTP request, and its line in the log.
//!
//! `recording.rs` ends it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use bitnet_inference::{Owner, Priority, SamplingParams};

use crate::api::ApiError;
use crate::api::usage::Usage;
use crate::id::TraceParent;

/// One HTTP request.
pub(crate) struct Record {
    started: Instant,
    method: Method,
    /// The route that answered, such as `/v1/models/{model}`.
    route: String,
    /// The path, without its query.
    #[cfg_attr(
        not(feature = "otlp"),
        expect(dead_code, reason = "sent over OTLP only")
    )]
    path: String,
    pub(crate) request_id: String,
    pub(crate) trace: Option<TraceParent>,
    details: Mutex<Details>,
}

/// Facts that handlers add.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    /// The owner of the key.
    pub(crate) owner: Option<Arc<str>>,
    /// Whether it waits for interactive requests.
    pub(crate) priority: Priority,
    /// The client's address.
    pub(crate) address: Option<IpAddr>,
    /// The work for the engine, if the request reached the queue.
    pub(crate) generation: Option<Generation>,
    /// The error of the answer.
    pub(crate) error: Option<ApiError>,
}

impl Details {
    /// The owner for fair scheduling: the owner of the key, else the client's address.
    pub(crate) fn share(&self) -> Owner {
        match (&self.owner, self.address) {
            (Some(owner), _) => Arc::clone(owner),
            (None, Some(address)) => address.to_string().into(),
            (None, None) => Owner::from(""),
        }
    }
}

/// A request's work for the engine, and its results. Times count from the request's arrival.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "a part of it is sent over OTLP only")
)]
pub(crate) struct Generation {
    /// `chat` or `text_completion`.
    pub(crate) operation: &'static str,
    /// The model's name in answers.
    pub(crate) model: String,
    /// The model's name in the request.
    pub(crate) asked_model: String,
    /// Whether that is one of the model's names; a lenient server accepts any name.
    pub(crate) is_asked_ours: bool,
    /// Whether answers must be JSON.
    pub(crate) is_json: bool,
    pub(crate) response_id: String,
    pub(crate) is_stream: bool,
    /// Number of answers to each prompt.
    pub(crate) n: usize,
    /// Of the first answer.
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: Option<usize>,
    /// So far.
    pub(crate) usage: Usage,
    /// When the queue admitted it.
    pub(crate) entered: Duration,
    /// When the engine began with the first answer.
    pub(crate) started: Option<Duration>,
    pub(crate) first_token: Option<Duration>,
    pub(crate) last_token: Option<Duration>,
    /// Finish reasons of the answers, by index.
    pub(crate) finish_reasons: BTreeMap<usize, &'static str>,
}

impl Record {
    pub(crate) fn new(
        method: Method,
        path: String,
        route: String,
        request_id: String,
        trace: Option<TraceParent>,
    ) -> Self {
        Self {
            started: Instant::now(),
            method,
            route,
            path,
            request_id,
            trace,
            details: Mutex::default(),
        }
    }

    pub(crate) fn route(&self) -> &str {
        &self.route
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The method's name, or one name for all unknown methods: text from clients must not become a
    /// label.
    pub(crate) fn method(&self) -> &str {
        match self.method {
            Method::GET
            | Method::POST
            | Method::HEAD
            | Method::OPTIONS
            | Method::PUT
            | Method::DELETE => self.method.as_str(),
            _ => "_OTHER",
        }
    }

    /// When the request's headers had been read.
    pub(crate) fn arrived(&self) -> Instant {
        self.started
    }

    /// Time since then.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log(&self, status: Option<StatusCode>, is_complete: bool, duration: Duration) {
        let Details {
            owner,
            generation,
            error,
            ..
        } = self.details().clone();
        let generation = generation.as_ref();
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let queued = |generation: &Generation| Some(generation.started? - generation.entered);
        let outcome = match is_complete {
            true if error.is_some() => "error",
            true => "answered",
            false => "client gone",
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.request_id,
                    trace_id = self.trace.as_ref().map(|trace| &*trace.trace_id),
                    key = owner.as_deref(),
                    method = self.method.as_str(),
                    route = self.route,
                    status = status.map(|status| status.as_u16()),
                    outcome,
                    duration_ms = ms(duration),
                    queue_ms = generation.and_then(queued).map(ms),
                    first_token_ms = generation
                        .and_then(|generation| generation.first_token)
                        .map(ms),
                    model = generation.map(|generation| &*generation.model),
                    stream = generation.map(|generation| generation.is_stream),
                    prompt_tokens = generation.map(|generation| generation.usage.prompt_tokens),
                    cached_tokens = generation
                        .map(|generation| generation.usage.prompt_tokens_details.cached_tokens),
                    generated_tokens =
                        generation.map(|generation| generation.usage.completion_tokens),
                    finish_reason = generation.and_then(|generation| generation
                        .finish_reasons
                        .values()
                        .next()
                        .copied()),
                    // The message is not logged, since it quotes the request.
                    error = error.as_ref().map(ApiError::code),
                    param = error.as_ref().and_then(ApiError::known_param),
                    "request"
                )
            };
        }
        match status {
            Some(status) if status.is_server_error() && generation.is_some() => line!(warn),
            // Probes arrive every second, so they are logged at debug level.
            _ if self.method == Method::GET => line!(debug),
            _ => line!(info),
        }
    }
}

/// How a request ended.
#[cfg(feature = "otlp")]
pub(crate) struct RequestEnd {
    pub(crate) status: u16,
    /// Whether the client received the whole answer.
    pub(crate) is_complete: bool,
    /// From the request's headers to the end of its answer.
    pub(crate) duration: Duration,
}
