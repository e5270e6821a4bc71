//! Metrics: every one counts real events, under the names that dashboards read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::{Server, chat, completion, with};

const CHAT: &str = "/v1/chat/completions";

/// Samples of the text format, by name and labels as written, without the labels that all metrics
/// of the model share.
pub fn samples(server: &Server) -> BTreeMap<String, f64> {
    let response = server.get("/metrics");
    assert_eq!(
        response.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = response.text();
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            assert!(
                kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{name} is described once"
            );
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let family = name.split('{').next().expect("a name");
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| {
                    family
                        .strip_suffix(end)
                        .filter(|family| kinds.get(*family).is_some_and(|kind| kind == "histogram"))
                })
                .unwrap_or(family);
            assert!(kinds.contains_key(family), "{line} is described");
            let name = name
                .replace("model_name=\"stories\",engine=\"0\"", "")
                .replace("{,", "{")
                .replace("{}", "");
            let value = value.parse().expect("a number");
            assert!(
                samples.insert(name, value).is_none(),
                "{line} is there once"
            );
        }
    }
    samples
}

#[test]
fn metrics_match_the_answers() {
    let server = Server::start(&["--kv-memory", "16M"]);
    let long = "Once upon a time there was a little girl who had a red ball. ".repeat(6);
    let mut usage = [0.0; 3];
    let mut longest = 0;
    for more in [
        json!({}),
        json!({ "n": 3, "stop": "the" }),
        json!({ "stop": "a" }),
    ] {
        let body = with(chat(&long, json!({ "return_token_ids": true })), more);
        let answer = server.answer(CHAT, &body);
        let count = |value: &Value| value.as_f64().expect("a number");
        let n = body["n"].as_f64().unwrap_or(1.0);
        usage[0] += n * count(&answer["usage"]["prompt_tokens"]);
        usage[1] += count(&answer["usage"]["completion_tokens"]);
        usage[2] += n;
        let text = |choice: &Value| choice["token_ids"].as_array().map_or(0, Vec::len);
        longest += answer["choices"]
            .as_array()
            .expect("answers")
            .iter()
            .map(text)
            .max()
            .expect("an answer");
    }
    let [prompt, generated, answers] = usage;
    server.post(CHAT, &json!({}));
    let all = samples(&server);
    let of = |name: &str| {
        *all.get(name)
            .unwrap_or_else(|| panic!("{name} is missing in {all:#?}"))
    };
    assert_eq!(of("vllm:prompt_tokens_total"), prompt);
    assert_eq!(of("vllm:generation_tokens_total"), generated);
    let ended = |reason: &str| {
        of(&format!(
            "vllm:request_success_total{{finished_reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(ended("stop") + ended("length"), answers);
    assert!(ended("stop") >= 1.0 && ended("abort") == 0.0 && ended("error") == 0.0);
    for name in [
        "e2e_request_latency",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
        "request_inference_time",
        "time_to_first_token",
    ] {
        assert_eq!(of(&format!("vllm:{name}_seconds_count")), answers, "{name}");
    }
    assert_eq!(
        of("vllm:inter_token_latency_seconds_count"),
        generated - answers
    );
    assert_eq!(
        (
            of("vllm:request_max_num_generation_tokens_sum"),
            of("vllm:request_max_num_generation_tokens_count")
        ),
        (longest as f64, 3.0)
    );
    // Each metric has two names.
    for (name, older) in [
        (
            "inter_token_latency_seconds_count",
            "time_per_output_token_seconds_count",
        ),
        (
            "inter_token_latency_seconds_sum",
            "time_per_output_token_seconds_sum",
        ),
        ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    ] {
        assert_eq!(
            of(&format!("vllm:{name}")),
            of(&format!("vllm:{older}")),
            "{older}"
        );
    }
    assert_eq!(of("vllm:request_prompt_tokens_sum"), prompt);
    assert_eq!(of("vllm:request_generation_tokens_sum"), generated);
    assert_eq!(
        (
            of("vllm:request_params_n_sum"),
            of("vllm:request_params_n_count")
        ),
        (5.0, 3.0)
    );
    assert_eq!(of("vllm:prefix_cache_queries_total"), prompt);
    assert!(of("vllm:prefix_cache_hits_total") > 0.0);
    assert_eq!(
        of("vllm:iteration_tokens_total_count"),
        of("bitnet_engine_steps_total")
    );
    assert_eq!(
        of("vllm:iteration_tokens_total_sum"),
        of("bitnet_engine_tokens_total")
    );
    assert_eq!(
        (
            of("vllm:num_requests_running"),
            of("vllm:num_requests_waiting"),
            of("vllm:kv_cache_usage_perc")
        ),
        (0.0, 0.0, 0.0)
    );
    assert!(
        all.keys()
            .any(|name| name.starts_with("vllm:cache_config_info{block_size=\"")),
        "{all:#?}"
    );
    let http = |status: u16| {
        let labels = format!(
            "http_route=\"{CHAT}\",http_request_method=\"POST\",http_response_status_code=\"{status}\""
        );
        of(&format!(
            "http_server_request_duration_seconds_count{{{labels}}}"
        ))
    };
    assert_eq!((http(200), http(400)), (3.0, 1.0));
    // Buckets are cumulative.
    for (name, count) in all.iter().filter(|(name, _)| name.contains("le=\"+Inf\"")) {
        let total = name
            .replace("_bucket", "_count")
            .replace(",le=\"+Inf\"", "")
            .replace("{le=\"+Inf\"}", "");
        assert_eq!(of(&total), *count, "{name}");
    }
}

#[test]
fn metrics_show_running_and_waiting_requests() {
    let server = Server::start(&["--ctx-size", "100000", "--running", "1"]);
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": 90_000 });
    let mut running = server.open(CHAT, &chat("Once upon a time", endless.clone()));
    running.read_chunk();
    let waiting = server.open(CHAT, &chat("Once upon a time", endless));
    let of = |name: &str| samples(&server)[name];
    server.wait_until("running", || of("vllm:num_requests_running") == 1.0);
    assert_eq!(of("vllm:num_requests_waiting"), 1.0);
    assert!(of("bitnet_queue_prompt_tokens") > 0.0 && of("vllm:kv_cache_usage_perc") > 0.0);
    let report = server.send(
        "GET",
        "/health",
        &[("endpoint-load-metrics-format", "TEXT")],
        b"",
    );
    let report = report
        .header("endpoint-load-metrics")
        .expect("a report")
        .to_owned();
    assert!(
        report.starts_with("TEXT named_metrics.kv_cache_usage_perc=0.")
            && report.ends_with("num_requests_waiting=1"),
        "{report}"
    );
    drop((running, waiting));
    server.wait_until("forgotten", || {
        of("vllm:num_requests_running") + of("vllm:num_requests_waiting") == 0.0
    });
    assert_eq!(
        of("vllm:request_success_total{finished_reason=\"abort\"}"),
        2.0
    );
    server.wait_until("free", || of("vllm:kv_cache_usage_perc") == 0.0);
    server.answer("/v1/completions", &completion("Once", json!({})));
}

#[test]
fn drafts_are_counted_with_accepted_tokens_by_position() {
    let server = Server::start(&["--draft", "4"]);
    // Greedy answers of the small model repeat themselves.
    let more = json!({ "temperature": 0, "max_tokens": 300, "ignore_eos": true });
    server.answer(
        CHAT,
        &chat(
            "Once upon a time there was a cat. The cat saw a cat. The cat saw a cat.",
            more,
        ),
    );
    let all = samples(&server);
    let of = |name: &str| all[&format!("vllm:spec_decode_num_{name}")];
    let at = |position: usize| {
        of(&format!(
            "accepted_tokens_per_pos_total{{position=\"{position}\"}}"
        ))
    };
    let by_position: Vec<f64> = (0..16).map(at).collect();
    assert!(
        by_position[0] > 0.0 && of("drafts_total") >= by_position[0],
        "{all:#?}"
    );
    assert!(
        by_position.is_sorted_by(|earlier, later| earlier >= later),
        "{by_position:?}"
    );
    assert_eq!(by_position.iter().sum::<f64>(), of("accepted_tokens_total"));
    assert!(
        by_position[4..].iter().all(|count| *count == 0.0),
        "a draft has 4 tokens"
    );
    let drafts = of("drafts_total");
    assert!(
        (drafts..=4.0 * drafts).contains(&of("draft_tokens_total")),
        "{all:#?}"
    );
}
