//! `/props`: facts about the server, as the pages and tools of llama.cpp ask for them.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use bitnet_inference::SamplingParams;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::models::ModelQuery;
use crate::api::{ApiError, FINGERPRINT};
use crate::served::Conversation;
use crate::state::App;

/// Facts about the server.
#[derive(Serialize, ToSchema)]
pub(crate) struct Props {
    default_generation_settings: DefaultGenerationSettings,
    /// Maximum number of answers that run at once.
    total_slots: usize,
    /// The name of the model in answers.
    model_alias: String,
    /// The same name: clients need not know paths.
    model_path: String,
    modalities: Modalities,
    /// The chat template in Jinja; empty if the model has none.
    chat_template: String,
    /// The text of the token; empty if the model has none.
    bos_token: String,
    /// The text of the token; empty if the model has none.
    eos_token: String,
    build_info: &'static str,
    /// Always false.
    is_sleeping: bool,
}

/// The settings of requests that set none.
#[derive(Serialize, ToSchema)]
struct DefaultGenerationSettings {
    params: DefaultParams,
    /// Maximum number of tokens of a prompt and its answer together.
    n_ctx: usize,
}

/// The sampling parameters of requests that set none.
#[derive(Serialize, ToSchema)]
struct DefaultParams {
    /// -1 for a random one.
    seed: i64,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
    repeat_last_n: usize,
    repeat_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
}

/// The inputs besides text that the model reads: none.
#[derive(Serialize, ToSchema)]
struct Modalities {
    vision: bool,
    audio: bool,
    video: bool,
}

impl DefaultParams {
    fn new(sampling: &SamplingParams, seed: Option<u64>) -> Self {
        Self {
            seed: seed.map_or(-1, |seed| seed as i64),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repeat_last_n: sampling.penalty_window,
            repeat_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
        }
    }
}

/// Facts about the server.
#[utoipa::path(
    get,
    path = "/props",
    operation_id = "props",
    tag = "llama.cpp",
    params(ModelQuery),
    responses((status = 200, description = "The facts.", body = Props))
)]
pub(crate) async fn props(
    State(app): State<Arc<App>>,
    query: Result<Query<ModelQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let model = ModelQuery::lease(query, &app).await?;
    let tokenizer = model.tokenizer.as_deref();
    let text = |id| {
        let bytes = tokenizer.map(|tokenizer| tokenizer.token_bytes(id));
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    let token = |id: Option<_>| id.map(text).unwrap_or_default();
    let template = match &model.conversation {
        Conversation::Template(template) => template.source(false),
        Conversation::ContinueLast | Conversation::Unavailable(_) => None,
    };
    Ok(super::json(&Props {
        default_generation_settings: DefaultGenerationSettings {
            params: DefaultParams::new(&model.sampling, app.options.seed),
            n_ctx: model.context,
        },
        total_slots: model.running_max,
        model_alias: model.name().to_owned(),
        model_path: model.name().to_owned(),
        modalities: Modalities {
            vision: false,
            audio: false,
            video: false,
        },
        chat_template: template.unwrap_or_default().to_owned(),
        bos_token: token(tokenizer.and_then(|tokenizer| tokenizer.bos())),
        eos_token: token(tokenizer.and_then(|tokenizer| tokenizer.eos())),
        build_info: FINGERPRINT,
        is_sleeping: false,
    }))
}
