//! An answer as server-sent events, chunk by chunk, as OpenAI sends it: the beginning, pieces of
//! text, the finish reason, the usage if requested, `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use bitnet_inference::{FinishReason, Piece, Token};
use futures_util::stream;
use tokio::time::timeout;

use crate::api::generate::Answers;
use crate::api::usage::Usage;

/// After this time without a chunk a comment is sent, so that proxies keep the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The chunks that have the usage of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UsageChunks {
    #[default]
    None,
    /// Only a last chunk; the others have null.
    Last,
    /// All chunks, with the usage so far.
    All,
}

/// The field `usage` of a chunk: absent, null, or the usage so far.
pub(crate) type ChunkUsage = Option<Option<Usage>>;

/// The end of an answer.
pub(crate) struct End {
    /// Its last chunks, in JSON.
    pub(crate) chunks: Vec<String>,
    /// The finish reason in them.
    pub(crate) reason: &'static str,
    /// Number of tokens of thinking; `None` if the endpoint or the model knows none.
    pub(crate) reasoning_tokens: Option<usize>,
}

/// How an endpoint writes its chunks.
pub(crate) trait ChunkFormat: Send + 'static {
    /// The chunks before the first token of an answer, in JSON.
    fn begin(&mut self, choice: usize, usage: ChunkUsage) -> Vec<String>;

    /// The chunks for text and the token that completed it, whose text may be empty; no token
    /// completes the text that was held back until the end.
    fn text(
        &mut self,
        choice: usize,
        text: &str,
        token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Vec<String>;

    /// The chunks at the end of an answer, and the facts that are known then.
    fn end(&mut self, choice: usize, reason: FinishReason, usage: ChunkUsage) -> End;

    /// The last chunk, with the usage of the whole request.
    fn usage_chunk(&self, usage: Usage) -> String;
}

struct Stream<F> {
    answers: Answers,
    format: F,
    usage: UsageChunks,
    /// Which answers have begun.
    begun: Vec<bool>,
    events: VecDeque<Bytes>,
    is_over: bool,
}

/// The answers as a stream.
pub(crate) fn response<F: ChunkFormat>(
    answers: Answers,
    format: F,
    num_answers: usize,
    usage: UsageChunks,
) -> Response {
    let begun = vec![false; num_answers];
    let (events, is_over) = (VecDeque::new(), false);
    let stream = Stream {
        answers,
        format,
        usage,
        begun,
        events,
        is_over,
    };
    let bytes = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let headers = [
        (CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        // Stops nginx from buffering the pieces.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(bytes)).into_response()
}

impl<F: ChunkFormat> Stream<F> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            let Ok(piece) = timeout(KEEP_ALIVE, self.answers.next()).await else {
                return Some(Bytes::from_static(b": still here\n\n"));
            };
            match piece {
                Ok(Some((choice, piece))) => self.push(choice, &piece),
                Ok(None) => {
                    if self.usage != UsageChunks::None {
                        let usage = self.format.usage_chunk(self.answers.usage());
                        self.send(usage);
                    }
                    self.finish();
                }
                Err(error) => {
                    self.send(super::to_json(&error.body()));
                    self.finish();
                }
            }
        }
    }

    fn push(&mut self, choice: usize, piece: &Piece) {
        let usage = match self.usage {
            UsageChunks::None => None,
            UsageChunks::Last => Some(None),
            UsageChunks::All => Some(Some(self.answers.usage())),
        };
        if !std::mem::replace(&mut self.begun[choice], true) {
            let chunks = self.format.begin(choice, usage);
            self.send_all(chunks);
        }
        match piece {
            // Streams do not have the log-probabilities of prompts.
            Piece::Prompt { .. } => {}
            Piece::Token(token) => {
                let chunks = self.format.text(choice, &token.text, Some(token), usage);
                self.send_all(chunks);
            }
            Piece::End { text, finish } => {
                if !text.is_empty() {
                    let chunks = self.format.text(choice, text, None, usage);
                    self.send_all(chunks);
                }
                let end = self.format.end(choice, finish.reason, usage);
                self.answers
                    .finished(choice, end.reason, end.reasoning_tokens);
                self.send_all(end.chunks);
            }
        }
    }

    fn send_all(&mut self, chunks: Vec<String>) {
        chunks.into_iter().for_each(|chunk| self.send(chunk));
    }

    fn send(&mut self, data: impl std::fmt::Display) {
        self.events
            .push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    fn finish(&mut self) {
        self.send("[DONE]");
        self.is_over = true;
    }
}
