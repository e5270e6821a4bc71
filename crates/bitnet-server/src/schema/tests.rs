//! Tests of the normalization of clients' schemas.

use serde_json::{Value, json};

use super::keywords::FORMATS;
use super::{Schema, Strictness};

/// A normalized schema without the options for the grammar engine.
fn normalized(schema: &Value, strictness: Strictness) -> Value {
    let mut value = Schema::new(schema, strictness).expect("a schema").value;
    value
        .as_object_mut()
        .expect("an object")
        .remove("x-guidance");
    value
}

fn problem(schema: &Value, strictness: Strictness) -> (String, String) {
    let error = Schema::new(schema, strictness).expect_err(&schema.to_string());
    (error.pointer, error.problem)
}

/// A schema with `within` as the property `p` of its property `o`.
fn nested(within: Value) -> Value {
    json!({ "type": "object", "properties": {
        "o": { "type": "object", "properties": { "p": within } },
    } })
}

#[test]
fn an_error_names_the_keyword_and_its_place() {
    let at = |steps: &str| format!("/properties/o/properties/p{steps}");
    for (within, steps, expected) in [
        (json!(7), "", "object or a boolean"),
        (json!({ "type": "str" }), "/type", "\"str\" is not a type"),
        (json!({ "type": [] }), "/type", "'type'"),
        (json!({ "enum": [] }), "/enum", "'enum'"),
        (json!({ "enum": "a" }), "/enum", "not a string"),
        (json!({ "anyOf": [] }), "/anyOf", "'anyOf'"),
        (
            json!({ "anyOf": [true, 3] }),
            "/anyOf/1",
            "object or a boolean",
        ),
        (json!({ "properties": [] }), "/properties", "not a list"),
        (json!({ "required": "a" }), "/required", "'required'"),
        (json!({ "minLength": -1 }), "/minLength", "'minLength'"),
        (json!({ "maxItems": 1.5 }), "/maxItems", "'maxItems'"),
        (json!({ "minimum": "1" }), "/minimum", "'minimum'"),
        (json!({ "multipleOf": 0 }), "/multipleOf", "'multipleOf'"),
        (json!({ "pattern": 1 }), "/pattern", "'pattern'"),
        (json!({ "format": 1 }), "/format", "'format'"),
        (
            json!({ "items": [{ "type": "int" }] }),
            "/items/0/type",
            "\"int\"",
        ),
        (json!({ "$ref": 1 }), "/$ref", "'$ref'"),
        (json!({ "$ref": "#/$defs/no" }), "/$ref", "names nothing"),
        (
            json!({ "$ref": "https://example.com/x" }),
            "/$ref",
            "names nothing",
        ),
        (
            json!({ "patternProperties": { "a/b~": 1 } }),
            "/patternProperties/a~1b~0",
            "object or",
        ),
    ] {
        for strictness in [Strictness::Form, Strictness::Strict, Strictness::Tool] {
            let (pointer, problem) = problem(&nested(within.clone()), strictness);
            assert_eq!(pointer, at(steps), "{within}: {problem}");
            assert!(problem.contains(expected), "{within}: {problem}");
        }
    }
    let error =
        Schema::new(&nested(json!({ "enum": [] })), Strictness::Form).expect_err("an error");
    assert!(
        error
            .to_string()
            .starts_with("at '#/properties/o/properties/p/enum': ")
    );
}

#[test]
fn empty_ranges_are_refused() {
    for (lower, upper) in [
        ("minimum", "maximum"),
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
        ("minProperties", "maxProperties"),
    ] {
        let (pointer, problem) = problem(&nested(json!({ lower: 3, upper: 2 })), Strictness::Tool);
        assert_eq!(pointer, "/properties/o/properties/p");
        assert_eq!(problem, format!("'{lower}' is 3, more than '{upper}', 2"));
        assert!(Schema::new(&json!({ lower: 2, upper: 2 }), Strictness::Form).is_ok());
    }
}

#[test]
fn unenforced_keywords_are_annotations_of_tools_and_refused_elsewhere() {
    for (keyword, value) in [
        ("uniqueItems", json!(true)),
        ("propertyNames", json!({ "enum": ["a", "b"] })),
        ("not", json!({ "const": 1 })),
        ("dependentRequired", json!({ "a": ["b"] })),
        ("dependentSchemas", json!({ "a": { "required": ["b"] } })),
        ("contains", json!({ "type": "string" })),
        ("unevaluatedItems", json!(false)),
        ("unevaluatedProperties", json!(false)),
        ("format", json!("path")),
        ("format", json!("uuid4")),
        ("$dynamicRef", json!("#node")),
    ] {
        let named = match (keyword, value.as_str()) {
            ("format", Some(format)) => format,
            _ => keyword,
        };
        let within = json!({ "type": "array", keyword: value });
        let schema = nested(within);
        let expected = nested(json!({ "type": "array" }));
        let tool = normalized(&schema, Strictness::Tool);
        assert_eq!(
            tool["properties"]["o"]["properties"],
            expected["properties"]["o"]["properties"]
        );
        for strictness in [Strictness::Form, Strictness::Strict] {
            let (pointer, problem) = problem(&schema, strictness);
            assert_eq!(pointer, format!("/properties/o/properties/p/{keyword}"));
            assert!(problem.contains(named), "{problem}");
        }
    }
    let conditional = json!({ "if": { "required": ["a"] }, "then": { "required": ["b"] } });
    assert_eq!(normalized(&conditional, Strictness::Tool), json!({}));
    assert_eq!(problem(&conditional, Strictness::Form).0, "/if");
}

#[test]
fn unenforced_keywords_that_restrict_nothing_are_accepted() {
    let schema = json!({
        "uniqueItems": false, "not": false, "propertyNames": true, "unevaluatedItems": {},
        "dependentRequired": {}, "if": true, "minContains": 1, "title": "x", "$comment": "y",
        "default": 3, "examples": [], "x-order": 1, "deprecated": true, "nullable": true,
    });
    assert_eq!(normalized(&schema, Strictness::Strict), json!({}));
    assert_eq!(
        normalized(&json!({ "else": { "type": "null" } }), Strictness::Form),
        json!({})
    );
    assert_eq!(normalized(&json!(true), Strictness::Form), json!({}));
}

#[test]
fn expressions_with_look_around_are_annotations_of_tools() {
    let schema = json!({ "type": "string", "pattern": r"^(?=.*\d).{8,}$" });
    assert_eq!(
        normalized(&schema, Strictness::Tool),
        json!({ "type": "string" })
    );
    assert_eq!(normalized(&schema, Strictness::Strict), schema);
    let url = json!({ "type": "string", "pattern": r"^[\w:/?#[\]@&&]+$" });
    for strictness in [Strictness::Tool, Strictness::Form] {
        assert_eq!(
            normalized(&url, strictness)["pattern"],
            r"^[\w:/?#\[\]@&\&]+$"
        );
    }
}

#[test]
fn known_formats_are_kept() {
    for format in FORMATS {
        let schema = json!({ "type": "string", "format": format });
        assert_eq!(normalized(&schema, Strictness::Tool), schema);
        assert_eq!(normalized(&schema, Strictness::Strict), schema);
    }
}

#[test]
fn objects_that_declare_properties_are_closed_in_tools_and_strict_forms() {
    let a = json!({ "type": "object", "properties": { "a": { "type": "null" } } });
    let closed = json!({ "type": "object", "properties": { "a": { "type": "null" } },
        "additionalProperties": false });
    assert_eq!(normalized(&a, Strictness::Form), a);
    for strictness in [Strictness::Tool, Strictness::Strict] {
        assert_eq!(normalized(&a, strictness), closed);
        let list = json!({ "items": a, "prefixItems": [a], "anyOf": [a, { "type": "null" }] });
        let closed_list = json!({ "items": closed, "prefixItems": [closed], "anyOf": [closed, { "type": "null" }] });
        assert_eq!(normalized(&list, strictness), closed_list);
        for open in [
            json!({ "type": "object" }),
            json!({ "type": "object", "required": ["a"] }),
            json!({ "properties": { "a": true }, "additionalProperties": true, "type": "object" }),
            json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        ] {
            assert_eq!(normalized(&open, strictness), open);
        }
        let empty = json!({ "type": "object", "properties": {} });
        assert_eq!(
            normalized(&empty, strictness)["additionalProperties"],
            false
        );
    }
    let has_rule_for_others =
        json!({ "properties": {}, "unevaluatedProperties": { "type": "string" } });
    assert_eq!(
        normalized(&has_rule_for_others, Strictness::Tool),
        json!({ "properties": {}, "type": "object" })
    );
}

#[test]
fn an_object_in_parts_is_closed_as_a_whole() {
    let string = json!({ "type": "string" });
    let schema = json!({
        "properties": { "a": string },
        "allOf": [{ "properties": { "b": string } }, { "$ref": "#/$defs/c" }],
        "required": ["z"],
        "$defs": { "c": { "properties": { "c": { "properties": { "x": string } } } } },
    });
    let open_c = json!({ "type": "object", "properties": {
        "c": { "type": "object", "properties": { "x": string }, "additionalProperties": false },
    } });
    let expected = json!({
        "type": "object",
        "properties": { "a": string, "b": true, "c": true, "z": true },
        "allOf": [
            { "type": "object", "properties": { "b": string } },
            { "$ref": "#/$defs/d0" },
        ],
        "required": ["z"],
        "additionalProperties": false,
        "$defs": { "d0": open_c },
    });
    assert_eq!(normalized(&schema, Strictness::Tool), expected);
}

#[test]
fn each_alternative_is_closed_with_the_shared_properties() {
    let schema = json!({
        "type": "object", "properties": { "a": true },
        "anyOf": [{ "properties": { "b": true } }, { "required": ["a"] }],
    });
    let expected = json!({
        "type": "object", "properties": { "a": true },
        "anyOf": [
            { "type": "object", "properties": { "b": true, "a": true },
              "additionalProperties": false },
            { "required": ["a"], "properties": { "a": true }, "additionalProperties": false },
        ],
    });
    assert_eq!(normalized(&schema, Strictness::Strict), expected);
}

#[test]
fn a_property_that_two_parts_describe_is_not_closed() {
    let with = |name: &str| json!({ "properties": { "x": { "properties": { name: true } } } });
    let schema = json!({ "allOf": [with("a"), with("b")] });
    let value = normalized(&schema, Strictness::Tool);
    assert_eq!(value["properties"], json!({ "x": true }));
    assert_eq!(value["additionalProperties"], false);
    for part in [&value["allOf"][0], &value["allOf"][1]] {
        assert!(
            part["properties"]["x"]
                .get("additionalProperties")
                .is_none(),
            "{value}"
        );
    }
}

#[test]
fn references_get_plain_names() {
    let schema = json!({
        "$id": "https://example.com/tree",
        "properties": {
            "self": { "$ref": "https://example.com/tree" },
            "escaped": { "$ref": "#/definitions/a~1b%3Cc%3E" },
            "anchored": { "$ref": "#leaf", "description": "a leaf" },
        },
        "definitions": { "a/b<c>": { "type": "null" }, "leaf": { "$anchor": "leaf", "const": 1 } },
    });
    let expected = json!({
        "properties": {
            "self": { "$ref": "#/$defs/d0" },
            "escaped": { "$ref": "#/$defs/d1" },
            "anchored": { "$ref": "#/$defs/d2" },
        },
        "type": "object",
        "$defs": {
            "d0": {
                "properties": {
                    "self": { "$ref": "#/$defs/d0" },
                    "escaped": { "$ref": "#/$defs/d1" },
                    "anchored": { "$ref": "#/$defs/d2" },
                },
                "type": "object",
            },
            "d1": { "type": "null" },
            "d2": { "const": 1 },
        },
    });
    assert_eq!(normalized(&schema, Strictness::Form), expected);
}

#[test]
fn references_that_lead_back_to_themselves_are_refused() {
    let pair = json!({ "$ref": "#/$defs/a", "$defs": {
        "a": { "allOf": [{ "$ref": "#/$defs/b" }] }, "b": { "$ref": "#/$defs/a" },
    } });
    for schema in [
        json!({ "$ref": "#" }),
        json!({ "allOf": [{ "$ref": "#" }] }),
        pair,
    ] {
        let (_, problem) = problem(&schema, Strictness::Tool);
        assert!(problem.contains("lead back"), "{problem}");
    }
    // With a property in between, the references describe trees.
    let tree = json!({ "properties": { "child": { "$ref": "#" } } });
    assert!(Schema::new(&tree, Strictness::Tool).is_ok());
}

#[test]
fn bounds_of_integers_are_kept_within_64_bits() {
    let bounds = |minimum: Value, maximum: Value| {
        let schema = json!({ "type": "integer", "minimum": minimum, "maximum": maximum });
        let value = normalized(&schema, Strictness::Form);
        (value["minimum"].clone(), value["maximum"].clone())
    };
    let largest = 9_223_372_036_854_774_784.0;
    assert_eq!(
        bounds(json!(i64::MIN), json!(i64::MAX)),
        (json!(-largest), json!(largest))
    );
    assert_eq!(
        bounds(json!(0), json!(u64::MAX)),
        (json!(0.0), json!(largest))
    );
    // 2^53 + 1 and its negative are not f64 numbers, so the bound moves to the next integer inside
    // the range.
    let odd = 9_007_199_254_740_993_i64;
    assert_eq!(
        bounds(json!(odd), json!(odd + 2)),
        (
            json!(9_007_199_254_740_994.0),
            json!(9_007_199_254_740_994.0)
        )
    );
    assert_eq!(
        bounds(json!(-odd), json!(1)),
        (json!(-9_007_199_254_740_992.0), json!(1.0))
    );
    let one_sided =
        json!({ "type": ["integer", "null"], "minimum": 2_000_000_000_000_000_000_i64 });
    assert_eq!(
        normalized(&one_sided, Strictness::Form)["maximum"],
        json!(largest)
    );
    let beyond = json!({ "type": "integer", "minimum": 1e20 });
    assert_eq!(problem(&beyond, Strictness::Form).0, "/minimum");
}

#[test]
fn unreachable_bounds_of_numbers_are_left_out() {
    let all = json!({ "type": "number", "minimum": -f64::MAX, "exclusiveMaximum": f64::MAX });
    assert_eq!(
        normalized(&all, Strictness::Strict),
        json!({ "type": "number" })
    );
    let large = json!({ "type": "number", "minimum": -1e20, "maximum": 1e20 });
    let largest = 999_999_999_999_999_872.0;
    assert_eq!(
        normalized(&large, Strictness::Form),
        json!({ "type": "number", "minimum": -largest, "maximum": largest })
    );
    let plain = json!({ "minimum": -0.5, "maximum": 1e17 });
    assert_eq!(normalized(&plain, Strictness::Form), plain);
}

#[test]
fn integers_that_f64_cannot_hold_are_refused() {
    let odd = 9_007_199_254_740_993_i64;
    assert_eq!(
        problem(&json!({ "const": odd }), Strictness::Tool).0,
        "/const"
    );
    assert_eq!(
        problem(&json!({ "enum": [1, [odd]] }), Strictness::Form).0,
        "/enum/1/0"
    );
    assert!(Schema::new(&json!({ "const": odd - 1 }), Strictness::Form).is_ok());
}

#[test]
fn arguments_are_an_object() {
    let of = |parameters: Value| {
        let schema = Schema::of_arguments(Some(&parameters), false).expect("a schema");
        let mut value = schema.value;
        value
            .as_object_mut()
            .expect("an object")
            .remove("x-guidance");
        value
    };
    let none = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    assert_eq!(of(Value::Null), none);
    assert_eq!(
        of(json!({ "properties": {} }))["additionalProperties"],
        false
    );
    assert_eq!(of(json!({})), json!({ "type": "object" }));
    assert_eq!(
        of(json!({ "type": ["object", "null"] })),
        json!({ "type": "object" })
    );
    let list = Schema::of_arguments(Some(&json!({ "type": "array" })), false);
    assert_eq!(list.expect_err("an error").pointer, "/type");
    // Only some properties are optional: the engine cannot count them, and the count is an
    // annotation.
    let counted = json!({ "properties": { "a": true, "b": true }, "minProperties": 1 });
    assert_eq!(of(counted.clone()).get("minProperties"), None);
    let strict = Schema::of_arguments(Some(&counted), true).expect("a schema");
    assert_eq!(strict.value["minProperties"], 1);
}

#[test]
fn a_schema_that_is_too_large_is_refused() {
    let many: Vec<Value> = (0..30_000).map(|index| json!({ "const": index })).collect();
    let (_, problem) = problem(&json!({ "anyOf": many }), Strictness::Form);
    assert!(problem.contains("more than"), "{problem}");
}

/// An object with definitions, each of which refers to the next one.
pub(crate) fn chain(len: usize) -> Value {
    let definition = |index: usize| {
        let next = json!({ "$ref": format!("#/$defs/d{}", index + 1) });
        (
            format!("d{index}"),
            json!({ "anyOf": [next, { "type": "string" }] }),
        )
    };
    let mut definitions: serde_json::Map<_, _> = (0..len).map(definition).collect();
    definitions.insert(format!("d{len}"), json!({ "type": "string" }));
    json!({ "type": "object", "properties": { "p": { "$ref": "#/$defs/d0" } }, "$defs": definitions })
}

#[test]
fn the_work_of_closing_objects_is_bounded() {
    for strictness in [Strictness::Strict, Strictness::Tool] {
        Schema::new(&chain(300), strictness).expect("little work");
        let (_, problem) = problem(&chain(2500), strictness);
        assert!(
            problem.contains("too many schemas and properties"),
            "{problem}"
        );
    }
    // Its objects are open.
    Schema::new(&chain(2500), Strictness::Form).expect("little work");
}
