//! [`StoreFile`]: the database file of the stored responses, and the thread that writes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::store::StoredResponse;

/// The name of the file in the folder for state.
const NAME: &str = "responses.redb";
/// Responses in JSON, by the number of their insertion.
const RESPONSES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("responses");
/// Pages that the database keeps in memory, in bytes.
const CACHE_BYTES: usize = 4 << 20;

/// A change of the stored responses.
pub(crate) enum Change {
    Insert(u64, Arc<StoredResponse>),
    Remove(u64),
}

/// Changes, and who waits for them.
struct Written {
    changes: Vec<Change>,
    done: oneshot::Sender<()>,
}

/// A database file that one thread writes.
pub(crate) struct StoreFile {
    /// `None` when the file is being closed.
    changes: Option<mpsc::Sender<Written>>,
    thread: Option<JoinHandle<()>>,
}

impl StoreFile {
    /// Opens the file in a folder, and reads its responses by their numbers.
    pub(crate) fn open(folder: &Path) -> Result<(Self, BTreeMap<u64, StoredResponse>)> {
        let path = folder.join(NAME);
        let failed = |problem: String| Error::State {
            path: path.clone(),
            problem,
        };
        std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|error| failed(error.to_string()))?;
        let stored = read(&database).map_err(|error| failed(error.to_string()))?;
        let (changes, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("bitnet-store".to_owned())
            .spawn(move || write_all(&database, &receiver))
            .map_err(Error::Threads)?;
        let file = Self {
            changes: Some(changes),
            thread: Some(thread),
        };
        Ok((file, stored))
    }

    /// Queues changes to be written, in the order of the calls. The result is ready when they are
    /// on the disk.
    pub(crate) fn write(&self, changes: Vec<Change>) -> OnDisk {
        let (done, is_done) = oneshot::channel();
        if let Some(sender) = &self.changes {
            // The thread ends only with the store.
            let _ = sender.send(Written { changes, done });
        }
        OnDisk(is_done)
    }
}

/// Changes that are being written.
#[must_use]
pub(crate) struct OnDisk(oneshot::Receiver<()>);

impl OnDisk {
    /// Waits until they are on the disk.
    pub(crate) async fn wait(self) {
        // Without an answer the write failed, and the thread has logged why.
        let _ = self.0.await;
    }
}

impl Drop for StoreFile {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed where it happened.
            let _ = thread.join();
        }
    }
}

type Problem = Box<dyn std::error::Error>;

fn read(database: &Database) -> std::result::Result<BTreeMap<u64, StoredResponse>, Problem> {
    // The first transaction makes the table.
    let transaction = database.begin_write()?;
    drop(transaction.open_table(RESPONSES)?);
    transaction.commit()?;
    let table = database.begin_read()?.open_table(RESPONSES)?;
    let mut stored = BTreeMap::new();
    for entry in table.iter()? {
        let (number, bytes) = entry?;
        stored.insert(number.value(), serde_json::from_slice(bytes.value())?);
    }
    Ok(stored)
}

/// Writes changes until the store is dropped. Changes that arrive together share a transaction.
fn write_all(database: &Database, changes: &mpsc::Receiver<Written>) {
    while let Ok(first) = changes.recv() {
        let all: Vec<_> = std::iter::once(first).chain(changes.try_iter()).collect();
        let written = write(database, all.iter().flat_map(|written| &written.changes));
        if let Err(error) = written {
            tracing::error!(%error, "cannot write stored responses: a restart loses them");
            continue;
        }
        for written in all {
            // The client may have disconnected.
            let _ = written.done.send(());
        }
    }
}

fn write<'c>(
    database: &Database,
    changes: impl Iterator<Item = &'c Change>,
) -> std::result::Result<(), Problem> {
    let transaction = database.begin_write()?;
    let mut table = transaction.open_table(RESPONSES)?;
    for change in changes {
        match change {
            Change::Insert(number, stored) => {
                table.insert(number, &*serde_json::to_vec(&**stored)?)?;
            }
            Change::Remove(number) => {
                table.remove(number)?;
            }
        }
    }
    drop(table);
    transaction.commit()?;
    Ok(())
}
