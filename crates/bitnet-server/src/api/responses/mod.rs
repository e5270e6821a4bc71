//! `/v1/responses`: OpenAI's Responses API. A request is translated to a turn of a conversation,
//! as chat completions are; the answer is composed of items, and may be kept for later requests.

mod compose;
mod items;
mod object;
mod request;

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::responses::compose::{Keeping, ResponseWriter};
use crate::api::responses::items::{Item, ItemKind, response_of};
use crate::api::responses::object::{
    DeletedResponse, InputTokens, ItemList, ResponseEvent, ResponseObject, StoredOutput,
};
use crate::api::responses::request::{NAMES, ResponseRequest};
use crate::api::turn::Prepared;
use crate::api::{ApiError, body, generate, stream};
use crate::id::random_id;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;
use crate::store::{RESPONSE_BYTES_MAX, StoredResponse};

/// Items of an input that are listed unless a request says otherwise, and at most.
const LISTED: usize = 20;
const LISTED_MAX: usize = 100;

/// A request with its prompt.
struct Asked {
    request: ResponseRequest,
    prepared: Prepared,
}

fn prepare(
    app: &App,
    model: &ServedModel,
    bytes: &[u8],
    owner: Option<&str>,
) -> Result<Asked, ApiError> {
    let is_lenient = app.options.is_lenient;
    let request = body::parse_checked(bytes, is_lenient, ResponseRequest::check)?;
    let items = conversation(app, &request, owner)?;
    if request.store.unwrap_or(true) {
        check_size(&request)?;
    }
    let turn = request.turn(&items)?;
    let prepared = turn.prepare(app, model);
    let prepared = prepared.map_err(|error| error.renamed("input", &NAMES))?;
    Ok(Asked { request, prepared })
}

/// Refuses an input that is too large to be stored.
fn check_size(request: &ResponseRequest) -> Result<(), ApiError> {
    let bytes = super::to_json(&request.items()).len();
    if bytes <= RESPONSE_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "'input' has {bytes} bytes, but at most {RESPONSE_BYTES_MAX} can be stored: set 'store' \
         to false."
    );
    Err(ApiError::invalid("input", message))
}

/// All items of the conversation: items of stored responses, then the input.
fn conversation(
    app: &App,
    request: &ResponseRequest,
    owner: Option<&str>,
) -> Result<Vec<Item>, ApiError> {
    let mut items = match &request.previous_response_id {
        None => Vec::new(),
        Some(id) => {
            let stored = app.responses.conversation(id, owner);
            let stored =
                stored.map_err(|id| ApiError::unknown_response("previous_response_id", &id))?;
            let mut items = Vec::new();
            for response in stored {
                items.extend(input_of(&response)?);
                items.extend(output_of(&response)?);
            }
            items
        }
    };
    for (index, item) in request.items().into_iter().enumerate() {
        items.push(match item.kind() {
            Some(ItemKind::Reference) => referenced(app, &item, index, owner)?,
            _ => item,
        });
    }
    Ok(items)
}

/// The item of a stored response that a reference stands for.
fn referenced(
    app: &App,
    reference: &Item,
    index: usize,
    owner: Option<&str>,
) -> Result<Item, ApiError> {
    let id = reference.id.as_deref().unwrap_or_default();
    let stored = response_of(id).and_then(|response| app.responses.get(&response, owner));
    let unknown = || ApiError::unknown_item(&format!("input[{index}].id"), id);
    let stored = stored.ok_or_else(unknown)?;
    let mut items = output_of(&stored)?.into_iter().chain(input_of(&stored)?);
    let found = items.find(|item| item.id.as_deref() == Some(id));
    found.ok_or_else(unknown)
}

fn input_of(stored: &StoredResponse) -> Result<Vec<Item>, ApiError> {
    serde_json::from_str(&stored.input).map_err(|error| unreadable(stored, &error))
}

fn output_of(stored: &StoredResponse) -> Result<Vec<Item>, ApiError> {
    let read: Result<StoredOutput, _> = serde_json::from_str(&stored.response);
    let read = read.map_err(|error| unreadable(stored, &error))?;
    Ok(read.output)
}

fn unreadable(stored: &StoredResponse, error: &serde_json::Error) -> ApiError {
    ApiError::internal(format!(
        "cannot read the stored response {}: {error}",
        stored.id
    ))
}

async fn read_and_prepare(
    app: &Arc<App>,
    record: &Record,
    request: Request,
) -> Result<(ModelLease, Asked), ApiError> {
    app.check_open()?;
    let owner = record.details().owner.clone();
    let body = generate::read(app, request).await?;
    let named = match app.registry.only() {
        // The work checks the name.
        Some(_) => None,
        None => named_model(app, generate::peek(app, &body).await?, owner.as_deref()),
    };
    let model = app.lease(named.as_deref()).await?;
    let work = move |app: &App, model: &ServedModel, bytes: &[u8]| {
        prepare(app, model, bytes, owner.as_deref())
    };
    let asked = generate::work_on(app, &model, body, work).await?;
    Ok((model, asked))
}

/// The fields that say which model a request is for.
#[derive(Debug, Deserialize)]
struct Named {
    model: Option<String>,
    previous_response_id: Option<String>,
}

/// The model of a request: the one that it names, or the model of the response that it continues.
fn named_model(app: &App, named: Named, owner: Option<&str>) -> Option<String> {
    let of_previous = || {
        let previous = app
            .responses
            .get(named.previous_response_id.as_deref()?, owner)?;
        let read: Option<Named> = serde_json::from_str(&previous.response).ok();
        let name = read?.model?;
        // The server may have other models since then.
        app.registry.find(&name).map(|_| name)
    };
    named.model.clone().or_else(of_previous)
}

/// The next items of a conversation.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "createResponse",
    tag = "OpenAI",
    request_body = ResponseRequest,
    responses((status = 200, description = "The response, or its events.", content(
        (ResponseObject = "application/json"),
        (ResponseEvent<'_> = "text/event-stream"),
    )))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, Asked { request, prepared }) = read_and_prepare(&app, &record, request).await?;
    let id = random_id("resp_");
    let answers = prepared.submit(&app, &model, "messages", &id, &record);
    let mut answers = answers.map_err(|error| error.renamed("input", &NAMES))?;
    let Prepared { plan, reader, .. } = prepared;
    let response = ResponseObject::new(id, model.name().to_owned(), &request, plan.sampling());
    let owner = record.details().owner.clone();
    let running = app
        .responses
        .start(&response.id, owner.clone(), response.cancelled());
    answers.end_when(Arc::clone(&running.cancel));
    let keeping = Keeping {
        store: Arc::clone(&app.responses),
        owner,
        previous: request.previous_response_id.clone(),
        input: request.items(),
        _running: running,
    };
    let mut writer = ResponseWriter::new(response, reader, model.tokenizer.clone(), keeping);
    if plan.is_stream {
        return Ok(stream::response(answers, writer, 1, plan.usage));
    }
    stream::read_whole(&mut answers, &mut writer).await?;
    Ok(super::json(&writer.response))
}

/// The number of tokens of the input of a request.
#[utoipa::path(
    post,
    path = "/v1/responses/input_tokens",
    operation_id = "countInputTokens",
    tag = "OpenAI",
    request_body = ResponseRequest,
    responses((status = 200, description = "The number.", body = InputTokens))
)]
pub(crate) async fn input_tokens(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (_, Asked { prepared, .. }) = read_and_prepare(&app, &record, request).await?;
    Ok(super::json(&InputTokens {
        object: "response.input_tokens",
        input_tokens: prepared.prompt.len(),
    }))
}

type ResponseId = Result<Path<String>, PathRejection>;

/// A stored response of the owner of the request's key.
fn stored(app: &App, record: &Record, id: ResponseId) -> Result<Arc<StoredResponse>, ApiError> {
    let id = text(id)?;
    let owner = record.details().owner.clone();
    let stored = app.responses.get(&id, owner.as_deref());
    stored.ok_or_else(|| ApiError::unknown_response("response_id", &id))
}

fn text(id: ResponseId) -> Result<String, ApiError> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_) => Err(ApiError::invalid(
            "response_id",
            "The response's id is not UTF-8.",
        )),
    }
}

/// Options for reading a response.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RetrieveQuery {
    /// Only false is supported: a response is stored when it has ended.
    stream: Option<bool>,
}

/// A stored response.
#[utoipa::path(
    get,
    path = "/v1/responses/{response_id}",
    operation_id = "retrieveResponse",
    tag = "OpenAI",
    params(("response_id" = String, Path, description = "Its id."), RetrieveQuery),
    responses((status = 200, description = "The response.", body = ResponseObject))
)]
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: ResponseId,
    query: Result<Query<RetrieveQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(wrong_query)?;
    if query.stream == Some(true) {
        let message = "'stream' is not supported here: a response is stored when it has ended.";
        return Err(ApiError::unsupported(Some("stream"), message));
    }
    let stored = stored(&app, &record, id)?;
    Ok(json_text(stored.response.clone()))
}

fn wrong_query(rejection: QueryRejection) -> ApiError {
    ApiError::invalid("query", format!("{}.", rejection.body_text()))
}

/// Deletes a stored response.
#[utoipa::path(
    delete,
    path = "/v1/responses/{response_id}",
    operation_id = "deleteResponse",
    tag = "OpenAI",
    params(("response_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "It is deleted.", body = DeletedResponse))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: ResponseId,
) -> Result<Response, ApiError> {
    let id = text(id)?;
    let owner = record.details().owner.clone();
    if !app.responses.remove(&id, owner.as_deref()).await {
        return Err(ApiError::unknown_response("response_id", &id));
    }
    Ok(super::json(&DeletedResponse {
        id,
        object: "response",
        deleted: true,
    }))
}

/// Cancels a response whose stream has not ended. The stream ends with the event
/// `response.failed`, and the response is kept with the status `cancelled`.
#[utoipa::path(
    post,
    path = "/v1/responses/{response_id}/cancel",
    operation_id = "cancelResponse",
    tag = "OpenAI",
    params(("response_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The response, without its output.", body = ResponseObject))
)]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: ResponseId,
) -> Result<Response, ApiError> {
    let id = text(id)?;
    let owner = record.details().owner.clone();
    let owner = owner.as_deref();
    match (
        app.responses.cancel(&id, owner),
        app.responses.get(&id, owner),
    ) {
        (Some(cancelled), _) => Ok(json_text(cancelled)),
        (None, None) => Err(ApiError::unknown_response("response_id", &id)),
        (None, Some(_)) => {
            let message = "Cannot cancel a response that has ended.";
            Err(ApiError::invalid("response_id", message))
        }
    }
}

/// An answer that is JSON already.
fn json_text(text: String) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], text).into_response()
}

/// Options for listing the input of a response.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ItemsQuery {
    /// Begin behind the item with this id.
    after: Option<String>,
    /// Maximum number of items: 1 to 100; 20 if not given.
    limit: Option<usize>,
    /// `asc`, or `desc` (if not given) for the last item first.
    order: Option<String>,
}

/// The input of a stored response, after the items of the responses that it continues.
#[utoipa::path(
    get,
    path = "/v1/responses/{response_id}/input_items",
    operation_id = "listInputItems",
    tag = "OpenAI",
    params(("response_id" = String, Path, description = "Its id."), ItemsQuery),
    responses((status = 200, description = "The items.", body = ItemList))
)]
pub(crate) async fn input_items(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: ResponseId,
    query: Result<Query<ItemsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(wrong_query)?;
    let last = stored(&app, &record, id)?;
    let mut items = Vec::new();
    if let Some(previous) = &last.previous {
        let owner = last.owner.as_deref();
        let earlier = app.responses.conversation(previous, owner);
        let earlier = earlier.map_err(|id| ApiError::unknown_response("response_id", &id))?;
        for response in earlier {
            items.extend(input_of(&response)?);
            items.extend(output_of(&response)?);
        }
    }
    items.extend(input_of(&last)?);
    Ok(super::json(&page(items, &query)?))
}

fn page(mut items: Vec<Item>, query: &ItemsQuery) -> Result<ItemList, ApiError> {
    match query.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::invalid("order", "'order' must be asc or desc.")),
    }
    let limit = query.limit.unwrap_or(LISTED);
    if !(1..=LISTED_MAX).contains(&limit) {
        let message = format!("'limit' is {limit}, but must be from 1 to {LISTED_MAX}.");
        return Err(ApiError::invalid("limit", message));
    }
    if let Some(after) = &query.after {
        let at = items
            .iter()
            .position(|item| item.id.as_deref() == Some(after));
        let at = at.ok_or_else(|| ApiError::unknown_item("after", after))?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Item>| item.and_then(|item| item.id.clone());
    Ok(ItemList {
        object: "list",
        first_id: id(items.first()),
        last_id: id(items.last()),
        data: items,
        has_more,
    })
}
