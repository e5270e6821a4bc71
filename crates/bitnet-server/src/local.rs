//! [`LocalChats`]: chat requests of a program that runs the engine in its own process, read as
//! `/v1/chat/completions` reads them: the same prompts, forms, calls and errors.

use std::sync::Arc;

use bitnet_inference::MakeConstraint;
use bitnet_tokenizers::{TokenId, Tokenizer};

use crate::api::calls::Found;
use crate::api::chat::local_parts;
use crate::api::generate::make_constraint;
use crate::api::turn::LocalParts;
use crate::forms::FormHelper;
use crate::id::random_id;
use crate::served::{Conversation, ServedModel};
use crate::text::THREAD_STACK_BYTES;

/// Reads the chat requests of one model.
pub struct LocalChats(ServedModel);

/// A chat request: its prompt, the form of its answers, and how to read them.
pub struct LocalChat {
    parts: LocalParts,
    vocab_size: usize,
}

/// An answer to a chat request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LocalAnswer {
    /// The text without thinking and calls.
    pub content: String,
    /// The thinking, without its tags.
    pub reasoning: String,
    /// The calls of tools, in order.
    pub calls: Vec<LocalCall>,
    /// Whether there are calls and the last one is whole.
    pub has_whole_calls: bool,
}

/// A call of a tool.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalCall {
    /// A random id, as `call_…`.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// A JSON object, which is cut off if the answer is.
    pub arguments: String,
}

/// A chat request that is invalid, or that the model does not support.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LocalRefusal(String);

impl LocalChats {
    /// For a model with `vocab_size` rows of logits. Without `form_helper`, a form whose
    /// compilation overflows the stack ends the process.
    #[must_use]
    pub fn new(
        tokenizer: Option<Arc<Tokenizer>>,
        conversation: Conversation,
        vocab_size: usize,
        form_helper: Option<FormHelper>,
    ) -> Self {
        let model = ServedModel::outside_server(tokenizer, conversation, vocab_size, form_helper);
        Self(model)
    }

    /// Reads a request: an object in JSON with the fields of `/v1/chat/completions`. Only the
    /// fields that decide the prompt and the form of the answer count; sampling is the caller's.
    ///
    /// # Errors
    /// If the request is invalid, or the model does not support it.
    pub fn read(&self, request: &[u8]) -> Result<LocalChat, LocalRefusal> {
        let refusal = |problem: String| LocalRefusal(problem);
        // Forms are compiled on a stack that is large enough for every form that a helper accepts.
        let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
        let parts = std::thread::scope(|scope| {
            let work = thread.spawn_scoped(scope, || local_parts(&self.0, request));
            let work = work.map_err(|problem| refusal(format!("cannot start a thread: {problem}")));
            let done = work?.join();
            let bug = |_| refusal("a bug in the program: this request made it panic".to_owned());
            done.map_err(bug)?
                .map_err(|error| refusal(error.message().to_owned()))
        })?;
        Ok(LocalChat {
            parts,
            vocab_size: self.0.vocab_size,
        })
    }
}

impl LocalChat {
    /// The text that the model continues, as the template writes it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.parts.text
    }

    /// The tokens that the model continues.
    #[must_use]
    pub fn prompt(&self) -> &[TokenId] {
        &self.parts.prompt
    }

    /// Whether the answer must be a call of a tool, which stop strings would cut.
    #[must_use]
    pub fn must_call(&self) -> bool {
        self.parts.must_call
    }

    /// Makes the constraint of each run of an answer that one of `stop_ids` ends; `None` if all
    /// answers are valid.
    #[must_use]
    pub fn constraint(&self, stop_ids: &[TokenId]) -> Option<MakeConstraint> {
        let LocalParts { form, thinking, .. } = &self.parts;
        make_constraint(form.clone(), thinking.clone(), stop_ids, self.vocab_size)
    }

    /// Reads the text of a whole answer.
    #[must_use]
    pub fn read(&self, text: &str) -> LocalAnswer {
        let mut reader = self.parts.reader.clone();
        let mut found = reader.text(text);
        found.extend(reader.finish());
        let mut answer = LocalAnswer::default();
        for part in found {
            match part {
                Found::Text(text) => answer.content += &text,
                Found::Reasoning(text) => answer.reasoning += &text,
                Found::Call { name, .. } => answer.calls.push(LocalCall {
                    id: random_id("call_"),
                    name,
                    arguments: String::new(),
                }),
                Found::Arguments { index, text } => answer.calls[index].arguments += &text,
            }
        }
        answer.has_whole_calls = reader.has_whole_calls();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::tests::tokenizer;

    fn chats() -> LocalChats {
        let tokenizer = tokenizer();
        let vocab_size = tokenizer.vocab_size();
        LocalChats::new(
            Some(tokenizer),
            Conversation::ContinueLast,
            vocab_size,
            None,
        )
    }

    #[test]
    fn a_chat_without_a_form_has_a_prompt_and_plain_answers() {
        let request = br#"{"messages": [{"role": "user", "content": "abc"}]}"#;
        let chat = chats().read(request).expect("a chat");
        assert!(!chat.prompt().is_empty() && !chat.must_call());
        assert!(chat.constraint(&[]).is_none());
        let expected = LocalAnswer {
            content: "<tool_call>x".to_owned(),
            ..LocalAnswer::default()
        };
        assert_eq!(chat.read("<tool_call>x"), expected);
    }

    #[test]
    fn calls_are_found_in_answers_of_a_chat_with_tools() {
        let request =
            br#"{"messages": [{"role": "user", "content": "abc"}], "tool_choice": "required",
            "tools": [{"type": "function", "function": {"name": "f"}}]}"#;
        let chat = chats().read(request).expect("a chat");
        assert!(chat.must_call() && chat.constraint(&[]).is_some());
        let answer = chat.read(r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#);
        let calls: Vec<_> = answer
            .calls
            .iter()
            .map(|call| (&*call.name, &*call.arguments))
            .collect();
        assert_eq!((calls, answer.has_whole_calls), (vec![("f", "{}")], true));
        let cut = chat.read(r#"<tool_call>{"name": "f", "arguments": {"#);
        assert_eq!((cut.calls.len(), cut.has_whole_calls), (1, false));
    }

    #[test]
    fn an_invalid_chat_is_refused_with_the_servers_words() {
        let refused = |request: &[u8]| chats().read(request).err().expect("a refusal").to_string();
        let empty = refused(br#"{"messages": []}"#);
        assert_eq!(
            empty,
            "'messages' is empty: at least one message is needed."
        );
        let form = br#"{"messages": [{"role": "user", "content": "a"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}"#;
        assert!(refused(form).contains("'response_format.json_schema.schema'"));
    }
}
