//! [`ResponseRequest`]: a request to `/v1/responses`, and its translation to a [`Turn`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::error::shortened;
use crate::api::fields::TextOr;
use crate::api::format::ResponseFormat;
use crate::api::generate::Common;
use crate::api::logprobs;
use crate::api::responses::items::{Item, messages};
use crate::api::tools::Tool;
use crate::api::turn::Turn;

/// Names of the fields of chat completions, each with its name here.
pub(crate) const NAMES: [(&str, &str); 5] = [
    ("].function", "]"),
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format", "text.format"),
    ("max_tokens", "max_output_tokens"),
    ("thinking_budget", "thinking_token_budget"),
];

/// Values of `include`. Only the log-probabilities have an effect: the others belong to hosted
/// tools, pictures and encrypted reasoning, which this server does not have.
const INCLUDES: [&str; 8] = [
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// Maximum number of pairs in `metadata`, and of characters of their keys and values.
const METADATA_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_CHARS_MAX: usize = 512;

/// A conversation to continue. Unknown and unsupported fields are refused with an error that names
/// them.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseRequest {
    /// A name of the model; the served model if not given.
    pub(crate) model: Option<String>,
    /// A text of the user, or the items of a conversation.
    #[serde(default = "nothing")]
    pub(crate) input: TextOr<Item>,
    /// A message of the system before the input. It is not carried over to later responses.
    pub(crate) instructions: Option<String>,
    /// The stored response whose conversation the input continues.
    pub(crate) previous_response_id: Option<String>,
    /// Whether to keep the response, for `previous_response_id` and `GET`; true if not given.
    pub(crate) store: Option<bool>,
    /// Send the response as server-sent events while it is generated.
    pub(crate) stream: Option<bool>,
    /// Options for streaming; this server has none.
    #[expect(dead_code, reason = "its only field is not supported")]
    stream_options: Option<ResponseStreamOptions>,
    /// Maximum number of tokens to generate, with reasoning; without it the context is the limit.
    #[schema(minimum = 1)]
    pub(crate) max_output_tokens: Option<u32>,
    /// How much to reason.
    pub(crate) reasoning: Option<ReasoningConfig>,
    /// The form of the text.
    pub(crate) text: Option<TextConfig>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<FunctionTool>>,
    /// `none`, `auto`, `required`, or `{"type": "function", "name": NAME}`.
    pub(crate) tool_choice: Option<Value>,
    /// Whether several functions may be called at once; true if not given.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Divides the logits; 0 takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) temperature: Option<f32>,
    /// Choose among the most probable tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// Return the log-probabilities of this many of the most probable tokens.
    #[schema(maximum = 20)]
    pub(crate) top_logprobs: Option<u32>,
    /// `message.output_text.logprobs` asks for the log-probability of each token of the text.
    include: Option<Vec<String>>,
    /// Tags of the client, which come back with the response: at most 16, with keys of at most 64
    /// characters and values of at most 512.
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// A hint for caching. It has no effect.
    pub(crate) prompt_cache_key: Option<String>,
    /// Names the user for the operator's records. It has no effect.
    pub(crate) safety_identifier: Option<String>,
    /// The older name of `safety_identifier`.
    pub(crate) user: Option<String>,
    /// As in chat completions.
    seed: Option<i64>,
    /// As in chat completions.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// As in chat completions.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// As in chat completions.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    repetition_penalty: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = -100, maximum = 100)]
    presence_penalty: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = -100, maximum = 100)]
    frequency_penalty: Option<f32>,
    /// As in chat completions.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// As in chat completions.
    ignore_eos: Option<bool>,
    /// As in chat completions.
    cache_salt: Option<String>,
    /// As in chat completions.
    #[schema(minimum = -1)]
    thinking_token_budget: Option<i64>,
    /// As in chat completions.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

fn nothing() -> TextOr<Item> {
    TextOr::List(Vec::new())
}

/// Options for streaming.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseStreamOptions {}

/// How much to reason.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct ReasoningConfig {
    /// For templates that read it, such as `low`, `medium` or `high`; `none` also turns off the
    /// thinking of templates that read `enable_thinking`.
    pub(crate) effort: Option<String>,
}

/// The form of the text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct TextConfig {
    pub(crate) format: Option<TextFormat>,
}

/// The form of the text.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TextFormat {
    /// `text`, `json_object` or `json_schema`
    r#type: String,
    /// For `json_schema`. It has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// For `json_schema`. It has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// For `json_schema`: any object if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// For `json_schema`. It has no effect: answers always fit the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct FunctionTool {
    /// Only `function` is supported.
    r#type: String,
    /// Letters, digits, `_` and `-`, at most 64.
    name: Option<String>,
    /// The purpose of the function.
    description: Option<String>,
    /// A JSON schema of the arguments; if not given, there are no arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Refuse a schema with keywords that cannot be enforced. Other keywords are always enforced.
    strict: Option<bool>,
}

impl FunctionTool {
    /// The tool as chat completions have it.
    fn tool(&self) -> Result<Tool, ApiError> {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(self.name));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        if let Some(parameters) = &self.parameters {
            function.insert("parameters".to_owned(), parameters.clone());
        }
        if self.strict == Some(true) {
            function.insert("strict".to_owned(), json!(true));
        }
        let tool = json!({ "type": "function", "function": function });
        serde_json::from_value(tool)
            .map_err(|error| ApiError::invalid("tools", format!("Invalid 'tools': {error}.")))
    }
}

impl ResponseRequest {
    /// Refuses what this server does not support, by its name.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        for (index, tool) in self.tools.iter().flatten().enumerate() {
            if tool.r#type != "function" {
                let field = format!("tools[{index}].type");
                let kind = shortened(tool.r#type.clone(), 64);
                let message = format!("Tools of type '{kind}' are not supported by this server.");
                return Err(ApiError::unsupported(Some(&field), message));
            }
            if tool.name.is_none() {
                return Err(ApiError::missing(&format!("tools[{index}].name")));
            }
        }
        if let TextOr::List(items) = &self.input {
            for (index, item) in items.iter().enumerate() {
                item.check(&format!("input[{index}]"))?;
            }
        }
        self.check_include()?;
        self.check_metadata()
    }

    fn check_include(&self) -> Result<(), ApiError> {
        let unknown = |value: &&String| !INCLUDES.contains(&value.as_str());
        match self.include.iter().flatten().find(unknown) {
            Some(value) => {
                let value = shortened(value.clone(), 64);
                let message = format!("'include' has '{value}', which this server does not know.");
                Err(ApiError::unsupported(Some("include"), message))
            }
            None => Ok(()),
        }
    }

    fn check_metadata(&self) -> Result<(), ApiError> {
        let Some(metadata) = &self.metadata else {
            return Ok(());
        };
        let is_long = |(key, value): (&String, &String)| {
            key.chars().count() > METADATA_KEY_CHARS_MAX
                || value.chars().count() > METADATA_CHARS_MAX
        };
        if metadata.len() <= METADATA_MAX && !metadata.iter().any(is_long) {
            return Ok(());
        }
        let message = format!(
            "'metadata' has {} pairs, but may have {METADATA_MAX} at most, with keys of at most \
             {METADATA_KEY_CHARS_MAX} characters and values of at most {METADATA_CHARS_MAX}.",
            metadata.len()
        );
        Err(ApiError::invalid("metadata", message))
    }

    /// The items of the input.
    pub(crate) fn items(&self) -> Vec<Item> {
        match &self.input {
            TextOr::Text(text) => vec![Item::user(text.clone())],
            TextOr::List(items) => items.clone(),
        }
    }

    /// Log-probabilities of each token of the text, and of this many of the most probable ones.
    fn num_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let is_included = self.include.iter().flatten().any(|value| value == LOGPROBS);
        match self.top_logprobs {
            None | Some(0) => Ok(is_included.then_some(0)),
            Some(top) => logprobs::check_top("top_logprobs", top).map(Some),
        }
    }

    fn max_tokens(&self) -> Result<Option<u32>, ApiError> {
        match self.max_output_tokens {
            Some(0) => Err(ApiError::invalid(
                "max_output_tokens",
                "'max_output_tokens' is 0, but must be at least 1.",
            )),
            max_tokens => Ok(max_tokens),
        }
    }

    fn thinking_budget(&self) -> Result<Option<usize>, ApiError> {
        match self.thinking_token_budget {
            None | Some(-1) => Ok(None),
            Some(budget) => usize::try_from(budget).map(Some).map_err(|_| {
                let message = format!(
                    "'thinking_token_budget' is {budget}, but must be at least 0, or -1 for no \
                     limit."
                );
                ApiError::invalid("thinking_token_budget", message)
            }),
        }
    }

    fn format(&self) -> Result<Option<ResponseFormat>, ApiError> {
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let Some(format) = format else {
            return Ok(None);
        };
        match format.r#type.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(ResponseFormat::json_object())),
            "json_schema" => Ok(Some(ResponseFormat::schema(format.schema.clone()))),
            _ => Err(ApiError::invalid(
                "text.format.type",
                "'text.format.type' must be text, json_object or json_schema.",
            )),
        }
    }

    /// The choice as chat completions have it.
    fn tool_choice(&self) -> Result<Option<Value>, ApiError> {
        let Some(Value::Object(choice)) = &self.tool_choice else {
            return Ok(self.tool_choice.clone());
        };
        let kind = choice.get("type").and_then(Value::as_str);
        match (kind, choice.get("name")) {
            (Some("function"), Some(name)) if choice.len() == 2 => Ok(Some(
                json!({ "type": "function", "function": { "name": name } }),
            )),
            (Some("function"), _) => Err(ApiError::invalid(
                "tool_choice",
                "'tool_choice' must be {\"type\": \"function\", \"name\": NAME}.",
            )),
            (kind, _) => {
                let kind = shortened(kind.unwrap_or_default().to_owned(), 64);
                let message = format!("A 'tool_choice' of type '{kind}' is not supported.");
                Err(ApiError::unsupported(Some("tool_choice"), message))
            }
        }
    }

    /// The request as a turn of a conversation of these items.
    pub(crate) fn turn(&self, items: &[Item]) -> Result<Turn, ApiError> {
        if items.is_empty() {
            return Err(ApiError::missing("input"));
        }
        let mut conversation = Vec::new();
        if let Some(instructions) = &self.instructions {
            conversation.push(crate::api::chat::Message::system(instructions.clone()));
        }
        conversation.extend(messages(items));
        let tools = self.tools.as_ref();
        let tools = tools.map(|tools| tools.iter().map(FunctionTool::tool).collect());
        Ok(Turn {
            max_tokens: self.max_tokens()?,
            num_logprobs: self.num_logprobs()?,
            tools: tools.transpose()?,
            tool_choice: self.tool_choice()?,
            parallel_tool_calls: self.parallel_tool_calls,
            variables: self.chat_template_kwargs.clone().unwrap_or_default(),
            reasoning_effort: self.reasoning.clone().unwrap_or_default().effort,
            thinking_budget: self.thinking_budget()?,
            ..Turn::new(conversation, self.common()?)
        })
    }

    fn common(&self) -> Result<Common, ApiError> {
        Ok(Common {
            model: self.model.clone(),
            stream: self.stream,
            seed: self.seed,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            ignore_eos: self.ignore_eos,
            cache_salt: self.cache_salt.clone(),
            response_format: self.format()?,
            ..Common::default()
        })
    }
}
