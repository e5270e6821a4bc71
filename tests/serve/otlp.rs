//! OpenTelemetry: compares the data that a collector receives with clients' measurements, the log
//! and Prometheus.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue as Any, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, Metric, metric, number_data_point,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};
use crate::collector::Collector;
use crate::metrics::samples;

const CHAT: &str = "/v1/chat/completions";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

/// A server that exports to this collector at short intervals.
fn start(collector: &Collector, more: &[(&str, &str)]) -> Server {
    let endpoint = collector.endpoint();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
    ];
    let server = Server::start_with(&["--kv-memory", "16M"], &[&environment, more].concat());
    server.wait_until("ready", || server.get("/readyz").status == 200);
    server
}

/// A value as JSON.
fn value(any: Option<Any>) -> Value {
    match any.and_then(|any| any.value) {
        None => Value::Null,
        Some(AnyValue::StringValue(text)) => text.into(),
        Some(AnyValue::BoolValue(is)) => is.into(),
        Some(AnyValue::IntValue(number)) => number.into(),
        Some(AnyValue::DoubleValue(number)) => number.into(),
        Some(AnyValue::ArrayValue(list)) => list
            .values
            .into_iter()
            .map(|any| value(Some(any)))
            .collect(),
        Some(other) => panic!("unexpected value {other:?}"),
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, Value> {
    list.iter()
        .map(|pair| (pair.key.clone(), value(pair.value.clone())))
        .collect()
}

/// The metrics of the last export, by name.
fn metrics(collector: &Collector) -> BTreeMap<String, Metric> {
    let last = collector.collected.metrics().pop();
    let resources = last
        .into_iter()
        .flat_map(|request| request.resource_metrics);
    let metrics = resources
        .flat_map(|resource| resource.scope_metrics)
        .flat_map(|scope| scope.metrics);
    metrics
        .map(|metric| (metric.name.clone(), metric))
        .collect()
}

fn spans(collector: &Collector) -> Vec<Span> {
    let resources = collector
        .collected
        .traces()
        .into_iter()
        .flat_map(|request| request.resource_spans);
    resources
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

/// The points of a histogram in seconds whose counts add up over time.
#[track_caller]
fn points(metrics: &BTreeMap<String, Metric>, name: &str) -> Vec<HistogramDataPoint> {
    let metric = metrics
        .get(name)
        .unwrap_or_else(|| panic!("{name} is missing among {:?}", metrics.keys()));
    assert_eq!(metric.unit, "s", "{name}");
    let Some(metric::Data::Histogram(histogram)) = &metric.data else {
        panic!("{metric:?}")
    };
    assert_eq!(
        histogram.aggregation_temporality,
        AggregationTemporality::Cumulative as i32
    );
    for point in &histogram.data_points {
        assert_eq!(
            point.bucket_counts.iter().sum::<u64>(),
            point.count,
            "{name}"
        );
        assert_eq!(
            point.bucket_counts.len(),
            point.explicit_bounds.len() + 1,
            "{name}"
        );
    }
    histogram.data_points.clone()
}

/// The value of a sum or gauge without attributes.
#[track_caller]
fn number(metrics: &BTreeMap<String, Metric>, name: &str, unit: &str) -> f64 {
    let metric = metrics
        .get(name)
        .unwrap_or_else(|| panic!("{name} is missing among {:?}", metrics.keys()));
    assert_eq!(metric.unit, unit, "{name}");
    let points = match &metric.data {
        Some(metric::Data::Gauge(gauge)) => &gauge.data_points,
        Some(metric::Data::Sum(sum)) => {
            assert!(sum.is_monotonic, "{name}");
            &sum.data_points
        }
        other => panic!("{name} is {other:?}"),
    };
    match &points[..] {
        [point] => match point.value {
            Some(number_data_point::Value::AsDouble(number)) => number,
            Some(number_data_point::Value::AsInt(number)) => number as f64,
            None => panic!("{name} has no value"),
        },
        points => panic!("{name} has {} points", points.len()),
    }
}

fn seconds(span: &Span) -> f64 {
    (span.end_time_unix_nano - span.start_time_unix_nano) as f64 * 1e-9
}

/// Whether two times are equal up to rounding in their text form.
fn is_same(a: f64, b: f64) -> bool {
    (a - b).abs() < 2e-6
}

/// A client's measurements of a streamed answer.
struct Measured {
    request_id: String,
    first_chunk: f64,
    total: f64,
    num_tokens: u64,
}

fn stream(server: &Server, seed: u64) -> Measured {
    let body = chat(
        "Once upon a time",
        json!({ "stream": true, "seed": seed, "ignore_eos": true }),
    );
    let start = Instant::now();
    let mut open = server.open(CHAT, &body);
    let request_id = open
        .response
        .header("x-request-id")
        .expect("an id")
        .to_owned();
    // The first chunk has the role, and is sent when the queue admits the request; the second has
    // the first token.
    open.read_chunk();
    open.read_chunk();
    let first_chunk = start.elapsed().as_secs_f64();
    let events = open.finish().events();
    Measured {
        request_id,
        first_chunk,
        total: start.elapsed().as_secs_f64(),
        num_tokens: events.len() as u64 - 2,
    }
}

#[test]
fn metrics_match_clients_measurements_under_the_conventions_names() {
    let collector = Collector::start();
    let server = start(&collector, &[]);
    let measured: Vec<Measured> = (0..5).map(|seed| stream(&server, seed)).collect();
    let refused = server.post(CHAT, &json!({ "messages": [], "frobnicate": 1 }));
    assert_eq!(refused.status, 400);
    let too_long = server.post(
        "/v1/completions",
        &completion("Once", json!({ "max_tokens": 1_000_000 })),
    );
    assert_eq!(too_long.status, 400);
    let all = samples(&server);
    let records: Vec<Value> = measured
        .iter()
        .map(|measured| server.record(&measured.request_id))
        .collect();
    let is_whole = || {
        let found = metrics(&collector);
        let count = |name: &str| {
            found
                .contains_key(name)
                .then(|| points(&found, name).iter().map(|p| p.count).sum::<u64>())
        };
        count("gen_ai.server.request.duration") == Some(7)
            && count("http.server.request.duration") >= Some(8)
    };
    server.wait_until("sent", is_whole);
    let found = metrics(&collector);

    let server_address = json!(server.address.ip().to_string());
    let about_model = BTreeMap::from([
        ("gen_ai.operation.name".to_owned(), json!("chat")),
        ("gen_ai.provider.name".to_owned(), json!("bitnet")),
        ("gen_ai.request.model".to_owned(), json!("stories")),
        ("gen_ai.response.model".to_owned(), json!("stories")),
        ("server.address".to_owned(), server_address),
        ("server.port".to_owned(), json!(server.address.port())),
    ]);
    let one = |name: &str| {
        let points = points(&found, name);
        let mut answered = points
            .iter()
            .filter(|point| !attributes(&point.attributes).contains_key("error.type"));
        let (Some(point), None) = (answered.next(), answered.next()) else {
            panic!("{name} has {points:?}")
        };
        assert_eq!(attributes(&point.attributes), about_model, "{name}");
        point.clone()
    };
    let (request, first, token) = (
        one("gen_ai.server.request.duration"),
        one("gen_ai.server.time_to_first_token"),
        one("gen_ai.server.time_per_output_token"),
    );
    // Refused requests have no model yet.
    let mut refusals: Vec<Value> = Vec::new();
    for point in points(&found, "gen_ai.server.request.duration") {
        let attributes = attributes(&point.attributes);
        if let Some(error) = attributes.get("error.type") {
            assert_eq!(
                (point.count, attributes.get("gen_ai.request.model")),
                (1, None),
                "{attributes:?}"
            );
            refusals.push(json!([attributes["gen_ai.operation.name"], error]));
        }
    }
    refusals.sort_by_key(Value::to_string);
    let expected = [
        json!(["chat", "unknown_parameter"]),
        json!(["text_completion", "context_length_exceeded"]),
    ];
    assert_eq!(refusals, expected);
    // The buckets of the conventions, and further ones at both ends.
    assert_eq!(
        request.explicit_bounds[..14],
        [
            0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92
        ]
    );
    assert_eq!(
        first.explicit_bounds[..16],
        [
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0
        ]
    );
    assert_eq!(
        token.explicit_bounds[4..],
        [
            0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5
        ]
    );

    // The log, Prometheus and OpenTelemetry report the same measurement.
    let sum = |name: &str| {
        records
            .iter()
            .map(|record| record[name].as_f64().expect("a number") * 1e-3)
            .sum::<f64>()
    };
    assert!(
        is_same(request.sum.expect("a sum"), sum("duration_ms")),
        "{request:?} {records:?}"
    );
    assert!(
        is_same(first.sum.expect("a sum"), sum("first_token_ms")),
        "{first:?} {records:?}"
    );
    let labels = format!(
        "http_route=\"{CHAT}\",http_request_method=\"POST\",http_response_status_code=\"200\""
    );
    assert!(is_same(
        all[&format!("http_server_request_duration_seconds_sum{{{labels}}}")],
        sum("duration_ms")
    ));
    assert!(is_same(
        all["vllm:time_to_first_token_seconds_sum"],
        sum("first_token_ms")
    ));
    // Each client measures a longer time than the server.
    for (measured, record) in measured.iter().zip(&records) {
        let recorded = |name: &str| record[name].as_f64().expect("a number") * 1e-3;
        assert!(
            0.0 < recorded("first_token_ms") && recorded("first_token_ms") <= measured.first_chunk,
            "{record}"
        );
        assert!(
            recorded("first_token_ms") <= recorded("duration_ms")
                && recorded("duration_ms") <= measured.total,
            "{record}"
        );
        assert_eq!(record["generated_tokens"], measured.num_tokens);
    }
    // The value is (duration - time to the first token) / (tokens - 1), and all answers have the
    // same number of tokens.
    let further = measured[0].num_tokens - 1;
    let expected = (sum("duration_ms") - sum("first_token_ms")) / further as f64;
    assert!(
        is_same(token.sum.expect("a sum"), expected),
        "{token:?}, expected {expected}"
    );
    assert_eq!((request.count, first.count, token.count), (5, 5, 5));

    let http = points(&found, "http.server.request.duration");
    assert_eq!(
        http[0].explicit_bounds,
        [
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
        ]
    );
    let of = |route: &str, status: u16| {
        let is_it = |point: &&HistogramDataPoint| {
            let attributes = attributes(&point.attributes);
            attributes["http.route"] == route && attributes["http.response.status_code"] == status
        };
        http.iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no {status} of {route} in {http:?}"))
    };
    assert_eq!(
        (
            of(CHAT, 200).count,
            of(CHAT, 400).count,
            of("/v1/completions", 400).count
        ),
        (5, 1, 1)
    );
    let refused = attributes(&of("/v1/completions", 400).attributes);
    assert_eq!(
        (
            &refused["error.type"],
            &refused["http.request.method"],
            &refused["url.scheme"]
        ),
        (
            &json!("context_length_exceeded"),
            &json!("POST"),
            &json!("http")
        )
    );

    for (name, other) in [
        ("bitnet.tokens.generated", "vllm:generation_tokens_total"),
        ("bitnet.tokens.prompt", "vllm:prefix_cache_queries_total"),
        ("bitnet.tokens.cached", "vllm:prefix_cache_hits_total"),
    ] {
        assert_eq!(number(&found, name, "{token}"), all[other], "{name}");
    }
    assert_eq!(number(&found, "bitnet.requests.running", "{request}"), 0.0);
    assert_eq!(number(&found, "bitnet.requests.waiting", "{request}"), 0.0);
    assert_eq!(number(&found, "bitnet.kv_cache.usage", "1"), 0.0);

    let last = collector.collected.metrics().pop().expect("an export");
    let resource = attributes(
        &last.resource_metrics[0]
            .resource
            .as_ref()
            .expect("a resource")
            .attributes,
    );
    assert_eq!(
        (
            &resource["service.name"],
            &resource["service.version"],
            &resource["deployment.environment.name"]
        ),
        (
            &json!("bitnet"),
            &json!(env!("CARGO_PKG_VERSION")),
            &json!("test")
        )
    );
}

#[test]
fn a_trace_shows_the_time_of_each_phase() {
    let collector = Collector::start();
    let server = start(&collector, &[]);
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let more = json!({ "stream": true, "max_tokens": 12, "stop": ["zebra"], "temperature": 0.5, "ignore_eos": true });
    let response = server.post_with(
        CHAT,
        &chat("Once upon a time", more),
        &[("traceparent", &parent)],
    );
    assert_eq!(response.status, 200);
    let id = response.events()[0]["id"].clone();
    let record = server.record(response.header("x-request-id").expect("an id"));
    let ours = || {
        let spans = spans(&collector).into_iter();
        spans
            .filter(|span| hex(&span.trace_id) == TRACE_ID)
            .collect::<Vec<_>>()
    };
    server.wait_until("sent", || ours().len() == 5);
    let ours = ours();
    let span = |name: &str| {
        ours.iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no {name} in {ours:?}"))
    };
    let (http, operation) = (span("POST /v1/chat/completions"), span("chat stories"));
    let phases = ["queue", "prefill", "decode"].map(span);
    assert_eq!(
        (http.kind, hex(&http.parent_span_id)),
        (SpanKind::Server as i32, PARENT_ID.to_owned())
    );
    assert_eq!(
        (operation.kind, &operation.parent_span_id),
        (SpanKind::Internal as i32, &http.span_id)
    );
    for phase in phases {
        assert_eq!(
            (phase.kind, &phase.parent_span_id),
            (SpanKind::Internal as i32, &operation.span_id)
        );
    }
    // Each phase begins where the last one ended; all lie within the operation, which lies within
    // the request.
    let [queue, prefill, decode] = phases;
    assert_eq!(operation.start_time_unix_nano, queue.start_time_unix_nano);
    assert_eq!(queue.end_time_unix_nano, prefill.start_time_unix_nano);
    assert_eq!(prefill.end_time_unix_nano, decode.start_time_unix_nano);
    assert_eq!(decode.end_time_unix_nano, operation.end_time_unix_nano);
    assert!(http.start_time_unix_nano <= operation.start_time_unix_nano);
    assert!(operation.end_time_unix_nano <= http.end_time_unix_nano);
    let recorded = |name: &str| record[name].as_f64().expect("a number") * 1e-3;
    assert!(
        is_same(seconds(http), recorded("duration_ms"))
            && is_same(seconds(queue), recorded("queue_ms"))
    );
    let first_token = (prefill.end_time_unix_nano - http.start_time_unix_nano) as f64 * 1e-9;
    assert!(
        is_same(first_token, recorded("first_token_ms")),
        "{first_token} {record}"
    );

    let about = attributes(&http.attributes);
    assert_eq!(
        (
            &about["http.response.status_code"],
            &about["bitnet.request_id"]
        ),
        (&json!(200), &record["request_id"])
    );
    assert_eq!(
        (&about["url.path"], &about["url.scheme"]),
        (&json!(CHAT), &json!("http"))
    );
    let mut about = attributes(&operation.attributes);
    let first_chunk = about
        .remove("gen_ai.response.time_to_first_chunk")
        .and_then(|value| value.as_f64());
    assert!(is_same(
        first_chunk.expect("a time"),
        recorded("first_token_ms")
    ));
    let sampling: Vec<_> = ["top_p", "top_k", "presence_penalty", "frequency_penalty"]
        .map(|name| format!("gen_ai.request.{name}"))
        .into();
    for name in sampling {
        assert!(
            about.remove(&name).is_some_and(|value| value.is_number()),
            "{name}"
        );
    }
    let expected = json!({
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "bitnet",
        "gen_ai.request.model": "stories",
        "gen_ai.response.model": "stories",
        "gen_ai.response.id": id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.output.type": "text",
        "gen_ai.request.stream": true,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.usage.input_tokens": record["prompt_tokens"],
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": record["cached_tokens"],
        "server.address": server.address.ip().to_string(),
        "server.port": server.address.port(),
    });
    assert_eq!(json!(about), expected);
    // Spans do not contain prompts or answers.
    let everything = format!(
        "{:?} {:?}",
        collector.collected.traces(),
        collector.collected.metrics()
    );
    assert!(!everything.contains("upon a time") && !everything.contains("zebra"));
}

#[test]
fn spans_have_the_fields_of_the_request_and_the_answer() {
    let collector = Collector::start();
    let server = start(
        &collector,
        &[
            ("BITNET_SERVE_MODEL_NAME", "a,b"),
            ("BITNET_SERVE_LENIENT", "true"),
        ],
    );
    let tools = json!([{ "type": "function", "function": { "name": "stop" } }]);
    let call = json!({ "model": "b", "tools": tools, "tool_choice": "required", "parallel_tool_calls": false,
                       "max_tokens": 200 });
    let form = json!({ "model": "made up", "response_format": { "type": "json_object" }, "max_tokens": 3 });
    let mut asked = Vec::new();
    for (more, name, kind, reason) in [
        (call.clone(), "b", "text", "tool_calls"),
        (
            with(call, json!({ "stream": true })),
            "b",
            "text",
            "tool_calls",
        ),
        // Unknown names that clients send are not exported.
        (form, "a", "json", "length"),
        (json!({ "max_tokens": 2 }), "a", "text", "length"),
    ] {
        let response = server.post(CHAT, &chat("Once", more));
        let id = response.header("x-request-id").expect("an id").to_owned();
        let last = match response.header("content-type") {
            Some("application/json") => response.json(),
            _ => response.events().pop().expect("chunks"),
        };
        assert_eq!(
            (&last["choices"][0]["finish_reason"], &last["model"]),
            (&json!(reason), &json!("a"))
        );
        assert_eq!(server.record(&id)["finish_reason"], reason);
        asked.push((last["id"].clone(), name, kind, reason));
    }
    let of = |id: &Value| {
        let spans = spans(&collector)
            .into_iter()
            .map(|span| (span.name, attributes(&span.attributes)));
        spans
            .into_iter()
            .find(|(_, about)| about.get("gen_ai.response.id") == Some(id))
    };
    server.wait_until("sent", || asked.iter().all(|(id, ..)| of(id).is_some()));
    for (id, name, kind, reason) in &asked {
        let (span, about) = of(id).expect("a span");
        assert_eq!(span, format!("chat {name}"));
        assert_eq!(
            (
                &about["gen_ai.request.model"],
                &about["gen_ai.response.model"]
            ),
            (&json!(name), &json!("a"))
        );
        assert_eq!(about["gen_ai.output.type"], *kind);
        assert_eq!(about["gen_ai.response.finish_reasons"], json!([reason]));
    }
    server.wait_until("sent", || {
        metrics(&collector).contains_key("gen_ai.server.request.duration")
    });
    let counts = || -> BTreeMap<String, u64> {
        let points = points(&metrics(&collector), "gen_ai.server.request.duration").into_iter();
        points
            .map(|point| {
                (
                    attributes(&point.attributes)["gen_ai.request.model"].to_string(),
                    point.count,
                )
            })
            .collect()
    };
    // Arbitrary text from clients must not become a label.
    let expected = BTreeMap::from([("\"a\"".to_owned(), 2), ("\"b\"".to_owned(), 2)]);
    server.wait_until("counted", || counts() == expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_trace_that_is_not_sampled_is_not_sent() {
    let collector = Collector::start();
    let server = start(
        &collector,
        &[("OTEL_TRACES_SAMPLER", "parentbased_always_on")],
    );
    let other = "1bf92f3577b34da6a3ce929d0e0e4736";
    for (trace, flags) in [(other, "00"), (TRACE_ID, "01")] {
        let parent = format!("00-{trace}-{PARENT_ID}-{flags}");
        let body = chat("Once", json!({ "max_tokens": 2 }));
        assert_eq!(
            server
                .post_with(CHAT, &body, &[("traceparent", &parent)])
                .status,
            200
        );
    }
    let has = |trace: &str| {
        spans(&collector)
            .iter()
            .any(|span| hex(&span.trace_id) == trace)
    };
    server.wait_until("sent", || has(TRACE_ID));
    assert!(!has(other));
}

#[cfg(unix)]
#[test]
fn remaining_telemetry_is_sent_at_shutdown() {
    let collector = Collector::start();
    // These intervals are longer than this test waits.
    let late = [
        ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ];
    let server = start(&collector, &late);
    server.answer(CHAT, &chat("Once", json!({ "max_tokens": 2 })));
    assert!(collector.collected.metrics().is_empty() && collector.collected.traces().is_empty());
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(
        points(&metrics(&collector), "gen_ai.server.request.duration")[0].count,
        1
    );
    assert!(
        spans(&collector)
            .iter()
            .any(|span| span.name == "chat stories")
    );
}

#[cfg(unix)]
#[test]
fn only_configured_signals_are_sent() {
    let collector = Collector::start();
    let silent = Server::start(&["--kv-memory", "16M"]);
    silent.answer(CHAT, &chat("Once", json!({ "max_tokens": 2 })));
    drop(silent);
    let disabled = start(&collector, &[("OTEL_SDK_DISABLED", "true")]);
    disabled.answer(CHAT, &chat("Once", json!({ "max_tokens": 2 })));
    disabled.signal("TERM");
    assert!(disabled.wait().success());
    assert!(collector.collected.metrics().is_empty() && collector.collected.traces().is_empty());
    let traces = start(&collector, &[("OTEL_METRICS_EXPORTER", "none")]);
    traces.answer(CHAT, &chat("Once", json!({ "max_tokens": 2 })));
    traces.signal("TERM");
    assert!(traces.wait().success());
    assert!(collector.collected.metrics().is_empty() && !collector.collected.traces().is_empty());
}

#[cfg(unix)]
#[test]
fn a_missing_collector_does_not_affect_requests() {
    let endpoint = "http://127.0.0.1:9";
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
    ];
    let server = Server::start_with(&["--kv-memory", "16M"], &environment);
    server.wait_until("ready", || server.get("/readyz").status == 200);
    for _ in 0..3 {
        server.answer(CHAT, &chat("Once", json!({ "max_tokens": 8 })));
        std::thread::sleep(Duration::from_millis(60));
    }
    server.signal("TERM");
    assert!(server.wait().success());
}
