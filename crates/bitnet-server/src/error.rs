//! Errors that keep a server from starting, or end it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, is not local, or needs privileges.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The system gives no threads, timers or signals.
    #[error("cannot start the server's threads")]
    Threads(#[source] std::io::Error),
    /// The configuration of the OpenTelemetry exporters is invalid.
    #[cfg(feature = "otlp")]
    #[error("cannot send to OpenTelemetry")]
    Otlp(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The error that the model's loader returned.
    #[error(transparent)]
    Load(Arc<dyn std::error::Error + Send + Sync>),
    /// The model's loader panicked, for example without enough memory.
    #[error("cannot load the model: {0}")]
    LoadPanicked(String),
    /// The model takes more memory than `--models-memory` allows.
    #[error("the model takes {bytes} bytes of memory, but may take {bytes_max}")]
    ModelTooLarge {
        /// What it takes.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The first request of the load generator failed.
    #[error("the first request failed: {0}")]
    FirstRequest(String),
    /// An address that the load generator cannot use.
    #[error(
        "{url:?} is not a valid server address: expected http://host[:port][/path] (https is not supported)"
    )]
    Url {
        /// The given text.
        url: String,
    },
    /// The engine failed and cannot continue.
    #[error("the engine's thread has ended: {0}")]
    EngineLost(String),
    /// An API key file that does not exist or is not readable.
    #[error("cannot read it")]
    ApiKeyFile(#[source] std::io::Error),
    /// A given API key that no client could send. The message does not show it.
    #[error("key {number}: expected 1 to 1024 visible ASCII characters")]
    ApiKeyText {
        /// Counted from 1.
        number: usize,
    },
    /// A line of an API key file that holds no hash.
    #[error("line {line}: expected 64 hexadecimal digits (the SHA-256 of a key) and a name")]
    ApiKeyLine {
        /// Counted from 1.
        line: usize,
    },
    /// An API key file without keys; it would refuse every client.
    #[error("there are no keys in it")]
    NoApiKeys,
    /// An API key file that is a directory, a pipe or a device: reading it could block forever.
    #[error("it is not a regular file")]
    ApiKeyFileKind,
    /// An owner name that is reserved for keys without a name.
    #[error("line {line}: names that begin with {prefix:?} are for keys without a name")]
    ApiKeyName {
        /// Counted from 1.
        line: usize,
        /// The reserved prefix.
        prefix: &'static str,
    },
    /// The database of the folder for state cannot be used.
    #[error("cannot use {}: {problem}", path.display())]
    State {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        problem: String,
    },
    /// A file of a batch cannot be used.
    #[error("cannot {task} {}", path.display())]
    BatchFile {
        /// What was to be done with it, such as open.
        task: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A batch without requests.
    #[error("{} has no requests", path.display())]
    NoRequests {
        /// The input.
        path: std::path::PathBuf,
    },
    /// Another process answers the same batch.
    #[error("another process writes to {}", path.display())]
    OutputInUse {
        /// The output.
        path: std::path::PathBuf,
    },
    /// A file for answers that has something else in it.
    #[error(
        "line {line} of {} does not answer the request at that place of {}: name another file with -o",
        output.display(),
        input.display()
    )]
    OtherBatch {
        /// Counted from 1.
        line: usize,
        /// The file for answers.
        output: std::path::PathBuf,
        /// The file of requests.
        input: std::path::PathBuf,
    },
    /// A file of the certificate or its key cannot be read.
    #[error("cannot read {}", path.display())]
    TlsFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of the certificate or its key is wrong.
    #[error("cannot use {}: {problem}", path.display())]
    Tls {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An allowed host that is not a host name.
    #[error("{host:?} is not a host name: expected * or a name without a port")]
    Host {
        /// The text that was given.
        host: String,
    },
    /// A CORS origin that no browser would send.
    #[error("{origin:?} is not an origin: expected * or scheme://host[:port] without a path")]
    Origin {
        /// The given text.
        origin: String,
    },
}

impl Error {
    /// A file of a batch cannot be used: `task` is what was to be done with it, such as open.
    pub(crate) fn file(task: &'static str, path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        Self::BatchFile { task, path, source }
    }
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, Error>;
