//! `xtask check`: promises that the tests do not cover, because they need time or a quiet machine.

pub mod accuracy;
#[cfg(feature = "inference")]
pub mod counter_cost;
pub mod determinism;
pub mod health_latency;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use crate::success;

#[derive(Subcommand)]
pub enum Command {
    /// Measure the error of each ternary format: the tables of docs/quantization.md
    Accuracy(accuracy::Options),
    /// Measure the cost of counting the kernels' work; fail above 0.1 % of a decode step
    #[cfg(feature = "inference")]
    CounterCost(counter_cost::Options),
    /// Repeat the determinism matrix while other processes keep the CPU busy
    Determinism(determinism::Options),
    /// Keep the CPU busy until standard input ends
    #[command(hide = true)]
    Busy,
    /// Probe a saturated server; fail if more than 1 % of the probes take it longer than 5 ms
    HealthLatency(health_latency::Options),
}

pub fn run(root: &Path, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Accuracy(options) => accuracy::run(root, options),
        #[cfg(feature = "inference")]
        Command::CounterCost(options) => counter_cost::run(options),
        Command::Determinism(options) => determinism::run(root, options),
        Command::Busy => determinism::busy(),
        Command::HealthLatency(options) => health_latency::run(root, options),
    }
    .map(success)
}
