//! Metrics and traces for OpenTelemetry, over OTLP (gRPC), by its semantic conventions for HTTP and
//! for generative AI.
//!
//! Metrics and spans are recorded from the [`Record`] when a request has ended, so no token waits
//! for them. The SDK's own threads send it, metrics every 60 s, as the `OTEL_*` variables say.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::{Histogram, Meter, MeterProvider};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, Key, KeyValue, StringValue, Value};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::metrics::Metrics;
use crate::options::OtlpSignals;
use crate::queue::Queue;
use crate::record::{Details, Generation, Record, RequestEnd};

/// The name of the software that runs the model, for an attribute of the conventions.
const PROVIDER: &str = "bitnet";
const SCOPE: &str = "bitnet-server";

/// Seconds of requests: the 14 bounds of the conventions, and larger ones, because answers take
/// minutes.
const REQUEST_S: [f64; 17] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36,
];
/// Seconds to a first token: the bounds of the conventions, and larger ones.
const FIRST_TOKEN_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds to each further token: the bounds of the conventions, and smaller ones.
const TOKEN_S: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5,
];
/// Seconds of HTTP requests: the bounds of the conventions.
const HTTP_S: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The exporters.
pub(crate) struct Otlp {
    meters: Option<SdkMeterProvider>,
    instruments: Option<Instruments>,
    tracers: Option<SdkTracerProvider>,
    tracer: Option<SdkTracer>,
    server: Vec<KeyValue>,
}

struct Instruments {
    request: Histogram<f64>,
    first_token: Histogram<f64>,
    token: Histogram<f64>,
    http: Histogram<f64>,
}

impl Otlp {
    /// Starts sending. Call it within the runtime that will carry the connection.
    pub(crate) fn start(
        signals: OtlpSignals,
        address: std::net::SocketAddr,
        models: Vec<ObservedModel>,
    ) -> Result<Self, ExporterBuildError> {
        let resource = resource();
        let mut otlp = Self {
            meters: None,
            instruments: None,
            tracers: None,
            tracer: None,
            server: vec![
                KeyValue::new("server.address", address.ip().to_string()),
                KeyValue::new("server.port", i64::from(address.port())),
            ],
        };
        if signals.metrics {
            let reader =
                PeriodicReader::builder(MetricExporter::builder().with_tonic().build()?).build();
            let meters = SdkMeterProvider::builder()
                .with_reader(reader)
                .with_resource(resource.clone())
                .build();
            let meter = meters.meter(SCOPE);
            observe(&meter, models);
            otlp.instruments = Some(Instruments::new(&meter));
            otlp.meters = Some(meters);
        }
        if signals.traces {
            let exporter = SpanExporter::builder().with_tonic().build()?;
            let tracers = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource)
                .build();
            otlp.tracer = Some(tracers.tracer(SCOPE));
            otlp.tracers = Some(tracers);
        }
        Ok(otlp)
    }

    /// Sends the remaining data. Blocks; not for threads of the runtime.
    pub(crate) fn stop(&self) {
        if let Some(Err(error)) = self.meters.as_ref().map(SdkMeterProvider::shutdown) {
            tracing::warn!(%error, "the last metrics could not be sent");
        }
        if let Some(Err(error)) = self.tracers.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }

    /// A request has ended.
    pub(crate) fn ended(&self, record: &Record, ended: &RequestEnd) {
        let details = record.details().clone();
        let error = error_type(&details, ended);
        if let Some(instruments) = &self.instruments {
            instruments.record(record, &details, ended, error.as_ref(), &self.server);
        }
        if let Some(tracer) = &self.tracer {
            self.trace(tracer, record, &details, ended, error);
        }
    }

    fn trace(
        &self,
        tracer: &SdkTracer,
        record: &Record,
        details: &Details,
        ended: &RequestEnd,
        error: Option<StringValue>,
    ) {
        let RequestEnd {
            status, duration, ..
        } = *ended;
        let end = SystemTime::now();
        let start = end - duration;
        let parent = record.trace.as_ref().and_then(|trace| {
            let (trace_id, span_id) = (
                TraceId::from_hex(&trace.trace_id).ok()?,
                SpanId::from_hex(&trace.span_id).ok()?,
            );
            let flags = TraceFlags::default().with_sampled(trace.is_sampled);
            Some(SpanContext::new(
                trace_id,
                span_id,
                flags,
                true,
                TraceState::default(),
            ))
        });
        let context = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent)
        });
        let mut attributes = vec![
            KeyValue::new("http.request.method", record.method().to_owned()),
            KeyValue::new("http.route", record.route().to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status)),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("bitnet.request_id", record.request_id.clone()),
        ];
        // Other paths contain text from the client.
        let path = record.path();
        attributes
            .extend((path == record.route()).then(|| KeyValue::new("url.path", path.to_owned())));
        attributes.extend(self.server.iter().cloned());
        attributes.extend(
            error
                .clone()
                .map(|error| KeyValue::new("error.type", error)),
        );
        let builder = tracer
            .span_builder(format!("{} {}", record.method(), record.route()))
            .with_kind(SpanKind::Server)
            .with_start_time(start)
            .with_attributes(attributes);
        let mut http = builder.start_with_context(tracer, &context);
        if status >= 500 {
            http.set_status(Status::error(""));
        }
        let context = context.with_remote_span_context(http.span_context().clone());
        if let Some(generation) = &details.generation {
            self.trace_generation(tracer, &context, generation, (start, duration), error);
        }
        http.end_with_timestamp(end);
    }

    /// The work behind a request, and its phases: waiting, reading the prompt, writing the answer.
    fn trace_generation(
        &self,
        tracer: &SdkTracer,
        context: &Context,
        generation: &Generation,
        (arrival, duration): (SystemTime, Duration),
        error: Option<StringValue>,
    ) {
        let mut attributes = generation_attributes(generation);
        attributes.extend(self.server.iter().cloned());
        attributes.extend(
            error
                .clone()
                .map(|error| KeyValue::new("error.type", error)),
        );
        let mut span = tracer
            .span_builder(format!(
                "{} {}",
                generation.operation,
                asked_model(generation)
            ))
            .with_kind(SpanKind::Internal)
            .with_start_time(arrival + generation.entered)
            .with_attributes(attributes)
            .start_with_context(tracer, context);
        if error.is_some() {
            span.set_status(Status::error(""));
        }
        let inside = context.with_remote_span_context(span.span_context().clone());
        let phase = |name: &'static str, from: Duration, to: Duration| {
            let builder = tracer
                .span_builder(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(arrival + from);
            builder
                .start_with_context(tracer, &inside)
                .end_with_timestamp(arrival + to);
        };
        phase(
            "queue",
            generation.entered,
            generation.started.unwrap_or(duration),
        );
        if let Some(started) = generation.started {
            phase(
                "prefill",
                started,
                generation.first_token.unwrap_or(duration),
            );
        }
        if let (Some(first), Some(last)) = (generation.first_token, generation.last_token) {
            phase("decode", first, last);
        }
        span.end_with_timestamp(arrival + generation.last_token.unwrap_or(duration));
    }
}

/// Name of the sender: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, else `bitnet`.
fn resource() -> Resource {
    let found = Resource::builder().build();
    let name = found
        .get(&Key::from_static_str("service.name"))
        .map(|name| name.to_string())
        .unwrap_or_default();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    let is_unnamed = name.is_empty() || name.starts_with("unknown_service");
    if is_unnamed {
        builder.with_service_name("bitnet").build()
    } else {
        builder.build()
    }
}

/// The conventions' name for the reason of a failure.
fn error_type(details: &Details, ended: &RequestEnd) -> Option<StringValue> {
    match &details.error {
        Some(error) => Some(error.code().into()),
        None if !ended.is_complete => Some("client_gone".into()),
        None if ended.status >= 400 => Some(ended.status.to_string().into()),
        None => None,
    }
}

/// A model whose state is sent with the metrics.
pub(crate) struct ObservedModel {
    pub(crate) name: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) queue: Arc<Queue>,
}

/// Registers gauges and counters, whose values are read at each export: of each model, with its
/// name if there are several.
fn observe(meter: &Meter, models: Vec<ObservedModel>) {
    let has_several = models.len() > 1;
    let with_labels = |model: ObservedModel| {
        let name = KeyValue::new("gen_ai.response.model", model.name.clone());
        (model, has_several.then_some(name))
    };
    let models: LabelledModels = models.into_iter().map(with_labels).collect();
    observe_gauges(meter, &models);
    observe_counters(meter, &models);
}

/// Models with the label of their samples.
type LabelledModels = Arc<[(ObservedModel, Option<KeyValue>)]>;

fn observe_gauges(meter: &Meter, models: &LabelledModels) {
    let gauge = |name: &'static str,
                 unit: &'static str,
                 help: &'static str,
                 value: fn(&ObservedModel) -> f64| {
        let models = Arc::clone(models);
        let builder = meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(help);
        builder
            .with_callback(move |observer| {
                for (model, label) in &*models {
                    observer.observe(value(model), label.as_slice());
                }
            })
            .build();
    };
    gauge(
        "bitnet.requests.running",
        "{request}",
        "Answers the engine is working on.",
        |model| model.queue.counts().running as f64,
    );
    gauge(
        "bitnet.requests.waiting",
        "{request}",
        "Answers the engine has not begun.",
        |model| model.queue.counts().waiting as f64,
    );
    gauge(
        "bitnet.kv_cache.usage",
        "1",
        "Part of the key/value cache in use.",
        |model| model.metrics.cache_usage(),
    );
}

fn observe_counters(meter: &Meter, models: &LabelledModels) {
    let counter = |name: &'static str, help: &'static str, value: fn(&Metrics) -> u64| {
        let models = Arc::clone(models);
        let builder = meter
            .u64_observable_counter(name)
            .with_unit("{token}")
            .with_description(help);
        builder
            .with_callback(move |observer| {
                for (model, label) in &*models {
                    observer.observe(value(&model.metrics), label.as_slice());
                }
            })
            .build();
    };
    counter(
        "bitnet.tokens.generated",
        "Tokens generated.",
        Metrics::generated_tokens,
    );
    counter(
        "bitnet.tokens.prompt",
        "Prompt tokens of answers that were begun.",
        |metrics| metrics.engine_counts().prompt_tokens,
    );
    counter(
        "bitnet.tokens.cached",
        "Those that did not have to be computed.",
        |metrics| metrics.engine_counts().cached_tokens,
    );
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let histogram = |name: &'static str, help: &'static str, bounds: &[f64]| {
            let builder = meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(help);
            builder.with_boundaries(bounds.to_vec()).build()
        };
        Self {
            request: histogram(
                "gen_ai.server.request.duration",
                "Duration of a request.",
                &REQUEST_S,
            ),
            first_token: histogram(
                "gen_ai.server.time_to_first_token",
                "Time to the first token.",
                &FIRST_TOKEN_S,
            ),
            token: histogram(
                "gen_ai.server.time_per_output_token",
                "Time to each further token.",
                &TOKEN_S,
            ),
            http: histogram(
                "http.server.request.duration",
                "Duration of an HTTP request.",
                &HTTP_S,
            ),
        }
    }

    fn record(
        &self,
        record: &Record,
        details: &Details,
        ended: &RequestEnd,
        error: Option<&StringValue>,
        server: &[KeyValue],
    ) {
        let duration = ended.duration.as_secs_f64();
        let error = error.map(|error| KeyValue::new("error.type", error.clone()));
        let mut attributes = vec![
            KeyValue::new("http.request.method", record.method().to_owned()),
            KeyValue::new("http.route", record.route().to_owned()),
            KeyValue::new("http.response.status_code", i64::from(ended.status)),
            KeyValue::new("url.scheme", "http"),
        ];
        attributes.extend(error.clone());
        self.http.record(duration, &attributes);
        let Some(operation) = operation(record) else {
            return;
        };
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", PROVIDER),
        ];
        attributes.extend_from_slice(server);
        let Some(generation) = &details.generation else {
            // The request did not reach the queue.
            attributes.extend(error);
            return self.request.record(duration, &attributes);
        };
        let asked = asked_model(generation).to_owned();
        attributes.push(KeyValue::new("gen_ai.request.model", asked));
        attributes.push(KeyValue::new(
            "gen_ai.response.model",
            generation.model.clone(),
        ));
        // The two others count only requests that succeeded.
        if let (None, Some(first)) = (&error, generation.first_token) {
            let first = first.as_secs_f64();
            self.first_token.record(first, &attributes);
            // Only for a single answer: the tokens of several answers arrive together.
            if let (1, further @ 1..) = (
                generation.finish_reasons.len(),
                generation.usage.completion_tokens.saturating_sub(1),
            ) {
                self.token
                    .record((duration - first) / further as f64, &attributes);
            }
        }
        attributes.extend(error);
        self.request.record(duration, &attributes);
    }
}

/// The conventions' name for the operation, if the request uses the model.
fn operation(record: &Record) -> Option<&'static str> {
    match (record.method(), record.route()) {
        ("POST", "/v1/chat/completions") => Some("chat"),
        ("POST", "/v1/completions") => Some("text_completion"),
        _ => None,
    }
}

/// The model's name in the request, if it is one of ours. A lenient server accepts any name, but
/// text from clients must not become a label.
fn asked_model(generation: &Generation) -> &str {
    match generation.is_asked_ours {
        true => &generation.asked_model,
        false => &generation.model,
    }
}

fn generation_attributes(generation: &Generation) -> Vec<KeyValue> {
    let sampling = &generation.sampling;
    let strings = |list: Vec<StringValue>| Value::Array(list.into());
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", generation.operation),
        KeyValue::new("gen_ai.provider.name", PROVIDER),
        KeyValue::new("gen_ai.request.model", asked_model(generation).to_owned()),
        KeyValue::new("gen_ai.response.model", generation.model.clone()),
        KeyValue::new("gen_ai.response.id", generation.response_id.clone()),
        KeyValue::new(
            "gen_ai.output.type",
            if generation.is_json { "json" } else { "text" },
        ),
        KeyValue::new("gen_ai.request.stream", generation.is_stream),
        KeyValue::new("gen_ai.request.choice.count", generation.n as i64),
        KeyValue::new("gen_ai.request.seed", sampling.seed as i64),
        KeyValue::new(
            "gen_ai.request.temperature",
            f64::from(sampling.temperature),
        ),
        KeyValue::new("gen_ai.request.top_p", f64::from(sampling.top_p)),
        KeyValue::new("gen_ai.request.top_k", sampling.top_k as i64),
        KeyValue::new(
            "gen_ai.request.presence_penalty",
            f64::from(sampling.presence_penalty),
        ),
        KeyValue::new(
            "gen_ai.request.frequency_penalty",
            f64::from(sampling.frequency_penalty),
        ),
        KeyValue::new(
            "gen_ai.usage.input_tokens",
            generation.usage.prompt_tokens as i64,
        ),
        KeyValue::new(
            "gen_ai.usage.output_tokens",
            generation.usage.completion_tokens as i64,
        ),
        KeyValue::new(
            "gen_ai.usage.cache_read.input_tokens",
            generation.usage.prompt_tokens_details.cached_tokens as i64,
        ),
        KeyValue::new(
            "gen_ai.response.finish_reasons",
            strings(
                generation
                    .finish_reasons
                    .values()
                    .map(|&reason| reason.into())
                    .collect(),
            ),
        ),
    ];
    attributes.extend(
        generation
            .max_tokens
            .map(|max| KeyValue::new("gen_ai.request.max_tokens", max as i64)),
    );
    let first = generation.first_token.filter(|_| generation.is_stream);
    let first = first
        .map(|first| KeyValue::new("gen_ai.response.time_to_first_chunk", first.as_secs_f64()));
    attributes.extend(first);
    attributes
}
