//! `/v1/completions`: the continuation of a text, or of tokens.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bitnet_inference::{Finish, Token};
use bitnet_tokenizers::{DecodeOptions, EncodeOptions, PromptBos, TokenId, Tokenizer};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::fields::Prompt;
use crate::api::generate::{self, Answers, Asked, Plan, generation_request};
use crate::api::logprobs::{self, CompletionLogprobs};
use crate::api::stream::{self, Chunk, ChunkFormat, ChunkUsage, End, UsageChunks};
use crate::api::usage::Usage;
use crate::api::{ApiError, body};
use crate::clock::unix_time;
use crate::id::random_id;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

/// Maximum number of tokens of an answer if the request does not say, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: u32 = 16;

generation_request! {
    /// Texts or tokens to continue. Unknown and unsupported fields are refused with an error that
    /// names them.
    pub(crate) struct CompletionRequest {
        /// The prompt to continue: a text, token ids, or a list of either.
        prompt: Prompt,
        /// Maximum number of tokens to generate. With 0 and `echo`, the answer is the prompt.
        max_tokens: Option<u32>,
        /// Begin the answer with the prompt.
        echo: Option<bool>,
        /// Add the tokens that the model expects before a text; true if not given.
        add_special_tokens: Option<bool>,
        /// Read control tokens in a text, such as `<|eot_id|>`, as tokens; true if not given.
        parse_special: Option<bool>,
        /// Only the value of `n` is supported: every computed answer is returned.
        best_of: Option<u32>,
        /// Return the log-probability of each token, and of this many of the most probable ones;
        /// with `echo` also for the prompt.
        #[schema(maximum = 20)]
        logprobs: Option<u32>,
    }
}

impl CompletionRequest {
    /// Refuses `best_of`, unless it equals `n`.
    fn check_best_of(&self) -> Result<(), ApiError> {
        let n = self.n.unwrap_or(1);
        match self.best_of {
            Some(best_of) if best_of != n => {
                let message =
                    format!("'best_of' is {best_of}, but only {n}, like 'n', is supported.");
                Err(ApiError::unsupported(Some("best_of"), message))
            }
            _ => Ok(()),
        }
    }

    fn echoes_logprobs(&self) -> bool {
        self.logprobs.is_some() && self.echo == Some(true)
    }

    fn num_logprobs(&self) -> Result<Option<usize>, ApiError> {
        if self.echoes_logprobs() && self.stream == Some(true) {
            let message = "'logprobs' and 'echo' together are not supported in streams.";
            return Err(ApiError::unsupported(Some("logprobs"), message));
        }
        self.logprobs
            .map(|top| logprobs::check_top("logprobs", top))
            .transpose()
    }

    /// The prompts as tokens.
    fn encode(&self, model: &ServedModel) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let tokens = |ids: &Vec<u32>| ids.iter().copied().map(TokenId).collect();
        let texts = match &self.prompt {
            Prompt::Tokens(ids) => return Ok(vec![tokens(ids)]),
            Prompt::TokenLists(lists) => return Ok(lists.iter().map(tokens).collect()),
            Prompt::Text(text) => std::slice::from_ref(text),
            Prompt::Texts(texts) => texts,
        };
        let tokenizer = model.tokenizer()?;
        let options = EncodeOptions {
            add_special: self.add_special_tokens.unwrap_or(true),
            parse_special: self.parse_special.unwrap_or(true),
        };
        texts
            .iter()
            .map(|text| encode(tokenizer, text, options))
            .collect()
    }

    /// The prompts as texts.
    fn texts(&self, model: &ServedModel) -> Result<Vec<String>, ApiError> {
        let decode = |tokenizer: &Tokenizer, ids: &Vec<u32>| {
            let ids: Vec<_> = ids.iter().copied().map(TokenId).collect();
            tokenizer.decode(&ids, DecodeOptions::default())
        };
        Ok(match &self.prompt {
            Prompt::Text(text) => vec![text.clone()],
            Prompt::Texts(texts) => texts.clone(),
            Prompt::Tokens(ids) => vec![decode(model.tokenizer()?, ids)],
            Prompt::TokenLists(lists) => {
                let tokenizer = model.tokenizer()?;
                lists.iter().map(|ids| decode(tokenizer, ids)).collect()
            }
        })
    }
}

/// The tokens of a text, with BOS where the model wants it and the text does not begin with it.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    options: EncodeOptions,
) -> Result<Vec<TokenId>, ApiError> {
    let bos = if options.add_special {
        PromptBos::AsModel
    } else {
        PromptBos::Never
    };
    tokenizer
        .encode_prompt(text, bos, options.parse_special)
        .map_err(|error| ApiError::invalid("prompt", format!("{error}.")))
}

/// A request with its prompts.
struct Prepared {
    plan: Plan,
    prompts: Vec<Vec<TokenId>>,
    /// The echoed text of each prompt; empty without `echo`.
    echoes: Vec<String>,
    /// Characters of each prompt; empty without `logprobs`.
    prompt_chars: Vec<usize>,
    /// The number of requested most probable tokens.
    top_logprobs: usize,
}

fn prepare(app: &App, model: &ServedModel, bytes: &[u8]) -> Result<Prepared, ApiError> {
    let is_lenient = app.options.is_lenient;
    let mut request: CompletionRequest = body::parse(bytes, is_lenient)?;
    if !is_lenient {
        request.check_best_of()?;
    }
    let max_tokens = request.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    if max_tokens == Some(0) && request.echo != Some(true) {
        let message = "'max_tokens' is 0, which needs 'echo': there is no other answer.";
        return Err(ApiError::invalid("max_tokens", message));
    }
    let num_logprobs = request.num_logprobs()?;
    let mut plan = request
        .common()
        .settle(app, model, max_tokens, num_logprobs, None)?;
    plan.prompt_logprobs = request.echoes_logprobs();
    let prompts = request.encode(model)?;
    let echoes = if request.echo.unwrap_or(false) {
        request.texts(model)?
    } else {
        Vec::new()
    };
    let prompt_chars = match num_logprobs {
        Some(_) if model.tokenizer.is_some() => {
            let texts = request.texts(model)?;
            texts.iter().map(|text| text.chars().count()).collect()
        }
        _ => Vec::new(),
    };
    Ok(Prepared {
        plan,
        prompts,
        echoes,
        prompt_chars,
        top_logprobs: num_logprobs.unwrap_or(0),
    })
}

async fn read_and_prepare(
    app: &Arc<App>,
    request: Request,
) -> Result<(ModelLease, Prepared), ApiError> {
    app.check_open()?;
    generate::read_and(app, request, prepare).await
}

/// The continuations of texts or tokens.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "createCompletion",
    tag = "OpenAI",
    request_body = CompletionRequest,
    responses((status = 200, description = "The answers, or their chunks and `[DONE]`.", content(
        (Completion<'_> = "application/json"),
        (Completion<'_> = "text/event-stream"),
    )))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, prepared) = read_and_prepare(&app, request).await?;
    let Prepared {
        plan,
        prompts,
        echoes,
        prompt_chars,
        top_logprobs,
    } = prepared;
    let id = random_id("cmpl-");
    let operation = "text_completion";
    let asked = Asked {
        plan: &plan,
        prompts: &prompts,
        param: "prompt",
        operation,
        response_id: &id,
    };
    let answers = generate::submit(&app, &model, &asked, &record)?;
    let num_answers = prompts.len() * plan.n;
    let envelope = Envelope {
        id,
        created: unix_time(),
        model: model.name().to_owned(),
        tokenizer: model.tokenizer.clone(),
        return_token_ids: plan.return_token_ids,
        usage: plan.usage,
        n: plan.n,
        echoed_tokens: if plan.prompt_logprobs {
            prompts
        } else {
            Vec::new()
        },
        echoes,
        prompt_chars,
        top_logprobs,
        num_chars: vec![0; num_answers],
    };
    if plan.is_stream {
        return Ok(stream::response(answers, envelope, num_answers, plan.usage));
    }
    envelope.whole(answers, num_answers).await
}

/// A prompt in the form that the model receives.
#[derive(Serialize, ToSchema)]
pub(crate) struct Rendered {
    pub(crate) request_id: String,
    pub(crate) model: String,
    /// The text, if a template wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<String>,
    #[schema(value_type = Vec<u32>)]
    pub(crate) token_ids: Vec<TokenId>,
}

/// The tokens of each prompt, without running them.
#[utoipa::path(
    post,
    path = "/v1/completions/render",
    operation_id = "renderCompletion",
    tag = "vLLM",
    request_body = CompletionRequest,
    responses((status = 200, description = "The prompts.", body = Vec<Rendered>))
)]
pub(crate) async fn render(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (model, Prepared { prompts, .. }) = read_and_prepare(&app, request).await?;
    let rendered = |token_ids| Rendered {
        request_id: random_id("cmpl-"),
        model: model.name().to_owned(),
        prompt: None,
        token_ids,
    };
    Ok(super::json(
        &prompts.into_iter().map(rendered).collect::<Vec<_>>(),
    ))
}

/// Whole answers, or a chunk of a stream.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion<'a> {
    id: &'a str,
    /// `text_completion`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<CompletionChoice>,
    /// Null until the last chunk of a stream with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// An answer, or the part of it that a chunk adds.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    /// Identifies the answer: index of the prompt × n + index of the answer to that prompt.
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<Vec<TokenId>>,
}

/// The fields that all chunks of an answer share.
struct Envelope {
    id: String,
    created: u64,
    model: String,
    tokenizer: Option<Arc<Tokenizer>>,
    return_token_ids: bool,
    usage: UsageChunks,
    n: usize,
    echoes: Vec<String>,
    prompt_chars: Vec<usize>,
    top_logprobs: usize,
    /// The tokens of each prompt, if their log-probabilities are wanted.
    echoed_tokens: Vec<Vec<TokenId>>,
    /// Characters sent of each answer, without the prompt.
    num_chars: Vec<usize>,
}

impl Envelope {
    async fn whole(self, mut answers: Answers, num_answers: usize) -> Result<Response, ApiError> {
        let (whole, usage) = generate::collect(&mut answers, num_answers).await?;
        let choice = |(index, answer): (usize, generate::Answer)| {
            let finish_reason = answer.reason.name();
            answers.finished(index, finish_reason, None);
            CompletionChoice {
                index,
                text: self.echo(index).to_owned() + &answer.text,
                logprobs: self.logprobs(index, &answer),
                finish_reason: Some(finish_reason),
                token_ids: self.return_token_ids.then(|| answer.token_ids()),
            }
        };
        Ok(super::json(&self.completion(
            whole.into_iter().enumerate().map(choice).collect(),
            Some(Some(usage)),
        )))
    }

    fn logprobs(&self, choice: usize, answer: &generate::Answer) -> Option<CompletionLogprobs> {
        let tokens = answer.tokens.iter().map(|(token, start)| (token, *start));
        let of_answer = self.logprobs_of(choice, tokens);
        let empty = || CompletionLogprobs::empty(self.top_logprobs);
        match (&self.tokenizer, self.echoed_tokens.get(choice / self.n)) {
            (Some(tokenizer), Some(prompt)) => Some(of_answer.unwrap_or_else(empty).echo(
                tokenizer,
                prompt,
                &answer.prompt_logprobs,
            )),
            _ => of_answer,
        }
    }

    fn logprobs_of<'a>(
        &self,
        choice: usize,
        tokens: impl Iterator<Item = (&'a Token, usize)>,
    ) -> Option<CompletionLogprobs> {
        let start = self.prompt_chars.get(choice / self.n).copied().unwrap_or(0);
        CompletionLogprobs::new(self.tokenizer.as_deref(), tokens, start, self.top_logprobs)
    }

    /// The beginning of an answer: its prompt, with `echo`.
    fn echo(&self, choice: usize) -> &str {
        self.echoes.get(choice / self.n).map_or("", String::as_str)
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: ChunkUsage) -> Completion<'_> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: super::FINGERPRINT,
            choices,
            usage,
        }
    }
}

impl ChunkFormat for Envelope {
    fn begin(&mut self, choice: usize, usage: ChunkUsage) -> Vec<Chunk> {
        match self.echo(choice) {
            "" => Vec::new(),
            echo => vec![self.chunk(choice, echo, None, None, usage)],
        }
    }

    fn text(
        &mut self,
        choice: usize,
        text: &str,
        token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Vec<Chunk> {
        let has_facts =
            token.is_some_and(|token| self.return_token_ids || token.logprobs.is_some());
        if text.is_empty() && !has_facts {
            return Vec::new();
        }
        let chunk = self.chunk(choice, text, None, token, usage);
        self.num_chars[choice] += text.chars().count();
        vec![chunk]
    }

    fn end(&mut self, choice: usize, finish: &Finish, usage: ChunkUsage) -> End {
        let reason = finish.reason.name();
        End {
            chunks: vec![self.chunk(choice, "", Some(reason), None, usage)],
            reason,
            reasoning_tokens: None,
        }
    }

    async fn last(&mut self, usage: Usage) -> Vec<Chunk> {
        let write = || super::to_json(&self.completion(Vec::new(), Some(Some(usage))));
        stream::done((self.usage != UsageChunks::None).then(write))
    }

    async fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        stream::done_with(error)
    }
}

impl Envelope {
    fn chunk(
        &self,
        choice: usize,
        text: &str,
        finish_reason: Option<&'static str>,
        token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Chunk {
        let token_ids = token
            .filter(|_| self.return_token_ids)
            .map(|token| vec![token.id]);
        let tokens = token.map(|token| (token, self.num_chars[choice]));
        let choice = CompletionChoice {
            index: choice,
            text: text.to_owned(),
            logprobs: self.logprobs_of(choice, tokens.into_iter()),
            finish_reason,
            token_ids,
        };
        super::to_json(&self.completion(vec![choice], usage)).into()
    }
}
