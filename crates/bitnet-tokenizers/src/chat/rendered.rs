//! [`RenderOptions`] and [`RenderedChat`]: what a rendering takes besides the messages, and its
//! text.

use std::ops::Range;

use serde_json::{Map, Value};

/// Options for rendering a conversation.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions<'a> {
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// End within the last message, which the model continues. Leave `add_generation_prompt` out.
    pub continue_final_message: bool,
    /// The tools that the model may call, as JSON; only Jinja templates read them.
    pub tools: Option<&'a Value>,
    /// Documents to answer from, as JSON; only Jinja templates read them.
    pub documents: Option<&'a Value>,
    /// More variables of Jinja templates, such as `enable_thinking`.
    pub variables: Option<&'a Map<String, Value>>,
    /// The time for `strftime_now` of Jinja templates, in seconds since 1970 (UTC). Without it a
    /// template that uses the time fails, since this crate reads no clock.
    pub now: Option<i64>,
}

impl Default for RenderOptions<'_> {
    /// The assistant answers; no tools, no clock.
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            documents: None,
            variables: None,
            now: None,
        }
    }
}

/// A rendered conversation;
/// [`Tokenizer::encode_chat`](crate::Tokenizer::encode_chat) turns it into tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    guards: Vec<Range<usize>>,
}

impl RenderedChat {
    /// `guards` in ascending order, not overlapping.
    pub(crate) fn new(text: String, guards: Vec<Range<usize>>) -> Self {
        Self { text, guards }
    }

    /// The text. Encoding it with `parse_special` would parse the control tokens that messages
    /// contain.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The byte ranges of the text that are never parsed as control tokens, ascending.
    pub fn guards(&self) -> &[Range<usize>] {
        &self.guards
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn push_content(&mut self, content: &str) {
        if !content.is_empty() {
            let start = self.text.len();
            self.text.push_str(content);
            self.guards.push(start..self.text.len());
        }
    }

    /// The first `end` bytes.
    pub(super) fn cut(mut self, end: usize) -> Self {
        self.text.truncate(end);
        self.guards.retain_mut(|guard| {
            guard.end = guard.end.min(end);
            guard.start < guard.end
        });
        self
    }
}
