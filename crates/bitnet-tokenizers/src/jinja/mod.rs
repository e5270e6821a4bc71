//! Jinja for chat templates: a parser and an interpreter that give the same text as jinja2 in the
//! sandbox of transformers.
//!
//! Why not a library: a template's text must equal jinja2's to the byte, because the model was
//! trained on it; templates and inputs are untrusted, so bytes, depth and steps of every operation
//! must be bounded; and the result must record which of its bytes come from messages. minijinja
//! differs from jinja2 in some rules for strings and maps, bounds only steps, and does not track
//! the origin of text.
//!
//! Read [`parser`] for the language, [`machine`] for the meaning of statements and expressions, and
//! [`limits`] for the bounds. The rest is Python's library: methods, filters, tests, formats.
//!
//! Known differences: only an explicit `escape` escapes text, and its result is plain text;
//! integers have 128 bits; `random` is not random; the time is UTC.

mod arguments;
mod ast;
mod attributes;
mod clock;
mod fault;
mod filters;
mod format;
mod json;
mod lexer;
mod limits;
mod machine;
mod methods;
mod operators;
mod parser;
mod predicates;
mod repr;
mod scope;
mod sequences;
mod strings;
mod text;
mod value;
mod wrapping;

use indexmap::IndexMap;

pub(crate) use fault::{Fault, Result};
pub(crate) use limits::TemplateLimits;
pub(crate) use machine::Inputs;
pub(crate) use text::Text;
pub(crate) use value::{Key, Value};

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    body: ast::Block,
    source: String,
    limits: TemplateLimits,
}

impl Template {
    /// Parses `source`.
    pub(crate) fn new(source: &str, limits: TemplateLimits) -> Result<Self> {
        Ok(Self {
            body: parser::parse(source, &limits)?,
            source: source.to_owned(),
            limits,
        })
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Runs the template.
    pub(crate) fn render(&self, inputs: Inputs) -> Result<Text> {
        machine::Machine::new(inputs, &self.limits).run(&self.body)
    }
}

/// JSON as a value whose texts, keys too, are foreign.
pub(crate) fn foreign_value(json: &serde_json::Value) -> Result<Value> {
    use serde_json::Value as Json;
    match json {
        Json::Null => Ok(Value::None),
        Json::Bool(flag) => Ok(Value::Bool(*flag)),
        Json::Number(number) => Ok(match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number.into()),
            (_, Some(number)) => Value::Int(number.into()),
            _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        }),
        Json::String(text) => Ok(Value::Text(Text::foreign(&**text))),
        Json::Array(items) => Value::list(items.iter().map(foreign_value).collect::<Result<_>>()?),
        Json::Object(entries) => {
            let entry = |(key, item): (&String, &Json)| {
                Ok((
                    Key(Value::Text(Text::foreign(&**key))),
                    foreign_value(item)?,
                ))
            };
            let entries = entries
                .iter()
                .map(entry)
                .collect::<Result<IndexMap<_, _>>>()?;
            Value::dict(entries)
        }
    }
}

/// Formats a value as `json.dumps` does by default.
pub(crate) fn plain_json(value: &Value, limits: &TemplateLimits, bytes: usize) -> Result<Text> {
    let layout = json::JsonStyle {
        is_ascii: false,
        indent: None,
        item_separator: Text::own(", "),
        key_separator: Text::own(": "),
        sorts_keys: false,
    };
    json::dumps(value, &layout, &limits::Budget::new(limits, 0, bytes))
}
