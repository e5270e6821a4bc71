//! `/api/*`: Ollama's API, for its clients and for editors that speak it. Requests are translated to
//! turns of a conversation, as chat completions are.

mod compose;
pub(crate) mod embed;
mod request;
pub(crate) mod show;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bitnet_tokenizers::EncodeOptions;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::api::generate::check_model;
use crate::api::ollama::compose::{LineWriter, OllamaAnswer, OllamaKind};
use crate::api::ollama::request::{
    NAMES, OllamaChatRequest, OllamaGenerateRequest, OllamaOptions, model_name,
};
use crate::api::reader::AnswerReader;
use crate::api::turn::Prepared;
use crate::api::{ApiError, body, completions, generate, stream};
use crate::id::random_id;
use crate::keep_alive;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

pub(crate) use compose::OllamaErrorBody;

fn renamed(error: ApiError, messages: &str) -> ApiError {
    error.renamed(messages, &NAMES)
}

/// A chat with its prompt; `None` if it only loads the model.
fn prepare_chat(
    app: &App,
    model: &ServedModel,
    bytes: &[u8],
) -> Result<Option<Prepared>, ApiError> {
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
fn prepare_generate(
    app: &App,
    model: &ServedModel,
    bytes: &[u8],
) -> Result<Option<Prepared>, ApiError> {
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
    model: &ServedModel,
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

/// The fields that say which model a request is for, and how long it stays loaded.
#[derive(Debug, Deserialize)]
struct ModelUse {
    model: Option<String>,
    keep_alive: Option<Value>,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    messages: Vec<IgnoredAny>,
}

impl ModelUse {
    fn keep_alive(&self) -> Result<Option<Option<Duration>>, ApiError> {
        let read = self.keep_alive.as_ref().map(keep_alive::from_json);
        let wrong =
            |problem| ApiError::invalid("keep_alive", format!("'keep_alive' is {problem}."));
        read.transpose().map_err(wrong)
    }

    fn name(&self) -> Option<&str> {
        self.model.as_deref().map(model_name)
    }

    /// The model, loaded if necessary.
    async fn lease(&self, app: &App) -> Result<ModelLease, ApiError> {
        app.check_open()?;
        let index = app.model_index(self.name())?;
        app.registry.lease(index, self.keep_alive()?).await
    }

    /// Whether the request only unloads the model.
    fn unloads(&self, keep_alive: Option<Option<Duration>>) -> bool {
        let is_empty = self.prompt.is_empty() && self.messages.is_empty();
        is_empty && keep_alive == Some(Some(Duration::ZERO))
    }
}

/// Reads a request's body, takes the model that it names, and runs work on both on the threads for
/// text.
async fn read_and<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    work: impl FnOnce(&App, &ServedModel, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<(ModelLease, T), ApiError> {
    let body = generate::read(app, request).await?;
    let used: ModelUse = generate::peek(app, &body).await?;
    let model = used.lease(app).await?;
    let done = generate::work_on(app, &model, body, work).await?;
    Ok((model, done))
}

/// What a request does.
enum Task {
    /// Generates an answer; only loads the model if there is nothing to answer.
    Answer(ModelLease, Option<Box<Prepared>>),
    /// Unloads the model of this name.
    Unload(String),
}

/// Makes the prompt of a request's body; `None` if there is nothing to answer.
type Prepare = fn(&App, &ServedModel, &[u8]) -> Result<Option<Prepared>, ApiError>;

/// Reads a request, takes its model, and makes its prompt.
async fn read_and_prepare(
    app: &Arc<App>,
    request: Request,
    prepare: Prepare,
) -> Result<Task, ApiError> {
    let body = generate::read(app, request).await?;
    let used: ModelUse = generate::peek(app, &body).await?;
    let keep_alive = used.keep_alive()?;
    app.check_open()?;
    let name = used.name();
    if let Some(name) = name.filter(|_| used.unloads(keep_alive) && app.registry.can_unload()) {
        let index = app.named_index(name)?;
        app.registry.unload(index);
        return Ok(Task::Unload(app.registry.slots()[index].names[0].clone()));
    }
    let model = used.lease(app).await?;
    let prepared = generate::work_on(app, &model, body, prepare).await?;
    Ok(Task::Answer(model, prepared.map(Box::new)))
}

/// Generates and sends an answer; without a prompt, tells that the model is loaded or unloaded.
async fn respond(
    app: &Arc<App>,
    record: Arc<Record>,
    kind: OllamaKind,
    task: Task,
) -> Result<Response, ApiError> {
    let (model, prepared) = match task {
        Task::Unload(name) => {
            return Ok(super::json(&LineWriter::without_prompt(
                kind, &name, "unload",
            )));
        }
        Task::Answer(model, None) => {
            let loaded = LineWriter::without_prompt(kind, model.name(), "load");
            return Ok(super::json(&loaded));
        }
        Task::Answer(model, Some(prepared)) => (model, prepared),
    };
    let param = match kind {
        OllamaKind::Chat => "messages",
        OllamaKind::Generate => "prompt",
    };
    let id = random_id("ollama-");
    let answers = prepared.submit(app, &model, param, &id, &record);
    let mut answers = answers.map_err(|error| renamed(error, param))?;
    let Prepared { plan, reader, .. } = *prepared;
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
    let task = read_and_prepare(&app, request, prepare_chat).await?;
    respond(&app, record, OllamaKind::Chat, task).await
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
    let task = read_and_prepare(&app, request, prepare_generate).await?;
    respond(&app, record, OllamaKind::Generate, task).await
}
