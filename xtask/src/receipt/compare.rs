//! `xtask receipt compare`: compares speed and memory of two runs against the regression bands.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::to_read;
use crate::WrongUsage;
use crate::bands::{Band, Pair};

#[derive(clap::Args)]
pub struct Options {
    /// The receipt to compare with
    baseline: PathBuf,
    /// The receipt to judge
    current: PathBuf,
    /// Another receipt of the program that made the baseline; the difference between the two is
    /// noise. Can be repeated
    #[arg(long, value_name = "FILE")]
    again: Vec<PathBuf>,
}

/// Computes the regression as a share of the baseline.
type Regression = fn(Pair) -> f64;

/// The figures of a receipt that are compared.
const FIGURES: [(&str, Regression); 4] = [
    ("tokens_per_second", Pair::loss),
    ("prefill_ms", Pair::growth),
    ("first_token_ms", Pair::growth),
    ("peak_rss_bytes", Pair::growth),
];

/// Fields that must be equal in both receipts.
const SAME: [&str; 5] = [
    "/model/sha256",
    "/prompt_tokens_sha256",
    "/tokens_generated",
    "/run/kv_type",
    "/run/cached_tokens",
];

/// Fields that may differ; differences are printed.
const SHOWN: [&str; 7] = [
    "/environment/CPU",
    "/environment/threads",
    "/environment/RUST_VERSION",
    "/kernel_set",
    "/run/packing",
    "/run/head",
    "/run/ffn_sparsity",
];

/// Prints a line for each figure. The exit code is that of the worst band.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let baseline = read(&options.baseline)?;
    let current = read(&options.current)?;
    let again = options
        .again
        .iter()
        .map(|path| read(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (path, receipt) in
        std::iter::once((&options.current, &current)).chain(options.again.iter().zip(&again))
    {
        for key in SAME {
            let (a, b) = (baseline.pointer(key), receipt.pointer(key));
            if a != b {
                let [a, b] =
                    [a, b].map(|value| value.map_or_else(|| "absent".to_owned(), Value::to_string));
                let message = format!(
                    "cannot compare these runs: {} is {a} in the baseline, {b} in {}",
                    &key[1..],
                    path.display()
                );
                return Err(WrongUsage(message).into());
            }
        }
    }
    let (report, worst) = compare(&baseline, &current, &again);
    print!("{report}");
    Ok(worst.exit_code())
}

/// The table and the worst band.
fn compare(baseline: &Value, current: &Value, again: &[Value]) -> (String, Band) {
    let mut report = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(report, "{text}");
    };
    for key in SHOWN {
        let (a, b) = (baseline.pointer(key), current.pointer(key));
        if a != b {
            let [a, b] = [a, b].map(|value| value.unwrap_or(&Value::Null));
            line(format_args!("{}: {a} before, {b} now", &key[1..]));
        }
    }
    let mut worst = Band::Accepted;
    for (key, regression) in FIGURES {
        let pair = |other: &Value| {
            Some(Pair {
                baseline: baseline.get(key)?.as_f64()?,
                current: other.get(key)?.as_f64()?,
            })
        };
        let Some(found) = pair(current) else { continue };
        let noise = again
            .iter()
            .filter_map(pair)
            .map(|pair| regression(pair).abs())
            .fold(0.0, f64::max);
        let change = regression(found);
        let band = Band::of(change, noise);
        worst = worst.max(band);
        let direction = if change > 0.0 { "worse" } else { "better" };
        line(format_args!(
            "{:<11} {key:<18} {:>14.3} {:>14.3} {:>6.1} % {direction} (noise {:.1} %)",
            band.name(),
            found.baseline,
            found.current,
            100.0 * change.abs(),
            100.0 * noise
        ));
    }
    (report, worst)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let path = &to_read(Some(path));
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let receipt: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a receipt", path.display()))?;
    let rate = receipt.get("tokens_per_second");
    // A single token has no rate.
    let has_rate =
        rate.is_some_and(|rate| rate.is_null() || rate.as_f64().is_some_and(|rate| rate > 0.0));
    ensure!(has_rate, "{} has no tokens_per_second", path.display());
    Ok(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn receipt(tokens_per_second: f64, prefill_ms: f64) -> Value {
        json!({ "tokens_per_second": tokens_per_second, "prefill_ms": prefill_ms, "kernel_set": "avx2" })
    }

    #[test]
    fn the_worst_figure_decides() {
        let base = receipt(100.0, 50.0);
        for (current, band) in [
            (receipt(100.0, 50.0), Band::Accepted),
            (receipt(300.0, 10.0), Band::Accepted),
            (receipt(94.0, 50.0), Band::Watch),
            (receipt(100.0, 56.0), Band::Investigate),
            (receipt(70.0, 56.0), Band::Escalate),
        ] {
            let (report, worst) = compare(&base, &current, &[]);
            assert_eq!(worst, band, "{report}");
        }
    }

    #[test]
    fn a_change_within_the_noise_of_the_baseline_is_accepted() {
        let (base, current) = (receipt(100.0, 50.0), receipt(85.0, 50.0));
        let (report, worst) = compare(
            &base,
            &current,
            &[receipt(98.0, 50.0), receipt(118.0, 50.0)],
        );
        assert_eq!(worst, Band::Accepted, "{report}");
        assert!(report.contains("noise 18.0 %"), "{report}");
    }

    #[test]
    fn runs_of_a_single_token_are_compared_without_a_rate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipt.json");
        let mut single = receipt(1.0, 50.0);
        single["tokens_per_second"] = Value::Null;
        std::fs::write(&path, single.to_string()).unwrap();
        let (report, worst) = compare(&single, &read(&path).unwrap(), &[]);
        assert!(
            worst == Band::Accepted && !report.contains("tokens_per_second"),
            "{report}"
        );
        for other in [
            json!({}),
            json!({ "tokens_per_second": 0.0 }),
            json!({ "tokens_per_second": "fast" }),
        ] {
            std::fs::write(&path, other.to_string()).unwrap();
            assert!(read(&path).is_err(), "{other}");
        }
    }

    #[test]
    fn another_kernel_set_is_shown() {
        let mut current = receipt(100.0, 50.0);
        current["kernel_set"] = "scalar".into();
        let (report, _) = compare(&receipt(100.0, 50.0), &current, &[]);
        assert!(
            report.contains("kernel_set: \"avx2\" before, \"scalar\" now"),
            "{report}"
        );
    }
}
