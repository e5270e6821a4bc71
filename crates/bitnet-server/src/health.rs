//! Probes for programs that start, stop and balance servers: is the server alive, started, ready?
//!
//! All four answer from memory; none waits for the engine.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::{App, Phase};

/// The state of the server.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, `loading`, `draining`; `reloading` if the device has failed and the model is loaded
    /// again; `stalled` if the engine has not finished a step for too long; `text stalled` if no
    /// request has been read for too long; `model changed` if a file of the model was changed while
    /// it is in use.
    status: &'static str,
}

fn answer(app: &App, is_ok: bool) -> Response {
    let status = match app.phase() {
        _ if app.registry.damage().is_some() => "model changed",
        _ if app.registry.stalled().is_some() => "stalled",
        _ if is_text_stalled(app) => "text stalled",
        Phase::Loading => "loading",
        Phase::Ready if app.registry.is_reloading() => "reloading",
        Phase::Ready => "ok",
        Phase::Draining => "draining",
    };
    let code = if is_ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, crate::api::json(&Health { status })).into_response()
}

/// Whether no text of a request has been read for too long.
fn is_text_stalled(app: &App) -> bool {
    app.text.stalled(app.options.stall_timeout).is_some()
}

/// Whether the process works as it should: a restart would not help.
fn is_alive(app: &App) -> bool {
    app.registry.stalled().is_none() && app.registry.damage().is_none()
}

/// Whether the server answers requests now.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "health",
    responses(
        (status = 200, description = "The server answers requests.", body = Health),
        (status = 503, description = "The model is being loaded, the server is stopping, or the engine is stuck.", body = Health),
    )
)]
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let is_open = app.phase() == Phase::Ready && !app.registry.is_reloading();
    answer(&app, is_open && is_alive(&app) && !is_text_stalled(&app))
}

/// The same as `/health`, under the name that Kubernetes uses.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "health",
    responses(
        (status = 200, description = "The server answers requests.", body = Health),
        (status = 503, description = "The server does not answer requests now.", body = Health),
    )
)]
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.phase() {
        Phase::Loading => {}
        Phase::Ready => app.probers.answered_ready(Instant::now()),
        Phase::Draining => app.probers.answered_draining(),
    }
    health(State(app)).await
}

/// Whether the process works. It does not work if a restart would help: the engine is stuck, or a
/// file of the model was changed.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "livez",
    tag = "health",
    responses(
        (status = 200, description = "The process works.", body = Health),
        (status = 503, description = "The engine has not finished a step for too long, or a file of the model was changed.", body = Health),
    )
)]
pub(crate) async fn live(State(app): State<Arc<App>>) -> Response {
    answer(&app, is_alive(&app))
}

/// Whether the model has been loaded.
#[utoipa::path(
    get,
    path = "/startupz",
    operation_id = "startupz",
    tag = "health",
    responses(
        (status = 200, description = "The model has been loaded.", body = Health),
        (status = 503, description = "The model is being loaded.", body = Health),
    )
)]
pub(crate) async fn started(State(app): State<Arc<App>>) -> Response {
    answer(&app, app.has_started())
}
