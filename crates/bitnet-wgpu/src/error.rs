//! Errors of devices.

/// The reason why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No adapter fits the request.
    #[error("no GPU {wanted}; {found}")]
    NoAdapter {
        /// What was looked for.
        wanted: String,
        /// The adapters that exist, and why others may be missing.
        found: String,
    },
    /// The adapter lacks something that every kernel needs.
    #[error("{adapter} has no {missing}, which the kernels need")]
    Adapter {
        /// Its name.
        adapter: String,
        /// The missing feature, or the limit with the numbers.
        missing: String,
    },
    /// The driver refuses to open the adapter.
    #[error("cannot open {adapter}: {problem}")]
    Open {
        /// Its name.
        adapter: String,
        /// What the driver said.
        problem: String,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
