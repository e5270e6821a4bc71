//! [`ApiError`]: an error response, in the form that OpenAI's clients read.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bitnet_guard::FileProblem;
use serde::Serialize;
use utoipa::ToSchema;

/// `Retry-After` while the model is loaded, in seconds.
const LOADING_RETRY_S: u64 = 5;
/// Maximum number of characters of a message and of a field's name: both quote the request.
const MESSAGE_CHARS_MAX: usize = 500;
const PARAM_CHARS_MAX: usize = 120;

/// The code of an answer that another request has cancelled.
const CANCELLED: &str = "cancelled";

/// The code of an answer whose engine has ended.
pub(crate) const ENGINE_STOPPED: &str = "engine_stopped";

/// The code of an answer whose device has failed.
pub(crate) const DEVICE_FAILED: &str = "device_failed";

/// A refusal.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorObject,
    retry_after_s: Option<u64>,
}

/// The problem.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorObject {
    /// A message for people.
    message: String,
    /// The kind of error, such as `invalid_request_error`.
    r#type: &'static str,
    /// The field that is wrong, such as `messages[0].role`.
    param: Option<String>,
    /// A code for programs, such as `context_length_exceeded`.
    code: Option<&'static str>,
}

/// An error as a body.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody<'a> {
    error: &'a ErrorObject,
}

impl ApiError {
    /// The message for people.
    pub(crate) fn message(&self) -> &str {
        &self.body.message
    }

    fn new(
        status: StatusCode,
        r#type: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let message = shortened(message.into(), MESSAGE_CHARS_MAX);
        let body = ErrorObject {
            message,
            r#type,
            param: None,
            code: Some(code),
        };
        Self {
            status,
            body,
            retry_after_s: None,
        }
    }

    fn bad_request(param: Option<&str>, code: &'static str, message: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            code,
            message,
        );
        error.body.param = param.map(|param| shortened(param.to_owned(), PARAM_CHARS_MAX));
        error
    }

    /// The value of a field is invalid.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request(Some(param), "invalid_value", message)
    }

    /// The body is not JSON.
    pub(crate) fn invalid_json(message: impl Into<String>) -> Self {
        Self::bad_request(None, "invalid_json", message)
    }

    /// A required field is missing.
    pub(crate) fn missing(param: &str) -> Self {
        Self::bad_request(
            Some(param),
            "missing_required_parameter",
            format!("Missing required parameter: '{param}'."),
        )
    }

    /// A field that this server does not know.
    pub(crate) fn unknown_field(param: &str) -> Self {
        Self::bad_request(
            Some(param),
            "unknown_parameter",
            format!("Unknown parameter: '{param}'."),
        )
    }

    /// A field or value that OpenAI's API has, but this server or this model does not support.
    pub(crate) fn unsupported(param: Option<&str>, message: impl Into<String>) -> Self {
        Self::bad_request(param, "unsupported_parameter", message)
    }

    /// During an answer, its form turned out to be impossible or too much work.
    pub(crate) fn form_failed(problem: &str) -> Self {
        let message = format!("The answer cannot have the requested form: {problem}.");
        Self::bad_request(None, "form_failed", message)
    }

    /// Prompt and answer are longer together than the context.
    pub(crate) fn context_length(
        param: &str,
        prompt: usize,
        max_tokens: Option<usize>,
        context: usize,
    ) -> Self {
        let message = match max_tokens {
            Some(max_tokens) => format!(
                "This model's maximum context length is {context} tokens. However, you requested {} tokens ({prompt} in \
                 the {param}, {max_tokens} for the completion).",
                prompt.saturating_add(max_tokens)
            ),
            None => format!(
                "This model's maximum context length is {context} tokens. However, your {param} resulted in {prompt} \
                 tokens, which leaves none for the completion."
            ),
        };
        Self::bad_request(Some(param), "context_length_exceeded", message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "This server needs an API key, as the header `Authorization: Bearer KEY` or `x-api-key: KEY`; yours is missing or wrong.";
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "invalid_api_key",
            message,
        )
    }

    /// HTTP/1.1 demands one header `Host`.
    pub(crate) fn not_one_host() -> Self {
        let message = "A request needs exactly one header `Host`.";
        Self::bad_request(None, "invalid_host", message)
    }

    /// The header `Host` names a host that is not allowed.
    pub(crate) fn host_not_allowed() -> Self {
        let message = "This server does not answer under the name in the header `Host`; \
                       start it with --allowed-host NAME to allow it.";
        let kind = "invalid_request_error";
        Self::new(StatusCode::FORBIDDEN, kind, "host_not_allowed", message)
    }

    /// A body that is chunked twice.
    pub(crate) fn chunked_twice() -> Self {
        let message = "The header `Transfer-Encoding` has `chunked` more than once.";
        Self::bad_request(None, "invalid_transfer_encoding", message)
    }

    /// A transfer coding that the server does not know.
    pub(crate) fn unknown_transfer_coding() -> Self {
        let message = "The only supported transfer coding is `chunked`.";
        let kind = "invalid_request_error";
        let code = "unknown_transfer_encoding";
        Self::new(StatusCode::NOT_IMPLEMENTED, kind, code, message)
    }

    /// All connections are in use, and this one is kept for probes.
    pub(crate) fn too_many_connections() -> Self {
        let message = "all connections are in use";
        let error = Self::unavailable("too_many_connections", message);
        Self {
            retry_after_s: Some(1),
            ..error
        }
    }

    /// `served`: the names that the server has, in quotes.
    pub(crate) fn unknown_model(name: &str, served: &str) -> Self {
        let name = shortened(name.to_owned(), PARAM_CHARS_MAX);
        let message = format!("The model '{name}' does not exist; this server has {served}.");
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "model_not_found",
            message,
        );
        error.body.param = Some("model".to_owned());
        error
    }

    /// There is no such stored response.
    pub(crate) fn unknown_response(param: &str, id: &str) -> Self {
        let (status, code) = match param {
            "previous_response_id" => (StatusCode::BAD_REQUEST, "previous_response_not_found"),
            _ => (StatusCode::NOT_FOUND, "response_not_found"),
        };
        let id = shortened(id.to_owned(), PARAM_CHARS_MAX);
        let message = format!("There is no stored response '{id}'.");
        let mut error = Self::new(status, "invalid_request_error", code, message);
        error.body.param = Some(param.to_owned());
        error
    }

    /// There is no such item in the stored responses.
    pub(crate) fn unknown_item(param: &str, id: &str) -> Self {
        let id = shortened(id.to_owned(), PARAM_CHARS_MAX);
        let message = format!("There is no item '{id}' in the stored responses.");
        Self::bad_request(Some(param), "item_not_found", message)
    }

    /// There is no such file or batch.
    pub(crate) fn unknown_stored(param: &str, id: &str) -> Self {
        let (kind, code) = match param {
            "batch_id" => ("batch", "batch_not_found"),
            _ => ("file", "file_not_found"),
        };
        let id = shortened(id.to_owned(), PARAM_CHARS_MAX);
        let message = format!("There is no {kind} '{id}'.");
        let (status, r#type) = (StatusCode::NOT_FOUND, "invalid_request_error");
        let mut error = Self::new(status, r#type, code, message);
        error.body.param = Some(param.to_owned());
        error
    }

    /// There is nothing to begin a list behind.
    pub(crate) fn unknown_cursor(id: &str) -> Self {
        let id = shortened(id.to_owned(), PARAM_CHARS_MAX);
        Self::invalid("after", format!("There is nothing with the id '{id}'."))
    }

    /// A server that keeps no files.
    pub(crate) fn no_state_dir() -> Self {
        let message = "Files and batches need a folder: start the server with --state-dir FOLDER.";
        Self::bad_request(None, "no_state_dir", message)
    }

    /// There is no room for a file or batch.
    pub(crate) fn storage_full(problem: String) -> Self {
        Self::bad_request(None, "storage_limit_exceeded", problem)
    }

    pub(crate) fn file_too_large(limit: u64) -> Self {
        let message = format!("The file has more than {limit} bytes.");
        let r#type = "invalid_request_error";
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            r#type,
            "file_too_large",
            message,
        )
    }

    /// A body that is not the expected form.
    pub(crate) fn no_form() -> Self {
        let message =
            "Expected a form with a file, with the header `Content-Type: multipart/form-data`.";
        let (status, r#type) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error");
        Self::new(status, r#type, "unsupported_media_type", message)
    }

    /// A form that cannot be read.
    pub(crate) fn invalid_form(problem: &str) -> Self {
        let message = format!("Cannot read the request's form: {problem}.");
        Self::bad_request(None, "invalid_form", message)
    }

    /// A client has cancelled the response.
    pub(crate) fn cancelled() -> Self {
        let message = "A client has cancelled the response.";
        Self::new(
            StatusCode::CONFLICT,
            "invalid_request_error",
            CANCELLED,
            message,
        )
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.code() == CANCELLED
    }

    pub(crate) fn unknown_path(method: &Method, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}.");
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "unknown_url",
            message,
        )
    }

    pub(crate) fn wrong_method(method: &Method, path: &str) -> Self {
        let message = format!("{path} does not take {method}.");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "method_not_allowed",
            message,
        )
    }

    pub(crate) fn wrong_content_type() -> Self {
        let message = "Expected a body in JSON, with the header `Content-Type: application/json`.";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "unsupported_media_type",
            message,
        )
    }

    pub(crate) fn wrong_encoding(coding: &str) -> Self {
        let coding: String = coding.chars().take(PARAM_CHARS_MAX).collect();
        let message = format!(
            "The request's body is encoded with '{coding}'; this server takes bodies as they are."
        );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "unsupported_media_type",
            message,
        )
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("The request's body has more than {limit} bytes.");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "request_too_large",
            message,
        )
    }

    pub(crate) fn body_too_slow() -> Self {
        let message = "The request's body took too long to arrive.";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "request_timeout",
            message,
        )
    }

    pub(crate) fn answer_too_slow(limit_s: f64) -> Self {
        let message = format!("The answer was not complete after {limit_s} s, and was cancelled.");
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "server_error",
            "answer_timeout",
            message,
        )
    }

    pub(crate) fn too_many_requests(message: String, retry_after_s: u64) -> Self {
        let error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "queue_full",
            message,
        );
        Self {
            retry_after_s: Some(retry_after_s),
            ..error
        }
    }

    /// The client has reached one of its limits.
    pub(crate) fn limit_exceeded(message: String, retry_after_s: u64) -> Self {
        let error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "rate_limit_exceeded",
            message,
        );
        Self {
            retry_after_s: Some(retry_after_s),
            ..error
        }
    }

    /// Seconds until the client may try again.
    #[cfg(test)]
    pub(crate) fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }

    /// The model cannot be loaded.
    pub(crate) fn not_loaded(name: &str, problem: &str) -> Self {
        let message = format!("The model '{name}' cannot be loaded: {problem}.");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "model_load_failed",
            message,
        )
    }

    /// The model takes more memory than all models together may.
    pub(crate) fn model_too_large(name: &str, bytes: usize, bytes_max: usize) -> Self {
        let message = format!(
            "The model '{name}' takes {bytes} bytes of memory, but all models together may take {bytes_max}."
        );
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "server_error",
            "model_too_large",
            message,
        )
    }

    /// Too many requests wait for a model.
    pub(crate) fn too_many_wait_for_load(name: &str, waiting: usize) -> Self {
        let message = format!(
            "{waiting} requests wait for the model '{name}' to be loaded, which is the maximum; try again in {LOADING_RETRY_S} s"
        );
        Self::too_many_requests(message, LOADING_RETRY_S)
    }

    pub(crate) fn loading() -> Self {
        let error = Self::unavailable("loading", "the model is being loaded");
        Self {
            retry_after_s: Some(LOADING_RETRY_S),
            ..error
        }
    }

    /// The device failed during the answer. The server loads the model again, or ends.
    pub(crate) fn device_failed(problem: &str) -> Self {
        let error = Self::unavailable(DEVICE_FAILED, problem);
        Self {
            retry_after_s: Some(LOADING_RETRY_S),
            ..error
        }
    }

    /// Has no `Retry-After`: this server accepts no more requests, but another server may.
    pub(crate) fn draining() -> Self {
        Self::unavailable("draining", "the server is about to stop")
    }

    fn unavailable(code: &'static str, message: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            code,
            message,
        )
    }

    /// The engine has ended, which is not about the request.
    pub(crate) fn engine_stopped() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            ENGINE_STOPPED,
            "the engine has stopped",
        )
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "internal_error",
            message,
        )
    }

    /// A file of the model was changed while it is in use; the message leaves out its folder, which
    /// clients need not know.
    pub(crate) fn model_file(problem: &FileProblem) -> Self {
        let name = problem.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        Self::internal(format!(
            "the file {name} of the model was changed while it is in use"
        ))
    }

    /// The same error in the terms of another API, whose messages are in the field `messages`.
    /// `names`: parts of field names, each with its replacement.
    pub(crate) fn renamed(mut self, messages: &str, names: &[(&str, &str)]) -> Self {
        let replace = |name: &str| {
            let replaced = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
            names.iter().fold(name.to_owned(), replaced)
        };
        let message = &mut self.body.message;
        if let Some(param) = &mut self.body.param {
            let renamed = match param.starts_with("messages") {
                // Its indexes may differ.
                true => messages.to_owned(),
                false => replace(param),
            };
            *message = message.replace(&format!("'{param}'"), &format!("'{renamed}'"));
            *param = renamed;
        }
        for (from, to) in names {
            *message = message.replace(&format!("'{from}'"), &format!("'{to}'"));
        }
        self
    }

    /// For programs.
    pub(crate) fn code(&self) -> &'static str {
        self.body.code.unwrap_or(self.body.r#type)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The field that is wrong.
    pub(crate) fn param(&self) -> Option<&str> {
        self.body.param.as_deref()
    }

    /// The field that is wrong, for the log. Unknown names from the client are omitted.
    pub(crate) fn known_param(&self) -> Option<&str> {
        let param = self
            .param()
            .filter(|_| self.code() != "unknown_parameter")?;
        match param.starts_with("logit_bias") {
            true => Some("logit_bias"),
            false => Some(param),
        }
    }

    /// The error as a body, for streams that have begun.
    pub(crate) fn body(&self) -> ErrorBody<'_> {
        ErrorBody { error: &self.body }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, super::json(&self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The request's record reads this.
        response.extensions_mut().insert(self);
        response
    }
}

/// Cuts the middle out of a text that is too long: the end often has the expected value.
pub(crate) fn shortened(text: String, chars_max: usize) -> String {
    let num_chars = text.chars().count();
    if num_chars <= chars_max {
        return text;
    }
    let (start, end) = (chars_max / 2, chars_max - chars_max / 2 - 1);
    text.chars()
        .take(start)
        .chain(['…'])
        .chain(text.chars().skip(num_chars - end))
        .collect()
}
