//! `/v1/models`: the model under its names.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::state::{App, Model};

/// The served models: one model, under each of its names.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList<'a> {
    /// `list`
    object: &'static str,
    data: Vec<ModelCard<'a>>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCard<'a> {
    id: &'a str,
    /// `model`
    object: &'static str,
    /// The time when it was loaded, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// The name of the model in answers.
    root: &'a str,
    /// Maximum number of tokens of a prompt and its answer together.
    max_model_len: usize,
}

impl<'a> ModelCard<'a> {
    fn new(model: &'a Model, name: &'a str) -> Self {
        Self {
            id: name,
            object: "model",
            created: model.created,
            owned_by: "bitnet",
            root: model.name(),
            max_model_len: model.context,
        }
    }
}

/// The served models.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "OpenAI",
    responses((status = 200, description = "All models.", body = ModelList<'_>))
)]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.model()?;
    let data = model
        .names
        .iter()
        .map(|name| ModelCard::new(model, name))
        .collect();
    Ok(super::json(&ModelList {
        object: "list",
        data,
    }))
}

/// One model.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "retrieveModel",
    tag = "OpenAI",
    params(("model" = String, Path, description = "One of its names.")),
    responses((status = 200, description = "The model.", body = ModelCard<'_>))
)]
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let Path(name) =
        name.map_err(|_| ApiError::invalid("model", "The model's name is not UTF-8."))?;
    match model.names.iter().find(|known| **known == name) {
        Some(name) => Ok(super::json(&ModelCard::new(model, name))),
        None => Err(ApiError::unknown_model(&name, model.name())),
    }
}
