//! The form of an answer: JSON, JSON of a schema, an expression, a grammar, one of some texts.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::grammar::Grammar;
use crate::schema::{Schema, Strictness};

/// The form of the answer, as in OpenAI's API.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object`, `json_schema` or `grammar`
    r#type: String,
    /// For `json_schema`.
    json_schema: Option<JsonSchemaFormat>,
    /// For `grammar`.
    grammar: Option<GrammarFormat>,
    /// A JSON schema, for `json_object`: `huggingface_hub` sends a client's `json_schema` so.
    #[schema(value_type = Option<Object>)]
    value: Option<Value>,
}

impl ResponseFormat {
    /// Any JSON object.
    pub(crate) fn json_object() -> Self {
        Self {
            r#type: "json_object".to_owned(),
            json_schema: None,
            grammar: None,
            value: None,
        }
    }

    /// JSON that fits a schema; any object if there is none.
    pub(crate) fn schema(schema: Option<Value>) -> Self {
        Self {
            r#type: "json_schema".to_owned(),
            json_schema: Some(JsonSchemaFormat {
                name: None,
                description: None,
                schema,
                strict: None,
            }),
            grammar: None,
            value: None,
        }
    }
}

/// A grammar, as OpenAI writes grammars of custom tools.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct GrammarFormat {
    /// `regex`, or `lark` for llguidance's dialect of it
    syntax: String,
    /// The grammar, or the regular expression that the whole answer must match.
    definition: String,
}

/// A JSON schema with its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct JsonSchemaFormat {
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    name: Option<String>,
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    description: Option<String>,
    /// The schema; any object if not given.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// Has no effect: answers always fit the schema.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    strict: Option<bool>,
}

/// The form of the answer, as in vLLM: exactly one of these fields.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema.
    #[schema(value_type = Option<Object>)]
    json: Option<Value>,
    /// Any JSON object.
    json_object: Option<bool>,
    /// A regular expression that the whole answer must match.
    regex: Option<String>,
    /// A grammar in llguidance's dialect of Lark.
    grammar: Option<String>,
    /// One of these texts.
    choice: Option<Vec<String>>,
}

/// The grammar of both fields, and the name of its field; `None` if any text is valid.
pub(crate) fn grammar(
    format: Option<&ResponseFormat>,
    outputs: Option<&StructuredOutputs>,
) -> Result<Option<(Grammar, &'static str)>, ApiError> {
    let (from_format, from_outputs) = (
        format.map(of_format).transpose()?.flatten(),
        outputs.map(of_outputs).transpose()?,
    );
    match (from_format, from_outputs) {
        (Some(_), Some(_)) => {
            let message = "'response_format' and 'structured_outputs' cannot both set the form of the answer.";
            Err(ApiError::invalid("structured_outputs", message))
        }
        (Some(grammar), None) => Ok(Some((grammar, "response_format"))),
        (None, Some(grammar)) => Ok(Some((grammar, "structured_outputs"))),
        (None, None) => Ok(None),
    }
}

/// Whether they ask for JSON.
pub(crate) fn is_json(
    format: Option<&ResponseFormat>,
    outputs: Option<&StructuredOutputs>,
) -> bool {
    format.is_some_and(|format| matches!(&*format.r#type, "json_object" | "json_schema"))
        || outputs
            .is_some_and(|outputs| outputs.json.is_some() || outputs.json_object == Some(true))
}

fn of_format(format: &ResponseFormat) -> Result<Option<Grammar>, ApiError> {
    let kind = format.r#type.as_str();
    let only_for = |field: &str, kind: &str| {
        Err(ApiError::invalid(
            field,
            format!("'{field}' is only for the type {kind}."),
        ))
    };
    if format.json_schema.is_some() && kind != "json_schema" {
        return only_for("response_format.json_schema", "json_schema");
    }
    if format.grammar.is_some() && kind != "grammar" {
        return only_for("response_format.grammar", "grammar");
    }
    if format.value.is_some() && kind != "json_object" {
        return only_for("response_format.value", "json_object");
    }
    match kind {
        "text" => Ok(None),
        "json_object" => match &format.value {
            Some(schema) => {
                of_schema(schema, Strictness::Strict, "response_format.value").map(Some)
            }
            None => Ok(Some(Grammar::Schema(Schema::any_object()))),
        },
        "json_schema" => match &format.json_schema {
            Some(format) => of_json_schema(format).map(Some),
            None => Err(ApiError::missing("response_format.json_schema")),
        },
        "grammar" => match &format.grammar {
            Some(grammar) => of_grammar(grammar).map(Some),
            None => Err(ApiError::missing("response_format.grammar")),
        },
        _ => {
            let message =
                "'response_format.type' must be text, json_object, json_schema or grammar.";
            Err(ApiError::invalid("response_format.type", message))
        }
    }
}

fn of_json_schema(format: &JsonSchemaFormat) -> Result<Grammar, ApiError> {
    match &format.schema {
        Some(schema) => of_schema(
            schema,
            Strictness::Strict,
            "response_format.json_schema.schema",
        ),
        None => Ok(Grammar::Schema(Schema::any_object())),
    }
}

fn of_schema(schema: &Value, strictness: Strictness, field: &str) -> Result<Grammar, ApiError> {
    match Schema::new(schema, strictness) {
        Ok(schema) => Ok(Grammar::Schema(schema)),
        Err(error) => Err(ApiError::invalid(field, format!("'{field}': {error}."))),
    }
}

fn of_grammar(grammar: &GrammarFormat) -> Result<Grammar, ApiError> {
    match grammar.syntax.as_str() {
        "regex" => Ok(Grammar::Regex(grammar.definition.clone())),
        "lark" => Ok(Grammar::Lark(grammar.definition.clone())),
        _ => {
            let field = "response_format.grammar.syntax";
            Err(ApiError::invalid(
                field,
                format!("'{field}' must be regex or lark."),
            ))
        }
    }
}

fn of_outputs(outputs: &StructuredOutputs) -> Result<Grammar, ApiError> {
    let StructuredOutputs {
        json,
        json_object,
        regex,
        grammar,
        choice,
    } = outputs.clone();
    let of_json = |schema| of_schema(&schema, Strictness::Form, "structured_outputs.json");
    let given = [
        json.map(of_json).transpose()?,
        json_object
            .filter(|is_asked_for| *is_asked_for)
            .map(|_| Grammar::Schema(Schema::any_object())),
        regex.map(Grammar::Regex),
        grammar.map(Grammar::Lark),
        choice.map(|texts| of_choice(&texts)).transpose()?,
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(grammar), None) => Ok(grammar),
        _ => {
            let message = "'structured_outputs' must have one of json, json_object, regex, grammar and choice.";
            Err(ApiError::invalid("structured_outputs", message))
        }
    }
}

fn of_choice(texts: &[String]) -> Result<Grammar, ApiError> {
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        let field = "structured_outputs.choice";
        return Err(ApiError::invalid(
            field,
            format!("'{field}' must be a list of texts that are not empty."),
        ));
    }
    // Strings in Lark are strings in JSON.
    let texts: Vec<_> = texts.iter().map(|text| json!(text).to_string()).collect();
    Ok(Grammar::Lark(format!("start: {}", texts.join(" | "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The grammar of a format that asks for one; `None` if it is refused.
    fn of(format: Value) -> Option<Grammar> {
        let format: ResponseFormat = serde_json::from_value(format).expect("a format");
        let grammar = grammar(Some(&format), None).ok()?;
        grammar.map(|(grammar, _)| grammar)
    }

    #[test]
    fn a_schema_in_the_form_of_huggingface_hub_is_the_same_schema() {
        let schema = json!({ "type": "object", "properties": { "x": { "type": "integer" } } });
        let given = of(json!({ "type": "json_schema", "json_schema": { "schema": schema } }));
        let sent = of(json!({ "type": "json_object", "value": schema }));
        assert!(given.is_some() && given == sent);
        assert_ne!(sent, of(json!({ "type": "json_object" })));
        assert_eq!(of(json!({ "type": "json_object", "value": 1 })), None);
        let text = serde_json::from_value(json!({ "type": "text", "value": schema }));
        let refused = grammar(Some(&text.expect("a format")), None).expect_err("an error");
        assert_eq!(refused.param(), Some("response_format.value"));
    }
}
