//! [`SchemaError`]: an error in a client's schema.

use super::references::SchemaPlace;

/// An error in a schema, and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at '#{pointer}': {problem}")]
pub(crate) struct SchemaError {
    /// A JSON pointer.
    pub(super) pointer: String,
    pub(super) problem: String,
}

pub(super) fn error(place: &SchemaPlace, problem: impl Into<String>) -> SchemaError {
    SchemaError {
        pointer: place.pointer.clone(),
        problem: problem.into(),
    }
}
