//! [`answer_requests`]: the server's answers to a list of requests, without a network.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Method, Request, Uri};
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::http::{REQUEST_ID, router};
use crate::options::ServeOptions;
use crate::serve::{engine_lost, new_app, start_models};
use crate::served::ModelSpec;
use crate::threads::runtime;
use crate::watch;

/// A request: its body is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRequest {
    /// The path, such as `/v1/chat/completions`.
    pub path: Uri,
    /// The body.
    pub body: Vec<u8>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalResponse {
    /// The status of HTTP.
    pub status: u16,
    /// The id of the request in the log.
    pub request_id: String,
    /// The body.
    pub body: Bytes,
}

/// Loads models as [`serve`](crate::serve()) does, and answers requests in the way of its routes,
/// at most `at_once` at a time. `take` gets the answers in the order of the requests; it may end
/// the work.
///
/// # Errors
/// If the only model cannot be loaded, or its engine's thread ends.
///
/// # Panics
/// If there is no model.
pub fn answer_requests(
    options: ServeOptions,
    models: Vec<ModelSpec>,
    requests: impl Iterator<Item = LocalRequest>,
    at_once: usize,
    take: impl FnMut(LocalResponse) -> ControlFlow<()>,
) -> Result<()> {
    let runtime = runtime().map_err(Error::Threads)?;
    let ended = runtime.block_on(answer(options, models, requests, at_once, take));
    // The remaining tasks are abandoned.
    runtime.shutdown_background();
    ended
}

async fn answer(
    options: ServeOptions,
    models: Vec<ModelSpec>,
    requests: impl Iterator<Item = LocalRequest>,
    at_once: usize,
    mut take: impl FnMut(LocalResponse) -> ControlFlow<()>,
) -> Result<()> {
    let (app, mut engine_ended) = new_app(options, models)?;
    let (ready, is_ready) = oneshot::channel();
    let ready = std::sync::Mutex::new(Some(ready));
    let tell = move |_| {
        let ready = ready.lock().map(|mut ready| ready.take());
        ready.ok().flatten().map(|ready| ready.send(()));
    };
    start_models(&app, Arc::new(tell));
    watch::start(&app).map_err(Error::Threads)?;
    tokio::select! {
        ended = &mut engine_ended => return Err(engine_lost(ended)),
        _ = is_ready => {}
    }
    let service = TowerToHyperService::new(router(app));
    let mut answers = stream::iter(requests)
        .map(|request| respond(&service, request))
        .buffered(at_once);
    loop {
        let answer = tokio::select! {
            ended = &mut engine_ended => return Err(engine_lost(ended)),
            answer = answers.next() => answer,
        };
        match answer.map(&mut take) {
            None | Some(ControlFlow::Break(())) => return Ok(()),
            Some(ControlFlow::Continue(())) => {}
        }
    }
}

async fn respond<S>(service: &S, request: LocalRequest) -> LocalResponse
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    let mut http = Request::new(Body::from(request.body));
    *http.method_mut() = Method::POST;
    *http.uri_mut() = request.path;
    let headers = http.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let response = match service.call(http).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let request_id = parts.headers.get(REQUEST_ID);
    let request_id = request_id
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    LocalResponse {
        status: parts.status.as_u16(),
        request_id: request_id.to_owned(),
        // The bodies of answers are in memory, and reading them cannot fail.
        body: body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default(),
    }
}
