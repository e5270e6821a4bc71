//! From errors of the libraries to the exceptions of `bitnet._errors`, with the same texts as the
//! program.

use std::io::ErrorKind;

use bitnet_inference::Failure;
use pyo3::PyErr;

mod exceptions {
    //! The classes of `bitnet._errors`.
    pyo3::import_exception!(bitnet._errors, EngineError);
    pyo3::import_exception!(bitnet._errors, ModelError);
    pyo3::import_exception!(bitnet._errors, ModelFileError);
    pyo3::import_exception!(bitnet._errors, ModelNotFoundError);
    pyo3::import_exception!(bitnet._errors, RequestError);
}

/// An invalid request.
pub(crate) fn request(error: impl Into<anyhow::Error>) -> PyErr {
    exceptions::RequestError::new_err(format!("{:#}", error.into()))
}

/// An invalid argument, described by a text.
pub(crate) fn argument(message: String) -> PyErr {
    exceptions::RequestError::new_err(message)
}

/// The engine cannot work.
pub(crate) fn engine(message: impl std::fmt::Display) -> PyErr {
    exceptions::EngineError::new_err(message.to_string())
}

/// A model that cannot be loaded: a class of its own if there is no file, or a file cannot be read.
pub(crate) fn model(error: impl Into<anyhow::Error>) -> PyErr {
    let error = error.into();
    let message = format!("{error:#}");
    let is_not_pulled = error.chain().any(|cause| {
        let cause = cause.downcast_ref::<bitnet_hub::Error>();
        matches!(cause, Some(bitnet_hub::Error::NotPulled { .. }))
    });
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        _ if is_not_pulled => exceptions::ModelNotFoundError::new_err(message),
        Some(ErrorKind::NotFound) => exceptions::ModelNotFoundError::new_err(message),
        Some(_) => exceptions::ModelFileError::new_err(message),
        None => exceptions::ModelError::new_err(message),
    }
}

/// A request that ended without an answer.
pub(crate) fn failure(failure: Failure) -> PyErr {
    match failure {
        Failure::Refused(error) => request(error),
        Failure::File(problem) => exceptions::ModelFileError::new_err(problem.to_string()),
        Failure::Model(problem) => exceptions::ModelError::new_err(problem),
        Failure::Device(problem) => device(&problem),
        Failure::Panicked(_)
        | Failure::Constraint(_)
        | Failure::Cancelled(_)
        | Failure::Stopped => engine(failure),
    }
}

/// A run that ended without an answer and a receipt.
pub(crate) fn run(error: anyhow::Error) -> PyErr {
    let other = match error.downcast::<Failure>() {
        Ok(problem) => return failure(problem),
        Err(other) => other,
    };
    match other.downcast::<bitnet_inference::Error>() {
        Ok(problem) => call(problem),
        Err(other) => request(other),
    }
}

/// The device of a model failed.
fn device(problem: &str) -> PyErr {
    engine(format!("{problem}: load the model again"))
}

/// An error of the engine outside a request: its thread has ended, or the arguments are invalid.
pub(crate) fn call(error: bitnet_inference::Error) -> PyErr {
    match error {
        bitnet_inference::Error::EngineStopped => engine(error),
        bitnet_inference::Error::DeviceFailed(problem) => device(&problem),
        error => request(error),
    }
}
