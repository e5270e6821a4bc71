//! The keywords of JSON Schema: which values they have, and which the grammar engine enforces.

use serde_json::{Map, Value, json};

/// The formats of strings that the grammar engine enforces.
pub(super) const FORMATS: [&str; 10] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
];

pub(super) const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// The kind of value that a keyword has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    /// A schema.
    Schema,
    /// A list of schemas, at least one.
    List,
    /// A schema or, in older drafts, a list of schemas.
    SchemaOrList,
    /// Schemas by names.
    Map,
    /// A number, or in draft 4 a boolean.
    Bound,
    /// A positive number.
    Multiple,
    /// A count.
    Count,
    /// A list of values, at least one.
    Values,
    /// Any value.
    Value,
    Type,
    Pattern,
    Format,
    Names,
    Reference,
    /// Does not restrict values, or is unknown, which JSON Schema treats alike.
    Annotation,
    /// Restricts values in a way that the grammar engine cannot enforce.
    Unenforced,
}

pub(super) fn keyword(name: &str) -> Keyword {
    match name {
        "additionalProperties" | "additionalItems" => Keyword::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Keyword::List,
        "items" => Keyword::SchemaOrList,
        "properties" | "patternProperties" => Keyword::Map,
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => Keyword::Bound,
        "multipleOf" => Keyword::Multiple,
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
            Keyword::Count
        }
        "enum" => Keyword::Values,
        "const" => Keyword::Value,
        "type" => Keyword::Type,
        "pattern" => Keyword::Pattern,
        "format" => Keyword::Format,
        "required" => Keyword::Names,
        "$ref" => Keyword::Reference,
        "not"
        | "if"
        | "then"
        | "else"
        | "uniqueItems"
        | "contains"
        | "minContains"
        | "maxContains"
        | "propertyNames"
        | "dependentRequired"
        | "dependentSchemas"
        | "dependencies"
        | "unevaluatedProperties"
        | "unevaluatedItems"
        | "$dynamicRef"
        | "$recursiveRef" => Keyword::Unenforced,
        _ => Keyword::Annotation,
    }
}

/// Whether a keyword that cannot be enforced has a value that restricts nothing.
pub(super) fn is_neutral(name: &str, value: &Value, schema: &Map<String, Value>) -> bool {
    match name {
        "uniqueItems" | "not" => *value == json!(false),
        "propertyNames" | "unevaluatedProperties" | "unevaluatedItems" => {
            *value == json!(true) || *value == json!({})
        }
        "dependentRequired" | "dependentSchemas" | "dependencies" => *value == json!({}),
        "if" => !schema.contains_key("then") && !schema.contains_key("else"),
        "then" | "else" => !schema.contains_key("if"),
        "minContains" | "maxContains" => !schema.contains_key("contains"),
        _ => false,
    }
}

/// The schemas within a schema, each with the steps to it.
pub(super) fn subschemas(schema: &Value) -> Vec<(Vec<String>, &Value)> {
    let mut found = Vec::new();
    for (name, value) in schema.as_object().into_iter().flatten() {
        let is_map = matches!(
            name.as_str(),
            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas"
        );
        match value {
            Value::Object(children) if is_map => found.extend(
                children
                    .iter()
                    .map(|(key, child)| (vec![name.clone(), key.clone()], child)),
            ),
            Value::Array(children)
                if matches!(keyword(name), Keyword::List | Keyword::SchemaOrList) =>
            {
                found.extend(
                    children
                        .iter()
                        .enumerate()
                        .map(|(index, child)| (vec![name.clone(), index.to_string()], child)),
                );
            }
            Value::Object(_) if holds_schema(name) => found.push((vec![name.clone()], value)),
            _ => {}
        }
    }
    found
}

/// Whether the value of a keyword may be one schema.
fn holds_schema(name: &str) -> bool {
    matches!(keyword(name), Keyword::Schema | Keyword::SchemaOrList)
        || matches!(
            name,
            "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames"
                | "unevaluatedProperties"
                | "unevaluatedItems"
        )
}

/// A count, which may be written as 2.0.
pub(super) fn count(value: &Value) -> Option<u64> {
    let whole = |number: &f64| (0.0..=1e15).contains(number) && number.fract() == 0.0;
    let from_float = || value.as_f64().filter(whole).map(|number| number as u64);
    value.as_u64().or_else(from_float)
}

/// Whether the grammar engine cannot count the properties of an object: some are optional.
pub(super) fn is_unenforced_count(name: &str, schema: &Map<String, Value>) -> bool {
    let is_required = |property: &String| {
        let required = schema.get("required").and_then(Value::as_array);
        required.is_some_and(|names| names.iter().any(|name| name == property))
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    name.ends_with("Properties")
        && properties.is_some_and(|properties| !properties.keys().all(is_required))
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
