//! [`run_load`]: a load generator that runs many clients at once and measures their waiting times.
//! Works with every server that offers OpenAI's API without TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Method, Request};
use bitnet_inference::mix64;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use crate::error::{Error, Result};

/// Maximum bytes of an error that a report quotes.
const QUOTED_MAX: usize = 200;

/// Settings of the load generator.
#[derive(Clone, Debug)]
pub struct LoadGeneratorOptions {
    /// Where the server is: `http://host[:port]`, with or without `/v1`.
    pub url: String,
    /// The endpoint that requests use.
    pub endpoint: LoadEndpoint,
    /// The model's name, if the server needs one.
    pub model: Option<String>,
    /// The key, if the server needs one.
    pub api_key: Option<String>,
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// Number of measured requests.
    pub num_requests: usize,
    /// Number of warm-up requests before the measured ones, sent one at a time.
    pub num_warmup: usize,
    /// Words per prompt; about one token each.
    pub prompt_words: usize,
    /// Number of words at the beginning that all prompts share.
    pub shared_words: usize,
    /// Send token ids instead of words, so that there are exactly as many tokens; completions only.
    pub as_token_ids: bool,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// Ask for answers that go on after the end-of-text token, with a field that not every server
    /// has.
    pub ignore_eos: bool,
    /// The sampling temperature.
    pub temperature: f64,
    /// Seed of prompts and arrival times; runs with different seeds differ.
    pub seed: u64,
    /// Maximum time of one request.
    pub timeout: Duration,
}

/// The endpoint that requests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadEndpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// A fixed number of clients; each sends its next request after the last answer.
    Closed {
        /// Clients.
        concurrency: usize,
    },
    /// Requests at times that do not depend on answers, with exponentially distributed gaps.
    Open {
        /// Requests per second.
        rate: f64,
    },
}

/// Measurements of one request.
#[derive(Clone, Debug)]
pub struct RequestTimes {
    /// Time from sending to the first piece of text.
    pub first_token: Duration,
    /// Times between pieces.
    pub gaps: Vec<Duration>,
    /// Time from sending to the end of the answer.
    pub total: Duration,
    /// Prompt tokens, as the server reports.
    pub prompt_tokens: usize,
    /// Prompt tokens from the server's cache, as it reports.
    pub cached_tokens: usize,
    /// Answer tokens, as the server reports, else the number of pieces.
    pub output_tokens: usize,
}

impl RequestTimes {
    /// Mean time between tokens; `None` for answers of one token.
    #[must_use]
    pub fn token_time(&self) -> Option<Duration> {
        let others = u32::try_from(self.output_tokens)
            .ok()?
            .checked_sub(1)
            .filter(|n| *n > 0)?;
        let decode: Duration = self.gaps.iter().sum();
        Some(decode / others)
    }
}

/// Measurements of all requests.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// The answered requests.
    pub answered: Vec<RequestTimes>,
    /// The errors of the failed requests.
    pub failed: Vec<String>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

/// Sends requests and waits for the answers.
///
/// # Errors
/// If the URL is invalid, the runtime cannot start, or the first request fails.
pub fn run_load(options: &LoadGeneratorOptions) -> Result<LoadReport> {
    let target = Arc::new(Target::new(options)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.map_err(Error::Threads)?.block_on(async {
        for index in 0..options.num_warmup {
            // Warm-up prompts differ from the measured ones.
            let warmup = target.request(usize::MAX / 2 + index).await;
            warmup.map_err(|problem| Error::FirstRequest(problem.to_string()))?;
        }
        let start = Instant::now();
        let results = match options.arrivals {
            Arrivals::Closed { concurrency } => {
                closed(&target, options.num_requests, concurrency).await
            }
            Arrivals::Open { rate } => {
                open(&target, options.num_requests, rate, options.seed).await
            }
        };
        let elapsed = start.elapsed();
        let mut report = LoadReport {
            answered: Vec::new(),
            failed: Vec::new(),
            elapsed,
        };
        for result in results {
            match result {
                Ok(times) => report.answered.push(times),
                Err(problem) => report.failed.push(problem),
            }
        }
        Ok(report)
    })
}

/// The measurements of a request, or its error.
type Answered = std::result::Result<RequestTimes, String>;

async fn closed(target: &Arc<Target>, num_requests: usize, concurrency: usize) -> Vec<Answered> {
    let next = Arc::new(AtomicUsize::new(0));
    let client = |_| {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        tokio::spawn(async move {
            let mut results = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= num_requests {
                    return results;
                }
                results.push(target.request(index).await);
            }
        })
    };
    let clients: Vec<_> = (0..concurrency).map(client).collect();
    join_all(clients)
        .await
        .into_iter()
        .flat_map(|results| results.unwrap_or_else(|error| vec![Err(error.to_string())]))
        .collect()
}

async fn open(target: &Arc<Target>, num_requests: usize, rate: f64, seed: u64) -> Vec<Answered> {
    let start = tokio::time::Instant::now();
    let mut due = Duration::ZERO;
    let mut requests = Vec::with_capacity(num_requests);
    for index in 0..num_requests {
        sleep_until(start + due).await;
        let target = Arc::clone(target);
        requests.push(tokio::spawn(async move { target.request(index).await }));
        // In (0, 1], so that the logarithm is finite.
        let uniform = ((mix64(seed ^ mix64(index as u64)) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        due += Duration::from_secs_f64(-uniform.ln() / rate);
    }
    join_all(requests)
        .await
        .into_iter()
        .map(|result| result.unwrap_or_else(|error| Err(error.to_string())))
        .collect()
}

/// The server and the request to send.
struct Target {
    host: String,
    path: String,
    options: LoadGeneratorOptions,
}

impl Target {
    fn new(options: &LoadGeneratorOptions) -> Result<Self> {
        let wrong = || Error::Url {
            url: options.url.clone(),
        };
        let rest = options.url.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, base) = rest
            .find('/')
            .map_or((rest, ""), |slash| rest.split_at(slash));
        let base = base.trim_end_matches('/').trim_end_matches("/v1");
        if host.is_empty() || host.contains('@') {
            return Err(wrong());
        }
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let endpoint = match options.endpoint {
            LoadEndpoint::Chat => "chat/completions",
            LoadEndpoint::Completions => "completions",
        };
        Ok(Self {
            host,
            path: format!("{base}/v1/{endpoint}"),
            options: options.clone(),
        })
    }

    fn body(&self, index: usize) -> Value {
        let options = &self.options;
        let places = places(
            options.prompt_words,
            options.shared_words,
            options.seed,
            index as u64,
        );
        let text = || {
            places
                .clone()
                .map(|place| WORDS[place as usize % WORDS.len()])
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut body = json!({
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": index % (1 << 30),
        });
        match options.endpoint {
            LoadEndpoint::Chat => body["messages"] = json!([{ "role": "user", "content": text() }]),
            LoadEndpoint::Completions if options.as_token_ids => {
                body["prompt"] = places
                    .clone()
                    .map(|place| TOKEN_ID_MIN + place % NUM_TOKEN_IDS)
                    .collect();
            }
            LoadEndpoint::Completions => body["prompt"] = json!(text()),
        }
        if let Some(model) = &options.model {
            body["model"] = json!(model);
        }
        if options.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }

    async fn request(&self, index: usize) -> Answered {
        match timeout(self.options.timeout, self.answer(index)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!(
                "no answer within {} s",
                self.options.timeout.as_secs_f64()
            )),
        }
    }

    async fn answer(&self, index: usize) -> Answered {
        let body = self.body(index).to_string();
        let start = Instant::now();
        let stream = TcpStream::connect(&self.host)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        stream
            .set_nodelay(true)
            .map_err(|error| format!("cannot connect: {error}"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("accept", "text/event-stream");
        if let Some(key) = &self.options.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| format!("cannot send: {error}"))?;
        let status = response.status();
        if !status.is_success() {
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|error| format!("cannot read: {error}"))?
                .to_bytes();
            return Err(format!(
                "{status}: {}",
                quoted(&String::from_utf8_lossy(&body))
            ));
        }
        read_answer(response.into_body(), start).await
    }
}

async fn read_answer(mut body: Incoming, start: Instant) -> Answered {
    let mut times = RequestTimes {
        first_token: Duration::ZERO,
        gaps: Vec::new(),
        total: Duration::ZERO,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
    };
    let (mut rest, mut last, mut usage, mut own_usage) =
        (Vec::new(), None::<Instant>, Value::Null, Value::Null);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| format!("the connection broke during the answer: {error}"))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let now = Instant::now();
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
                continue;
            };
            let Ok(chunk) = serde_json::from_slice::<Value>(data) else {
                continue;
            };
            if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
                return Err(quoted(&error.to_string()));
            }
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
            if chunk["tokens_predicted"].is_number() {
                own_usage = chunk.clone();
            }
            let choice = &chunk["choices"][0];
            let text = choice["delta"]["content"]
                .as_str()
                .or_else(|| choice["text"].as_str());
            // Older servers of llama.cpp answer completions in this form.
            let text = text.or_else(|| chunk["content"].as_str());
            if text.is_some_and(|text| !text.is_empty()) {
                match last.replace(now) {
                    None => times.first_token = now - start,
                    Some(last) => times.gaps.push(now - last),
                }
            }
        }
    }
    if last.is_none() {
        return Err("the answer has no text".to_owned());
    }
    times.total = start.elapsed();
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    let reported = |name: &str, own: &str| number(&usage[name]).or_else(|| number(&own_usage[own]));
    times.prompt_tokens = reported("prompt_tokens", "tokens_evaluated").unwrap_or(0);
    times.cached_tokens = number(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
    times.output_tokens =
        reported("completion_tokens", "tokens_predicted").unwrap_or(times.gaps.len() + 1);
    Ok(times)
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_MAX).collect()
}

/// Short words that most vocabularies have as one token each.
const WORDS: [&str; 32] = [
    "the", "and", "of", "to", "in", "was", "for", "on", "with", "as", "at", "by", "from", "her",
    "his", "they", "one", "had", "but", "not", "all", "were", "when", "we", "there", "can", "an",
    "your", "which", "their", "said", "if",
];

/// Ids that most vocabularies use for ordinary tokens.
const TOKEN_ID_MIN: u64 = 300;
const NUM_TOKEN_IDS: u64 = 2000;

/// Random numbers that choose the words of a prompt. The first `num_shared` are the same for every
/// `index`; the others differ.
fn places(
    num_words: usize,
    num_shared: usize,
    seed: u64,
    index: u64,
) -> impl Iterator<Item = u64> + Clone {
    (0..num_words).map(move |place| {
        let stream = if place < num_shared {
            0
        } else {
            mix64(index + 1)
        };
        mix64(mix64(seed ^ stream).wrapping_add(place as u64)) >> 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Option<(String, String)> {
        let options = LoadGeneratorOptions {
            url: url.to_owned(),
            endpoint: LoadEndpoint::Chat,
            model: None,
            api_key: None,
            arrivals: Arrivals::Closed { concurrency: 1 },
            num_requests: 1,
            num_warmup: 0,
            prompt_words: 4,
            shared_words: 2,
            as_token_ids: false,
            max_tokens: 4,
            ignore_eos: false,
            temperature: 0.0,
            seed: 0,
            timeout: Duration::from_secs(1),
        };
        Target::new(&options)
            .ok()
            .map(|target| (target.host, target.path))
    }

    #[test]
    fn urls_are_parsed_with_and_without_optional_parts() {
        let found = |host: &str, path: &str| Some((host.to_owned(), path.to_owned()));
        assert_eq!(
            target("http://a:8080"),
            found("a:8080", "/v1/chat/completions")
        );
        assert_eq!(
            target("http://a/v1/"),
            found("a:80", "/v1/chat/completions")
        );
        assert_eq!(
            target("http://[::1]:80/proxy/v1"),
            found("[::1]:80", "/proxy/v1/chat/completions")
        );
        for wrong in ["https://a", "a:80", "http://", "http:///v1", "http://me@a"] {
            assert_eq!(target(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn prompts_share_only_their_common_prefix() {
        let drawn = |seed, index| places(40, 20, seed, index).collect::<Vec<_>>();
        let (a, b) = (drawn(1, 0), drawn(1, 1));
        assert_eq!((a.len(), &a[..20]), (40, &b[..20]));
        assert!(a[20..].iter().zip(&b[20..]).all(|(a, b)| a != b));
        assert_eq!(a, drawn(1, 0));
        assert_ne!(a, drawn(2, 0));
    }
}
