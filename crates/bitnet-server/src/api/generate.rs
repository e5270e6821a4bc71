//! The common parts of chat and completions: fields, limits, and the way to the engine and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request as HttpRequest;
use bitnet_inference::{
    Constraint, Failure, Finish, FinishReason, Job, Logprobs, MakeConstraint, Piece, Pooling,
    Priority, Reply, Request, SamplingParams, Thinking, ThinkingMarks, Token,
};
use bitnet_tokenizers::{ReasoningStart, TokenId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use utoipa::ToSchema;

use crate::answer_sink::AnswerSink;
use crate::api::body::WholeBody;
use crate::api::error::shortened;
use crate::api::fields::TextOr;
use crate::api::format::{self, ResponseFormat, StructuredOutputs};
use crate::api::stream::UsageChunks;
use crate::api::usage::Usage;
use crate::api::{ApiError, body};
use crate::grammar::{Grammar, TokenConstraint};
use crate::id;
use crate::metrics::{AnswerTimer, Metrics, Outcome};
use crate::quotas::Admitted;
use crate::record::{Generation, Record};
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

/// Maximum number of stop strings of a request, and of bytes of each.
const STOP_STRINGS_MAX: usize = 16;
const STOP_STRING_BYTES_MAX: usize = 256;
/// Maximum number of tokens with a bias: the engine computes the logits of each in full for each
/// token of the answer.
const BIASES_MAX: usize = 1024;
/// The largest bias in either direction, as in OpenAI's API.
const BIAS_MAX: f32 = 100.0;

/// Maximum time of a request of a batch, from its body to the end of its answer: a batch has its
/// own limit.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(u32::MAX as u64);

/// Maximum number of characters of a model's name in records: a lenient server takes any name.
const NAME_CHARS_MAX: usize = 120;

/// Options for streaming.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Send a last chunk with the usage of the whole request, and `"usage": null` in the chunks
    /// before it.
    include_usage: Option<bool>,
    /// With `include_usage`, send the usage so far in each chunk.
    continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    fn usage(self) -> UsageChunks {
        let is_set = |option: Option<bool>| option.unwrap_or(false);
        match (
            is_set(self.include_usage),
            is_set(self.continuous_usage_stats),
        ) {
            (false, _) => UsageChunks::None,
            (true, false) => UsageChunks::Last,
            (true, true) => UsageChunks::All,
        }
    }
}

/// The fields that all endpoints share, as requests state them.
#[derive(Default)]
pub(crate) struct Common {
    pub(crate) model: Option<String>,
    pub(crate) n: Option<u32>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<TextOr<String>>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) return_token_ids: Option<bool>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
}

/// Defines a request type with the fields of [`Common`] after its own.
macro_rules! generation_request {
    ($(#[$meta:meta])* pub(crate) struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        pub(crate) struct $name {
            $($own)*
            /// A name of the model; the served model if not given.
            model: Option<String>,
            /// Number of answers to each prompt. Answer i equals the answer to a request with seed
            /// + i.
            #[schema(minimum = 1)]
            n: Option<u32>,
            /// Send the answer in pieces while it is generated, as server-sent events.
            stream: Option<bool>,
            /// Options for streaming.
            stream_options: Option<crate::api::generate::StreamOptions>,
            /// The same request with the same seed gets the same answer, on every machine and under
            /// any load.
            seed: Option<i64>,
            /// Texts that end the answer and are not part of it; at most 16, of at most 256 bytes
            /// each.
            stop: Option<crate::api::fields::TextOr<String>>,
            /// Tokens that end the answer, in addition to the model's own.
            stop_token_ids: Option<Vec<u32>>,
            /// Continue after the tokens that end the model's answers.
            ignore_eos: Option<bool>,
            /// Until this many tokens are generated, only `max_tokens` ends the answer.
            min_tokens: Option<u32>,
            /// Omit control tokens from the text; true if not given.
            skip_special_tokens: Option<bool>,
            /// Divides the logits; 0 takes the most probable token.
            #[schema(minimum = 0, maximum = 100)]
            temperature: Option<f32>,
            /// Choose among this many of the most probable tokens; 0 or -1 for all.
            #[schema(minimum = -1)]
            top_k: Option<i64>,
            /// Choose among the most probable tokens whose probabilities add up to this.
            #[schema(exclusive_minimum = 0, maximum = 1)]
            top_p: Option<f32>,
            /// Choose among tokens with at least this share of the highest probability.
            #[schema(minimum = 0, maximum = 1)]
            min_p: Option<f32>,
            /// Choose among the tokens closest to the expected surprise whose probabilities add up
            /// to this.
            #[schema(exclusive_minimum = 0, maximum = 1)]
            typical_p: Option<f32>,
            /// Penalty factor for tokens that have occurred: lowers their logits. All penalties
            /// consider the last 64 tokens, including the prompt's, or the number that
            /// `--repeat-last-n` sets.
            #[schema(exclusive_minimum = 0, maximum = 100)]
            repetition_penalty: Option<f32>,
            /// Subtracted from the logits of tokens that occurred within the range of
            /// `repetition_penalty`.
            #[schema(minimum = -100, maximum = 100)]
            presence_penalty: Option<f32>,
            /// Subtracted from the logits of tokens for each time that they occurred, within the
            /// range of `repetition_penalty`.
            #[schema(minimum = -100, maximum = 100)]
            frequency_penalty: Option<f32>,
            /// Numbers to add to the logits of tokens, by their ids; from -100 to 100, for at most
            /// 1024 tokens.
            logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Also return the ids of the tokens.
            return_token_ids: Option<bool>,
            /// Only requests with the same salt share cached prompts. It has no effect on answers.
            cache_salt: Option<String>,
            /// The form of the answer, as in OpenAI's API.
            response_format: Option<crate::api::format::ResponseFormat>,
            /// The form of the answer, as in vLLM.
            structured_outputs: Option<crate::api::format::StructuredOutputs>,
            /// Names the user for the operator's records. It has no effect.
            #[expect(dead_code, reason = "accepted, and of no consequence")]
            user: Option<String>,
        }

        impl $name {
            /// Takes the common fields out.
            fn common(&mut self) -> crate::api::generate::Common {
                crate::api::generate::Common {
                    model: self.model.take(),
                    n: self.n,
                    stream: self.stream,
                    stream_options: self.stream_options,
                    seed: self.seed,
                    stop: self.stop.take(),
                    stop_token_ids: self.stop_token_ids.take(),
                    ignore_eos: self.ignore_eos,
                    min_tokens: self.min_tokens,
                    skip_special_tokens: self.skip_special_tokens,
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.take(),
                    return_token_ids: self.return_token_ids,
                    cache_salt: self.cache_salt.take(),
                    response_format: self.response_format.take(),
                    structured_outputs: self.structured_outputs.take(),
                }
            }
        }
    };
}
pub(crate) use generation_request;

/// A checked request: the work for the engine, and how to send the answer.
#[derive(Clone)]
pub(crate) struct Plan {
    /// How tokens are chosen, for the first answer to a prompt.
    sampling: SamplingParams,
    max_tokens: Option<usize>,
    min_tokens: usize,
    show_special: bool,
    stop_ids: Vec<TokenId>,
    stop_strings: Vec<String>,
    /// Log-probabilities of each token, and of this many of the most probable ones.
    logprobs: Option<usize>,
    /// Also log-probabilities of the prompt's tokens.
    pub(crate) prompt_logprobs: bool,
    /// How the prompt's hidden states are pooled, for an embedding.
    pooling: Option<Pooling>,
    cache_salt: Option<String>,
    constraint: Option<TokenConstraint>,
    /// Thinking before the form.
    pub(crate) thinking: Option<ThinkingPlan>,
    /// The name of the model in the request, if there is one.
    model: Option<String>,
    is_json: bool,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) is_stream: bool,
    pub(crate) usage: UsageChunks,
    pub(crate) return_token_ids: bool,
}

impl Common {
    /// Checks everything except the prompts.
    pub(crate) fn settle(
        self,
        app: &App,
        model: &ServedModel,
        max_tokens: Option<u32>,
        logprobs: Option<usize>,
        tools: Option<Grammar>,
    ) -> Result<Plan, ApiError> {
        check_model(self.model.as_deref(), app, model)?;
        let is_stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !is_stream && !app.options.is_lenient {
            let message = "'stream_options' is only for streams: set 'stream' to true.";
            return Err(ApiError::invalid("stream_options", message));
        }
        let n = self.n.unwrap_or(1) as usize;
        if n == 0 {
            return Err(ApiError::invalid("n", "'n' is 0, but must be at least 1."));
        }
        let min_tokens = self.min_tokens.unwrap_or(0);
        if let Some(max_tokens) = max_tokens.filter(|max_tokens| min_tokens > *max_tokens) {
            let message =
                format!("'min_tokens' is {min_tokens}, more than 'max_tokens', {max_tokens}.");
            return Err(ApiError::invalid("min_tokens", message));
        }
        let stop_strings = match &self.stop {
            None => Vec::new(),
            Some(TextOr::Text(text)) => vec![text.clone()],
            Some(TextOr::List(list)) => list.clone(),
        };
        check_stop_strings(&stop_strings)?;
        let constraint = self.constraint(model, tools)?;
        let is_json = format::is_json(
            self.response_format.as_ref(),
            self.structured_outputs.as_ref(),
        );
        Ok(Plan {
            sampling: self.sampling(app, model)?,
            max_tokens: max_tokens.map(|max| max as usize),
            min_tokens: min_tokens as usize,
            show_special: self.skip_special_tokens == Some(false),
            stop_ids: self.stop_ids(model)?,
            stop_strings,
            logprobs,
            prompt_logprobs: false,
            pooling: None,
            cache_salt: self.cache_salt,
            constraint,
            thinking: None,
            model: self.model.map(|name| shortened(name, NAME_CHARS_MAX)),
            is_json,
            n,
            is_stream,
            usage: self
                .stream_options
                .map(StreamOptions::usage)
                .unwrap_or_default(),
            return_token_ids: self.return_token_ids.unwrap_or(false),
        })
    }

    /// The form of the answer: the one of the fields, or of calls of tools.
    pub(crate) fn constraint(
        &self,
        model: &ServedModel,
        tools: Option<Grammar>,
    ) -> Result<Option<TokenConstraint>, ApiError> {
        let form = format::grammar(
            self.response_format.as_ref(),
            self.structured_outputs.as_ref(),
        )?;
        let (grammar, field) = match (form, tools) {
            (None, None) => return Ok(None),
            (Some(form), None) => form,
            (None, Some(tools)) => (tools, "tools"),
            (Some((_, field)), Some(_)) => {
                let message = format!("'{field}' and 'tools' together are not supported.");
                return Err(ApiError::unsupported(Some(field), message));
            }
        };
        if self.ignore_eos == Some(true) {
            let message = format!("'ignore_eos' and '{field}' contradict each other.");
            return Err(ApiError::invalid("ignore_eos", message));
        }
        model.compile(&grammar, field).map(Some)
    }

    fn sampling(&self, app: &App, model: &ServedModel) -> Result<SamplingParams, ApiError> {
        let defaults = &model.sampling;
        let top_k = match self.top_k {
            None => defaults.top_k,
            Some(-1) => 0,
            Some(k) => usize::try_from(k).map_err(|_| {
                ApiError::invalid(
                    "top_k",
                    format!("'top_k' is {k}, but must be at least 1, or 0 or -1 for all tokens."),
                )
            })?,
        };
        let num_biases = self.logit_bias.as_ref().map_or(0, BTreeMap::len);
        if num_biases > BIASES_MAX {
            let message =
                format!("'logit_bias' has {num_biases} tokens, but may have {BIASES_MAX} at most.");
            return Err(ApiError::invalid("logit_bias", message));
        }
        let mut logit_bias = defaults.logit_bias.clone();
        for (id, &bias) in self.logit_bias.iter().flatten() {
            let field = format!("logit_bias.{id}");
            let token = id
                .parse()
                .map_err(|_| ApiError::invalid(&field, format!("'{id}' is not a token id.")))?;
            if !(-BIAS_MAX..=BIAS_MAX).contains(&bias) {
                let message = format!(
                    "The bias of token {id} is {bias}, but must be from -{BIAS_MAX} to {BIAS_MAX}."
                );
                return Err(ApiError::invalid(&field, message));
            }
            logit_bias.push((token, bias));
        }
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            penalty_window: defaults.penalty_window,
            logit_bias,
            seed: self
                .seed
                .map(|seed| seed as u64)
                .or(app.options.seed)
                .unwrap_or_else(id::random),
        };
        sampling
            .check(model.vocab_size)
            .map_err(|error| refusal(&error))?;
        Ok(sampling)
    }

    /// The control tokens whose names are stop strings. They have no text in answers, so that the
    /// strings would never be found there.
    fn stop_tokens_by_name(&self, model: &ServedModel) -> Vec<TokenId> {
        let names = match &self.stop {
            None => &[][..],
            Some(TextOr::Text(text)) => std::slice::from_ref(text),
            Some(TextOr::List(texts)) => texts,
        };
        let tokenizer = model.tokenizer.as_ref();
        let token = |name: &String| {
            let tokenizer = tokenizer?;
            tokenizer
                .special_token(name)
                .filter(|id| tokenizer.is_special(*id))
        };
        names.iter().filter_map(token).collect()
    }

    fn stop_ids(&self, model: &ServedModel) -> Result<Vec<TokenId>, ApiError> {
        let mut stop_ids = match &model.tokenizer {
            Some(tokenizer) if !self.ignore_eos.unwrap_or(false) => tokenizer.stop_ids().to_vec(),
            _ => Vec::new(),
        };
        let more = self.stop_token_ids.iter().flatten();
        stop_ids.extend(more.map(|&id| TokenId(id)));
        stop_ids.extend(self.stop_tokens_by_name(model));
        // Each answer has a copy, and each token is looked up in it: repeated ids cost nothing.
        stop_ids.sort_unstable();
        stop_ids.dedup();
        // A set of ids takes memory up to its largest id.
        match stop_ids.iter().find(|id| id.0 as usize >= model.vocab_size) {
            Some(id) => {
                let message = format!(
                    "Token {id} does not exist: the vocabulary has {}.",
                    model.vocab_size
                );
                Err(ApiError::invalid("stop_token_ids", message))
            }
            None => Ok(stop_ids),
        }
    }
}

/// Refuses names of other models. A lenient server accepts every name.
pub(crate) fn check_model(
    name: Option<&str>,
    app: &App,
    model: &ServedModel,
) -> Result<(), ApiError> {
    match name {
        Some(name) if !app.options.is_lenient && !model.names.iter().any(|known| known == name) => {
            Err(ApiError::unknown_model(name, &app.registry.known_names()))
        }
        _ => Ok(()),
    }
}

fn check_stop_strings(strings: &[String]) -> Result<(), ApiError> {
    if strings.len() > STOP_STRINGS_MAX {
        let message = format!(
            "'stop' has {} texts, but may have {STOP_STRINGS_MAX} at most.",
            strings.len()
        );
        return Err(ApiError::invalid("stop", message));
    }
    match strings
        .iter()
        .find(|text| text.is_empty() || text.len() > STOP_STRING_BYTES_MAX)
    {
        Some(text) => {
            let message = format!(
                "A text of 'stop' has {} bytes, but must have from 1 to {STOP_STRING_BYTES_MAX}.",
                text.len()
            );
            Err(ApiError::invalid("stop", message))
        }
        None => Ok(()),
    }
}

/// Why an answer failed, for the client.
fn failed(failure: Failure) -> ApiError {
    match failure {
        Failure::Refused(error) => refusal(&error),
        Failure::Constraint(problem) => ApiError::form_failed(&problem),
        Failure::File(problem) => ApiError::model_file(&problem),
        Failure::Model(problem) => ApiError::internal(problem),
        Failure::Device(problem) => ApiError::device_failed(&problem),
        Failure::Panicked(_) => {
            ApiError::internal("a bug in the engine: this request made it panic")
        }
        Failure::Cancelled(_) | Failure::Stopped => ApiError::engine_stopped(),
    }
}

/// An error of the engine, in terms of the request's fields.
fn refusal(error: &bitnet_inference::Error) -> ApiError {
    use bitnet_inference::Error;
    match error {
        Error::Sampling {
            name,
            value,
            allowed,
        } => {
            let field = name.replace([' ', '-'], "_");
            ApiError::invalid(
                &field,
                format!("'{field}' is {value}, but must be {allowed}."),
            )
        }
        Error::BiasRange { token, .. } => {
            ApiError::invalid(&format!("logit_bias.{token}"), format!("{error}."))
        }
        error => ApiError::invalid("prompt", format!("{error}.")),
    }
}

/// The answers to a request, as they arrive from the engine.
pub(crate) struct Answers {
    replies: UnboundedReceiver<(usize, Reply)>,
    metrics: Arc<Metrics>,
    /// Keeps the model loaded.
    _model: ModelLease,
    timers: Vec<AnswerTimer>,
    deadline: tokio::time::Instant,
    limit: Duration,
    stop_ids: Vec<TokenId>,
    /// Answers that have not ended.
    num_open: usize,
    /// For each prompt, the number of answers that have not ended, and the length in tokens of the
    /// longest one that has.
    prompts: Vec<(usize, usize)>,
    n: usize,
    record: Arc<Record>,
    /// Notified when another request cancels the answers.
    cancel: Arc<Notify>,
    /// The client's share of its limits, if there are any.
    admitted: Option<Admitted>,
}

/// A request to an endpoint.
pub(crate) struct Asked<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) prompts: &'a [Vec<TokenId>],
    /// The field that the prompts came from.
    pub(crate) param: &'static str,
    /// `chat` or `text_completion`.
    pub(crate) operation: &'static str,
    pub(crate) response_id: &'a str,
}

/// Puts `n` answers to each prompt into the queue.
pub(crate) fn submit(
    app: &App,
    model: &ModelLease,
    asked: &Asked<'_>,
    record: &Arc<Record>,
) -> Result<Answers, ApiError> {
    let Asked {
        plan,
        prompts,
        param,
        ..
    } = *asked;
    let num_answers = num_answers(app, asked)?;
    for prompt in prompts {
        check_prompt(model, plan, prompt, param)?;
    }
    let lengths: Vec<usize> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.len(), plan.n))
        .collect();
    let (share, priority) = {
        let details = record.details();
        (details.share(), details.priority)
    };
    let tickets = model.queue().enter(&lengths, priority)?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let admitted = match priority {
        Priority::Interactive => app.quotas.admit(&share, num_answers, prompt_tokens)?,
        Priority::Background => None,
    };
    let cache_salt = cache_salt(app, plan, record);
    let (sender, replies) = tokio::sync::mpsc::unbounded_channel();
    let entered = Instant::now();
    let jobs = tickets.into_iter().enumerate().map(|(choice, ticket)| {
        let request = plan.request(&prompts[choice / plan.n], choice % plan.n);
        Job {
            request: Request {
                cache_salt: cache_salt.clone(),
                priority,
                ..request
            },
            constraint: plan.constraint(model.vocab_size),
            owner: Arc::clone(&share),
            sink: Box::new(AnswerSink::new(choice, sender.clone(), ticket)),
        }
    });
    // Set this before the engine can report on the request.
    record.details().generation = Some(generation(model, asked, entered - record.arrived()));
    model.send_jobs(jobs)?;
    model.metrics().asked(plan.n, plan.max_tokens);
    let limit = time_limit(app, priority);
    Ok(Answers {
        replies,
        metrics: Arc::clone(model.metrics()),
        _model: model.clone(),
        timers: (0..num_answers)
            .map(|_| AnswerTimer::new(record.arrived(), priority))
            .collect(),
        deadline: tokio::time::Instant::now() + limit,
        limit,
        stop_ids: plan.stop_ids.clone(),
        num_open: num_answers,
        prompts: vec![(plan.n, 0); prompts.len()],
        n: plan.n,
        record: Arc::clone(record),
        cancel: Arc::default(),
        admitted,
    })
}

/// Maximum time of a request.
fn time_limit(app: &App, priority: Priority) -> Duration {
    match priority {
        Priority::Interactive => app.options.limits.request_timeout,
        Priority::Background => BACKGROUND_TIMEOUT,
    }
}

/// The number of answers to all prompts, if it is within the limit.
fn num_answers(app: &App, asked: &Asked<'_>) -> Result<usize, ApiError> {
    let Asked { plan, param, .. } = *asked;
    let num_answers = asked.prompts.len().saturating_mul(plan.n);
    let limit = app.options.limits.choices;
    if num_answers > limit {
        let message =
            format!("The request asks for {num_answers} answers, but may ask for {limit} at most.");
        let param = if plan.n > 1 { "n" } else { param };
        return Err(ApiError::invalid(param, message));
    }
    Ok(num_answers)
}

/// The salt of the request's cache: its own, and its owner's if owners do not share a cache.
fn cache_salt(app: &App, plan: &Plan, record: &Record) -> Option<Arc<str>> {
    let owner = record
        .details()
        .owner
        .clone()
        .filter(|_| app.options.separate_caches);
    match (owner, &plan.cache_salt) {
        (Some(owner), Some(salt)) => Some(format!("{owner}\n{salt}").into()),
        (Some(owner), None) => Some(owner),
        (None, salt) => salt.as_deref().map(Into::into),
    }
}

/// The record of a request that enters the queue, `entered` after it arrived.
fn generation(model: &ServedModel, asked: &Asked<'_>, entered: Duration) -> Generation {
    let plan = asked.plan;
    let prompt_tokens = asked.prompts.iter().map(Vec::len).sum();
    Generation {
        operation: asked.operation,
        model: model.name().to_owned(),
        asked_model: plan
            .model
            .clone()
            .unwrap_or_else(|| model.name().to_owned()),
        is_asked_ours: plan
            .model
            .as_ref()
            .is_none_or(|name| model.names.contains(name)),
        is_json: plan.is_json,
        response_id: asked.response_id.to_owned(),
        is_stream: plan.is_stream,
        n: plan.n,
        sampling: plan.sampling.clone(),
        max_tokens: plan.max_tokens,
        usage: Usage {
            prompt_tokens,
            total_tokens: prompt_tokens,
            ..Usage::default()
        },
        entered,
        started: None,
        first_token: None,
        last_token: None,
        finish_reasons: BTreeMap::new(),
    }
}

/// What an answer of a model that thinks begins with.
#[derive(Clone)]
pub(crate) struct ThinkingPlan {
    pub(crate) marks: Arc<ThinkingMarks>,
    pub(crate) start: ReasoningStart,
    /// Maximum number of tokens.
    pub(crate) budget: Option<usize>,
}

impl Plan {
    /// Prompts without answers, whose hidden states are pooled. `model`: its name in the request.
    pub(crate) fn for_embeddings(pooling: Pooling, model: Option<String>) -> Self {
        Self {
            sampling: SamplingParams::default(),
            max_tokens: Some(0),
            min_tokens: 0,
            show_special: false,
            stop_ids: Vec::new(),
            stop_strings: Vec::new(),
            logprobs: None,
            prompt_logprobs: false,
            pooling: Some(pooling),
            cache_salt: None,
            constraint: None,
            thinking: None,
            model: model.map(|name| shortened(name, NAME_CHARS_MAX)),
            is_json: false,
            n: 1,
            is_stream: false,
            usage: UsageChunks::None,
            return_token_ids: false,
        }
    }

    /// Sets the maximum number of tokens of an answer; `None` for as many as fit into the context.
    pub(crate) fn set_max_tokens(&mut self, max_tokens: Option<usize>) {
        self.max_tokens = max_tokens;
    }

    /// How the tokens of the first answer are chosen.
    pub(crate) fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Whether a form restricts the answer.
    pub(crate) fn has_form(&self) -> bool {
        self.constraint.is_some()
    }

    /// The engine's request for the answer of this index to a prompt, without a salt.
    fn request(&self, prompt: &[TokenId], index: usize) -> Request {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(index as u64);
        Request {
            prompt: prompt.to_vec(),
            sampling,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            show_special: self.show_special,
            stop_ids: self.stop_ids.clone(),
            stop_strings: self.stop_strings.clone(),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            pooling: self.pooling,
            cache_salt: None,
            priority: Priority::Interactive,
        }
    }

    /// Makes the constraint of each run of an answer.
    fn constraint(&self, vocab_size: usize) -> Option<MakeConstraint> {
        let (form, thinking) = (self.constraint.clone(), self.thinking.clone());
        make_constraint(form, thinking, &self.stop_ids, vocab_size)
    }
}

/// Makes the constraint of each run of an answer that begins with thinking and then has a form.
pub(crate) fn make_constraint(
    form: Option<TokenConstraint>,
    thinking: Option<ThinkingPlan>,
    stop_ids: &[TokenId],
    vocab_size: usize,
) -> Option<MakeConstraint> {
    let form = form.map(|form| move || Box::new(form.restarted()) as Box<dyn Constraint>);
    let Some(ThinkingPlan {
        marks,
        start,
        budget,
    }) = thinking
    else {
        return form.map(|form| Box::new(form) as MakeConstraint);
    };
    let stop_ids = stop_ids.to_vec();
    Some(Box::new(move || {
        let thinking = Thinking::new(Arc::clone(&marks), start, vocab_size, budget);
        Box::new(match &form {
            None => thinking,
            Some(form) => thinking.before(form(), &stop_ids),
        })
    }))
}

fn check_prompt(
    model: &ServedModel,
    plan: &Plan,
    prompt: &[TokenId],
    param: &'static str,
) -> Result<(), ApiError> {
    if prompt.is_empty() {
        return Err(ApiError::invalid(
            param,
            format!("'{param}' is empty: at least one token is needed."),
        ));
    }
    if let Some(token) = prompt
        .iter()
        .find(|token| token.0 as usize >= model.vocab_size)
    {
        let message = format!(
            "Token {token} does not exist: the vocabulary has {}.",
            model.vocab_size
        );
        return Err(ApiError::invalid(param, message));
    }
    if prompt.len().saturating_add(plan.max_tokens.unwrap_or(1)) > model.context {
        return Err(ApiError::context_length(
            param,
            prompt.len(),
            plan.max_tokens,
            model.context,
        ));
    }
    Ok(())
}

impl Answers {
    /// These answers continue a request that began at `start` and had earlier prompts of
    /// `prompt_tokens` together.
    pub(crate) fn continue_request(&mut self, start: Instant, prompt_tokens: usize) {
        self.deadline = tokio::time::Instant::from_std(start) + self.limit;
        self.generation(|generation| {
            generation.usage.prompt_tokens += prompt_tokens;
            generation.usage.total_tokens += prompt_tokens;
        });
    }

    /// Fails with [`ApiError::cancelled`] once `cancel` is notified.
    pub(crate) fn end_when(&mut self, cancel: Arc<Notify>) {
        self.cancel = cancel;
    }

    /// The next piece and the answer it belongs to; `None` when all have ended. May be dropped and
    /// called again.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Piece)>, ApiError> {
        let piece = self.next_piece().await;
        if let Err(error) = &piece {
            self.end(match error.is_cancelled() {
                true => Outcome::Abort,
                false => Outcome::Error,
            });
            self.record.details().error = Some(error.clone());
        }
        piece
    }

    async fn next_piece(&mut self) -> Result<Option<(usize, Piece)>, ApiError> {
        while self.num_open > 0 {
            let reply = tokio::select! {
                biased;
                () = self.cancel.notified() => return Err(ApiError::cancelled()),
                reply = tokio::time::timeout_at(self.deadline, self.replies.recv()) => reply,
            };
            let Ok(reply) = reply else {
                return Err(ApiError::answer_too_slow(self.limit.as_secs_f64()));
            };
            let Some((choice, reply)) = reply else {
                return Err(failed(Failure::Stopped));
            };
            match reply {
                Reply::Started { queued } => self.started(choice, queued),
                Reply::Piece(mut piece) => {
                    match &mut piece {
                        Piece::Prompt { .. } => {}
                        Piece::Token(token) => self.sampled(choice, token),
                        Piece::End { finish, .. } => self.count(choice, finish),
                    }
                    return Ok(Some((choice, piece)));
                }
                Reply::Failed(failure) => return Err(failed(failure)),
            }
        }
        Ok(None)
    }

    fn started(&mut self, choice: usize, queued: Duration) {
        self.timers[choice].started(queued);
        self.generation(|generation| {
            generation
                .started
                .get_or_insert(generation.entered + queued);
        });
    }

    /// Times a token. Clients do not get the log-probabilities of a token that ends an answer.
    fn sampled(&mut self, choice: usize, token: &mut Token) {
        let elapsed = self.timers[choice].token(&self.metrics);
        self.generation(|generation| {
            generation.first_token.get_or_insert(elapsed);
            generation.last_token = Some(elapsed);
            generation.usage.completion_tokens += 1;
            generation.usage.total_tokens += 1;
        });
        if self.stop_ids.contains(&token.id) {
            token.logprobs = None;
        }
    }

    fn count(&mut self, choice: usize, finish: &Finish) {
        self.num_open -= 1;
        self.timers[choice].finished(&self.metrics, finish);
        let (open, longest) = &mut self.prompts[choice / self.n];
        (*open, *longest) = (*open - 1, finish.timings.generated_tokens.max(*longest));
        if *open == 0 {
            self.metrics.answered(*longest);
        }
        let is_first = choice.is_multiple_of(self.n);
        self.generation(|generation| {
            if is_first {
                generation.usage.prompt_tokens_details.cached_tokens +=
                    finish.timings.cached_tokens;
            }
        });
    }

    /// Records the finish reason that the client gets, and the tokens of thinking.
    pub(crate) fn finished(
        &self,
        choice: usize,
        reason: &'static str,
        reasoning_tokens: Option<usize>,
    ) {
        self.generation(|generation| {
            generation.finish_reasons.insert(choice, reason);
            if let Some(tokens) = reasoning_tokens {
                let details = &mut generation.usage.completion_tokens_details;
                details.get_or_insert_default().reasoning_tokens += tokens;
            }
        });
    }

    /// Changes the record of the request.
    fn generation<T>(&self, note: impl FnOnce(&mut Generation) -> T) -> Option<T> {
        self.record.details().generation.as_mut().map(note)
    }

    /// The usage so far.
    pub(crate) fn usage(&self) -> Usage {
        self.generation(|generation| generation.usage)
            .unwrap_or_default()
    }

    fn end(&mut self, outcome: Outcome) {
        self.timers
            .iter_mut()
            .for_each(|timer| timer.ended(&self.metrics, outcome));
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let generated = self.usage().completion_tokens;
        if let Some(admitted) = &mut self.admitted {
            admitted.generated = generated;
        }
        // Answers that have not ended have lost their client, so they end as aborted.
        self.end(Outcome::Abort);
    }
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Each token with the index in `text` where its text begins, in characters.
    pub(crate) tokens: Vec<(Token, usize)>,
    /// Log-probabilities of the prompt's tokens after the first, if the request asks for them.
    pub(crate) prompt_logprobs: Vec<Logprobs>,
    pub(crate) reason: FinishReason,
}

impl Answer {
    pub(crate) fn new() -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            prompt_logprobs: Vec::new(),
            reason: FinishReason::Stop,
        }
    }

    pub(crate) fn token_ids(&self) -> Vec<TokenId> {
        self.tokens.iter().map(|(token, _)| token.id).collect()
    }
}

/// Waits for all answers.
pub(crate) async fn collect(
    answers: &mut Answers,
    num_answers: usize,
) -> Result<(Vec<Answer>, Usage), ApiError> {
    let mut whole: Vec<_> = std::iter::repeat_with(Answer::new)
        .take(num_answers)
        .collect();
    let mut num_chars = vec![0; num_answers];
    while let Some((choice, piece)) = answers.next().await? {
        let answer = &mut whole[choice];
        match piece {
            Piece::Prompt {
                done,
                total,
                logprobs,
            } => {
                // A rerun after a panic sends the first ones again.
                let last = done.min(total - 1);
                let known = (answer.prompt_logprobs.len() + logprobs.len()).saturating_sub(last);
                answer
                    .prompt_logprobs
                    .extend(logprobs.into_iter().skip(known));
            }
            Piece::Token(token) => {
                let start = num_chars[choice];
                num_chars[choice] += token.text.chars().count();
                answer.text.push_str(&token.text);
                answer.tokens.push((token, start));
            }
            Piece::End { text, finish } => {
                answer.text.push_str(&text);
                answer.reason = finish.reason;
            }
        }
    }
    Ok((whole, answers.usage()))
}

/// The field that says which model a request is for.
#[derive(Debug, Default, Deserialize)]
struct Named {
    model: Option<String>,
}

/// Reads a request's body, takes the model that it names, and runs work on both on the threads for
/// text.
pub(crate) async fn read_and<T: Send + 'static>(
    app: &Arc<App>,
    request: HttpRequest,
    work: impl FnOnce(&App, &ServedModel, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<(ModelLease, T), ApiError> {
    let body = read(app, request).await?;
    let named = match app.registry.only() {
        // The work checks the name.
        Some(_) => Named::default(),
        None => peek(app, &body).await?,
    };
    let model = app.lease(named.model.as_deref()).await?;
    let done = work_on(app, &model, body, work).await?;
    Ok((model, done))
}

/// Reads a request's body.
pub(crate) async fn read(app: &Arc<App>, request: HttpRequest) -> Result<Arc<WholeBody>, ApiError> {
    let body = body::read(request, &app.options.limits, &app.inflight).await?;
    Ok(Arc::new(body))
}

/// Reads some of the fields of a body, on the threads for text.
pub(crate) async fn peek<T: DeserializeOwned + Send + 'static>(
    app: &Arc<App>,
    body: &Arc<WholeBody>,
) -> Result<T, ApiError> {
    let body = Arc::clone(body);
    // There are more fields.
    app.text.run(move || body::parse(body.bytes(), true)).await
}

/// Runs work on a body and its model on the threads for text.
pub(crate) async fn work_on<T: Send + 'static>(
    app: &Arc<App>,
    model: &ModelLease,
    body: Arc<WholeBody>,
    work: impl FnOnce(&App, &ServedModel, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (shared, model) = (Arc::clone(app), model.model());
    let work = move || work(&shared, &model, body.bytes());
    app.text.run(work).await
}
