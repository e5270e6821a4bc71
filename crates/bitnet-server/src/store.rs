//! [`ResponseStore`]: the responses that clients may continue, read and delete later.
//!
//! It is bounded in number and in bytes. The responses that were used least recently leave first;
//! continuing a conversation counts as a use of all its responses, so that a response never leaves
//! before the ones that continue it. With a folder for state, each change is in a database file
//! before the client learns of it, so that a restart loses nothing.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::error::Result;
use file::{Change, OnDisk, StoreFile};

/// Maximum number of stored responses.
const RESPONSES_MAX: usize = 10_000;
/// Maximum number of their bytes, so that they stay below 64 MB with the tables that find them and
/// what the allocator adds, 15 % as measured (`xtask/scripts/stored_responses.py`).
const BYTES_MAX: usize = 50 << 20;
/// Bytes that a response takes beside its texts: its entries in the tables and its allocations.
const ENTRY_BYTES: usize = 512;
/// Maximum number of bytes of one response with its input.
pub(crate) const RESPONSE_BYTES_MAX: usize = 4 << 20;

/// A response as it is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct StoredResponse {
    pub(crate) id: String,
    /// The owner of the key that made it; only requests with a key of this owner find it.
    pub(crate) owner: Option<String>,
    /// The response that it continues.
    pub(crate) previous: Option<String>,
    /// The response, as JSON.
    pub(crate) response: String,
    /// The items of its own input, as a list in JSON.
    pub(crate) input: String,
}

impl StoredResponse {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.response.len() + self.input.len()
    }
}

/// The stored responses, and those that are under way.
pub(crate) struct ResponseStore {
    kept: Mutex<Kept>,
    file: Option<StoreFile>,
    responses_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// Ids by the time of their last use.
    by_use: BTreeMap<u64, String>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
    /// Counts insertions.
    last_number: u64,
    running: HashMap<String, Running>,
}

struct Entry {
    stored: Arc<StoredResponse>,
    /// Its number in the file.
    number: u64,
    last_use: u64,
}

struct Running {
    owner: Option<Arc<str>>,
    cancel: Arc<Notify>,
    /// The answer to a request that cancels it: the response, as JSON.
    cancelled: String,
}

/// A response that is being generated, until it is dropped.
pub(crate) struct RunningResponse {
    store: Arc<ResponseStore>,
    id: String,
    /// Notified when a client cancels the response.
    pub(crate) cancel: Arc<Notify>,
}

impl Drop for RunningResponse {
    fn drop(&mut self) {
        self.store.lock().running.remove(&self.id);
    }
}

impl ResponseStore {
    /// An empty store in memory.
    pub(crate) fn in_memory() -> Self {
        Self {
            kept: Mutex::default(),
            file: None,
            responses_max: RESPONSES_MAX,
            bytes_max: BYTES_MAX,
        }
    }

    /// The store of a folder, which is created if it does not exist.
    ///
    /// # Errors
    /// If the database cannot be opened, is used by another process, or is damaged.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let (file, stored) = StoreFile::open(folder)?;
        let store = Self {
            file: Some(file),
            ..Self::in_memory()
        };
        let mut kept = store.lock();
        kept.load(stored);
        let evicted = kept.evict(store.responses_max, store.bytes_max);
        let written = store.write(evicted.into_iter().map(Change::Remove));
        drop((kept, written));
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // No change under this lock can panic halfway.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A response of this owner.
    pub(crate) fn get(&self, id: &str, owner: Option<&str>) -> Option<Arc<StoredResponse>> {
        let kept = self.lock();
        let stored = &kept.entries.get(id)?.stored;
        (stored.owner.as_deref() == owner).then(|| Arc::clone(stored))
    }

    /// A response and those that it continues, oldest first. The error is the id of the one that
    /// is missing.
    pub(crate) fn conversation(
        &self,
        id: &str,
        owner: Option<&str>,
    ) -> std::result::Result<Vec<Arc<StoredResponse>>, String> {
        let mut kept = self.lock();
        let mut found = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next.take() {
            let entry = kept.entries.get(&id);
            let Some(entry) = entry.filter(|entry| entry.stored.owner.as_deref() == owner) else {
                return Err(id);
            };
            next.clone_from(&entry.stored.previous);
            found.push(Arc::clone(&entry.stored));
        }
        // The oldest is used last, so that it leaves last.
        for stored in &found {
            kept.touch(&stored.id);
        }
        found.reverse();
        Ok(found)
    }

    /// Keeps a response. When this returns, it is in the file, too.
    pub(crate) async fn insert(&self, stored: StoredResponse) {
        let written = {
            let mut kept = self.lock();
            let (number, stored) = kept.insert(stored);
            let evicted = kept.evict(self.responses_max, self.bytes_max);
            let inserted = Change::Insert(number, stored);
            self.write(std::iter::once(inserted).chain(evicted.into_iter().map(Change::Remove)))
        };
        if let Some(written) = written {
            written.wait().await;
        }
    }

    /// Deletes a response of this owner; false if there is none.
    pub(crate) async fn remove(&self, id: &str, owner: Option<&str>) -> bool {
        let written = {
            let mut kept = self.lock();
            let entry = kept.entries.get(id);
            if entry.is_none_or(|entry| entry.stored.owner.as_deref() != owner) {
                return false;
            }
            let number = kept.remove(id);
            self.write(number.into_iter().map(Change::Remove))
        };
        if let Some(written) = written {
            written.wait().await;
        }
        true
    }

    /// Queues changes for the file. Called under the lock, so that the file gets them in the order
    /// in which they were made.
    fn write(&self, changes: impl Iterator<Item = Change>) -> Option<OnDisk> {
        let file = self.file.as_ref()?;
        Some(file.write(changes.collect()))
    }

    /// Registers a response that is being generated, so that it can be cancelled.
    /// `cancelled`: what a request to cancel it returns.
    pub(crate) fn start(
        self: &Arc<Self>,
        id: &str,
        owner: Option<Arc<str>>,
        cancelled: String,
    ) -> RunningResponse {
        let cancel = Arc::new(Notify::new());
        let running = Running {
            owner,
            cancel: Arc::clone(&cancel),
            cancelled,
        };
        self.lock().running.insert(id.to_owned(), running);
        RunningResponse {
            store: Arc::clone(self),
            id: id.to_owned(),
            cancel,
        }
    }

    /// Cancels a response of this owner that is being generated, and returns it; `None` if there is
    /// none.
    pub(crate) fn cancel(&self, id: &str, owner: Option<&str>) -> Option<String> {
        let kept = self.lock();
        let running = kept.running.get(id);
        let running = running.filter(|running| running.owner.as_deref() == owner)?;
        running.cancel.notify_one();
        Some(running.cancelled.clone())
    }
}

impl Kept {
    fn insert(&mut self, mut stored: StoredResponse) -> (u64, Arc<StoredResponse>) {
        // Texts that grew while they were written have up to twice the memory that they need. A copy
        // leaves no gaps behind that are too small for the next one, as shrinking would.
        stored.response = stored.response.as_str().to_owned();
        stored.input = stored.input.as_str().to_owned();
        self.last_number += 1;
        let number = self.last_number;
        let stored = Arc::new(stored);
        self.put(number, &stored);
        (number, stored)
    }

    fn put(&mut self, number: u64, stored: &Arc<StoredResponse>) {
        self.clock += 1;
        self.bytes += stored.bytes();
        let entry = Entry {
            stored: Arc::clone(stored),
            number,
            last_use: self.clock,
        };
        self.by_use.insert(self.clock, stored.id.clone());
        self.entries.insert(stored.id.clone(), entry);
    }

    fn touch(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        self.clock += 1;
        if let Some(id) = self.by_use.remove(&entry.last_use) {
            self.by_use.insert(self.clock, id);
        }
        entry.last_use = self.clock;
    }

    /// Removes a response; returns its number in the file.
    fn remove(&mut self, id: &str) -> Option<u64> {
        let entry = self.entries.remove(id)?;
        self.by_use.remove(&entry.last_use);
        self.bytes -= entry.stored.bytes();
        Some(entry.number)
    }

    /// Removes the least recently used responses until the rest fits; returns their numbers.
    fn evict(&mut self, responses_max: usize, bytes_max: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while self.entries.len() > responses_max || self.bytes > bytes_max {
            let Some((_, id)) = self.by_use.first_key_value() else {
                break;
            };
            let id = id.clone();
            numbers.extend(self.remove(&id));
        }
        numbers
    }

    /// Takes the responses of a file, by their numbers.
    fn load(&mut self, stored: BTreeMap<u64, StoredResponse>) {
        self.last_number = stored.last_key_value().map_or(0, |(number, _)| *number);
        for (number, stored) in stored {
            self.put(number, &Arc::new(stored));
        }
        self.order_as_used();
    }

    /// Orders the responses as their insertions used them: each insertion used the conversation
    /// that it continued, its oldest response last.
    fn order_as_used(&mut self) {
        let mut newest_first: Vec<_> = self.entries.values().collect();
        newest_first.sort_by_key(|entry| std::cmp::Reverse(entry.number));
        let (mut order, mut is_placed) = (Vec::new(), std::collections::HashSet::new());
        for entry in newest_first {
            let mut conversation = Vec::new();
            let mut next = Some(&*entry.stored.id);
            while let Some(entry) = next.and_then(|id| self.entries.get(id)) {
                let id = &*entry.stored.id;
                if !is_placed.insert(id.to_owned()) {
                    break;
                }
                conversation.push(id.to_owned());
                next = entry.stored.previous.as_deref();
            }
            order.extend(conversation.into_iter().rev());
        }
        for id in order.iter().rev() {
            self.touch(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(id: &str, previous: Option<&str>) -> StoredResponse {
        StoredResponse {
            id: id.to_owned(),
            owner: None,
            previous: previous.map(str::to_owned),
            response: "{}".to_owned(),
            input: "[]".to_owned(),
        }
    }

    /// Runs a future of the store.
    fn wait<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(future)
    }

    fn ids(store: &ResponseStore, id: &str) -> std::result::Result<Vec<String>, String> {
        let found = store.conversation(id, None)?;
        Ok(found.iter().map(|stored| stored.id.clone()).collect())
    }

    #[test]
    fn a_conversation_leaves_after_the_responses_that_were_used_before_it() {
        let mut store = ResponseStore::in_memory();
        store.responses_max = 3;
        let insert = |id, previous| wait(store.insert(response(id, previous)));
        insert("a", None);
        insert("x", None);
        insert("b", Some("a"));
        assert_eq!(ids(&store, "b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        insert("c", Some("b"));
        assert!(store.get("x", None).is_none(), "used least recently");
        assert_eq!(ids(&store, "c").map(|ids| ids.len()), Ok(3));
        insert("d", None);
        // The youngest response of a conversation leaves before those that it continues.
        assert_eq!(ids(&store, "c"), Err("c".to_owned()));
        assert_eq!(ids(&store, "b").map(|ids| ids.len()), Ok(2));
    }

    #[test]
    fn ten_thousand_responses_fit_and_bytes_are_bounded() {
        let store = ResponseStore::in_memory();
        for index in 0..=RESPONSES_MAX {
            let mut stored = response(&format!("resp_{index}"), None);
            stored.response = "x".repeat(4000);
            wait(store.insert(stored));
        }
        let kept = store.lock();
        assert_eq!(kept.entries.len(), RESPONSES_MAX);
        assert_eq!(kept.by_use.len(), RESPONSES_MAX);
        drop(kept);
        assert!(store.get("resp_0", None).is_none());
        for index in 0..20 {
            let mut stored = response(&format!("large_{index}"), None);
            stored.response = "x".repeat(RESPONSE_BYTES_MAX);
            wait(store.insert(stored));
            let kept = store.lock();
            let bytes: usize = kept
                .entries
                .values()
                .map(|entry| entry.stored.bytes())
                .sum();
            assert_eq!(kept.bytes, bytes);
            assert!(kept.bytes <= BYTES_MAX);
        }
        assert!(store.get("large_19", None).is_some());
    }

    #[test]
    fn a_response_takes_the_memory_that_it_counts() {
        let store = ResponseStore::in_memory();
        let mut stored = response("a", None);
        stored.response.reserve(4000);
        stored.input.reserve(4000);
        wait(store.insert(stored));
        let stored = store.get("a", None).expect("a response");
        let capacity = stored.response.capacity() + stored.input.capacity();
        assert!(capacity < 100, "{capacity}");
    }

    #[test]
    fn only_its_owner_finds_a_response() {
        let store = Arc::new(ResponseStore::in_memory());
        let stored = StoredResponse {
            owner: Some("alice".to_owned()),
            ..response("a", None)
        };
        wait(store.insert(stored));
        for other in [None, Some("bob")] {
            assert!(store.get("a", other).is_none());
            assert!(store.conversation("a", other).is_err());
            assert!(!wait(store.remove("a", other)));
        }
        assert!(store.get("a", Some("alice")).is_some());
        let running = store.start("b", Some("alice".into()), "{}".to_owned());
        assert_eq!(store.cancel("b", None), None);
        assert_eq!(store.cancel("b", Some("alice")).as_deref(), Some("{}"));
        drop(running);
        assert_eq!(store.cancel("b", Some("alice")), None);
        assert!(wait(store.remove("a", Some("alice"))));
    }

    #[test]
    fn a_reopened_folder_has_the_same_responses_in_the_same_order() {
        let folder = std::env::temp_dir().join(format!("bitnet-store-{}", std::process::id()));
        let open = || ResponseStore::open(&folder).expect("a store");
        let store = open();
        for (id, previous) in [("a", None), ("x", None), ("b", Some("a")), ("y", None)] {
            if let Some(previous) = previous {
                ids(&store, previous).expect("a conversation");
            }
            wait(store.insert(response(id, previous)));
        }
        wait(store.remove("y", None));
        let order = |store: &ResponseStore| {
            let kept = store.lock();
            kept.by_use.values().cloned().collect::<Vec<_>>()
        };
        // `b` was inserted after its conversation was used.
        assert_eq!(order(&store), ["x", "a", "b"]);
        let is_taken = ResponseStore::open(&folder);
        assert!(is_taken.is_err(), "another store has the file");
        drop(store);
        let mut again = open();
        // Now the oldest response of a conversation is last.
        assert_eq!(order(&again), ["x", "b", "a"]);
        assert_eq!(ids(&again, "b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        again.responses_max = 2;
        wait(again.insert(response("z", None)));
        drop(again);
        let again = open();
        assert_eq!(order(&again), ["a", "z"]);
        drop(again);
        std::fs::remove_dir_all(&folder).expect("a folder");
    }
}
