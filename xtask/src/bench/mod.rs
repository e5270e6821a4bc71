//! `xtask bench`: measure speed, record it, compare two measurements.

mod baselines;
pub mod compare;
pub mod engines;
pub mod gpu;
mod record;
pub mod save;
pub mod servers;
pub mod tables;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use crate::success;

#[derive(Subcommand)]
pub enum Command {
    /// Compare two baselines of `cargo bench`: exit code 0 within 10 %, 10 to investigate, 20 to
    /// escalate
    Compare(compare::Options),
    /// Run `bitnet bench` and other engines in turns, and write tables with ratios
    Engines(engines::Options),
    /// Measure a GPU beside the CPU, in under five minutes
    Gpu(gpu::Options),
    /// Record a baseline of `cargo bench -- --save-baseline NAME` under benchmarks/record
    Save(save::Options),
    /// Put several servers under the same load in turns, and print tables
    Servers(servers::Options),
    /// Measure the tables of docs/performance.md
    Tables(tables::Options),
}

pub fn run(root: &Path, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Compare(options) => compare::run(root, options),
        Command::Engines(options) => engines::run(root, options).map(success),
        Command::Gpu(options) => gpu::run(root, options).map(success),
        Command::Save(options) => save::run(root, options).map(success),
        Command::Servers(options) => servers::run(options).map(success),
        Command::Tables(options) => tables::run(root, options).map(success),
    }
}
