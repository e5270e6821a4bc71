//! Requests to an engine, and the events that answer them.

use std::sync::Arc;
use std::time::Duration;

use bitnet_models::Pooling;
use bitnet_tokenizers::TokenId;

use crate::backlog::Priority;
use crate::sampling::SamplingParams;
use crate::stop::TokenSet;

/// A prompt to continue, with its parameters.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// At least one.
    pub prompt: Vec<TokenId>,
    /// The sampling parameters.
    pub sampling: SamplingParams,
    /// Maximum number of tokens to generate; `None` for as many as fit into the context. With 0 the
    /// prompt is computed and nothing is sampled.
    pub max_tokens: Option<usize>,
    /// Until this many tokens are generated, no stop token is sampled and no stop string is looked
    /// for.
    pub min_tokens: usize,
    /// Tokens that end the answer; they are not part of its text.
    pub stop_ids: Vec<TokenId>,
    /// Strings that end the answer; they are not part of its text.
    pub stop_strings: Vec<String>,
    /// Whether control tokens appear in the text, by their names.
    pub show_special: bool,
    /// For each token of the answer, report its log-probability and the n most probable tokens.
    pub logprobs: Option<usize>,
    /// With `logprobs`, also report log-probabilities of the prompt's tokens. The prompt is then
    /// computed in full, without the cache.
    pub prompt_logprobs: bool,
    /// Also return the pooled hidden states of the prompt ([`Finish::pooled`]). Except for the last
    /// token's, the prompt is then computed in full, without the cache.
    pub pooling: Option<Pooling>,
    /// Only requests with the same salt share cached prompts.
    pub cache_salt: Option<Arc<str>>,
    /// Whether a client waits for the tokens.
    pub priority: Priority,
}

/// Restricts the next tokens, for example by a grammar. The engine calls `allowed` before it
/// samples a token and `accept` with the token.
pub trait Constraint: Send {
    /// Whether any token may come next, also one that ends the answer. The engine then does not
    /// call `allowed`.
    fn is_free(&self) -> bool {
        false
    }

    /// The tokens that may come next, including tokens that end the answer; at least one.
    ///
    /// # Errors
    /// The reason why no token can be allowed; the request then fails.
    fn allowed(&mut self, allowed: &mut TokenSet) -> std::result::Result<(), String>;

    /// Takes the sampled token.
    ///
    /// # Errors
    /// The reason why the token is invalid; the request then fails.
    fn accept(&mut self, token: TokenId) -> std::result::Result<(), String>;
}

/// Log-probabilities (natural logarithms of the softmax of the logits, before bias, penalties and
/// temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The log-probability of the token itself.
    pub token: f32,
    /// The most probable tokens, in order.
    pub top: Vec<(TokenId, f32)>,
}

/// The id of a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

/// The reason why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// The requested limit of tokens.
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

/// The tokens and times of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that came from the cache, computed by earlier requests or by others
    /// that ran at the same time.
    pub cached_tokens: usize,
    /// Tokens sampled, the stop token included.
    pub generated_tokens: usize,
    /// From the first step to the first sampled token.
    pub prefill: Duration,
    /// From the first sampled token to the last.
    pub decode: Duration,
    /// From the request's arrival to the first sampled token.
    pub first_token: Duration,
    /// The part of `prefill` that forward passes took.
    pub prefill_forward: Duration,
    /// The part of `decode` that forward passes took.
    pub decode_forward: Duration,
    /// Drafted tokens.
    pub drafted_tokens: usize,
    /// Drafted tokens that were right.
    pub accepted_tokens: usize,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The reason.
    pub reason: FinishReason,
    /// The index of the stop string that ended the text, if one did.
    pub stop_string: Option<usize>,
    /// Its tokens and times.
    pub timings: Timings,
    /// The pooled hidden states of the prompt, `[hidden]`, if the request asks for them.
    pub pooled: Option<Vec<f32>>,
}

/// A result of a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// Some tokens of a prompt have been computed.
    Prefill {
        /// The request.
        id: RequestId,
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// If the request asks for them: log-probabilities of further tokens of the prompt, in
        /// order. The prompt's first token has none.
        logprobs: Vec<Logprobs>,
    },
    /// A token was sampled.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: TokenId,
        /// The new text that is final: whole characters that cannot belong to a stop string.
        text: String,
        /// Present if the request asks for them.
        logprobs: Option<Logprobs>,
    },
    /// An answer has ended.
    Finished {
        /// The request.
        id: RequestId,
        /// Text that was held back until now.
        text: String,
        /// The reason, tokens and times.
        finish: Finish,
    },
    /// A request's constraint failed. The request has ended.
    Failed {
        /// The request.
        id: RequestId,
        /// The constraint's reason.
        problem: String,
    },
}
