//! What maintainers run: `cargo run -p xtask -- COMMAND`.
#![forbid(unsafe_code)]

mod ci;
mod make_model;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// What maintainers run.
#[derive(Parser)]
#[command(bin_name = "cargo run -p xtask --")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run `.ci/run`, with --full also what is too slow for it, and record that under ci/receipts
    Ci(ci::Options),
    /// Write a random model of any shape, as GGUF or as a Hugging Face directory
    MakeModel(make_model::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Ci(options) => ci::run(&repository(), options),
        Command::MakeModel(options) => make_model::run(&options),
    }
}

/// The root of the repository that this program was built from.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository that holds xtask is there")
}
