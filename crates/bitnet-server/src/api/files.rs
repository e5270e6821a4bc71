//! `/v1/files`: files with the requests of batches, and files with their answers, as in OpenAI's
//! API.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use http_body::Body as _;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiError;
use crate::batch::store::{BatchStore, FilePurpose, Listing, Refused, StoredFile, Upload};
use crate::error::chain;
use crate::record::Record;
use crate::state::{App, Phase};

/// Files that are listed unless a request says otherwise, and at most.
const LISTED_MAX: usize = 10_000;
/// Bytes that are written or read at once.
const PART_BYTES: usize = 1 << 20;
/// Bytes of a form beside the file.
const FORM_BYTES: u64 = 16 << 10;
/// Maximum number of bytes of a field that is a text, and of a file's name.
const TEXT_BYTES_MAX: usize = 1024;
/// The seconds after which files may expire, as in OpenAI's API.
const EXPIRES_MIN_S: u64 = 3600;
const EXPIRES_MAX_S: u64 = 2_592_000;

/// A file to upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read as a form, not by serde")]
pub(crate) struct FileUpload {
    /// The requests, a JSON object on each line.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `batch`
    purpose: String,
    /// `created_at`, the only time that `expires_after[seconds]` can count from.
    #[schema(rename = "expires_after[anchor]")]
    expires_after_anchor: Option<String>,
    /// Delete the file after this time.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    expires_after_seconds: Option<u64>,
}

/// A file.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileObject {
    id: String,
    /// `file`
    object: &'static str,
    bytes: u64,
    /// Seconds since 1970.
    created_at: u64,
    /// When the server deletes it, if it does.
    expires_at: Option<u64>,
    filename: String,
    purpose: FilePurpose,
    /// `processed`
    status: &'static str,
}

/// Files.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileList {
    /// `list`
    object: &'static str,
    data: Vec<FileObject>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// A file that was deleted.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedFile {
    id: String,
    /// `file`
    object: &'static str,
    deleted: bool,
}

impl From<StoredFile> for FileObject {
    fn from(file: StoredFile) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_at,
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
        }
    }
}

/// The files and batches, if the server keeps some and is not about to stop.
pub(crate) fn store(app: &App) -> Result<&Arc<BatchStore>, ApiError> {
    match app.batches.get() {
        _ if app.phase() == Phase::Draining => Err(ApiError::draining()),
        Some(store) => Ok(store),
        None => Err(ApiError::no_state_dir()),
    }
}

/// The refusal of a change to the file or batch `id` that the field `param` names.
pub(crate) fn refusal(refused: Refused, param: &str, id: &str) -> ApiError {
    match refused {
        Refused::Unknown => ApiError::unknown_stored(param, id),
        Refused::Full(problem) => ApiError::storage_full(problem),
        Refused::TooLarge => ApiError::internal("a file is too large"),
        Refused::Busy => {
            ApiError::too_many_requests("too many files are being uploaded".to_owned(), 1)
        }
        Refused::InUse(user) => ApiError::invalid(param, user),
        Refused::Failed(error) => {
            tracing::error!(error = chain(&error), "cannot change the stored files");
            ApiError::internal("the disk cannot be read or written")
        }
    }
}

/// Runs work that waits for the disk.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("a bug in the server: this request made it panic"))
}

/// The owner of the request's key.
pub(crate) fn owner(record: &Record) -> Option<String> {
    record.details().owner.as_deref().map(str::to_owned)
}

/// Uploads a file of requests.
#[utoipa::path(
    post,
    path = "/v1/files",
    operation_id = "createFile",
    tag = "OpenAI",
    request_body(content = FileUpload, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file.", body = FileObject))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let store = Arc::clone(store(&app)?);
    let file_bytes = store.limits().file_bytes;
    let boundary = boundary(request.headers())?;
    let body = request.into_body();
    let bytes_max = file_bytes.saturating_add(FORM_BYTES);
    if body.size_hint().lower() > bytes_max {
        return Err(ApiError::file_too_large(file_bytes));
    }
    let limit = SizeLimit::new().whole_stream(bytes_max);
    let constraints = Constraints::new().size_limit(limit);
    let form = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
    let reader = FormReader {
        store,
        patience: app.options.limits.body_timeout,
    };
    let stored = reader.read(form, owner(&record)).await?;
    Ok(super::json(&FileObject::from(stored)))
}

/// The boundary between the parts of a form.
fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let value = headers.get(CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    let boundary = value.and_then(|value| multer::parse_boundary(value).ok());
    boundary.ok_or_else(ApiError::no_form)
}

/// Reads a form with a file.
struct FormReader {
    store: Arc<BatchStore>,
    /// Maximum time in which a client sends [`PART_BYTES`] or the next field.
    patience: Duration,
}

/// The fields of a form.
#[derive(Default)]
struct Form {
    upload: Option<(Upload, String)>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

impl FormReader {
    /// Reads the form, whose fields may have any order, and keeps the file.
    async fn read(
        &self,
        mut multipart: Multipart<'_>,
        owner: Option<String>,
    ) -> Result<StoredFile, ApiError> {
        let mut form = Form::default();
        while let Some(field) = self.in_time(multipart.next_field()).await? {
            let name = field.name().unwrap_or_default().to_owned();
            let is_given = match &*name {
                "file" => {
                    let file = self.file(field).await?;
                    form.upload.replace(file).is_some()
                }
                "purpose" => {
                    let purpose = self.text(field, "purpose").await?;
                    check_purpose(&purpose)?;
                    form.purpose.replace(purpose).is_some()
                }
                "expires_after[anchor]" => {
                    let anchor = self.text(field, &name).await?;
                    form.anchor.replace(anchor).is_some()
                }
                "expires_after[seconds]" => {
                    let seconds = self.text(field, &name).await?;
                    form.seconds.replace(seconds).is_some()
                }
                _ => return Err(ApiError::unknown_field(&name)),
            };
            if is_given {
                return Err(ApiError::invalid(
                    &name,
                    format!("'{name}' is given twice."),
                ));
            }
        }
        let expires_after = expires_after(form.anchor.as_deref(), form.seconds.as_deref())?;
        let (upload, filename) = form.upload.ok_or_else(|| ApiError::missing("file"))?;
        form.purpose.ok_or_else(|| ApiError::missing("purpose"))?;
        let stored = on_disk(move || upload.finish(owner, filename, expires_after)).await?;
        stored.map_err(|refused| refusal(refused, "file", ""))
    }

    /// The next part of a form, if it arrives in time.
    async fn in_time<T>(
        &self,
        part: impl Future<Output = multer::Result<T>>,
    ) -> Result<T, ApiError> {
        self.until(Instant::now() + self.patience, part).await
    }

    async fn until<T>(
        &self,
        deadline: Instant,
        part: impl Future<Output = multer::Result<T>>,
    ) -> Result<T, ApiError> {
        match timeout_at(deadline, part).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(multer::Error::StreamSizeExceeded { .. })) => {
                Err(ApiError::file_too_large(self.store.limits().file_bytes))
            }
            Ok(Err(error)) => Err(ApiError::invalid_form(&chain(&error))),
            Err(_) => Err(ApiError::body_too_slow()),
        }
    }

    /// A field that is a short text.
    async fn text(&self, mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
        let mut text = Vec::new();
        while let Some(bytes) = self.in_time(field.chunk()).await? {
            text.extend_from_slice(&bytes);
            if text.len() > TEXT_BYTES_MAX {
                let message = format!("'{name}' has more than {TEXT_BYTES_MAX} bytes.");
                return Err(ApiError::invalid(name, message));
            }
        }
        let invalid = |_| ApiError::invalid(name, format!("'{name}' is not UTF-8."));
        String::from_utf8(text).map_err(invalid)
    }

    /// Writes a file to the disk; returns it with its name.
    async fn file(&self, mut field: Field<'_>) -> Result<(Upload, String), ApiError> {
        let name = field.file_name().unwrap_or("upload").to_owned();
        if name.len() > TEXT_BYTES_MAX {
            let message = format!("The name of the file has more than {TEXT_BYTES_MAX} bytes.");
            return Err(ApiError::invalid("file", message));
        }
        let refused = |refused| match refused {
            Refused::TooLarge => ApiError::file_too_large(self.store.limits().file_bytes),
            refused => refusal(refused, "file", ""),
        };
        let store = Arc::clone(&self.store);
        let mut upload = on_disk(move || store.upload()).await?.map_err(refused)?;
        loop {
            let (part, is_last) = self.part(&mut field).await?;
            let written = on_disk(move || upload.write(&part).map(|()| upload)).await?;
            upload = written.map_err(refused)?;
            if is_last {
                return Ok((upload, name));
            }
        }
    }

    /// The next bytes of a file, and whether they are the last ones.
    async fn part(&self, field: &mut Field<'_>) -> Result<(Vec<u8>, bool), ApiError> {
        let deadline = Instant::now() + self.patience;
        let mut part = Vec::new();
        while part.len() < PART_BYTES {
            match self.until(deadline, field.chunk()).await? {
                Some(bytes) => part.extend_from_slice(&bytes),
                None => return Ok((part, true)),
            }
        }
        Ok((part, false))
    }
}

fn check_purpose(purpose: &str) -> Result<(), ApiError> {
    match purpose {
        "batch" => Ok(()),
        _ => {
            let message = "The only supported 'purpose' of an upload is batch.";
            Err(ApiError::unsupported(Some("purpose"), message))
        }
    }
}

/// The seconds after which a file expires, from the fields of a form.
fn expires_after(anchor: Option<&str>, seconds: Option<&str>) -> Result<Option<u64>, ApiError> {
    let Some(seconds) = seconds else {
        return match anchor {
            Some(_) => Err(ApiError::missing("expires_after[seconds]")),
            None => Ok(None),
        };
    };
    let number = seconds.parse().unwrap_or(0);
    let anchor = anchor.unwrap_or_default();
    let checked = ExpiresAfter::check(anchor, number, "expires_after[anchor]", || {
        ("expires_after[seconds]", seconds.to_owned())
    });
    checked.map(Some)
}

/// When files expire.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ExpiresAfter {
    /// `created_at`
    anchor: String,
    /// The time after that.
    #[schema(minimum = 3600, maximum = 2_592_000)]
    seconds: u64,
}

impl ExpiresAfter {
    /// The seconds, if they are valid.
    pub(crate) fn seconds(&self) -> Result<u64, ApiError> {
        let (anchor, seconds) = (
            "output_expires_after.anchor",
            "output_expires_after.seconds",
        );
        let given = || (seconds, self.seconds.to_string());
        Self::check(&self.anchor, self.seconds, anchor, given)
    }

    fn check(
        anchor: &str,
        seconds: u64,
        anchor_name: &str,
        given: impl Fn() -> (&'static str, String),
    ) -> Result<u64, ApiError> {
        if anchor != "created_at" {
            let message = format!("'{anchor_name}' must be created_at.");
            return Err(ApiError::invalid(anchor_name, message));
        }
        if (EXPIRES_MIN_S..=EXPIRES_MAX_S).contains(&seconds) {
            return Ok(seconds);
        }
        let (name, given) = given();
        let message =
            format!("'{name}' is {given}, but must be from {EXPIRES_MIN_S} to {EXPIRES_MAX_S}.");
        Err(ApiError::invalid(name, message))
    }
}

/// Options for listing files.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct FilesQuery {
    /// Begin behind the file with this id.
    after: Option<String>,
    /// Maximum number of files: 1 to 10000; 10000 if not given.
    limit: Option<usize>,
    /// `asc`, or `desc` (if not given) for the newest file first.
    order: Option<String>,
    /// Only files of this purpose: `batch` or `batch_output`.
    purpose: Option<String>,
}

/// The files of the owner of the request's key.
#[utoipa::path(
    get,
    path = "/v1/files",
    operation_id = "listFiles",
    tag = "OpenAI",
    params(FilesQuery),
    responses((status = 200, description = "The files.", body = FileList))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    query: Result<Query<FilesQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let store = store(&app)?;
    let Query(query) = query.map_err(wrong_query)?;
    let newest_first = match query.order.as_deref() {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(ApiError::invalid("order", "'order' must be asc or desc.")),
    };
    let purpose = match query.purpose.as_deref() {
        None => None,
        Some("batch") => Some(FilePurpose::Batch),
        Some("batch_output") => Some(FilePurpose::BatchOutput),
        Some(_) => {
            let message = "'purpose' must be batch or batch_output.";
            return Err(ApiError::invalid("purpose", message));
        }
    };
    let listing = Listing {
        after: query.after.as_deref(),
        limit: limit(query.limit, LISTED_MAX, LISTED_MAX)?,
        newest_first,
    };
    let owner = owner(&record);
    let found = store.files(owner.as_deref(), purpose, &listing);
    let (files, has_more) = found.ok_or_else(|| unknown_after(&listing))?;
    Ok(super::json(&FileList {
        object: "list",
        first_id: files.first().map(|file| file.id.clone()),
        last_id: files.last().map(|file| file.id.clone()),
        data: files.into_iter().map(FileObject::from).collect(),
        has_more,
    }))
}

/// There is nothing to begin behind.
pub(crate) fn unknown_after(listing: &Listing<'_>) -> ApiError {
    let after = listing.after.unwrap_or_default();
    ApiError::unknown_cursor(after)
}

pub(crate) fn wrong_query(rejection: QueryRejection) -> ApiError {
    ApiError::invalid("query", format!("{}.", rejection.body_text()))
}

/// The number of values to list.
pub(crate) fn limit(given: Option<usize>, default: usize, max: usize) -> Result<usize, ApiError> {
    let limit = given.unwrap_or(default);
    if (1..=max).contains(&limit) {
        return Ok(limit);
    }
    let message = format!("'limit' is {limit}, but must be from 1 to {max}.");
    Err(ApiError::invalid("limit", message))
}

/// The id in the path of a request.
pub(crate) type IdInPath = Result<Path<String>, PathRejection>;

/// The id as a text. `param`: its name.
pub(crate) fn text(id: IdInPath, param: &str) -> Result<String, ApiError> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_) => Err(ApiError::invalid(param, "The id is not UTF-8.")),
    }
}

fn stored(app: &App, record: &Record, id: IdInPath) -> Result<StoredFile, ApiError> {
    let store = store(app)?;
    let id = text(id, "file_id")?;
    let file = store.file(&id, owner(record).as_deref());
    file.ok_or_else(|| ApiError::unknown_stored("file_id", &id))
}

/// A file.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    operation_id = "retrieveFile",
    tag = "OpenAI",
    params(("file_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The file.", body = FileObject))
)]
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: IdInPath,
) -> Result<Response, ApiError> {
    let file = stored(&app, &record, id)?;
    Ok(super::json(&FileObject::from(file)))
}

/// The content of a file.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    operation_id = "downloadFile",
    tag = "OpenAI",
    params(("file_id" = String, Path, description = "Its id.")),
    responses((
        status = 200,
        description = "The content.",
        body = String,
        content_type = "application/octet-stream"
    ))
)]
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: IdInPath,
) -> Result<Response, ApiError> {
    let file = stored(&app, &record, id)?;
    let path = store(&app)?.path(&file.id);
    let opened = on_disk(move || File::open(path)).await?;
    let opened = opened.map_err(|_| ApiError::unknown_stored("file_id", &file.id))?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, file.bytes.to_string()),
    ];
    let body = Body::from_stream(parts(opened, file.bytes));
    Ok((headers, body).into_response())
}

/// The first `len` bytes of a file.
fn parts(file: File, len: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold((file, len), |(file, len)| next_part(file, len))
}

/// The next of `len` bytes of a file, with the file and the number of bytes after them; `None` after
/// the last.
async fn next_part(mut file: File, len: u64) -> std::io::Result<Option<(Bytes, (File, u64))>> {
    if len == 0 {
        return Ok(None);
    }
    let read = move || -> std::io::Result<(File, Vec<u8>)> {
        let mut part = vec![0; len.min(PART_BYTES as u64) as usize];
        file.read_exact(&mut part)?;
        Ok((file, part))
    };
    let done = tokio::task::spawn_blocking(read).await;
    let (file, part) = done.map_err(std::io::Error::other)??;
    let left = len - part.len() as u64;
    Ok(Some((Bytes::from(part), (file, left))))
}

/// Deletes a file. A file that a batch still reads stays.
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    operation_id = "deleteFile",
    tag = "OpenAI",
    params(("file_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "It is deleted.", body = DeletedFile))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    id: IdInPath,
) -> Result<Response, ApiError> {
    let store = Arc::clone(store(&app)?);
    let id = text(id, "file_id")?;
    let (file, owner) = (id.clone(), owner(&record));
    let removed = on_disk(move || store.remove_file(&file, owner.as_deref())).await?;
    removed.map_err(|refused| match refused {
        Refused::InUse(batch) => {
            let message = format!("The batch {batch} still reads this file: cancel it first.");
            ApiError::invalid("file_id", message)
        }
        refused => refusal(refused, "file_id", &id),
    })?;
    Ok(super::json(&DeletedFile {
        id,
        object: "file",
        deleted: true,
    }))
}
