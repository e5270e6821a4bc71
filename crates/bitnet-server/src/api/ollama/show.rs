//! What Ollama's API tells about the model and the server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::api::generate::read;
use crate::api::ollama::request::model_name;
use crate::api::{ApiError, body, conversation};
use crate::registry::{ModelView, Slot};
use crate::served::{Conversation, ModelFacts, ServedModel};
use crate::state::App;

/// The version of Ollama whose API this is; editors ask for a minimum.
const API_VERSION: &str = "0.12.11";
/// The time when a model is unloaded that stays loaded.
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
    /// When the server loaded the model or, until then, when the server was started.
    modified_at: String,
    /// Bytes of the packed ternary weights or, until the model is loaded for the first time, of its
    /// files.
    size: usize,
    /// Tells names apart: the SHA-256 of the name, not of a file.
    digest: String,
    details: OllamaDetails,
    /// Of a loaded model: when it is unloaded if no request comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
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
    /// Such as `2.4B`; empty until the model is loaded for the first time.
    parameter_size: String,
    /// The format of the ternary weights; empty until the model is loaded for the first time.
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
    /// When the server loaded the model or, until then, when the server was started.
    modified_at: String,
}

/// The version of the API.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaVersion {
    /// The version of Ollama whose API this is.
    version: &'static str,
}

fn details(facts: &ModelFacts) -> OllamaDetails {
    OllamaDetails {
        parent_model: "",
        format: "gguf",
        family: facts.architecture.clone(),
        families: vec![facts.architecture.clone()],
        parameter_size: in_words(facts.num_parameters),
        quantization_level: facts.quantization.clone(),
    }
}

/// A number of parameters, such as `2.4B`; empty if it is not known.
fn in_words(number: usize) -> String {
    let number = number as f64;
    match number {
        0.0 => String::new(),
        _ if number >= 1e9 => format!("{:.1}B", number / 1e9),
        _ if number >= 1e6 => format!("{:.1}M", number / 1e6),
        _ => format!("{:.1}K", number / 1e3),
    }
}

/// A time in seconds since 1970.
fn time(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// All models under each of their names; only the loaded ones if `is_running`.
fn models(app: &App, is_running: bool) -> OllamaModels {
    let mut models = Vec::new();
    for (index, slot) in app.registry.slots().iter().enumerate() {
        let view = app.registry.view(index);
        if is_running && view.model.is_none() {
            continue;
        }
        let names = slot.names.iter();
        models.extend(names.map(|name| listed(app, slot, &view, name, is_running)));
    }
    OllamaModels { models }
}

/// A model in a list.
fn listed(app: &App, slot: &Slot, view: &ModelView, name: &str, is_running: bool) -> OllamaModel {
    let name = format!("{}:latest", model_name(name));
    let hash = Sha256::digest(name.as_bytes());
    let loaded = view.model.as_ref();
    let facts = view.facts.clone();
    let facts = facts.unwrap_or_else(|| ModelFacts::before_load(slot.outline.as_ref()));
    let expires_at = view.expires.map_or_else(
        || NEVER.to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    );
    OllamaModel {
        model: name.clone(),
        name,
        modified_at: time(loaded.map_or(app.started, |model| model.created)),
        size: facts.weight_bytes,
        digest: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        details: details(&facts),
        expires_at: is_running.then_some(expires_at),
        size_vram: is_running.then_some(0),
        context_length: loaded.filter(|_| is_running).map(|model| model.context),
    }
}

/// The models of the server, each under all its names.
#[utoipa::path(
    get,
    path = "/api/tags",
    operation_id = "ollamaTags",
    tag = "Ollama",
    responses((status = 200, description = "All models.", body = OllamaModels))
)]
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.check_open()?;
    Ok(crate::api::json(&models(&app, false)))
}

/// The loaded models.
#[utoipa::path(
    get,
    path = "/api/ps",
    operation_id = "ollamaPs",
    tag = "Ollama",
    responses((status = 200, description = "The loaded models.", body = OllamaModels))
)]
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.check_open()?;
    Ok(crate::api::json(&models(&app, true)))
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

/// A description of a model, which is not loaded for it.
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
    app.check_open()?;
    let body = read(&app, request).await?;
    let shared = Arc::clone(&app);
    let describe = move || {
        let request: OllamaShowRequest = body::parse(body.bytes(), shared.options.is_lenient)?;
        let index = shared.named_index(model_name(&request.model))?;
        let model = match shared.registry.view(index).model {
            Some(model) => model,
            None => Arc::new(shared.registry.preview(index)?),
        };
        Ok(crate::api::json(&description(&model)))
    };
    app.text.run(describe).await
}

fn description(model: &ServedModel) -> OllamaDescription {
    let sampling = &model.sampling;
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
        details: details(&model.facts),
        model_info: model_info(model),
        capabilities,
        modified_at: time(model.created),
    }
}

/// Facts about the model with the names of GGUF.
fn model_info(model: &ServedModel) -> Map<String, Value> {
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
