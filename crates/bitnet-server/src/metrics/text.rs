//! The metrics as text: what a scrape of `/metrics` gets, in Prometheus' own format or in
//! OpenMetrics.
//!
//! [`Scene::text`] lists the parts in the order in which they are written.

use std::fmt::{Display, Write};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use bitnet_inference::{EngineCounts, EngineStats, HeadUse, StateCounts};

use super::{Histogram, HttpMetrics, Metrics, ModelScene, Outcome, Scene};
use crate::batch::store::BatchNumbers;
use crate::connections::Connections;
use crate::queue;
use crate::text::TextUse;

/// A format of the text. They differ in the heads of counters, in the bounds of histograms, and in
/// the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextFormat {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// The format that the header `Accept` of a request prefers. Prometheus' own format wins where
    /// both are as welcome.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        let mut weights = [0.0f32; 2];
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let weight: f32 = weight.unwrap_or(1.0);
            let is = |name: &str| media_type.eq_ignore_ascii_case(name);
            if is("application/openmetrics-text") {
                weights[1] = weight.max(weights[1]);
            } else if is("text/plain") || is("text/*") || is("*/*") {
                weights[0] = weight.max(weights[0]);
            }
        }
        match weights[1] > weights[0] {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// The header `Content-Type` of such a text.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Scene<'_> {
    /// All metrics as text.
    pub(crate) fn text(&self, models: &[ModelScene<'_>], format: TextFormat) -> String {
        let mut w = Writer {
            families: Vec::new(),
            next: 0,
            labels: String::new(),
            format,
        };
        for model in models {
            // The same families again, for another model.
            w.next = 0;
            w.labels = format!("model_name=\"{}\",engine=\"0\"", quoted(model.name));
            w.model(model);
        }
        // The metrics from here on have no labels of a model.
        w.labels.clear();
        w.http(self.http);
        w.connections(self.connections, self.inflight_bytes);
        w.text_threads(&self.text);
        w.batches(self.batches.as_ref());
        w.process(self);
        let mut out: String = w.families.concat();
        if format == TextFormat::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

impl Histogram {
    fn write(&self, out: &mut String, name: &str, labels: &str, format: TextFormat) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        let bounds = self
            .bounds
            .iter()
            .map(|bound| match format {
                TextFormat::Prometheus => bound.to_string(),
                // Bounds have a point.
                TextFormat::OpenMetrics => format!("{bound:?}"),
            })
            .chain(["+Inf".to_owned()]);
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.get();
            let _ = writeln!(
                out,
                "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"
            );
        }
        let _ = writeln!(
            out,
            "{name}_sum{{{labels}}} {}",
            f64::from_bits(self.sum.load(Ordering::Relaxed))
        );
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

/// Writes metrics as text.
struct Writer {
    /// The metrics in their order, each with its head and the samples of all models so far.
    families: Vec<String>,
    /// The index of the metric after the one that is written.
    next: usize,
    /// Labels on all metrics of the model.
    labels: String,
    format: TextFormat,
}

impl Writer {
    /// Begins the next metric. Every model has the same ones, so the head is written once.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.next += 1;
        if self.next <= self.families.len() {
            return;
        }
        // In OpenMetrics the ending belongs to the sample, not to the metric.
        let name = match self.format {
            TextFormat::OpenMetrics if kind == "counter" => name.trim_end_matches("_total"),
            _ => name,
        };
        let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.families.push(head);
    }

    /// The text of the metric that was begun last.
    fn family(&mut self) -> &mut String {
        &mut self.families[self.next - 1]
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let comma = if labels.is_empty() || self.labels.is_empty() {
            ""
        } else {
            ","
        };
        let line = format!("{name}{{{}{comma}{labels}}} {value}\n", self.labels);
        self.family().push_str(&line);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.value(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let (family, format) = (&mut self.families[self.next - 1], self.format);
        histogram.write(family, name, &self.labels, format);
    }

    fn counters(&mut self, table: &[(&str, &str, u64)]) {
        for (name, help, value) in table {
            self.counter(name, help, *value);
        }
    }

    fn histograms(&mut self, table: &[(&str, &str, &Histogram)]) {
        for (name, help, histogram) in table {
            self.histogram(name, help, histogram);
        }
    }
}

/// The metrics of the engine and its model.
impl Writer {
    fn model(&mut self, model: &ModelScene<'_>) {
        let metrics = model.metrics;
        let stats = metrics.engine.stats();
        self.queue(&model.queue);
        self.gauge(
            "bitnet_model_loaded",
            "1 if the model is loaded.",
            u8::from(model.is_loaded),
        );
        self.cache(metrics.cache_usage(), model.block_size, &stats);
        self.states(stats.states);
        self.answers(metrics);
        self.reuse(&stats.counts);
        self.drafts(&stats.counts);
        self.engine(&stats);
        self.durations(metrics);
        self.sizes(metrics);
    }

    fn queue(&mut self, queue: &queue::Counts) {
        self.gauge(
            "vllm:num_requests_running",
            "Answers that the engine computes.",
            queue.running,
        );
        self.gauge(
            "vllm:num_requests_waiting",
            "Answers that the engine has not begun.",
            queue.waiting,
        );
        self.gauge(
            "bitnet_queue_prompt_tokens",
            "Prompt tokens of the answers that wait.",
            queue.waiting_tokens,
        );
        self.gauge(
            "bitnet_batch_requests_waiting",
            "Answers to requests of batches that the engine has not begun.",
            queue.waiting_background,
        );
    }

    /// The key/value cache; `usage` is from 0 to 1.
    fn cache(&mut self, usage: f64, block_size: usize, stats: &EngineStats) {
        // Older dashboards ask for the second name.
        for name in ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"] {
            self.gauge(
                name,
                "Part of the key/value cache in use, from 0 to 1.",
                usage,
            );
        }
        self.head(
            "vllm:cache_config_info",
            "gauge",
            "The key/value cache: tokens of a block, and blocks.",
        );
        let config = format!(
            "block_size=\"{block_size}\",num_gpu_blocks=\"{}\"",
            stats.num_blocks
        );
        self.value("vllm:cache_config_info", &config, 1);
    }

    /// The memory for recurrent states; all 0 for a model without them.
    fn states(&mut self, states: StateCounts) {
        let StateCounts {
            held,
            saved,
            slots,
            bytes,
        } = states;
        let name = "bitnet_recurrent_states";
        self.head(
            name,
            "gauge",
            "Recurrent states: held by answers, saved for requests with the same beginning, or free.",
        );
        let free = slots - held - saved;
        for (kind, count) in [("held", held), ("saved", saved), ("free", free)] {
            self.value(name, &format!("kind=\"{kind}\""), count);
        }
        self.gauge(
            "bitnet_recurrent_state_bytes",
            "Bytes of one recurrent state.",
            bytes,
        );
    }

    fn answers(&mut self, metrics: &Metrics) {
        let name = "vllm:request_success_total";
        self.head(name, "counter", "Answers that ended, by the reason.");
        for outcome in Outcome::ALL {
            let label = format!("finished_reason=\"{}\"", outcome.name());
            self.value(name, &label, metrics.outcomes[outcome as usize].get());
        }
        self.counter(
            "vllm:prompt_tokens_total",
            "Prompt tokens of whole answers.",
            metrics.prompt_tokens.get(),
        );
        self.counter(
            "vllm:generation_tokens_total",
            "Tokens generated.",
            metrics.generated_tokens.get(),
        );
    }

    /// Blocks taken away from answers, and prompts found in the cache.
    fn reuse(&mut self, counts: &EngineCounts) {
        self.counters(&[
            (
                "vllm:num_preemptions_total",
                "Answers that had to give their blocks up.",
                counts.preemptions,
            ),
            (
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the cache.",
                counts.prompt_tokens,
            ),
            (
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found in the cache.",
                counts.cached_tokens,
            ),
        ]);
    }

    fn drafts(&mut self, counts: &EngineCounts) {
        self.counters(&[
            (
                "vllm:spec_decode_num_drafts_total",
                "Drafts, each some tokens guessed ahead.",
                counts.drafts,
            ),
            (
                "vllm:spec_decode_num_draft_tokens_total",
                "Tokens guessed ahead.",
                counts.drafted_tokens,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens_total",
                "Guessed tokens that were accepted.",
                counts.accepted_tokens,
            ),
        ]);
        let name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
        self.head(
            name,
            "counter",
            "Accepted tokens by their position in the draft.",
        );
        for (place, accepted) in counts.accepted_by_place.iter().enumerate() {
            self.value(name, &format!("position=\"{place}\""), accepted);
        }
    }

    fn engine(&mut self, stats: &EngineStats) {
        let HeadUse {
            screened,
            fell_back,
            ..
        } = stats.head_use;
        self.counters(&[
            (
                "bitnet_engine_steps_total",
                "Steps that ran tokens through the model.",
                stats.counts.steps,
            ),
            (
                "bitnet_engine_tokens_total",
                "Tokens run through the model.",
                stats.counts.computed_tokens,
            ),
            (
                "bitnet_engine_panics_total",
                "Times that the engine panicked and was replaced.",
                stats.panics,
            ),
            (
                "bitnet_engine_device_failures_total",
                "Times that the device failed and the model had to be loaded again.",
                stats.device_failures,
            ),
            (
                "bitnet_head_screened_tokens_total",
                "Tokens sampled from estimated logits.",
                screened,
            ),
            (
                "bitnet_head_fallback_tokens_total",
                "Tokens for which all logits were computed.",
                fell_back,
            ),
        ]);
    }

    /// The times of requests and their phases.
    fn durations(&mut self, metrics: &Metrics) {
        self.histogram(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            &metrics.first_token,
        );
        // Older dashboards ask for the second name.
        for name in [
            "vllm:inter_token_latency_seconds",
            "vllm:time_per_output_token_seconds",
        ] {
            self.histogram(name, "From a token to the next.", &metrics.inter_token);
        }
        self.histograms(&[
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time from a token to the next, of whole answers.",
                &metrics.token,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to the answer's end.",
                &metrics.total,
            ),
            (
                "vllm:request_queue_time_seconds",
                "From admission to the engine's beginning.",
                &metrics.queued,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "From the engine's beginning to the first token.",
                &metrics.prefill,
            ),
            (
                "vllm:request_decode_time_seconds",
                "From the first token to the last.",
                &metrics.decode,
            ),
            (
                "vllm:request_inference_time_seconds",
                "From the engine's beginning to the last token.",
                &metrics.inference,
            ),
        ]);
    }

    /// Numbers of tokens and answers, requested and computed.
    fn sizes(&mut self, metrics: &Metrics) {
        self.histograms(&[
            (
                "vllm:request_prompt_tokens",
                "Tokens of a prompt.",
                &metrics.prompt_length,
            ),
            (
                "vllm:request_generation_tokens",
                "Tokens of an answer.",
                &metrics.answer_length,
            ),
            (
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest of all answers to a prompt.",
                &metrics.longest_answer,
            ),
            (
                "vllm:request_params_n",
                "Requested answers to each prompt.",
                &metrics.answers_asked,
            ),
            (
                "vllm:request_params_max_tokens",
                "Requested maximum of tokens.",
                &metrics.max_tokens_asked,
            ),
            (
                "vllm:iteration_tokens_total",
                "Tokens of a step of the engine.",
                &metrics.step_tokens,
            ),
        ]);
    }
}

/// The metrics of the process outside the engine.
impl Writer {
    fn http(&mut self, metrics: &HttpMetrics) {
        let name = "http_server_request_duration_seconds";
        self.head(
            name,
            "histogram",
            "From a request's headers to the end of its answer.",
        );
        let requests = metrics
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let format = self.format;
        for ((route, method, status), histogram) in &*requests {
            let labels = format!(
                "http_route=\"{}\",http_request_method=\"{}\",http_response_status_code=\"{status}\"",
                quoted(route),
                quoted(method)
            );
            histogram.write(self.family(), name, &labels, format);
        }
    }

    fn connections(&mut self, connections: &Connections, inflight_bytes: usize) {
        let Connections {
            closed_idle,
            refused,
            accept_failures,
            ..
        } = connections;
        self.gauge(
            "bitnet_connections",
            "Open connections.",
            connections.num_open(),
        );
        self.counters(&[
            (
                "bitnet_connections_closed_idle_total",
                "Idle connections that were closed to make room for others.",
                closed_idle.load(Ordering::Relaxed),
            ),
            (
                "bitnet_connections_refused_total",
                "Connections that found no place.",
                refused.load(Ordering::Relaxed),
            ),
            (
                "bitnet_accept_failures_total",
                "Connections that the system could not hand over.",
                accept_failures.load(Ordering::Relaxed),
            ),
        ]);
        self.gauge(
            "bitnet_inflight_body_bytes",
            "Bytes of request bodies in memory.",
            inflight_bytes,
        );
    }

    /// The threads that read requests' text and compile forms.
    fn text_threads(&mut self, text: &TextUse) {
        let TextUse {
            reading,
            compiling,
            forms_waiting,
            num_forms,
            oldest,
        } = *text;
        self.gauge(
            "bitnet_text_running",
            "Requests whose text is read now.",
            reading,
        );
        self.gauge(
            "bitnet_forms_compiling",
            "Forms of answers that are compiled now.",
            compiling,
        );
        self.gauge(
            "bitnet_forms_waiting",
            "Forms of answers that wait to be compiled.",
            forms_waiting,
        );
        self.counter(
            "bitnet_forms_compiled_total",
            "Forms of answers that were compiled; those known from before are not.",
            num_forms,
        );
        self.gauge(
            "bitnet_text_oldest_seconds",
            "How long the oldest of these has been at it.",
            oldest.as_secs_f64(),
        );
    }

    /// The batches of a server with a folder for state.
    fn batches(&mut self, numbers: Option<&BatchNumbers>) {
        let Some(numbers) = numbers else {
            return;
        };
        let name = "bitnet_batches";
        self.head(name, "gauge", "Batches, by their status.");
        for (status, count) in numbers.by_status {
            self.value(name, &format!("status=\"{}\"", status.name()), count);
        }
        let name = "bitnet_batch_requests_total";
        self.head(name, "counter", "Requests of batches, by their end.");
        for (end, count) in [("completed", numbers.completed), ("failed", numbers.failed)] {
            self.value(name, &format!("end=\"{end}\""), count);
        }
        self.gauge("bitnet_files", "Stored files.", numbers.files);
        self.gauge("bitnet_files_bytes", "Their bytes.", numbers.bytes);
    }

    fn process(&mut self, scene: &Scene<'_>) {
        self.gauge(
            "bitnet_model_file_changed",
            "1 if a file of the model was changed while it is in use.",
            u8::from(scene.is_damaged),
        );
        self.counter(
            "bitnet_log_lines_lost_total",
            "Log lines that could not be written: a full disk, or a reader that sleeps.",
            scene.lost_log_lines,
        );
        self.head("bitnet_build_info", "gauge", "The version of the program.");
        self.value(
            "bitnet_build_info",
            concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""),
            1,
        );
        let started = scene
            .http
            .started
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.gauge(
            "process_start_time_seconds",
            "When the server started, in seconds since 1970.",
            started.as_secs_f64(),
        );
        if let Some(bytes) = bitnet_guard::rss_bytes() {
            self.gauge(
                "process_resident_memory_bytes",
                "Memory that is resident.",
                bytes,
            );
        }
    }
}

/// A label's value, as Prometheus quotes it.
fn quoted(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_buckets_include_their_upper_bound() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for value in [0.5, 0.75, 1.0, 3.0, 0.0] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "a=\"b\"", TextFormat::Prometheus);
        let expected = "x_bucket{a=\"b\",le=\"0.5\"} 2\nx_bucket{a=\"b\",le=\"1\"} 4\nx_bucket{a=\"b\",le=\"+Inf\"} 5\n\
                        x_sum{a=\"b\"} 5.25\nx_count{a=\"b\"} 5\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_format_that_a_client_prefers_is_sent() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,\
                          text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        for (accept, format) in [
            (None, TextFormat::Prometheus),
            (Some("*/*"), TextFormat::Prometheus),
            (Some("text/html"), TextFormat::Prometheus),
            (
                Some("application/openmetrics-text"),
                TextFormat::OpenMetrics,
            ),
            (Some(prometheus), TextFormat::OpenMetrics),
            (
                Some("application/openmetrics-text; q=0.3, text/plain; q=0.5"),
                TextFormat::Prometheus,
            ),
            (
                Some("application/openmetrics-text;q=0"),
                TextFormat::Prometheus,
            ),
        ] {
            assert_eq!(TextFormat::accepted(accept), format, "{accept:?}");
        }
    }
}
