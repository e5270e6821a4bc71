//! The routes, and the steps around every request: its id, its record, access, and catching panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, EXPECT, HeaderName, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;

use crate::api::{
    ApiError, batches, chat, completions, embeddings, files, messages, models, ollama, props,
    responses, tokenize,
};
use crate::connections::Peer;
use crate::cors::CorsOrigins;
use crate::health;
use crate::hosts::HostProblem;
use crate::id::{self, REQUEST_ID, TraceParent};
use crate::metrics::TextFormat;
use crate::openapi;
use crate::page;
use crate::record::Record;
use crate::recording::{RecordedBody, Recording};
use crate::requests::LocalClient;
use crate::shared_body::SharedBody;
use crate::state::{App, Phase};

/// Load reports for balancers, as ORCA defines them.
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const LOAD_FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// The routes that are answered on reserved connections.
pub(crate) const PROBES: [&str; 5] = ["/health", "/livez", "/metrics", "/readyz", "/startupz"];

/// All routes of the server.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/chat/completions/render", post(chat::render))
        .route("/v1/completions", post(completions::create))
        .route("/v1/completions/render", post(completions::render))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/files", get(files::list).post(files::create))
        .route(
            "/v1/files/{file_id}",
            get(files::retrieve).delete(files::delete),
        )
        .route("/v1/files/{file_id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{batch_id}", get(batches::retrieve))
        .route("/v1/batches/{batch_id}/cancel", post(batches::cancel))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route(
            "/v1/responses/{response_id}",
            get(responses::retrieve).delete(responses::delete),
        )
        .route(
            "/v1/responses/{response_id}/cancel",
            post(responses::cancel),
        )
        .route(
            "/v1/responses/{response_id}/input_items",
            get(responses::input_items),
        )
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate_text))
        .route("/api/embed", post(ollama::embed::embed))
        .route("/api/embeddings", post(ollama::embed::embed_one))
        .route("/api/show", post(ollama::show::show))
        .route("/api/tags", get(ollama::show::tags))
        .route("/api/ps", get(ollama::show::ps))
        .route("/api/version", get(ollama::show::version))
        .route("/apply-template", post(chat::apply_template))
        .route("/props", get(props::props))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::tokenizer_info))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            authenticate,
        ));
    let open = Router::new()
        .route("/", get(page::serve))
        .route("/page/{file}", get(page::file))
        .route("/openapi.json", get(openapi::serve))
        .route("/metrics", get(metrics))
        .route("/health", get(health::health))
        .route("/readyz", get(health::ready))
        .route("/livez", get(health::live))
        .route("/startupz", get(health::started));
    guarded
        .merge(open)
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Metrics for Prometheus, or in OpenMetrics if `Accept` prefers it.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "server",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = TextFormat::accepted(accept);
    let text = app.scene().text(&app.registry.scenes(), format);
    ([(CONTENT_TYPE, format.content_type())], text).into_response()
}

/// The load report in a format that a client asks for; `None` for unknown formats.
fn load_report(app: &App, format: &HeaderValue) -> Option<HeaderValue> {
    let registry = &app.registry;
    let (usage, waiting) = (registry.cache_usage(), registry.counts().waiting);
    let text = match format.as_bytes() {
        b"TEXT" => {
            format!(
                "TEXT named_metrics.kv_cache_usage_perc={usage}, named_metrics.num_requests_waiting={waiting}"
            )
        }
        b"JSON" => {
            let metrics = serde_json::json!({ "kv_cache_usage_perc": usage, "num_requests_waiting": waiting });
            format!("JSON {}", serde_json::json!({ "named_metrics": metrics }))
        }
        _ => return None,
    };
    HeaderValue::try_from(text).ok()
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method(), request.uri().path())
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.method(), request.uri().path())
}

/// Refuses a request that is invalid HTTP, or may not be answered on this connection.
fn refuse(app: &App, request: &Request, route: &str, peer: Option<&Peer>) -> Option<ApiError> {
    let headers = request.headers();
    match app.options.allowed_hosts.check(headers, request.version()) {
        Ok(()) => {}
        Err(HostProblem::NotOne) => return Some(ApiError::not_one_host()),
        Err(HostProblem::NotAllowed) => return Some(ApiError::host_not_allowed()),
    }
    if peer.is_some_and(|peer| peer.is_reserved) && !PROBES.contains(&route) {
        return Some(ApiError::too_many_connections());
    }
    transfer_coding_problem(headers)
}

/// Accepts only a single `chunked` transfer coding. The HTTP library treats others as `chunked`,
/// and a proxy might interpret them differently.
fn transfer_coding_problem(headers: &HeaderMap) -> Option<ApiError> {
    let values = headers.get_all(TRANSFER_ENCODING).iter();
    let codings: Vec<String> = values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|coding| String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase())
        .collect();
    let num_chunked = codings.iter().filter(|coding| *coding == "chunked").count();
    match &codings[..] {
        [] => None,
        [one] if one == "chunked" => None,
        _ if num_chunked > 1 => Some(ApiError::chunked_twice()),
        _ => Some(ApiError::unknown_transfer_coding()),
    }
}

/// Refuses requests without a valid API key. The requests of batches have none: their batch had.
async fn authenticate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_local = request.extensions().get::<LocalClient>().is_some();
    if let Some(keys) = app.options.api_keys.as_ref().filter(|_| !is_local) {
        let Some(owner) = keys.owner(request.headers()) else {
            let mut response = ApiError::unauthorized().into_response();
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        };
        if let Some(record) = request.extensions().get::<Arc<Record>>() {
            record.details().owner = Some(owner);
        }
    }
    next.run(request).await
}

/// Adds the request's id, and that the connection closes, if it does.
fn add_headers(headers: &mut HeaderMap, record: &Record, closes: bool) {
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&record.request_id) {
        headers.insert(REQUEST_ID, value);
    }
}

/// Answers a request; a panic becomes an answer, too.
async fn answer(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            // The message was printed where it happened.
            ApiError::internal("a bug in the server: this request made it panic").into_response()
        })
}

/// Records the error of a response, and writes it in the form of its route's API.
fn take_error(response: &mut Response, record: &Record) {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if let Some(body) = error_of_route(&error, record) {
            *response.body_mut() = Body::from(body);
        }
        record.details().error = Some(error);
    }
}

/// An error in the form of a route's API; `None` for OpenAI's.
fn error_of_route(error: &ApiError, record: &Record) -> Option<String> {
    let is_of = |prefix: &str| record.route().starts_with(prefix);
    let body = if is_of("/v1/messages") {
        serde_json::to_string(&messages::MessageErrorBody::new(error, &record.request_id))
    } else if is_of("/api/") {
        serde_json::to_string(&ollama::OllamaErrorBody::new(error))
    } else {
        return None;
    };
    body.ok()
}

/// Records whose request it is that came from this process.
fn note_local_client(record: &Record, request: &Request) {
    if let Some(client) = request.extensions().get::<LocalClient>() {
        let mut details = record.details();
        details.owner.clone_from(&client.owner);
        details.priority = client.priority;
    }
}

/// Names and records a request, answers browsers' preflights, and turns a panic into an answer.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str)
        .to_owned();
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let headers = request.headers();
    let trace = TraceParent::from_headers(headers);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let record = Arc::new(Record::new(
        method,
        path,
        route,
        id::request_id(headers),
        trace,
    ));
    record.details().address = peer.as_ref().map(|peer| peer.address);
    note_local_client(&record, &request);
    let mut recording = Recording {
        record: Arc::clone(&record),
        app: Arc::clone(&app),
        status: None,
        is_complete: false,
        _under_way: app.count_request(),
        _peer: peer.as_ref().map(Peer::request),
    };
    let refusal = refuse(&app, &request, record.route(), peer.as_deref());
    let is_last = refusal.is_some();
    let cors = app.options.cors_origins.headers(headers);
    let preflight = CorsOrigins::is_preflight(&request)
        .then(|| app.options.cors_origins.preflight_headers(headers));
    let is_head = request.method() == Method::HEAD;
    let load_format = headers.get(LOAD_FORMAT).cloned();
    // Such a client sends its body only after `100 Continue`.
    let may_refuse_unread = headers.contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    let body = SharedBody::new(body);
    let mut request = Request::from_parts(parts, Body::new(body.clone()));
    request.extensions_mut().insert(Arc::clone(&record));

    let mut response = match (refusal, preflight) {
        (Some(refusal), _) => refusal.into_response(),
        (None, Some(headers)) => (StatusCode::NO_CONTENT, headers).into_response(),
        (None, None) => answer(request, next).await,
    };
    let status = response.status();
    if (status.is_client_error() || status.is_server_error())
        && status != StatusCode::REQUEST_TIMEOUT
        && !may_refuse_unread
        // A reserved place must become free immediately.
        && !peer.is_some_and(|peer| peer.is_reserved)
    {
        body.drain(app.options.limits.body_bytes).await;
    }
    take_error(&mut response, &record);
    let headers = response.headers_mut();
    headers.extend(cors);
    let closes = is_last || app.phase() == Phase::Draining;
    add_headers(headers, &record, closes);
    if let Some(value) = load_format.and_then(|format| load_report(&app, &format)) {
        headers.insert(LOAD, value);
    }
    recording.status = Some(status);
    recording.is_complete = is_head;
    response.map(|body| Body::new(RecordedBody::new(body, recording)))
}

#[cfg(test)]
mod tests {
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::options::ServeOptions;
    use crate::store::ResponseStore;

    #[test]
    fn a_panic_of_a_handler_is_an_error_of_its_request_alone() {
        async fn panics() -> &'static str {
            panic!("on purpose")
        }
        let responses = ResponseStore::in_memory();
        let (app, _ended) = App::new(ServeOptions::for_tests(), Vec::new(), responses);
        let app = Arc::new(app);
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/works", get(|| async { "works" }))
            .layer(middleware::from_fn_with_state(Arc::clone(&app), around));
        let service = TowerToHyperService::new(router);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        for (path, status) in [("/panics", 500), ("/works", 200), ("/panics", 500)] {
            let request = Request::get(path).header("host", "x").body(Body::empty());
            let response = runtime.block_on(service.call(request.expect("a request")));
            assert_eq!(
                response.expect("a response").status().as_u16(),
                status,
                "{path}"
            );
        }
        assert_eq!(app.num_under_way(), 0);
    }
}
