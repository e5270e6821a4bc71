//! A Jinja chat template that receives messages as in transformers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Map, Value as Json, json};

use super::message::{ChatMessage, json_bytes};
use super::rendered::{RenderOptions, RenderedChat};
use crate::error::{Error, Result, quoted};
use crate::jinja::{Fault, Inputs, Key, Template, TemplateLimits, Text, Value, foreign_value};
use crate::token::TokenId;
use crate::tokenizer::Tokenizer;

/// The field names that clients use for a message's reasoning. Templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Reserved variables: templates use these names, so no option may set them.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Marks the end of a message to continue, until the text is cut there.
const CONTINUE_HERE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled template, the special tokens that it may write, and its observed features.
pub(crate) struct Jinja {
    template: Template,
    tokens: Vec<(&'static str, String)>,
    traits: Traits,
}

/// The features of a template, found by rendering small conversations.
#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    /// It accepts contents that are lists of parts.
    reads_parts: bool,
    /// It accepts only such contents.
    wants_parts: bool,
    /// It writes the arguments of calls correctly only if they are a string.
    wants_argument_texts: bool,
}

impl Jinja {
    pub(crate) fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::with_limits(source, tokenizer, TemplateLimits::default())
    }

    pub(crate) fn with_limits(
        source: &str,
        tokenizer: &Tokenizer,
        limits: TemplateLimits,
    ) -> Result<Self> {
        let template = guarded(|| Template::new(source, limits))?;
        let named = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unknown()),
            ("pad_token", tokenizer.padding()),
        ];
        let text = |id: TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        let tokens = named
            .into_iter()
            .filter_map(|(name, id)| Some((name, text(id?))));
        let mut this = Self {
            template,
            tokens: tokens.collect(),
            traits: Traits::default(),
        };
        this.traits = this.find_traits();
        Ok(this)
    }

    /// The source of the template.
    pub(crate) fn source(&self) -> &str {
        self.template.source()
    }

    /// Renders messages whose roles are plain words.
    ///
    /// If the template raises an exception for system messages after the first message, they are
    /// joined to the first.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        options: RenderOptions<'_>,
    ) -> Result<RenderedChat> {
        let rendered = self.render_once(self.traits, messages, options);
        match (&rendered, with_one_system_message(messages)) {
            (Err(Error::Template(_)), Some(merged)) => {
                self.render_once(self.traits, &merged, options).or(rendered)
            }
            _ => rendered,
        }
    }

    fn render_once(
        &self,
        traits: Traits,
        messages: &[ChatMessage],
        options: RenderOptions<'_>,
    ) -> Result<RenderedChat> {
        let mut messages: Vec<_> = messages
            .iter()
            .map(|message| traits.prepared(message))
            .collect();
        if options.continue_final_message {
            mark_end(&mut messages)?;
        }
        let bytes = messages.iter().map(ChatMessage::num_bytes).sum::<usize>()
            + options.tools.map_or(0, json_bytes)
            + options.documents.map_or(0, json_bytes)
            + options
                .variables
                .map_or(0, |map| map.values().map(json_bytes).sum());
        let rendered = guarded(|| {
            let values = messages
                .iter()
                .map(message_value)
                .collect::<std::result::Result<_, _>>()?;
            let inputs = Inputs {
                variables: self.variables(Value::list(values)?, options)?,
                more: more_variables(options.variables)?,
                now: options.now,
                num_messages: messages.len(),
                bytes,
            };
            self.template.render(inputs)
        })?;
        let chat = RenderedChat::new(
            rendered.as_str().to_owned(),
            rendered.foreign_ranges().to_vec(),
        );
        match options.continue_final_message {
            true => cut_at_mark(chat),
            false => Ok(chat),
        }
    }

    fn variables(
        &self,
        messages: Value,
        options: RenderOptions<'_>,
    ) -> std::result::Result<Vec<(&'static str, Value)>, Fault> {
        let given = |json: Option<&Json>| json.map_or(Ok(Value::None), foreign_value);
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(name, text)| (*name, Value::text(Text::own(text.as_str()))));
        let mut variables: Vec<_> = tokens.collect();
        variables.extend([
            ("messages", messages),
            ("tools", given(options.tools)?),
            ("documents", given(options.documents)?),
            (
                "add_generation_prompt",
                Value::Bool(options.add_generation_prompt),
            ),
        ]);
        Ok(variables)
    }

    fn find_traits(&self) -> Traits {
        let render = |messages: &[Json], traits: Traits| {
            let messages = messages
                .iter()
                .filter_map(|message| message.as_object().cloned());
            let messages = messages.filter_map(|fields| ChatMessage::from_fields(fields).ok());
            let options = RenderOptions {
                now: Some(0),
                ..RenderOptions::default()
            };
            let chat = self
                .render_once(traits, &messages.collect::<Vec<_>>(), options)
                .ok()?;
            Some(chat.text().to_owned())
        };
        let user = |content: Json| json!({"role": "user", "content": content});
        let parts = Traits {
            reads_parts: true,
            ..Traits::default()
        };
        let plain = render(&[user(json!("needle"))], parts);
        let in_parts = render(&[user(json!([{"type": "text", "text": "needle"}]))], parts);
        let shows = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            text.contains("needle") && !text.contains("'needle'") && !text.contains("\"needle\"")
        };
        let wants_parts = shows(&in_parts) && !shows(&plain);
        let function = json!({"name": "f", "arguments": {"key": "needle"}});
        let call = json!({"id": "call00000", "type": "function", "function": function});
        let calling = json!({"role": "assistant", "content": "", "tool_calls": [call]});
        let conversation = [user(json!("a")), calling];
        let texts = Traits {
            wants_argument_texts: true,
            ..Traits::default()
        };
        let is_json = |text: &Option<String>| {
            text.as_ref()
                .is_some_and(|text| text.contains(r#""key": "needle""#))
        };
        let is_python = |text: &Option<String>| match text {
            Some(text) => text.contains("'key': 'needle'"),
            None => true,
        };
        let with_objects = render(&conversation, Traits::default());
        Traits {
            reads_parts: wants_parts || plain.is_some() && plain == in_parts,
            wants_parts,
            wants_argument_texts: self.source().contains("tool_calls")
                && is_python(&with_objects)
                && is_json(&render(&conversation, texts)),
        }
    }
}

impl Traits {
    /// A message in the form that the template reads.
    fn prepared(self, message: &ChatMessage) -> ChatMessage {
        let mut message = message.clone();
        match message.fields().get("content") {
            Some(Json::Array(_)) if !self.reads_parts => message.set_text(message.text()),
            Some(Json::String(text)) if self.wants_parts => {
                let parts = json!([{"type": "text", "text": text}]);
                message.fields_mut().insert("content".to_owned(), parts);
            }
            _ => {}
        }
        let calls = message
            .fields_mut()
            .get_mut("tool_calls")
            .and_then(Json::as_array_mut);
        for call in calls.into_iter().flatten() {
            let function = if call["function"].is_object() {
                &mut call["function"]
            } else {
                call
            };
            if let Some(arguments) = function.get_mut("arguments") {
                self.convert_arguments(arguments);
            }
        }
        alias_reasoning(&mut message);
        message
    }

    /// Clients send arguments as a string of JSON or as an object; most templates expect objects.
    fn convert_arguments(self, arguments: &mut Json) {
        match arguments {
            Json::String(text) if !self.wants_argument_texts => {
                let text = if text.trim().is_empty() { "{}" } else { text };
                if let Ok(object @ Json::Object(_)) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
            Json::Object(_) if self.wants_argument_texts => {
                *arguments = Json::String(python_json(arguments));
            }
            _ => {}
        }
    }
}

/// Runs the template engine. A panic in it is our bug; it must end only this request.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, Fault>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|fault| Error::Template(fault.to_string())),
        Err(_) => Err(Error::Template("the template engine failed".to_owned())),
    }
}

/// A message as a value: its role is a plain word, all other fields are foreign.
fn message_value(message: &ChatMessage) -> std::result::Result<Value, Fault> {
    let entry = |(name, value): (&String, &Json)| {
        let value = match name.as_str() {
            "role" => Value::text(Text::own(message.role())),
            _ => foreign_value(value)?,
        };
        Ok((Key::text(Text::foreign(name.as_str())), value))
    };
    Value::dict(
        message
            .fields()
            .iter()
            .map(entry)
            .collect::<std::result::Result<_, Fault>>()?,
    )
}

fn more_variables(
    variables: Option<&Map<String, Json>>,
) -> std::result::Result<Vec<(String, Value)>, Fault> {
    let variables = variables.into_iter().flatten();
    variables
        .map(|(name, value)| Ok((name.clone(), foreign_value(value)?)))
        .collect()
}

/// Refuses options that would replace the conversation itself.
pub(crate) fn check_variables(variables: Option<&Map<String, Json>>) -> Result<()> {
    let mut names = variables.into_iter().flat_map(Map::keys);
    match names.find(|name| RESERVED.contains(&name.as_str())) {
        Some(name) => Err(Error::ReservedVariable { name: quoted(name) }),
        None => Ok(()),
    }
}

/// As transformers do it: reasoning of any name is copied to `reasoning_content`, and to `thinking`
/// if the message has no such field.
fn alias_reasoning(message: &mut ChatMessage) {
    let fields = message.fields_mut();
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return;
    };
    if !fields.contains_key("thinking") {
        fields.shift_insert(0, "thinking".to_owned(), reasoning.clone());
    }
    fields.insert("reasoning_content".to_owned(), reasoning);
}

/// The messages with all system messages joined to the first message, if one comes after the first.
fn with_one_system_message(messages: &[ChatMessage]) -> Option<Vec<ChatMessage>> {
    let is_system = |message: &&ChatMessage| message.role() == "system";
    messages.iter().skip(1).find(is_system)?;
    let texts: Vec<_> = messages
        .iter()
        .filter(is_system)
        .map(ChatMessage::text)
        .collect();
    let rest = messages.iter().filter(|message| !is_system(message));
    let first = ChatMessage::new("system", texts.join("\n\n"));
    Some(std::iter::once(first).chain(rest.cloned()).collect())
}

fn mark_end(messages: &mut [ChatMessage]) -> Result<()> {
    let Some(last) = messages.last_mut() else {
        return Err(Error::NoMessages);
    };
    match last.fields_mut().get_mut("content") {
        Some(Json::String(text)) => text.push_str(CONTINUE_HERE),
        Some(Json::Array(parts)) => {
            let texts = parts
                .iter_mut()
                .rev()
                .find_map(|part| match part.get_mut("text") {
                    Some(Json::String(text)) => Some(text),
                    _ => None,
                });
            texts
                .ok_or(Error::NothingToContinue)?
                .push_str(CONTINUE_HERE);
        }
        _ => return Err(Error::NothingToContinue),
    }
    Ok(())
}

/// The chat up to the end of its last message.
fn cut_at_mark(chat: RenderedChat) -> Result<RenderedChat> {
    let Some(place) = chat.text().rfind(CONTINUE_HERE.trim_end()) else {
        return Err(Error::NothingToContinue);
    };
    let keeps_space = chat.text()[place..].starts_with(CONTINUE_HERE);
    let end = match keeps_space {
        true => place,
        false => chat.text()[..place].trim_end().len(),
    };
    Ok(chat.cut(end))
}

/// JSON as Python's `json.dumps` writes it.
fn python_json(value: &Json) -> String {
    let written = || {
        let limits = TemplateLimits::default();
        crate::jinja::plain_json(&foreign_value(value)?, &limits, json_bytes(value))
    };
    written().map_or_else(|_| value.to_string(), |text| text.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenizerSpec;

    fn tokenizer() -> Tokenizer {
        let spec = TokenizerSpec {
            model: "llama".into(),
            tokens: vec!["a".into()],
            ..TokenizerSpec::default()
        };
        Tokenizer::from_spec(&spec).expect("a tokenizer")
    }

    fn problem(source: &str, limits: TemplateLimits) -> String {
        let messages = [ChatMessage::new("user", "a")];
        let template = Jinja::with_limits(source, &tokenizer(), limits);
        let rendered = template.and_then(|jinja| jinja.render(&messages, RenderOptions::default()));
        rendered.expect_err("an error").to_string()
    }

    /// The function exists only in tests, and panics.
    #[test]
    fn a_panic_in_the_engine_fails_only_that_chat() {
        let error = problem("{{ panic_for_test() }}", TemplateLimits::default());
        assert_eq!(error, "chat template: the template engine failed");
        let fine = Jinja::new("{{ messages[0].content }}", &tokenizer()).expect("a template");
        let chat = fine.render(&[ChatMessage::new("user", "a")], RenderOptions::default());
        assert_eq!(chat.expect("a rendered chat").text(), "a");
    }

    #[test]
    fn each_limit_is_enforced_and_named() {
        let limits = TemplateLimits::default();
        let source_bytes = TemplateLimits {
            source_bytes: 4,
            ..limits
        };
        let nesting = TemplateLimits {
            nesting: 4,
            ..limits
        };
        let depth = TemplateLimits { depth: 4, ..limits };
        let steps = TemplateLimits {
            steps: 10,
            steps_per_message: 0,
            ..limits
        };
        let value = TemplateLimits {
            value_bytes: 20,
            ..limits
        };
        let total = TemplateLimits {
            total_bytes: 0,
            ..limits
        };
        for (source, limits, text) in [
            (
                "abcde",
                source_bytes,
                "the template has 5 bytes, the maximum is 4",
            ),
            (
                "{{ [[[[1]]]] }}",
                nesting,
                "the template nests deeper than 4 levels (line 1)",
            ),
            (
                "{{ [[[[1]]]] }}",
                depth,
                "the template's evaluation nests deeper than 4 levels (line 1)",
            ),
            (
                "{% for i in range(99) %}{% endfor %}",
                steps,
                "the template takes too many steps (line 1)",
            ),
            (
                "{{ 'x' * 1000 }}",
                value,
                "the template builds a value of 1000 bytes, the maximum is 276 (line 1)",
            ),
            (
                "{% for i in range(99) %}{% set x = 'y' * 99 %}{% endfor %}",
                total,
                "the template builds more than 2048 bytes in all (line 1)",
            ),
        ] {
            assert_eq!(problem(source, limits), format!("chat template: {text}"));
        }
    }

    /// Half of the stack that Rust gives a thread. The deepest allowed templates, and some that are
    /// refused.
    #[test]
    fn templates_at_the_limits_fit_into_a_small_stack() {
        let brackets =
            |depth: usize| format!("{{{{ {}1{} }}}}", "[".repeat(depth), "]".repeat(depth));
        let sources = [
            brackets(45),
            brackets(300),
            format!("{{{{ 1{} }}}}", " + 1".repeat(90)),
            format!("{{{{ x{} }}}}", "|string".repeat(90)),
            format!("{}{}", "{% if true %}".repeat(90), "{% endif %}".repeat(90)),
            "{% macro m(n) %}{{ n }}{{ m([n]) }}{% endmacro %}{{ m(1) }}".to_owned(),
            "{% set ns = namespace(l=[]) %}{% for a in range(250) %}{% set ns.l = [ns.l] %}\
             {% endfor %}{{ ns.l }}{{ ns.l | tojson }}{{ ns.l == [ns.l] }}"
                .to_owned(),
        ];
        let render_all = move || {
            let messages = [ChatMessage::new("user", "a")];
            let render = |source: &String| {
                let jinja = Jinja::new(source, &tokenizer())?;
                jinja.render(&messages, RenderOptions::default())
            };
            sources
                .iter()
                .map(|source| render(source).is_ok())
                .collect::<Vec<_>>()
        };
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        let rendered = thread
            .spawn(render_all)
            .expect("a thread")
            .join()
            .expect("no panic");
        assert_eq!(rendered, [true, false, true, true, true, false, true]);
    }
}
