//! [`respond`]: the server's answer to a request that did not come over the network.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Method, Request, Uri};
use axum::response::Response;
use bitnet_inference::Priority;
use http_body_util::BodyExt;
use hyper::service::Service;

use crate::id::REQUEST_ID;

/// A request: its body is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalRequest {
    /// The path, such as `/v1/chat/completions`.
    pub(crate) path: Uri,
    /// The body.
    pub(crate) body: Bytes,
}

/// Whose request it is. The routes trust it in place of a key.
#[derive(Clone, Debug)]
pub(crate) struct LocalClient {
    /// The owner of the key with which the client made the batch.
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) priority: Priority,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalResponse {
    /// The status of HTTP.
    pub(crate) status: u16,
    /// The id of the request in the log.
    pub(crate) request_id: String,
    /// The body.
    pub(crate) body: Bytes,
}

/// Answers a request in the way of the server's routes.
pub(crate) async fn respond<S>(
    service: &S,
    request: LocalRequest,
    client: LocalClient,
) -> LocalResponse
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    let mut http = Request::new(Body::from(request.body));
    *http.method_mut() = Method::POST;
    *http.uri_mut() = request.path;
    http.extensions_mut().insert(client);
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
