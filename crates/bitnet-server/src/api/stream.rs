//! An answer as server-sent events, chunk by chunk, as OpenAI sends it: what begins an answer,
//! pieces of text, why it ended, the usage if that is asked for, `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use bitnet_inference::FinishReason;
use futures_util::stream;
use tokio::time::timeout;

use crate::api::generate::{Answers, Piece, SampledToken, Usage};

/// After this time without a chunk a comment is sent, so that proxies keep the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A part of an answer, for the format to put into a chunk.
pub(crate) enum Part<'a> {
    /// Before the first token.
    Begin,
    Text {
        text: &'a str,
        token: Option<&'a SampledToken>,
    },
    End(FinishReason),
}

/// Which chunks tell the usage of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UsageChunks {
    #[default]
    None,
    /// A last one; the others have null.
    Last,
    /// All, with what has been used so far.
    All,
}

/// The field `usage` of a chunk: left out, null, or what has been used so far.
pub(crate) type ChunkUsage = Option<Option<Usage>>;

/// How an endpoint writes its chunks.
pub(crate) trait ChunkFormat: Send + 'static {
    /// The chunks for a part, in JSON.
    fn chunks(&mut self, choice: usize, part: Part<'_>, usage: ChunkUsage) -> Vec<String>;

    /// The last chunk, with the usage of the whole request.
    fn usage_chunk(&self, usage: Usage) -> String;
}

struct Stream<F> {
    answers: Answers,
    format: F,
    usage: UsageChunks,
    return_token_ids: bool,
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
    return_token_ids: bool,
) -> Response {
    let begun = vec![false; num_answers];
    let (events, is_over) = (VecDeque::new(), false);
    let stream = Stream {
        answers,
        format,
        usage,
        return_token_ids,
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
        // Or nginx would keep pieces back.
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
        if !std::mem::replace(&mut self.begun[choice], true) {
            self.part(choice, Part::Begin);
        }
        match piece {
            // Streams do not have them.
            Piece::Prompt { .. } => {}
            Piece::Token { token, text } => {
                if !text.is_empty() || self.return_token_ids || token.logprobs.is_some() {
                    self.part(
                        choice,
                        Part::Text {
                            text,
                            token: Some(token),
                        },
                    );
                }
            }
            Piece::End { text, finish } => {
                if !text.is_empty() {
                    self.part(choice, Part::Text { text, token: None });
                }
                self.part(choice, Part::End(finish.reason));
            }
        }
    }

    fn part(&mut self, choice: usize, part: Part<'_>) {
        let usage = match self.usage {
            UsageChunks::None => None,
            UsageChunks::Last => Some(None),
            UsageChunks::All => Some(Some(self.answers.usage())),
        };
        let chunks = self.format.chunks(choice, part, usage);
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
