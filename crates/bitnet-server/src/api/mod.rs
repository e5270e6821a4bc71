//! OpenAI's API: requests in JSON, checked field by field, and answers as JSON or as a stream of
//! JSON.

pub(crate) mod batches;
mod body;
pub(crate) mod calls;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod conversation;
pub(crate) mod embeddings;
mod error;
mod fields;
pub(crate) mod files;
mod format;
pub(crate) mod generate;
mod logprobs;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod ollama;
pub(crate) mod props;
mod reader;
pub(crate) mod responses;
mod stream;
pub(crate) mod tokenize;
mod tools;
pub(crate) mod turn;
pub(crate) mod usage;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

pub(crate) use error::{ApiError, DEVICE_FAILED, ENGINE_STOPPED, ErrorBody};

/// Identifies the software that computed an answer: the same fingerprint and seed give the same
/// answer.
const FINGERPRINT: &str = concat!("bitnet-", env!("CARGO_PKG_VERSION"));

/// An answer in JSON.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => (
            [(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            bytes,
        )
            .into_response(),
        Err(error) => {
            ApiError::internal(format!("cannot write the answer: {error}")).into_response()
        }
    }
}

/// A value as a JSON string. JSON can represent every value of our types.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
