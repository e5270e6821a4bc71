//! Chat templates: a conversation as the text that a model was trained to continue.
//!
//! # What a message cannot do
//! The control tokens of a prompt come from its template alone. Besides the text, a
//! [`RenderedChat`] holds the ranges in which text is never parsed as control tokens
//! ([`RenderedChat::guards`]): all text from messages, tools and other inputs. So `<|eot_id|>` in a
//! message reaches the model as its characters. Roles are plain words.

mod calls;
mod formats;
mod message;
mod reasoning;
mod render;
pub(crate) mod rendered;

use crate::error::{Error, Result, quoted};
use crate::spec::is_bitnet_b158_architecture;
use crate::tokenizer::Tokenizer;

pub use calls::CallForm;
use formats::Format;
pub use message::ChatMessage;
pub use reasoning::{ReasoningSplitter, ReasoningStart, ReasoningTags, SplitText};
use render::Jinja;
pub use rendered::{RenderOptions, RenderedChat};

/// The chat template of a model, and the reason for choosing it.
pub struct ChatTemplate {
    template: Template,
    /// The template for conversations with tools, if the model has a separate one.
    tool_use: Option<Jinja>,
    reason: String,
    /// Jinja source to write on conversion, if this template overrides the file's.
    correction: Option<&'static str>,
}

/// The format of BitNet b1.58 2B4T in Jinja, for programs that read templates from files.
const BITNET_JINJA: &str = "{% for message in messages %}{% set content = message['role'] | capitalize + ': ' \
    + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
    {% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// A text that occurs only in the template of the official 2B-4T GGUF file, which belongs to
/// another model.
const LEFTOVER_MARK: &str = "BITNETAssistant";

enum Template {
    BuiltIn { format: Format, bos: String },
    Jinja(Box<Jinja>),
}

impl ChatTemplate {
    /// Chooses the template of a model of `architecture` (as in `general.architecture`); `None` if
    /// no rule applies.
    ///
    /// In this order:
    /// 1. The format of BitNet b1.58 2B4T, for its architecture with Llama 3's vocabulary, if the
    ///    file has no template, or the template of the official GGUF file, which is wrong.
    /// 2. The file's own template.
    /// 3. The format that the vocabulary's control tokens belong to.
    ///
    /// # Errors
    /// If the file's template does not compile.
    pub fn detect(architecture: &str, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = tokenizer.chat_template();
        let is_leftover = source.is_some_and(|source| source.contains(LEFTOVER_MARK));
        let is_bitnet = is_bitnet_b158_architecture(architecture) && has_llama_3(tokenizer);
        let mut chosen = if is_bitnet && (source.is_none() || is_leftover) {
            let leftover = match is_leftover {
                true => "; the template in the file is another model's and is not used",
                false => "",
            };
            let reason =
                format!("architecture {architecture} with the vocabulary of Llama 3{leftover}");
            Some(Self {
                correction: Some(BITNET_JINJA),
                ..Self::built_in(Format::BitNet, tokenizer, reason)
            })
        } else if let Some(source) = source {
            Some(Self::jinja(source, tokenizer, "the file's own template")?)
        } else {
            let reason = "the file has no template; its control tokens are these".to_owned();
            by_vocabulary(tokenizer).map(|format| Self::built_in(format, tokenizer, reason))
        };
        if let (Some(chosen), Some(source)) =
            (&mut chosen, tokenizer.named_chat_template("tool_use"))
        {
            chosen.tool_use = Some(Jinja::new(source, tokenizer)?);
        }
        Ok(chosen)
    }

    /// The built-in template with this name: one of [`names`](Self::names).
    ///
    /// # Errors
    /// If there is none.
    pub fn by_name(name: &str, tokenizer: &Tokenizer) -> Result<Self> {
        match Format::ALL.into_iter().find(|format| format.name() == name) {
            Some(format) => Ok(Self::built_in(
                format,
                tokenizer,
                "requested by name".to_owned(),
            )),
            None => Err(Error::UnknownTemplate {
                name: quoted(name),
                known: Self::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A template in Jinja.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn from_jinja(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::jinja(source, tokenizer, "given as Jinja")
    }

    fn jinja(source: &str, tokenizer: &Tokenizer, reason: &str) -> Result<Self> {
        Ok(Self {
            template: Template::Jinja(Box::new(Jinja::new(source, tokenizer)?)),
            tool_use: None,
            reason: reason.to_owned(),
            correction: None,
        })
    }

    /// The names of the built-in templates.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Format::ALL.into_iter().map(Format::name)
    }

    fn built_in(format: Format, tokenizer: &Tokenizer, reason: String) -> Self {
        let bos = tokenizer
            .bos()
            .map_or(&[][..], |id| tokenizer.token_bytes(id));
        let bos = String::from_utf8_lossy(bos).into_owned();
        Self {
            template: Template::BuiltIn { format, bos },
            tool_use: None,
            reason,
            correction: None,
        }
    }

    /// The name of a built-in template, or `jinja`.
    pub fn name(&self) -> &'static str {
        match &self.template {
            Template::BuiltIn { format, .. } => format.name(),
            Template::Jinja(_) => "jinja",
        }
    }

    /// The reason for choosing this template, as a clause for people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The correct template in Jinja for a file of this model, if [`detect`](Self::detect)
    /// overrides the file's template.
    pub fn correction(&self) -> Option<&'static str> {
        self.correction
    }

    /// The Jinja source that renders conversations, with tools or without; `None` for a built-in
    /// format.
    pub fn source(&self, with_tools: bool) -> Option<&str> {
        self.chosen(with_tools).map(Jinja::source)
    }

    fn chosen(&self, with_tools: bool) -> Option<&Jinja> {
        match (&self.template, &self.tool_use) {
            (_, Some(jinja)) if with_tools => Some(jinja),
            (Template::Jinja(jinja), _) => Some(jinja),
            (Template::BuiltIn { .. }, _) => None,
        }
    }

    /// Whether the template lists the tools. The built-in templates do not.
    pub fn reads_tools(&self) -> bool {
        self.source(true)
            .is_some_and(|source| source.contains("tools"))
    }

    /// Whether the template writes the `tool_calls` of messages, in conversations with tools or
    /// without. If it does not, the content must hold the calls.
    pub fn reads_tool_calls(&self, with_tools: bool) -> bool {
        self.source(with_tools)
            .is_some_and(|source| source.contains("tool_calls"))
    }

    /// The form in which the model writes calls of tools.
    pub fn call_form(&self) -> CallForm {
        match self.source(true) {
            Some(source) if self.reads_tools() => CallForm::of_template(source),
            _ => CallForm::Plain,
        }
    }

    /// The tags around the model's reasoning, if the template has any.
    pub fn reasoning_tags(&self) -> Option<ReasoningTags> {
        self.source(false).and_then(ReasoningTags::of_template)
    }

    /// Renders the conversation as text for the model.
    ///
    /// # Errors
    /// If there are no messages; a role is not a plain word; a variable has a reserved name; the
    /// last message has no text to continue; a Jinja template raises an exception or exceeds its
    /// limits.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: RenderOptions<'_>,
    ) -> Result<RenderedChat> {
        if messages.is_empty() {
            return Err(Error::NoMessages);
        }
        messages.iter().try_for_each(ChatMessage::check_role)?;
        render::check_variables(options.variables)?;
        match (self.chosen(options.tools.is_some()), &self.template) {
            (Some(jinja), _) => jinja.render(messages, options),
            (None, Template::BuiltIn { format, bos }) if options.continue_final_message => {
                Ok(format.render_open(bos, messages))
            }
            (None, Template::BuiltIn { format, bos }) => {
                Ok(format.render(bos, messages, options.add_generation_prompt))
            }
            (None, Template::Jinja(jinja)) => jinja.render(messages, options),
        }
    }
}

fn has_llama_3(tokenizer: &Tokenizer) -> bool {
    has_all(tokenizer, &["<|begin_of_text|>", "<|eot_id|>"])
}

fn has_all(tokenizer: &Tokenizer, tokens: &[&str]) -> bool {
    tokens
        .iter()
        .all(|text| tokenizer.special_token(text).is_some())
}

/// The format that the control tokens belong to.
fn by_vocabulary(tokenizer: &Tokenizer) -> Option<Format> {
    let header = ["<|start_header_id|>", "<|end_header_id|>"];
    if has_llama_3(tokenizer) && has_all(tokenizer, &header) {
        Some(Format::Llama3)
    } else if has_all(tokenizer, &["<|im_start|>", "<|im_end|>"]) {
        Some(Format::ChatMl)
    } else if has_all(tokenizer, &["<|user|>", "<|assistant|>", "<|endoftext|>"]) {
        Some(Format::Falcon3)
    } else {
        None
    }
}
