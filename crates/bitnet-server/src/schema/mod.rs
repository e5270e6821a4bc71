//! [`Schema`]: a JSON schema in the form that the grammar engine reads, made from a client's
//! schema.
//!
//! llguidance reads a part of JSON Schema and does not say where an error is. This pass
//!
//! - checks each keyword, so that an error names the keyword and its place;
//! - resolves references; each definition that is used gets a plain name;
//! - closes objects, by one rule (see [`Strictness`]);
//! - leaves out annotations, and keywords that cannot be enforced where they are annotations;
//! - keeps the bounds of integers within 64 bits.

mod blame;
mod references;

use std::collections::{BTreeSet, HashMap, HashSet};

use llguidance::JsonCompileOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use references::{References, SchemaPlace};

/// Maximum number of schemas within a schema, with the copies that closing objects needs.
const SCHEMAS_MAX: usize = 20_000;
/// Maximum depth of schemas within schemas.
const DEPTH_MAX: usize = 96;
/// Maximum number of schemas and properties that are visited to find out which objects are closed.
/// Each schema visits all parts that it reaches, so the number can grow with the square of the size;
/// this many take about a second.
pub(crate) const VISITS_MAX: usize = 300_000;

/// The formats of strings that the grammar engine enforces.
const FORMATS: [&str; 10] = [
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

const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// How a schema is read.
///
/// A closed object has only the declared properties. An object that declares `properties` is closed
/// in a tool and in `response_format`, unless its schema has `additionalProperties` (or
/// `unevaluatedProperties`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// `structured_outputs`: all keywords are enforced or refused, objects are open.
    Form,
    /// `response_format`, and a tool with `strict`: all keywords are enforced or refused, objects
    /// are closed.
    Strict,
    /// A tool without `strict`: keywords that cannot be enforced are annotations, objects are
    /// closed.
    Tool,
}

/// An error in a schema, and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at '#{pointer}': {problem}")]
pub(crate) struct SchemaError {
    /// A JSON pointer.
    pointer: String,
    problem: String,
}

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
        let mut normalizer = Normalizer {
            references: References::new(schema),
            strictness,
            names: HashMap::new(),
            definitions: Vec::new(),
            without_loops: HashSet::new(),
            num_schemas: 0,
            num_visits: 0,
        };
        let place = normalizer.references.root_place();
        let closing = match strictness {
            Strictness::Form => Closing::Never,
            Strictness::Strict | Strictness::Tool => Closing::Here(Declared::default()),
        };
        let mut value = match normalizer.schema(&place, schema, &closing)? {
            Value::Bool(true) => json!({}),
            Value::Bool(false) => return Err(error(&place, "no value fits 'false'")),
            value => value,
        };
        let definitions = normalizer.definitions()?;
        let num_visits = normalizer.num_visits;
        let origins = normalizer.definitions.into_iter();
        let origins = origins.map(|(place, ..)| place.pointer).collect();
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
/// endless white space. `coerces`: a value of `oneOf` must fit at least one of the schemas, where
/// the engine cannot see that they exclude each other.
fn options(coerces: bool) -> Value {
    let options = JsonCompileOptions {
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

/// The kind of value that a keyword has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keyword {
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

fn keyword(name: &str) -> Keyword {
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
fn is_neutral(name: &str, value: &Value, schema: &Map<String, Value>) -> bool {
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
fn subschemas(schema: &Value) -> Vec<(Vec<String>, &Value)> {
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

/// Properties that a schema declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Declared {
    names: BTreeSet<String>,
    patterns: BTreeSet<String>,
    /// Whether it has `properties`, even if they are empty.
    has_properties: bool,
    /// Whether the schema itself has a rule for other properties.
    says_otherwise: bool,
}

impl Declared {
    fn add(&mut self, other: Self) {
        self.names.extend(other.names);
        self.patterns.extend(other.patterns);
        self.has_properties |= other.has_properties;
        self.says_otherwise |= other.says_otherwise;
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }
}

/// Whether objects are closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Closing {
    /// Neither this object nor the objects within it are closed.
    Never,
    /// The objects within it are closed. This one is a part of another schema, which is closed as a
    /// whole.
    Within,
    /// This object and the objects within it are closed. The given properties are declared beside
    /// it.
    Here(Declared),
}

impl Closing {
    /// The rule for the values within.
    fn within(&self) -> Self {
        match self {
            Self::Never => Self::Never,
            Self::Within | Self::Here(_) => Self::Here(Declared::default()),
        }
    }
}

fn error(place: &SchemaPlace, problem: impl Into<String>) -> SchemaError {
    SchemaError {
        pointer: place.pointer.clone(),
        problem: problem.into(),
    }
}

/// Makes a schema for the grammar engine.
struct Normalizer<'a> {
    references: References<'a>,
    strictness: Strictness,
    /// Indexes of definitions by pointer and closing.
    names: HashMap<(String, Closing), usize>,
    definitions: Vec<(SchemaPlace, &'a Value, Closing)>,
    /// Pointers to schemas whose references do not lead back to them.
    without_loops: HashSet<String>,
    num_schemas: usize,
    num_visits: usize,
}

/// How the parts of a schema are closed.
struct Closings {
    /// Elements of `allOf`, and the target of `$ref`.
    all: Closing,
    /// Elements of `anyOf` and `oneOf`.
    any: Closing,
    /// Values of properties, and elements of lists.
    values: Closing,
    /// Properties that are declared elsewhere, if this schema itself gets `additionalProperties`.
    own: Option<Declared>,
}

impl<'a> Normalizer<'a> {
    /// The definitions that are used, by their names.
    fn definitions(&mut self) -> Result<Map<String, Value>, SchemaError> {
        let mut values = Map::new();
        let mut index = 0;
        while let Some((place, value, closing)) = self.definitions.get(index).cloned() {
            let value = self.schema(&place, value, &closing)?;
            values.insert(format!("d{index}"), value);
            index += 1;
        }
        Ok(values)
    }

    fn schema(
        &mut self,
        place: &SchemaPlace,
        value: &'a Value,
        closing: &Closing,
    ) -> Result<Value, SchemaError> {
        self.num_schemas += 1;
        if self.num_schemas > SCHEMAS_MAX {
            let problem = format!("the schema has more than {SCHEMAS_MAX} schemas within");
            return Err(error(place, problem));
        }
        if place.pointer.matches('/').count() > 2 * DEPTH_MAX {
            return Err(error(place, "the schema is too deep"));
        }
        match value {
            Value::Bool(_) => Ok(value.clone()),
            Value::Object(fields) => {
                let place = place.clone().entered(value);
                let closings = self.closings(&place, value, closing)?;
                self.object(&place, fields, closing, &closings)
            }
            _ => Err(error(place, "a schema is an object or a boolean")),
        }
    }

    fn object(
        &mut self,
        place: &SchemaPlace,
        fields: &'a Map<String, Value>,
        closing: &Closing,
        closings: &Closings,
    ) -> Result<Value, SchemaError> {
        // A reference alone: its target is closed at its definition.
        let is_reference = |name: &String| keyword(name) != Keyword::Annotation;
        if fields.contains_key("$ref") && fields.keys().filter(|key| is_reference(key)).count() == 1
        {
            let value = self.reference(place, &fields["$ref"], closing)?;
            return Ok(json!({ "$ref": value }));
        }
        let mut out = Map::new();
        for (name, value) in fields {
            if let Some(value) = self.keyword(place, name, value, fields, closings)? {
                out.insert(name.clone(), value);
            }
        }
        let kind = fields.get("type");
        if kind.is_none() && fields.contains_key("properties") {
            out.insert("type".to_owned(), json!("object"));
        }
        if let Some(declared) = &closings.own {
            close(&mut out, declared);
        }
        check_ranges(place, &out)?;
        bound_integers(place, &mut out)?;
        Ok(Value::Object(out))
    }

    /// The value of a keyword, if it matters to the grammar engine.
    fn keyword(
        &mut self,
        place: &SchemaPlace,
        name: &str,
        value: &'a Value,
        fields: &'a Map<String, Value>,
        closings: &Closings,
    ) -> Result<Option<Value>, SchemaError> {
        let here = place.child(name);
        let wrong = |expected: &str| {
            let problem = format!("'{name}' must be {expected}, not {}", kind_of(value));
            Err(error(&here, problem))
        };
        let is_tool = self.strictness == Strictness::Tool;
        let value = match keyword(name) {
            Keyword::Annotation => return Ok(None),
            Keyword::Unenforced if is_tool || is_neutral(name, value, fields) => return Ok(None),
            Keyword::Unenforced => {
                let problem = format!("the keyword '{name}' cannot be enforced here");
                return Err(error(&here, problem));
            }
            Keyword::Schema => self.schema(&here, value, &closings.values)?,
            Keyword::SchemaOrList if !value.is_array() => {
                self.schema(&here, value, &closings.values)?
            }
            Keyword::List | Keyword::SchemaOrList => match value {
                Value::Array(list)
                    if !list.is_empty() || name == "items" || name == "prefixItems" =>
                {
                    let closing = match name {
                        "allOf" => &closings.all,
                        "anyOf" | "oneOf" => &closings.any,
                        _ => &closings.values,
                    };
                    self.list(&here, list, closing)?
                }
                _ => return wrong("a list of schemas that is not empty"),
            },
            Keyword::Map => match value {
                Value::Object(schemas) => self.map(&here, schemas, &closings.values)?,
                _ => return wrong("an object of schemas"),
            },
            Keyword::Bound if value.is_number() || value.is_boolean() => value.clone(),
            Keyword::Bound => return wrong("a number"),
            Keyword::Multiple if value.as_f64().is_some_and(|number| number > 0.0) => value.clone(),
            Keyword::Multiple => return wrong("a number above 0"),
            Keyword::Count => match count(value) {
                Some(_) if is_tool && is_unenforced_count(name, fields) => return Ok(None),
                Some(count) => count.into(),
                None => return wrong("an integer of at least 0"),
            },
            Keyword::Values => match value {
                Value::Array(values) if !values.is_empty() => {
                    check_exact(&here, value)?;
                    value.clone()
                }
                _ => return wrong("a list of values that is not empty"),
            },
            Keyword::Value => {
                check_exact(&here, value)?;
                value.clone()
            }
            Keyword::Type => checked_type(&here, value)?,
            Keyword::Pattern if value.is_string() => value.clone(),
            Keyword::Pattern => return wrong("a string"),
            Keyword::Format => match value.as_str() {
                Some(format) if FORMATS.contains(&format) => value.clone(),
                Some(_) if is_tool => return Ok(None),
                Some(format) => {
                    let problem = format!("the format '{format}' cannot be enforced here");
                    return Err(error(&here, problem));
                }
                None => return wrong("a string"),
            },
            Keyword::Names => match value.as_array() {
                Some(names) if names.iter().all(Value::is_string) => value.clone(),
                // Draft 3 had this keyword beside the property's own keywords; there it restricts
                // nothing.
                None if value.is_boolean() && is_tool => return Ok(None),
                _ => return wrong("a list of strings"),
            },
            Keyword::Reference => self.reference(place, value, &closings.all)?.into(),
        };
        Ok(Some(value))
    }

    fn list(
        &mut self,
        place: &SchemaPlace,
        list: &'a [Value],
        closing: &Closing,
    ) -> Result<Value, SchemaError> {
        let schemas = list.iter().enumerate();
        schemas
            .map(|(index, schema)| self.schema(&place.child(&index.to_string()), schema, closing))
            .collect()
    }

    fn map(
        &mut self,
        place: &SchemaPlace,
        schemas: &'a Map<String, Value>,
        closing: &Closing,
    ) -> Result<Value, SchemaError> {
        let mut out = Map::new();
        for (name, schema) in schemas {
            out.insert(
                name.clone(),
                self.schema(&place.child(name), schema, closing)?,
            );
        }
        Ok(Value::Object(out))
    }

    /// The reference to the definition that `value` names.
    fn reference(
        &mut self,
        place: &SchemaPlace,
        value: &Value,
        closing: &Closing,
    ) -> Result<String, SchemaError> {
        let here = place.child("$ref");
        let Some(reference) = value.as_str() else {
            let problem = format!("'$ref' must be a string, not {}", kind_of(value));
            return Err(error(&here, problem));
        };
        let Some((target, schema)) = self.references.resolve(reference, &place.base) else {
            let shown: String = reference.chars().take(120).collect();
            return Err(error(
                &here,
                format!("'{shown}' names nothing in this schema"),
            ));
        };
        self.check_loop(&here, &target, schema, &mut Vec::new())?;
        let key = (target.pointer.clone(), closing.clone());
        let next = self.definitions.len();
        let index = *self.names.entry(key).or_insert(next);
        if index == next {
            self.definitions.push((target, schema, closing.clone()));
        }
        Ok(format!("#/$defs/d{index}"))
    }

    /// Refuses references that lead back to where they started, with no value in between.
    fn check_loop(
        &mut self,
        here: &SchemaPlace,
        target: &SchemaPlace,
        schema: &'a Value,
        passed: &mut Vec<String>,
    ) -> Result<(), SchemaError> {
        if self.without_loops.contains(&target.pointer) {
            return Ok(());
        }
        if passed.contains(&target.pointer) || passed.len() > DEPTH_MAX {
            return Err(error(here, "the references lead back to themselves"));
        }
        passed.push(target.pointer.clone());
        for (place, part) in self.conjuncts(target, schema) {
            self.check_loop(here, &place, part, passed)?;
        }
        passed.pop();
        self.without_loops.insert(target.pointer.clone());
        Ok(())
    }

    /// Schemas that a value of this schema must also fit: elements of `allOf`, and the target of
    /// `$ref`.
    fn conjuncts(&self, place: &SchemaPlace, schema: &'a Value) -> Vec<(SchemaPlace, &'a Value)> {
        let named = schema.get("$ref").and_then(Value::as_str);
        let named = named.and_then(|reference| self.references.resolve(reference, &place.base));
        let all = elements(place, schema, "allOf");
        all.chain(named).collect()
    }

    /// Properties that a schema and its parts declare.
    fn declared(
        &mut self,
        place: &SchemaPlace,
        schema: &'a Value,
    ) -> Result<Declared, SchemaError> {
        let mut declared = Declared::default();
        let mut passed = HashSet::new();
        let mut open = vec![(place.clone(), schema)];
        while let Some((place, schema)) = open.pop() {
            if !passed.insert(place.pointer.clone()) {
                continue;
            }
            let place = place.entered(schema);
            let here = declared_here(schema);
            self.num_visits += 1 + here.names.len() + here.patterns.len();
            if self.num_visits > VISITS_MAX {
                let problem =
                    "the references of the schema lead to too many schemas and properties";
                return Err(error(&place, problem));
            }
            declared.add(here);
            open.extend(self.conjuncts(&place, schema));
            open.extend(elements(&place, schema, "anyOf"));
            open.extend(elements(&place, schema, "oneOf"));
        }
        Ok(declared)
    }

    /// How the parts of a schema, and the schema itself, are closed.
    fn closings(
        &mut self,
        place: &SchemaPlace,
        schema: &'a Value,
        closing: &Closing,
    ) -> Result<Closings, SchemaError> {
        let own = declared_here(schema);
        let is_never = *closing == Closing::Never;
        let parts = self.conjuncts(place, schema).into_iter();
        let parts = parts
            .filter(|_| !is_never)
            .map(|(place, part)| self.declared(&place, part))
            .collect::<Result<Vec<_>, _>>()?;
        // A value that two parts describe must not be closed by either part: each would forbid the
        // properties of the other.
        let is_shared = is_never || have_common_names(&own, &parts);
        let mut closings = Closings {
            all: if is_shared {
                Closing::Never
            } else {
                Closing::Within
            },
            any: if is_shared {
                Closing::Never
            } else {
                Closing::Within
            },
            values: if is_shared {
                Closing::Never
            } else {
                closing.within()
            },
            own: None,
        };
        let Closing::Here(beside) = closing else {
            return Ok(closings);
        };
        let mut total = beside.clone();
        total.add(own);
        parts.into_iter().for_each(|part| total.add(part));
        if total.says_otherwise {
            return Ok(closings);
        }
        let is_union = |name: &str| schema.get(name).is_some();
        if is_union("anyOf") != is_union("oneOf") {
            total.has_properties = false;
            closings.any = Closing::Here(total);
            return Ok(closings);
        }
        for name in ["anyOf", "oneOf"] {
            for (place, part) in elements(place, schema, name) {
                total.add(self.declared(&place, part)?);
            }
        }
        let is_closed = (total.has_properties || !beside.is_empty()) && !total.says_otherwise;
        closings.own = is_closed.then_some(total);
        Ok(closings)
    }
}

/// The elements of a list of schemas.
fn elements<'v>(
    place: &SchemaPlace,
    schema: &'v Value,
    name: &str,
) -> impl Iterator<Item = (SchemaPlace, &'v Value)> {
    let list = schema.get(name).and_then(Value::as_array);
    let here = place.child(name);
    let elements = list.into_iter().flatten().enumerate();
    elements.map(move |(index, part)| (here.child(&index.to_string()).entered(part), part))
}

/// Properties that a schema itself declares or requires.
fn declared_here(schema: &Value) -> Declared {
    let keys = |name: &str| {
        let fields = schema.get(name).and_then(Value::as_object);
        fields.into_iter().flat_map(Map::keys).cloned()
    };
    let required = schema.get("required").and_then(Value::as_array);
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    let has = |name: &str| schema.get(name).is_some();
    let unevaluated = schema.get("unevaluatedProperties");
    Declared {
        names: keys("properties")
            .chain(required.map(str::to_owned))
            .collect(),
        patterns: keys("patternProperties").collect(),
        has_properties: has("properties") || has("patternProperties"),
        says_otherwise: has("additionalProperties")
            || unevaluated.is_some_and(|value| *value != json!(false)),
    }
}

fn have_common_names(own: &Declared, parts: &[Declared]) -> bool {
    let mut names = own.names.clone();
    parts.iter().any(|part| {
        let is_common = !part.names.is_disjoint(&names);
        names.extend(part.names.iter().cloned());
        is_common
    })
}

/// Forbids properties that are not declared.
fn close(schema: &mut Map<String, Value>, declared: &Declared) {
    for (keyword, names) in [
        ("properties", &declared.names),
        ("patternProperties", &declared.patterns),
    ] {
        if names.is_empty() {
            continue;
        }
        let known = schema.entry(keyword).or_insert_with(|| json!({}));
        for name in names {
            if known.get(name).is_none() {
                known[name] = json!(true);
            }
        }
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
}

/// Refuses empty ranges: the engine would silently drop an optional property with such a range.
fn check_ranges(place: &SchemaPlace, schema: &Map<String, Value>) -> Result<(), SchemaError> {
    for (lower, upper) in [
        ("minimum", "maximum"),
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
        ("minProperties", "maxProperties"),
    ] {
        let (Some(least), Some(most)) = (schema.get(lower), schema.get(upper)) else {
            continue;
        };
        let is_empty = least.as_f64().zip(most.as_f64());
        if is_empty.is_some_and(|(least, most)| least > most) {
            let problem = format!("'{lower}' is {least}, more than '{upper}', {most}");
            return Err(error(place, problem));
        }
    }
    Ok(())
}

/// The largest bound of an integer: the largest `f64` below 2⁶³, since the grammar engine has
/// bounds as `f64` and computes with them as `i64`.
const INTEGER_MAX: f64 = 9_223_372_036_854_774_784.0;
/// From here on an integer needs bounds on both sides.
const INTEGER_ONE_SIDED_MAX: f64 = 1e18;

/// Moves the bounds of integers to where the grammar engine can enforce them: never outwards, and
/// inwards at most to 64 bits.
fn bound_integers(place: &SchemaPlace, schema: &mut Map<String, Value>) -> Result<(), SchemaError> {
    let is_integer = match schema.get("type") {
        Some(Value::String(kind)) => kind == "integer",
        Some(Value::Array(kinds)) => kinds.contains(&json!("integer")),
        _ => false,
    };
    if !is_integer {
        bound_numbers(schema);
        return Ok(());
    }
    let (mut lowest, mut highest) = (None, None);
    for (name, sign) in BOUNDS {
        let Some(bound) = schema.get(name).filter(|bound| bound.is_number()) else {
            continue;
        };
        let inner = sign * inward(bound, sign);
        if inner > INTEGER_MAX {
            let problem = format!("'{name}' is beyond integers of 64 bits");
            return Err(error(&place.child(name), problem));
        }
        let bound = sign * inner.max(-INTEGER_MAX);
        schema.insert(name.to_owned(), json!(bound));
        if sign > 0.0 {
            lowest = Some(bound);
        } else {
            highest = Some(bound);
        }
    }
    match (lowest, highest) {
        (Some(lowest), None) if lowest >= INTEGER_ONE_SIDED_MAX => {
            schema.insert("maximum".to_owned(), json!(INTEGER_MAX));
        }
        (None, Some(highest)) if highest <= -INTEGER_ONE_SIDED_MAX => {
            schema.insert("minimum".to_owned(), json!(-INTEGER_MAX));
        }
        _ => {}
    }
    Ok(())
}

/// The largest bound of a number: the largest `f64` below 10¹⁸. The grammar engine supports no more
/// digits before the point.
const NUMBER_MAX: f64 = 999_999_999_999_999_872.0;
/// No number in an answer is this large: see the limits on digits and exponents in `grammar.rs`.
const NUMBER_UNREACHED: f64 = 1e160;

/// Moves the bounds of numbers inwards to where the grammar engine can enforce them, and removes
/// bounds that no number reaches, such as the largest `f64`.
fn bound_numbers(schema: &mut Map<String, Value>) {
    for (name, sign) in BOUNDS {
        let Some(bound) = schema.get(name).and_then(Value::as_f64) else {
            continue;
        };
        // Distance between zero and the bound, on the side that the bound allows.
        let room = -sign * bound;
        if room >= NUMBER_UNREACHED {
            schema.shift_remove(name);
        } else if room > NUMBER_MAX {
            schema.insert(name.to_owned(), json!(-sign * NUMBER_MAX));
        }
    }
}

/// Bounds, with 1 for lower and -1 for upper ones.
const BOUNDS: [(&str, f64); 4] = [
    ("minimum", 1.0),
    ("exclusiveMinimum", 1.0),
    ("maximum", -1.0),
    ("exclusiveMaximum", -1.0),
];

/// The nearest `f64` to a bound that is not outside of it; `sign` is 1 for a lower bound.
fn inward(bound: &Value, sign: f64) -> f64 {
    let rounded = bound.as_f64().unwrap_or_default();
    let exact = bound
        .as_i64()
        .map(i128::from)
        .or(bound.as_u64().map(i128::from));
    let is_outside = |exact: i128| {
        let rounded = rounded as i128;
        if sign > 0.0 {
            rounded < exact
        } else {
            rounded > exact
        }
    };
    match exact {
        Some(exact) if is_outside(exact) && sign > 0.0 => rounded.next_up(),
        Some(exact) if is_outside(exact) => rounded.next_down(),
        _ => rounded,
    }
}

/// Refuses integers that an `f64` cannot represent, because the grammar engine would write another
/// integer.
fn check_exact(place: &SchemaPlace, value: &Value) -> Result<(), SchemaError> {
    match value {
        Value::Number(number) => {
            let exact = number
                .as_i64()
                .map(i128::from)
                .or(number.as_u64().map(i128::from));
            let rounded = number.as_f64().map(|rounded| rounded as i128);
            if exact.is_some() && exact != rounded {
                let problem = format!("the integer {number} is too large to be enforced exactly");
                return Err(error(place, problem));
            }
            Ok(())
        }
        Value::Array(list) => (0..)
            .zip(list)
            .try_for_each(|(index, value)| check_exact(&place.child(&format!("{index}")), value)),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| check_exact(&place.child(name), value)),
        _ => Ok(()),
    }
}

fn checked_type(place: &SchemaPlace, value: &Value) -> Result<Value, SchemaError> {
    let kinds = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(kinds) if !kinds.is_empty() => kinds,
        _ => return Err(error(place, "'type' must be a type or a list of types")),
    };
    for kind in kinds {
        if !kind.as_str().is_some_and(|kind| TYPES.contains(&kind)) {
            let shown: String = kind.to_string().chars().take(60).collect();
            let problem = format!("{shown} is not a type; types are {}", TYPES.join(", "));
            return Err(error(place, problem));
        }
    }
    Ok(value.clone())
}

/// A count, which may be written as 2.0.
fn count(value: &Value) -> Option<u64> {
    let whole = |number: &f64| (0.0..=1e15).contains(number) && number.fract() == 0.0;
    let from_float = || value.as_f64().filter(whole).map(|number| number as u64);
    value.as_u64().or_else(from_float)
}

/// Whether the grammar engine cannot count the properties of an object: some are optional.
fn is_unenforced_count(name: &str, schema: &Map<String, Value>) -> bool {
    let is_required = |property: &String| {
        let required = schema.get("required").and_then(Value::as_array);
        required.is_some_and(|names| names.iter().any(|name| name == property))
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    name.ends_with("Properties")
        && properties.is_some_and(|properties| !properties.keys().all(is_required))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
pub(crate) mod tests;
