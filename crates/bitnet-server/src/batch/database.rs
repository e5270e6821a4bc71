//! [`BatchDatabase`]: the database file of a server's files and batches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::store::{StoredBatch, StoredFile};
use crate::error::{Error, Result};

/// The name of the file in the folder for state.
const NAME: &str = "batches.redb";
/// Files and batches in JSON, by the number of their insertion.
const FILES: Numbered = TableDefinition::new("files");
const BATCHES: Numbered = TableDefinition::new("batches");
/// Pages that the database keeps in memory, in bytes.
const CACHE_BYTES: usize = 1 << 20;

type Numbered = TableDefinition<'static, u64, &'static [u8]>;
type Problem = Box<dyn std::error::Error>;

/// A database file.
pub(crate) struct BatchDatabase {
    path: PathBuf,
    database: Database,
}

/// A change of the files and batches.
pub(crate) enum BatchChange<'a> {
    PutFile(u64, &'a StoredFile),
    RemoveFile(u64),
    PutBatch(u64, &'a StoredBatch),
    RemoveBatch(u64),
}

/// What a database has.
pub(crate) struct BatchRecords {
    pub(crate) files: BTreeMap<u64, StoredFile>,
    pub(crate) batches: BTreeMap<u64, StoredBatch>,
}

impl BatchDatabase {
    /// Opens the file in a folder, and reads what it has.
    pub(crate) fn open(folder: &Path) -> Result<(Self, BatchRecords)> {
        let path = folder.join(NAME);
        let failed = |problem: String| Error::State {
            path: path.clone(),
            problem,
        };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|error| failed(error.to_string()))?;
        let records = read(&database).map_err(|error| failed(error.to_string()))?;
        Ok((Self { path, database }, records))
    }

    /// Makes all changes or none. When this returns, they are on the disk.
    pub(crate) fn write(&self, changes: &[BatchChange<'_>]) -> Result<()> {
        write(&self.database, changes).map_err(|error| Error::State {
            path: self.path.clone(),
            problem: error.to_string(),
        })
    }
}

fn read(database: &Database) -> std::result::Result<BatchRecords, Problem> {
    // The first transaction makes the tables.
    let transaction = database.begin_write()?;
    drop((
        transaction.open_table(FILES)?,
        transaction.open_table(BATCHES)?,
    ));
    transaction.commit()?;
    Ok(BatchRecords {
        files: read_table(database, FILES)?,
        batches: read_table(database, BATCHES)?,
    })
}

fn read_table<T: DeserializeOwned>(
    database: &Database,
    table: Numbered,
) -> std::result::Result<BTreeMap<u64, T>, Problem> {
    let mut values = BTreeMap::new();
    for entry in database.begin_read()?.open_table(table)?.iter()? {
        let (number, bytes) = entry?;
        values.insert(number.value(), serde_json::from_slice(bytes.value())?);
    }
    Ok(values)
}

fn write(database: &Database, changes: &[BatchChange<'_>]) -> std::result::Result<(), Problem> {
    let transaction = database.begin_write()?;
    for change in changes {
        match change {
            BatchChange::PutFile(number, file) => put(&transaction, FILES, *number, file)?,
            BatchChange::RemoveFile(number) => remove(&transaction, FILES, *number)?,
            BatchChange::PutBatch(number, batch) => put(&transaction, BATCHES, *number, batch)?,
            BatchChange::RemoveBatch(number) => remove(&transaction, BATCHES, *number)?,
        }
    }
    transaction.commit()?;
    Ok(())
}

fn put(
    transaction: &WriteTransaction,
    table: Numbered,
    number: u64,
    value: &impl Serialize,
) -> std::result::Result<(), Problem> {
    let bytes = serde_json::to_vec(value)?;
    transaction.open_table(table)?.insert(number, &*bytes)?;
    Ok(())
}

fn remove(
    transaction: &WriteTransaction,
    table: Numbered,
    number: u64,
) -> std::result::Result<(), Problem> {
    transaction.open_table(table)?.remove(number)?;
    Ok(())
}
