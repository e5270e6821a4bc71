//! [`Normalizer`]: makes a schema for the grammar engine from a client's schema.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::closing::{Closing, Declared, close, declared_here, have_common_names};
use super::error::{SchemaError, error};
use super::keywords::{
    FORMATS, Keyword, TYPES, count, is_neutral, is_unenforced_count, keyword, kind_of,
};
use super::numbers::{bound_integers, check_exact, check_ranges};
use super::patterns;
use super::references::{References, SchemaPlace};

/// Maximum number of schemas within a schema, with the copies that closing objects needs.
const SCHEMAS_MAX: usize = 20_000;
/// Maximum depth of schemas within schemas.
const DEPTH_MAX: usize = 96;
/// Maximum number of schemas and properties that are visited to find out which objects are closed.
/// Each schema visits all parts that it reaches, so the number can grow with the square of the size;
/// this many take about a second.
pub(crate) const VISITS_MAX: usize = 300_000;

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

/// Makes a schema for the grammar engine.
pub(super) struct Normalizer<'a> {
    references: References<'a>,
    strictness: Strictness,
    /// Indexes of definitions by pointer and closing.
    names: HashMap<(String, Closing), usize>,
    definitions: Vec<(SchemaPlace, &'a Value, Closing)>,
    /// Pointers to schemas whose references do not lead back to them.
    without_loops: HashSet<String>,
    num_schemas: usize,
    pub(super) num_visits: usize,
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
    /// schema: a whole document.
    pub(super) fn new(schema: &'a Value, strictness: Strictness) -> Self {
        Self {
            references: References::new(schema),
            strictness,
            names: HashMap::new(),
            definitions: Vec::new(),
            without_loops: HashSet::new(),
            num_schemas: 0,
            num_visits: 0,
        }
    }

    /// The schema of the document itself.
    pub(super) fn root(&mut self, schema: &'a Value) -> Result<Value, SchemaError> {
        let place = self.references.root_place();
        let closing = match self.strictness {
            Strictness::Form => Closing::Never,
            Strictness::Strict | Strictness::Tool => Closing::Here(Declared::default()),
        };
        match self.schema(&place, schema, &closing)? {
            Value::Bool(true) => Ok(json!({})),
            Value::Bool(false) => Err(error(&place, "no value fits 'false'")),
            value => Ok(value),
        }
    }

    /// Pointers to the definitions that are used, in the order of their names.
    pub(super) fn into_origins(self) -> Vec<String> {
        let definitions = self.definitions.into_iter();
        definitions.map(|(place, ..)| place.pointer).collect()
    }

    /// The definitions that are used, by their names.
    pub(super) fn definitions(&mut self) -> Result<Map<String, Value>, SchemaError> {
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
            Keyword::Pattern => match value.as_str() {
                Some(pattern) if is_tool && !patterns::is_enforced(pattern) => return Ok(None),
                Some(pattern) => patterns::in_engine_syntax(pattern).into(),
                None => return wrong("a string"),
            },
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
        if total.has_rule_for_others {
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
        let is_closed = (total.has_properties || !beside.is_empty()) && !total.has_rule_for_others;
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
