//! Counters for Prometheus at `/metrics`, under vLLM's names where vLLM has one.
//!
//! Every number counts a real event: the engine's thread counts steps ([`EngineMonitor`]), the
//! handlers count answers as their clients get them ([`AnswerTimer`]). Counting takes a few atomic
//! additions; only a scrape writes text (`text.rs`).

mod text;

pub(crate) use text::TextFormat;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(feature = "otlp")]
use bitnet_inference::EngineCounts;
use bitnet_inference::{EngineMonitor, EngineStats, Finish, FinishReason, Priority};

use crate::batch::store::BatchNumbers;
use crate::connections::Connections;
use crate::queue;
use crate::text::TextUse;

/// Seconds to a first token.
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens; also below vLLM's first bound, because small models are fast.
const TOKEN_S: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Seconds of an answer or its phases; also below vLLM's first bound, because small models are
/// fast.
const REQUEST_S: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// Number of tokens of a prompt or an answer.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
    50000.0, 100_000.0,
];
/// Number of tokens of a step.
const STEP_TOKENS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];
/// Number of answers to a request.
const ANSWERS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Seconds of an HTTP request: the bounds of OpenTelemetry's semantic conventions, and larger ones,
/// because answers take minutes.
const HTTP_S: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1800.0,
];

/// A counter.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts values by the first bound that they do not exceed.
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One count more than there are bounds.
    buckets: Box<[Counter]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| Counter::default()).collect(),
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, value: f64) {
        self.buckets[self.bounds.partition_point(|bound| *bound < value)].add(1);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never declines the update.
        let _ = self
            .sum
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }
}

/// How an answer ended, with the names of vLLM's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stop,
    Length,
    /// The client disconnected.
    Abort,
    Error,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// A kind of HTTP request: route, method and status.
type HttpKind = (String, String, u16);

/// Counts HTTP requests, over all models.
pub(crate) struct HttpMetrics {
    started: std::time::SystemTime,
    requests: Mutex<BTreeMap<HttpKind, Histogram>>,
}

/// The counters of one model. They outlive its unloading.
pub(crate) struct Metrics {
    outcomes: [Counter; 4],
    prompt_tokens: Counter,
    generated_tokens: Counter,
    first_token: Histogram,
    inter_token: Histogram,
    token: Histogram,
    total: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_length: Histogram,
    answer_length: Histogram,
    longest_answer: Histogram,
    answers_asked: Histogram,
    max_tokens_asked: Histogram,
    step_tokens: Histogram,
    engine: Arc<EngineMonitor>,
}

/// A model as a scrape shows it.
pub(crate) struct ModelScene<'a> {
    pub(crate) name: &'a str,
    pub(crate) metrics: &'a Metrics,
    pub(crate) is_loaded: bool,
    pub(crate) block_size: usize,
    pub(crate) queue: queue::Counts,
}

/// State of the server that a scrape shows besides the models.
pub(crate) struct Scene<'a> {
    pub(crate) http: &'a HttpMetrics,
    pub(crate) lost_log_lines: u64,
    pub(crate) text: TextUse,
    pub(crate) connections: &'a Connections,
    /// Of a server with a folder for state.
    pub(crate) batches: Option<BatchNumbers>,
    pub(crate) inflight_bytes: usize,
    /// Whether a file of the model was changed while it is in use.
    pub(crate) is_damaged: bool,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            started: std::time::SystemTime::now(),
            requests: Mutex::default(),
        }
    }
}

impl HttpMetrics {
    /// Counts an HTTP request that has ended.
    pub(crate) fn ended(&self, route: &str, method: &str, status: u16, duration: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (route.to_owned(), method.to_owned(), status);
        requests
            .entry(kind)
            .or_insert_with(|| Histogram::new(HTTP_S))
            .observe_duration(duration);
    }
}

impl Metrics {
    pub(crate) fn new(engine: Arc<EngineMonitor>) -> Self {
        Self {
            outcomes: Default::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            first_token: Histogram::new(FIRST_TOKEN_S),
            inter_token: Histogram::new(TOKEN_S),
            token: Histogram::new(TOKEN_S),
            total: Histogram::new(REQUEST_S),
            queued: Histogram::new(REQUEST_S),
            prefill: Histogram::new(REQUEST_S),
            decode: Histogram::new(REQUEST_S),
            inference: Histogram::new(REQUEST_S),
            prompt_length: Histogram::new(TOKENS),
            answer_length: Histogram::new(TOKENS),
            longest_answer: Histogram::new(TOKENS),
            answers_asked: Histogram::new(ANSWERS),
            max_tokens_asked: Histogram::new(TOKENS),
            step_tokens: Histogram::new(STEP_TOKENS),
            engine,
        }
    }

    /// Reports on the model's engine.
    pub(crate) fn engine(&self) -> Arc<EngineMonitor> {
        Arc::clone(&self.engine)
    }

    /// The model was unloaded: there is no cache any more.
    pub(crate) fn engine_gone(&self) {
        let EngineStats {
            counts,
            head_use,
            panics,
            ..
        } = self.engine.stats();
        self.engine.record(EngineStats {
            counts,
            head_use,
            panics,
            ..EngineStats::default()
        });
    }

    /// A step of the engine has run `tokens` tokens through the model.
    pub(crate) fn stepped(&self, tokens: u64) {
        self.step_tokens.observe(tokens as f64);
    }

    /// Counts an admitted request for `n` answers to each prompt.
    pub(crate) fn asked(&self, n: usize, max_tokens: Option<usize>) {
        self.answers_asked.observe(n as f64);
        if let Some(max_tokens) = max_tokens {
            self.max_tokens_asked.observe(max_tokens as f64);
        }
    }

    /// Counts a prompt whose answers are all complete.
    pub(crate) fn answered(&self, longest_tokens: usize) {
        self.longest_answer.observe(longest_tokens as f64);
    }
}

/// Times one answer, from its request's arrival to its end.
pub(crate) struct AnswerTimer {
    arrived: Instant,
    queued: Duration,
    last_token: Option<Instant>,
    has_ended: bool,
    /// Whether its durations count. The requests of batches wait for all others.
    is_timed: bool,
}

impl AnswerTimer {
    pub(crate) fn new(arrived: Instant, priority: Priority) -> Self {
        Self {
            arrived,
            queued: Duration::ZERO,
            last_token: None,
            has_ended: false,
            is_timed: priority == Priority::Interactive,
        }
    }

    /// Notes that the engine has begun, after `queued`.
    pub(crate) fn started(&mut self, queued: Duration) {
        self.queued = queued;
    }

    /// Counts a token; returns the time since the request's arrival.
    pub(crate) fn token(&mut self, metrics: &Metrics) -> Duration {
        let now = Instant::now();
        metrics.generated_tokens.add(1);
        match self.last_token.replace(now) {
            _ if !self.is_timed => {}
            None => metrics.first_token.observe_duration(now - self.arrived),
            Some(last) => metrics.inter_token.observe_duration(now - last),
        }
        now - self.arrived
    }

    /// Counts a complete answer.
    pub(crate) fn finished(&mut self, metrics: &Metrics, finish: &Finish) {
        let outcome = match finish.reason {
            FinishReason::Stop => Outcome::Stop,
            FinishReason::Length | FinishReason::Context => Outcome::Length,
        };
        self.ended(metrics, outcome);
        let timings = finish.timings;
        metrics.prompt_tokens.add(timings.prompt_tokens as u64);
        metrics.prompt_length.observe(timings.prompt_tokens as f64);
        metrics
            .answer_length
            .observe(timings.generated_tokens as f64);
        if !self.is_timed {
            return;
        }
        metrics.total.observe_duration(self.arrived.elapsed());
        metrics.queued.observe_duration(self.queued);
        metrics.prefill.observe_duration(timings.prefill);
        metrics.decode.observe_duration(timings.decode);
        metrics
            .inference
            .observe_duration(timings.prefill + timings.decode);
        if let Some(others) = u32::try_from(timings.generated_tokens)
            .ok()
            .and_then(|n| n.checked_sub(1))
            .filter(|n| *n > 0)
        {
            metrics.token.observe_duration(timings.decode / others);
        }
    }

    /// Counts the end of the answer, once.
    pub(crate) fn ended(&mut self, metrics: &Metrics, outcome: Outcome) {
        if !std::mem::replace(&mut self.has_ended, true) {
            metrics.outcomes[outcome as usize].add(1);
        }
    }
}

impl Metrics {
    /// The counts of all engines so far.
    #[cfg(feature = "otlp")]
    pub(crate) fn engine_counts(&self) -> EngineCounts {
        self.engine.stats().counts
    }

    /// Tokens generated so far.
    #[cfg(feature = "otlp")]
    pub(crate) fn generated_tokens(&self) -> u64 {
        self.generated_tokens.get()
    }

    /// Part of the cache that requests hold, from 0 to 1.
    pub(crate) fn cache_usage(&self) -> f64 {
        let EngineStats {
            free_blocks,
            num_blocks,
            ..
        } = self.engine.stats();
        if num_blocks == 0 {
            0.0
        } else {
            1.0 - free_blocks as f64 / num_blocks as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scrape of these models.
    fn scrape(models: &[(&Metrics, &str)]) -> String {
        let scene = Scene {
            http: &HttpMetrics::default(),
            lost_log_lines: 0,
            text: TextUse::default(),
            connections: &Connections::default(),
            batches: None,
            inflight_bytes: 0,
            is_damaged: false,
        };
        let model = |&(metrics, name): &(_, _)| ModelScene {
            name,
            metrics,
            is_loaded: true,
            block_size: 32,
            queue: queue::Counts::default(),
        };
        let models: Vec<_> = models.iter().map(model).collect();
        scene.text(&models, TextFormat::Prometheus)
    }

    #[test]
    fn the_samples_of_all_models_follow_one_head() {
        let (a, b) = (Metrics::new(Arc::default()), Metrics::new(Arc::default()));
        AnswerTimer::new(Instant::now(), Priority::Interactive).token(&b);
        let text = scrape(&[(&a, "a"), (&b, "b")]);
        let tokens: Vec<_> = text
            .lines()
            .filter(|line| line.contains("vllm:generation_tokens_total"))
            .collect();
        assert_eq!(
            tokens,
            [
                "# HELP vllm:generation_tokens_total Tokens generated.",
                "# TYPE vllm:generation_tokens_total counter",
                "vllm:generation_tokens_total{model_name=\"a\",engine=\"0\"} 0",
                "vllm:generation_tokens_total{model_name=\"b\",engine=\"0\"} 1",
            ]
        );
        let heads: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let mut distinct = heads.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(heads.len(), distinct.len(), "each head once");
    }

    #[test]
    fn an_answer_ends_once_and_is_timed_by_its_tokens() {
        let metrics = Metrics::new(Arc::default());
        let mut timer = AnswerTimer::new(Instant::now(), Priority::Interactive);
        for _ in 0..3 {
            timer.token(&metrics);
        }
        timer.ended(&metrics, Outcome::Abort);
        timer.ended(&metrics, Outcome::Error);
        let text = scrape(&[(&metrics, "a\"b")]);
        for line in [
            "vllm:generation_tokens_total{model_name=\"a\\\"b\",engine=\"0\"} 3",
            "vllm:request_success_total{model_name=\"a\\\"b\",engine=\"0\",finished_reason=\"abort\"} 1",
            "vllm:request_success_total{model_name=\"a\\\"b\",engine=\"0\",finished_reason=\"error\"} 0",
            "vllm:time_to_first_token_seconds_count{model_name=\"a\\\"b\",engine=\"0\"} 1",
            "vllm:inter_token_latency_seconds_count{model_name=\"a\\\"b\",engine=\"0\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line:?} is missing in\n{text}"
            );
        }
    }
}
