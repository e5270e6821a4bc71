//! [`References`]: finds the schema that a `$ref` names, as RFC 6901 and RFC 3986 say.

use std::collections::HashMap;

use fluent_uri::{Iri, IriRef};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::keywords::subschemas;

/// The base of a document without `$id`.
const DEFAULT_BASE: &str = "json-schema:///";

/// Where a schema is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SchemaPlace {
    /// Its JSON pointer within the document, with `~0` and `~1`; empty for the root.
    pub(super) pointer: String,
    /// The base URI of references in it: the nearest `$id` around it, without a fragment.
    pub(super) base: String,
}

impl SchemaPlace {
    /// The place of `value`, one step further down.
    pub(super) fn child(&self, step: &str) -> Self {
        Self {
            pointer: format!("{}/{}", self.pointer, escaped(step)),
            base: self.base.clone(),
        }
    }

    /// The same place with the base that the schema there declares.
    pub(super) fn entered(mut self, schema: &Value) -> Self {
        if let Some(base) = declared_base(schema, &self.base) {
            self.base = base;
        }
        self
    }
}

/// All places of a document that references can name.
pub(super) struct References<'a> {
    root: &'a Value,
    /// By URI without a fragment.
    resources: HashMap<String, SchemaPlace>,
    /// By URI and anchor.
    anchors: HashMap<(String, String), SchemaPlace>,
}

impl<'a> References<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        let mut references = Self {
            root,
            resources: HashMap::new(),
            anchors: HashMap::new(),
        };
        let start = references.root_place();
        let mut open = vec![(start, root)];
        while let Some((place, schema)) = open.pop() {
            references.add(&place, schema);
            for (steps, child) in subschemas(schema) {
                let child_place = steps.iter().fold(place.clone(), |at, step| at.child(step));
                open.push((child_place.entered(child), child));
            }
        }
        references
    }

    /// The place of the document itself.
    pub(super) fn root_place(&self) -> SchemaPlace {
        SchemaPlace {
            pointer: String::new(),
            base: DEFAULT_BASE.to_owned(),
        }
        .entered(self.root)
    }

    fn add(&mut self, place: &SchemaPlace, schema: &Value) {
        if place.pointer.is_empty() || declared_id(schema).is_some() {
            self.resources
                .entry(place.base.clone())
                .or_insert_with(|| place.clone());
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        // Before `$anchor` there was `$id` with a fragment alone.
        let old_anchor = text("$id").and_then(|id| id.strip_prefix('#'));
        for anchor in [text("$anchor"), text("$dynamicAnchor"), old_anchor]
            .into_iter()
            .flatten()
        {
            self.anchors
                .entry((place.base.clone(), anchor.to_owned()))
                .or_insert_with(|| place.clone());
        }
    }

    /// The target of `reference` from a schema with this base; `None` if the document has no such
    /// place.
    pub(super) fn resolve(&self, reference: &str, base: &str) -> Option<(SchemaPlace, &'a Value)> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let uri = if uri.is_empty() {
            base.to_owned()
        } else {
            resolved(uri, base)?
        };
        let resource = self.resources.get(&uri)?;
        let decoded = percent_decode_str(fragment).decode_utf8().ok()?;
        if !decoded.is_empty() && !decoded.starts_with('/') {
            let place = self.anchors.get(&(uri, decoded.into_owned()))?;
            return Some((place.clone(), self.root.pointer(&place.pointer)?));
        }
        // A percent sign that does not begin an escape stands for itself.
        self.follow(resource, &decoded)
            .or_else(|| self.follow(resource, fragment))
    }

    /// The place that a JSON pointer names within a resource.
    fn follow(&self, resource: &SchemaPlace, pointer: &str) -> Option<(SchemaPlace, &'a Value)> {
        let mut place = resource.clone();
        let mut value = self.root.pointer(&place.pointer)?;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            value = match value {
                Value::Object(fields) => fields.get(&step)?,
                Value::Array(list) => list.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
            place = place.child(&step).entered(value);
        }
        Some((place, value))
    }
}

/// A step of a JSON pointer, as RFC 6901 §3 writes it.
pub(super) fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

/// The URI that a schema declares for itself, if any: `$id`, or `id` in draft 4.
fn declared_id(schema: &Value) -> Option<&str> {
    let is_draft_4 = |schema: &Value| {
        let draft = schema.get("$schema").and_then(Value::as_str);
        draft.is_some_and(|draft| draft.contains("draft-04"))
    };
    let id = schema
        .get("$id")
        .or_else(|| schema.get("id").filter(|_| is_draft_4(schema)))?;
    id.as_str().filter(|id| !id.starts_with('#'))
}

fn declared_base(schema: &Value, base: &str) -> Option<String> {
    let id = declared_id(schema)?;
    let (uri, _) = id.split_once('#').unwrap_or((id, ""));
    resolved(uri, base)
}

/// A URI reference against a base, as RFC 3986 §5 says; `None` if it is not a valid reference.
fn resolved(uri: &str, base: &str) -> Option<String> {
    let base = Iri::parse(base).ok()?;
    let uri = IriRef::parse(uri).ok()?.resolve_against(&base).ok()?;
    Some(uri.normalize().into_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn find(root: &Value, reference: &str) -> Option<Value> {
        let references = References::new(root);
        let base = references.root_place().base;
        references
            .resolve(reference, &base)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn pointers_are_read_as_rfc_6901_says() {
        // The example of section 5; each member becomes a definition.
        let document = json!({
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5,
            "k\"l": 6, " ": 7, "m~n": 8,
        });
        // Sections 5 and 6.
        for (pointer, fragment, expected) in [
            ("#/foo", "#/foo", json!(["bar", "baz"])),
            ("#/foo/0", "#/foo/0", json!("bar")),
            ("#/", "#/", json!(0)),
            ("#/a~1b", "#/a~1b", json!(1)),
            ("#/c%d", "#/c%25d", json!(2)),
            ("#/e^f", "#/e%5Ef", json!(3)),
            ("#/g|h", "#/g%7Ch", json!(4)),
            ("#/i\\j", "#/i%5Cj", json!(5)),
            ("#/k\"l", "#/k%22l", json!(6)),
            ("#/ ", "#/%20", json!(7)),
            ("#/m~0n", "#/m~0n", json!(8)),
        ] {
            assert_eq!(
                find(&document, pointer).as_ref(),
                Some(&expected),
                "{pointer}"
            );
            assert_eq!(find(&document, fragment), Some(expected), "{fragment}");
        }
        assert_eq!(find(&document, "#").as_ref(), Some(&document));
        for missing in [
            "#/nope",
            "#/foo/2",
            "#/foo/-",
            "#nope",
            "other.json",
            "#/foo/0/x",
        ] {
            assert_eq!(find(&document, missing), None, "{missing}");
        }
    }

    #[test]
    fn uris_are_resolved_against_the_nearest_id() {
        let document = json!({
            "$id": "https://example.com/schemas/order",
            "$defs": {
                "item": { "$id": "item", "title": "item", "$defs": { "x": { "title": "x" } } },
                "named": { "$anchor": "here", "title": "named" },
                "old": { "$id": "#there", "title": "old" },
            },
        });
        for (reference, title) in [
            ("https://example.com/schemas/order#/$defs/named", "named"),
            ("order#/$defs/named", "named"),
            ("../schemas/./order#here", "named"),
            ("#here", "named"),
            ("#there", "old"),
            ("item", "item"),
            ("/schemas/item#/$defs/x", "x"),
            ("#/$defs/item/$defs/x", "x"),
            ("HTTPS://EXAMPLE.com/schemas/item", "item"),
        ] {
            let found = find(&document, reference).unwrap_or_else(|| panic!("{reference}"));
            assert_eq!(found["title"], title, "{reference}");
        }
        // An anchor belongs to its own resource, and nothing is fetched.
        for missing in [
            "item#here",
            "https://example.com/other",
            "//[",
            "#/$defs/none",
        ] {
            assert_eq!(find(&document, missing), None, "{missing}");
        }
    }

    #[test]
    fn names_of_generated_definitions_are_found_escaped_or_not() {
        let document = json!({ "definitions": { "Box<int>": 1, "ümläut.x[]": 2, "100%": 3 } });
        for (reference, expected) in [
            ("#/definitions/Box%3Cint%3E", 1),
            ("#/definitions/Box<int>", 1),
            ("#/definitions/ümläut.x[]", 2),
            ("#/definitions/%C3%BCml%C3%A4ut.x%5B%5D", 2),
            ("#/definitions/100%25", 3),
            ("#/definitions/100%", 3),
        ] {
            assert_eq!(
                find(&document, reference),
                Some(json!(expected)),
                "{reference}"
            );
        }
    }
}
