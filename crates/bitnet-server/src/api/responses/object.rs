//! The objects of the Responses API: responses, their output, and the events of streams.

use std::collections::BTreeMap;

use bitnet_inference::SamplingParams;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::logprobs::TokenLogprob;
use crate::api::responses::items::Item;
use crate::api::responses::request::{FunctionTool, ReasoningConfig, ResponseRequest};
use crate::api::to_json;
use crate::api::usage::Usage;
use crate::clock::unix_time;

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseObject {
    pub(crate) id: String,
    /// `response`
    object: &'static str,
    /// Seconds since 1970.
    created_at: u64,
    /// `in_progress`, `completed`, `incomplete`, `failed` or `cancelled`
    pub(crate) status: &'static str,
    /// Seconds since 1970; null unless it is completed.
    pub(crate) completed_at: Option<u64>,
    /// Why it failed.
    pub(crate) error: Option<ResponseError>,
    /// Why it is incomplete.
    pub(crate) incomplete_details: Option<IncompleteDetails>,
    pub(crate) output: Vec<OutputItem>,
    /// Null until the end.
    pub(crate) usage: Option<ResponseUsage>,
    model: String,
    /// Always false.
    background: bool,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    metadata: BTreeMap<String, String>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    prompt_cache_key: Option<String>,
    reasoning: Reasoning,
    safety_identifier: Option<String>,
    /// `default`
    service_tier: &'static str,
    pub(crate) store: bool,
    temperature: f32,
    #[schema(value_type = Object)]
    text: Value,
    tool_choice: Value,
    tools: Vec<FunctionTool>,
    top_logprobs: u32,
    top_p: f32,
    /// `disabled`
    truncation: &'static str,
    user: Option<String>,
}

/// The settings of reasoning.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Reasoning {
    effort: Option<String>,
    /// Always null.
    summary: Option<String>,
}

/// Why a response failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseError {
    /// `server_error` or `invalid_prompt`
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// Why a response is incomplete.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct IncompleteDetails {
    /// `max_output_tokens`
    pub(crate) reason: &'static str,
}

/// Counts of tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokensDetails,
    /// Generated tokens, including tokens that end an answer.
    output_tokens: usize,
    output_tokens_details: OutputTokensDetails,
    /// The sum of both.
    total_tokens: usize,
}

/// Details of the input's tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct InputTokensDetails {
    /// Always 0: nothing is charged for writing to the cache.
    cache_write_tokens: usize,
    /// Tokens that were in the cache.
    cached_tokens: usize,
}

/// Details of the output's tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct OutputTokensDetails {
    /// Tokens of thinking, with the tags around it.
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let reasoning = usage.completion_tokens_details.unwrap_or_default();
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cache_write_tokens: 0,
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: reasoning.reasoning_tokens,
            },
            total_tokens: usage.total_tokens,
        }
    }
}

/// An item of the output.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// A message of the assistant.
    Message {
        id: String,
        /// `in_progress`, `completed` or `incomplete`
        status: &'static str,
        /// `assistant`
        role: &'static str,
        content: Vec<OutputPart>,
    },
    /// The model's thinking before it answered.
    Reasoning {
        id: String,
        /// `in_progress`, `completed` or `incomplete`
        status: &'static str,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        summary: Vec<Value>,
        content: Vec<OutputPart>,
    },
    /// A call of a function.
    FunctionCall {
        id: String,
        /// `in_progress`, `completed` or `incomplete`
        status: &'static str,
        call_id: String,
        name: String,
        /// JSON, as a string.
        arguments: String,
    },
}

/// A part of an item of the output.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputPart {
    /// A part of a message.
    OutputText {
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        annotations: Vec<Value>,
        logprobs: Vec<TokenLogprob>,
        text: String,
    },
    /// A part of reasoning.
    ReasoningText { text: String },
}

impl OutputPart {
    pub(crate) fn output_text() -> Self {
        Self::OutputText {
            annotations: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::OutputText { text, .. } | Self::ReasoningText { text } => text,
        }
    }
}

impl OutputItem {
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. } => id,
        }
    }

    pub(crate) fn set_status(&mut self, to: &'static str) {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. } => *status = to,
        }
    }
}

impl ResponseObject {
    /// A response that has just begun.
    pub(crate) fn new(
        id: String,
        model: String,
        request: &ResponseRequest,
        sampling: &SamplingParams,
    ) -> Self {
        let format = request.text.as_ref().and_then(|text| text.format.as_ref());
        let format = format.map_or_else(|| json!({ "type": "text" }), |format| json!(format));
        let ReasoningConfig { effort } = request.reasoning.clone().unwrap_or_default();
        Self {
            id,
            object: "response",
            created_at: unix_time(),
            status: "in_progress",
            completed_at: None,
            error: None,
            incomplete_details: None,
            output: Vec::new(),
            usage: None,
            model,
            background: false,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            metadata: request.metadata.clone().unwrap_or_default(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: request.previous_response_id.clone(),
            prompt_cache_key: request.prompt_cache_key.clone(),
            reasoning: Reasoning {
                effort,
                summary: None,
            },
            safety_identifier: request.safety_identifier.clone(),
            service_tier: "default",
            store: request.store.unwrap_or(true),
            temperature: sampling.temperature,
            text: json!({ "format": format, "verbosity": "medium" }),
            tool_choice: request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            tools: request.tools.clone().unwrap_or_default(),
            top_logprobs: request.top_logprobs.unwrap_or(0),
            top_p: sampling.top_p,
            truncation: "disabled",
            user: request.user.clone(),
        }
    }

    /// What a request to cancel the response returns, as JSON.
    pub(crate) fn cancelled(&self) -> String {
        let mut cancelled = self.clone();
        cancelled.status = "cancelled";
        to_json(&cancelled)
    }
}

/// An event of a stream. Each type has some of the fields.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct ResponseEvent<'a> {
    /// Such as `response.output_text.delta`; the name of the server-sent event, too.
    pub(crate) r#type: &'static str,
    /// Counts the events from 0.
    pub(crate) sequence_number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) response: Option<&'a ResponseObject>,
    /// The index of the item in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) item: Option<&'a OutputItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) item_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<&'a OutputPart>,
    /// More text, or more arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delta: Option<&'a str>,
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<&'a str>,
    /// The whole arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<&'a [TokenLogprob]>,
}

/// The items of a conversation.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemList {
    /// `list`
    pub(crate) object: &'static str,
    pub(crate) data: Vec<Item>,
    pub(crate) first_id: Option<String>,
    pub(crate) last_id: Option<String>,
    pub(crate) has_more: bool,
}

/// A response that was deleted.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedResponse {
    pub(crate) id: String,
    /// `response`
    pub(crate) object: &'static str,
    pub(crate) deleted: bool,
}

/// The number of tokens of an input.
#[derive(Serialize, ToSchema)]
pub(crate) struct InputTokens {
    /// `response.input_tokens`
    pub(crate) object: &'static str,
    pub(crate) input_tokens: usize,
}

/// The parts of a stored response that later requests read.
#[derive(Deserialize)]
pub(crate) struct StoredOutput {
    pub(crate) output: Vec<Item>,
}
