//! The one error of this crate: what could not be found, fetched or kept.

use std::path::PathBuf;

/// What can go wrong between a name and a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing that names a model.
    #[error("{name:?} names no model: {problem}")]
    Name {
        /// What was given, escaped.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A name from a server, or for one, that could lead out of the cache.
    #[error("{what} {name:?} is not safe to use as a path")]
    UnsafePath {
        /// What it names.
        what: &'static str,
        /// The name, escaped.
        name: String,
    },
    /// A model that is not in the cache.
    #[error("{name} is not in {}; get it with `bitnet pull {name}`", cache.display())]
    NotPulled {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A repository with several models or none.
    #[error("{repo} has {found}")]
    Choice {
        /// The repository.
        repo: String,
        /// What there is, and how to name it.
        found: String,
    },
    /// A download in offline mode.
    #[error("{name} cannot be downloaded: offline mode is on (HF_HUB_OFFLINE)")]
    Offline {
        /// The model.
        name: String,
    },
    /// A proxy that is no address.
    #[error("the proxy {proxy:?} cannot be used: {problem}")]
    Proxy {
        /// What was given, without user and password.
        proxy: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server refused.
    #[error("{url}: the server says {status}{hint}")]
    Status {
        /// What was asked for, without parameters.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What may help.
        hint: &'static str,
    },
    /// No answer, or an unreadable one.
    #[error("cannot reach {url}: {problem}")]
    Network {
        /// What was asked for, without parameters.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// An answer that does not say what it must.
    #[error("{url}: {problem}")]
    Answer {
        /// What was asked for, without parameters.
        url: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// The bytes that came are not those that were promised.
    #[error("{file} has hash {found}, expected {expected}; what came was thrown away")]
    WrongBytes {
        /// The file.
        file: String,
        /// The hash of what came.
        found: String,
        /// The hash that was promised.
        expected: String,
    },
    /// Another process has the lock.
    #[error("another process is downloading {file}")]
    Busy {
        /// The file, or the repository.
        file: String,
    },
    /// The caller stopped it.
    #[error("interrupted; the next pull goes on from here")]
    Interrupted,
    /// The system refused.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// A name from outside as a message may show it: cut at 120 characters; `{:?}` escapes it.
pub(crate) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(120).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}
