//! The OpenAPI document, made from the types that are read and written.
//!
//! `docs/openapi.json` is the same document; a test compares it with the served document.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::api::messages::MessageErrorBody;
use crate::api::ollama::OllamaErrorBody;
use crate::api::{self, ErrorBody};
use crate::health;
use crate::http::PROBES;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "BitNet.rs",
        description = "Ternary language models behind OpenAI's API. Any request may also get 400 or 403 (the header `Host`), \
                       405 (the method), 431 (the headers) or 501 (the transfer coding).",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        api::chat::create,
        api::chat::render,
        api::chat::apply_template,
        api::completions::create,
        api::completions::render,
        api::embeddings::create,
        api::files::create,
        api::files::list,
        api::files::retrieve,
        api::files::content,
        api::files::delete,
        api::batches::create,
        api::batches::list,
        api::batches::retrieve,
        api::batches::cancel,
        api::responses::create,
        api::responses::retrieve,
        api::responses::delete,
        api::responses::cancel,
        api::responses::input_items,
        api::responses::input_tokens,
        api::messages::create,
        api::messages::count_tokens,
        api::models::list,
        api::models::retrieve,
        api::ollama::chat,
        api::ollama::generate_text,
        api::ollama::embed::embed,
        api::ollama::embed::embed_one,
        api::ollama::show::show,
        api::ollama::show::tags,
        api::ollama::show::ps,
        api::ollama::show::version,
        api::props::props,
        api::tokenize::tokenize,
        api::tokenize::detokenize,
        api::tokenize::tokenizer_info,
        crate::http::metrics,
        crate::page::serve,
        crate::page::file,
        serve,
        health::health,
        health::ready,
        health::live,
        health::started,
    ),
    components(schemas(ErrorBody<'_>, MessageErrorBody<'_>, OllamaErrorBody<'_>))
)]
struct Document;

/// The types that clients send; the server refuses unlisted fields in them.
const REQUESTS: [&str; 45] = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "FileUpload",
    "BatchRequest",
    "ExpiresAfter",
    "ResponseRequest",
    "Item",
    "ItemPart",
    "ResponseStreamOptions",
    "ReasoningConfig",
    "TextConfig",
    "TextFormat",
    "FunctionTool",
    "MessagesRequest",
    "MessageInput",
    "ToolInput",
    "ToolChoiceInput",
    "ThinkingInput",
    "OutputConfig",
    "OutputFormat",
    "Metadata",
    "OllamaChatRequest",
    "OllamaGenerateRequest",
    "OllamaEmbedRequest",
    "OllamaEmbeddingRequest",
    "OllamaShowRequest",
    "OllamaInputMessage",
    "OllamaInputCall",
    "OllamaInputFunction",
    "OllamaOptions",
    "TokenizeRequest",
    "DetokenizeRequest",
    "Message",
    "ContentPart",
    "CacheControl",
    "StreamOptions",
    "ResponseFormat",
    "JsonSchemaFormat",
    "GrammarFormat",
    "StructuredOutputs",
    "Tool",
    "Function",
    "ToolCall",
    "FunctionCall",
];

/// An error response, and whether an operation may have it.
struct Refusal {
    status: &'static str,
    description: &'static str,
    may_have: fn(&Traits) -> bool,
}

const REFUSALS: [Refusal; 11] = [
    Refusal {
        status: "400",
        description: "A field is invalid or not supported; `param` names it.",
        may_have: |op| op.has_body || op.has_query || op.is_named && op.is_guarded,
    },
    Refusal {
        status: "401",
        description: "The key is missing or wrong.",
        may_have: |op| op.is_guarded,
    },
    Refusal {
        status: "404",
        description: "There is no such model, file, batch or response.",
        may_have: |op| op.uses_model || op.is_named,
    },
    Refusal {
        status: "408",
        description: "The body took too long to arrive.",
        may_have: |op| op.has_body,
    },
    Refusal {
        status: "413",
        description: "The body is too large.",
        may_have: |op| op.has_body,
    },
    Refusal {
        status: "415",
        description: "The body has another type.",
        may_have: |op| op.has_body,
    },
    Refusal {
        status: "429",
        description: "Too many requests are waiting; `Retry-After` says when to retry.",
        may_have: |op| op.has_body || op.uses_model,
    },
    Refusal {
        status: "500",
        description: "The model cannot be loaded, the disk cannot be written, or the server has a bug.",
        may_have: |op| op.is_guarded,
    },
    Refusal {
        status: "503",
        description: "The model is being loaded, the server is about to stop, or it has too many connections.",
        may_have: |op| !op.is_probe,
    },
    Refusal {
        status: "504",
        description: "The answer took too long.",
        may_have: |op| op.uses_model,
    },
    Refusal {
        status: "507",
        description: "The model takes more memory than all models together may.",
        may_have: |op| op.uses_model,
    },
];

/// Operations with a body that run no model.
const WITHOUT_MODEL: [&str; 3] = ["/v1/files", "/v1/batches", "/api/show"];

/// What decides which errors an operation may have.
struct Traits {
    /// Whether it needs a key, if the server has keys.
    is_guarded: bool,
    /// Whether it is answered on reserved connections.
    is_probe: bool,
    has_body: bool,
    has_query: bool,
    /// Whether the client names a model, a file, a batch or a response.
    is_named: bool,
    /// Whether the model must be loaded.
    uses_model: bool,
}

impl Traits {
    fn new(path: &str, operation: &Value) -> Self {
        let of_model = ["/props", "/tokenizer_info"].contains(&path);
        let parameters = operation["parameters"].as_array();
        let has = |place: &str| {
            let mut places = parameters
                .into_iter()
                .flatten()
                .map(|parameter| &parameter["in"]);
            places.any(|of_parameter| of_parameter == place)
        };
        let has_body = operation["requestBody"].is_object();
        Self {
            is_guarded: operation["tags"][0] != "server" && operation["tags"][0] != "health",
            is_probe: PROBES.contains(&path),
            has_body,
            has_query: has("query"),
            is_named: has("path") || ["/v1/batches", "/api/show"].contains(&path) && has_body,
            uses_model: of_model || has_body && !WITHOUT_MODEL.contains(&path),
        }
    }
}

static TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&document()).unwrap_or_default() + "\n");

fn document() -> Value {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    for name in REQUESTS {
        document["components"]["schemas"][name]["additionalProperties"] = json!(false);
    }
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer" },
        "x-api-key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
    });
    let body = |schema: &str| {
        let reference = format!("#/components/schemas/{schema}");
        json!({ "application/json": { "schema": { "$ref": reference } } })
    };

    for (path, operations) in document["paths"].as_object_mut().into_iter().flatten() {
        let error = body(if path.starts_with("/v1/messages") {
            "MessageErrorBody"
        } else if path.starts_with("/api/") {
            "OllamaErrorBody"
        } else {
            "ErrorBody"
        });
        for (_, operation) in operations.as_object_mut().into_iter().flatten() {
            let traits = Traits::new(path, operation);
            if traits.is_guarded {
                // A key is required only if the server has a file of keys.
                operation["security"] = json!([{}, { "bearer": [] }, { "x-api-key": [] }]);
            }
            let refusals = REFUSALS.iter();
            for refusal in refusals.filter(|refusal| (refusal.may_have)(&traits)) {
                operation["responses"][refusal.status] =
                    json!({ "description": refusal.description, "content": error });
            }
        }
    }
    document
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "server",
    responses((status = 200, description = "The document.", body = Value))
)]
pub(crate) async fn serve() -> Response {
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_in_the_repository_equals_the_served_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if kept != *TEXT {
            let fresh = std::env::temp_dir().join("bitnet-openapi.json");
            std::fs::write(&fresh, TEXT.as_str()).expect("a temporary file");
            panic!(
                "the API has changed: look at the difference, then cp {} {}",
                fresh.display(),
                path.display()
            );
        }
    }

    #[test]
    fn every_route_is_in_the_document() {
        let document = document();
        let source = include_str!("http.rs").split("#[cfg(test)]").next();
        let calls = source.unwrap_or_default().split(".route(").skip(1);
        let routes: Vec<_> = calls
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
            .map(|route| route.replace("{*", "{"))
            .collect();
        assert!(routes.len() > 40, "{routes:?}");
        for route in &routes {
            assert!(document["paths"][route].is_object(), "{route}");
        }
        let documented = document["paths"].as_object().map(serde_json::Map::len);
        assert_eq!(documented, Some(routes.len()));
    }

    #[test]
    fn every_reference_in_the_document_has_a_target() {
        let document = document();
        let mut open = vec![&document];
        let mut num_references = 0;
        while let Some(value) = open.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                        let pointer = reference
                            .strip_prefix('#')
                            .expect("a reference within the document");
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                        num_references += 1;
                    }
                    open.extend(fields.values());
                }
                Value::Array(list) => open.extend(list),
                _ => {}
            }
        }
        assert!(num_references > 10);
    }
}
