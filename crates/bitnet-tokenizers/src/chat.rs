//! Chat templates: a conversation as the text that a model was trained to continue.
//!
//! # What a message cannot do
//! The control tokens of a prompt come from its template alone. A [`RenderedChat`] carries, beside
//! the text, the ranges in which no control token may be read ([`RenderedChat::guards`]): for the
//! built-in templates the contents of the messages, for a Jinja template every place in a content
//! where a control token is written out or begins at its end. So `<|eot_id|>` in a message reaches
//! the model as the characters it consists of. Roles are plain words.
//!
//! The bound of this: a Jinja template that itself edits the inside of a content (deletes
//! characters, changes their case) could form a control token out of what was none.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result, quoted};
use crate::jinja::Jinja;
use crate::spec::is_bitnet_b158_architecture;
use crate::{TokenId, Tokenizer};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// How a conversation is rendered.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions<'a> {
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The tools the model may call, as JSON; only Jinja templates read them.
    pub tools: Option<&'a Value>,
    /// The time that `strftime_now` of Jinja templates tells, in seconds since 1970 (UTC). Without
    /// it a template that asks for the time is an error, for this crate reads no clock.
    pub now: Option<i64>,
}

impl Default for RenderOptions<'_> {
    /// The assistant is to answer; no tools, no clock.
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            now: None,
        }
    }
}

/// A rendered conversation; [`Tokenizer::encode_chat`] makes tokens of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    guards: Vec<Range<usize>>,
}

impl RenderedChat {
    /// `guards` in ascending order, not overlapping.
    pub(crate) fn new(text: String, guards: Vec<Range<usize>>) -> Self {
        Self { text, guards }
    }

    /// The text. To encode it as it stands with `parse_special` would obey what messages say: see
    /// the module.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The byte ranges of the text in which no control token may be read, ascending.
    pub fn guards(&self) -> &[Range<usize>] {
        &self.guards
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn push_content(&mut self, content: &str) {
        if !content.is_empty() {
            let start = self.text.len();
            self.text.push_str(content);
            self.guards.push(start..self.text.len());
        }
    }
}

/// A chat template, and why it was chosen.
pub struct ChatTemplate {
    template: Template,
    reason: String,
    /// In Jinja, where it was chosen although the file has another or none.
    correction: Option<&'static str>,
}

/// The format of BitNet b1.58 2B4T for those who read templates out of files.
const BITNET_JINJA: &str = "{% for message in messages %}{% set content = message['role'] | capitalize + ': ' \
    + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
    {% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

enum Template {
    BuiltIn { format: Format, bos: String },
    Jinja(Box<Jinja>),
}

/// The formats known by heart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BitNet,
    Llama3,
    ChatMl,
    Falcon3,
    FalconE,
}

impl Format {
    const ALL: [Self; 5] = [
        Self::BitNet,
        Self::Llama3,
        Self::ChatMl,
        Self::Falcon3,
        Self::FalconE,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::BitNet => "bitnet-2b4t",
            Self::Llama3 => "llama3",
            Self::ChatMl => "chatml",
            Self::Falcon3 => "falcon3",
            Self::FalconE => "falcon-e",
        }
    }

    fn render(
        self,
        bos: &str,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> RenderedChat {
        let mut out = RenderedChat::new(String::new(), Vec::new());
        if matches!(self, Self::BitNet | Self::Llama3) {
            out.push(bos);
        }
        for ChatMessage { role, content } in messages {
            self.open_turn(role, &mut out);
            let content = if matches!(self, Self::BitNet | Self::Llama3) {
                content.trim()
            } else {
                content
            };
            out.push_content(content);
            out.push(match self {
                Self::BitNet | Self::Llama3 => "<|eot_id|>",
                Self::ChatMl => "<|im_end|>\n",
                Self::Falcon3 | Self::FalconE => "\n",
            });
        }
        if add_generation_prompt {
            self.open_turn("assistant", &mut out);
        }
        out
    }

    fn open_turn(self, role: &str, out: &mut RenderedChat) {
        match self {
            Self::BitNet => out.push(&format!("{}: ", capitalized(role))),
            Self::Llama3 => out.push(&format!("<|start_header_id|>{role}<|end_header_id|>\n\n")),
            Self::ChatMl => out.push(&format!("<|im_start|>{role}\n")),
            Self::Falcon3 => out.push(&format!("<|{role}|>\n")),
            Self::FalconE => out.push(&format!("{role}\n")),
        }
    }
}

impl ChatTemplate {
    /// Chooses the template of a model of `architecture` (as in `general.architecture`); none if
    /// nothing tells.
    ///
    /// In this order:
    /// 1. BitNet b1.58 2B4T (its architecture names, with Llama 3's vocabulary) has its own format,
    ///    whatever its file says: the template inside the official GGUF is a leftover. Only a
    ///    template that is exactly another of the built-in formats, as a fine-tune's may be, is
    ///    believed.
    /// 2. The file's own template. Where it renders sample conversations to the same text as a
    ///    built-in format does, that one is used in its place.
    /// 3. The format that the vocabulary's control tokens are made for.
    ///
    /// # Errors
    /// The file's template does not compile.
    pub fn detect(architecture: &str, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let has = |text| tokenizer.special_token(text).is_some();
        let has_llama_3 = has("<|begin_of_text|>") && has("<|eot_id|>");
        let jinja = tokenizer
            .chat_template()
            .map(|source| Jinja::new(source, tokenizer));
        let same = match &jinja {
            Some(Ok(jinja)) => same_format(jinja, tokenizer),
            _ => None,
        };
        let built_in = |format, reason: String| Ok(Some(Self::built_in(format, tokenizer, reason)));
        if let Some(format) = same {
            return built_in(
                format,
                format!(
                    "the file's template renders exactly as {} does",
                    format.name()
                ),
            );
        }
        if is_bitnet_b158_architecture(architecture) && has_llama_3 {
            let leftover = if jinja.is_some() {
                "; the template in the file is ignored"
            } else {
                ""
            };
            let reason =
                format!("architecture {architecture} with the vocabulary of Llama 3{leftover}");
            let correction = Some(BITNET_JINJA);
            return Ok(Some(Self {
                correction,
                ..Self::built_in(Format::BitNet, tokenizer, reason)
            }));
        }
        if let Some(jinja) = jinja {
            let reason = "the file's own template".to_owned();
            return Ok(Some(Self {
                template: Template::Jinja(Box::new(jinja?)),
                reason,
                correction: None,
            }));
        }
        let by_vocabulary = [
            (
                Format::Llama3,
                has_llama_3 && has("<|start_header_id|>") && has("<|end_header_id|>"),
            ),
            (Format::ChatMl, has("<|im_start|>") && has("<|im_end|>")),
            (
                Format::Falcon3,
                has("<|user|>") && has("<|assistant|>") && has("<|endoftext|>"),
            ),
        ];
        match by_vocabulary.into_iter().find(|(_, fits)| *fits) {
            Some((format, _)) => built_in(
                format,
                "the file has no template; its control tokens are these".to_owned(),
            ),
            None => Ok(None),
        }
    }

    /// The built-in template with this name: one of [`names`](Self::names).
    ///
    /// # Errors
    /// There is none.
    pub fn by_name(name: &str, tokenizer: &Tokenizer) -> Result<Self> {
        match Format::ALL.into_iter().find(|format| format.name() == name) {
            Some(format) => Ok(Self::built_in(
                format,
                tokenizer,
                "asked for by name".to_owned(),
            )),
            None => {
                let known: Vec<_> = Self::names().collect();
                Err(Error::UnknownTemplate {
                    name: quoted(name),
                    known: known.join(", "),
                })
            }
        }
    }

    /// A template in Jinja.
    ///
    /// # Errors
    /// It does not compile.
    pub fn from_jinja(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let template = Template::Jinja(Box::new(Jinja::new(source, tokenizer)?));
        Ok(Self {
            template,
            reason: "given as Jinja".to_owned(),
            correction: None,
        })
    }

    /// The names of the built-in templates.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Format::ALL.into_iter().map(Format::name)
    }

    fn built_in(format: Format, tokenizer: &Tokenizer, reason: String) -> Self {
        let bos = token_text(tokenizer, tokenizer.bos());
        Self {
            template: Template::BuiltIn { format, bos },
            reason,
            correction: None,
        }
    }

    /// The name of the template: that of a built-in one, or `jinja`.
    pub fn name(&self) -> &'static str {
        match &self.template {
            Template::BuiltIn { format, .. } => format.name(),
            Template::Jinja(_) => "jinja",
        }
    }

    /// Why this template was chosen, as a clause for people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What a file of this model should say, in Jinja, where [`detect`](Self::detect) knows better
    /// than the file does.
    pub fn correction(&self) -> Option<&'static str> {
        self.correction
    }

    /// Whether the template tells the model of its tools. The built-in ones do not.
    pub fn reads_tools(&self) -> bool {
        match &self.template {
            Template::BuiltIn { .. } => false,
            Template::Jinja(jinja) => jinja.source().contains("tools"),
        }
    }

    /// The conversation as the model is to see it.
    ///
    /// # Errors
    /// There are no messages; a role is no plain word; a Jinja template raises an exception, runs
    /// out of fuel, or writes absurdly much.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: RenderOptions<'_>,
    ) -> Result<RenderedChat> {
        if messages.is_empty() {
            return Err(Error::NoMessages);
        }
        if let Some(message) = messages
            .iter()
            .find(|message| !is_plain_word(&message.role))
        {
            return Err(Error::BadRole {
                role: quoted(&message.role),
            });
        }
        match &self.template {
            Template::BuiltIn { format, bos } => {
                Ok(format.render(bos, messages, options.add_generation_prompt))
            }
            Template::Jinja(jinja) => jinja.render(messages, options),
        }
    }
}

/// The built-in format that renders sample conversations to the same text as `jinja`.
fn same_format(jinja: &Jinja, tokenizer: &Tokenizer) -> Option<Format> {
    let turns = [("user", " a \n"), ("assistant", "\tb c\n"), ("user", "d")]
        .map(|(role, text)| ChatMessage::new(role, text));
    let system = std::iter::once(ChatMessage::new("system", " s\n\n"))
        .chain(turns.clone())
        .collect();
    let samples: [(Vec<ChatMessage>, bool); 4] = [
        (turns[..1].to_vec(), true),
        (turns[..2].to_vec(), false),
        (turns.to_vec(), true),
        (system, true),
    ];
    let rendered: Vec<_> = samples
        .iter()
        .map(|(messages, add_generation_prompt)| {
            let options = RenderOptions {
                add_generation_prompt: *add_generation_prompt,
                ..RenderOptions::default()
            };
            jinja.render(messages, options).ok().map(|chat| chat.text)
        })
        .collect::<Option<_>>()?;
    let bos = token_text(tokenizer, tokenizer.bos());
    Format::ALL.into_iter().find(|format| {
        let same = |((messages, prompt), text): (&(Vec<ChatMessage>, bool), &String)| {
            format.render(&bos, messages, *prompt).text == *text
        };
        samples.iter().zip(&rendered).all(same)
    })
}

pub(crate) fn token_text(tokenizer: &Tokenizer, id: Option<TokenId>) -> String {
    id.map_or_else(String::new, |id| {
        String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()
    })
}

fn is_plain_word(role: &str) -> bool {
    (1..=64).contains(&role.len())
        && role
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// As Python's `str.capitalize`, of a plain word.
fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_ascii_uppercase() + &rest.to_ascii_lowercase()
}
