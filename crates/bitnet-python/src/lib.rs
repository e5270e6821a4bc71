//! PYTHON: the native half of the package `bitnet`, as the module `bitnet._native`.
//!
//! The Python half (`python/bitnet`) is what users see: names, defaults, results, `asyncio`. This
//! half loads models, turns keywords into requests and waits for answers. Every wait releases the
//! interpreter and looks for signals, so other threads run and Ctrl-C works. Python objects never
//! reach the engine's thread: replies are queued as Rust values.
#![cfg(feature = "extension")]
#![forbid(unsafe_code)]

mod answer;
mod array;
mod embedding;
mod engine;
mod error;
mod load;
mod notices;
mod options;
mod program;
mod receipt;
mod wait;

/// The native half of the package `bitnet`. Its names are not part of the package's interface.
#[pyo3::pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::answer::Answer;
    #[pymodule_export]
    use crate::array::FloatArray;
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::notices::{Notices, PolledAnswer};
    #[pymodule_export]
    use crate::options::{Chat, Request};
    #[pymodule_export]
    use crate::program::main;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python modules use")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
