//! `bitnet batch`: answers a file of requests in OpenAI's batch format.
//!
//! Answers are written in the order of the requests, each as one whole line. So the number of whole
//! lines in the output says which requests are done, and a run that was killed continues there.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bitnet_server::{LocalRequest, LocalResponse, answer_requests};
use clap::{Args as _, FromArgMatches as _};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::args::{BatchArguments, ServeArguments, WrongUsage};
use crate::{bars, report, serve, served_models};

/// Requests whose answers wait for earlier ones, for each request that runs: answers are written in
/// order.
const AHEAD: usize = 2;

/// Answers the requests that have no answer yet.
pub fn batch(arguments: BatchArguments) -> anyhow::Result<()> {
    let (input, output) = (&arguments.input, &arguments.output);
    ensure!(
        !is_same_file(input, output),
        WrongUsage(format!("{} is the input and the output", output.display()))
    );
    let total = Lines::open(input)?.count()?;
    let mut out = Output::open(output)?;
    let done = out.resume(Lines::open(input)?)?;
    let mut counts = Counts::default();
    if done < total {
        counts = run(&arguments, &mut out, done, total)?;
        out.file
            .sync_all()
            .with_context(|| format!("cannot write {}", output.display()))?;
    }
    tell(&arguments, &counts, done)
}

/// Answers the requests after the first `done`.
fn run(
    arguments: &BatchArguments,
    out: &mut Output,
    done: usize,
    total: usize,
) -> anyhow::Result<Counts> {
    let served = serve_arguments(arguments)?;
    let mut options = serve::options(&served)?;
    options.limits.queue_requests = usize::MAX >> 1;
    options.limits.queue_tokens = usize::MAX >> 1;
    let at_once = served.running.saturating_mul(AHEAD);

    let waiting = RefCell::new(VecDeque::new());
    let mut writer = Writer {
        out,
        waiting: &waiting,
        counts: Counts::default(),
        bar: bars::bar(total, "requests"),
    };
    writer.bar.set_position(done as u64);
    let mut lines = Lines::open(&arguments.input)?;
    lines.skip(done)?;
    let requests = std::iter::from_fn(|| next_request(&mut lines, &waiting));
    let models = served_models::models(&Arc::new(served))?;
    let mut written = Ok(());
    answer_requests(options, models, requests, at_once, |response| {
        written = writer.write(Some(response));
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    written?;
    // Invalid lines at the end of the file.
    writer.write(None)?;
    writer.bar.finish_and_clear();
    Ok(writer.counts)
}

/// The next request of the input. Lines that are no requests wait for their place in the output.
fn next_request(lines: &mut Lines, waiting: &RefCell<VecDeque<Waiting>>) -> Option<LocalRequest> {
    loop {
        let (next, request) = match lines.next()? {
            Err(error) => (Waiting::Unreadable(error), None),
            Ok(Line { name, request }) => match request {
                Ok(request) => (Waiting::Request(name), Some(request)),
                Err(error) => (Waiting::Invalid(name, error), None),
            },
        };
        let is_end = matches!(next, Waiting::Unreadable(_));
        waiting.borrow_mut().push_back(next);
        if request.is_some() || is_end {
            return request;
        }
    }
}

/// Writes the output in the order of the input.
struct Writer<'a> {
    out: &'a mut Output,
    waiting: &'a RefCell<VecDeque<Waiting>>,
    counts: Counts,
    bar: ProgressBar,
}

impl Writer<'_> {
    /// Writes the answer to the first request that waits, and the invalid lines around it.
    fn write(&mut self, mut response: Option<LocalResponse>) -> anyhow::Result<()> {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            match next {
                None => return Ok(()),
                Some(Waiting::Unreadable(error)) => return Err(error),
                Some(Waiting::Invalid(name, error)) => {
                    self.counts.invalid += 1;
                    let error = Some(error);
                    let answer = Answer::new(&name);
                    self.out.write(&Answer { error, ..answer })?;
                }
                Some(Waiting::Request(name)) => match response.take() {
                    Some(response) => {
                        self.counts.count(response.status);
                        let answer = Answer::new(&name);
                        self.out.write(&answer.with_response(&response))?;
                    }
                    None => {
                        let first = Waiting::Request(name);
                        self.waiting.borrow_mut().push_front(first);
                        return Ok(());
                    }
                },
            }
            self.bar.inc(1);
        }
    }
}

/// A line that was read and has no line in the output yet.
enum Waiting {
    Request(Name),
    Invalid(Name, LineError),
    Unreadable(anyhow::Error),
}

/// How a line of the output names its request.
struct Name {
    /// `batch_req_` and the beginning of the hash of the line: shows whether the input changed.
    id: String,
    custom_id: Option<String>,
}

/// Why a line is no request.
#[derive(Serialize)]
struct LineError {
    code: &'static str,
    message: String,
}

struct Line {
    name: Name,
    request: Result<LocalRequest, LineError>,
}

/// The lines of the input that are not blank.
struct Lines {
    path: String,
    reader: BufReader<File>,
    /// Number of the last line, from 1, blank lines included.
    number: usize,
    /// The line of each `custom_id`.
    ids: HashMap<String, usize>,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            path: path.display().to_string(),
            reader: BufReader::new(file),
            number: 0,
            ids: HashMap::new(),
        })
    }

    /// The next line as bytes.
    fn next_bytes(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            let len = self
                .reader
                .read_until(b'\n', &mut line)
                .with_context(|| format!("cannot read {}", self.path))?;
            if len == 0 {
                return Ok(None);
            }
            self.number += 1;
            let trimmed = line.trim_ascii();
            if !trimmed.is_empty() {
                return Ok(Some(trimmed.to_vec()));
            }
        }
    }

    fn next(&mut self) -> Option<anyhow::Result<Line>> {
        let bytes = self.next_bytes().transpose()?;
        Some(bytes.map(|bytes| self.line(&bytes)))
    }

    fn line(&mut self, bytes: &[u8]) -> Line {
        let parsed = serde_json::from_slice::<Value>(bytes);
        let custom_id = parsed
            .as_ref()
            .ok()
            .and_then(|line| line["custom_id"].as_str());
        let name = Name {
            id: line_id(bytes),
            custom_id: custom_id.map(str::to_owned),
        };
        let number = self.number;
        let request = parsed
            .map_err(|error| LineError {
                code: "invalid_json_line",
                message: format!("line {number} is not JSON: {error}"),
            })
            .and_then(|line| request(line, number))
            .and_then(
                |(custom_id, request)| match self.ids.insert(custom_id, number) {
                    None => Ok(request),
                    Some(first) => Err(LineError {
                        code: "duplicate_custom_id",
                        message: format!("line {number} has the custom_id of line {first}"),
                    }),
                },
            );
        Line { name, request }
    }

    /// Reads past `n` lines.
    fn skip(&mut self, n: usize) -> anyhow::Result<()> {
        for _ in 0..n {
            self.next().transpose()?;
        }
        Ok(())
    }

    fn count(mut self) -> anyhow::Result<usize> {
        let mut n = 0;
        while self.next_bytes()?.is_some() {
            n += 1;
        }
        ensure!(n > 0, "{} has no requests", self.path);
        Ok(n)
    }
}

fn line_id(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("batch_req_{digits}")
}

/// The `custom_id` and the request of a line.
fn request(line: Value, number: usize) -> Result<(String, LocalRequest), LineError> {
    let wrong = |code, problem: String| LineError {
        code,
        message: format!("line {number}: {problem}"),
    };
    let Value::Object(mut line) = line else {
        return Err(wrong("invalid_line", "not an object".to_owned()));
    };
    let text = |line: &Map<String, Value>, key: &str| line.get(key)?.as_str().map(str::to_owned);
    let custom_id = text(&line, "custom_id")
        .ok_or_else(|| wrong("missing_custom_id", "custom_id must be a string".to_owned()))?;
    if line.get("method") != Some(&json!("POST")) {
        return Err(wrong(
            "invalid_method",
            "method must be \"POST\"".to_owned(),
        ));
    }
    let url = text(&line, "url").filter(|url| url.starts_with("/v1/"));
    let path = url.and_then(|url| url.parse().ok()).ok_or_else(|| {
        let problem = "url must be a path such as \"/v1/chat/completions\"";
        wrong("invalid_url", problem.to_owned())
    })?;
    let Some(Value::Object(body)) = line.remove("body") else {
        return Err(wrong("invalid_body", "body must be an object".to_owned()));
    };
    if body
        .get("stream")
        .is_some_and(|stream| stream != &json!(false) && !stream.is_null())
    {
        let problem = "stream must be false: a batch has whole answers";
        return Err(wrong("invalid_body", problem.to_owned()));
    }
    let body = Value::Object(body).to_string().into_bytes();
    Ok((custom_id, LocalRequest { path, body }))
}

/// A line of the output. The id comes first, so that the beginning of a line shows whose it is.
#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    custom_id: Option<&'a str>,
    response: Option<Response<'a>>,
    error: Option<LineError>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: Value,
}

impl<'a> Answer<'a> {
    fn new(name: &'a Name) -> Self {
        Self {
            id: &name.id,
            custom_id: name.custom_id.as_deref(),
            response: None,
            error: None,
        }
    }

    fn with_response(self, response: &'a LocalResponse) -> Self {
        let response = Response {
            status_code: response.status,
            request_id: &response.request_id,
            body: serde_json::from_slice(&response.body).unwrap_or(Value::Null),
        };
        Self {
            response: Some(response),
            ..self
        }
    }
}

/// The file with the answers. No other process writes to it at the same time.
struct Output {
    path: String,
    file: File,
}

impl Output {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let path = path.display().to_string();
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(std::fs::TryLockError::WouldBlock) => {
                anyhow::bail!("another process writes to {path}")
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {path}"))
            }
        }
    }

    /// The number of requests that the file answers already. Cuts off a line that was not written
    /// to its end.
    fn resume(&mut self, mut lines: Lines) -> anyhow::Result<usize> {
        let (mut num_done, mut end) = (0, 0);
        let mut reader = BufReader::new(&self.file);
        loop {
            let mut line = Vec::new();
            let len = reader
                .read_until(b'\n', &mut line)
                .with_context(|| format!("cannot read {}", self.path))?;
            if len == 0 {
                break;
            }
            let request = lines.next_bytes()?;
            let expected = request.map(|request| beginning(&line_id(&request)));
            let expected = expected.as_deref().unwrap_or_default();
            if !expected.is_empty()
                && !line.ends_with(b"\n")
                && (line.starts_with(expected) || expected.starts_with(&line))
            {
                // A run was killed while it wrote this line.
                break;
            }
            ensure!(
                line.starts_with(expected) && !expected.is_empty(),
                "line {} of {} does not answer the request at that place of {}: name another file with -o",
                num_done + 1,
                self.path,
                lines.path
            );
            num_done += 1;
            end += len as u64;
        }
        let cut = || -> std::io::Result<()> {
            self.file.set_len(end)?;
            (&self.file).seek(SeekFrom::Start(end)).map(drop)
        };
        cut().with_context(|| format!("cannot write {}", self.path))?;
        Ok(num_done)
    }

    fn write(&mut self, answer: &Answer<'_>) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        // One call, so that a killed process leaves whole lines, or one part of a line at the end.
        self.file
            .write_all(&line)
            .with_context(|| format!("cannot write {}", self.path))
    }
}

/// The beginning of the line that answers a request.
fn beginning(id: &str) -> Vec<u8> {
    format!("{{\"id\":\"{id}\",").into_bytes()
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(a).is_some() && real(a) == real(b)
}

/// What happened to the requests of this run.
#[derive(Default)]
struct Counts {
    answered: usize,
    refused: usize,
    invalid: usize,
}

impl Counts {
    fn count(&mut self, status: u16) {
        match status {
            200..300 => self.answered += 1,
            _ => self.refused += 1,
        }
    }
}

fn tell(arguments: &BatchArguments, counts: &Counts, done: usize) -> anyhow::Result<()> {
    let Counts {
        answered,
        refused,
        invalid,
    } = counts;
    if arguments.json {
        let object = json!({
            "output": arguments.output.display().to_string(),
            "earlier": done,
            "answered": answered,
            "refused": refused,
            "invalid": invalid,
        });
        writeln!(std::io::stdout().lock(), "{object}")?;
        return Ok(());
    }
    let earlier = match done {
        0 => String::new(),
        done => format!(", {done} by an earlier run"),
    };
    let message = format!(
        "{}: {answered} answered, {refused} refused, {invalid} invalid lines{earlier}",
        arguments.output.display()
    );
    eprintln!("{}", report::one_line(&message));
    Ok(())
}

/// The arguments of a server that answers this batch.
fn serve_arguments(arguments: &BatchArguments) -> anyhow::Result<ServeArguments> {
    let command = ServeArguments::augment_args(clap::Command::new("serve"));
    let defaults = command.try_get_matches_from(["serve"])?;
    let mut served = ServeArguments::from_arg_matches(&defaults)?;
    served.model = arguments.model.clone();
    served.sampling = arguments.sampling.clone();
    served.chat_template.clone_from(&arguments.chat_template);
    served.lenient = arguments.lenient;
    served.pooling = arguments.pooling;
    served.running = arguments.running;
    served.kv_memory = arguments.kv_memory;
    served.state_memory = arguments.state_memory;
    served.body_bytes = usize::MAX >> 1;
    served.inflight_bytes = usize::MAX >> 1;
    served.request_timeout = std::time::Duration::from_secs(u64::from(u32::MAX));
    Ok(served)
}
