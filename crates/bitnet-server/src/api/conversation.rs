//! From the messages and tools of a request to a prompt, through the model's template.

use std::borrow::Cow;

use bitnet_tokenizers::{
    CallForm, ChatMessage, ChatTemplate, PromptBos, ReasoningTags, RenderOptions, TokenId,
};
use serde_json::{Map, Value, json};

use crate::api::ApiError;
use crate::api::chat::{ContentPart, Message};
use crate::api::fields::TextOr;
use crate::api::tools::{self, Tools};
use crate::clock::unix_time;
use crate::served::{Conversation, ServedModel};

/// The messages in the form that templates take.
pub(crate) fn chat_messages(messages: &[Message]) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "'messages' is empty: at least one message is needed.",
        ));
    }
    let messages = messages.iter().enumerate();
    messages
        .map(|(index, message)| chat_message(message, index))
        .collect()
}

fn chat_message(message: &Message, index: usize) -> Result<ChatMessage, ApiError> {
    let mut fields = Map::new();
    // `developer` is the newer name for `system`.
    let role = match message.role.as_str() {
        "developer" => "system",
        role => role,
    };
    fields.insert("role".to_owned(), json!(role));
    match &message.content {
        Some(content) => {
            fields.insert("content".to_owned(), content_json(content, index)?);
        }
        None if message.has_calls() => {}
        None => return Err(ApiError::missing(&format!("messages[{index}].content"))),
    }
    let texts = [
        ("name", &message.name),
        ("reasoning_content", &message.reasoning_content),
        ("reasoning", &message.reasoning),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            fields.insert(name.to_owned(), json!(text));
        }
    }
    if message.has_calls() {
        let calls = message.tool_calls.as_deref().unwrap_or_default();
        tools::check_arguments(calls, index)?;
        fields.insert("tool_calls".to_owned(), json!(calls));
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".to_owned(), json!(id));
    }
    let field = format!("messages[{index}].role");
    ChatMessage::from_fields(fields).map_err(|error| ApiError::invalid(&field, format!("{error}.")))
}

/// A content as it was sent: a text, or a list of parts, which are texts.
fn content_json(content: &TextOr<ContentPart>, message: usize) -> Result<Value, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(json!(text)),
        TextOr::List(parts) => parts,
    };
    let parts = parts.iter().enumerate().map(|(index, part)| {
        part.check(&format!("messages[{message}].content[{index}]"))?;
        Ok(json!({ "type": "text", "text": part.text }))
    });
    parts.collect()
}

/// The inputs of a prompt besides the messages.
#[derive(Default)]
pub(crate) struct Rendering<'a> {
    pub(crate) tools: Option<&'a Tools>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
    pub(crate) documents: Option<&'a Value>,
    pub(crate) variables: Option<&'a Map<String, Value>>,
}

/// The form in which the model writes calls.
pub(crate) fn call_form(model: &ServedModel) -> CallForm {
    match &model.conversation {
        Conversation::Template(template) => template.call_form(),
        Conversation::ContinueLast | Conversation::Unavailable(_) => CallForm::Plain,
    }
}

/// The tags around the model's thinking, if its template has any.
pub(crate) fn reasoning_tags(model: &ServedModel) -> Option<ReasoningTags> {
    match &model.conversation {
        Conversation::Template(template) => template.reasoning_tags(),
        Conversation::ContinueLast | Conversation::Unavailable(_) => None,
    }
}

/// The control token with this text.
pub(crate) fn control_token(model: &ServedModel, text: &str) -> Option<TokenId> {
    let tokenizer = model.tokenizer().ok()?;
    let token = tokenizer.special_token(text)?;
    tokenizer.is_special(token).then_some(token)
}

fn reads_documents(model: &ServedModel, with_tools: bool) -> bool {
    match &model.conversation {
        Conversation::Template(template) => template
            .source(with_tools)
            .is_some_and(|source| source.contains("documents")),
        Conversation::ContinueLast | Conversation::Unavailable(_) => false,
    }
}

/// A conversation as the text and the tokens that the model continues.
pub(crate) fn render_messages(
    model: &ServedModel,
    messages: &[ChatMessage],
    rendering: &Rendering<'_>,
) -> Result<(String, Vec<TokenId>), ApiError> {
    if rendering.add_generation_prompt && rendering.continue_final_message {
        return Err(ApiError::invalid(
            "continue_final_message",
            "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
        ));
    }
    let tokenizer = model.tokenizer()?;
    let wrong = |error: bitnet_tokenizers::Error| {
        let field = match error {
            bitnet_tokenizers::Error::ReservedVariable { .. } => "chat_template_kwargs",
            _ => "messages",
        };
        ApiError::invalid(field, format!("{error}."))
    };
    if rendering.documents.is_some() && !reads_documents(model, rendering.tools.is_some()) {
        let message = "The model's template does not read documents: put them into a message.";
        return Err(ApiError::unsupported(Some("documents"), message));
    }
    match &model.conversation {
        Conversation::Template(template) => {
            let tools_json = rendering.tools.map(Tools::json);
            let options = RenderOptions {
                add_generation_prompt: rendering.add_generation_prompt,
                continue_final_message: rendering.continue_final_message,
                tools: tools_json.as_ref().filter(|_| template.reads_tools()),
                documents: rendering.documents,
                variables: rendering.variables,
                now: i64::try_from(unix_time()).ok(),
            };
            let messages = readable(messages, template, rendering.tools);
            let chat = template.render(&messages, options).map_err(wrong)?;
            let tokens = tokenizer.encode_chat(&chat).map_err(wrong)?;
            Ok((chat.text().to_owned(), tokens))
        }
        Conversation::ContinueLast => {
            let text = messages.last().map_or_else(String::new, ChatMessage::text);
            let text = text.trim().to_owned();
            let tokens = tokenizer
                .encode_prompt(&text, PromptBos::AsModel, false)
                .map_err(wrong)?;
            Ok((text, tokens))
        }
        Conversation::Unavailable(reason) => Err(ApiError::unsupported(
            Some("messages"),
            format!("{reason}."),
        )),
    }
}

/// The messages; calls and tools that the template does not read are written into their texts.
fn readable<'m>(
    messages: &'m [ChatMessage],
    template: &ChatTemplate,
    tools: Option<&Tools>,
) -> Cow<'m, [ChatMessage]> {
    let mut messages = Cow::Borrowed(messages);
    let has_calls = messages
        .iter()
        .any(|message| !message.tool_calls().is_empty());
    if has_calls && !template.reads_tool_calls(tools.is_some()) {
        for message in messages.to_mut() {
            let calls = tools::written(message.tool_calls());
            message.set_text(message.text() + &calls);
            message.remove("tool_calls");
        }
    }
    if let Some(tools) = tools.filter(|_| !template.reads_tools()) {
        introduce(tools, messages.to_mut());
    }
    messages
}

/// Puts the introduction of the tools before all messages.
fn introduce(tools: &Tools, messages: &mut Vec<ChatMessage>) {
    let introduction = tools.introduction();
    match messages
        .first_mut()
        .filter(|first| first.role() == "system")
    {
        Some(first) => first.set_text(format!("{}\n\n{introduction}", first.text())),
        None => messages.insert(0, ChatMessage::new("system", introduction)),
    }
}
