//! [`Fault`]: why a template cannot be parsed or rendered.

use std::fmt;

/// The result type of this module.
pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

/// The reason why a template cannot be parsed or rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    message: String,
    line: Option<u32>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: None,
        }
    }

    /// Adds the line of the template, if none is known yet.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line = self.line.or(Some(line));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}
