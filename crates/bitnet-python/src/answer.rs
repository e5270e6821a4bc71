//! [`Answer`]: an answer in progress. Pieces and whole answers as Python receives them.

use std::sync::Mutex;
use std::task::Poll;
use std::time::Instant;

use bitnet_inference::{Failure, Finish, Logprobs, Piece, ReplyStream, Timings, Token};
use pyo3::prelude::*;

use crate::error;
use crate::wait::{PAUSE, lock};

/// The log-probability of a token, and the most probable tokens with their log-probabilities.
pub(crate) type LogprobsTuple = (f32, Vec<(u32, f32)>);
/// Counts of tokens: of the prompt, of them cached, generated; seconds: of the prompt, of the
/// rest, to the first token.
pub(crate) type TimingsTuple = (usize, usize, usize, f64, f64, f64);
/// Why an answer ended, and its timings.
pub(crate) type FinishTuple = (&'static str, TimingsTuple);
/// A piece: its text, token and log-probabilities; the end has the finish and no token.
pub(crate) type PieceTuple = (
    String,
    Option<u32>,
    Option<LogprobsTuple>,
    Option<FinishTuple>,
);
/// A whole answer: its text, tokens, log-probabilities (one per token, or none), finish, and
/// log-probabilities of the prompt's tokens after the first (or none).
pub(crate) type WholeTuple = (
    String,
    Vec<u32>,
    Vec<LogprobsTuple>,
    FinishTuple,
    Vec<LogprobsTuple>,
);

fn logprobs_tuple(logprobs: Logprobs) -> LogprobsTuple {
    let top = logprobs.top.into_iter();
    (
        logprobs.token,
        top.map(|(id, value)| (id.0, value)).collect(),
    )
}

fn finish_tuple(finish: &Finish) -> FinishTuple {
    let Timings {
        prompt_tokens,
        cached_tokens,
        generated_tokens,
        prefill,
        decode,
        first_token,
        ..
    } = finish.timings;
    let timings = (
        prompt_tokens,
        cached_tokens,
        generated_tokens,
        prefill.as_secs_f64(),
        decode.as_secs_f64(),
        first_token.as_secs_f64(),
    );
    (finish.reason.name(), timings)
}

/// A piece for Python; `None` for progress of the prompt.
pub(crate) fn piece_tuple(piece: Piece) -> Option<PieceTuple> {
    match piece {
        Piece::Prompt { .. } => None,
        Piece::Token(Token { id, text, logprobs }) => {
            Some((text, Some(id.0), logprobs.map(logprobs_tuple), None))
        }
        Piece::End { text, finish } => Some((text, None, None, Some(finish_tuple(&finish)))),
    }
}

/// The part of an answer that has arrived.
#[derive(Default)]
pub(crate) struct Collected {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<LogprobsTuple>,
    prompt_logprobs: Vec<LogprobsTuple>,
}

impl Collected {
    /// Adds a piece; returns the whole answer at its end.
    pub(crate) fn add(&mut self, piece: Piece) -> Option<WholeTuple> {
        if let Piece::Prompt {
            done,
            total,
            logprobs,
        } = piece
        {
            self.add_prompt(done.min(total.saturating_sub(1)), logprobs);
            return None;
        }
        let (text, token, logprobs, finish) = piece_tuple(piece)?;
        self.text += &text;
        self.tokens.extend(token);
        self.logprobs.extend(logprobs);
        let finish = finish?;
        let all = std::mem::take(self);
        Some((
            all.text,
            all.tokens,
            all.logprobs,
            finish,
            all.prompt_logprobs,
        ))
    }

    /// Adds log-probabilities of the prompt's tokens up to the one at `end`. If the engine reruns
    /// the request, they begin again.
    fn add_prompt(&mut self, end: usize, logprobs: Vec<Logprobs>) {
        let start = end.saturating_sub(logprobs.len());
        self.prompt_logprobs.truncate(start);
        self.prompt_logprobs
            .extend(logprobs.into_iter().map(logprobs_tuple));
    }
}

/// An answer in progress. Dropping it cancels the request.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct Answer(Mutex<ReplyStream>);

impl Answer {
    pub(crate) fn new(stream: ReplyStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Adds to `collected` the pieces of the next 20 ms; `Ready` with the whole answer.
    fn collect(&self, collected: &mut Collected) -> Poll<Result<WholeTuple, Failure>> {
        let deadline = Instant::now() + PAUSE;
        let mut stream = lock(&self.0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let piece = match stream.poll_timeout(left) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece.unwrap_or(Err(Failure::Stopped)),
            };
            match piece.map(|piece| collected.add(piece)) {
                Ok(None) => {}
                Ok(Some(whole)) => return Poll::Ready(Ok(whole)),
                Err(failure) => return Poll::Ready(Err(failure)),
            }
            if left.is_zero() {
                return Poll::Pending;
            }
        }
    }
}

#[pymethods]
impl Answer {
    /// Waits for the whole answer.
    fn wait(&self, py: Python<'_>) -> PyResult<WholeTuple> {
        let mut collected = Collected::default();
        loop {
            match py.detach(|| self.collect(&mut collected)) {
                Poll::Ready(whole) => return whole.map_err(error::failure),
                Poll::Pending => py.check_signals().inspect_err(|_| self.cancel(py))?,
            }
        }
    }

    /// Waits for the next piece; `None` after the last one, or if the request was cancelled.
    fn next(&self, py: Python<'_>) -> PyResult<Option<PieceTuple>> {
        loop {
            let piece = py.detach(|| lock(&self.0).poll_timeout(PAUSE));
            match piece {
                Poll::Ready(None | Some(Err(Failure::Cancelled(_)))) => return Ok(None),
                Poll::Ready(Some(Err(failure))) => return Err(error::failure(failure)),
                Poll::Ready(Some(Ok(piece))) => {
                    if let Some(piece) = piece_tuple(piece) {
                        return Ok(Some(piece));
                    }
                }
                Poll::Pending => {}
            }
            py.check_signals().inspect_err(|_| self.cancel(py))?;
        }
    }

    /// Cancels the request.
    fn cancel(&self, py: Python<'_>) {
        // Another thread may be waiting with the lock, for 20 ms at most.
        py.detach(|| lock(&self.0).cancel());
    }
}
