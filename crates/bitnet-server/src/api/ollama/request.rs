//! Requests of Ollama's API, and their translation to a [`Turn`] or to a prompt.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::chat::Message;
use crate::api::fields::TextOr;
use crate::api::format::ResponseFormat;
use crate::api::generate::Common;
use crate::api::logprobs;
use crate::api::tools::{FunctionCall, Tool, ToolCall};
use crate::api::turn::Turn;

/// Names of the fields of chat completions, each with its name here.
pub(crate) const NAMES: [(&str, &str); 11] = [
    ("response_format.json_schema.schema", "format"),
    ("response_format", "format"),
    ("max_tokens", "options.num_predict"),
    ("temperature", "options.temperature"),
    ("top_k", "options.top_k"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("typical_p", "options.typical_p"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("presence_penalty", "options.presence_penalty"),
    ("frequency_penalty", "options.frequency_penalty"),
];

/// A conversation to continue, as in Ollama's API.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaChatRequest {
    /// A name of the model, perhaps with the ending `:latest`.
    pub(crate) model: String,
    /// The conversation so far; empty to load the model.
    #[serde(default)]
    pub(crate) messages: Vec<OllamaInputMessage>,
    /// Functions that the model may call.
    tools: Option<Vec<Tool>>,
    /// Send the answer in lines while it is generated; true if not given.
    pub(crate) stream: Option<bool>,
    /// Whether the model thinks before it answers, for templates that read it: true, false, or how
    /// much, such as `low`.
    think: Option<Value>,
    /// The form of the answer: `json`, or a JSON schema.
    format: Option<Value>,
    options: Option<OllamaOptions>,
    /// How long the model stays loaded after this request: seconds, or a duration such as `10m`; 0
    /// to unload it at once, and a negative number for ever. It has no effect on a server of one
    /// model without `--keep-alive`.
    #[expect(dead_code, reason = "read before the model is loaded")]
    keep_alive: Option<Value>,
    /// Return the log-probability of each token.
    logprobs: Option<bool>,
    /// Return the log-probabilities of this many of the most probable tokens; needs `logprobs`.
    #[schema(maximum = 20)]
    top_logprobs: Option<u32>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaInputMessage {
    /// `system`, `user`, `assistant` or `tool`
    role: String,
    content: Option<String>,
    /// What the model thought before it answered.
    thinking: Option<String>,
    /// The calls of an assistant.
    tool_calls: Option<Vec<OllamaInputCall>>,
    /// The function that a message with the role `tool` answers.
    tool_name: Option<String>,
    /// The id of the call that it answers.
    tool_call_id: Option<String>,
}

/// A call of a function.
#[derive(Debug, Deserialize, ToSchema)]
struct OllamaInputCall {
    id: Option<String>,
    /// `function`
    #[expect(dead_code, reason = "there is no other type")]
    r#type: Option<String>,
    function: OllamaInputFunction,
}

/// The function and its arguments.
#[derive(Debug, Deserialize, ToSchema)]
struct OllamaInputFunction {
    /// The index of the call. It has no effect.
    #[expect(dead_code, reason = "the order of the calls says the same")]
    index: Option<usize>,
    name: String,
    #[schema(value_type = Object)]
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// A prompt to continue, as in Ollama's API.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaGenerateRequest {
    /// A name of the model, perhaps with the ending `:latest`.
    pub(crate) model: String,
    /// The prompt; empty to load the model.
    #[serde(default)]
    pub(crate) prompt: String,
    /// A message of the system before the prompt.
    system: Option<String>,
    /// Continue the prompt as it is, without the model's template.
    pub(crate) raw: Option<bool>,
    /// Send the answer in lines while it is generated; true if not given.
    pub(crate) stream: Option<bool>,
    /// Whether the model thinks before it answers, for templates that read it: true, false, or how
    /// much, such as `low`.
    think: Option<Value>,
    /// The form of the answer: `json`, or a JSON schema.
    format: Option<Value>,
    options: Option<OllamaOptions>,
    /// How long the model stays loaded after this request: seconds, or a duration such as `10m`; 0
    /// to unload it at once, and a negative number for ever. It has no effect on a server of one
    /// model without `--keep-alive`.
    #[expect(dead_code, reason = "read before the model is loaded")]
    keep_alive: Option<Value>,
    /// Return the log-probability of each token.
    logprobs: Option<bool>,
    /// Return the log-probabilities of this many of the most probable tokens; needs `logprobs`.
    #[schema(maximum = 20)]
    top_logprobs: Option<u32>,
}

/// Options of a request.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaOptions {
    /// As in chat completions.
    seed: Option<i64>,
    /// Maximum number of tokens to generate; -1 or -2 for what the context holds.
    #[schema(minimum = -2)]
    num_predict: Option<i64>,
    /// Texts that end the answer and are not part of it.
    stop: Option<TextOr<String>>,
    /// As in chat completions.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// As in chat completions.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// As in chat completions.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    typical_p: Option<f32>,
    /// `repetition_penalty` of chat completions.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    repeat_penalty: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = -100, maximum = 100)]
    presence_penalty: Option<f32>,
    /// As in chat completions.
    #[schema(minimum = -100, maximum = 100)]
    frequency_penalty: Option<f32>,
    /// Must not be more than the context of the server, which does not change.
    num_ctx: Option<u64>,
    /// As in chat completions.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// It and the next ones have no effect on answers: the server's own options say how it uses
    /// the machine.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    numa: Option<bool>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    num_batch: Option<i64>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    num_gpu: Option<i64>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    num_keep: Option<i64>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    num_thread: Option<i64>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    main_gpu: Option<i64>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    use_mmap: Option<bool>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    use_mlock: Option<bool>,
}

impl OllamaOptions {
    /// Refuses a context that this server does not have.
    pub(crate) fn check_context(options: Option<&Self>, context: usize) -> Result<(), ApiError> {
        let wanted = options.and_then(|options| options.num_ctx).unwrap_or(0);
        if wanted <= context as u64 {
            return Ok(());
        }
        let field = "options.num_ctx";
        let message =
            format!("'{field}' is {wanted}, but the context of this server has {context} tokens.");
        Err(ApiError::unsupported(Some(field), message))
    }

    fn max_tokens(&self) -> Result<Option<u32>, ApiError> {
        let field = "options.num_predict";
        match self.num_predict {
            None | Some(-2 | -1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) if number > 0 => Ok(Some(number)),
                _ => {
                    let message = format!(
                        "'{field}' is {number}, but must be at least 1, or -1 for no limit."
                    );
                    Err(ApiError::invalid(field, message))
                }
            },
        }
    }
}

/// The name of a model without the ending that Ollama's clients add.
pub(crate) fn model_name(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

impl OllamaInputMessage {
    fn message(&self, index: usize) -> Message {
        let calls = self.tool_calls.iter().flatten().enumerate();
        let calls: Vec<_> = calls
            .map(|(place, call)| ToolCall {
                index: None,
                id: call
                    .id
                    .clone()
                    .unwrap_or_else(|| format!("call_{index}_{place}")),
                r#type: "function".to_owned(),
                function: FunctionCall {
                    name: call.function.name.clone(),
                    arguments: json!(call.function.arguments).to_string(),
                },
            })
            .collect();
        let has_content = self.content.is_some() || calls.is_empty();
        Message {
            role: self.role.clone(),
            content: has_content.then(|| TextOr::Text(self.content.clone().unwrap_or_default())),
            name: self.tool_name.clone(),
            reasoning_content: self.thinking.clone(),
            tool_calls: (!calls.is_empty()).then_some(calls),
            tool_call_id: self.tool_call_id.clone(),
            ..Message::default()
        }
    }
}

/// The fields that both requests share.
struct Shared<'a> {
    model: &'a str,
    stream: Option<bool>,
    think: Option<&'a Value>,
    format: Option<&'a Value>,
    options: OllamaOptions,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
}

impl Shared<'_> {
    fn common(&self) -> Result<Common, ApiError> {
        let options = self.options.clone();
        Ok(Common {
            model: Some(model_name(self.model).to_owned()),
            stream: Some(self.stream.unwrap_or(true)),
            seed: options.seed,
            stop: options.stop,
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            repetition_penalty: options.repeat_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            logit_bias: options.logit_bias,
            response_format: self.format()?,
            ..Common::default()
        })
    }

    fn format(&self) -> Result<Option<ResponseFormat>, ApiError> {
        match self.format {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(word)) if word.is_empty() => Ok(None),
            Some(Value::String(word)) if word == "json" => Ok(Some(ResponseFormat::json_object())),
            Some(schema @ Value::Object(_)) => {
                Ok(Some(ResponseFormat::schema(Some(schema.clone()))))
            }
            Some(_) => Err(ApiError::invalid(
                "format",
                "'format' must be json or a JSON schema.",
            )),
        }
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

    fn turn(&self, messages: Vec<Message>) -> Result<Turn, ApiError> {
        let mut turn = Turn::new(messages, self.common()?);
        turn.max_tokens = self.options.max_tokens()?;
        turn.num_logprobs = self.num_logprobs()?;
        match self.think {
            None | Some(Value::Null) => {}
            Some(Value::Bool(thinks)) => {
                turn.variables
                    .insert("enable_thinking".to_owned(), json!(thinks));
                turn.shows_reasoning = *thinks;
            }
            Some(Value::String(effort)) => {
                turn.variables
                    .insert("enable_thinking".to_owned(), json!(true));
                turn.reasoning_effort = Some(effort.clone());
            }
            Some(_) => {
                let message = "'think' must be true, false or a text such as low.";
                return Err(ApiError::invalid("think", message));
            }
        }
        Ok(turn)
    }
}

impl OllamaChatRequest {
    /// The options, if there are some.
    pub(crate) fn options(&self) -> Option<&OllamaOptions> {
        self.options.as_ref()
    }

    fn shared(&self) -> Shared<'_> {
        Shared {
            model: &self.model,
            stream: self.stream,
            think: self.think.as_ref(),
            format: self.format.as_ref(),
            options: self.options.clone().unwrap_or_default(),
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
        }
    }

    /// The request as a turn of a conversation.
    pub(crate) fn turn(&self) -> Result<Turn, ApiError> {
        let messages = self.messages.iter().enumerate();
        let messages = messages.map(|(index, message)| message.message(index));
        let turn = self.shared().turn(messages.collect())?;
        Ok(Turn {
            tools: self.tools.clone(),
            ..turn
        })
    }
}

impl OllamaGenerateRequest {
    /// The options, if there are some.
    pub(crate) fn options(&self) -> Option<&OllamaOptions> {
        self.options.as_ref()
    }

    fn shared(&self) -> Shared<'_> {
        Shared {
            model: &self.model,
            stream: self.stream,
            think: self.think.as_ref(),
            format: self.format.as_ref(),
            options: self.options.clone().unwrap_or_default(),
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
        }
    }

    /// The request as a turn of a conversation with one message of the user.
    pub(crate) fn turn(&self) -> Result<Turn, ApiError> {
        let system = self.system.iter().filter(|text| !text.is_empty());
        let mut messages: Vec<_> = system.cloned().map(Message::system).collect();
        messages.push(Message {
            role: "user".to_owned(),
            content: Some(TextOr::Text(self.prompt.clone())),
            ..Message::default()
        });
        self.shared().turn(messages)
    }
}
