//! An answer as a stream of events: server-sent events, or lines of JSON. The events come from a
//! [`ChunkFormat`], which knows one API.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use bitnet_inference::{Finish, Piece, Token};
use futures_util::stream;
use tokio::time::timeout;

use crate::api::ApiError;
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

/// How chunks are written to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// One line for each chunk.
    Lines,
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The event's name, for APIs that name their events.
    pub(crate) event: Option<&'static str>,
    /// JSON, or a word such as `[DONE]`.
    pub(crate) data: String,
}

impl From<String> for Chunk {
    fn from(data: String) -> Self {
        Self { event: None, data }
    }
}

impl Chunk {
    fn framed(&self, framing: Framing) -> Bytes {
        let Self { event, data } = self;
        Bytes::from(match (framing, event) {
            (Framing::Lines, _) => format!("{data}\n"),
            (Framing::Events, None) => format!("data: {data}\n\n"),
            (Framing::Events, Some(event)) => format!("event: {event}\ndata: {data}\n\n"),
        })
    }
}

/// The end of an answer.
pub(crate) struct End {
    /// Its last chunks.
    pub(crate) chunks: Vec<Chunk>,
    /// The finish reason in them.
    pub(crate) reason: &'static str,
    /// Number of tokens of thinking; `None` if the endpoint or the model knows none.
    pub(crate) reasoning_tokens: Option<usize>,
}

/// How an endpoint writes its chunks.
pub(crate) trait ChunkFormat: Send + 'static {
    /// How they are written to the connection.
    const FRAMING: Framing = Framing::Events;

    /// The chunks before the engine begins.
    fn open(&mut self) -> Vec<Chunk> {
        Vec::new()
    }

    /// The chunks before the first token of an answer.
    fn begin(&mut self, choice: usize, usage: ChunkUsage) -> Vec<Chunk>;

    /// The chunks for text and the token that completed it, whose text may be empty; no token
    /// completes the text that was held back until the end.
    fn text(
        &mut self,
        choice: usize,
        text: &str,
        token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Vec<Chunk>;

    /// The chunks at the end of an answer, and the facts that are known then.
    fn end(&mut self, choice: usize, finish: &Finish, usage: ChunkUsage) -> End;

    /// The last chunks, after all answers. `usage` is of the whole request.
    fn last(&mut self, usage: Usage) -> impl Future<Output = Vec<Chunk>> + Send;

    /// The last chunks of a request that failed after its stream began.
    fn failed(&mut self, error: &ApiError) -> impl Future<Output = Vec<Chunk>> + Send;
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
    mut format: F,
    num_answers: usize,
    usage: UsageChunks,
) -> Response {
    let events = format.open();
    let events = events
        .iter()
        .map(|chunk| chunk.framed(F::FRAMING))
        .collect();
    let stream = Stream {
        answers,
        format,
        usage,
        begun: vec![false; num_answers],
        events,
        is_over: false,
    };
    let bytes = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let media_type = match F::FRAMING {
        Framing::Events => "text/event-stream; charset=utf-8",
        Framing::Lines => "application/x-ndjson",
    };
    let headers = [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, "no-cache"),
        // Stops nginx from buffering the pieces.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(bytes)).into_response()
}

/// Passes the answer to a request for one answer through its format, without sending the chunks:
/// for formats that also hold the whole answer.
pub(crate) async fn read_whole<F: ChunkFormat>(
    answers: &mut Answers,
    format: &mut F,
) -> Result<(), ApiError> {
    drop(format.open());
    drop(format.begin(0, None));
    while let Some((choice, piece)) = answers.next().await? {
        drop(chunks_of(format, answers, choice, &piece, None));
    }
    drop(format.last(answers.usage()).await);
    Ok(())
}

/// The chunks of a piece of an answer that has begun.
fn chunks_of<F: ChunkFormat>(
    format: &mut F,
    answers: &Answers,
    choice: usize,
    piece: &Piece,
    usage: ChunkUsage,
) -> Vec<Chunk> {
    match piece {
        // Streams do not have the log-probabilities of prompts.
        Piece::Prompt { .. } => Vec::new(),
        Piece::Token(token) => format.text(choice, &token.text, Some(token), usage),
        Piece::End { text, finish } => {
            let mut chunks = match text.is_empty() {
                true => Vec::new(),
                false => format.text(choice, text, None, usage),
            };
            let end = format.end(choice, finish, usage);
            answers.finished(choice, end.reason, end.reasoning_tokens);
            chunks.extend(end.chunks);
            chunks
        }
    }
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
                match F::FRAMING {
                    Framing::Events => return Some(Bytes::from_static(b": still here\n\n")),
                    // Lines have no comments.
                    Framing::Lines => continue,
                }
            };
            match piece {
                Ok(Some((choice, piece))) => self.push(choice, &piece),
                Ok(None) => {
                    let chunks = self.format.last(self.answers.usage()).await;
                    self.finish(&chunks);
                }
                Err(error) => {
                    let chunks = self.format.failed(&error).await;
                    self.finish(&chunks);
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
            self.send(&chunks);
        }
        let chunks = chunks_of(&mut self.format, &self.answers, choice, piece, usage);
        self.send(&chunks);
    }

    fn send(&mut self, chunks: &[Chunk]) {
        let framed = chunks.iter().map(|chunk| chunk.framed(F::FRAMING));
        self.events.extend(framed);
    }

    fn finish(&mut self, chunks: &[Chunk]) {
        self.send(chunks);
        self.is_over = true;
    }
}

/// The last chunks of OpenAI's chats and completions: the usage if requested, and `[DONE]`.
pub(crate) fn done(usage: Option<String>) -> Vec<Chunk> {
    let done = "[DONE]".to_owned();
    usage.into_iter().chain([done]).map(Chunk::from).collect()
}

/// The last chunks of OpenAI's chats and completions after an error.
pub(crate) fn done_with(error: &ApiError) -> Vec<Chunk> {
    done(Some(super::to_json(&error.body())))
}
