//! The `bitnet` program; see the library of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(bitnet_cli::execute(bitnet_cli::Program::of_process()))
}
