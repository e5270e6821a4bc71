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
use serde_json::Value;

use crate::api::DEVICE_FAILED;
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

/// Times that a request is sent again after a failure of the device, which may have another cause.
const DEVICE_RETRIES: usize = 3;

impl LocalResponse {
    /// Whether this is an error with this code.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        let body = || serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        self.status >= 400 && body()["error"]["code"] == code
    }
}

/// As [`respond`], and again if the device fails: the model is loaded again meanwhile. The error is
/// the answer if the device fails a few times in a row.
pub(crate) async fn respond_on_any_device<S>(
    service: &S,
    request: LocalRequest,
    client: LocalClient,
) -> LocalResponse
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    for _ in 0..DEVICE_RETRIES {
        let response = respond(service, request.clone(), client.clone()).await;
        if !response.has_code(DEVICE_FAILED) {
            return response;
        }
    }
    respond(service, request, client).await
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::response::IntoResponse;

    use super::*;
    use crate::api::ApiError;

    /// The status of a request's answer, and how often it was sent, on a device that fails the first
    /// `num_failures` times.
    async fn answer(num_failures: usize) -> (u16, usize) {
        let num_sent = AtomicUsize::new(0);
        let service = hyper::service::service_fn(|_: Request<Body>| {
            let fails = num_sent.fetch_add(1, Ordering::Relaxed) < num_failures;
            let error = ApiError::device_failed("the device was lost");
            let response = match fails {
                true => error.into_response(),
                false => "an answer".into_response(),
            };
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let request = LocalRequest {
            path: Uri::from_static("/v1/completions"),
            body: Bytes::new(),
        };
        let client = LocalClient {
            owner: None,
            priority: Priority::Background,
        };
        let response = respond_on_any_device(&service, request, client).await;
        (response.status, num_sent.into_inner())
    }

    #[tokio::test]
    async fn a_request_is_sent_again_after_failures_of_the_device_but_not_for_ever() {
        assert_eq!(answer(0).await, (200, 1));
        assert_eq!(answer(3).await, (200, 4));
        assert_eq!(answer(4).await, (503, 4));
    }
}
