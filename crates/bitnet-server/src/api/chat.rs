//! `/v1/chat/completions`: the next message of a conversation.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bitnet_inference::{Finish, FinishReason, Token};
use bitnet_tokenizers::{TokenId, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::calls::Found;
use crate::api::completions::Rendered;
use crate::api::fields::TextOr;
use crate::api::generate::{self, Answers, generation_request};
use crate::api::logprobs::{self, ChatLogprobs, TokenLogprob};
use crate::api::reader::AnswerReader;
use crate::api::stream::{self, Chunk, ChunkFormat, ChunkUsage, End, UsageChunks};
use crate::api::tools::{FunctionCall, Tool, ToolCall};
use crate::api::turn::{LocalParts, Prepared, Turn};
use crate::api::usage::Usage;
use crate::api::{ApiError, body};
use crate::clock::unix_time;
use crate::id::random_id;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

generation_request! {
    /// A conversation to continue. Unknown and unsupported fields are refused with an error that
    /// names them.
    pub(crate) struct ChatRequest {
        /// The conversation so far.
        #[schema(min_items = 1)]
        messages: Vec<Message>,
        /// Maximum number of tokens to generate; without it the context is the limit.
        #[schema(minimum = 1)]
        max_completion_tokens: Option<u32>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1)]
        max_tokens: Option<u32>,
        /// Return the log-probability of each token.
        logprobs: Option<bool>,
        /// Return the log-probabilities of this many of the most probable tokens; needs `logprobs`.
        #[schema(maximum = 20)]
        top_logprobs: Option<u32>,
        /// Functions that the model may call.
        tools: Option<Vec<Tool>>,
        /// `none`, `auto`, `required`, or `{"type": "function", "function": {"name": NAME}}`.
        tool_choice: Option<Value>,
        /// Whether several tools may be called at once; true if not given.
        parallel_tool_calls: Option<bool>,
        /// Variables for the model's template, such as `{"enable_thinking": false}`.
        #[schema(value_type = Option<Object>)]
        chat_template_kwargs: Option<Map<String, Value>>,
        /// How much the model should reason, for templates that read it.
        reasoning_effort: Option<String>,
        /// Whether the model thinks before it answers, for templates that read it: a short form of
        /// this variable in `chat_template_kwargs`.
        enable_thinking: Option<bool>,
        /// Maximum number of tokens of thinking, after which the closing tag follows; -1 for no
        /// limit.
        #[schema(minimum = -1)]
        thinking_token_budget: Option<i64>,
        /// Another name of `thinking_token_budget`.
        #[schema(minimum = -1)]
        thinking_budget: Option<i64>,
        /// Whether to send the thinking; true if not given.
        include_reasoning: Option<bool>,
        /// Documents to use in the answer, for templates that read them.
        #[schema(value_type = Option<Vec<Object>>)]
        documents: Option<Vec<Value>>,
        /// End the prompt with the beginning of an answer; true if not given, unless the last
        /// message is continued.
        add_generation_prompt: Option<bool>,
        /// Continue the last message instead of answering it.
        continue_final_message: Option<bool>,
        /// Tags of the client. They have no effect.
        #[expect(dead_code, reason = "accepted, and of no consequence")]
        metadata: Option<BTreeMap<String, String>>,
        /// Names the user for the operator's records. It has no effect.
        #[expect(dead_code, reason = "accepted, and of no consequence")]
        safety_identifier: Option<String>,
        /// A hint for caching. It has no effect.
        #[expect(dead_code, reason = "accepted, and of no consequence")]
        prompt_cache_key: Option<String>,
    }
}

/// A message of a conversation.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Message {
    /// `system` or `developer`, `user`, `assistant`, or another role that the model's template
    /// knows.
    pub(crate) role: String,
    /// A text, or a list of parts of a text.
    pub(crate) content: Option<TextOr<ContentPart>>,
    /// The name of the participant.
    pub(crate) name: Option<String>,
    /// The model's reasoning before the answer.
    pub(crate) reasoning_content: Option<String>,
    /// Another name of `reasoning_content`.
    pub(crate) reasoning: Option<String>,
    /// The tool calls of an assistant.
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
    /// The id of the call that a message with the role `tool` answers.
    pub(crate) tool_call_id: Option<String>,
}

impl Message {
    /// A message of the system.
    pub(crate) fn system(text: String) -> Self {
        Self {
            role: "system".to_owned(),
            content: Some(TextOr::Text(text)),
            ..Self::default()
        }
    }

    pub(crate) fn has_calls(&self) -> bool {
        self.tool_calls
            .as_ref()
            .is_some_and(|calls| !calls.is_empty())
    }
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
pub(crate) struct ContentPart {
    /// Only `text` is supported.
    pub(crate) r#type: String,
    pub(crate) text: Option<String>,
    /// A hint for caching. It has no effect.
    cache_control: Option<CacheControl>,
}

impl ContentPart {
    /// Refuses a part that is not text. `field`: its name.
    pub(crate) fn check(&self, field: &str) -> Result<(), ApiError> {
        if self.r#type != "text" {
            let kind: String = self.r#type.chars().take(64).collect();
            return Err(ApiError::unsupported(
                Some(&format!("{field}.type")),
                format!("This model reads text, not '{kind}'."),
            ));
        }
        match &self.text {
            Some(_) => Ok(()),
            None => Err(ApiError::missing(&format!("{field}.text"))),
        }
    }

    /// Texts as a content: a text if there is only one.
    pub(crate) fn texts(mut texts: Vec<String>) -> TextOr<Self> {
        if texts.len() == 1 {
            return TextOr::Text(texts.remove(0));
        }
        let part = |text| Self {
            r#type: "text".to_owned(),
            text: Some(text),
            cache_control: None,
        };
        TextOr::List(texts.into_iter().map(part).collect())
    }
}

/// A hint of Anthropic's API for caching.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
pub(crate) struct CacheControl {
    r#type: Option<String>,
    ttl: Option<String>,
}

impl ChatRequest {
    /// The variables that the template gets beside the conversation.
    fn template_variables(&mut self) -> Map<String, Value> {
        let mut variables = self.chat_template_kwargs.take().unwrap_or_default();
        if let Some(thinks) = self.enable_thinking {
            variables.entry("enable_thinking").or_insert(thinks.into());
        }
        variables
    }

    /// Maximum number of tokens of thinking.
    fn thinking_budget(&self) -> Result<Option<usize>, ApiError> {
        let (field, budget) = match (self.thinking_token_budget, self.thinking_budget) {
            (Some(one), Some(other)) if one != other => {
                let message = format!(
                    "'thinking_token_budget' is {one} and 'thinking_budget' is {other}: give one \
                     of them."
                );
                return Err(ApiError::invalid("thinking_budget", message));
            }
            (Some(budget), _) => ("thinking_token_budget", budget),
            (None, Some(budget)) => ("thinking_budget", budget),
            (None, None) => return Ok(None),
        };
        if budget == -1 {
            return Ok(None);
        }
        usize::try_from(budget).map(Some).map_err(|_| {
            let message =
                format!("'{field}' is {budget}, but must be at least 0, or -1 for no limit.");
            ApiError::invalid(field, message)
        })
    }

    fn num_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => logprobs::check_top("top_logprobs", top.unwrap_or(0)).map(Some),
            (_, None | Some(0)) => Ok(None),
            (_, Some(_)) => Err(ApiError::invalid(
                "top_logprobs",
                "'top_logprobs' needs 'logprobs' to be true.",
            )),
        }
    }

    /// The request as all endpoints for conversations make it.
    fn turn(&mut self) -> Result<Turn, ApiError> {
        let continues = self.continue_final_message.unwrap_or(false);
        let documents = self.documents.take();
        let documents = documents.filter(|documents| !documents.is_empty());
        let turn = Turn::new(std::mem::take(&mut self.messages), self.common());
        Ok(Turn {
            max_tokens: self.max_tokens()?,
            num_logprobs: self.num_logprobs()?,
            tools: self.tools.take(),
            tool_choice: self.tool_choice.take(),
            parallel_tool_calls: self.parallel_tool_calls,
            variables: self.template_variables(),
            reasoning_effort: self.reasoning_effort.take(),
            thinking_budget: self.thinking_budget()?,
            shows_reasoning: self.include_reasoning.unwrap_or(true),
            documents: documents.map(Value::from),
            add_generation_prompt: self.add_generation_prompt.unwrap_or(!continues),
            continue_final_message: continues,
            ..turn
        })
    }

    fn max_tokens(&self) -> Result<Option<u32>, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => {
                let message = format!(
                    "'max_completion_tokens' is {new} and 'max_tokens' is {old}: give one of them."
                );
                Err(ApiError::invalid("max_tokens", message))
            }
            (Some(0), _) | (None, Some(0)) => {
                let message = "'max_tokens' is 0, but must be at least 1.";
                Err(ApiError::invalid("max_tokens", message))
            }
            (new, old) => Ok(new.or(old)),
        }
    }
}

fn prepare(app: &App, model: &ServedModel, bytes: &[u8]) -> Result<Prepared, ApiError> {
    let mut request: ChatRequest = body::parse(bytes, app.options.is_lenient)?;
    request.turn()?.prepare(app, model)
}

/// Reads the request of a program that runs the engine itself, as the server would.
pub(crate) fn local_parts(model: &ServedModel, bytes: &[u8]) -> Result<LocalParts, ApiError> {
    let mut request: ChatRequest = body::parse(bytes, false)?;
    request.turn()?.local(model)
}

async fn read_and_prepare(
    app: &Arc<App>,
    request: Request,
) -> Result<(ModelLease, Prepared), ApiError> {
    app.check_open()?;
    generate::read_and(app, request, prepare).await
}

/// The next message of a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "createChatCompletion",
    tag = "OpenAI",
    request_body = ChatRequest,
    responses((status = 200, description = "The answer, or its chunks and `[DONE]`.", content(
        (ChatCompletion = "application/json"),
        (ChatChunk<'_> = "text/event-stream"),
    )))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, prepared) = read_and_prepare(&app, request).await?;
    let id = random_id("chatcmpl-");
    let answers = prepared.submit(&app, &model, "messages", &id, &record)?;
    let Prepared { plan, reader, .. } = prepared;
    let envelope = Envelope {
        id,
        created: unix_time(),
        model: model.name().to_owned(),
        tokenizer: model.tokenizer.clone(),
        return_token_ids: plan.return_token_ids,
        usage: plan.usage,
        readers: vec![reader; plan.n],
    };
    if plan.is_stream {
        return Ok(stream::response(answers, envelope, plan.n, plan.usage));
    }
    envelope.whole(answers, plan.n).await
}

/// The prompt of a conversation, without running it.
#[utoipa::path(
    post,
    path = "/v1/chat/completions/render",
    operation_id = "renderChatCompletion",
    tag = "vLLM",
    request_body = ChatRequest,
    responses((status = 200, description = "The prompt.", body = Rendered))
)]
pub(crate) async fn render(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (model, Prepared { text, prompt, .. }) = read_and_prepare(&app, request).await?;
    Ok(super::json(&Rendered {
        request_id: random_id("chatcmpl-"),
        model: model.name().to_owned(),
        prompt: Some(text),
        token_ids: prompt,
    }))
}

/// The prompt of a conversation as text.
#[derive(Serialize, ToSchema)]
pub(crate) struct AppliedTemplate {
    prompt: String,
}

/// The prompt of a conversation as text, as llama.cpp gives it.
#[utoipa::path(
    post,
    path = "/apply-template",
    operation_id = "applyTemplate",
    tag = "llama.cpp",
    request_body = ChatRequest,
    responses((status = 200, description = "The prompt.", body = AppliedTemplate))
)]
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (_, Prepared { text, .. }) = read_and_prepare(&app, request).await?;
    Ok(super::json(&AppliedTemplate { prompt: text }))
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One of the answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<Vec<TokenId>>,
}

/// The message of the model.
#[derive(Serialize, ToSchema)]
pub(crate) struct AssistantMessage {
    /// `assistant`
    role: &'static str,
    /// Null if the message has only tool calls.
    content: Option<String>,
    /// What the model thought before it answered, without the tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCall>>,
}

/// A chunk of a streamed answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunk<'a> {
    id: &'a str,
    /// `chat.completion.chunk`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<ChatChunkChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// The part of one of the answers that a chunk adds.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<[TokenId; 1]>,
}

/// An addition to the message.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct Delta<'a> {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// More of what the model thinks before it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[DeltaCall<'a>; 1]>,
}

/// The beginning of a tool call, or more of its arguments.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeltaCall<'a> {
    /// The index of the call.
    index: usize,
    /// The id of the call, in its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `function`, in the first chunk of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: DeltaFunction<'a>,
}

/// The function's name, or more of its arguments.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeltaFunction<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

/// The fields that all chunks of an answer share.
struct Envelope {
    id: String,
    created: u64,
    model: String,
    tokenizer: Option<Arc<Tokenizer>>,
    return_token_ids: bool,
    usage: UsageChunks,
    /// One for each answer.
    readers: Vec<AnswerReader>,
}

impl Envelope {
    async fn whole(self, mut answers: Answers, num_answers: usize) -> Result<Response, ApiError> {
        let (whole, _) = generate::collect(&mut answers, num_answers).await?;
        let choice = |(index, answer): (usize, generate::Answer)| {
            let mut reader = self.readers[index].clone();
            let message = read(&mut reader, &answer);
            let finish_reason = finish_reason(answer.reason, &reader);
            answers.finished(index, finish_reason, reader.num_reasoning_tokens());
            ChatChoice {
                index,
                logprobs: self.logprobs(answer.tokens.iter().map(|(token, _)| token)),
                finish_reason,
                token_ids: self.return_token_ids.then(|| answer.token_ids()),
                message,
            }
        };
        let choices = whole.into_iter().enumerate().map(choice).collect();
        Ok(super::json(&ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            system_fingerprint: super::FINGERPRINT,
            choices,
            usage: answers.usage(),
        }))
    }

    /// `None` where no token has any.
    fn logprobs<'a>(&self, tokens: impl Iterator<Item = &'a Token>) -> Option<ChatLogprobs> {
        let content: Vec<_> = tokens
            .filter_map(|token| TokenLogprob::new(self.tokenizer.as_deref(), token))
            .collect();
        (!content.is_empty()).then_some(ChatLogprobs {
            content,
            refusal: None,
        })
    }

    fn write(&self, choices: Vec<ChatChunkChoice<'_>>, usage: ChunkUsage) -> String {
        super::to_json(&ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: super::FINGERPRINT,
            choices,
            usage,
        })
    }
}

/// The message of a whole answer. `reader` has read nothing before.
fn read(reader: &mut AnswerReader, answer: &generate::Answer) -> AssistantMessage {
    let mut found = Vec::new();
    let mut held_back = answer.text.as_str();
    for (token, _) in &answer.tokens {
        found.extend(reader.token(&token.text));
        held_back = &held_back[token.text.len()..];
    }
    found.extend(reader.text(held_back));
    found.extend(reader.finish());
    let (mut content, mut reasoning) = (String::new(), String::new());
    let mut calls = Vec::<ToolCall>::new();
    for part in found {
        match part {
            Found::Reasoning(text) => reasoning += &text,
            Found::Text(text) => content += &text,
            Found::Call { name, .. } => {
                let function = FunctionCall {
                    name,
                    arguments: String::new(),
                };
                calls.push(ToolCall {
                    index: None,
                    id: random_id("call_"),
                    r#type: "function".to_owned(),
                    function,
                });
            }
            Found::Arguments { index, text } => calls[index].function.arguments += &text,
        }
    }
    let is_call = !calls.is_empty();
    AssistantMessage {
        role: "assistant",
        content: (!is_call || !content.is_empty()).then_some(content),
        reasoning_content: Some(reasoning).filter(|reasoning| !reasoning.is_empty()),
        refusal: None,
        tool_calls: is_call.then_some(calls),
    }
}

/// The finish reason that the client gets for an answer that `reader` has read.
fn finish_reason(reason: FinishReason, reader: &AnswerReader) -> &'static str {
    match reason {
        FinishReason::Stop if reader.has_whole_calls() => "tool_calls",
        reason => reason.name(),
    }
}

impl Envelope {
    fn one_chunk(
        &self,
        choice: usize,
        delta: Delta<'_>,
        token: Option<&Token>,
        finish_reason: Option<&'static str>,
        usage: ChunkUsage,
    ) -> Chunk {
        let token_ids = token
            .filter(|_| self.return_token_ids)
            .map(|token| [token.id]);
        let logprobs = self.logprobs(token.into_iter());
        let choice = ChatChunkChoice {
            index: choice,
            delta,
            logprobs,
            finish_reason,
            token_ids,
        };
        self.write(vec![choice], usage).into()
    }

    /// Chunks for the parsed parts of a text; the first carries its token.
    fn found_chunks(
        &self,
        choice: usize,
        found: &[Found],
        mut token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Vec<Chunk> {
        let chunk = |part: &Found| {
            let delta = match part {
                Found::Text(text) => Delta {
                    content: Some(text),
                    ..Delta::default()
                },
                Found::Reasoning(text) => Delta {
                    reasoning_content: Some(text),
                    ..Delta::default()
                },
                Found::Call { index, name } => {
                    let function = DeltaFunction {
                        name: Some(name),
                        arguments: "",
                    };
                    let id = Some(random_id("call_"));
                    let call = DeltaCall {
                        index: *index,
                        id,
                        r#type: Some("function"),
                        function,
                    };
                    Delta {
                        tool_calls: Some([call]),
                        ..Delta::default()
                    }
                }
                Found::Arguments { index, text } => {
                    let function = DeltaFunction {
                        name: None,
                        arguments: text,
                    };
                    let call = DeltaCall {
                        index: *index,
                        id: None,
                        r#type: None,
                        function,
                    };
                    Delta {
                        tool_calls: Some([call]),
                        ..Delta::default()
                    }
                }
            };
            self.one_chunk(choice, delta, token.take(), None, usage)
        };
        found.iter().map(chunk).collect()
    }
}

impl ChunkFormat for Envelope {
    fn begin(&mut self, choice: usize, usage: ChunkUsage) -> Vec<Chunk> {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(""),
            ..Delta::default()
        };
        vec![self.one_chunk(choice, delta, None, None, usage)]
    }

    fn text(
        &mut self,
        choice: usize,
        text: &str,
        token: Option<&Token>,
        usage: ChunkUsage,
    ) -> Vec<Chunk> {
        let reader = &mut self.readers[choice];
        let mut found = match token {
            Some(_) => reader.token(text),
            None => reader.text(text),
        };
        if found.is_empty()
            && token.is_some_and(|token| self.return_token_ids || token.logprobs.is_some())
        {
            found.push(Found::Text(String::new()));
        }
        self.found_chunks(choice, &found, token, usage)
    }

    fn end(&mut self, choice: usize, finish: &Finish, usage: ChunkUsage) -> End {
        let found = self.readers[choice].finish();
        let mut chunks = self.found_chunks(choice, &found, None, usage);
        let reader = &self.readers[choice];
        let reason = finish_reason(finish.reason, reader);
        let reasoning_tokens = reader.num_reasoning_tokens();
        chunks.push(self.one_chunk(choice, Delta::default(), None, Some(reason), usage));
        End {
            chunks,
            reason,
            reasoning_tokens,
        }
    }

    async fn last(&mut self, usage: Usage) -> Vec<Chunk> {
        let wants_usage = self.usage != UsageChunks::None;
        stream::done(wants_usage.then(|| self.write(Vec::new(), Some(Some(usage)))))
    }

    async fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        stream::done_with(error)
    }
}

#[cfg(test)]
mod tests {
    use bitnet_inference::Timings;
    use bitnet_tokenizers::CallForm;

    use super::*;
    use crate::api::calls::CallFinder;

    #[test]
    fn a_call_that_is_cut_off_has_the_first_part_of_its_arguments() {
        let whole = r#"<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>"#;
        let cut = r#"<tool_call>{"name": "f", "arguments": {"a": "b"#;
        let both = format!("{whole}\n{cut}");
        for (text, arguments, is_cut, reason) in [
            ("plain", &[][..], false, "length"),
            (whole, &[r#"{"a": 1}"#], false, "length"),
            (cut, &[r#"{"a": "b"#], true, "length"),
            (&both, &[r#"{"a": 1}"#, r#"{"a": "b"#], true, "length"),
        ] {
            let answer = generate::Answer {
                text: text.to_owned(),
                ..generate::Answer::new()
            };
            let mut reader = reader();
            let calls = read(&mut reader, &answer).tool_calls.unwrap_or_default();
            let found: Vec<_> = calls.iter().map(|call| &*call.function.arguments).collect();
            let is_whole = !is_cut && !found.is_empty();
            assert_eq!(
                (&found[..], reader.has_whole_calls()),
                (arguments, is_whole),
                "{text}"
            );
            assert_eq!(last_reason(text, FinishReason::Length), reason, "{text}");
        }
        // Text after the arguments is not part of them.
        assert_eq!(
            last_reason(&whole[..whole.len() - 5], FinishReason::Stop),
            "tool_calls"
        );
        assert_eq!(last_reason(whole, FinishReason::Stop), "tool_calls");
        assert_eq!(last_reason(cut, FinishReason::Stop), "stop");
    }

    fn reader() -> AnswerReader {
        let finder = CallFinder::new(CallForm::Plain, Arc::default());
        AnswerReader::new(None, Some(finder), true)
    }

    /// The `finish_reason` of a stream that brings a text.
    fn last_reason(text: &str, reason: FinishReason) -> String {
        let mut envelope = Envelope {
            id: String::new(),
            created: 0,
            model: String::new(),
            tokenizer: None,
            return_token_ids: false,
            usage: UsageChunks::None,
            readers: vec![reader()],
        };
        envelope.text(0, text, None, None);
        let finish = Finish {
            reason,
            stop_string: None,
            timings: Timings::default(),
            pooled: None,
        };
        let end = envelope.end(0, &finish, None);
        let last: Value =
            serde_json::from_str(&end.chunks.last().expect("an end").data).expect("JSON");
        assert_eq!(last["choices"][0]["finish_reason"], end.reason);
        end.reason.to_owned()
    }
}
