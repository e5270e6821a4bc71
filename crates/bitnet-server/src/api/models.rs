//! `/v1/models`: the models, each under its names, and which of them are loaded.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiError;
use crate::registry::{ModelLease, ModelView};
use crate::schedule::Stage;
use crate::state::App;

/// The models of the server, each under all its names.
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
    /// The time when it was loaded or, until then, when the server was started, in seconds since
    /// 1970.
    created: u64,
    owned_by: &'static str,
    /// The name of the model in answers.
    root: &'a str,
    /// Maximum number of tokens of a prompt and its answer together; not there if the model's file
    /// cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    /// As llama.cpp's router has it.
    status: ModelStatus,
}

/// Whether a model is loaded.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelStatus {
    /// `loaded`, `loading` or `unloaded`; an unloaded model is loaded when a request needs it.
    value: &'static str,
}

impl<'a> ModelCard<'a> {
    /// The model at `index` under one of its names.
    fn new(app: &'a App, index: usize, view: &ModelView, name: &'a str) -> Self {
        let slot = &app.registry.slots()[index];
        let loaded = view.model.as_ref();
        let outline = slot.outline.as_ref();
        Self {
            id: name,
            object: "model",
            created: loaded.map_or(app.started, |model| model.created),
            owned_by: "bitnet",
            root: &slot.names[0],
            max_model_len: loaded
                .map(|model| model.context)
                .or(outline.map(|outline| outline.context)),
            status: ModelStatus {
                value: match view.stage {
                    Stage::Ready => "loaded",
                    Stage::Loading => "loading",
                    Stage::Absent | Stage::Unloading => "unloaded",
                },
            },
        }
    }
}

/// The model of a request without a body.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ModelQuery {
    /// A name of the model; the first model if not given. A server of one model ignores it.
    model: Option<String>,
}

impl ModelQuery {
    /// The model, loaded if necessary.
    pub(crate) async fn lease(
        query: Result<Query<Self>, QueryRejection>,
        app: &App,
    ) -> Result<ModelLease, ApiError> {
        let query = query
            .map_err(|rejection| ApiError::invalid("model", format!("{}.", rejection.body_text())));
        let Query(Self { model }) = query?;
        app.lease(model.as_deref()).await
    }
}

/// The models of the server.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "OpenAI",
    responses((status = 200, description = "All models.", body = ModelList<'_>))
)]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.check_open()?;
    let mut data = Vec::new();
    for (index, slot) in app.registry.slots().iter().enumerate() {
        let view = app.registry.view(index);
        let names = slot.names.iter();
        data.extend(names.map(|name| ModelCard::new(&app, index, &view, name)));
    }
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
    app.check_open()?;
    let Path(name) =
        name.map_err(|_| ApiError::invalid("model", "The model's name is not UTF-8."))?;
    let registry = &app.registry;
    let unknown = || ApiError::unknown_model(&name, &registry.known_names());
    let index = registry.find(&name).ok_or_else(unknown)?;
    let view = registry.view(index);
    Ok(super::json(&ModelCard::new(&app, index, &view, &name)))
}
