//! From the bytes of a body to a request. An error names the field that is wrong.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::api::ApiError;
use crate::api::fields::{self, Support};
use crate::inflight::{BodyBytes, Inflight};
use crate::options::Limits;

/// `Retry-After` of a request that finds too many bytes under way, in seconds.
const INFLIGHT_RETRY_S: u64 = 1;

/// Reads a whole body, within the limits of size and time.
pub(crate) async fn read(
    request: Request,
    limits: &Limits,
    inflight: &Arc<Inflight>,
) -> Result<WholeBody, ApiError> {
    // Web pages of other sites can send text without a CORS preflight, but not JSON.
    if !(is_json(request.headers()) || is_plain_ollama(&request)) {
        return Err(ApiError::wrong_content_type());
    }
    check_encoding(request.headers())?;
    let body = request.into_body();
    // Checked before the first byte is read, so that a client that waits for `100 Continue` does
    // not send its body.
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

/// Whether it is a request of Ollama's API that names no type, or the type that curl names unasked, as
/// the examples of Ollama's documentation do. Browsers say with such a request where it is from; if
/// one does, the type must be JSON.
fn is_plain_ollama(request: &Request) -> bool {
    let headers = request.headers();
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.uri().path().starts_with("/api/")
        && value.is_none_or(|value| value == b"application/x-www-form-urlencoded")
        && !headers.contains_key(ORIGIN)
        && !headers.contains_key("sec-fetch-site")
}

/// Refuses compressed bodies, as RFC 9110 §15.5.16 says.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = value.to_str().unwrap_or("?");
        let mut codings = value.split(',').map(str::trim);
        let is_plain = |coding: &str| coding.is_empty() || coding.eq_ignore_ascii_case("identity");
        if let Some(coding) = codings.find(|coding| !is_plain(coding)) {
            return Err(ApiError::wrong_encoding(coding));
        }
    }
    Ok(())
}

/// Reads a request from JSON. Unknown fields are an error. Known but unsupported fields are an
/// error, too, unless their value has no effect; `is_lenient` ignores both.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], is_lenient: bool) -> Result<T, ApiError> {
    parse_checked(bytes, is_lenient, |_| Ok(()))
}

/// As [`parse`]; `check` runs before unknown fields are refused, and may name a better reason.
pub(crate) fn parse_checked<T: DeserializeOwned>(
    bytes: &[u8],
    is_lenient: bool,
    check: impl FnOnce(&T) -> Result<(), ApiError>,
) -> Result<T, ApiError> {
    // Serde would accept a list as the fields in their order.
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
    let mut unread = Vec::new();
    let mut note_unread = |path: serde_ignored::Path<'_>| unread.push(steps(&path));
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let parsed = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note_unread));
    let value = parsed.map_err(|error| refusal(&error, &track.path().to_string()))?;
    json.end().map_err(|error| {
        ApiError::invalid_json(format!(
            "The request's body is not one JSON value: {error}."
        ))
    })?;
    check(&value)?;
    if !is_lenient && !unread.is_empty() {
        check_unread(bytes, &unread)?;
    }
    Ok(value)
}

/// Refuses the first unread field whose value would have an effect.
fn check_unread(bytes: &[u8], unread: &[Vec<Step>]) -> Result<(), ApiError> {
    let body: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid_json(format!("{error}.")))?;
    for steps in unread {
        let value = steps.iter().fold(&body, |value, step| match step {
            Step::Field(name) => &value[name],
            Step::Index(index) => &value[index],
        });
        let field = written(steps, |index| index.to_string());
        match fields::support(&written(steps, |_| String::new()), value) {
            Support::AsksNothing => {}
            Support::Unsupported => {
                let message = format!("'{field}' is not supported by this server.");
                return Err(ApiError::unsupported(Some(&field), message));
            }
            Support::Unknown => return Err(ApiError::unknown_field(&field)),
        }
    }
    Ok(())
}

/// The error at `path`; `.` means that there is no path.
fn refusal(error: &serde_json::Error, path: &str) -> ApiError {
    if !error.is_data() {
        return ApiError::invalid_json(format!("The request's body is not valid JSON: {error}."));
    }
    let path = if path == "." { "" } else { path };
    let text = error.to_string();
    // Serde gives these fields only in its message.
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
            "The request's body does not have the expected form: {text}."
        )),
        path => ApiError::invalid(
            path,
            format!("Invalid '{path}': {}.", in_terms_of_json(&text)),
        ),
    }
}

/// Serde's text for a value of the wrong type, without the place in the body and with JSON's types
/// in place of Rust's.
fn in_terms_of_json(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or_default();
    let Some((found, expected)) = text.rsplit_once("expected ") else {
        return text.to_owned();
    };
    let expected = match expected {
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer of at least 0",
        "i64" => "an integer of 64 bits",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
    };
    format!("{found}expected {expected}").replace("sequence, expected", "list, expected")
}

/// A step on the way to a field.
#[derive(Debug)]
enum Step {
    Field(String),
    Index(usize),
}

fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

/// `messages[0].content`, as OpenAI writes it.
fn written(steps: &[Step], index: impl Fn(usize) -> String) -> String {
    let mut out = String::new();
    for step in steps {
        match step {
            Step::Field(name) if out.is_empty() => out.push_str(name),
            Step::Field(name) => out.extend([".", name]),
            Step::Index(at) => out.extend(["[", &index(*at), "]"]),
        }
    }
    out
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
    fn an_error_names_the_field_that_is_wrong() {
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
    fn a_lenient_server_ignores_unknown_fields_and_refuses_wrong_values() {
        assert_eq!(
            problem(r#"{"m":1,"list":[{"name":"a","x":{"y":2}}]}"#, true),
            None
        );
        assert_eq!(
            problem(r#"{"m":1,"n":"many"}"#, true).as_deref(),
            Some("invalid_value n")
        );
    }

    #[test]
    fn type_errors_use_the_terms_of_json() {
        let message = |json: &str| {
            let error = parse::<Outer>(json.as_bytes(), false)
                .err()
                .expect("an error");
            let body = serde_json::to_value(error.body()).expect("JSON");
            body["error"]["message"]
                .as_str()
                .expect("a text")
                .to_owned()
        };
        for (json, expected) in [
            (
                r#"{"n":-1}"#,
                "Invalid 'n': invalid value: integer `-1`, expected an integer from 0 to 4294967295.",
            ),
            (
                r#"{"n":"many"}"#,
                "Invalid 'n': invalid type: string \"many\", expected an integer from 0 to 4294967295.",
            ),
            (
                r#"{"list":{}}"#,
                "Invalid 'list': invalid type: map, expected a list.",
            ),
        ] {
            assert_eq!(message(json), expected);
        }
    }

    #[test]
    fn unsupported_fields_are_accepted_with_values_without_effect() {
        for (json, expected) in [
            (r#"{"audio":null}"#, None),
            (r#"{"functions":[],"prediction":null}"#, None),
            (r#"{"functions":[],"m":null}"#, Some("unknown_parameter m")),
            (
                r#"{"prediction":{"type":"content"}}"#,
                Some("unsupported_parameter prediction"),
            ),
            (r#"{"best_of":1}"#, None),
            (r#"{"best_of":2}"#, Some("unsupported_parameter best_of")),
        ] {
            assert_eq!(problem(json, false).as_deref(), expected, "{json}");
            assert_eq!(problem(json, true), None, "{json}");
        }
    }

    #[test]
    fn compressed_bodies_are_refused() {
        let check = |coding: &'static str| {
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, coding.parse().expect("ASCII"))]);
            check_encoding(&headers).map_err(|error| error.code())
        };
        for coding in ["identity", "", "Identity"] {
            assert!(check(coding).is_ok(), "{coding}");
        }
        for coding in ["gzip", "br", "identity, gzip", "zstd"] {
            assert_eq!(check(coding), Err("unsupported_media_type"), "{coding}");
        }
    }
}
