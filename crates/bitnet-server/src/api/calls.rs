//! Calls of tools in the text of an answer: their grammar and their parser, for each form that
//! models are trained on.

use std::collections::HashMap;
use std::sync::Arc;

use bitnet_tokenizers::CallForm;
use serde_json::{Map, Value, json};

/// The marks of a form. A call in JSON is `begin`, `name`, the name, `arguments`, an object, `end`;
/// one in XML is `begin`, `name`, the name, `arguments`, parameters, `end`.
struct Marks {
    /// No other text of an answer contains it.
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

/// The rules for `start`, which refers to `call`: a call behind the mark that begins it.
pub(crate) fn start(form: CallForm, may_say: bool, may_repeat: bool) -> String {
    let begin = marks(form).begin;
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

/// The rules for `call_INDEX`: a call of the function `name` with arguments that fit `schema`,
/// behind the mark that begins it.
pub(crate) fn rules(form: CallForm, index: usize, name: &str, schema: &Value) -> String {
    let marks = marks(form);
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
        rules += &if is_any_string(property) {
            format!("{parameter}: {open} {value}\n{value}[lazy]: /(.|\\n)*/ {close}\n")
        } else {
            let json = with_definitions(property, schema);
            format!("{parameter}: {open} {value} {close}\n{value}: %json {json}\n")
        };
    }
    format!("{call} {end}\n{rules}")
}

fn is_required(schema: &Value, key: &str) -> bool {
    let required = schema["required"].as_array();
    required.is_some_and(|names| names.iter().any(|name| name == key))
}

/// A part of a schema with what its references point to.
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

/// Whether arguments that fit a schema are parameters that fit a schema each, so that a call can be
/// written in XML.
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

/// Whether each reference points to a definition.
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

/// Whether a parameter is a string that its schema does not limit, which stands in XML as it is.
fn is_any_string(schema: &Value) -> bool {
    let notes = ["type", "title", "description", "default", "examples"];
    let fields = schema.as_object();
    schema["type"] == "string"
        && fields.is_some_and(|fields| fields.keys().all(|name| notes.contains(&name.as_str())))
}

// ---- finding calls ----

/// The names of parameters that [are any strings](is_any_string), by function.
pub(crate) type StringParameters = HashMap<String, Vec<String>>;

/// The names of parameters of a schema that are any strings.
pub(crate) fn string_parameters(schema: &Value) -> Vec<String> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let strings = properties.filter(|(_, property)| is_any_string(property));
    strings.map(|(name, _)| name.clone()).collect()
}

/// A parsed part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Text(String),
    /// A call begins, the first being number 0.
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
    strings: Arc<StringParameters>,
    /// Text that cannot be classified yet.
    pending: String,
    place: Place,
    num_calls: usize,
    /// Whether there was any text before the first call.
    has_text: bool,
    /// The function of the call that was found last.
    function: String,
}

#[derive(Clone, Debug)]
enum Place {
    Text,
    /// Between the beginning of a call and its arguments.
    Name,
    /// In the arguments, in JSON.
    Arguments(Nesting),
    /// Between parameters in XML, of which there were this many.
    Parameters(usize),
    /// After the arguments.
    End,
}

/// How deep a place in JSON is.
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
    /// For answers in `form`; `strings` has the parameters that are strings.
    pub(crate) fn new(form: CallForm, strings: Arc<StringParameters>) -> Self {
        Self {
            form,
            strings,
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

    /// Whether the text ends within the arguments of the last call, which then are invalid JSON.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.place, Place::Arguments(_) | Place::Parameters(_))
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
            Place::End => {
                let end = marks(self.form).end;
                let is_here = self.pending.starts_with(end);
                if is_here {
                    self.pending.drain(..end.len());
                    self.place = Place::Text;
                }
                is_here
            }
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

    fn name(&mut self, found: &mut Vec<Found>) -> bool {
        let marks = marks(self.form);
        let Some(end) = self.pending.find(marks.arguments) else {
            return false;
        };
        let name = self.pending[..end]
            .strip_prefix(marks.name)
            .unwrap_or_default();
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

    /// A parameter in XML as a member of an object, or the end of them.
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
        let Some((value, rest)) = rest.split_once(PARAMETER_END) else {
            return false;
        };
        let separator = if count > 0 { ", " } else { "" };
        let text = format!("{separator}{}: {}", json!(key), self.value(key, value));
        let rest = rest.to_owned();
        self.pending = rest;
        found.push(Found::Arguments { index, text });
        self.place = Place::Parameters(count + 1);
        true
    }

    /// A value as JSON: as it is, unless it is a string or cannot be read.
    fn value(&self, key: &str, value: &str) -> String {
        let strings = self.strings.get(&self.function);
        let is_string = strings.is_some_and(|names| names.iter().any(|name| name == key));
        match serde_json::from_str::<Value>(value) {
            Ok(_) if !is_string => value.to_owned(),
            _ => json!(value).to_string(),
        }
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

    fn strings() -> Arc<StringParameters> {
        let strings = [("f".to_owned(), vec!["a".to_owned()])];
        Arc::new(strings.into_iter().collect())
    }

    /// Parses a text in pieces of `size` characters; joins texts and arguments.
    fn find(form: CallForm, text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let (mut finder, mut found) = (CallFinder::new(form, strings()), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            finder.push(&piece.iter().collect::<String>(), &mut found);
        }
        finder.finish(&mut found);
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in found {
            match part {
                Found::Text(more) => text += &more,
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
    fn calls_are_found_however_the_text_is_cut() {
        let xml = "<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n<parameter=b>\n[1, \
            \"x\"]\n</parameter>\n<parameter=c>\n</function> é\n</parameter>\n</function>\n</tool_call>";
        let from_xml = "{\"a\": \"7\", \"b\": [1, \"x\"], \"c\": \"</function> é\"}";
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
