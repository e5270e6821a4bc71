//! Maintainers' commands: `cargo run -p xtask -- COMMAND`.
#![forbid(unsafe_code)]

mod bands;
mod bench;
mod check;
mod ci;
mod circumstances;
mod marked;
mod model;
mod old_names;
mod receipt;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Maintainers' commands.
#[derive(Parser)]
#[command(bin_name = "cargo run -p xtask --")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure speed, record it, and compare two measurements
    #[command(subcommand)]
    Bench(bench::Command),
    /// Make, verify, sign and compare receipts of runs (docs/receipts.md)
    #[command(subcommand)]
    Receipt(receipt::Command),
    /// Check promises that tests do not cover: determinism under load, costs, accuracy
    #[command(subcommand)]
    Check(check::Command),
    /// Make models, and compare a model's logits with another engine's
    #[command(subcommand)]
    Model(model::Command),
    /// Run `.ci/run`; with --full also the slow checks
    Ci(ci::Options),
    #[command(flatten)]
    OldName(old_names::OldName),
}

/// An argument that cannot be used: exit code 2.
#[derive(Debug)]
struct WrongUsage(String);

impl std::fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

fn main() -> ExitCode {
    run(Arguments::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(exit_code(&error))
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bench(command) => bench::run(&repository(), &command),
        Command::Receipt(command) => receipt::run(&command),
        Command::Check(command) => check::run(&repository(), &command),
        Command::Model(command) => model::run(&command),
        Command::Ci(options) => ci::run(&repository(), options).map(success),
        Command::OldName(name) => run(name.into()),
    }
}

/// The exit code of a command that has done its work.
fn success((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// 2 for wrong usage, the code of the failed check for a rejected receipt, 1 for other errors.
fn exit_code(error: &anyhow::Error) -> u8 {
    #[cfg(feature = "inference")]
    if let Some(rejection) = error.downcast_ref::<xtask::Rejection>() {
        return rejection.exit_code();
    }
    if error.is::<WrongUsage>() { 2 } else { 1 }
}

/// The root of the repository that this program was built from.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository that holds xtask is there")
}
