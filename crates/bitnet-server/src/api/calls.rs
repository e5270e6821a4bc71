//! Calls of tools in the text of an answer: their grammar and their parser, for each form that
//! models are trained on.

use std::collections::HashMap;
use std::sync::Arc;

use bitnet_tokenizers::{CallForm, TokenId};
use serde_json::{Map, Value, json};

/// The marks that delimit a call in one form. A call in JSON is `begin`, `name`, the name,
/// `arguments`, an object, `end`; one in XML is `begin`, `name`, the name, `arguments`, parameters,
/// `end`.
struct Marks {
    /// Nothing else in the text of an answer contains it.
    begin: &'static str,
    name: &'static str,
    arguments: &'static str,
    end: &'static str,
}

const PLAIN: Marks = Marks {
    begin: "<tool_call>",
    name: "{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}</tool_call>",
};
const HERMES: Marks = Marks {
    begin: "<tool_call>",
    name: "\n{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}\n</tool_call>",
};
const QWEN_XML: Marks = Marks {
    begin: "<tool_call>",
    name: "\n<function=",
    arguments: ">\n",
    end: "</function>\n</tool_call>",
};
const LLAMA_3: Marks = Marks {
    begin: "{\"name\": \"",
    name: "",
    arguments: "\", \"parameters\": ",
    end: "}",
};

const MISTRAL_LIST: Marks = Marks {
    begin: TOOL_CALLS,
    name: "{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}",
};
const MISTRAL_NAMED: Marks = Marks {
    begin: TOOL_CALLS,
    name: "",
    arguments: "[ARGS]",
    end: "",
};

/// The mark before Mistral's calls, in its vocabularies a control token.
const TOOL_CALLS: &str = "[TOOL_CALLS]";

/// Finds the control token with a text.
pub(crate) type ControlTokens<'a> = &'a dyn Fn(&str) -> Option<TokenId>;

/// Whether the calls of a form have marks that are control tokens of this vocabulary, so that the
/// finder needs their names in the text.
pub(crate) fn has_control_tokens(form: CallForm, control: ControlTokens<'_>) -> bool {
    marks(form).begin == TOOL_CALLS && control(TOOL_CALLS).is_some()
}

/// The marks of a parameter in XML.
const PARAMETER: &str = "<parameter=";
const VALUE: &str = ">\n";
const PARAMETER_END: &str = "\n</parameter>\n";

fn marks(form: CallForm) -> &'static Marks {
    match form {
        CallForm::Plain => &PLAIN,
        CallForm::Hermes => &HERMES,
        CallForm::QwenXml => &QWEN_XML,
        CallForm::Llama3 => &LLAMA_3,
        CallForm::MistralList => &MISTRAL_LIST,
        CallForm::MistralNamed => &MISTRAL_NAMED,
    }
}

/// A call in the plain form.
pub(crate) fn written_call(name: &str, arguments: &str) -> String {
    format!(
        "{}{}{name}{}{arguments}{}",
        PLAIN.begin, PLAIN.name, PLAIN.arguments, PLAIN.end
    )
}

// ---- the grammar, in llguidance's dialect of Lark ----

/// A mark of Mistral's: a control token, or else its text.
fn mark(text: &str, control: ControlTokens<'_>) -> String {
    control(text).map_or_else(|| json!(text).to_string(), |id| format!("<[{id}]>"))
}

/// [`start`] for Mistral's forms.
fn start_of_mistral(
    form: CallForm,
    may_say: bool,
    may_repeat: bool,
    control: ControlTokens<'_>,
) -> String {
    let begin = mark(TOOL_CALLS, control);
    let (open, next, close) = match form {
        CallForm::MistralList => ("\" \"? \"[\"", "\", \"", "\"]\""),
        _ => ("", &*begin, ""),
    };
    let more = match may_repeat {
        true => format!("({next} call)*"),
        false => String::new(),
    };
    let calls = format!("calls: {open} call {more} {close}\n");
    match (may_say, control(TOOL_CALLS)) {
        (false, _) => format!("start: {begin} calls\n{calls}"),
        // Text has no control tokens.
        (true, Some(_)) => {
            format!("start: | TEXT | TEXT {begin} calls | {begin} calls\nTEXT: /(.|\\n)+/\n{calls}")
        }
        (true, None) => format!(
            "start: TEXT | begin calls\nbegin[lazy]: /(.|\\n)*/ {begin}\n\
             TEXT: /(.|\\n)*/ & ~/(.|\\n)*\\[TOOL_CALLS\\](.|\\n)*/\n{calls}"
        ),
    }
}

/// The rules for `start`. They refer to `call`, the rest of a call after the mark that begins it.
pub(crate) fn start(
    form: CallForm,
    may_say: bool,
    may_repeat: bool,
    control: ControlTokens<'_>,
) -> String {
    let begin = marks(form).begin;
    if begin == TOOL_CALLS {
        return start_of_mistral(form, may_say, may_repeat, control);
    }
    // A call of Llama 3 is the whole answer.
    if form == CallForm::Llama3 {
        let begin = json!(begin);
        return match may_say {
            true => format!(
                "start: TEXT | {begin} call\nTEXT: /(.|\\n)*/ & ~/\\{{\"name\": \"(.|\\n)*/\n"
            ),
            false => format!("start: {begin} call\n"),
        };
    }
    let more = match may_repeat {
        true => format!(" ({} call)*", json!(format!("\n{begin}"))),
        false => String::new(),
    };
    match may_say {
        // `begin` is lazy: it ends where the mark ends. A greedy rule for text would take the
        // beginning of the mark.
        true => format!(
            "start: TEXT | begin call{more}\nbegin[lazy]: /(.|\\n)*/ {}\n\
             TEXT: /(.|\\n)*/ & ~/(.|\\n)*{begin}(.|\\n)*/\n",
            json!(begin)
        ),
        false => format!("start: {} call{more}\n", json!(begin)),
    }
}

/// The rules for `call_INDEX`: a call of the function `name` without the mark that begins it, with
/// arguments that fit `schema`.
pub(crate) fn rules(
    form: CallForm,
    index: usize,
    name: &str,
    schema: &Value,
    control: ControlTokens<'_>,
) -> String {
    let marks = marks(form);
    if form == CallForm::MistralNamed {
        let (name, arguments) = (json!(name), mark(marks.arguments, control));
        return format!(
            "call_{index}: {name} {arguments} arguments_{index}\narguments_{index}: %json {schema}\n"
        );
    }
    let begin = json!(format!("{}{name}{}", marks.name, marks.arguments));
    let end = json!(marks.end);
    if form != CallForm::QwenXml {
        return format!(
            "call_{index}: {begin} arguments_{index} {end}\narguments_{index}: %json {schema}\n"
        );
    }
    let (mut call, mut rules) = (format!("call_{index}: {begin}"), String::new());
    let properties = schema["properties"].as_object();
    for (number, (key, property)) in properties.into_iter().flatten().enumerate() {
        let parameter = format!("parameter_{index}_{number}");
        let may_lack = if is_required(schema, key) { "" } else { "?" };
        call += &format!(" {parameter}{may_lack}");
        let open = json!(format!("{PARAMETER}{key}{VALUE}"));
        let close = json!(PARAMETER_END);
        let value = format!("value_{index}_{number}");
        rules += &match plain_text(property) {
            Some(PlainText { choices: None, .. }) => {
                format!("{parameter}: {open} {value}\n{value}[lazy]: /(.|\\n)*/ {close}\n")
            }
            Some(PlainText {
                choices: Some(choices),
                may_be_null,
            }) => {
                let null = may_be_null.then(|| "null".to_owned());
                let choices: Vec<_> = choices.into_iter().chain(null).collect();
                let choices: Vec<_> = choices.iter().map(|text| json!(text).to_string()).collect();
                let choices = choices.join(" | ");
                format!("{parameter}: {open} {value} {close}\n{value}: {choices}\n")
            }
            None => {
                let json = with_definitions(property, schema);
                format!("{parameter}: {open} {value} {close}\n{value}: %json {json}\n")
            }
        };
    }
    format!("{call} {end}\n{rules}")
}

fn is_required(schema: &Value, key: &str) -> bool {
    let required = schema["required"].as_array();
    required.is_some_and(|names| names.iter().any(|name| name == key))
}

/// A part of a schema with the definitions that its references point to.
fn with_definitions(part: &Value, schema: &Value) -> Value {
    let mut part = part.clone();
    let Some(fields) = part.as_object_mut() else {
        return part;
    };
    for name in ["$defs", "x-guidance"] {
        if let Some(definitions) = schema.get(name) {
            fields.entry(name).or_insert_with(|| definitions.clone());
        }
    }
    part
}

/// Whether arguments that fit a schema are a plain list of parameters, each with its own schema, so
/// that a call can be written in XML.
pub(crate) fn is_list_of_parameters(schema: &Value) -> bool {
    let Some(fields) = schema.as_object() else {
        return false;
    };
    let says_no_more = fields.iter().all(|(name, value)| match name.as_str() {
        "type" => value == "object",
        "additionalProperties" => value == &json!(false),
        "properties" | "required" | "$defs" | "x-guidance" => true,
        name => ["title", "description", "$schema"].contains(&name),
    });
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let required = schema["required"].as_array();
    let are_declared = required.into_iter().flatten().all(|name| {
        name.as_str()
            .is_some_and(|name| properties.contains_key(name))
    });
    let is_key = |key: &String| !key.contains(['<', '>', '\n', '\r']);
    says_no_more
        && schema["additionalProperties"] == false
        && are_declared
        && properties.keys().all(is_key)
        && has_definitions_only(schema)
}

/// Whether all references point to definitions.
fn has_definitions_only(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.iter().all(|(name, value)| match value {
            Value::String(target) if name == "$ref" => target.starts_with("#/$defs/"),
            value => has_definitions_only(value),
        }),
        Value::Array(items) => items.iter().all(has_definitions_only),
        _ => true,
    }
}

/// A parameter that stands in XML as it is, without quotation marks: as Qwen's models are trained
/// to write strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlainText {
    /// The texts that are allowed; `None` for any.
    choices: Option<Vec<String>>,
    /// Whether `null` means null and not a text.
    may_be_null: bool,
}

/// How a parameter is plain text; `None` for one in JSON, such as a number, or a string whose
/// pattern or length the schema limits.
fn plain_text(schema: &Value) -> Option<PlainText> {
    let fields = schema.as_object()?;
    let any = |may_be_null| PlainText {
        choices: None,
        may_be_null,
    };
    let says = |names: &[&str]| {
        let notes = ["title", "description", "default", "examples"];
        fields
            .keys()
            .all(|name| names.contains(&name.as_str()) || notes.contains(&name.as_str()))
    };
    if let Some(values) = schema["enum"]
        .as_array()
        .filter(|_| says(&["type", "enum"]))
    {
        return choices(values);
    }
    if let Some(options) = schema["anyOf"].as_array().filter(|_| says(&["anyOf"])) {
        let is_null = |option: &&Value| option["type"] == "null";
        let (nulls, others): (Vec<_>, Vec<_>) = options.iter().partition(is_null);
        let [other] = others[..] else { return None };
        return plain_text(other).map(|text| PlainText {
            may_be_null: text.may_be_null || !nulls.is_empty(),
            ..text
        });
    }
    if !says(&["type"]) {
        return None;
    }
    match &schema["type"] {
        Value::String(name) if name == "string" => Some(any(false)),
        Value::Array(names) if names.len() == 2 => {
            let has = |wanted: &str| names.iter().any(|name| name == wanted);
            (has("string") && has("null")).then(|| any(true))
        }
        _ => None,
    }
}

/// Strings, and perhaps null, of an `enum`; `None` if other values are among them, or texts that
/// do not fit on a line.
fn choices(values: &[Value]) -> Option<PlainText> {
    let mut texts = Vec::new();
    for value in values.iter().filter(|value| !value.is_null()) {
        let text = value.as_str()?;
        if text.is_empty() || text.contains('\n') {
            return None;
        }
        texts.push(text.to_owned());
    }
    let may_be_null = values.iter().any(Value::is_null);
    let is_ambiguous = may_be_null && texts.iter().any(|text| text == "null");
    (!texts.is_empty() && !is_ambiguous).then_some(PlainText {
        choices: Some(texts),
        may_be_null,
    })
}

// ---- finding calls ----

/// The parameters that are [plain text](PlainText), by function and name; true for one that may
/// be null.
pub(crate) type TextParameters = HashMap<String, HashMap<String, bool>>;

/// The parameters of a schema that are plain text.
pub(crate) fn text_parameters(schema: &Value) -> HashMap<String, bool> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let texts = properties
        .filter_map(|(name, property)| Some((name.clone(), plain_text(property)?.may_be_null)));
    texts.collect()
}

/// A parsed part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Thinking, which stands before all else.
    Reasoning(String),
    Text(String),
    /// A call begins; the first has index 0.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of a call, as JSON.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Finds calls in a text that arrives in pieces.
#[derive(Clone, Debug)]
pub(crate) struct CallFinder {
    form: CallForm,
    texts: Arc<TextParameters>,
    /// Text that cannot be classified yet.
    pending: String,
    place: Place,
    num_calls: usize,
    /// Whether there was any text before the first call.
    has_text: bool,
    /// The function of the call that was found last.
    function: String,
}

/// The position of the parsed text within an answer.
#[derive(Clone, Debug)]
enum Place {
    Text,
    /// Between the beginning of a call and its arguments.
    Name,
    /// In the arguments, in JSON.
    Arguments(Nesting),
    /// Between parameters in XML, after this number of parameters.
    Parameters(usize),
    /// In a parameter that is plain text, after this many others.
    PlainText {
        count: usize,
        may_be_null: bool,
        /// Whether the string in JSON has begun.
        is_open: bool,
    },
    /// After the arguments.
    End,
    /// After a call in a list.
    Next,
}

/// The nesting at a place in JSON.
#[derive(Clone, Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Takes a byte; true if the value ends with it.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl CallFinder {
    /// For answers in `form`; `texts` has the parameters that are plain text in XML.
    pub(crate) fn new(form: CallForm, texts: Arc<TextParameters>) -> Self {
        Self {
            form,
            texts,
            pending: String::new(),
            place: Place::Text,
            num_calls: 0,
            has_text: false,
            function: String::new(),
        }
    }

    /// Number of calls so far.
    pub(crate) fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Whether the text ends within the arguments of the last call, so that these are invalid JSON.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(
            self.place,
            Place::Arguments(_) | Place::Parameters(_) | Place::PlainText { .. }
        )
    }

    /// Parses more text, and appends its parts to `found`.
    pub(crate) fn push(&mut self, text: &str, found: &mut Vec<Found>) {
        self.pending.push_str(text);
        while self.step(found) {}
    }

    /// Parses the end of the text.
    pub(crate) fn finish(&mut self, found: &mut Vec<Found>) {
        if matches!(self.place, Place::Text) && !self.pending.is_empty() {
            found.push(Found::Text(std::mem::take(&mut self.pending)));
        }
    }

    /// Parses one step; false if it needs more text.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match &mut self.place {
            Place::Text => self.text(found),
            Place::Name => self.name(found),
            Place::Arguments(nesting) => {
                let end = self.pending.bytes().position(|byte| nesting.step(byte));
                let text: String = self
                    .pending
                    .drain(..end.map_or(self.pending.len(), |end| end + 1))
                    .collect();
                if !text.is_empty() {
                    let index = self.num_calls - 1;
                    found.push(Found::Arguments { index, text });
                }
                if end.is_some() {
                    self.place = Place::End;
                }
                end.is_some()
            }
            Place::Parameters(count) => {
                let count = *count;
                self.parameter(count, found)
            }
            Place::PlainText { .. } => self.plain_text(found),
            Place::End => {
                let end = marks(self.form).end;
                let is_here = self.pending.starts_with(end);
                if is_here {
                    self.pending.drain(..end.len());
                    self.place = match self.form {
                        CallForm::MistralList => Place::Next,
                        _ => Place::Text,
                    };
                }
                is_here
            }
            Place::Next => self.next_in_list(),
        }
    }

    fn text(&mut self, found: &mut Vec<Found>) -> bool {
        let mark = marks(self.form).begin;
        if self.num_calls > 0 {
            // Each call is on its own line.
            self.pending = self.pending.trim_start_matches('\n').to_owned();
        }
        let is_over = self.form == CallForm::Llama3 && (self.has_text || self.num_calls > 0);
        let begin = match self.form {
            CallForm::Llama3 => self
                .pending
                .starts_with(mark)
                .then_some(0)
                .filter(|_| !is_over),
            _ => self.pending.find(mark),
        };
        let held = match self.form {
            _ if is_over => 0,
            CallForm::Llama3 if mark.starts_with(&self.pending) => self.pending.len(),
            CallForm::Llama3 => 0,
            _ => held_back(&self.pending, mark),
        };
        let end = begin.unwrap_or(self.pending.len() - held);
        let text: String = self.pending.drain(..end).collect();
        if !text.is_empty() {
            self.has_text = true;
            found.push(Found::Text(text));
        }
        if begin.is_some() {
            self.pending.drain(..mark.len());
            self.place = Place::Name;
        }
        begin.is_some()
    }

    /// Goes on to the next call of a list, or to the text after it.
    fn next_in_list(&mut self) -> bool {
        let separator = ", ";
        if separator.starts_with(&self.pending) && self.pending.len() < separator.len() {
            return false;
        }
        let (len, place) = match self.pending.strip_prefix(separator) {
            Some(_) => (separator.len(), Place::Name),
            None => (usize::from(self.pending.starts_with(']')), Place::Text),
        };
        self.pending.drain(..len);
        self.place = place;
        true
    }

    fn name(&mut self, found: &mut Vec<Found>) -> bool {
        let marks = marks(self.form);
        let Some(end) = self.pending.find(marks.arguments) else {
            return false;
        };
        let head = match self.form {
            CallForm::MistralList => self.pending[..end].trim_start_matches([' ', '[']),
            _ => &self.pending[..end],
        };
        let name = head.strip_prefix(marks.name).unwrap_or_default();
        self.function = name.to_owned();
        self.pending.drain(..end + marks.arguments.len());
        let index = self.num_calls;
        found.push(Found::Call {
            index,
            name: self.function.clone(),
        });
        self.num_calls += 1;
        self.place = match self.form {
            CallForm::QwenXml => {
                let text = "{".to_owned();
                found.push(Found::Arguments { index, text });
                Place::Parameters(0)
            }
            _ => Place::Arguments(Nesting::default()),
        };
        true
    }

    /// A parameter in XML as a member of a JSON object, or the end of the parameters.
    fn parameter(&mut self, count: usize, found: &mut Vec<Found>) -> bool {
        let index = self.num_calls - 1;
        if self.pending.starts_with(marks(self.form).end) {
            let text = "}".to_owned();
            found.push(Found::Arguments { index, text });
            self.place = Place::End;
            return true;
        }
        let Some(rest) = self.pending.strip_prefix(PARAMETER) else {
            return false;
        };
        let Some((key, rest)) = rest.split_once(VALUE) else {
            return false;
        };
        let separator = if count > 0 { ", " } else { "" };
        let name = format!("{separator}{}: ", json!(key));
        let texts = self.texts.get(&self.function);
        let (text, place, rest) = match texts.and_then(|texts| texts.get(key)) {
            Some(&may_be_null) => {
                let place = Place::PlainText {
                    count,
                    may_be_null,
                    is_open: false,
                };
                (name, place, rest)
            }
            None => {
                let Some((value, rest)) = rest.split_once(PARAMETER_END) else {
                    return false;
                };
                (
                    name + &json_value(value),
                    Place::Parameters(count + 1),
                    rest,
                )
            }
        };
        let rest = rest.to_owned();
        self.pending = rest;
        found.push(Found::Arguments { index, text });
        self.place = place;
        true
    }

    /// More of a parameter that is plain text, as a string in JSON; or null.
    fn plain_text(&mut self, found: &mut Vec<Found>) -> bool {
        let Place::PlainText {
            count,
            may_be_null,
            is_open,
        } = &mut self.place
        else {
            return false;
        };
        let index = self.num_calls - 1;
        let null = format!("null{PARAMETER_END}");
        let may_be_null = *may_be_null && !*is_open;
        if may_be_null && self.pending.starts_with(&null) {
            self.pending.drain(..null.len());
            self.place = Place::Parameters(*count + 1);
            let text = "null".to_owned();
            found.push(Found::Arguments { index, text });
            return true;
        }
        if may_be_null && null.starts_with(&self.pending) {
            return false;
        }
        let end = self.pending.find(PARAMETER_END);
        let held = held_back(&self.pending, PARAMETER_END);
        let known = end.unwrap_or(self.pending.len() - held);
        let text: String = self.pending.drain(..known).collect();
        let quoted = json!(text).to_string();
        let mut text = quoted[1..quoted.len() - 1].to_owned();
        if !std::mem::replace(is_open, true) {
            text.insert(0, '"');
        }
        if end.is_some() {
            text.push('"');
            self.pending.drain(..PARAMETER_END.len());
            self.place = Place::Parameters(*count + 1);
        }
        if !text.is_empty() {
            found.push(Found::Arguments { index, text });
        }
        end.is_some()
    }
}

/// A value that is not plain text as JSON: as it is, unless it is none.
fn json_value(value: &str) -> String {
    match serde_json::from_str::<Value>(value) {
        Ok(_) => value.to_owned(),
        Err(_) => json!(value).to_string(),
    }
}

/// The length of the longest end of `text` that begins `mark`.
fn held_back(text: &str, mark: &str) -> usize {
    (1..mark.len().min(text.len() + 1))
        .rev()
        .find(|&len| text.ends_with(&mark[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Arc<TextParameters> {
        let texts = [
            ("a".to_owned(), false),
            ("d".to_owned(), true),
            ("e".to_owned(), true),
        ];
        let texts = [("f".to_owned(), texts.into_iter().collect())];
        Arc::new(texts.into_iter().collect())
    }

    /// Parses a text in pieces of `size` characters; joins texts and arguments.
    fn find(form: CallForm, text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let (mut finder, mut found) = (CallFinder::new(form, texts()), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            finder.push(&piece.iter().collect::<String>(), &mut found);
        }
        finder.finish(&mut found);
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in found {
            match part {
                Found::Text(more) => text += &more,
                Found::Reasoning(more) => unreachable!("a finder of calls found {more}"),
                Found::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Found::Arguments { index, text } => calls[index].1 += &text,
            }
        }
        assert_eq!(calls.len(), finder.num_calls());
        (text, calls)
    }

    const OBJECT: &str = r#"{"a": "}</tool_call>\"é", "b": [1, {"c": {}}]}"#;

    #[test]
    fn calls_are_found_in_pieces_of_any_size() {
        let xml = "<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n<parameter=b>\n[1, \
            \"x\"]\n</parameter>\n<parameter=c>\n</function> é\n</parameter>\n<parameter=d>\nnull\n</parameter>\n\
            <parameter=e>\nnul\n\"é\n</param\n</parameter>\n</function>\n</tool_call>";
        let from_xml = "{\"a\": \"7\", \"b\": [1, \"x\"], \"c\": \"</function> é\", \"d\": null, \
            \"e\": \"nul\\n\\\"é\\n</param\"}";
        let hermes =
            format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {OBJECT}}}\n</tool_call>");
        let no_parameters = "<tool_call>\n<function=g-2>\n</function>\n</tool_call>";
        let hermes_empty = "<tool_call>\n{\"name\": \"g-2\", \"arguments\": {}}\n</tool_call>";
        for (form, one, arguments, two) in [
            (
                CallForm::Plain,
                written_call("f", OBJECT),
                OBJECT,
                written_call("g-2", "{}"),
            ),
            (CallForm::Hermes, hermes, OBJECT, hermes_empty.to_owned()),
            (
                CallForm::QwenXml,
                xml.to_owned(),
                from_xml,
                no_parameters.to_owned(),
            ),
        ] {
            let text = format!("Let me see < <tool. {one}\n{two}");
            for size in 1..text.len() {
                let (said, calls) = find(form, &text, size);
                assert_eq!(said, "Let me see < <tool. ", "{form:?}");
                let expected = [("f", arguments), ("g-2", "{}")];
                let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
                assert_eq!(calls, expected, "{form:?}");
            }
        }
    }

    #[test]
    fn plain_text_streams_as_it_arrives() {
        let (mut finder, mut found) = (CallFinder::new(CallForm::QwenXml, texts()), Vec::new());
        let begin = "<tool_call>\n<function=f>\n<parameter=a>\none\n";
        finder.push(begin, &mut found);
        finder.push("two\n</parameter>\n</function>\n</tool_call>", &mut found);
        let arguments = found.iter().filter_map(|part| match part {
            Found::Arguments { text, .. } => Some(text.as_str()),
            _ => None,
        });
        let arguments: Vec<_> = arguments.collect();
        assert_eq!(arguments, ["{", "\"a\": ", "\"one", "\\ntwo\"", "}"]);
    }

    #[test]
    fn strings_are_plain_text_unless_the_schema_limits_their_characters() {
        let text = |choices: Option<&[&str]>, may_be_null| {
            let choices = choices.map(|texts| texts.iter().map(|&text| text.to_owned()).collect());
            Some(PlainText {
                choices,
                may_be_null,
            })
        };
        for (schema, expected) in [
            (
                json!({ "type": "string", "description": "a" }),
                text(None, false),
            ),
            (json!({ "type": ["string", "null"] }), text(None, true)),
            (
                json!({ "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null }),
                text(None, true),
            ),
            (
                json!({ "enum": ["C", "F"] }),
                text(Some(&["C", "F"]), false),
            ),
            (
                json!({ "type": ["string", "null"], "enum": ["C", null] }),
                text(Some(&["C"]), true),
            ),
            (json!({ "enum": ["C", 1] }), None),
            (json!({ "enum": ["null", null] }), None),
            (json!({ "enum": ["", "a"] }), None),
            (json!({ "type": "string", "pattern": "a+" }), None),
            (json!({ "type": "string", "maxLength": 3 }), None),
            (json!({ "type": "integer" }), None),
            (
                json!({ "anyOf": [{ "type": "string" }, { "type": "integer" }] }),
                None,
            ),
            (json!({}), None),
        ] {
            assert_eq!(plain_text(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn calls_of_mistral_are_found_however_the_text_is_cut() {
        let list = |open: &str| {
            format!(
                "Hm [TOOL. [TOOL_CALLS]{open}{{\"name\": \"f\", \"arguments\": {OBJECT}}}, \
                 {{\"name\": \"g-2\", \"arguments\": {{}}}}]"
            )
        };
        let named = format!("Hm [TOOL. [TOOL_CALLS]f[ARGS]{OBJECT}[TOOL_CALLS]g-2[ARGS]{{}}");
        for (form, text) in [
            (CallForm::MistralList, list("[")),
            (CallForm::MistralList, list(" [")),
            (CallForm::MistralNamed, named),
        ] {
            for size in 1..text.len() {
                let (said, calls) = find(form, &text, size);
                assert_eq!(said, "Hm [TOOL. ", "{form:?}");
                let expected = [("f", OBJECT), ("g-2", "{}")];
                let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
                assert_eq!(calls, expected, "{form:?}");
            }
        }
    }

    #[test]
    fn a_call_of_llama_3_is_the_whole_answer() {
        let call = format!("{{\"name\": \"f\", \"parameters\": {OBJECT}}}");
        for size in 1..call.len() {
            let found = find(CallForm::Llama3, &call, size);
            assert_eq!(
                found,
                (String::new(), vec![("f".to_owned(), OBJECT.to_owned())])
            );
            let text = format!("No: {call}");
            assert_eq!(find(CallForm::Llama3, &text, size), (text, Vec::new()));
        }
    }

    #[test]
    fn text_that_is_not_a_call_stays_text() {
        for text in ["", "a < b", "<tool", "<tool_cal", "é<"] {
            assert_eq!(
                find(CallForm::Plain, text, 1),
                (text.to_owned(), Vec::new())
            );
        }
        // The answer was cut off by the token limit.
        let cut = find(CallForm::Plain, r#"x<tool_call>{"name": "f"#, 3);
        assert_eq!(cut, ("x".to_owned(), Vec::new()));
        let (_, calls) = find(
            CallForm::Plain,
            r#"<tool_call>{"name": "f", "arguments": {"a": "b"#,
            3,
        );
        assert_eq!(calls, [("f".to_owned(), r#"{"a": "b"#.to_owned())]);
    }
}
