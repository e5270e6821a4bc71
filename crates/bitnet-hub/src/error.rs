//! The error type of this crate.

use std::path::PathBuf;

/// An error on the way from a name to a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is not a model's name.
    #[error("{name:?} names no model: {problem}")]
    Name {
        /// The given text, escaped.
        name: String,
        /// The problem.
        problem: String,
    },
    /// A name from the user or a server that could lead out of the cache.
    #[error("{what} {name:?} is not safe to use as a path")]
    UnsafePath {
        /// The kind of name.
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
    /// A repository with no model or several models.
    #[error("{repo} has {found}")]
    Choice {
        /// The repository.
        repo: String,
        /// The models that exist, and how to name one.
        found: String,
    },
    /// A download in offline mode.
    #[error("{name} cannot be downloaded: offline mode is on (HF_HUB_OFFLINE)")]
    Offline {
        /// The model.
        name: String,
    },
    /// A proxy that is not a valid address.
    #[error("the proxy {proxy:?} cannot be used: {problem}")]
    Proxy {
        /// The given text, without user and password.
        proxy: String,
        /// The problem.
        problem: String,
    },
    /// The server refused.
    #[error("{url}: the server says {status}{hint}")]
    Status {
        /// The requested address, without parameters.
        url: String,
        /// The HTTP status.
        status: u16,
        /// A hint for the user.
        hint: &'static str,
    },
    /// No response, or an unreadable one.
    #[error("cannot reach {url}: {problem}")]
    Network {
        /// The requested address, without parameters.
        url: String,
        /// The cause.
        problem: String,
    },
    /// A response without a required part.
    #[error("{url}: {problem}")]
    Answer {
        /// The requested address, without parameters.
        url: String,
        /// The missing or wrong part.
        problem: String,
    },
    /// The downloaded bytes do not have the expected hash.
    #[error("{file} has hash {found}, expected {expected}; the downloaded bytes are deleted")]
    WrongBytes {
        /// The file.
        file: String,
        /// The hash of the downloaded bytes.
        found: String,
        /// The expected hash.
        expected: String,
    },
    /// Another process has the lock.
    #[error("another process is downloading {file}")]
    Busy {
        /// The file, or the repository.
        file: String,
    },
    /// The caller stopped it.
    #[error("interrupted; the next pull continues from here")]
    Interrupted,
    /// The system refused.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An untrusted name for a message: cut at 120 characters; `{:?}` escapes it.
pub(crate) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(120).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}
