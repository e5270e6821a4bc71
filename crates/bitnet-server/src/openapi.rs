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

#[derive(OpenApi)]
#[openapi(
    info(
        title = "BitNet.rs",
        description = "Ternary language models behind OpenAI's API.",
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

/// Error responses of any request with a body.
const REFUSALS: [(&str, &str); 10] = [
    (
        "400",
        "A field is invalid or not supported; `param` names it.",
    ),
    ("401", "The key is missing or wrong."),
    ("404", "There is no such model."),
    ("408", "The body took too long to arrive."),
    ("413", "The body is too large."),
    ("415", "The body is not JSON."),
    (
        "429",
        "Too many requests are waiting; `Retry-After` says when to retry.",
    ),
    (
        "503",
        "The model is being loaded, or the server is about to stop.",
    ),
    ("504", "The answer took too long."),
    (
        "507",
        "The model takes more memory than all models together may.",
    ),
];

static TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&document()).unwrap_or_default() + "\n");

fn document() -> Value {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    for name in REQUESTS {
        document["components"]["schemas"][name]["additionalProperties"] = json!(false);
    }
    document["components"]["securitySchemes"]["key"] =
        json!({ "type": "http", "scheme": "bearer" });
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
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            if path.starts_with("/v1/")
                || ["/tokenizer_info", "/props"].contains(&path.as_str())
                || method == "post"
            {
                // A key is required only if the server has a file of keys.
                operation["security"] = json!([{}, { "key": [] }]);
                let all = REFUSALS.iter();
                let has_query = ["/responses/", "/v1/files", "/v1/batches"]
                    .iter()
                    .any(|part| path.contains(part));
                let of_method = all.filter(|(status, _)| {
                    method == "post"
                        || matches!(*status, "401" | "404" | "503")
                        || has_query && *status == "400"
                });
                for (status, description) in of_method {
                    operation["responses"][status] =
                        json!({ "description": description, "content": error });
                }
            }
        }
    }
    document
}

/// The document.
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
