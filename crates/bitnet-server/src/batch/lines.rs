//! [`Lines`]: the requests of a batch, each a line of a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::requests::LocalRequest;

/// How a line of the output names its request.
pub(crate) struct LineName {
    /// `batch_req_` and the beginning of the hash of the line: shows whether the input changed.
    pub(crate) id: String,
    pub(crate) custom_id: Option<String>,
}

/// Why a line is no request, or got no answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LineError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// A line of the input.
pub(crate) struct Line {
    pub(crate) name: LineName,
    /// Counted from 1, blank lines included.
    pub(crate) number: usize,
    pub(crate) request: std::result::Result<LocalRequest, LineError>,
}

/// What requests a file may have.
#[derive(Clone, Debug)]
pub(crate) struct LineRules {
    /// The only path of requests; `None` for all below `/v1/`.
    pub(crate) endpoint: Option<String>,
    /// Maximum number of bytes of a line.
    pub(crate) line_bytes: usize,
}

/// The lines of a file that are not blank.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    rules: LineRules,
    /// Number of the last line, from 1, blank lines included.
    number: usize,
    /// The line of each `custom_id`, by the beginning of its hash.
    ids: HashMap<[u8; 16], usize>,
}

impl Lines {
    pub(crate) fn open(path: &Path, rules: LineRules) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::file("open", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            rules,
            number: 0,
            ids: HashMap::new(),
        })
    }

    /// The next line as bytes, without white space around it. A line that is too long is cut.
    pub(crate) fn next_bytes(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            let len_max = (self.rules.line_bytes as u64).saturating_add(1);
            let read = self
                .reader
                .by_ref()
                .take(len_max)
                .read_until(b'\n', &mut line);
            let len = read.map_err(|source| Error::file("read", &self.path, source))?;
            if len == 0 {
                return Ok(None);
            }
            self.number += 1;
            if len as u64 == len_max && !line.ends_with(b"\n") {
                self.skip_rest()?;
                return Ok(Some(line));
            }
            let trimmed = line.trim_ascii();
            if !trimmed.is_empty() {
                return Ok(Some(trimmed.to_vec()));
            }
        }
    }

    /// Reads past the rest of a line.
    fn skip_rest(&mut self) -> Result<()> {
        loop {
            let read = self.reader.fill_buf();
            let buffer = read.map_err(|source| Error::file("read", &self.path, source))?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let (len, is_end) = match end {
                Some(end) => (end + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(len);
            if is_end {
                return Ok(());
            }
        }
    }

    /// The next line.
    pub(crate) fn next(&mut self) -> Result<Option<Line>> {
        let bytes = self.next_bytes()?;
        Ok(bytes.map(|bytes| self.line(&bytes)))
    }

    /// The lines, up to the first that cannot be read.
    pub(crate) fn results(mut self) -> impl Iterator<Item = Result<Line>> {
        let mut has_failed = false;
        std::iter::from_fn(move || {
            let line = self.next().transpose().filter(|_| !has_failed);
            has_failed |= line.as_ref().is_some_and(|line| line.is_err());
            line
        })
    }

    /// Reads past `n` lines.
    pub(crate) fn skip(&mut self, n: usize) -> Result<()> {
        for _ in 0..n {
            self.next()?;
        }
        Ok(())
    }

    /// The number of lines; an error if there are none.
    pub(crate) fn count(mut self) -> Result<usize> {
        let mut n = 0;
        while self.next_bytes()?.is_some() {
            n += 1;
        }
        match n {
            0 => Err(Error::NoRequests { path: self.path }),
            n => Ok(n),
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Line {
        let number = self.number;
        let wrong = |code, problem: String| LineError {
            code,
            message: format!("line {number} {problem}"),
        };
        let mut custom_id = None;
        let request = match bytes.len() > self.rules.line_bytes {
            true => {
                let problem = format!("has more than {} bytes", self.rules.line_bytes);
                Err(wrong("line_too_large", problem))
            }
            false => serde_json::from_slice::<Value>(bytes)
                .map_err(|error| wrong("invalid_json_line", format!("is not JSON: {error}")))
                .and_then(|line| {
                    custom_id = line["custom_id"].as_str().map(str::to_owned);
                    self.request(line)
                }),
        };
        let name = LineName {
            id: line_id(bytes),
            custom_id,
        };
        Line {
            name,
            number,
            request,
        }
    }

    /// The request of a line whose `custom_id` no earlier line has.
    fn request(&mut self, line: Value) -> std::result::Result<LocalRequest, LineError> {
        let number = self.number;
        let (custom_id, request) = request(line, number, self.rules.endpoint.as_deref())?;
        let mut key = [0; 16];
        key.copy_from_slice(&Sha256::digest(custom_id)[..16]);
        match self.ids.insert(key, number) {
            None => Ok(request),
            Some(first) => Err(LineError {
                code: "duplicate_custom_id",
                message: format!("line {number} has the custom_id of line {first}"),
            }),
        }
    }
}

/// The id of a request: shows whether the line has changed.
pub(crate) fn line_id(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("batch_req_{digits}")
}

/// The `custom_id` and the request of a line.
fn request(
    line: Value,
    number: usize,
    endpoint: Option<&str>,
) -> std::result::Result<(String, LocalRequest), LineError> {
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
    let url = text(&line, "url").filter(|url| match endpoint {
        Some(endpoint) => url == endpoint,
        None => url.starts_with("/v1/"),
    });
    let path = url.and_then(|url| url.parse().ok()).ok_or_else(|| {
        let problem = match endpoint {
            Some(endpoint) => format!("url must be {endpoint:?}, the endpoint of the batch"),
            None => "url must be a path such as \"/v1/chat/completions\"".to_owned(),
        };
        wrong("invalid_url", problem)
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
    let body = Value::Object(body).to_string().into();
    Ok((custom_id, LocalRequest { path, body }))
}
