//! The cost of recording events, for the bench that multiplies it by the events of a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Method;
use bitnet_inference::{
    EngineMonitor, EngineStats, Finish, FinishReason, Priority, SamplingParams, Timings,
};

use crate::api::usage::Usage;
#[cfg(feature = "otlp")]
use crate::error::Error;
use crate::error::Result;
use crate::metrics::{AnswerTimer, HttpMetrics, Metrics, ModelScene, Scene, TextFormat};
#[cfg(feature = "otlp")]
use crate::options::OtlpSignals;
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::queue::Counts;
#[cfg(feature = "otlp")]
use crate::record::RequestEnd;
use crate::record::{Generation, Record};

/// Seconds that recording takes.
#[derive(Clone, Copy, Debug)]
pub struct EventCosts {
    /// A token of an answer.
    pub token: f64,
    /// A step of the engine.
    pub step: f64,
    /// An answer that is complete.
    pub answer: f64,
    /// An HTTP request that has ended, for Prometheus.
    pub http: f64,
    /// The same for OpenTelemetry, metrics and traces.
    #[cfg(feature = "otlp")]
    pub otlp: f64,
    /// A scrape, which no request waits for.
    pub scrape: f64,
}

/// Times each kind of event repeatedly.
///
/// # Errors
/// If the exporters cannot be created.
pub fn event_costs() -> Result<EventCosts> {
    let monitor = Arc::new(EngineMonitor::default());
    let metrics = Arc::new(Metrics::new(Arc::clone(&monitor)));
    let record = record();
    let mut timer = AnswerTimer::new(record.arrived(), Priority::Interactive);
    let mut stats = EngineStats::default();
    let finish = finish();
    let requests = HttpMetrics::default();
    let scene = Scene {
        http: &requests,
        lost_log_lines: 0,
        text: Default::default(),
        connections: &Default::default(),
        batches: None,
        inflight_bytes: 0,
        is_damaged: false,
    };
    let models = [ModelScene {
        name: "stories",
        metrics: &metrics,
        is_loaded: true,
        block_size: 32,
        queue: Counts::default(),
    }];
    Ok(EventCosts {
        token: seconds(1_000_000, || timer.token(&metrics)),
        step: seconds(1_000_000, || {
            stats.counts.steps += 1;
            stats.counts.computed_tokens += 8;
            monitor.record(stats);
            metrics.stepped(8);
        }),
        answer: seconds(200_000, || {
            AnswerTimer::new(record.arrived(), Priority::Interactive).finished(&metrics, &finish)
        }),
        http: seconds(200_000, || {
            requests.ended(
                record.route(),
                record.method(),
                200,
                Duration::from_millis(5),
            )
        }),
        #[cfg(feature = "otlp")]
        otlp: otlp(&record)?,
        scrape: seconds(2_000, || scene.text(&models, TextFormat::Prometheus)),
    })
}

/// The mean time of a call.
fn seconds<T>(calls: u32, mut call: impl FnMut() -> T) -> f64 {
    let start = Instant::now();
    (0..calls).for_each(|_| drop(std::hint::black_box(call())));
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// Uses exporters that reach no collector: a request waits for the same work.
#[cfg(feature = "otlp")]
fn otlp(record: &Record) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(Error::Threads)?;
    let _inside = runtime.enter();
    let signals = OtlpSignals {
        metrics: true,
        traces: true,
    };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
    let otlp = Otlp::start(signals, address, Vec::new());
    let otlp = otlp.map_err(Error::Otlp)?;
    let ended = RequestEnd {
        status: 200,
        is_complete: true,
        duration: Duration::from_millis(5),
    };
    // Five spans each: fewer than the exporter's queue holds.
    let cost = seconds(300, || otlp.ended(record, &ended));
    otlp.stop();
    Ok(cost)
}

/// A chat, streamed, that was answered.
fn record() -> Record {
    let route = "/v1/chat/completions".to_owned();
    let record = Record::new(Method::POST, route.clone(), route, "req-1".to_owned(), None);
    let ms = |ms| Some(Duration::from_millis(ms));
    record.details().generation = Some(Generation {
        operation: "chat",
        model: "stories".to_owned(),
        asked_model: "stories".to_owned(),
        is_asked_ours: true,
        is_json: false,
        response_id: "chatcmpl-0123456789abcdef0123456789abcdef".to_owned(),
        is_stream: true,
        n: 1,
        sampling: SamplingParams::default(),
        max_tokens: Some(64),
        usage: Usage {
            prompt_tokens: 128,
            completion_tokens: 64,
            total_tokens: 192,
            ..Usage::default()
        },
        entered: Duration::ZERO,
        started: ms(1),
        first_token: ms(2),
        last_token: ms(4),
        finish_reasons: [(0, "length")].into(),
    });
    record
}

fn finish() -> Finish {
    let timings = Timings {
        prompt_tokens: 128,
        generated_tokens: 64,
        prefill: Duration::from_millis(1),
        decode: Duration::from_millis(2),
        ..Timings::default()
    };
    Finish {
        reason: FinishReason::Length,
        stop_string: None,
        timings,
        pooled: None,
    }
}
