//! [`pull`]: downloads a model from the Hub into the cache.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::cache::{Cache, INCOMPLETE, Model, RepoFolder, make_parent, refuse_special};
use crate::client::{Hash, Hub, RemoteFile};
use crate::error::{Error, Result};
use crate::name::ModelName;

/// Bytes per read.
const BUFFER_BYTES: usize = 256 << 10;
/// Maximum number of consecutive attempts without progress.
const ATTEMPTS: u32 = 5;

/// Progress of a download.
#[derive(Clone, Copy, Debug)]
pub struct PullProgress<'a> {
    /// The current phase.
    pub phase: PullPhase,
    /// The file.
    pub file: &'a str,
    /// Number of its bytes in the cache.
    pub bytes_done: u64,
    /// Bytes of it.
    pub bytes_total: u64,
}

/// A phase of the work on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPhase {
    /// Hashes the bytes that are already in the cache.
    Checking,
    /// Downloads the rest.
    Downloading,
}

/// Called for each piece; [`ControlFlow::Break`] ends with [`Error::Interrupted`].
type ProgressFn<'a> = dyn FnMut(PullProgress<'_>) -> ControlFlow<()> + 'a;

/// Downloads a model into the cache and returns its path: a GGUF file, or a directory.
///
/// Complete files are hashed, not downloaded again; a partial file is continued. Each gets its name
/// only when its hash is right, and the revision points to them only when all are complete. After
/// attempts without progress the pause is `wait`, then twice that, and so on.
///
/// # Errors
/// If the model does not exist, the server cannot be reached or sends wrong bytes, or the system
/// refuses.
pub fn pull(
    hub: &Hub,
    cache: &Cache,
    name: &ModelName,
    wait: Duration,
    progress: &mut ProgressFn<'_>,
) -> Result<PathBuf> {
    let repo = cache.repo(name);
    let mut attempts = Attempts {
        wait,
        left: ATTEMPTS,
    };
    let snapshot = attempts.retry(|| hub.snapshot(name))?;
    let model = Model::choose(name, &snapshot.files)?;
    let files = match &model {
        Model::File(file) => std::slice::from_ref(file),
        Model::Directory(files) => files,
    };
    let mut last = None;
    for file in files {
        let remote = attempts.retry(|| hub.file(&name.repo, &snapshot.commit, file))?;
        let _lock = repo.lock(remote.hash.hex(), file)?;
        fetch(hub, &repo, &remote, &mut attempts, progress)?;
        last = Some(repo.link(&snapshot.commit, file, remote.hash.hex())?);
    }
    if name.revision != snapshot.commit {
        repo.set_reference(&name.revision, &snapshot.commit)?;
    }
    match (model, last) {
        (Model::File(_), Some(path)) => Ok(path),
        _ => cache.find(&ModelName {
            revision: snapshot.commit,
            ..name.clone()
        }),
    }
}

/// Counts and delays attempts after failures.
struct Attempts {
    wait: Duration,
    left: u32,
}

impl Attempts {
    fn retry<T>(&mut self, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match ask() {
                Ok(answer) => {
                    self.left = ATTEMPTS;
                    return Ok(answer);
                }
                Err(error) => self.after(error)?,
            }
        }
    }

    /// Waits, or returns the error after too many failures.
    fn after(&mut self, error: Error) -> Result<()> {
        let may_pass = match &error {
            Error::Network { .. } => true,
            Error::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        };
        self.left -= 1;
        if !may_pass || self.left == 0 {
            return Err(error);
        }
        std::thread::sleep(self.wait * 2u32.pow(ATTEMPTS - 1 - self.left));
        Ok(())
    }
}

/// Ensures that a blob is complete and has the right hash.
fn fetch(
    hub: &Hub,
    repo: &RepoFolder,
    remote: &RemoteFile,
    attempts: &mut Attempts,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let blob = repo.blob(remote.hash.hex());
    refuse_special(&blob)?;
    if let Ok(file) = File::open(&blob) {
        let mut there = Partial::new(file, &blob, remote);
        if there.check_what_is_there(progress)? && there.hash_is_right() {
            return Ok(());
        }
        drop(there);
        // The file was damaged on disk.
        fs::remove_file(&blob).map_err(|source| Error::Io {
            path: blob.clone(),
            source,
        })?;
    }
    let mut path = blob.clone().into_os_string();
    path.push(INCOMPLETE);
    let path = PathBuf::from(path);
    make_parent(&path)?;
    refuse_special(&path)?;
    let io = |source| Error::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io)?;
    let mut partial = Partial::new(file, &path, remote);
    if !partial.check_what_is_there(progress)? {
        partial.restart()?;
    }
    let mut resumed = partial.len > 0;
    loop {
        partial.download(hub, attempts, progress)?;
        if partial.hash_is_right() {
            break;
        }
        let wrong = partial.wrong_bytes();
        partial.restart()?;
        if !resumed {
            drop(partial);
            fs::remove_file(&path).map_err(io)?;
            return Err(wrong);
        }
        // The earlier bytes may belong to another file: download once from the start.
        resumed = false;
    }
    partial.file.sync_all().map_err(io)?;
    fs::rename(&path, &blob).map_err(|source| Error::Io {
        path: blob.clone(),
        source,
    })
}

/// The hash of a sequence of byte blocks.
#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    fn new(remote: &RemoteFile) -> Self {
        match remote.hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::GitSha1(_) => {
                Self::Sha1(Sha1::new_with_prefix(format!("blob {}\0", remote.size)))
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
        }
    }

    fn hex(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.clone().finalize()),
            Self::Sha1(hasher) => hex(&hasher.clone().finalize()),
        }
    }
}

/// The part of a file in the cache.
struct Partial<'a> {
    file: File,
    path: &'a Path,
    remote: &'a RemoteFile,
    len: u64,
    hasher: Hasher,
}

impl<'a> Partial<'a> {
    fn new(file: File, path: &'a Path, remote: &'a RemoteFile) -> Self {
        Self {
            file,
            path,
            remote,
            len: 0,
            hasher: Hasher::new(remote),
        }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io {
            path: self.path.to_owned(),
            source,
        }
    }

    fn report(&self, phase: PullPhase, progress: &mut ProgressFn<'_>) -> Result<()> {
        let now = PullProgress {
            phase,
            file: &self.remote.path,
            bytes_done: self.len,
            bytes_total: self.remote.size,
        };
        match progress(now) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    /// Hashes the bytes in the file; false if the file is longer than it should be.
    fn check_what_is_there(&mut self, progress: &mut ProgressFn<'_>) -> Result<bool> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = self
                .file
                .read(&mut buffer)
                .map_err(|source| self.io(source))?;
            if read == 0 || self.len + read as u64 > self.remote.size {
                return Ok(read == 0);
            }
            self.hasher.update(&buffer[..read]);
            self.len += read as u64;
            self.report(PullPhase::Checking, progress)?;
        }
    }

    fn hash_is_right(&self) -> bool {
        self.len == self.remote.size && self.hasher.hex() == self.remote.hash.hex()
    }

    fn wrong_bytes(&self) -> Error {
        let expected = self.remote.hash.hex().to_owned();
        Error::WrongBytes {
            file: self.remote.path.clone(),
            found: self.hasher.hex(),
            expected,
        }
    }

    /// Discards the bytes in the file.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|source| self.io(source))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|source| self.io(source))?;
        (self.len, self.hasher) = (0, Hasher::new(self.remote));
        Ok(())
    }

    /// Fetches the missing bytes. Bytes that arrived before a connection broke are kept.
    fn download(
        &mut self,
        hub: &Hub,
        attempts: &mut Attempts,
        progress: &mut ProgressFn<'_>,
    ) -> Result<()> {
        // If the server restarts the download each time, only bytes past the furthest attempt count
        // as progress.
        let mut most = self.len;
        while self.len < self.remote.size {
            match self.download_once(hub, progress) {
                Ok(()) => {}
                Err(error) => {
                    if self.len > most {
                        (most, attempts.left) = (self.len, ATTEMPTS);
                    }
                    attempts.after(error)?;
                }
            }
        }
        attempts.left = ATTEMPTS;
        Ok(())
    }

    fn download_once(&mut self, hub: &Hub, progress: &mut ProgressFn<'_>) -> Result<()> {
        let broken = |problem: String| Error::Network {
            url: self.remote.path.clone(),
            problem,
        };
        let (first, mut response) = hub.bytes(self.remote, self.len)?;
        if first != self.len {
            self.restart()?;
            if first != 0 {
                return Err(broken(format!("the server sent bytes from {first} on")));
            }
        }
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.len < self.remote.size {
            let read = reader
                .read(&mut buffer)
                .map_err(|error| broken(error.to_string()))?;
            if read == 0 {
                return Err(broken(format!(
                    "it ended after {} of {} bytes",
                    self.len, self.remote.size
                )));
            }
            // Extra bytes do no harm: the hash decides.
            let bytes = &buffer
                [..read.min(usize::try_from(self.remote.size - self.len).unwrap_or(usize::MAX))];
            self.file
                .write_all(bytes)
                .map_err(|source| self.io(source))?;
            self.hasher.update(bytes);
            self.len += bytes.len() as u64;
            self.report(PullPhase::Downloading, progress)?;
        }
        Ok(())
    }
}
