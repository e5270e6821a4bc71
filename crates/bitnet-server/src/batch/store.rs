//! [`BatchStore`]: the files and batches of a server, in its folder for state.
//!
//! A database has the facts about them (`database.rs`); a folder beside it has the contents. Each
//! change is in the database before clients learn of it. A content is on the disk before the
//! database names its file; contents that the database does not name are removed at the next start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;

use crate::batch::database::{BatchChange, BatchDatabase};
use crate::batch::tally::Tally;
use crate::clock::unix_time;
use crate::error::{Error, Result};
use crate::id::random_id;
use crate::options::FileLimits;

/// Maximum number of files.
const FILES_MAX: usize = 10_000;
/// Maximum number of batches. The oldest one that has ended leaves first.
const BATCHES_MAX: usize = 2_000;
/// Maximum number of files that are uploaded at once.
const UPLOADS_MAX: usize = 4;
/// Seconds in which a batch must be answered.
const WINDOW_S: u64 = 24 * 60 * 60;
/// The folder with the contents, in the folder for state.
const CONTENTS: &str = "files";
/// The ending of a content that is not whole.
const PART: &str = ".part";

/// What a file is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FilePurpose {
    /// The requests of a batch.
    Batch,
    /// Their answers.
    BatchOutput,
}

/// A file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StoredFile {
    pub(crate) id: String,
    /// The owner of the key that made it; only requests with a key of this owner find it.
    pub(crate) owner: Option<String>,
    pub(crate) bytes: u64,
    /// Seconds since 1970, as all times here.
    pub(crate) created_at: u64,
    pub(crate) expires_at: Option<u64>,
    pub(crate) filename: String,
    pub(crate) purpose: FilePurpose,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchStatus {
    /// Its requests are being read.
    Validating,
    /// A line is no request, or the server could not go on.
    Failed,
    InProgress,
    /// Its answers are being written to the disk.
    Finalizing,
    Completed,
    /// It was not complete after 24 hours.
    Expired,
    Cancelling,
    Cancelled,
}

impl BatchStatus {
    pub(crate) const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Whether it is the last one of a batch.
    pub(crate) fn is_end(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled
        )
    }

    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is wrong with a batch.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct BatchProblem {
    pub(crate) code: String,
    pub(crate) message: String,
    /// Always null.
    pub(crate) param: Option<String>,
    /// The line of the input, counted from 1.
    pub(crate) line: Option<usize>,
}

/// A batch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StoredBatch {
    pub(crate) id: String,
    /// As in [`StoredFile`].
    pub(crate) owner: Option<String>,
    pub(crate) endpoint: String,
    pub(crate) input_file_id: String,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// Seconds after which files with answers expire.
    pub(crate) output_expires_after: Option<u64>,
    pub(crate) status: BatchStatus,
    pub(crate) created_at: u64,
    pub(crate) expires_at: u64,
    /// When it got each status.
    pub(crate) times: HashMap<BatchStatus, u64>,
    /// What its answers add up to.
    #[serde(flatten)]
    pub(crate) tally: Tally,
    pub(crate) errors: Vec<BatchProblem>,
    /// The ids of the files for answers and for errors; there is no such file before the end, nor
    /// without answers or errors.
    pub(crate) outputs: [String; 2],
    /// Whether there is such a file.
    pub(crate) has_output: [bool; 2],
}

impl StoredBatch {
    fn set(&mut self, status: BatchStatus) {
        self.status = status;
        self.times.insert(status, unix_time());
    }
}

/// A batch that a client asks for.
pub(crate) struct NewBatch {
    pub(crate) owner: Option<String>,
    pub(crate) endpoint: String,
    pub(crate) input_file_id: String,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    pub(crate) output_expires_after: Option<u64>,
}

/// Why a change was not made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is no such file or batch of this owner.
    Unknown,
    /// A limit is reached; the message names it.
    Full(String),
    /// The file is larger than files may be.
    TooLarge,
    /// Too many files are being uploaded.
    Busy,
    /// The batch has this status, or uses the file.
    InUse(String),
    /// The disk cannot be written.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Changed<T> = std::result::Result<T, Refused>;

/// Files and batches.
pub(crate) struct BatchStore {
    contents: PathBuf,
    database: BatchDatabase,
    /// Held from a look at `kept` to the change of it, with the write to the database between, so
    /// that changes have one order.
    writing: Mutex<()>,
    kept: Mutex<Kept>,
    uploads: Arc<Semaphore>,
    limits: FileLimits,
    /// Notified when there is work for the runner.
    pub(crate) work: Notify,
    /// Requests of all batches since the start of the server.
    completed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct Kept {
    files: Table<StoredFile>,
    batches: Table<StoredBatch>,
    last_number: u64,
    /// Bytes of all contents, contents of unfinished files included.
    bytes: u64,
    /// The batches that the runner has, each with the signal that a client has cancelled it.
    running: HashMap<String, Arc<Notify>>,
}

/// Values by the numbers of their insertions and by their ids.
struct Table<T> {
    values: BTreeMap<u64, T>,
    numbers: HashMap<String, u64>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            values: BTreeMap::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Clone> Table<T> {
    fn new(values: BTreeMap<u64, T>, id: impl Fn(&T) -> &str) -> Self {
        let numbers = values
            .iter()
            .map(|(number, value)| (id(value).to_owned(), *number));
        Self {
            numbers: numbers.collect(),
            values,
        }
    }

    fn get(&self, id: &str) -> Option<(u64, &T)> {
        let number = *self.numbers.get(id)?;
        Some((number, self.values.get(&number)?))
    }

    fn put(&mut self, number: u64, id: &str, value: T) {
        self.numbers.insert(id.to_owned(), number);
        self.values.insert(number, value);
    }

    fn remove(&mut self, id: &str) -> Option<T> {
        let number = self.numbers.remove(id)?;
        self.values.remove(&number)
    }

    /// At most `limit` values after the one with the id `after`, in the order of insertion or, with
    /// `newest_first`, in the opposite order; and whether there are more.
    fn page(
        &self,
        is_listed: impl Fn(&T) -> bool,
        after: Option<u64>,
        limit: usize,
        newest_first: bool,
    ) -> (Vec<T>, bool) {
        let listed = |(_, value): &(&u64, &T)| is_listed(value);
        let mut found: Vec<T> = match newest_first {
            true => {
                let end = after.unwrap_or(u64::MAX);
                let values = self.values.range(..end).rev().filter(listed);
                values.take(limit + 1).map(|(_, v)| v.clone()).collect()
            }
            false => {
                let start = after.map_or(0, |after| after + 1);
                let values = self.values.range(start..).filter(listed);
                values.take(limit + 1).map(|(_, v)| v.clone()).collect()
            }
        };
        let has_more = found.len() > limit;
        found.truncate(limit);
        (found, has_more)
    }
}

/// Which values to list.
pub(crate) struct Listing<'a> {
    /// Begin behind the value with this id.
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: usize,
    pub(crate) newest_first: bool,
}

/// What the server's metrics show.
pub(crate) struct BatchNumbers {
    pub(crate) by_status: [(BatchStatus, usize); 8],
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

impl BatchStore {
    /// The files and batches of a folder, which exists.
    ///
    /// # Errors
    /// If the database cannot be opened, is used by another process, or is damaged.
    pub(crate) fn open(folder: &Path, limits: FileLimits) -> Result<Self> {
        let contents = folder.join(CONTENTS);
        let made = fs::create_dir_all(&contents);
        made.map_err(|source| Error::file("make", &contents, source))?;
        let (database, records) = BatchDatabase::open(folder)?;
        let files = records.files.last_key_value().map_or(0, |(last, _)| *last);
        let batches = records
            .batches
            .last_key_value()
            .map_or(0, |(last, _)| *last);
        let mut kept = Kept {
            files: Table::new(records.files, |file: &StoredFile| &file.id),
            batches: Table::new(records.batches, |batch: &StoredBatch| &batch.id),
            last_number: files.max(batches),
            ..Kept::default()
        };
        kept.bytes = remove_strays(&contents, &kept.named())
            .map_err(|source| Error::file("read", &contents, source))?;
        Ok(Self {
            contents,
            database,
            writing: Mutex::default(),
            kept: Mutex::new(kept),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            limits,
            work: Notify::new(),
            completed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // No change under this lock can panic halfway.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the content of a file is.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.contents.join(id)
    }

    pub(crate) fn limits(&self) -> FileLimits {
        self.limits
    }

    /// A file of this owner.
    pub(crate) fn file(&self, id: &str, owner: Option<&str>) -> Option<StoredFile> {
        let kept = self.lock();
        let (_, file) = kept.files.get(id)?;
        file.is_of(owner).then(|| file.clone())
    }

    /// Files of this owner, and whether there are more; `None` if there is no file to begin behind.
    pub(crate) fn files(
        &self,
        owner: Option<&str>,
        purpose: Option<FilePurpose>,
        listing: &Listing<'_>,
    ) -> Option<(Vec<StoredFile>, bool)> {
        let kept = self.lock();
        let after = match listing.after {
            None => None,
            Some(after) => {
                let found = kept.files.get(after);
                Some(found.filter(|(_, file)| file.is_of(owner))?.0)
            }
        };
        let is_listed = |file: &StoredFile| {
            file.is_of(owner) && purpose.is_none_or(|purpose| file.purpose == purpose)
        };
        let (limit, newest_first) = (listing.limit, listing.newest_first);
        Some(kept.files.page(is_listed, after, limit, newest_first))
    }

    /// Deletes a file of this owner.
    pub(crate) fn remove_file(&self, id: &str, owner: Option<&str>) -> Changed<()> {
        let _writing = self.lock_writing();
        let (number, bytes) = {
            let kept = self.lock();
            let found = kept.files.get(id).filter(|(_, file)| file.is_of(owner));
            let (number, file) = found.ok_or(Refused::Unknown)?;
            if let Some(batch) = kept.user(id) {
                return Err(Refused::InUse(batch.to_owned()));
            }
            (number, file.bytes)
        };
        self.database.write(&[BatchChange::RemoveFile(number)])?;
        let mut kept = self.lock();
        kept.files.remove(id);
        kept.bytes = kept.bytes.saturating_sub(bytes);
        drop(kept);
        // If this fails, the next start removes the content.
        let _ = fs::remove_file(self.path(id));
        Ok(())
    }

    /// Begins an upload.
    pub(crate) fn upload(self: &Arc<Self>) -> Changed<Upload> {
        let place = Arc::clone(&self.uploads).try_acquire_owned();
        let place = place.map_err(|_| Refused::Busy)?;
        self.check_room()?;
        let id = random_id("file-");
        let path = self.path(&format!("{id}{PART}"));
        let file = File::create(&path).map_err(|source| Error::file("open", &path, source))?;
        Ok(Upload {
            store: Arc::clone(self),
            _place: place,
            id,
            path: Some(path),
            file,
            bytes: 0,
        })
    }

    fn check_room(&self) -> Changed<()> {
        let num_files = self.lock().files.values.len();
        match num_files < FILES_MAX {
            true => Ok(()),
            false => Err(Refused::Full(format!(
                "There are {num_files} files, the maximum: delete some."
            ))),
        }
    }

    /// Counts bytes of a content that is being written; false if there is no room for them.
    pub(crate) fn reserve(&self, bytes: u64) -> bool {
        let mut kept = self.lock();
        let has_room = kept.bytes.saturating_add(bytes) <= self.limits.total_bytes;
        if has_room {
            kept.bytes += bytes;
        }
        has_room
    }

    fn release(&self, bytes: u64) {
        let mut kept = self.lock();
        kept.bytes = kept.bytes.saturating_sub(bytes);
    }

    /// A batch of this owner.
    pub(crate) fn batch(&self, id: &str, owner: Option<&str>) -> Option<StoredBatch> {
        let kept = self.lock();
        let (_, batch) = kept.batches.get(id)?;
        (batch.owner.as_deref() == owner).then(|| batch.clone())
    }

    /// Batches of this owner, the newest first, and whether there are more; `None` if there is no
    /// batch to begin behind.
    pub(crate) fn batches(
        &self,
        owner: Option<&str>,
        listing: &Listing<'_>,
    ) -> Option<(Vec<StoredBatch>, bool)> {
        let kept = self.lock();
        let is_of = |batch: &StoredBatch| batch.owner.as_deref() == owner;
        let after = match listing.after {
            None => None,
            Some(after) => {
                let found = kept.batches.get(after);
                Some(found.filter(|(_, batch)| is_of(batch))?.0)
            }
        };
        let (limit, newest_first) = (listing.limit, listing.newest_first);
        Some(kept.batches.page(is_of, after, limit, newest_first))
    }

    /// Adds a batch for the runner.
    pub(crate) fn create_batch(&self, new: NewBatch) -> Changed<StoredBatch> {
        let _writing = self.lock_writing();
        let (number, oldest) = {
            let kept = self.lock();
            let owner = new.owner.as_deref();
            let input = kept.files.get(&new.input_file_id);
            input
                .filter(|(_, file)| file.is_of(owner))
                .ok_or(Refused::Unknown)?;
            (kept.last_number + 1, kept.batch_to_forget()?)
        };
        let created_at = unix_time();
        let batch = StoredBatch {
            id: random_id("batch_"),
            owner: new.owner,
            endpoint: new.endpoint,
            input_file_id: new.input_file_id,
            metadata: new.metadata,
            output_expires_after: new.output_expires_after,
            status: BatchStatus::Validating,
            created_at,
            expires_at: created_at + WINDOW_S,
            times: HashMap::new(),
            tally: Tally::new(0),
            errors: Vec::new(),
            outputs: [random_id("file-"), random_id("file-")],
            has_output: [false; 2],
        };
        let forget = oldest.as_ref().map(|(number, _)| *number);
        let changes = forget.map(BatchChange::RemoveBatch).into_iter();
        let changes: Vec<_> = changes
            .chain([BatchChange::PutBatch(number, &batch)])
            .collect();
        self.database.write(&changes)?;
        let mut kept = self.lock();
        kept.last_number = number;
        kept.batches.put(number, &batch.id, batch.clone());
        if let Some((_, id)) = oldest {
            kept.batches.remove(&id);
        }
        drop(kept);
        self.work.notify_one();
        Ok(batch)
    }

    /// Cancels a batch of this owner. The runner ends it.
    pub(crate) fn cancel(&self, id: &str, owner: Option<&str>) -> Changed<StoredBatch> {
        let cancelled = self.change(id, |batch| {
            if batch.owner.as_deref() != owner {
                return Err(Refused::Unknown);
            }
            match batch.status {
                BatchStatus::Validating | BatchStatus::InProgress => {
                    batch.set(BatchStatus::Cancelling);
                    Ok(())
                }
                BatchStatus::Cancelling => Ok(()),
                status => Err(Refused::InUse(status.name().to_owned())),
            }
        })?;
        if let Some(cancel) = self.lock().running.get(id) {
            cancel.notify_one();
        }
        self.work.notify_one();
        Ok(cancelled)
    }

    /// Changes a batch.
    fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut StoredBatch) -> Changed<()>,
    ) -> Changed<StoredBatch> {
        let _writing = self.lock_writing();
        let found = {
            let kept = self.lock();
            let found = kept.batches.get(id);
            found.map(|(number, batch)| (number, batch.clone()))
        };
        let (number, mut batch) = found.ok_or(Refused::Unknown)?;
        change(&mut batch)?;
        self.database
            .write(&[BatchChange::PutBatch(number, &batch)])?;
        self.lock().batches.put(number, id, batch.clone());
        Ok(batch)
    }

    /// Numbers for metrics.
    pub(crate) fn numbers(&self) -> BatchNumbers {
        let kept = self.lock();
        let count = |status| {
            let batches = kept.batches.values.values();
            batches.filter(|batch| batch.status == status).count()
        };
        BatchNumbers {
            by_status: BatchStatus::ALL.map(|status| (status, count(status))),
            files: kept.files.values.len(),
            bytes: kept.bytes,
            completed: self.completed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// What the runner does with batches.
impl BatchStore {
    /// Takes the next batch that has not ended: of the owner with the fewest batches under way, the
    /// oldest. The second value is the signal that a client has cancelled it.
    pub(crate) fn take_batch(&self) -> Option<(StoredBatch, Arc<Notify>)> {
        let mut kept = self.lock();
        let batch = kept.next_batch()?.clone();
        let cancel = Arc::new(Notify::new());
        kept.running.insert(batch.id.clone(), Arc::clone(&cancel));
        Some((batch, cancel))
    }

    /// Gives a batch back that the runner has ended.
    pub(crate) fn give_back(&self, id: &str) {
        self.lock().running.remove(id);
    }

    /// Sets the status of a batch that no client has cancelled meanwhile, and changes it.
    pub(crate) fn advance(
        &self,
        id: &str,
        status: BatchStatus,
        change: impl FnOnce(&mut StoredBatch),
    ) -> Changed<StoredBatch> {
        self.change(id, |batch| {
            change(batch);
            if batch.status != BatchStatus::Cancelling || status.is_end() {
                batch.set(status);
            }
            Ok(())
        })
    }

    /// Sets the tally of a batch under way, in memory only: after a restart the files tell it.
    pub(crate) fn set_tally(&self, id: &str, tally: &Tally) {
        let mut kept = self.lock();
        let number = kept.batches.numbers.get(id).copied();
        if let Some(batch) = number.and_then(|number| kept.batches.values.get_mut(&number)) {
            batch.tally.clone_from(tally);
        }
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, is_completed: bool) {
        let counter = match is_completed {
            true => &self.completed,
            false => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a batch. Its answers become files of this number of bytes each; none without bytes.
    pub(crate) fn end(
        &self,
        id: &str,
        status: BatchStatus,
        tally: Tally,
        bytes: [u64; 2],
        problem: Option<BatchProblem>,
    ) -> Changed<()> {
        let _writing = self.lock_writing();
        let (number, mut batch, first) = {
            let kept = self.lock();
            let (number, batch) = kept.batches.get(id).ok_or(Refused::Unknown)?;
            (number, batch.clone(), kept.last_number + 1)
        };
        batch.tally = tally;
        batch.errors.extend(problem);
        batch.has_output = bytes.map(|bytes| bytes > 0);
        batch.set(status);
        let mut files = Vec::new();
        for (index, name) in ["output", "error"].into_iter().enumerate() {
            if batch.has_output[index] {
                let file = batch.output_file(index, name, bytes[index]);
                files.push((first + files.len() as u64, file));
            }
        }
        let puts = files
            .iter()
            .map(|(number, file)| BatchChange::PutFile(*number, file));
        let changes: Vec<_> = puts
            .chain([BatchChange::PutBatch(number, &batch)])
            .collect();
        sync_folder(&self.contents)?;
        self.database.write(&changes)?;
        let mut kept = self.lock();
        kept.last_number += files.len() as u64;
        for (number, file) in files {
            let id = file.id.clone();
            kept.files.put(number, &id, file);
        }
        kept.batches.put(number, id, batch);
        Ok(())
    }

    /// Deletes the files that have expired.
    pub(crate) fn remove_expired(&self) {
        let now = unix_time();
        let expired: Vec<_> = {
            let kept = self.lock();
            let files = kept.files.values.values();
            let expired = files.filter(|file| file.has_expired(now));
            expired
                .map(|file| (file.id.clone(), file.owner.clone()))
                .collect()
        };
        for (id, owner) in expired {
            match self.remove_file(&id, owner.as_deref()) {
                // A batch that is under way still needs it.
                Ok(()) | Err(Refused::InUse(_)) => {}
                Err(problem) => {
                    tracing::error!(?problem, id, "cannot delete a file that has expired");
                }
            }
        }
    }
}

impl StoredFile {
    fn is_of(&self, owner: Option<&str>) -> bool {
        self.owner.as_deref() == owner
    }

    fn has_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

impl StoredBatch {
    fn output_file(&self, index: usize, name: &str, bytes: u64) -> StoredFile {
        let created_at = unix_time();
        StoredFile {
            id: self.outputs[index].clone(),
            owner: self.owner.clone(),
            bytes,
            created_at,
            expires_at: self.output_expires_after.map(|after| created_at + after),
            filename: format!("{}_{name}.jsonl", self.id),
            purpose: FilePurpose::BatchOutput,
        }
    }
}

impl Kept {
    /// The contents that must stay.
    fn named(&self) -> HashSet<&str> {
        let unfinished = self.batches.values.values();
        let unfinished = unfinished.filter(|batch| !batch.status.is_end());
        let outputs = unfinished.flat_map(|batch| batch.outputs.iter().map(String::as_str));
        let files = self.files.values.values().map(|file| &*file.id);
        files.chain(outputs).collect()
    }

    /// The batch to take next.
    fn next_batch(&self) -> Option<&StoredBatch> {
        let batches = || self.batches.values.values();
        let is_running = |batch: &&StoredBatch| self.running.contains_key(&batch.id);
        let mut num_running: HashMap<Option<&str>, usize> = HashMap::new();
        for batch in batches().filter(is_running) {
            *num_running.entry(batch.owner.as_deref()).or_default() += 1;
        }
        let waiting = batches().filter(|batch| !batch.status.is_end() && !is_running(batch));
        // The first of equals is the oldest.
        waiting.min_by_key(|batch| num_running.get(&batch.owner.as_deref()).copied())
    }

    /// The batch that still needs a file.
    fn user(&self, file: &str) -> Option<&str> {
        let mut batches = self.batches.values.values();
        let user = batches.find(|batch| !batch.status.is_end() && batch.input_file_id == file);
        user.map(|batch| &*batch.id)
    }

    /// The number and id of the batch that must leave before another one comes, if there are too
    /// many.
    fn batch_to_forget(&self) -> Changed<Option<(u64, String)>> {
        if self.batches.values.len() < BATCHES_MAX {
            return Ok(None);
        }
        let mut batches = self.batches.values.iter();
        let ended = batches.find(|(_, batch)| batch.status.is_end());
        match ended {
            Some((number, batch)) => Ok(Some((*number, batch.id.clone()))),
            None => Err(Refused::Full(format!(
                "{BATCHES_MAX} batches are under way, the maximum."
            ))),
        }
    }
}

/// Removes the contents that nothing names; returns the bytes of the others.
fn remove_strays(contents: &Path, named: &HashSet<&str>) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(contents)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match named.contains(&*name) {
            true => bytes += entry.metadata()?.len(),
            // Only what an earlier run left: the folder may have files of the user.
            false if name.starts_with("file-") => fs::remove_file(entry.path())?,
            false => {}
        }
    }
    Ok(bytes)
}

/// A file that is being uploaded, until it is dropped.
pub(crate) struct Upload {
    store: Arc<BatchStore>,
    _place: OwnedSemaphorePermit,
    id: String,
    /// `None` once it has become a file.
    path: Option<PathBuf>,
    file: File,
    bytes: u64,
}

impl Upload {
    /// Writes more of the content.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Changed<()> {
        let len = bytes.len() as u64;
        let limits = self.store.limits;
        if self.bytes + len > limits.file_bytes {
            return Err(Refused::TooLarge);
        }
        if !self.store.reserve(len) {
            return Err(Refused::Full(format!(
                "The files of this server have {} bytes at most together: delete some.",
                limits.total_bytes
            )));
        }
        self.bytes += len;
        let written = self.file.write_all(bytes);
        written.map_err(|source| self.failed("write", source))?;
        Ok(())
    }

    fn failed(&self, task: &'static str, source: std::io::Error) -> Error {
        Error::file(task, self.path.as_deref().unwrap_or(Path::new("")), source)
    }

    /// Makes it a file of this owner. When this returns, it is on the disk.
    pub(crate) fn finish(
        mut self,
        owner: Option<String>,
        filename: String,
        expires_after: Option<u64>,
    ) -> Changed<StoredFile> {
        let synced = self.file.sync_all();
        synced.map_err(|source| self.failed("write", source))?;
        let store = Arc::clone(&self.store);
        let created_at = unix_time();
        let file = StoredFile {
            id: self.id.clone(),
            owner,
            bytes: self.bytes,
            created_at,
            expires_at: expires_after.map(|after| created_at + after),
            filename,
            purpose: FilePurpose::Batch,
        };
        let _writing = store.lock_writing();
        store.check_room()?;
        let from = self.path.clone().unwrap_or_default();
        let renamed = fs::rename(&from, store.path(&file.id));
        renamed.map_err(|source| self.failed("rename", source))?;
        self.path = Some(store.path(&file.id));
        sync_folder(&store.contents)?;
        let number = store.lock().last_number + 1;
        store
            .database
            .write(&[BatchChange::PutFile(number, &file)])?;
        self.path = None;
        let mut kept = store.lock();
        kept.last_number = number;
        kept.files.put(number, &file.id, file.clone());
        Ok(file)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If this fails, the next start removes it.
            let _ = fs::remove_file(path);
            self.store.release(self.bytes);
        }
    }
}

/// Returns when the names in a folder are on the disk.
fn sync_folder(folder: &Path) -> Result<()> {
    // Windows has no such operation.
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::file("write", folder, source))?;
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_store_has_its_files_and_no_parts_of_uploads() {
        let folder = std::env::temp_dir().join(format!("bitnet-files-{}", std::process::id()));
        let limits = FileLimits {
            file_bytes: 10,
            total_bytes: 15,
        };
        let open = || Arc::new(BatchStore::open(&folder, limits).expect("a store"));
        let store = open();
        let mut upload = store.upload().expect("room");
        upload.write(b"0123456789").expect("room");
        assert!(matches!(upload.write(b"x"), Err(Refused::TooLarge)));
        let file = upload.finish(None, "x".to_owned(), None).expect("a file");
        let mut unfinished = store.upload().expect("room");
        unfinished.write(b"01234").expect("room");
        assert!(matches!(unfinished.write(b"x"), Err(Refused::Full(_))));
        drop(unfinished);
        assert_eq!(store.numbers().bytes, 10);
        drop(store);
        // As a process leaves them that was killed, and files of the user.
        let contents = folder.join(CONTENTS);
        for name in ["file-1.part", "file-2", "notes"] {
            fs::write(contents.join(name), "x").expect("a file");
        }
        let store = open();
        assert_eq!(store.file(&file.id, None).map(|file| file.bytes), Some(10));
        assert_eq!(store.numbers().bytes, 10);
        let mut names: Vec<_> = fs::read_dir(&contents)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, [file.id.as_str(), "notes"]);
        store.remove_file(&file.id, None).expect("a file");
        assert_eq!(store.numbers().bytes, 0);
        drop(store);
        fs::remove_dir_all(&folder).expect("a folder");
    }

    #[test]
    fn an_expired_file_is_removed_from_the_store() {
        let folder = std::env::temp_dir().join(format!("bitnet-expiry-{}", std::process::id()));
        let limits = FileLimits {
            file_bytes: 10,
            total_bytes: 10,
        };
        let store = Arc::new(BatchStore::open(&folder, limits).expect("a store"));
        let files = [Some(0), Some(3600), None].map(|expires_after| {
            let upload = store.upload().expect("room");
            let file = upload.finish(None, "x".to_owned(), expires_after);
            file.expect("a file").id
        });
        store.remove_expired();
        let is_kept = files.map(|id| store.file(&id, None).is_some());
        assert_eq!(is_kept, [false, true, true]);
        drop(store);
        fs::remove_dir_all(&folder).expect("a folder");
    }
}
