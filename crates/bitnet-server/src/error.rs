//! Why a server could not start, or ended before it was told to.

use std::net::SocketAddr;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, not ours, or needs rights.
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
    /// The exporters of OpenTelemetry do not like their configuration.
    #[cfg(feature = "otlp")]
    #[error("cannot send to OpenTelemetry")]
    Otlp(#[source] opentelemetry_otlp::ExporterBuildError),
    /// What the loader of the model returned.
    #[error(transparent)]
    Load(Box<dyn std::error::Error + Send + Sync>),
    /// An address that the load generator cannot use.
    #[error(
        "{url:?} is no address that requests can be sent to: expected http://host[:port][/path] (https is not supported)"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// The engine failed in a way that it cannot go on from.
    #[error("the engine's thread has ended: {0}")]
    EngineLost(String),
    /// An API key file that is not there, or is not for us to read.
    #[error("cannot read it")]
    ApiKeyFile(#[source] std::io::Error),
    /// A line of an API key file that holds no hash.
    #[error("line {line}: expected 64 hexadecimal digits (the SHA-256 of a key) and a name")]
    ApiKeyLine {
        /// Counted from 1.
        line: usize,
    },
    /// An API key file without keys, which would lock everyone out.
    #[error("there are no keys in it")]
    NoApiKeys,
    /// A CORS origin that no browser would send.
    #[error("{origin:?} is no origin: expected * or scheme://host[:port] without a path")]
    Origin {
        /// What was given.
        origin: String,
    },
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, Error>;
