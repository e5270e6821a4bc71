//! The names that commands had before they were grouped. They still work; `--help` does not list
//! them.

use clap::Subcommand;

use crate::{Command, bench, check, model, receipt};

#[derive(Subcommand)]
pub enum OldName {
    /// `check accuracy`
    #[command(hide = true)]
    Accuracy(check::accuracy::Options),
    /// `bench compare`
    #[command(hide = true)]
    BenchCompare(bench::compare::Options),
    /// `bench save`
    #[command(hide = true)]
    BenchSave(bench::save::Options),
    /// `bench servers`
    #[command(hide = true)]
    BenchServers(bench::servers::Options),
    /// `receipt make`
    #[cfg(feature = "inference")]
    #[command(hide = true)]
    Benchmark(receipt::make::Options),
    /// `bench engines`
    #[command(hide = true)]
    Compare(bench::engines::Options),
    /// `receipt compare`
    #[command(hide = true)]
    CompareReceipts(receipt::compare::Options),
    /// `check counter-cost`
    #[cfg(feature = "inference")]
    #[command(hide = true)]
    CounterCost(check::counter_cost::Options),
    /// `model crossval`
    #[cfg(feature = "inference")]
    #[command(hide = true)]
    Crossval(model::crossval::Options),
    /// `check determinism`
    #[command(hide = true)]
    Determinism(check::determinism::Options),
    /// `check health-latency`
    #[command(hide = true)]
    HealthLatency(check::health_latency::Options),
    /// `model make`
    #[command(hide = true)]
    MakeModel(model::make::Options),
    /// `bench tables`
    #[command(hide = true)]
    Performance(bench::tables::Options),
    /// `receipt sign`
    #[cfg(feature = "inference")]
    #[command(hide = true)]
    SignReceipt(receipt::sign::Options),
    /// `receipt verify`
    #[cfg(feature = "inference")]
    #[command(hide = true)]
    VerifyReceipt(receipt::verify::Options),
}

impl From<OldName> for Command {
    fn from(name: OldName) -> Self {
        match name {
            OldName::Accuracy(options) => Self::Check(check::Command::Accuracy(options)),
            OldName::BenchCompare(options) => Self::Bench(bench::Command::Compare(options)),
            OldName::BenchSave(options) => Self::Bench(bench::Command::Save(options)),
            OldName::BenchServers(options) => Self::Bench(bench::Command::Servers(options)),
            #[cfg(feature = "inference")]
            OldName::Benchmark(options) => Self::Receipt(receipt::Command::Make(options)),
            OldName::Compare(options) => Self::Bench(bench::Command::Engines(options)),
            OldName::CompareReceipts(options) => Self::Receipt(receipt::Command::Compare(options)),
            #[cfg(feature = "inference")]
            OldName::CounterCost(options) => Self::Check(check::Command::CounterCost(options)),
            #[cfg(feature = "inference")]
            OldName::Crossval(options) => Self::Model(model::Command::Crossval(options)),
            OldName::Determinism(options) => Self::Check(check::Command::Determinism(options)),
            OldName::HealthLatency(options) => Self::Check(check::Command::HealthLatency(options)),
            OldName::MakeModel(options) => Self::Model(model::Command::Make(options)),
            OldName::Performance(options) => Self::Bench(bench::Command::Tables(options)),
            #[cfg(feature = "inference")]
            OldName::SignReceipt(options) => Self::Receipt(receipt::Command::Sign(options)),
            #[cfg(feature = "inference")]
            OldName::VerifyReceipt(options) => Self::Receipt(receipt::Command::Verify(options)),
        }
    }
}
