//! The grammar of calls, in llguidance's dialect of Lark, and the parameters that XML writes as
//! plain text.

use std::collections::HashMap;

use bitnet_tokenizers::CallForm;
use serde_json::{Map, Value, json};

use super::{ControlTokens, PARAMETER, PARAMETER_END, TOOL_CALLS, VALUE, marks};

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
    let has_only_known = fields.iter().all(|(name, value)| match name.as_str() {
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
    has_only_known
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
struct PlainText {
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
    let has_only = |names: &[&str]| {
        let notes = ["title", "description", "default", "examples"];
        fields
            .keys()
            .all(|name| names.contains(&name.as_str()) || notes.contains(&name.as_str()))
    };
    if let Some(values) = schema["enum"]
        .as_array()
        .filter(|_| has_only(&["type", "enum"]))
    {
        return choices(values);
    }
    if let Some(options) = schema["anyOf"].as_array().filter(|_| has_only(&["anyOf"])) {
        let is_null = |option: &&Value| option["type"] == "null";
        let (nulls, others): (Vec<_>, Vec<_>) = options.iter().partition(is_null);
        let [other] = others[..] else { return None };
        return plain_text(other).map(|text| PlainText {
            may_be_null: text.may_be_null || !nulls.is_empty(),
            ..text
        });
    }
    if !has_only(&["type"]) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
