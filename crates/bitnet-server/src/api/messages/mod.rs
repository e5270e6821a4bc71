//! `/v1/messages`: Anthropic's Messages API. A request is translated to a turn of a conversation,
//! as chat completions are; the answer is a message of blocks.

mod compose;
mod object;
mod request;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;

use crate::api::messages::compose::MessageWriter;
use crate::api::messages::object::{MessageEvent, MessageObject, MessageTokens};
use crate::api::messages::request::{MessagesRequest, NAMES};
use crate::api::turn::Prepared;
use crate::api::usage::Usage;
use crate::api::{ApiError, body, generate, stream};
use crate::id::random_id;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

pub(crate) use object::MessageErrorBody;

/// A request with its prompt.
struct Asked {
    prepared: Prepared,
    stop_sequences: Vec<String>,
}

/// Checks a request, and makes its prompt. `is_count`: only its tokens are counted.
fn prepare(
    app: &App,
    model: &ServedModel,
    bytes: &[u8],
    is_count: bool,
) -> Result<Asked, ApiError> {
    let is_lenient = app.options.is_lenient;
    let request: MessagesRequest = body::parse_checked(bytes, is_lenient, MessagesRequest::check)?;
    let max_tokens = match is_count {
        true => None,
        false => Some(request.max_tokens()? as usize),
    };
    let prepared = request.turn()?.prepare(app, model);
    let mut prepared = prepared.map_err(|error| error.renamed("messages", &NAMES))?;
    let room = model.context.saturating_sub(prepared.prompt.len());
    // A limit beyond the context is the context.
    prepared
        .plan
        .set_max_tokens(max_tokens.filter(|max_tokens| *max_tokens <= room));
    Ok(Asked {
        prepared,
        stop_sequences: request.stop_sequences(),
    })
}

async fn read_and_prepare(
    app: &Arc<App>,
    request: Request,
    is_count: bool,
) -> Result<(ModelLease, Asked), ApiError> {
    app.check_open()?;
    let work =
        move |app: &App, model: &ServedModel, bytes: &[u8]| prepare(app, model, bytes, is_count);
    generate::read_and(app, request, work).await
}

/// The next message of a conversation.
#[utoipa::path(
    post,
    path = "/v1/messages",
    operation_id = "createMessage",
    tag = "Anthropic",
    request_body = MessagesRequest,
    responses((status = 200, description = "The message, or its events.", content(
        (MessageObject = "application/json"),
        (MessageEvent<'_> = "text/event-stream"),
    )))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, asked) = read_and_prepare(&app, request, false).await?;
    let id = random_id("msg_");
    let answers = asked
        .prepared
        .submit(&app, &model, "messages", &id, &record);
    let mut answers = answers.map_err(|error| error.renamed("messages", &NAMES))?;
    let Prepared {
        plan,
        prompt,
        reader,
        ..
    } = asked.prepared;
    let message = MessageObject {
        id,
        r#type: "message",
        role: "assistant",
        model: model.name().to_owned(),
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        usage: Usage {
            prompt_tokens: prompt.len(),
            ..Usage::default()
        }
        .into(),
    };
    let request_id = record.request_id.clone();
    let mut writer = MessageWriter::new(message, reader, asked.stop_sequences, request_id);
    if plan.is_stream {
        return Ok(stream::response(answers, writer, 1, plan.usage));
    }
    stream::read_whole(&mut answers, &mut writer).await?;
    Ok(super::json(&writer.message))
}

/// The number of tokens of a conversation.
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    operation_id = "countMessageTokens",
    tag = "Anthropic",
    request_body = MessagesRequest,
    responses((status = 200, description = "The number.", body = MessageTokens))
)]
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (_, Asked { prepared, .. }) = read_and_prepare(&app, request, true).await?;
    Ok(super::json(&MessageTokens {
        input_tokens: prepared.prompt.len(),
    }))
}
