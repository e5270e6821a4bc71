//! `xtask bench compare`: compares the benchmarks of two baselines against the regression bands.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

use super::baselines::{Finding, Findings, load};
use super::record;
use crate::WrongUsage;
use crate::bands::{Band, Pair};

#[derive(clap::Args)]
pub struct Options {
    /// The baseline to compare with
    base: String,
    /// The baseline to judge
    new: String,
    /// Another baseline of the program that made BASE; the difference between the two is noise. Can
    /// be repeated
    #[arg(long, value_name = "NAME")]
    again: Vec<String>,
    /// Folder of the record (default: benchmarks/record)
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
    Markdown,
}

/// A benchmark that both baselines have.
#[derive(Debug, Serialize)]
struct Row {
    benchmark: String,
    unit: Unit,
    base: f64,
    new: f64,
    /// The regression as a share of the base; negative for an improvement.
    change: f64,
    /// The largest difference between the base and its repetitions, as a share.
    noise: f64,
    band: &'static str,
    #[serde(skip)]
    rank: Band,
}

/// The figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Unit {
    /// The median time.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// For benchmarks bound by memory: the share they reached of the rate at which memory was read
    /// at the time, because that rate changes from minute to minute.
    #[serde(rename = "share of read")]
    ShareOfRead,
}

/// The result of a comparison.
#[derive(Debug, Serialize)]
struct Comparison {
    base: String,
    new: String,
    again: Vec<String>,
    /// The worst band.
    worst: &'static str,
    benchmarks: Vec<Row>,
    only_in_base: Vec<String>,
    only_in_new: Vec<String>,
    #[serde(skip)]
    worst_rank: Band,
}

/// Prints a line for each benchmark. The exit code is that of the worst band.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let record = record::folder(root, options.record.as_deref());
    let load = |name: &str| load(root, &record, name);
    let (base, new) = (load(&options.base)?, load(&options.new)?);
    let again = options
        .again
        .iter()
        .map(|name| load(name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let comparison = compare(options, &base, &new, &again)?;
    match options.format {
        Format::Human => print!("{}", human(&comparison)),
        Format::Json => println!("{}", serde_json::to_string_pretty(&comparison)?),
        Format::Markdown => print!("{}", markdown(&comparison)),
    }
    Ok(comparison.worst_rank.exit_code())
}

fn compare(
    options: &Options,
    base: &Findings,
    new: &Findings,
    again: &[Findings],
) -> anyhow::Result<Comparison> {
    let rows = base.iter().filter_map(|(benchmark, found)| {
        let again: Vec<Finding> = again
            .iter()
            .filter_map(|findings| findings.get(benchmark).copied())
            .collect();
        Some(row(benchmark, *found, *new.get(benchmark)?, &again))
    });
    let benchmarks: Vec<Row> = rows.collect();
    if benchmarks.is_empty() {
        return Err(WrongUsage(format!(
            "{} and {} have no benchmark in common",
            options.base, options.new
        ))
        .into());
    }
    let worst_rank = benchmarks
        .iter()
        .map(|row| row.rank)
        .max()
        .unwrap_or(Band::Accepted);
    let missing = |from: &Findings, of: &Findings| {
        of.keys()
            .filter(|id| !from.contains_key(*id))
            .cloned()
            .collect()
    };
    Ok(Comparison {
        base: options.base.clone(),
        new: options.new.clone(),
        again: options.again.clone(),
        worst: worst_rank.name(),
        benchmarks,
        only_in_base: missing(new, base),
        only_in_new: missing(base, new),
        worst_rank,
    })
}

fn row(benchmark: &str, base: Finding, new: Finding, again: &[Finding]) -> Row {
    let share = |of: Finding| Some((base.share_of_read?, of.share_of_read?));
    let worse = |of: Finding| match share(of) {
        Some((baseline, current)) => Pair { baseline, current }.loss(),
        None => Pair {
            baseline: base.median_ns,
            current: of.median_ns,
        }
        .growth(),
    };
    let (unit, (base, found)) = match share(new) {
        Some(shares) => (Unit::ShareOfRead, shares),
        None => (Unit::Nanoseconds, (base.median_ns, new.median_ns)),
    };
    let noise = again
        .iter()
        .map(|again| worse(*again).abs())
        .fold(0.0, f64::max);
    let change = worse(new);
    let rank = Band::of(change, noise);
    Row {
        benchmark: benchmark.to_owned(),
        unit,
        base,
        new: found,
        change,
        noise,
        band: rank.name(),
        rank,
    }
}

/// A line for each benchmark. The worst come last, where a terminal shows them.
fn human(comparison: &Comparison) -> String {
    let mut out = String::new();
    let mut rows: Vec<&Row> = comparison.benchmarks.iter().collect();
    rows.sort_by_key(|row| row.rank);
    let width = rows
        .iter()
        .map(|row| row.benchmark.chars().count())
        .max()
        .unwrap_or(0);
    for row in rows {
        let Row {
            benchmark, band, ..
        } = row;
        let [base, new] = [row.base, row.new].map(|value| shown(row.unit, value));
        let _ = writeln!(
            out,
            "{band:<11} {benchmark:<width$} {base:>12} {new:>12}  {}",
            change(row)
        );
    }
    out += &missing(comparison);
    let _ = writeln!(out, "{}", summary(comparison));
    out
}

fn markdown(comparison: &Comparison) -> String {
    let Comparison { base, new, .. } = comparison;
    let mut out =
        format!("| benchmark | {base} | {new} | change | band |\n|---|---:|---:|---:|---|\n");
    for row in &comparison.benchmarks {
        let [base, new] = [row.base, row.new].map(|value| shown(row.unit, value));
        let _ = writeln!(
            out,
            "| {} | {base} | {new} | {} | {} |",
            row.benchmark,
            change(row),
            row.band
        );
    }
    let _ = write!(out, "\n{}{}\n", missing(comparison), summary(comparison));
    out
}

fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::ShareOfRead => format!("{:.1} % read", 100.0 * value),
        Unit::Nanoseconds if value < 1e3 => format!("{value:.1} ns"),
        Unit::Nanoseconds if value < 1e6 => format!("{:.2} µs", value / 1e3),
        Unit::Nanoseconds => format!("{:.3} ms", value / 1e6),
    }
}

fn change(row: &Row) -> String {
    let direction = if row.change > 0.0 { "worse" } else { "better" };
    format!(
        "{:.1} % {direction} (noise {:.1} %)",
        100.0 * row.change.abs(),
        100.0 * row.noise
    )
}

/// A line for each benchmark that only one baseline has.
fn missing(comparison: &Comparison) -> String {
    let Comparison {
        base,
        new,
        only_in_base,
        only_in_new,
        ..
    } = comparison;
    let line = |id: &String, name: &str| format!("only in {name}: {id}\n");
    only_in_base
        .iter()
        .map(|id| line(id, base))
        .chain(only_in_new.iter().map(|id| line(id, new)))
        .collect()
}

fn summary(comparison: &Comparison) -> String {
    let Comparison {
        base,
        new,
        again,
        benchmarks,
        worst,
        ..
    } = comparison;
    let count = |band: Band| benchmarks.iter().filter(|row| row.rank == band).count();
    let [accepted, watch, investigate, escalate] = [
        Band::Accepted,
        Band::Watch,
        Band::Investigate,
        Band::Escalate,
    ]
    .map(count);
    let noise = match again.len() {
        0 => "noise unknown, because no --again was given".to_owned(),
        _ => {
            let noise = benchmarks.iter().map(|row| row.noise).fold(0.0, f64::max);
            format!(
                "noise by {}: up to {:.1} %",
                again.join(", "),
                100.0 * noise
            )
        }
    };
    format!(
        "{new} against {base}: {} benchmarks, {accepted} ok, {watch} to watch, {investigate} to investigate, {escalate} to \
         escalate; {noise}; {worst}",
        benchmarks.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            base: "a".into(),
            new: "b".into(),
            again: vec![],
            record: None,
            format: Format::Human,
        }
    }

    fn times(times: &[(&str, f64)]) -> Findings {
        let finding = |median_ns| Finding {
            median_ns,
            interval_ns: [median_ns; 2],
            share_of_read: None,
        };
        times
            .iter()
            .map(|(id, ns)| ((*id).to_owned(), finding(*ns)))
            .collect()
    }

    #[test]
    fn the_worst_benchmark_decides() {
        let base = times(&[("x", 100.0), ("y", 1000.0)]);
        for (x, y, band) in [
            (100.0, 1000.0, Band::Accepted),
            (50.0, 1050.0, Band::Accepted),
            (108.0, 1000.0, Band::Watch),
            (100.0, 1150.0, Band::Investigate),
            (121.0, 500.0, Band::Escalate),
        ] {
            let found = compare(&options(), &base, &times(&[("x", x), ("y", y)]), &[]).unwrap();
            assert_eq!(found.worst_rank, band, "{x} {y}");
        }
    }

    #[test]
    fn a_change_within_the_noise_of_the_base_is_accepted() {
        let base = times(&[("x", 100.0), ("y", 100.0)]);
        let again = times(&[("x", 70.0)]);
        let found = compare(
            &options(),
            &base,
            &times(&[("x", 128.0), ("y", 104.0)]),
            std::slice::from_ref(&again),
        )
        .unwrap();
        assert_eq!(found.worst_rank, Band::Accepted);
        assert!(
            human(&found).contains("28.0 % worse (noise 30.0 %)"),
            "{}",
            human(&found)
        );
        let found = compare(
            &options(),
            &base,
            &times(&[("x", 128.0), ("y", 121.0)]),
            &[again],
        )
        .unwrap();
        assert_eq!(found.worst_rank, Band::Escalate, "noise is per benchmark");
    }

    #[test]
    fn benchmarks_bound_by_memory_are_compared_by_their_share_of_the_read_rate() {
        let finding = |median_ns, share| {
            Findings::from([(
                "m".to_owned(),
                Finding {
                    median_ns,
                    interval_ns: [median_ns; 2],
                    share_of_read: Some(share),
                },
            )])
        };
        // Memory became half as fast, and so did the program.
        let found = compare(
            &options(),
            &finding(100.0, 0.9),
            &finding(200.0, 0.9),
            &[finding(400.0, 0.8)],
        )
        .unwrap();
        assert_eq!(
            (found.worst_rank, found.benchmarks[0].unit),
            (Band::Accepted, Unit::ShareOfRead)
        );
        assert!((found.benchmarks[0].noise - 1.0 / 9.0).abs() < 1e-9);
        // The program became slower although memory is twice as fast.
        let found = compare(&options(), &finding(100.0, 0.9), &finding(90.0, 0.6), &[]).unwrap();
        assert_eq!(found.worst_rank, Band::Escalate);
        assert!(
            markdown(&found).contains("| m | 90.0 % read | 60.0 % read | 33.3 % worse"),
            "{}",
            markdown(&found)
        );
    }

    #[test]
    fn benchmarks_in_only_one_baseline_are_named() {
        let (base, new) = (
            times(&[("x", 1.0), ("gone", 1.0)]),
            times(&[("x", 1.0), ("added", 1.0)]),
        );
        let text = human(&compare(&options(), &base, &new, &[]).unwrap());
        assert!(
            text.contains("only in a: gone\nonly in b: added\n"),
            "{text}"
        );
        let error = compare(&options(), &base, &times(&[("z", 1.0)]), &[]).unwrap_err();
        assert!(error.is::<WrongUsage>(), "{error}");
    }
}
