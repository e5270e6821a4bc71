//! [`MessagesRequest`]: a request to `/v1/messages`, and its translation to a [`Turn`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::chat::{CacheControl, ContentPart, Message};
use crate::api::error::shortened;
use crate::api::fields::TextOr;
use crate::api::format::ResponseFormat;
use crate::api::generate::Common;
use crate::api::tools::{FunctionCall, Tool, ToolCall};
use crate::api::turn::Turn;

/// Names of the fields of chat completions, each with its name here.
pub(crate) const NAMES: [(&str, &str); 5] = [
    ("].function.parameters", "].input_schema"),
    ("].function", "]"),
    (
        "response_format.json_schema.schema",
        "output_config.format.schema",
    ),
    ("response_format", "output_config.format"),
    ("stop", "stop_sequences"),
];

/// Maximum number of characters of a type that an error quotes.
const TYPE_CHARS_MAX: usize = 64;

/// A conversation to continue. Unknown and unsupported fields are refused with an error that names
/// them.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessagesRequest {
    /// A name of the model; the served model if not given.
    model: Option<String>,
    /// The conversation so far. If the last message is of the assistant, the answer continues it.
    #[schema(min_items = 1)]
    messages: Vec<MessageInput>,
    /// Maximum number of tokens to generate, with thinking. Where the context has less room, the
    /// answer ends with `model_context_window_exceeded`. Not needed to count tokens.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// A message of the system: a text, or blocks of text.
    system: Option<TextOr<Block>>,
    /// Texts that end the answer and are not part of it; at most 16, of at most 256 bytes each.
    stop_sequences: Option<Vec<String>>,
    /// Send the message as server-sent events while it is generated.
    stream: Option<bool>,
    /// Divides the logits; 0 takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Choose among this many of the most probable tokens; 0 or -1 for all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Choose among the most probable tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Functions that the model may call.
    tools: Option<Vec<ToolInput>>,
    tool_choice: Option<ToolChoiceInput>,
    /// Whether the model thinks, for models that do; disabled if not given.
    thinking: Option<ThinkingInput>,
    output_config: Option<OutputConfig>,
    /// It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    metadata: Option<Metadata>,
    /// A hint for caching. It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    cache_control: Option<CacheControl>,
    /// As in chat completions.
    seed: Option<i64>,
    /// As in chat completions.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// As in chat completions.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    repetition_penalty: Option<f32>,
    /// As in chat completions.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// As in chat completions.
    ignore_eos: Option<bool>,
    /// As in chat completions.
    cache_salt: Option<String>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
struct MessageInput {
    /// `user`, `assistant` or `system`
    role: String,
    /// A text, or a list of blocks.
    content: TextOr<Block>,
}

/// A part of a message.
#[derive(Debug, Default, Deserialize, ToSchema)]
struct Block {
    /// `text`, `thinking`, `tool_use` or `tool_result`
    r#type: String,
    /// Of `text`.
    text: Option<String>,
    /// Of `thinking`.
    thinking: Option<String>,
    /// Of `thinking`. It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    signature: Option<String>,
    /// Of `tool_use`.
    id: Option<String>,
    /// Of `tool_use`: the function.
    name: Option<String>,
    /// Of `tool_use`: the arguments.
    #[schema(value_type = Option<Object>)]
    input: Option<Map<String, Value>>,
    /// Of `tool_result`: the id of the call.
    tool_use_id: Option<String>,
    /// Of `tool_result`: a text, or blocks of text.
    content: Option<TextOr<ContentPart>>,
    /// Of `tool_result`: whether the call failed. The model reads `Error: ` before the content.
    is_error: Option<bool>,
    /// A hint for caching. It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    cache_control: Option<CacheControl>,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, ToSchema)]
struct ToolInput {
    /// Only `custom`.
    r#type: Option<String>,
    /// Letters, digits, `_` and `-`, at most 64.
    name: String,
    /// The purpose of the function.
    description: Option<String>,
    /// A JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    input_schema: Option<Value>,
    /// Refuse a schema with keywords that cannot be enforced. Other keywords are always enforced.
    strict: Option<bool>,
    /// A hint for caching. It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    cache_control: Option<CacheControl>,
}

/// Whether the model calls functions.
#[derive(Debug, Deserialize, ToSchema)]
struct ToolChoiceInput {
    /// `auto`, `any`, `tool` or `none`
    r#type: String,
    /// The function, for `tool`.
    name: Option<String>,
    /// At most one call.
    disable_parallel_tool_use: Option<bool>,
}

/// Whether the model thinks.
#[derive(Debug, Deserialize, ToSchema)]
struct ThinkingInput {
    /// `enabled`, `adaptive` or `disabled`. `disabled` turns off the thinking of templates that
    /// read `enable_thinking`; other models think, but the client does not get it.
    r#type: String,
    /// For `enabled`: maximum number of tokens of thinking, after which the model answers.
    #[schema(minimum = 1)]
    budget_tokens: Option<u32>,
    /// `omitted`: the model thinks, but the client does not get it.
    display: Option<String>,
}

/// The form of the answer.
#[derive(Debug, Deserialize, ToSchema)]
struct OutputConfig {
    /// How much the model should reason, for templates that read it.
    effort: Option<String>,
    format: Option<OutputFormat>,
}

/// The form of the answer.
#[derive(Debug, Deserialize, ToSchema)]
struct OutputFormat {
    /// `json_schema`
    r#type: String,
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
}

/// Tags of the client.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Metadata {
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    user_id: Option<String>,
}

impl Block {
    /// Refuses blocks that this server does not know. `field`: its name, such as
    /// `messages[0].content[1]`.
    fn check(&self, field: &str) -> Result<(), ApiError> {
        let need = |name: &str, is_given: bool| match is_given {
            true => Ok(()),
            false => Err(ApiError::missing(&format!("{field}.{name}"))),
        };
        match self.r#type.as_str() {
            "text" => need("text", self.text.is_some()),
            "thinking" => need("thinking", self.thinking.is_some()),
            "tool_use" => {
                need("id", self.id.is_some())?;
                need("name", self.name.is_some())?;
                need("input", self.input.is_some())
            }
            "tool_result" => {
                need("tool_use_id", self.tool_use_id.is_some())?;
                let Some(TextOr::List(parts)) = &self.content else {
                    return Ok(());
                };
                for (index, part) in parts.iter().enumerate() {
                    part.check(&format!("{field}.content[{index}]"))?;
                }
                Ok(())
            }
            kind => {
                let kind = shortened(kind.to_owned(), TYPE_CHARS_MAX);
                let message = format!("This model reads text, not blocks of type '{kind}'.");
                let field = format!("{field}.type");
                Err(ApiError::unsupported(Some(&field), message))
            }
        }
    }

    fn is_text(&self) -> bool {
        self.r#type == "text"
    }

    /// The output of a function.
    fn tool_result(&self) -> Message {
        let mut texts = match &self.content {
            None => Vec::new(),
            Some(TextOr::Text(text)) => vec![text.clone()],
            Some(TextOr::List(parts)) => {
                let texts = parts
                    .iter()
                    .map(|part| part.text.clone().unwrap_or_default());
                texts.collect()
            }
        };
        if texts.is_empty() {
            texts.push(String::new());
        }
        if self.is_error == Some(true) {
            texts[0].insert_str(0, "Error: ");
        }
        Message {
            role: "tool".to_owned(),
            content: Some(ContentPart::texts(texts)),
            tool_call_id: self.tool_use_id.clone(),
            ..Message::default()
        }
    }

    /// A call of a function.
    fn tool_use(&self) -> ToolCall {
        ToolCall {
            index: None,
            id: self.id.clone().unwrap_or_default(),
            r#type: "function".to_owned(),
            function: FunctionCall {
                name: self.name.clone().unwrap_or_default(),
                arguments: json!(self.input).to_string(),
            },
        }
    }
}

/// The texts of the blocks that have some.
fn texts(content: &TextOr<Block>) -> Vec<String> {
    match content {
        TextOr::Text(text) => vec![text.clone()],
        TextOr::List(blocks) => {
            let texts = blocks.iter().filter(|block| block.is_text());
            texts.filter_map(|block| block.text.clone()).collect()
        }
    }
}

impl MessageInput {
    fn check(&self, index: usize) -> Result<(), ApiError> {
        if !matches!(&*self.role, "user" | "assistant" | "system") {
            let field = format!("messages[{index}].role");
            let message = format!("'{field}' must be user, assistant or system.");
            return Err(ApiError::invalid(&field, message));
        }
        check_blocks(&self.content, &format!("messages[{index}].content"))?;
        self.check_types(index)
    }

    /// Refuses blocks that a message of this role cannot have.
    fn check_types(&self, index: usize) -> Result<(), ApiError> {
        let allowed: &[&str] = match &*self.role {
            "assistant" => &["text", "thinking", "tool_use"],
            "user" => &["text", "tool_result"],
            _ => &["text"],
        };
        let TextOr::List(blocks) = &self.content else {
            return Ok(());
        };
        let wrong = |block: &Block| !allowed.contains(&&*block.r#type);
        let Some(place) = blocks.iter().position(wrong) else {
            return Ok(());
        };
        let field = format!("messages[{index}].content[{place}].type");
        let message = format!(
            "'{field}' must be one of {} in a message of the role {}.",
            allowed.join(", "),
            self.role
        );
        Err(ApiError::invalid(&field, message))
    }

    /// The messages of a chat: one for each output of a function, and one for the texts.
    fn messages(&self) -> Vec<Message> {
        match (&*self.role, &self.content) {
            ("assistant", content) => vec![assistant(content)],
            (role, TextOr::Text(text)) => vec![said(role, vec![text.clone()])],
            (role, TextOr::List(blocks)) => {
                let mut messages = Vec::new();
                for blocks in blocks.chunk_by(|one, next| one.is_text() && next.is_text()) {
                    messages.push(match blocks {
                        [result] if !result.is_text() => result.tool_result(),
                        blocks => {
                            let texts = blocks.iter().filter_map(|block| block.text.clone());
                            said(role, texts.collect())
                        }
                    });
                }
                messages
            }
        }
    }
}

fn check_blocks(content: &TextOr<Block>, field: &str) -> Result<(), ApiError> {
    let TextOr::List(blocks) = content else {
        return Ok(());
    };
    let mut blocks = blocks.iter().enumerate();
    blocks.try_for_each(|(index, block)| block.check(&format!("{field}[{index}]")))
}

fn said(role: &str, texts: Vec<String>) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(ContentPart::texts(texts)),
        ..Message::default()
    }
}

fn assistant(content: &TextOr<Block>) -> Message {
    let of_type = |kind: &'static str| {
        let blocks = match content {
            TextOr::Text(_) => &[][..],
            TextOr::List(blocks) => blocks,
        };
        blocks.iter().filter(move |block| block.r#type == kind)
    };
    let thoughts: Vec<_> = of_type("thinking")
        .filter_map(|block| block.thinking.as_deref())
        .collect();
    let calls: Vec<_> = of_type("tool_use").map(Block::tool_use).collect();
    let texts = texts(content);
    Message {
        reasoning_content: (!thoughts.is_empty()).then(|| thoughts.join("\n")),
        content: (calls.is_empty() || !texts.is_empty()).then(|| ContentPart::texts(texts)),
        tool_calls: (!calls.is_empty()).then_some(calls),
        ..said("assistant", Vec::new())
    }
}

impl ToolInput {
    /// The tool as chat completions have it.
    fn tool(&self) -> Result<Tool, ApiError> {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(self.name));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        if let Some(schema) = &self.input_schema {
            function.insert("parameters".to_owned(), schema.clone());
        }
        if self.strict == Some(true) {
            function.insert("strict".to_owned(), json!(true));
        }
        let tool = json!({ "type": "function", "function": function });
        serde_json::from_value(tool)
            .map_err(|error| ApiError::invalid("tools", format!("Invalid 'tools': {error}.")))
    }
}

impl ToolChoiceInput {
    /// The choice as chat completions have it.
    fn choice(&self) -> Result<Value, ApiError> {
        match (&*self.r#type, &self.name) {
            ("auto" | "none", None) => Ok(json!(self.r#type)),
            ("any", None) => Ok(json!("required")),
            ("tool", Some(name)) => Ok(json!({ "type": "function", "function": { "name": name } })),
            ("tool", None) => Err(ApiError::missing("tool_choice.name")),
            ("auto" | "none" | "any", Some(_)) => Err(ApiError::invalid(
                "tool_choice.name",
                "'tool_choice.name' is only for the type tool.",
            )),
            _ => Err(ApiError::invalid(
                "tool_choice.type",
                "'tool_choice.type' must be auto, any, tool or none.",
            )),
        }
    }
}

/// Whether and how long the model thinks.
struct ThinkingChoice {
    is_on: bool,
    is_shown: bool,
    budget: Option<usize>,
}

impl ThinkingInput {
    fn choice(&self) -> Result<ThinkingChoice, ApiError> {
        let is_shown = match self.display.as_deref() {
            None | Some("summarized") => true,
            Some("omitted") => false,
            Some(_) => {
                let message = "'thinking.display' must be summarized or omitted.";
                return Err(ApiError::invalid("thinking.display", message));
            }
        };
        let on = |budget| ThinkingChoice {
            is_on: true,
            is_shown,
            budget,
        };
        match (&*self.r#type, self.budget_tokens) {
            ("disabled", None) => Ok(ThinkingChoice::OFF),
            ("adaptive", None) => Ok(on(None)),
            ("enabled", Some(0)) => Err(ApiError::invalid(
                "thinking.budget_tokens",
                "'thinking.budget_tokens' is 0, but must be at least 1.",
            )),
            ("enabled", Some(budget)) => Ok(on(Some(budget as usize))),
            ("enabled", None) => Err(ApiError::missing("thinking.budget_tokens")),
            ("disabled" | "adaptive", Some(_)) => Err(ApiError::invalid(
                "thinking.budget_tokens",
                "'thinking.budget_tokens' is only for the type enabled.",
            )),
            ("between_tools", _) => Err(ApiError::unsupported(
                Some("thinking.type"),
                "A 'thinking.type' of between_tools is not supported by this server.",
            )),
            _ => Err(ApiError::invalid(
                "thinking.type",
                "'thinking.type' must be enabled, adaptive or disabled.",
            )),
        }
    }
}

impl ThinkingChoice {
    const OFF: Self = Self {
        is_on: false,
        is_shown: false,
        budget: None,
    };
}

impl MessagesRequest {
    /// Refuses what this server does not support, by its name.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        for (index, tool) in self.tools.iter().flatten().enumerate() {
            if let Some(kind) = tool.r#type.as_deref().filter(|kind| *kind != "custom") {
                let field = format!("tools[{index}].type");
                let kind = shortened(kind.to_owned(), TYPE_CHARS_MAX);
                let message = format!("Tools of type '{kind}' are not supported by this server.");
                return Err(ApiError::unsupported(Some(&field), message));
            }
        }
        if let Some(system) = &self.system {
            check_blocks(system, "system")?;
        }
        let mut messages = self.messages.iter().enumerate();
        messages.try_for_each(|(index, message)| message.check(index))
    }

    /// The request's limit of tokens.
    pub(crate) fn max_tokens(&self) -> Result<u32, ApiError> {
        match self.max_tokens {
            None => Err(ApiError::missing("max_tokens")),
            Some(0) => Err(ApiError::invalid(
                "max_tokens",
                "'max_tokens' is 0, but must be at least 1.",
            )),
            Some(max_tokens) => Ok(max_tokens),
        }
    }

    /// The texts that end the answer.
    pub(crate) fn stop_sequences(&self) -> Vec<String> {
        self.stop_sequences.clone().unwrap_or_default()
    }

    /// The request as a turn of a conversation, without the limit of tokens.
    pub(crate) fn turn(&self) -> Result<Turn, ApiError> {
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(said("system", texts(system)));
        }
        messages.extend(self.messages.iter().flat_map(MessageInput::messages));
        let continues = messages
            .last()
            .is_some_and(|last| last.role == "assistant" && !last.has_calls());
        let thinking = match &self.thinking {
            None => ThinkingChoice::OFF,
            Some(thinking) => thinking.choice()?,
        };
        let tools = self.tools.as_ref();
        let tools = tools.map(|tools| tools.iter().map(ToolInput::tool).collect());
        let choice = self.tool_choice.as_ref();
        let is_single = choice.and_then(|choice| choice.disable_parallel_tool_use);
        let effort = self.output_config.as_ref();
        Ok(Turn {
            tools: tools.transpose()?,
            tool_choice: choice.map(ToolChoiceInput::choice).transpose()?,
            parallel_tool_calls: is_single.map(|is_single| !is_single),
            variables: [("enable_thinking".to_owned(), json!(thinking.is_on))]
                .into_iter()
                .collect(),
            reasoning_effort: effort.and_then(|config| config.effort.clone()),
            thinking_budget: thinking.budget,
            shows_reasoning: thinking.is_shown,
            add_generation_prompt: !continues,
            continue_final_message: continues,
            ..Turn::new(messages, self.common()?)
        })
    }

    fn common(&self) -> Result<Common, ApiError> {
        Ok(Common {
            model: self.model.clone(),
            stream: self.stream,
            seed: self.seed,
            stop: self.stop_sequences.clone().map(TextOr::List),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            ignore_eos: self.ignore_eos,
            cache_salt: self.cache_salt.clone(),
            response_format: self.format()?,
            ..Common::default()
        })
    }

    fn format(&self) -> Result<Option<ResponseFormat>, ApiError> {
        let config = self.output_config.as_ref();
        match config.and_then(|config| config.format.as_ref()) {
            None => Ok(None),
            Some(format) if format.r#type == "json_schema" => {
                Ok(Some(ResponseFormat::schema(format.schema.clone())))
            }
            Some(_) => Err(ApiError::invalid(
                "output_config.format.type",
                "'output_config.format.type' must be json_schema.",
            )),
        }
    }
}
