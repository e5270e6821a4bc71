//! [`Cache`]: the folder where Hugging Face's tools store downloads.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, shown};
use crate::name::{MAIN, ModelName, is_commit, is_safe_path};

/// The files of a model directory besides its weights.
const BESIDE_WEIGHTS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Suffix of a blob that is not complete.
pub(crate) const INCOMPLETE: &str = ".incomplete";

/// The cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A model that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Its name, which [`Cache::find`] accepts.
    pub name: String,
    /// The GGUF file, or the directory.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Its commit.
    pub commit: String,
    /// Whether all of its files are complete; otherwise a download has begun.
    pub is_complete: bool,
}

/// The model in a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// One GGUF file.
    File(String),
    /// A directory: these files.
    Directory(Vec<String>),
}

impl Model {
    /// Chooses among the files of a repository: a model directory if its weights are there, else
    /// the only GGUF file.
    pub(crate) fn choose(name: &ModelName, files: &[String]) -> Result<Self> {
        if let Some(file) = &name.file {
            return Ok(Self::File(file.clone()));
        }
        let is_weights = |file: &str| {
            file == "model.safetensors"
                || (file.starts_with("model-") && file.ends_with(".safetensors"))
        };
        let weights = files
            .iter()
            .filter(|file| is_weights(file) && !file.contains('/'))
            .cloned();
        let weights: Vec<String> = weights.collect();
        if !weights.is_empty() && files.iter().any(|file| file == BESIDE_WEIGHTS[0]) {
            // The small files come first: errors in them are found before gigabytes are downloaded.
            let beside = BESIDE_WEIGHTS
                .iter()
                .filter(|known| files.iter().any(|file| file == *known));
            return Ok(Self::Directory(
                beside
                    .map(|file| (*file).to_owned())
                    .chain(weights)
                    .collect(),
            ));
        }
        let gguf: Vec<&String> = files
            .iter()
            .filter(|file| file.ends_with(".gguf"))
            .collect();
        match gguf[..] {
            [file] => Ok(Self::File(file.clone())),
            [] => {
                let found = "no GGUF file and no config.json with model.safetensors".to_owned();
                Err(Error::Choice {
                    repo: name.repo.clone(),
                    found,
                })
            }
            _ => {
                let names: Vec<String> = gguf.iter().take(20).map(|file| shown(file)).collect();
                let found = format!(
                    "several models; name one as {}:FILE: {}",
                    name.repo,
                    names.join(", ")
                );
                Err(Error::Choice {
                    repo: name.repo.clone(),
                    found,
                })
            }
        }
    }
}

/// The folder of Hugging Face's tools, by their environment variables. `variable` returns the value
/// of a variable that is set and not empty.
pub fn home_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let user = || variable("HOME").or_else(|| variable("USERPROFILE"));
    let caches = || variable("XDG_CACHE_HOME").or_else(|| Some(user()?.join(".cache")));
    variable("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
}

impl Cache {
    /// The cache in a folder, which need not exist.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The cache that Hugging Face's tools use, by their environment variables. `variable` returns
    /// the value of a variable that is set and not empty. `None` if the variables name no folder.
    #[must_use]
    pub fn from_variables(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Self> {
        let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let root = named.or_else(|| Some(home_folder(variable)?.join("hub")))?;
        Some(Self::new(root))
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a pulled model: a GGUF file or a directory.
    ///
    /// # Errors
    /// If the cache does not have the model, or the name fits several models.
    pub fn find(&self, name: &ModelName) -> Result<PathBuf> {
        let not_pulled = || Error::NotPulled {
            name: name.to_string(),
            cache: self.root.clone(),
        };
        let commit = self.commit(name).ok_or_else(not_pulled)?;
        let snapshot = self.repo(name).snapshot(&commit);
        let files = files_in(&snapshot);
        if files.is_empty() {
            return Err(not_pulled());
        }
        match Model::choose(name, &files) {
            Ok(Model::File(file)) => {
                let path = snapshot.join(file);
                if path.is_file() {
                    Ok(path)
                } else {
                    Err(not_pulled())
                }
            }
            Ok(Model::Directory(_)) => Ok(snapshot),
            Err(Error::Choice { found, .. }) if found.starts_with("no ") => Err(not_pulled()),
            Err(error) => Err(error),
        }
    }

    /// All models in the cache, by name: for each branch or tag, and for commits without a branch
    /// or tag.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn list(&self) -> Result<Vec<Cached>> {
        let mut models = Vec::new();
        for folder in entries(&self.root)? {
            let Some(repo) = repo_of_folder(&folder) else {
                continue;
            };
            let parts = RepoFolder {
                path: self.root.join(&folder),
                locks: self.root.join(".locks").join(&folder),
            };
            let mut commits = entries(&parts.path.join("snapshots"))?;
            commits.retain(|commit| is_commit(commit));
            for reference in files_in(&parts.path.join("refs")) {
                let Ok(name) = format!("{repo}@{reference}").parse::<ModelName>() else {
                    continue;
                };
                let Some(commit) = self.commit(&name) else {
                    continue;
                };
                models.extend(parts.models(&name, &commit));
                commits.retain(|other| *other != commit);
            }
            for commit in commits {
                let name = ModelName {
                    repo: repo.clone(),
                    revision: commit.clone(),
                    file: None,
                };
                models.extend(parts.models(&name, &commit));
            }
            models.extend(parts.incomplete(&repo));
        }
        models.sort_by(|a, b| (&a.name, &a.commit).cmp(&(&b.name, &b.commit)));
        Ok(models)
    }

    /// Removes a model: the named file, or the whole repository if the name has no file. If the
    /// revision is `main`, removes it from all revisions in the cache, else from the named one.
    /// Returns the bytes freed.
    ///
    /// Keeps snapshots that another branch or tag points to, blobs that another snapshot links to,
    /// and partial downloads of other files.
    ///
    /// # Errors
    /// If the cache does not have the model, a process downloads it, or the system refuses.
    pub fn remove(&self, name: &ModelName) -> Result<u64> {
        let repo = self.repo(name);
        if !repo.path.is_dir() {
            return Err(Error::NotPulled {
                name: name.to_string(),
                cache: self.root.clone(),
            });
        }
        let _locks = repo.lock_all(&name.repo)?;
        let before = size_of(&repo.path);
        let mut commits = entries(&repo.path.join("snapshots"))?;
        let named = self.commit(name);
        commits.retain(|commit| {
            is_commit(commit) && (name.revision == MAIN || named.as_ref() == Some(commit))
        });
        let found = match &name.file {
            None if name.revision == MAIN => {
                remove_all(&repo.path)?;
                return Ok(before);
            }
            None => self.remove_revision(name, &commits)?,
            Some(file) => repo.remove_file(file, &commits)?,
        };
        if !found {
            return Err(Error::NotPulled {
                name: name.to_string(),
                cache: self.root.clone(),
            });
        }
        repo.remove_unused_blobs()?;
        if files_in(&repo.path.join("snapshots")).is_empty()
            && repo.incomplete(&name.repo).is_none()
        {
            remove_all(&repo.path)?;
        }
        Ok(before.saturating_sub(size_of(&repo.path)))
    }

    /// Removes a branch or tag, and its snapshot if no other one points to it; or a snapshot with
    /// all branches and tags that point to it. False if there is no such snapshot.
    fn remove_revision(&self, name: &ModelName, commits: &[String]) -> Result<bool> {
        let repo = self.repo(name);
        let Some(commit) = commits.first() else {
            return Ok(false);
        };
        let references = repo.path.join("refs");
        let is_at = |reference: &String| {
            let revision = ModelName {
                revision: reference.clone(),
                ..name.clone()
            };
            !is_commit(reference) && self.commit(&revision).as_ref() == Some(commit)
        };
        let (gone, kept): (Vec<String>, Vec<String>) = files_in(&references)
            .into_iter()
            .filter(is_at)
            .partition(|reference| *reference == name.revision || is_commit(&name.revision));
        if kept.is_empty() {
            remove_all(&repo.snapshot(commit))?;
        }
        for reference in gone {
            let path = references.join(reference);
            fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
        }
        Ok(true)
    }

    /// The folders of a repository.
    pub(crate) fn repo(&self, name: &ModelName) -> RepoFolder {
        let folder = format!("models--{}", name.repo.replace('/', "--"));
        RepoFolder {
            path: self.root.join(&folder),
            locks: self.root.join(".locks").join(folder),
        }
    }

    /// The commit that a name refers to in the cache.
    fn commit(&self, name: &ModelName) -> Option<String> {
        if is_commit(&name.revision) {
            return Some(name.revision.clone());
        }
        let text =
            fs::read_to_string(self.repo(name).path.join("refs").join(&name.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }
}

/// The folders of one repository.
pub(crate) struct RepoFolder {
    path: PathBuf,
    locks: PathBuf,
}

impl RepoFolder {
    /// The path of the blob with this hash.
    pub(crate) fn blob(&self, hash: &str) -> PathBuf {
        self.path.join("blobs").join(hash)
    }

    /// Where the first part of them lies.
    pub(crate) fn incomplete(&self, repo: &str) -> Option<Cached> {
        let blobs = self.path.join("blobs");
        let names = files_in(&blobs)
            .into_iter()
            .filter(|name| name.ends_with(INCOMPLETE));
        let bytes: u64 = names
            .map(|name| fs::metadata(blobs.join(name)).map_or(0, |metadata| metadata.len()))
            .sum();
        (bytes > 0).then(|| Cached {
            name: repo.to_owned(),
            path: blobs,
            bytes,
            commit: String::new(),
            is_complete: false,
        })
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    /// The models of a snapshot.
    fn models(&self, name: &ModelName, commit: &str) -> Vec<Cached> {
        let snapshot = self.snapshot(commit);
        let files = files_in(&snapshot);
        let size =
            |file: &String| fs::metadata(snapshot.join(file)).map_or(0, |metadata| metadata.len());
        let cached = |name: String, path: PathBuf, bytes, is_complete| Cached {
            name,
            path,
            bytes,
            commit: commit.to_owned(),
            is_complete,
        };
        let gguf = files.iter().filter(|file| file.ends_with(".gguf"));
        let mut models: Vec<Cached> = gguf
            .map(|file| {
                let named = ModelName {
                    file: Some(file.clone()),
                    ..name.clone()
                };
                cached(
                    named.to_string(),
                    snapshot.join(file),
                    size(file),
                    snapshot.join(file).is_file(),
                )
            })
            .collect();
        let whole = ModelName {
            file: None,
            ..name.clone()
        };
        if let Ok(Model::Directory(files)) = Model::choose(&whole, &files) {
            let is_complete =
                files.iter().all(|file| snapshot.join(file).is_file()) && has_all_shards(&snapshot);
            models.push(cached(
                whole.to_string(),
                snapshot.clone(),
                files.iter().map(size).sum(),
                is_complete,
            ));
        }
        models
    }

    /// Takes the lock of a blob, as Hugging Face's tools do. It is held until the file is dropped.
    pub(crate) fn lock(&self, hash: &str, file: &str) -> Result<File> {
        let path = self.locks.join(format!("{hash}.lock"));
        make_parent(&path)?;
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        refuse_special(&path)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(Error::Busy {
                file: file.to_owned(),
            }),
            // Some file systems do not support locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(lock)
            }
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }

    /// Takes all locks, so that no process downloads meanwhile.
    fn lock_all(&self, repo: &str) -> Result<Vec<File>> {
        let names = files_in(&self.locks);
        let hashes = names.iter().filter_map(|name| name.strip_suffix(".lock"));
        hashes.map(|hash| self.lock(hash, repo)).collect()
    }

    /// Links a file of a snapshot to its blob; copies it if the file system has no links. Returns
    /// its path.
    pub(crate) fn link(&self, commit: &str, file: &str, hash: &str) -> Result<PathBuf> {
        debug_assert!(is_commit(commit) && is_safe_path(file));
        let pointer = self.snapshot(commit).join(file);
        make_parent(&pointer)?;
        let up = "../".repeat(file.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(pointer);
        }
        let io = |source| Error::Io {
            path: pointer.clone(),
            source,
        };
        // Created under a temporary name first, so that the final name always has a whole file.
        let mut temporary = pointer.clone().into_os_string();
        temporary.push(".link");
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary); // left by a killed process
        link_or_copy(&target, &self.blob(hash), &temporary).map_err(io)?;
        fs::rename(&temporary, &pointer).map_err(io)?;
        Ok(pointer)
    }

    /// Records that a branch or tag points to a commit.
    pub(crate) fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.path.join("refs").join(revision);
        make_parent(&path)?;
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let mut temporary = path.clone().into_os_string();
        temporary.push(".new");
        fs::write(&temporary, commit).map_err(io)?;
        fs::rename(&temporary, &path).map_err(io)
    }

    /// Removes a file of some snapshots. False if no snapshot has it.
    fn remove_file(&self, file: &str, commits: &[String]) -> Result<bool> {
        let mut found = false;
        for commit in commits {
            let pointer = self.snapshot(commit).join(file);
            if fs::symlink_metadata(&pointer).is_ok() {
                found = true;
                fs::remove_file(&pointer).map_err(|source| Error::Io {
                    path: pointer,
                    source,
                })?;
            }
        }
        Ok(found)
    }

    /// Removes the blobs that no snapshot links to. Keeps partial downloads, since their files are
    /// not known.
    fn remove_unused_blobs(&self) -> Result<()> {
        let snapshots = self.path.join("snapshots");
        let used: BTreeSet<PathBuf> = files_in(&snapshots)
            .iter()
            .filter_map(|file| fs::canonicalize(snapshots.join(file)).ok())
            .collect();
        let blobs = self.path.join("blobs");
        for name in files_in(&blobs)
            .into_iter()
            .filter(|name| !name.ends_with(INCOMPLETE))
        {
            let path = blobs.join(name);
            if fs::canonicalize(&path).is_ok_and(|path| !used.contains(&path)) {
                fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
            }
        }
        Ok(())
    }
}

/// Whether all files that an index of weights names are there; true without an index.
fn has_all_shards(snapshot: &Path) -> bool {
    let Ok(text) = fs::read(snapshot.join("model.safetensors.index.json")) else {
        return true;
    };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&text) else {
        return false;
    };
    let names = index["weight_map"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values());
    let names: BTreeSet<&str> = names.filter_map(|name| name.as_str()).collect();
    names
        .into_iter()
        .all(|name| is_safe_path(name) && snapshot.join(name).is_file())
}

/// `org/name` of `models--org--name`.
fn repo_of_folder(folder: &str) -> Option<String> {
    let repo = folder.strip_prefix("models--")?.replacen("--", "/", 1);
    repo.parse::<ModelName>()
        .ok()
        .filter(|name| name.repo == repo)
        .map(|name| name.repo)
}

/// Refuses a pipe, a device or a folder where a file is expected: opening a pipe would wait for its
/// other end.
pub(crate) fn refuse_special(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Error::Io {
            path: path.to_owned(),
            source: io::Error::other("it is not a regular file"),
        }),
        // Opening the file reports any error.
        _ => Ok(()),
    }
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| Error::Io {
        path: parent.to_owned(),
        source,
    })
}

/// The names in a folder, sorted; empty if the folder does not exist.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
        Ok(list) => {
            for entry in list {
                names.extend(entry.map_err(io)?.file_name().into_string());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The files under a folder as paths from it, sorted; links count as files. Unreadable folders
/// count as empty.
fn files_in(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for name in entries(folder).unwrap_or_default() {
        let path = folder.join(&name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                files.extend(
                    files_in(&path)
                        .into_iter()
                        .map(|file| format!("{name}/{file}")),
                );
            }
            Ok(_) => files.push(name),
            Err(_) => {}
        }
    }
    files
}

/// Bytes of the files under a folder, links not followed.
fn size_of(folder: &Path) -> u64 {
    let size = |file: &String| {
        fs::symlink_metadata(folder.join(file)).map_or(0, |metadata| metadata.len())
    };
    files_in(folder).iter().map(size).sum()
}

fn remove_all(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(|source| Error::Io {
        path: folder.to_owned(),
        source,
    })
}

#[cfg(unix)]
fn link_or_copy(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    match std::os::unix::fs::symlink(target, link) {
        // Some file systems do not support links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            fs::copy(blob, link).map(|_| ())
        }
        result => result,
    }
}

#[cfg(not(unix))]
fn link_or_copy(_: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::copy(blob, link).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_the_variables_of_hugging_faces_tools() {
        for (variables, root) in [
            (&[("HOME", "/h")][..], Some("/h/.cache/huggingface/hub")),
            (&[("USERPROFILE", "/u")], Some("/u/.cache/huggingface/hub")),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                Some("/x/huggingface/hub"),
            ),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], Some("/f/hub")),
            (
                &[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                Some("/old"),
            ),
            (
                &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")],
                Some("/c"),
            ),
            (&[], None),
        ] {
            let cache = Cache::from_variables(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| PathBuf::from(value))
            });
            let found = cache.as_ref().map(Cache::root);
            assert_eq!(found, root.map(Path::new), "{variables:?}");
        }
    }
}
