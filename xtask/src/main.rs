//! What maintainers run: `cargo run -p xtask -- COMMAND`.
#![forbid(unsafe_code)]

mod accuracy;
mod bands;
mod baselines;
mod bench_compare;
mod bench_save;
mod ci;
mod circumstances;
mod compare_receipts;
mod make_model;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    /// Measure what the ternary formats keep of their weights: the tables of docs/quantization.md
    Accuracy(accuracy::Options),
    /// Compare two baselines of `cargo bench`: exit code 0 within 10 %, 10 to investigate, 20 to escalate
    BenchCompare(bench_compare::Options),
    /// File a baseline of `cargo bench -- --save-baseline NAME` under benchmarks/baselines/NAME
    BenchSave(bench_save::Options),
    /// Run `.ci/run`, with --full also what is too slow for it, and record that under ci/receipts
    Ci(ci::Options),
    /// Compare two receipts: exit code 0 within 10 %, 10 to investigate, 20 to escalate
    CompareReceipts(compare_receipts::Options),
    /// Write a random model of any shape, as GGUF or as a Hugging Face directory
    MakeModel(make_model::Options),
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
    let result = match Arguments::parse().command {
        Command::Accuracy(options) => accuracy::run(&repository(), &options).map(|()| ExitCode::SUCCESS),
        Command::BenchCompare(options) => bench_compare::run(&repository(), &options),
        Command::BenchSave(options) => bench_save::run(&repository(), &options).map(|()| ExitCode::SUCCESS),
        Command::Ci(options) => ci::run(&repository(), options).map(|()| ExitCode::SUCCESS),
        Command::CompareReceipts(options) => compare_receipts::run(&options),
        Command::MakeModel(options) => make_model::run(&options).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(if error.is::<WrongUsage>() { 2 } else { 1 })
    })
}

/// The root of the repository that this program was built from.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository that holds xtask is there")
}
