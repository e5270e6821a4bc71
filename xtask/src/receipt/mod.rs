//! `xtask receipt`: make, verify, sign and compare receipts of runs.

pub mod compare;
#[cfg(feature = "inference")]
pub mod make;
#[cfg(feature = "inference")]
pub mod sign;
#[cfg(feature = "inference")]
pub mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use crate::repository;
#[cfg(feature = "inference")]
use crate::success;

/// The folder of the repository's receipts.
const FOLDER: &str = "benchmarks/receipts";
/// The receipt that `make` writes and `verify` reads if no file is given.
const DEFAULT: &str = "inference.json";

#[derive(Subcommand)]
pub enum Command {
    /// Time a run of a model and write its receipt
    #[cfg(feature = "inference")]
    Make(make::Options),
    /// Verify a receipt; the exit code says which check failed
    #[cfg(feature = "inference")]
    Verify(verify::Options),
    /// Sign a receipt
    #[cfg(feature = "inference")]
    Sign(sign::Options),
    /// Compare two receipts: exit code 0 within 10 %, 10 to investigate, 20 to escalate
    Compare(compare::Options),
}

pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "inference")]
        Command::Make(options) => make::run(options).map(success),
        #[cfg(feature = "inference")]
        Command::Verify(options) => verify::run(options).map(success),
        #[cfg(feature = "inference")]
        Command::Sign(options) => sign::run(options).map(success),
        Command::Compare(options) => compare::run(options),
    }
}

/// A receipt in the repository's folder of receipts.
fn kept(name: &str) -> PathBuf {
    repository().join(FOLDER).join(name)
}

/// The receipt to read: the default one, or the path as given. `ci/inference.json` and
/// `docs/baselines/NAME`, the former places of the repository's receipts, mean the receipt of that
/// name in the folder, unless such a file exists.
pub fn to_read(path: Option<&Path>) -> PathBuf {
    let Some(path) = path else {
        return kept(DEFAULT);
    };
    let moved = match path.strip_prefix("ci") {
        Ok(name) if name == Path::new(DEFAULT) => Some(name),
        _ => path.strip_prefix("docs/baselines").ok(),
    };
    match moved.and_then(Path::to_str) {
        Some(name) if !path.exists() => kept(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_places_of_receipts_mean_the_present_one() {
        let read = |path: &str| to_read(Some(Path::new(path)));
        assert_eq!(to_read(None), kept("inference.json"));
        assert_eq!(read("ci/inference.json"), kept("inference.json"));
        assert_eq!(
            read("docs/baselines/20261121-cpu.json"),
            kept("20261121-cpu.json")
        );
        for other in ["ci/other.json", "inference.json", "elsewhere/x.json"] {
            assert_eq!(read(other), Path::new(other));
        }
    }
}
