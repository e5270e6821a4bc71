//! `/v1/batches`: files of requests that are answered when no client waits, as in OpenAI's API.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::files::{
    ExpiresAfter, IdInPath, limit, on_disk, owner, refusal, store, text, unknown_after, wrong_query,
};
use crate::api::{ApiError, body};
use crate::batch::store::{
    BatchProblem, BatchStatus, FilePurpose, Listing, NewBatch, Refused, StoredBatch,
};
use crate::batch::tally::{BatchUsage, RequestCounts};
use crate::record::Record;
use crate::state::App;

/// Batches that are listed unless a request says otherwise, and at most.
const LISTED: usize = 20;
const LISTED_MAX: usize = 100;
/// The paths whose requests a batch may have.
const ENDPOINTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
];
/// Limits of metadata, as in OpenAI's API.
const METADATA_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;

/// A batch to answer. Unknown fields are refused with an error that names them.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct BatchRequest {
    /// The id of a file whose purpose is `batch`: on each line an object with `custom_id`, `method`,
    /// `url` and `body`.
    input_file_id: String,
    /// The `url` of all requests: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` or
    /// `/v1/responses`.
    endpoint: String,
    /// `24h`
    completion_window: String,
    /// Up to 16 texts of at most 512 characters, by names of at most 64.
    metadata: Option<BTreeMap<String, String>>,
    /// When the files with answers expire; without it they stay.
    output_expires_after: Option<ExpiresAfter>,
}

/// A batch. Times are seconds since 1970, or null if it did not come to that.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchObject {
    id: String,
    /// `batch`
    object: &'static str,
    endpoint: String,
    errors: Option<BatchErrors>,
    input_file_id: String,
    /// `24h`
    completion_window: &'static str,
    status: BatchStatus,
    /// The file with the answers, once the batch has ended and if there are some.
    output_file_id: Option<String>,
    /// The file with the errors, once the batch has ended and if there are some.
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: RequestCounts,
    /// The tokens of the answers so far. Null for batches of versions that did not count them.
    usage: Option<BatchUsage>,
    /// The model that has answered; null before the first answer, and if several models have.
    model: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
}

/// What is wrong with a batch that failed.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchErrors {
    /// `list`
    object: &'static str,
    data: Vec<BatchProblem>,
}

/// Batches.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchList {
    /// `list`
    object: &'static str,
    data: Vec<BatchObject>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl From<StoredBatch> for BatchObject {
    fn from(batch: StoredBatch) -> Self {
        let at = |status| batch.times.get(&status).copied();
        let [output, error] = &batch.outputs;
        let [has_output, has_error] = batch.has_output;
        let errors = batch.errors;
        Self {
            object: "batch",
            errors: (!errors.is_empty()).then_some(BatchErrors {
                object: "list",
                data: errors,
            }),
            completion_window: "24h",
            status: batch.status,
            output_file_id: has_output.then(|| output.clone()),
            error_file_id: has_error.then(|| error.clone()),
            created_at: batch.created_at,
            in_progress_at: at(BatchStatus::InProgress),
            expires_at: batch.expires_at,
            finalizing_at: at(BatchStatus::Finalizing),
            completed_at: at(BatchStatus::Completed),
            failed_at: at(BatchStatus::Failed),
            expired_at: at(BatchStatus::Expired),
            cancelling_at: at(BatchStatus::Cancelling),
            cancelled_at: at(BatchStatus::Cancelled),
            request_counts: batch.tally.counts,
            usage: batch.tally.usage,
            model: batch.tally.model().map(str::to_owned),
            id: batch.id,
            endpoint: batch.endpoint,
            input_file_id: batch.input_file_id,
            metadata: batch.metadata,
        }
    }
}

impl BatchRequest {
    fn check(&self) -> Result<(), ApiError> {
        if self.completion_window != "24h" {
            let message = "'completion_window' must be 24h.";
            return Err(ApiError::invalid("completion_window", message));
        }
        if !ENDPOINTS.contains(&&*self.endpoint) {
            let message = format!("'endpoint' must be one of {}.", ENDPOINTS.join(", "));
            return Err(ApiError::invalid("endpoint", message));
        }
        check_metadata(self.metadata.as_ref())
    }
}

fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else {
        return Ok(());
    };
    let len = metadata.len();
    if len > METADATA_MAX {
        let message = format!("'metadata' has {len} names, but may have {METADATA_MAX} at most.");
        return Err(ApiError::invalid("metadata", message));
    }
    for (key, value) in metadata {
        let (key_len, value_len) = (key.chars().count(), value.chars().count());
        if key_len > METADATA_KEY_CHARS_MAX || value_len > METADATA_VALUE_CHARS_MAX {
            let message = format!(
                "A name in 'metadata' has {key_len} characters and its text {value_len}, but they \
                 may have {METADATA_KEY_CHARS_MAX} and {METADATA_VALUE_CHARS_MAX} at most."
            );
            return Err(ApiError::invalid("metadata", message));
        }
    }
    Ok(())
}

/// Answers the requests of a file.
#[utoipa::path(
    post,
    path = "/v1/batches",
    operation_id = "createBatch",
    tag = "OpenAI",
    request_body = BatchRequest,
    responses((status = 200, description = "The batch.", body = BatchObject))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let store = Arc::clone(store(&app)?);
    let bytes = body::read(request, &app.options.limits, &app.inflight).await?;
    let request: BatchRequest =
        body::parse_checked(bytes.bytes(), app.options.is_lenient, BatchRequest::check)?;
    let owner = owner(&record);
    let input = store.file(&request.input_file_id, owner.as_deref());
    let input =
        input.ok_or_else(|| ApiError::unknown_stored("input_file_id", &request.input_file_id))?;
    if input.purpose != FilePurpose::Batch {
        let message = "The purpose of 'input_file_id' is batch_output, but must be batch.";
        return Err(ApiError::invalid("input_file_id", message));
    }
    let expires_after = request.output_expires_after.as_ref();
    let new = NewBatch {
        owner,
        endpoint: request.endpoint,
        input_file_id: request.input_file_id,
        metadata: request.metadata,
        output_expires_after: expires_after.map(ExpiresAfter::seconds).transpose()?,
    };
    let created = on_disk(move || store.create_batch(new)).await?;
    let created = created.map_err(|refused| refusal(refused, "input_file_id", &input.id))?;
    Ok(super::json(&BatchObject::from(created)))
}

/// Options for listing batches.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct BatchesQuery {
    /// Begin behind the batch with this id.
    after: Option<String>,
    /// Maximum number of batches: 1 to 100; 20 if not given.
    limit: Option<usize>,
}

/// The batches of the owner of the request's key, the newest first.
#[utoipa::path(
    get,
    path = "/v1/batches",
    operation_id = "listBatches",
    tag = "OpenAI",
    params(BatchesQuery),
    responses((status = 200, description = "The batches.", body = BatchList))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    query: Result<Query<BatchesQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let store = store(&app)?;
    let Query(query) = query.map_err(wrong_query)?;
    let listing = Listing {
        after: query.after.as_deref(),
        limit: limit(query.limit, LISTED, LISTED_MAX)?,
        newest_first: true,
    };
    let found = store.batches(owner(&record).as_deref(), &listing);
    let (batches, has_more) = found.ok_or_else(|| unknown_after(&listing))?;
    Ok(super::json(&BatchList {
        object: "list",
        first_id: batches.first().map(|batch| batch.id.clone()),
        last_id: batches.last().map(|batch| batch.id.clone()),
        data: batches.into_iter().map(BatchObject::from).collect(),
        has_more,
    }))
}

/// A batch.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}",
    operation_id = "retrieveBatch",
    tag = "OpenAI",
    params(("batch_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The batch.", body = BatchObject))
)]
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: IdInPath,
) -> Result<Response, ApiError> {
    let store = store(&app)?;
    let id = text(id, "batch_id")?;
    let batch = store.batch(&id, owner(&record).as_deref());
    let batch = batch.ok_or_else(|| ApiError::unknown_stored("batch_id", &id))?;
    Ok(super::json(&BatchObject::from(batch)))
}

/// Cancels a batch. The answers so far stay.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/cancel",
    operation_id = "cancelBatch",
    tag = "OpenAI",
    params(("batch_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The batch.", body = BatchObject))
)]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: IdInPath,
) -> Result<Response, ApiError> {
    let store = Arc::clone(store(&app)?);
    let id = text(id, "batch_id")?;
    let (batch, owner) = (id.clone(), owner(&record));
    let cancelled = on_disk(move || store.cancel(&batch, owner.as_deref())).await?;
    let cancelled = cancelled.map_err(|refused| match refused {
        Refused::InUse(status) => {
            let message = format!("Cannot cancel a batch with status '{status}'.");
            ApiError::invalid("batch_id", message)
        }
        refused => refusal(refused, "batch_id", &id),
    })?;
    Ok(super::json(&BatchObject::from(cancelled)))
}
