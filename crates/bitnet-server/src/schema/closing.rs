//! Closed objects: which properties a schema declares, so that others can be forbidden.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Properties that a schema declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Declared {
    pub(super) names: BTreeSet<String>,
    pub(super) patterns: BTreeSet<String>,
    /// Whether it has `properties`, even if they are empty.
    pub(super) has_properties: bool,
    /// Whether the schema itself has a rule for other properties.
    pub(super) has_rule_for_others: bool,
}

impl Declared {
    pub(super) fn add(&mut self, other: Self) {
        self.names.extend(other.names);
        self.patterns.extend(other.patterns);
        self.has_properties |= other.has_properties;
        self.has_rule_for_others |= other.has_rule_for_others;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }
}

/// Whether objects are closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Closing {
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
    pub(super) fn within(&self) -> Self {
        match self {
            Self::Never => Self::Never,
            Self::Within | Self::Here(_) => Self::Here(Declared::default()),
        }
    }
}

/// Properties that a schema itself declares or requires.
pub(super) fn declared_here(schema: &Value) -> Declared {
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
        has_rule_for_others: has("additionalProperties")
            || unevaluated.is_some_and(|value| *value != json!(false)),
    }
}

pub(super) fn have_common_names(own: &Declared, parts: &[Declared]) -> bool {
    let mut names = own.names.clone();
    parts.iter().any(|part| {
        let is_common = !part.names.is_disjoint(&names);
        names.extend(part.names.iter().cloned());
        is_common
    })
}

/// Forbids properties that are not declared.
pub(super) fn close(schema: &mut Map<String, Value>, declared: &Declared) {
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
