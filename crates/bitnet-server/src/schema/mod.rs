//! [`Schema`]: a JSON schema in the form that the grammar engine reads, made from a client's
//! schema.
//!
//! llguidance reads a part of JSON Schema and does not say where an error is. This pass
//!
//! - checks each keyword, so that an error names the keyword and its place;
//! - resolves references; each definition that is used gets a plain name;
//! - closes objects, by one rule (see [`Strictness`]);
//! - leaves out annotations, and keywords that cannot be enforced where they are annotations;
//! - writes expressions in the syntax of the engine;
//! - keeps the bounds of integers within 64 bits.

mod blame;
mod closing;
mod error;
mod keywords;
mod normalizer;
mod numbers;
mod patterns;
mod references;

use llguidance::JsonCompileOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use error::SchemaError;
use normalizer::Normalizer;

pub(crate) use normalizer::{Strictness, VISITS_MAX};

/// A schema as the grammar engine reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schema {
    value: Value,
    /// Where the definitions `d0`, `d1` and so on stand in the schema of the client.
    origins: Vec<String>,
    /// Schemas and properties that were visited to make it.
    #[serde(skip)]
    num_visits: usize,
}

impl Schema {
    /// Any object.
    pub(crate) fn any_object() -> Self {
        Self {
            value: json!({ "type": "object", "x-guidance": options(false) }),
            origins: Vec::new(),
            num_visits: 0,
        }
    }

    /// Checks and normalizes a schema of a client.
    pub(crate) fn new(schema: &Value, strictness: Strictness) -> Result<Self, SchemaError> {
        let mut normalizer = Normalizer::new(schema, strictness);
        let mut value = normalizer.root(schema)?;
        let definitions = normalizer.definitions()?;
        let num_visits = normalizer.num_visits;
        let origins = normalizer.into_origins();
        if !definitions.is_empty() {
            value["$defs"] = Value::Object(definitions);
        }
        let coerces = strictness == Strictness::Tool || has_named_kinds(&value);
        value["x-guidance"] = options(coerces);
        Ok(Self {
            value,
            origins,
            num_visits,
        })
    }

    /// The schema of a tool's arguments, which are an object; without a schema, an empty one.
    pub(crate) fn of_arguments(
        parameters: Option<&Value>,
        is_strict: bool,
    ) -> Result<Self, SchemaError> {
        let strictness = if is_strict {
            Strictness::Strict
        } else {
            Strictness::Tool
        };
        let none = json!({ "type": "object", "properties": {} });
        let mut schema = match parameters {
            None | Some(Value::Null) => none,
            Some(schema) => schema.clone(),
        };
        if let Value::Object(fields) = &mut schema {
            let is_object = match fields.get("type") {
                None => true,
                Some(Value::String(kind)) => kind == "object",
                Some(Value::Array(kinds)) => kinds.contains(&json!("object")),
                Some(_) => false,
            };
            if !is_object {
                let problem = "the arguments of a function are an object";
                let pointer = "/type".to_owned();
                return Err(SchemaError {
                    pointer,
                    problem: problem.to_owned(),
                });
            }
            fields.insert("type".to_owned(), json!("object"));
        }
        Self::new(&schema, strictness)
    }

    /// Schemas and properties that were visited to make this one, at most [`VISITS_MAX`].
    pub(crate) fn num_visits(&self) -> usize {
        self.num_visits
    }

    /// The schema for the grammar engine, with its options in `x-guidance`.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }
}

/// Options with which the grammar engine reads a schema.
///
/// At most one line break and its indentation between two elements, so that an answer cannot be
/// endless white space. No escapes by number: the engine compares the names of further
/// properties with the declared ones as they are written, so `"\u0061"` would be another name than
/// `"a"`. `coerces`: a
/// value of `oneOf` must fit at least one of the schemas, where the engine cannot see that they
/// exclude each other.
fn options(coerces: bool) -> Value {
    let options = JsonCompileOptions {
        json_allowed_escapes: Some(r#"nrbtf\""#.to_owned()),
        whitespace_pattern: Some(r"( |\n[ ]{0,16})?".to_owned()),
        coerce_one_of: coerces,
        ..JsonCompileOptions::default()
    };
    serde_json::to_value(options).unwrap_or_default()
}

/// Whether a `oneOf` has an element that is defined elsewhere. Programs write such schemas so that
/// the elements exclude each other; the grammar engine does not follow references.
fn has_named_kinds(schema: &Value) -> bool {
    let is_named = |kind: &Value| kind.get("$ref").is_some();
    match schema {
        Value::Object(fields) => {
            let kinds = fields.get("oneOf").and_then(Value::as_array);
            kinds.is_some_and(|kinds| kinds.iter().any(is_named))
                || fields.values().any(has_named_kinds)
        }
        Value::Array(values) => values.iter().any(has_named_kinds),
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
