//! From the bytes of a body to a request, naming the field that is wrong.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::api::ApiError;
use crate::inflight::{BodyBytes, Inflight};
use crate::options::Limits;

/// `Retry-After` of a request that finds too many bytes under way, in seconds.
const INFLIGHT_RETRY_S: u64 = 1;

/// Reads a body whole, and no longer than it may take.
pub(crate) async fn read(
    request: Request,
    limits: &Limits,
    inflight: &Arc<Inflight>,
) -> Result<WholeBody, ApiError> {
    // Pages of other sites can send text without asking, JSON they cannot.
    if !is_json(request.headers()) {
        return Err(ApiError::wrong_content_type());
    }
    let body = request.into_body();
    // Before the first byte is asked for, so that a client that waits to be told does not send.
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(ApiError::body_too_large(limits.body_bytes));
    }
    let whole = collect(body, limits.body_bytes, inflight);
    match timeout(limits.body_timeout, whole).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::body_too_slow()),
    }
}

/// A body in memory, counted until it is dropped.
pub(crate) struct WholeBody {
    bytes: Vec<u8>,
    _counted: BodyBytes,
}

impl WholeBody {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

async fn collect(
    mut body: Body,
    bytes_max: usize,
    inflight: &Arc<Inflight>,
) -> Result<WholeBody, ApiError> {
    let mut counted = inflight.body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::invalid_json(format!("Cannot read the request's body: {error}."))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > bytes_max {
            return Err(ApiError::body_too_large(bytes_max));
        }
        if !counted.add(data.len()) {
            let message = format!(
                "the bodies of all requests together have more than {} bytes; try again in {INFLIGHT_RETRY_S} s",
                inflight.max()
            );
            return Err(ApiError::too_many_requests(message, INFLIGHT_RETRY_S));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(WholeBody {
        bytes,
        _counted: counted,
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Reads a request from JSON. Fields that nothing reads are an error, unless `is_lenient`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], is_lenient: bool) -> Result<T, ApiError> {
    // Serde would take a list for the fields in their order.
    if bytes
        .trim_ascii_start()
        .first()
        .is_some_and(|byte| *byte == b'[')
    {
        return Err(ApiError::invalid_json(
            "The request's body is a list, expected an object.",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let mut unread = None;
    let mut note_unread = |path: serde_ignored::Path<'_>| {
        unread.get_or_insert_with(|| {
            let mut text = String::new();
            write_path(&path, &mut text);
            text
        });
    };
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let parsed = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note_unread));
    let value = parsed.map_err(|error| refusal(&error, &track.path().to_string()))?;
    json.end().map_err(|error| {
        ApiError::invalid_json(format!(
            "The request's body is not one JSON value: {error}."
        ))
    })?;
    match unread {
        Some(field) if !is_lenient => Err(ApiError::unknown_field(&field)),
        _ => Ok(value),
    }
}

/// What was wrong at `path`, which is `.` where there is none.
fn refusal(error: &serde_json::Error, path: &str) -> ApiError {
    if !error.is_data() {
        return ApiError::invalid_json(format!("The request's body is not valid JSON: {error}."));
    }
    let path = if path == "." { "" } else { path };
    let text = error.to_string();
    // Serde names these fields in the text alone.
    let named = |prefix: &str| {
        let field = text.strip_prefix(prefix)?.split('`').next()?;
        let dot = if path.is_empty() { "" } else { "." };
        Some(format!("{path}{dot}{field}"))
    };
    if let Some(field) = named("missing field `") {
        return ApiError::missing(&field);
    }
    if let Some(field) = named("duplicate field `") {
        return ApiError::invalid(&field, format!("'{field}' is given twice."));
    }
    match path {
        "" => ApiError::invalid_json(format!(
            "The request's body is not what was expected: {text}."
        )),
        path => ApiError::invalid(path, format!("Invalid '{path}': {text}.")),
    }
}

/// `messages[0].content`, as OpenAI writes it.
fn write_path(path: &serde_ignored::Path<'_>, out: &mut String) {
    use serde_ignored::Path;
    match path {
        Path::Root => {}
        Path::Seq { parent, index } => {
            write_path(parent, out);
            out.push_str(&format!("[{index}]"));
        }
        Path::Map { parent, key } => {
            write_path(parent, out);
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(key);
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => {
            write_path(parent, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read from JSON")]
    struct Outer {
        #[serde(default)]
        list: Vec<Inner>,
        n: Option<u32>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read from JSON")]
    struct Inner {
        name: String,
    }

    fn problem(json: &str, is_lenient: bool) -> Option<String> {
        let error = parse::<Outer>(json.as_bytes(), is_lenient).err()?;
        let body = serde_json::to_value(error.body()).expect("JSON");
        Some(format!(
            "{} {}",
            body["error"]["code"].as_str()?,
            body["error"]["param"].as_str().unwrap_or("-")
        ))
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert_eq!(problem(r#"{"list":[{"name":"a"}],"n":null}"#, false), None);
        for (json, expected) in [
            (r#"{"m":1}"#, "unknown_parameter m"),
            (
                r#"{"list":[{"name":"a"},{"name":"b","x":[]}]}"#,
                "unknown_parameter list[1].x",
            ),
            (r#"{"n":"many"}"#, "invalid_value n"),
            (r#"{"n":-1}"#, "invalid_value n"),
            (r#"{"n":1.5}"#, "invalid_value n"),
            (
                r#"{"list":[{}]}"#,
                "missing_required_parameter list[0].name",
            ),
            (r#"{"list":[{"name":1}]}"#, "invalid_value list[0].name"),
            (r#"{"list":{}}"#, "invalid_value list"),
            (r#"{"n":1,"n":2}"#, "invalid_value n"),
            ("[1]", "invalid_json -"),
            ("7", "invalid_json -"),
            ("{", "invalid_json -"),
            ("", "invalid_json -"),
            ("{} {}", "invalid_json -"),
        ] {
            assert_eq!(problem(json, false).as_deref(), Some(expected), "{json}");
        }
    }

    #[test]
    fn a_lenient_server_leaves_fields_unread_but_no_nonsense() {
        assert_eq!(
            problem(r#"{"m":1,"list":[{"name":"a","x":{"y":2}}]}"#, true),
            None
        );
        assert_eq!(
            problem(r#"{"m":1,"n":"many"}"#, true).as_deref(),
            Some("invalid_value n")
        );
    }
}
