//! [`WeightCache`]: a folder of packed weights, which make the second start of a model quick.
//!
//! Packing a model takes seconds, and always gives the same bytes. So the first start of a model
//! writes them to a file, and later starts map it. `docs/weight-cache.md` says when a file is used,
//! replaced and removed. A fault of a file or of the folder never keeps a model from loading;
//! [`CacheUse`] reports it.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bitnet_files::{CacheFile, Checksum, FileStamp};
use bitnet_models::{InputRounding, Keeper, KeptIndex, LoadOptions, LoadProgress};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::device::Device;
use crate::error::{Error, Result};

/// The end of the name of a file with packed weights.
const SUFFIX: &str = ".weights";
/// The end of the name of a file that is being written, which begins with a dot.
const PARTIAL_SUFFIX: &str = ".weights.partial";
/// Maximum length of a model's name in the name of its file.
const NAME_LEN_MAX: usize = 60;

/// A folder of packed weights, and its limits.
#[derive(Clone, Debug)]
pub struct WeightCache {
    /// The folder, made when the first file is written.
    pub folder: PathBuf,
    /// The smallest number of packed bytes that are kept: fewer are packed quickly.
    pub bytes_min: u64,
    /// Maximum number of bytes of all files together.
    pub bytes_max: u64,
    /// What identifies the program, since only the program that packed weights surely knows their
    /// layout. See [`program_hash`].
    pub program: String,
}

/// How a load used the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheUse {
    /// Nothing: there is no cache, the model is in no file, or another process is writing it.
    #[default]
    None,
    /// Nothing: the packed weights are smaller than the smallest that are kept.
    Small,
    /// The weights are mapped from a file.
    Mapped(CachedFile),
    /// The weights were written to a file for later starts. `replaced` says what was wrong with the
    /// file of that name.
    Written {
        /// The new file.
        file: CachedFile,
        /// What was wrong with the old file, if there was one.
        replaced: Option<String>,
    },
    /// The weights could not be written.
    Failed(String),
}

/// A file with packed weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedFile {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A file in the folder.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// The file.
    pub file: CachedFile,
    /// When a start last used it.
    pub used: SystemTime,
    /// The model's first file and the kernels that the weights are packed for; an error if the file
    /// cannot be used.
    pub weights: std::result::Result<(PathBuf, String), String>,
}

/// The facts that packed weights depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    /// [`WeightCache::program`].
    program: String,
    kernels: String,
    /// The options that decide what is packed, and how.
    options: String,
    /// The model's files, with hashes of their heads.
    files: Vec<(FileStamp, u64)>,
}

#[derive(Deserialize)]
struct Head {
    identity: Identity,
    weights: KeptIndex,
}

/// A hash of the program in a file, which differs for any two builds.
///
/// # Errors
/// If the file cannot be read.
pub fn program_hash(path: &Path) -> std::io::Result<String> {
    let bytes = bitnet_files::ModelBytes::map(path).map_err(std::io::Error::other)?;
    Ok(format!("{:016x}", Checksum::of(&bytes)))
}

/// Loads a model of these files, with the cache if there is one.
pub(crate) fn load_with<T>(
    cache: Option<&WeightCache>,
    files: Option<Vec<(FileStamp, u64)>>,
    device: Device,
    options: &LoadOptions,
    load: impl Fn(&Keeper) -> Result<T>,
) -> Result<(T, CacheUse)> {
    // Only the CPU's packed weights are kept.
    let cache = cache.filter(|_| device.is_cpu());
    let (Some(cache), Some(files)) = (cache, files) else {
        return Ok((load(&Keeper::off())?, CacheUse::None));
    };
    let place = Place::new(cache, files, device, options);
    let replaced = match place.open(device.threads()) {
        Ok(Some((keeper, file))) => match load(&keeper) {
            Ok(loaded) if keeper.num_missed() == 0 => {
                set_used(&file.path, SystemTime::now());
                return Ok((loaded, CacheUse::Mapped(file)));
            }
            // If the model itself is at fault, the next load says so.
            _ => Some(format!("{}: it lacks weights", file.path.display())),
        },
        Ok(None) => None,
        Err(problem) => Some(problem),
    };
    let keeper = Keeper::noting();
    let loaded = load(&keeper)?;
    Ok((loaded, place.keep(keeper, replaced)))
}

/// The place of a model's packed weights in a cache.
struct Place<'a> {
    cache: &'a WeightCache,
    path: PathBuf,
    identity: Identity,
}

impl<'a> Place<'a> {
    fn new(
        cache: &'a WeightCache,
        files: Vec<(FileStamp, u64)>,
        device: Device,
        options: &LoadOptions,
    ) -> Self {
        // How inputs are rounded and where progress is counted do not decide how weights are
        // packed.
        let options = LoadOptions {
            group_inputs: InputRounding::default(),
            progress: LoadProgress::default(),
            ..options.clone()
        };
        let identity = Identity {
            program: cache.program.clone(),
            kernels: device.kernels().name.to_owned(),
            options: format!("{options:?}"),
            files,
        };
        let path = cache.folder.join(identity.file_name());
        Self {
            cache,
            path,
            identity,
        }
    }

    /// The keeper of the weights in the file, checked; `None` if there is no file. The error says
    /// why the file cannot be used.
    fn open(
        &self,
        num_threads: usize,
    ) -> std::result::Result<Option<(Keeper, CachedFile)>, String> {
        if !self.path.exists() {
            return Ok(None);
        }
        let path = self.path.display();
        let file = CacheFile::open(&self.path).map_err(|error| error.to_string())?;
        let head = Head::deserialize(file.head())
            .map_err(|error| format!("{path}: its table is not readable: {error}"))?;
        if head.identity != self.identity {
            let differs = head.identity.difference(&self.identity);
            return Err(format!("{path}: it is of {differs}"));
        }
        if let Some(block) = damaged_block(&file, num_threads) {
            return Err(format!("{path}: block {block} of its weights is damaged"));
        }
        let pieces = file.pieces().iter().cloned().map(Bytes::from_owner);
        let keeper = Keeper::kept(head.weights, pieces.collect())
            .ok_or_else(|| format!("{path}: it lacks pieces"))?;
        let found = CachedFile {
            path: self.path.clone(),
            bytes: file.file_len() as u64,
        };
        Ok(Some((keeper, found)))
    }

    /// Writes the weights that a keeper has noted.
    fn keep(&self, keeper: Keeper, replaced: Option<String>) -> CacheUse {
        let Some((index, pieces)) = keeper.into_noted() else {
            return CacheUse::None;
        };
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if bytes < self.cache.bytes_min {
            return CacheUse::Small;
        }
        if !self
            .identity
            .files
            .iter()
            .all(|(stamp, _)| stamp.is_current())
        {
            return CacheUse::Failed("the model's files changed while they were read".into());
        }
        match self.write(&index, &pieces, bytes) {
            Ok(Some(file)) => CacheUse::Written { file, replaced },
            Ok(None) => CacheUse::None,
            Err(problem) => CacheUse::Failed(problem),
        }
    }

    /// `None` if another process writes the same file. The error says why it cannot be written.
    fn write(
        &self,
        index: &KeptIndex,
        pieces: &[Bytes],
        bytes: u64,
    ) -> std::result::Result<Option<CachedFile>, String> {
        let (folder, bytes_max) = (&self.cache.folder, self.cache.bytes_max);
        if bytes > bytes_max {
            return Err(format!(
                "they have {bytes} bytes, at most {bytes_max} are kept"
            ));
        }
        let in_folder = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(in_folder)?;
        self.cache
            .make_room(bytes, &self.path)
            .map_err(|error| error.to_string())?;
        let head = json!({ "identity": self.identity, "weights": index });
        match CacheFile::write(&self.path, head, pieces, &|| true) {
            Ok(bytes) => Ok(Some(CachedFile {
                path: self.path.clone(),
                bytes,
            })),
            Err(bitnet_files::Error::Write { source, .. })
                if source.kind() == ErrorKind::ResourceBusy =>
            {
                Ok(None)
            }
            Err(error) => Err(chain(&error)),
        }
    }
}

impl Identity {
    /// A name that other models, options and kernels do not have. Another version of the model at
    /// the same path, and another version of the program, replace the file.
    fn file_name(&self) -> String {
        let mut hash = Checksum::default();
        let mut add = |text: &str| {
            hash.update(text.as_bytes());
            hash.update(&[0]);
        };
        add(&self.kernels);
        add(&self.options);
        for (stamp, _) in &self.files {
            add(&stamp.path.to_string_lossy());
        }
        let stem = self.model().file_stem().unwrap_or_default();
        let name: String = stem
            .to_string_lossy()
            .chars()
            .map(|c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c,
                _ => '_',
            })
            .take(NAME_LEN_MAX)
            .collect();
        let name = name.trim_start_matches('.');
        format!("{name}-{:016x}{SUFFIX}", hash.value())
    }

    /// The first file of the model.
    fn model(&self) -> &Path {
        self.files
            .first()
            .map_or(Path::new(""), |(stamp, _)| &stamp.path)
    }

    /// How the other one differs.
    fn difference(&self, other: &Self) -> &'static str {
        if self.files != other.files {
            "an earlier state of the model's files"
        } else if self.program != other.program {
            "another version of this program"
        } else {
            "other options"
        }
    }
}

/// A block whose checksum is wrong, if there is one. Reads all blocks.
fn damaged_block(file: &CacheFile, num_threads: usize) -> Option<usize> {
    let (next, damaged) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let check = || {
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= file.num_blocks() {
                return;
            }
            if !file.is_intact(block) {
                damaged.fetch_min(block, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..num_threads {
            // With fewer threads it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, check);
        }
        check();
    });
    Some(damaged.into_inner()).filter(|block| *block != usize::MAX)
}

/// Sets when a file was last used: the time of its last access. The time of its last modification
/// must not change, since processes that have mapped the file watch it.
///
/// The time only decides which file is removed first, so a failure does not matter.
fn set_used(path: &Path, used: SystemTime) {
    let times = FileTimes::new().set_accessed(used);
    let _ = File::open(path).and_then(|file| file.set_times(times));
}

/// The error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

impl WeightCache {
    /// The files of the folder, the most recently used first; none if there is no folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<CacheEntry>> {
        let files = self.files(|name| name.ends_with(SUFFIX) && !name.starts_with('.'))?;
        let entry = |(path, metadata): (PathBuf, fs::Metadata)| {
            // Some file systems do not keep the time of the last access.
            let times = [metadata.accessed(), metadata.modified()];
            let used = times.into_iter().flatten().max();
            let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
            let weights = weights_in(&path);
            set_used(&path, used); // reading it here is no use of it
            CacheEntry {
                weights,
                used,
                file: CachedFile {
                    bytes: metadata.len(),
                    path,
                },
            }
        };
        let mut entries: Vec<CacheEntry> = files.into_iter().map(entry).collect();
        entries.sort_by(|a, b| b.used.cmp(&a.used).then(a.file.path.cmp(&b.file.path)));
        Ok(entries)
    }

    /// Removes all files of the folder, and returns them. Processes that use a file keep it until
    /// they end.
    ///
    /// # Errors
    /// If the folder cannot be read or a file cannot be removed.
    pub fn clear(&self) -> Result<Vec<CachedFile>> {
        let mut removed = self.remove_partial_files()?;
        for entry in self.entries()? {
            remove(&entry.file.path)?;
            removed.push(entry.file);
        }
        Ok(removed)
    }

    /// Removes the least recently used files until there is room for `bytes` more. `replaced` does
    /// not count, because the new file takes its place.
    fn make_room(&self, bytes: u64, replaced: &Path) -> Result<()> {
        self.remove_partial_files()?;
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.file.path != replaced);
        let mut total: u64 = entries.iter().map(|entry| entry.file.bytes).sum();
        while total + bytes > self.bytes_max
            && let Some(oldest) = entries.pop()
        {
            remove(&oldest.file.path)?;
            total -= oldest.file.bytes;
        }
        Ok(())
    }

    /// Removes what processes that were killed have left. A file that is being written is locked.
    fn remove_partial_files(&self) -> Result<Vec<CachedFile>> {
        let mut removed = Vec::new();
        for (path, metadata) in self.files(|name| name.ends_with(PARTIAL_SUFFIX))? {
            let Ok(file) = File::open(&path) else {
                continue; // another process has removed or renamed it
            };
            // The lock is held until the file is removed, so that no writer takes it over
            // meanwhile.
            if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                remove(&path)?;
                removed.push(CachedFile {
                    path,
                    bytes: metadata.len(),
                });
            }
        }
        Ok(removed)
    }

    /// The regular files of the folder with some names.
    fn files(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(PathBuf, fs::Metadata)>> {
        let io = |source| Error::WeightCache {
            path: self.folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io)?;
            if !entry.file_name().to_str().is_some_and(&is_wanted) {
                continue;
            }
            // Another process may have removed it.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                files.push((entry.path(), metadata));
            }
        }
        Ok(files)
    }
}

/// Removes a file, if another process has not done so.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::WeightCache {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The model and the kernels that a file has weights for. Checks no weights.
fn weights_in(path: &Path) -> std::result::Result<(PathBuf, String), String> {
    let file = CacheFile::open(path).map_err(|error| error.to_string())?;
    let head = Head::deserialize(file.head()).map_err(|error| error.to_string())?;
    Ok((head.identity.model().to_owned(), head.identity.kernels))
}
