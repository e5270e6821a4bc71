//! [`Item`]: the parts of a conversation in the Responses API, and their translation to messages.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::chat::{ContentPart, Message};
use crate::api::error::shortened;
use crate::api::fields::TextOr;
use crate::api::tools::{FunctionCall, ToolCall};

/// Maximum number of characters of a type that an error quotes.
const TYPE_CHARS_MAX: usize = 64;

/// An item of a conversation: a message, a call of a function, its output, or reasoning.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct Item {
    /// `message` (also if not given), `function_call`, `function_call_output`, `reasoning` or
    /// `item_reference`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// It has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    /// Of a message: `user`, `assistant`, `system` or `developer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    /// Of a message, or of reasoning: a text, or a list of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<TextOr<ItemPart>>,
    /// Of a message. It has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    /// Of a call and of its output: the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) call_id: Option<String>,
    /// Of a call: the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Of a call: JSON, as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) arguments: Option<String>,
    /// Of a function: a text, or a list of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<TextOr<ItemPart>>,
    /// Of reasoning: read if there is no `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Vec<ItemPart>>,
    /// Of reasoning. It has no effect: this server encrypts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_content: Option<String>,
}

/// A text within an item.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct ItemPart {
    /// `input_text`, `output_text`, `refusal`, `reasoning_text` or `summary_text`
    pub(crate) r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// The text of a `refusal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// They have no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    annotations: Option<Vec<Value>>,
    /// They have no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    logprobs: Option<Vec<Value>>,
}

impl ItemPart {
    fn new(kind: &str, text: String) -> Self {
        Self {
            r#type: kind.to_owned(),
            text: Some(text),
            annotations: (kind == "output_text").then(Vec::new),
            ..Self::default()
        }
    }
}

/// The type of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemKind {
    Message,
    FunctionCall,
    FunctionCallOutput,
    Reasoning,
    /// Stands for an item of a stored response.
    Reference,
}

impl ItemKind {
    /// The beginning of ids of such items.
    fn prefix(self) -> &'static str {
        match self {
            Self::Message => "msg",
            Self::FunctionCall => "fc",
            Self::FunctionCallOutput => "fco",
            Self::Reasoning => "rs",
            Self::Reference => "ref",
        }
    }

    /// An id of such an item: it has the id of its response, so that the item can be found.
    pub(crate) fn id(self, response_id: &str, index: usize) -> String {
        let digits = response_id.strip_prefix("resp_").unwrap_or(response_id);
        format!("{}_{digits}{index:04x}", self.prefix())
    }
}

/// The id of the response that an item with this id belongs to.
pub(crate) fn response_of(item_id: &str) -> Option<String> {
    let (_, digits) = item_id.split_once('_')?;
    Some(format!("resp_{}", digits.get(..32)?))
}

impl Item {
    /// A message of the user.
    pub(crate) fn user(text: String) -> Self {
        Self {
            role: Some("user".to_owned()),
            content: Some(TextOr::Text(text)),
            ..Self::default()
        }
    }

    /// The type; `None` if this server does not know it.
    pub(crate) fn kind(&self) -> Option<ItemKind> {
        match self.r#type.as_deref() {
            // The SDK's type of a reference may be null.
            None if self.role.is_none() && self.id.is_some() => Some(ItemKind::Reference),
            None | Some("message") => Some(ItemKind::Message),
            Some("function_call") => Some(ItemKind::FunctionCall),
            Some("function_call_output") => Some(ItemKind::FunctionCallOutput),
            Some("reasoning") => Some(ItemKind::Reasoning),
            Some("item_reference") => Some(ItemKind::Reference),
            Some(_) => None,
        }
    }

    /// Refuses items of unknown types, and texts of unknown types. `field`: its name, such as
    /// `input[0]`.
    pub(crate) fn check(&self, field: &str) -> Result<(), ApiError> {
        let Some(kind) = self.kind() else {
            let kind = self.r#type.clone().unwrap_or_default();
            let kind = shortened(kind, TYPE_CHARS_MAX);
            let message = format!("Items of type '{kind}' are not supported by this server.");
            return Err(ApiError::unsupported(
                Some(&format!("{field}.type")),
                message,
            ));
        };
        let missing = |name: &str| Err(ApiError::missing(&format!("{field}.{name}")));
        match kind {
            ItemKind::Message => {
                let role = self.role.as_deref();
                if !matches!(
                    role,
                    Some("user" | "assistant" | "system" | "developer") | None
                ) {
                    let field = format!("{field}.role");
                    let message =
                        format!("'{field}' must be user, assistant, system or developer.");
                    return Err(ApiError::invalid(&field, message));
                }
                match (role, &self.content) {
                    (None, _) => missing("role"),
                    (_, None) => missing("content"),
                    (_, Some(content)) => check_parts(content, &format!("{field}.content")),
                }
            }
            ItemKind::FunctionCall => match (&self.name, &self.arguments, &self.call_id) {
                (None, ..) => missing("name"),
                (_, None, _) => missing("arguments"),
                (.., None) => missing("call_id"),
                (_, Some(arguments), _) => check_arguments(arguments, field),
            },
            ItemKind::FunctionCallOutput => match (&self.output, &self.call_id) {
                (None, _) => missing("output"),
                (_, None) => missing("call_id"),
                (Some(output), _) => check_parts(output, &format!("{field}.output")),
            },
            ItemKind::Reference if self.id.is_none() => missing("id"),
            ItemKind::Reasoning | ItemKind::Reference => Ok(()),
        }
    }

    /// The same item as responses list it: with an id, and with parts in place of a text.
    pub(crate) fn listed(mut self, response_id: &str, index: usize) -> Self {
        let Some(kind) = self.kind() else {
            return self;
        };
        self.id.get_or_insert_with(|| kind.id(response_id, index));
        self.status.get_or_insert_with(|| "completed".to_owned());
        if kind == ItemKind::Message {
            self.r#type = Some("message".to_owned());
            let part = match self.role.as_deref() {
                Some("assistant") => "output_text",
                _ => "input_text",
            };
            if let Some(TextOr::Text(text)) = self.content {
                self.content = Some(TextOr::List(vec![ItemPart::new(part, text)]));
            }
        }
        if kind == ItemKind::Reasoning {
            self.summary.get_or_insert_with(Vec::new);
        }
        self
    }
}

fn check_arguments(arguments: &str, field: &str) -> Result<(), ApiError> {
    // Some servers omit the arguments of a function without parameters.
    if arguments.trim().is_empty() || serde_json::from_str::<Value>(arguments).is_ok() {
        return Ok(());
    }
    let field = format!("{field}.arguments");
    Err(ApiError::invalid(&field, format!("'{field}' is not JSON.")))
}

fn check_parts(content: &TextOr<ItemPart>, field: &str) -> Result<(), ApiError> {
    let TextOr::List(parts) = content else {
        return Ok(());
    };
    for (index, part) in parts.iter().enumerate() {
        let field = |name: &str| format!("{field}[{index}].{name}");
        let text = match part.r#type.as_str() {
            "input_text" | "output_text" | "text" => ("text", &part.text),
            "refusal" => ("refusal", &part.refusal),
            kind => {
                let kind = shortened(kind.to_owned(), TYPE_CHARS_MAX);
                let message = format!("This model reads text, not '{kind}'.");
                return Err(ApiError::unsupported(Some(&field("type")), message));
            }
        };
        if let (name, None) = text {
            return Err(ApiError::missing(&field(name)));
        }
    }
    Ok(())
}

/// The items as messages of a chat. `items` are checked.
pub(crate) fn messages(items: &[Item]) -> Vec<Message> {
    let mut reading = Reading::default();
    for item in items {
        reading.item(item);
    }
    reading.finish()
}

/// The messages so far.
#[derive(Default)]
struct Reading {
    messages: Vec<Message>,
    /// Reasoning whose message follows.
    reasoning: Option<String>,
}

impl Reading {
    fn item(&mut self, item: &Item) {
        match item.kind() {
            Some(ItemKind::Message) => {
                let role = item.role.clone().unwrap_or_default();
                if role == "assistant" {
                    self.assistant(item.content.as_ref().map(content));
                } else {
                    self.end_reasoning();
                    self.messages.push(Message {
                        role,
                        content: item.content.as_ref().map(content),
                        ..Message::default()
                    });
                }
            }
            Some(ItemKind::FunctionCall) => self.call(item),
            Some(ItemKind::FunctionCallOutput) => {
                self.end_reasoning();
                self.messages.push(Message {
                    role: "tool".to_owned(),
                    content: item.output.as_ref().map(content),
                    tool_call_id: item.call_id.clone(),
                    ..Message::default()
                });
            }
            Some(ItemKind::Reasoning) => {
                let text = reasoning(item);
                self.reasoning.get_or_insert_default().push_str(&text);
            }
            Some(ItemKind::Reference) | None => {}
        }
    }

    fn assistant(&mut self, content: Option<TextOr<ContentPart>>) {
        self.messages.push(Message {
            role: "assistant".to_owned(),
            content,
            reasoning_content: self.reasoning.take(),
            ..Message::default()
        });
    }

    /// Adds a call to the message of the assistant that it follows.
    fn call(&mut self, item: &Item) {
        let follows = self.reasoning.is_none()
            && self
                .messages
                .last()
                .is_some_and(|last| last.role == "assistant");
        if !follows {
            self.assistant(None);
        }
        let call = ToolCall {
            index: None,
            id: item.call_id.clone().unwrap_or_default(),
            r#type: "function".to_owned(),
            function: FunctionCall {
                name: item.name.clone().unwrap_or_default(),
                arguments: item.arguments.clone().unwrap_or_default(),
            },
        };
        if let Some(last) = self.messages.last_mut() {
            last.tool_calls.get_or_insert_default().push(call);
        }
    }

    /// Reasoning without a message gets an empty one: the answer was cut off.
    fn end_reasoning(&mut self) {
        if self.reasoning.is_some() {
            self.assistant(Some(TextOr::Text(String::new())));
        }
    }

    fn finish(mut self) -> Vec<Message> {
        self.end_reasoning();
        self.messages
    }
}

fn reasoning(item: &Item) -> String {
    let parts = match &item.content {
        Some(TextOr::Text(text)) => return text.clone(),
        Some(TextOr::List(parts)) => parts,
        None => item.summary.as_deref().unwrap_or_default(),
    };
    let texts: Vec<_> = parts
        .iter()
        .filter_map(|part| part.text.as_deref())
        .collect();
    texts.join("\n")
}

fn content(content: &TextOr<ItemPart>) -> TextOr<ContentPart> {
    let parts = match content {
        TextOr::Text(text) => return TextOr::Text(text.clone()),
        TextOr::List(parts) => parts,
    };
    let texts = parts.iter().map(|part| {
        part.text
            .clone()
            .or(part.refusal.clone())
            .unwrap_or_default()
    });
    ContentPart::texts(texts.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn items(value: Value) -> Vec<Item> {
        let items: Vec<Item> = serde_json::from_value(value).expect("items");
        for item in &items {
            item.check("input").expect("a known item");
        }
        items
    }

    #[test]
    fn reasoning_and_calls_join_the_message_of_the_assistant() {
        let items = items(json!([
            { "role": "user", "content": "hi" },
            { "type": "reasoning", "id": "rs_1", "summary": [],
              "content": [{ "type": "reasoning_text", "text": "hm" }] },
            { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{ "type": "output_text", "text": "I look.", "annotations": [] }] },
            { "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}" },
            { "type": "function_call", "call_id": "b", "name": "g", "arguments": "" },
            { "type": "function_call_output", "call_id": "a", "output": "1" },
            { "type": "function_call_output", "call_id": "b",
              "output": [{ "type": "input_text", "text": "2" }] },
            { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "so" }] },
            { "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" },
        ]));
        let messages = messages(&items);
        let roles: Vec<_> = messages.iter().map(|message| &*message.role).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool", "assistant"]);
        let calls = |index: usize| -> Vec<&str> {
            let calls = messages[index].tool_calls.iter().flatten();
            calls.map(|call| &*call.id).collect()
        };
        assert_eq!(messages[1].reasoning_content.as_deref(), Some("hm"));
        assert_eq!(
            messages[1].content,
            Some(TextOr::Text("I look.".to_owned()))
        );
        assert_eq!((calls(1), calls(4)), (vec!["a", "b"], vec!["c"]));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("b"));
        assert_eq!(messages[4].reasoning_content.as_deref(), Some("so"));
    }

    #[test]
    fn an_item_names_its_response() {
        let response = format!("resp_{}", "0123456789abcdef".repeat(2));
        let id = ItemKind::FunctionCall.id(&response, 3);
        assert_eq!(id, format!("fc_{}0003", "0123456789abcdef".repeat(2)));
        assert_eq!(response_of(&id), Some(response));
        for other in ["", "fc", "fc_12", "item_é"] {
            assert_eq!(response_of(other), None, "{other}");
        }
    }

    #[test]
    fn unknown_items_are_refused_by_type() {
        for (value, field) in [
            (
                json!({ "type": "web_search_call", "id": "w" }),
                "input[0].type",
            ),
            (json!({ "role": "user" }), "input[0].content"),
            (json!({ "role": "robot", "content": "x" }), "input[0].role"),
            (
                json!({ "role": "user", "content": [{ "type": "input_image" }] }),
                "input[0].content[0].type",
            ),
            (
                json!({ "type": "function_call", "call_id": "a", "name": "f", "arguments": "{" }),
                "input[0].arguments",
            ),
            (
                json!({ "type": "function_call_output", "output": "x" }),
                "input[0].call_id",
            ),
        ] {
            let item: Item = serde_json::from_value(value).expect("an item");
            let error = item.check("input[0]").expect_err("an error");
            assert_eq!(error.param(), Some(field));
        }
    }
}
