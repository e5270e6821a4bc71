//! The objects of the Messages API: messages, their blocks, and the events of streams.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::usage::Usage;

/// A message of the model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MessageObject {
    pub(crate) id: String,
    /// `message`
    pub(crate) r#type: &'static str,
    /// `assistant`
    pub(crate) role: &'static str,
    pub(crate) model: String,
    pub(crate) content: Vec<ContentBlock>,
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use` or `model_context_window_exceeded`
    pub(crate) stop_reason: Option<&'static str>,
    /// The text that ended the answer.
    pub(crate) stop_sequence: Option<String>,
    pub(crate) usage: MessageUsage,
}

/// Counts of tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    /// Tokens of the prompt that were not in the cache. In `message_start`, all tokens of the
    /// prompt.
    pub(crate) input_tokens: usize,
    /// Always 0: nothing is charged for writing to the cache.
    cache_creation_input_tokens: usize,
    /// Tokens of the prompt that were in the cache.
    cache_read_input_tokens: usize,
    /// Generated tokens, including tokens that end an answer.
    output_tokens: usize,
    /// Details of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<MessageTokensDetails>,
}

/// Details of the generated tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct MessageTokensDetails {
    /// Tokens of thinking, with the tags around it.
    thinking_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        let details = usage.completion_tokens_details;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
            output_tokens_details: details.map(|details| MessageTokensDetails {
                thinking_tokens: details.reasoning_tokens,
            }),
        }
    }
}

/// A block of a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ContentBlock {
    /// Text.
    Text {
        text: String,
        /// Always null.
        #[schema(value_type = Option<Vec<Object>>)]
        citations: Option<()>,
    },
    /// What the model thought before it answered.
    Thinking {
        thinking: String,
        /// The SHA-256 of the thinking. It is not checked when it comes back.
        signature: String,
    },
    /// A call of a function.
    ToolUse {
        id: String,
        name: String,
        /// The arguments; empty if `max_tokens` cut them off.
        #[schema(value_type = Object)]
        input: Map<String, Value>,
    },
}

/// An addition to a block.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub(crate) enum BlockDelta<'a> {
    /// More text.
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    /// More thinking.
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    /// The signature of the thinking.
    #[serde(rename = "signature_delta")]
    Signature { signature: &'a str },
    /// More arguments.
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

/// The end of a message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MessageDelta<'a> {
    pub(crate) stop_reason: Option<&'static str>,
    pub(crate) stop_sequence: Option<&'a str>,
}

/// An event of a stream.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum MessageEvent<'a> {
    /// The beginning, without content.
    MessageStart { message: &'a MessageObject },
    /// The beginning of a block.
    ContentBlockStart {
        index: usize,
        content_block: &'a ContentBlock,
    },
    /// An addition to a block.
    ContentBlockDelta { index: usize, delta: BlockDelta<'a> },
    /// The end of a block.
    ContentBlockStop { index: usize },
    /// The reason of the end, and all counts.
    MessageDelta {
        delta: MessageDelta<'a>,
        usage: MessageUsage,
    },
    /// The end.
    MessageStop,
}

impl MessageEvent<'_> {
    /// The name of the server-sent event.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// The number of tokens of a prompt.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageTokens {
    pub(crate) input_tokens: usize,
}

/// An error as a body.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageErrorBody<'a> {
    /// `error`
    r#type: &'static str,
    error: MessageError<'a>,
    request_id: &'a str,
}

/// The problem.
#[derive(Serialize, ToSchema)]
struct MessageError<'a> {
    /// The kind of error, such as `invalid_request_error`.
    r#type: &'static str,
    /// A message for people; it names the field that is wrong.
    message: &'a str,
}

impl<'a> MessageErrorBody<'a> {
    pub(crate) fn new(error: &'a ApiError, request_id: &'a str) -> Self {
        let kind = match error.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            status if status >= 500 => "api_error",
            _ => "invalid_request_error",
        };
        Self {
            r#type: "error",
            error: MessageError {
                r#type: kind,
                message: error.message(),
            },
            request_id,
        }
    }
}
