//! Finds the part of a schema that the grammar engine refuses, because the engine does not report
//! it.

use serde_json::{Map, Value};

use super::Schema;
use super::error::SchemaError;
use super::keywords::subschemas;
use super::references::escaped;

/// Maximum number of parts that are tried.
const TRIES_MAX: usize = 200;

/// A part of a normalized schema.
struct Part<'a> {
    schema: &'a Value,
    /// Its place in the schema of the client.
    pointer: String,
    /// Whether a value of the surrounding schema may lack this part.
    is_optional: bool,
}

impl Schema {
    /// The innermost part that `check` refuses, if it refuses the schema.
    ///
    /// `check`: returns the grammar engine's error for a schema, if there is one.
    pub(crate) fn blame(
        &self,
        check: impl Fn(&Value) -> Result<(), String>,
    ) -> Option<SchemaError> {
        let mut problem = check(&self.value).err()?;
        let mut pointer = String::new();
        let mut schema = &self.value;
        let mut num_tries = 0;
        // References that were followed; each is followed once, because a schema may contain
        // itself.
        let mut passed = Vec::new();
        loop {
            passed.extend(schema.get("$ref"));
            let mut refused = Vec::new();
            for part in self.parts(schema, &pointer) {
                if part
                    .schema
                    .get("$ref")
                    .is_some_and(|name| passed.contains(&name))
                {
                    continue;
                }
                num_tries += 1;
                if num_tries > TRIES_MAX {
                    return Some(SchemaError { pointer, problem });
                }
                if let Err(inner) = check(&self.alone(part.schema)) {
                    refused.push((part, inner));
                }
            }
            // An optional part that rejects every value is not the cause.
            let is_likely = |(part, inner): &(Part<'_>, String)| {
                !part.is_optional || !inner.starts_with("Unsatisfiable")
            };
            let index = refused.iter().position(is_likely).unwrap_or(0);
            match refused.into_iter().nth(index) {
                Some((part, inner)) => {
                    (problem, pointer, schema) = (inner, part.pointer, part.schema)
                }
                None => return Some(SchemaError { pointer, problem }),
            }
        }
    }

    /// The parts of a schema that stands at `pointer`.
    fn parts<'a>(&'a self, schema: &'a Value, pointer: &str) -> Vec<Part<'a>> {
        if let Some(part) = self.definition(schema) {
            return vec![part];
        }
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |name: &str| {
            required.is_some_and(|names| names.iter().any(|required| required == name))
        };
        let part = |(steps, schema): (Vec<String>, &'a Value)| {
            // They are parts of the schemas that refer to them.
            if steps[0] == "$defs" {
                return None;
            }
            let is_optional = match &steps[..] {
                [keyword, name] if keyword == "properties" => !is_required(name),
                [keyword, _] => matches!(&**keyword, "anyOf" | "oneOf" | "patternProperties"),
                _ => true,
            };
            let steps = steps.iter().map(|step| escaped(step));
            let pointer = steps.fold(pointer.to_owned(), |pointer, step| pointer + "/" + &step);
            Some(Part {
                schema,
                pointer,
                is_optional,
            })
        };
        subschemas(schema).into_iter().filter_map(part).collect()
    }

    /// The target of a reference.
    fn definition<'a>(&'a self, schema: &Value) -> Option<Part<'a>> {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        let index: usize = name.strip_prefix('d')?.parse().ok()?;
        Some(Part {
            schema: &self.value["$defs"][name],
            pointer: self.origins.get(index)?.clone(),
            is_optional: false,
        })
    }

    /// A part as a separate schema.
    fn alone(&self, part: &Value) -> Value {
        let Value::Object(fields) = part else {
            return part.clone();
        };
        let mut fields: Map<_, _> = fields.clone();
        for name in ["$defs", "x-guidance"] {
            if let Some(value) = self.value.get(name) {
                fields.insert(name.to_owned(), value.clone());
            }
        }
        Value::Object(fields)
    }
}
