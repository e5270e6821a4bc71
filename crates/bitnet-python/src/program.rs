//! The program `bitnet`, for `python -m bitnet`.

use std::ffi::OsString;
use std::path::PathBuf;

use bitnet_cli::Program;
use bitnet_guard::HelperProgram;
use pyo3::prelude::*;

use crate::error;

/// A command, its first part the file of the program.
pub(crate) fn helper_program(command: Vec<String>) -> PyResult<HelperProgram> {
    let mut command = command.into_iter();
    let path = command.next();
    let path = path.ok_or_else(|| error::argument("the command is empty".to_owned()))?;
    Ok(HelperProgram {
        path: PathBuf::from(path),
        arguments: command.collect(),
    })
}

/// Runs the program once and returns its exit code. `code`: the file of this module. `again`: a
/// command that runs the program again, without arguments.
#[pyfunction]
pub(crate) fn main(
    py: Python<'_>,
    arguments: Vec<OsString>,
    code: PathBuf,
    again: Vec<String>,
) -> PyResult<u8> {
    let program = Program {
        arguments,
        code: Some(code),
        again: helper_program(again)?,
    };
    Ok(py.detach(|| bitnet_cli::execute(program)))
}
