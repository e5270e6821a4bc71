//! What an engine is asked, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use bitnet_tokenizers::TokenId;

use crate::sampling::SamplingParams;
use crate::stop::TokenSet;

/// Tokens to continue, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// At least one.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The most tokens to generate; `None` for as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not part of its text.
    pub stop_ids: Vec<TokenId>,
    /// Strings that end the answer; they are not part of its text.
    pub stop_strings: Vec<String>,
    /// For each token of the answer, its log-probability and those of so many of the most probable
    /// tokens.
    pub logprobs: Option<usize>,
    /// With `logprobs`, those of the prompt's tokens, too. Nothing of the prompt is taken from the
    /// cache then.
    pub prompt_logprobs: bool,
    /// Only requests with the same salt share what is cached of their prompts.
    pub cache_salt: Option<Arc<str>>,
}

/// Which tokens may come next, as a grammar has it. Asked before each token, and told which one it
/// was.
pub trait Constraint: Send {
    /// The tokens that may come now, those that end the answer included; at least one.
    ///
    /// # Errors
    /// Why none can be told: the request then fails.
    fn allowed(&mut self, allowed: &mut TokenSet) -> std::result::Result<(), String>;

    /// The token that came.
    ///
    /// # Errors
    /// Why it cannot be: the request then fails.
    fn accept(&mut self, token: TokenId) -> std::result::Result<(), String>;
}

/// Log-probabilities (natural logarithms of the softmax of the logits, before bias, penalties and
/// temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub token: f32,
    /// The most probable tokens, in order.
    pub top: Vec<(TokenId, f32)>,
}

/// A request's name within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// The limit of tokens asked for.
    Length,
    /// The context is full.
    Context,
}

impl FinishReason {
    /// The name that OpenAI's API uses, which knows only one limit of length.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length | Self::Context => "length",
        }
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that did not have to be computed: they were in the cache, from earlier
    /// requests or from others that ran at the same time.
    pub cached_tokens: usize,
    /// Tokens sampled, the stop token included.
    pub generated_tokens: usize,
    /// From the first step to the first sampled token.
    pub prefill: Duration,
    /// From the first sampled token to the last.
    pub decode: Duration,
    /// From the request's arrival to the first sampled token.
    pub first_token: Duration,
    /// What of `prefill` the forward passes took.
    pub prefill_forward: Duration,
    /// What of `decode` the forward passes took.
    pub decode_forward: Duration,
    /// Tokens guessed ahead.
    pub drafted_tokens: usize,
    /// Those of them that came.
    pub accepted_tokens: usize,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What it took.
    pub timings: Timings,
}

/// What a step brought.
#[derive(Clone, Debug)]
pub enum Event {
    /// So many tokens of a prompt have been computed.
    Prefill {
        /// Whose.
        id: RequestId,
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// If asked for, those of more of the prompt's tokens, in order, the second being the first
        /// that has any.
        logprobs: Vec<Logprobs>,
    },
    /// A token was sampled.
    Token {
        /// Whose.
        id: RequestId,
        /// The token.
        token: TokenId,
        /// The text that is certain now: whole characters, none that may belong to a stop string.
        text: String,
        /// If asked for.
        logprobs: Option<Logprobs>,
    },
    /// An answer has ended.
    Finished {
        /// Whose.
        id: RequestId,
        /// Text that had been held back.
        text: String,
        /// Why it ended, and what it took.
        finish: Finish,
    },
    /// A request's constraint could not go on. It has ended.
    Failed {
        /// Whose.
        id: RequestId,
        /// What the constraint said.
        problem: String,
    },
}
