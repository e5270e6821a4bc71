//! What maintainers run: `cargo run -p xtask -- COMMAND`.
#![forbid(unsafe_code)]

mod accuracy;
mod bands;
mod baselines;
mod bench_compare;
mod bench_save;
mod bench_servers;
#[cfg(feature = "inference")]
mod benchmark;
mod ci;
mod circumstances;
mod compare;
mod compare_receipts;
#[cfg(feature = "inference")]
mod counter_cost;
#[cfg(feature = "inference")]
mod crossval;
mod determinism;
mod health_latency;
mod make_model;
mod marked;
#[cfg(feature = "inference")]
mod model;
mod performance;
#[cfg(feature = "inference")]
mod sign_receipt;
#[cfg(feature = "inference")]
mod verify_receipt;

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
    /// Compare two baselines of `cargo bench`: exit code 0 within 10 %, 10 to investigate, 20 to
    /// escalate
    BenchCompare(bench_compare::Options),
    /// File a baseline of `cargo bench -- --save-baseline NAME` under benchmarks/baselines/NAME
    BenchSave(bench_save::Options),
    /// Put servers under the same load, in turns, and print how they compare
    BenchServers(bench_servers::Options),
    /// Time a run of a model and write its receipt
    #[cfg(feature = "inference")]
    Benchmark(benchmark::Options),
    /// Run `.ci/run`, with --full also what is too slow for it, and record that under ci/receipts
    Ci(ci::Options),
    /// Run our program and others in turns, with the state of the memory beside each run, and write
    /// the tables down
    Compare(compare::Options),
    /// Compare two receipts: exit code 0 within 10 %, 10 to investigate, 20 to escalate
    CompareReceipts(compare_receipts::Options),
    /// Measure what counting the kernels' work costs
    #[cfg(feature = "inference")]
    CounterCost(counter_cost::Options),
    /// Compare a model's logits with those of another engine
    #[cfg(feature = "inference")]
    Crossval(crossval::Options),
    /// Repeat the determinism matrix while other processes keep the CPU busy
    Determinism(determinism::Options),
    /// Keep the CPU busy until standard input ends
    #[command(hide = true)]
    Busy,
    /// Probe a saturated server, and fail if 1 % of the probes take it more than 5 ms
    HealthLatency(health_latency::Options),
    /// Write a random model of any shape, as GGUF or as a Hugging Face directory
    MakeModel(make_model::Options),
    /// Measure the tables of docs/performance.md
    Performance(performance::Options),
    /// Sign a receipt
    #[cfg(feature = "inference")]
    SignReceipt(sign_receipt::Options),
    /// Verify a receipt; the exit code says which check failed
    #[cfg(feature = "inference")]
    VerifyReceipt(verify_receipt::Options),
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
    let done = |()| ExitCode::SUCCESS;
    let result = match Arguments::parse().command {
        Command::Accuracy(options) => accuracy::run(&repository(), &options).map(done),
        Command::BenchCompare(options) => bench_compare::run(&repository(), &options),
        Command::BenchSave(options) => bench_save::run(&repository(), &options).map(done),
        Command::BenchServers(options) => bench_servers::run(&options).map(done),
        #[cfg(feature = "inference")]
        Command::Benchmark(options) => benchmark::run(&options).map(done),
        Command::Ci(options) => ci::run(&repository(), options).map(done),
        Command::Compare(options) => compare::run(&repository(), &options).map(done),
        Command::CompareReceipts(options) => compare_receipts::run(&options),
        #[cfg(feature = "inference")]
        Command::CounterCost(options) => counter_cost::run(&options).map(done),
        #[cfg(feature = "inference")]
        Command::Crossval(options) => crossval::run(&options),
        Command::Determinism(options) => determinism::run(&repository(), &options).map(done),
        Command::Busy => determinism::busy().map(done),
        Command::HealthLatency(options) => health_latency::run(&repository(), &options).map(done),
        Command::MakeModel(options) => make_model::run(&options).map(done),
        Command::Performance(options) => performance::run(&repository(), &options).map(done),
        #[cfg(feature = "inference")]
        Command::SignReceipt(options) => sign_receipt::run(&options).map(done),
        #[cfg(feature = "inference")]
        Command::VerifyReceipt(options) => verify_receipt::run(&options).map(done),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(exit_code(&error))
    })
}

/// 2 for wrong usage, that of its check for a receipt that is not accepted, 1 for the rest.
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
