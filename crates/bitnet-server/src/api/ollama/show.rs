//! What Ollama's API tells about the model and the server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::api::generate::{check_model, read_and};
use crate::api::ollama::request::model_name;
use crate::api::{ApiError, body, conversation};
use crate::state::{App, Conversation, Model};

/// The version of Ollama whose API this is; editors ask for a minimum.
const API_VERSION: &str = "0.12.11";
/// The model stays loaded.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// The models.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaModels {
    models: Vec<OllamaModel>,
}

/// A model under one of its names.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaModel {
    /// A name with the ending `:latest`.
    name: String,
    /// The same name.
    model: String,
    /// When the server loaded the model.
    modified_at: String,
    /// Bytes of the packed ternary weights.
    size: usize,
    /// Tells names apart: the SHA-256 of the name, not of a file.
    digest: String,
    details: OllamaDetails,
    /// Of a loaded model: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<&'static str>,
    /// Of a loaded model: always 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_vram: Option<usize>,
    /// Of a loaded model: maximum number of tokens of a prompt and its answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<usize>,
}

/// The kind of a model.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct OllamaDetails {
    /// Always empty.
    parent_model: &'static str,
    /// `gguf`
    format: &'static str,
    /// The architecture.
    family: String,
    families: Vec<String>,
    /// Such as `2.4B`.
    parameter_size: String,
    /// The format of the ternary weights.
    quantization_level: String,
}

/// A model to describe.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaShowRequest {
    /// A name of the model, perhaps with the ending `:latest`.
    model: String,
    /// It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    verbose: Option<bool>,
}

/// A description of a model.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaDescription {
    /// Always empty.
    modelfile: &'static str,
    /// The sampling parameters of requests that set none, one on each line.
    parameters: String,
    /// The chat template in Jinja; empty if the model has none.
    template: String,
    details: OllamaDetails,
    #[schema(value_type = Object)]
    model_info: Map<String, Value>,
    /// `completion`, `tools`, `thinking`, `embedding`
    capabilities: Vec<&'static str>,
    /// When the server loaded the model.
    modified_at: String,
}

/// The version of the API.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaVersion {
    /// The version of Ollama whose API this is.
    version: &'static str,
}

fn details(model: &Model) -> OllamaDetails {
    let facts = &model.facts;
    OllamaDetails {
        parent_model: "",
        format: "gguf",
        family: facts.architecture.clone(),
        families: vec![facts.architecture.clone()],
        parameter_size: in_words(facts.num_parameters),
        quantization_level: facts.quantization.clone(),
    }
}

/// A number of parameters, such as `2.4B`.
fn in_words(number: usize) -> String {
    let number = number as f64;
    match number {
        _ if number >= 1e9 => format!("{:.1}B", number / 1e9),
        _ if number >= 1e6 => format!("{:.1}M", number / 1e6),
        _ => format!("{:.1}K", number / 1e3),
    }
}

fn loaded_at(model: &Model) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(model.created);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn models(model: &Model, is_running: bool) -> OllamaModels {
    let of_name = |name: &String| {
        let name = format!("{}:latest", model_name(name));
        let hash = Sha256::digest(name.as_bytes());
        OllamaModel {
            model: name.clone(),
            name,
            modified_at: loaded_at(model),
            size: model.facts.weight_bytes,
            digest: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            details: details(model),
            expires_at: is_running.then_some(NEVER),
            size_vram: is_running.then_some(0),
            context_length: is_running.then_some(model.context),
        }
    };
    OllamaModels {
        models: model.names.iter().map(of_name).collect(),
    }
}

/// The served model under each of its names.
#[utoipa::path(
    get,
    path = "/api/tags",
    operation_id = "ollamaTags",
    tag = "Ollama",
    responses((status = 200, description = "All models.", body = OllamaModels))
)]
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(crate::api::json(&models(app.model()?, false)))
}

/// The loaded models: the served one.
#[utoipa::path(
    get,
    path = "/api/ps",
    operation_id = "ollamaPs",
    tag = "Ollama",
    responses((status = 200, description = "The loaded models.", body = OllamaModels))
)]
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(crate::api::json(&models(app.model()?, true)))
}

/// The version of the API.
#[utoipa::path(
    get,
    path = "/api/version",
    operation_id = "ollamaVersion",
    tag = "Ollama",
    responses((status = 200, description = "The version.", body = OllamaVersion))
)]
pub(crate) async fn version() -> Response {
    crate::api::json(&OllamaVersion {
        version: API_VERSION,
    })
}

/// A description of a model.
#[utoipa::path(
    post,
    path = "/api/show",
    operation_id = "ollamaShow",
    tag = "Ollama",
    request_body = OllamaShowRequest,
    responses((status = 200, description = "The description.", body = OllamaDescription))
)]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.model()?;
    read_and(&app, request, |app, bytes| {
        let model = app.model()?;
        let request: OllamaShowRequest = body::parse(bytes, app.options.is_lenient)?;
        check_model(Some(model_name(&request.model)), app, model)?;
        Ok(crate::api::json(&description(app, model)))
    })
    .await
}

fn description(app: &App, model: &Model) -> OllamaDescription {
    let sampling = &app.options.sampling;
    let parameters = [
        ("temperature", sampling.temperature.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("top_p", sampling.top_p.to_string()),
        ("min_p", sampling.min_p.to_string()),
        ("repeat_penalty", sampling.repetition_penalty.to_string()),
    ];
    let parameters = parameters.map(|(name, value)| format!("{name} {value}"));
    let template = match &model.conversation {
        Conversation::Template(template) => template.source(false).unwrap_or_default().to_owned(),
        Conversation::ContinueLast | Conversation::Unavailable(_) => String::new(),
    };
    let thinks = conversation::reasoning_tags(model).is_some();
    let mut capabilities = vec!["completion", "tools"];
    capabilities.extend(thinks.then_some("thinking"));
    capabilities.extend(model.pooling.map(|_| "embedding"));
    OllamaDescription {
        modelfile: "",
        parameters: parameters.join("\n"),
        template,
        details: details(model),
        model_info: model_info(model),
        capabilities,
        modified_at: loaded_at(model),
    }
}

/// Facts about the model with the names of GGUF.
fn model_info(model: &Model) -> Map<String, Value> {
    let facts = &model.facts;
    let architecture = &facts.architecture;
    let of_model = |name: &str| format!("{architecture}.{name}");
    [
        ("general.architecture".to_owned(), json!(architecture)),
        (
            "general.parameter_count".to_owned(),
            json!(facts.num_parameters),
        ),
        (of_model("context_length"), json!(model.context)),
        (of_model("embedding_length"), json!(model.hidden_size)),
        (of_model("block_count"), json!(facts.num_layers)),
        (of_model("vocab_size"), json!(model.vocab_size)),
    ]
    .into_iter()
    .collect()
}
