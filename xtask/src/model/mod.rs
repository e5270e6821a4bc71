//! `xtask model`: make models, and compare a model's logits with another engine's.

#[cfg(feature = "inference")]
pub mod crossval;
pub mod make;
#[cfg(feature = "inference")]
pub mod options;

use std::process::ExitCode;

use clap::Subcommand;

use crate::success;

#[derive(Subcommand)]
pub enum Command {
    /// Write a random model of any shape, as GGUF or as a Hugging Face directory
    Make(make::Options),
    /// Compare a model's logits with another engine's
    #[cfg(feature = "inference")]
    Crossval(crossval::Options),
}

pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Make(options) => make::run(options).map(success),
        #[cfg(feature = "inference")]
        Command::Crossval(options) => crossval::run(options),
    }
}
