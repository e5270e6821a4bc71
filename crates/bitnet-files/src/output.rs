//! [`Output`]: a file or directory that appears under its name only when it is complete.
//!
//! It is written as `.NAME.partial` in the same folder, under a lock, and renamed at the end. A
//! failure removes the partial output. If the process is killed, the next one that writes the same
//! name takes the partial output over, so there is never more than one.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, shown};

/// The lock in a directory being written.
const LOCK: &str = ".lock";

/// A file or directory that is being written.
pub struct Output {
    /// The name it will have.
    path: PathBuf,
    /// The name it has until then.
    partial: PathBuf,
    replace: Replace,
    /// The file, or a directory's lock. It stays open, and thus locked, until the end.
    file: File,
    is_directory: bool,
    committed: bool,
}

/// What an output may replace. A link is followed, and its target replaced.
#[derive(Clone, Copy)]
pub enum Replace {
    /// Nothing: the name must be free.
    Nothing,
    /// A file, or a directory that holds only files with names that the function accepts.
    Only(fn(&str) -> bool),
}

impl Output {
    /// Begins a file.
    pub fn file(path: &Path, replace: Replace) -> Result<Self> {
        let path = resolve(path, replace)?;
        check_name(&path, replace, false)?;
        let partial = partial_name(&path);
        let io = |source| Error::Write {
            path: partial.clone(),
            source,
        };
        let file = locked(&partial).map_err(io)?;
        file.set_len(0).map_err(io)?;
        Ok(Self {
            path,
            partial,
            replace,
            file,
            is_directory: false,
            committed: false,
        })
    }

    /// Begins a file that replaces one of that name, also behind a link. A device or a pipe with
    /// that name is written to instead; it is never replaced.
    ///
    /// # Errors
    /// If the name is a directory's, or the system refuses.
    pub fn replacing(path: &Path) -> Result<Self> {
        let is_stream = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
        if !is_stream {
            return Self::file(path, Replace::Only(|_| false));
        }
        let file = File::options().write(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            partial: path.to_owned(),
            replace: Replace::Nothing,
            file: file.map_err(|source| Error::Write {
                path: path.to_owned(),
                source,
            })?,
            is_directory: false,
            committed: true, // there is nothing to rename or remove
        })
    }

    /// Begins a directory.
    pub fn directory(path: &Path, replace: Replace) -> Result<Self> {
        let path = resolve(path, replace)?;
        check_name(&path, replace, true)?;
        let partial = partial_name(&path);
        let io = |source| Error::Write {
            path: partial.clone(),
            source,
        };
        fs::create_dir_all(&partial).map_err(io)?;
        let file = locked(&partial.join(LOCK)).map_err(io)?;
        let output = Self {
            path,
            partial,
            replace,
            file,
            is_directory: true,
            committed: false,
        };
        output.remove_files(&[LOCK])?;
        output.put_back()?;
        Ok(output)
    }

    /// The path to write to until the commit.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// The open file, at its start.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().map_err(|source| Error::Write {
            path: self.partial.clone(),
            source,
        })
    }

    /// Gives the output its name. It must be written and stored completely.
    pub fn commit(mut self) -> Result<()> {
        if self.committed {
            return Ok(());
        }
        check_name(&self.path, self.replace, self.is_directory)?;
        let io = |source| Error::Write {
            path: self.path.clone(),
            source,
        };
        if self.is_directory && self.path.exists() {
            // Directories cannot be exchanged in one step, so for an instant nothing has this name.
            let old = self.replaced();
            fs::rename(&self.path, &old).map_err(io)?;
            if let Err(error) = fs::rename(&self.partial, &self.path) {
                let _ = fs::rename(&old, &self.path); // the first error is returned
                return Err(io(error));
            }
            fs::remove_dir_all(&old).map_err(|source| Error::Write {
                path: old.clone(),
                source,
            })?;
        } else {
            fs::rename(&self.partial, &self.path).map_err(io)?;
        }
        self.committed = true;
        if self.is_directory {
            // Remove the lock last: without it another process could take the directory over.
            fs::remove_file(self.path.join(LOCK)).map_err(|source| Error::Write {
                path: self.path.clone(),
                source,
            })?;
        }
        if let Ok(parent) = File::open(parent_of(&self.path)) {
            let _ = parent.sync_all(); // so that the name survives a power failure, where the system supports it
        }
        Ok(())
    }

    /// Where the old directory stays while the new one takes its name.
    fn replaced(&self) -> PathBuf {
        self.partial.with_extension("replaced")
    }

    /// Repairs a replacement that a kill has interrupted: gives the old directory its name back, or
    /// removes it if the new one already has the name.
    fn put_back(&self) -> Result<()> {
        let old = self.replaced();
        if !old.exists() {
            return Ok(());
        }
        if self.path.exists() {
            return fs::remove_dir_all(&old).map_err(|source| Error::Write { path: old, source });
        }
        fs::rename(&old, &self.path).map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })?;
        check_name(&self.path, self.replace, self.is_directory)
    }

    /// Removes the files in the directory that is being written, except the named ones.
    fn remove_files(&self, except: &[&str]) -> Result<()> {
        let io = |source| Error::Write {
            path: self.partial.clone(),
            source,
        };
        for entry in fs::read_dir(&self.partial).map_err(io)? {
            let entry = entry.map_err(io)?;
            if !except.iter().any(|name| entry.file_name() == *name) {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // The failure itself is reported elsewhere. If removing fails, the next output of that name
        // takes the files over.
        match (self.committed, self.is_directory) {
            (true, _) => {}
            (false, true) => {
                let _ = self.remove_files(&[]);
                let _ = fs::remove_dir(&self.partial);
            }
            (false, false) => {
                let _ = fs::remove_file(&self.partial);
            }
        }
    }
}

/// `.NAME.partial` in the folder of `path`, so that renaming moves no bytes.
fn partial_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}

fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The path to write: the target of a link, if it may be replaced.
fn resolve(path: &Path, replace: Replace) -> Result<PathBuf> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    match replace {
        Replace::Only(_) if is_link => fs::canonicalize(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(path.to_owned()),
    }
}

/// Refuses a name that is taken by something that must not be replaced.
fn check_name(path: &Path, replace: Replace, directory: bool) -> Result<()> {
    let refuse = |problem: String| {
        Err(Error::OutputKept {
            path: path.to_owned(),
            problem,
        })
    };
    if path.file_name().is_none() {
        return refuse("it is not a name for a file".into());
    }
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let Replace::Only(is_part) = replace else {
        return Err(Error::OutputExists {
            path: path.to_owned(),
        });
    };
    match (metadata.is_dir(), directory) {
        (false, false) if metadata.is_file() => Ok(()),
        (false, false) => refuse("it is a device, a pipe or the like, not a file".into()),
        (true, false) => refuse("it is a directory, not a file".into()),
        (false, true) => refuse("it is a file, not a directory".into()),
        (true, true) => {
            let entries = fs::read_dir(path).map_err(|source| Error::Io {
                path: path.to_owned(),
                source,
            })?;
            for entry in entries {
                let name = entry
                    .map_err(|source| Error::Io {
                        path: path.to_owned(),
                        source,
                    })?
                    .file_name();
                if name != LOCK && !name.to_str().is_some_and(is_part) {
                    return refuse(format!(
                        "it holds {}, which is not part of a model",
                        shown(&name.to_string_lossy())
                    ));
                }
            }
            Ok(())
        }
    }
}

/// Opens or makes a file and locks it, so that no other process writes it at the same time.
fn locked(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = "another process is writing it";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, problem));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The former owner of the lock may have renamed the file between the two calls.
        if is_still_there(&file, path)? {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_still_there(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let opened = file.metadata()?;
    Ok(fs::symlink_metadata(path)
        .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())))
}

#[cfg(not(unix))]
fn is_still_there(_: &File, path: &Path) -> io::Result<bool> {
    Ok(path.exists()) // an open file cannot be renamed here
}
