//! Messages, as clients send them and templates read them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result, quoted};

/// One message of a conversation: a JSON object with a `role`, its other fields keep their order.
///
/// Templates read the fields that they know: `content` (a text or a list of parts), `tool_calls`,
/// `tool_call_id`, `name`, `reasoning_content`, or other fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ChatMessage {
    role: String,
    fields: Map<String, Value>,
}

impl ChatMessage {
    /// A message with this `role` and `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let role = role.into();
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(role.clone()));
        fields.insert("content".to_owned(), Value::String(content.into()));
        Self { role, fields }
    }

    /// A message with these fields. Null fields are dropped, as in transformers.
    ///
    /// # Errors
    /// If there is no `role`, or it is not a string.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self> {
        fields.retain(|_, value| !value.is_null());
        match fields.get("role") {
            Some(Value::String(role)) => Ok(Self {
                role: role.clone(),
                fields,
            }),
            _ => Err(Error::NoRole),
        }
    }

    /// `system`, `user`, `assistant`, `tool`, or another role that the template knows.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// All fields, including `role`.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The text of the message: the content, or the texts of its parts joined by newlines; empty if
    /// there is none.
    pub fn text(&self) -> String {
        match self.fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().filter_map(|part| part["text"].as_str());
                texts.collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
    }

    /// Replaces the content by a text.
    pub fn set_text(&mut self, text: impl Into<String>) {
        self.fields
            .insert("content".to_owned(), Value::String(text.into()));
    }

    /// Removes a field.
    pub fn remove(&mut self, field: &str) -> Option<Value> {
        self.fields.shift_remove(field)
    }

    /// The tool calls of an assistant's message.
    pub fn tool_calls(&self) -> &[Value] {
        self.fields
            .get("tool_calls")
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    pub(crate) fn fields_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.fields
    }

    /// The approximate size of all fields, in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        self.fields
            .iter()
            .map(|(name, value)| name.len() + json_bytes(value))
            .sum()
    }

    /// # Errors
    /// If the role is not a plain word.
    pub(crate) fn check_role(&self) -> Result<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        match (1..=64).contains(&self.role.len()) && self.role.bytes().all(is_plain) {
            true => Ok(()),
            false => Err(Error::BadRole {
                role: quoted(&self.role),
            }),
        }
    }
}

/// The bytes of the texts in `value`, plus a few for every other value.
pub(crate) fn json_bytes(value: &Value) -> usize {
    8 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(json_bytes).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| name.len() + json_bytes(value))
            .sum(),
        _ => 0,
    }
}

impl TryFrom<Map<String, Value>> for ChatMessage {
    type Error = Error;

    fn try_from(fields: Map<String, Value>) -> Result<Self> {
        Self::from_fields(fields)
    }
}

impl From<ChatMessage> for Map<String, Value> {
    fn from(message: ChatMessage) -> Self {
        message.fields
    }
}
