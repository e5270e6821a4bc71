//! `/api/*`: Ollama's API, for its clients and for editors that speak it. Requests are translated to
//! turns of a conversation, as chat completions are.

mod compose;
pub(crate) mod embed;
mod request;
pub(crate) mod show;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bitnet_tokenizers::EncodeOptions;

use crate::api::generate::check_model;
use crate::api::ollama::compose::{LineWriter, OllamaAnswer, OllamaKind};
use crate::api::ollama::request::{
    NAMES, OllamaChatRequest, OllamaGenerateRequest, OllamaOptions, model_name,
};
use crate::api::reader::AnswerReader;
use crate::api::turn::Prepared;
use crate::api::{ApiError, body, completions, generate, stream};
use crate::id::random_id;
use crate::record::Record;
use crate::state::{App, Model};

pub(crate) use compose::OllamaErrorBody;

fn renamed(error: ApiError, messages: &str) -> ApiError {
    error.renamed(messages, &NAMES)
}

/// A chat with its prompt; `None` if it only loads the model.
fn prepare_chat(app: &App, bytes: &[u8]) -> Result<Option<Prepared>, ApiError> {
    let model = app.model()?;
    let request: OllamaChatRequest = body::parse(bytes, app.options.is_lenient)?;
    check_model(Some(model_name(&request.model)), app, model)?;
    if request.messages.is_empty() {
        return Ok(None);
    }
    OllamaOptions::check_context(request.options(), model.context)?;
    let prepared = request.turn()?.prepare(app, model);
    prepared
        .map(Some)
        .map_err(|error| renamed(error, "messages"))
}

/// A prompt to continue; `None` if the request only loads the model.
fn prepare_generate(app: &App, bytes: &[u8]) -> Result<Option<Prepared>, ApiError> {
    let model = app.model()?;
    let request: OllamaGenerateRequest = body::parse(bytes, app.options.is_lenient)?;
    check_model(Some(model_name(&request.model)), app, model)?;
    if request.prompt.is_empty() {
        return Ok(None);
    }
    OllamaOptions::check_context(request.options(), model.context)?;
    let prepared = match request.raw {
        Some(true) => prepare_raw(app, model, &request),
        _ => request.turn()?.prepare(app, model),
    };
    prepared.map(Some).map_err(|error| renamed(error, "prompt"))
}

fn prepare_raw(
    app: &App,
    model: &Model,
    request: &OllamaGenerateRequest,
) -> Result<Prepared, ApiError> {
    let turn = request.turn()?;
    let (max_tokens, logprobs) = (turn.max_tokens, turn.num_logprobs);
    let plan = turn.common.settle(app, model, max_tokens, logprobs, None)?;
    let options = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    Ok(Prepared {
        plan,
        prompt: completions::encode(model.tokenizer()?, &request.prompt, options)?,
        text: request.prompt.clone(),
        reader: AnswerReader::new(None, None, true),
    })
}

/// Generates and sends an answer; without a prompt, tells that the model is loaded.
async fn respond(
    app: &Arc<App>,
    record: Arc<Record>,
    kind: OllamaKind,
    prepared: Option<Prepared>,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let Some(prepared) = prepared else {
        return Ok(super::json(&LineWriter::loaded(kind, model.name())));
    };
    let param = match kind {
        OllamaKind::Chat => "messages",
        OllamaKind::Generate => "prompt",
    };
    let id = random_id("ollama-");
    let answers = prepared.submit(app, model, param, &id, &record);
    let mut answers = answers.map_err(|error| renamed(error, param))?;
    let Prepared { plan, reader, .. } = prepared;
    let (name, tokenizer) = (model.name().to_owned(), model.tokenizer.clone());
    let mut writer = LineWriter::new(kind, name, reader, tokenizer, record);
    if plan.is_stream {
        return Ok(stream::response(answers, writer, 1, plan.usage));
    }
    stream::read_whole(&mut answers, &mut writer).await?;
    Ok(super::json(&writer.whole()))
}

/// The next message of a conversation.
#[utoipa::path(
    post,
    path = "/api/chat",
    operation_id = "ollamaChat",
    tag = "Ollama",
    request_body = OllamaChatRequest,
    responses((status = 200, description = "The answer, or its lines.", content(
        (OllamaAnswer = "application/json"),
        (OllamaAnswer = "application/x-ndjson"),
    )))
)]
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let prepared = generate::read_and(&app, request, prepare_chat).await?;
    respond(&app, record, OllamaKind::Chat, prepared).await
}

/// The continuation of a prompt.
#[utoipa::path(
    post,
    path = "/api/generate",
    operation_id = "ollamaGenerate",
    tag = "Ollama",
    request_body = OllamaGenerateRequest,
    responses((status = 200, description = "The answer, or its lines.", content(
        (OllamaAnswer = "application/json"),
        (OllamaAnswer = "application/x-ndjson"),
    )))
)]
pub(crate) async fn generate_text(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let prepared = generate::read_and(&app, request, prepare_generate).await?;
    respond(&app, record, OllamaKind::Generate, prepared).await
}
