//! Baselines of `cargo bench`: Criterion's folders `BENCHMARK/BASELINE/estimates.json`, and the
//! record.
//!
//! Criterion writes below `target/criterion`. A copy of that folder may also be kept as
//! `benchmarks/baselines/BASELINE/criterion`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use super::record;
use crate::WrongUsage;

/// Folders that Criterion makes beside the baselines.
const CRITERIONS_OWN: [&str; 4] = ["new", "base", "change", "report"];

/// The result of one benchmark of a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// The median time of an iteration.
    pub median_ns: f64,
    /// The 95 % confidence interval of the median.
    pub interval_ns: [f64; 2],
    /// For a benchmark bound by memory: the share that it reached of the rate at which memory was
    /// read beside its samples.
    pub share_of_read: Option<f64>,
}

/// Findings by the benchmark's full name.
pub type Findings = BTreeMap<String, Finding>;

/// The folder in which `cargo bench` leaves its results.
pub fn criterion_folder(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |folder| root.join(folder));
    std::env::var_os("CRITERION_HOME").map_or_else(|| target.join("criterion"), PathBuf::from)
}

/// The baseline of that name: recorded, kept as a Criterion folder, or just measured. An unknown
/// name is wrong usage, and so is a name for baselines that differ.
pub fn load(root: &Path, record: &Path, name: &str) -> anyhow::Result<Findings> {
    check_name(name)?;
    let kept = root
        .join("benchmarks/baselines")
        .join(name)
        .join("criterion");
    let mut found = Vec::new();
    for folder in [kept, criterion_folder(root)] {
        let findings = read_folders(&folder, name)?;
        found.push((folder, findings));
    }
    let places = [record, &found[0].0, &found[1].0].map(|path| path.display().to_string());
    found.extend(record::find(record, name)?);
    found.retain(|(_, findings)| !findings.is_empty());
    one_of(found, name, &places)
}

/// The findings that all places have.
fn one_of(
    found: Vec<(PathBuf, Findings)>,
    name: &str,
    places: &[String; 3],
) -> anyhow::Result<Findings> {
    let problem = match &found[..] {
        [] => {
            let command = "cargo bench --no-default-features --features cpu,bench";
            format!(
                "there is no baseline {name} in {}; make it with `{command} -- --save-baseline {name}`",
                places.join(", ")
            )
        }
        [(first, findings), others @ ..] => {
            match others.iter().find(|(_, other)| other != findings) {
                None => return Ok(findings.clone()),
                Some((other, _)) => format!(
                    "two baselines {name} differ, in {} and {}; record the new one with \
                     `bench save --force {name}` or remove one",
                    first.display(),
                    other.display()
                ),
            }
        }
    };
    Err(WrongUsage(problem).into())
}

/// Fails unless the name can be a folder that Criterion does not use itself.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    match is_baseline_name(name) {
        true => Ok(()),
        false => Err(WrongUsage(format!("{name:?} is not a valid name")).into()),
    }
}

fn is_baseline_name(name: &str) -> bool {
    !CRITERIONS_OWN.contains(&name)
        && !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        && !name.starts_with('.')
}

/// The findings of a baseline below Criterion's folder; none if there is no such baseline.
pub fn read_folders(criterion: &Path, baseline: &str) -> anyhow::Result<Findings> {
    let folders = folders(criterion, baseline)?;
    folders.iter().map(|folder| read(folder)).collect()
}

/// The folders below `folder` with a benchmark's results for the baseline, sorted.
fn folders(folder: &Path, baseline: &str) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop().filter(|folder| folder.is_dir()) {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == baseline)
                && path.join("estimates.json").is_file()
            {
                found.push(path);
            } else if path.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// The file that a benchmark bound by memory writes beside Criterion's.
#[derive(Deserialize)]
struct ReadProbe {
    share: f64,
}

fn read(folder: &Path) -> anyhow::Result<(String, Finding)> {
    fn json<T: for<'a> Deserialize<'a>>(path: PathBuf) -> anyhow::Result<T> {
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a file of Criterion", path.display()))
    }
    let Benchmark { full_id } = json(folder.join("benchmark.json"))?;
    let Estimates { median } = json(folder.join("estimates.json"))?;
    let probe = folder.join("read_probe.json");
    let share_of_read = if probe.is_file() {
        Some(json::<ReadProbe>(probe)?.share)
    } else {
        None
    };
    Ok((
        full_id,
        Finding {
            median_ns: median.point_estimate,
            interval_ns: [
                median.confidence_interval.lower_bound,
                median.confidence_interval.upper_bound,
            ],
            share_of_read,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(median_ns: f64) -> Findings {
        let finding = Finding {
            median_ns,
            interval_ns: [0.9 * median_ns, 1.1 * median_ns],
            share_of_read: None,
        };
        Findings::from([("group/bench".to_owned(), finding)])
    }

    /// Writes Criterion's files.
    fn write(criterion: &Path, name: &str, median_ns: f64) {
        let folder = criterion.join("group/bench").join(name);
        fs::create_dir_all(&folder).unwrap();
        let benchmark = r#"{"full_id":"group/bench"}"#;
        fs::write(folder.join("benchmark.json"), benchmark).unwrap();
        let [low, high] = [0.9 * median_ns, 1.1 * median_ns];
        let estimates = format!(
            r#"{{"median":{{"point_estimate":{median_ns},"confidence_interval":{{"lower_bound":{low},"upper_bound":{high}}}}}}}"#
        );
        fs::write(folder.join("estimates.json"), estimates).unwrap();
    }

    #[test]
    fn a_name_of_two_different_baselines_is_wrong_usage() {
        let root = tempfile::tempdir().unwrap();
        let (record, kept) = (
            root.path().join("record"),
            root.path().join("benchmarks/baselines/main/criterion"),
        );
        let load = || load(root.path(), &record, "main");
        assert!(load().unwrap_err().is::<WrongUsage>());
        write(&kept, "main", 2.0);
        assert_eq!(load().unwrap(), finding(2.0), "a Criterion folder");
        let put = |median_ns| {
            let place = ["zen4", "2026-01-31"];
            record::put(&record, place, "main", "today", &finding(median_ns)).unwrap()
        };
        put(2.0);
        assert_eq!(load().unwrap(), finding(2.0), "the same, recorded");
        let recorded = put(3.0);
        let error = load().unwrap_err();
        let text = error.to_string();
        assert!(
            error.is::<WrongUsage>()
                && [kept, recorded]
                    .iter()
                    .all(|place| text.contains(place.to_str().unwrap())),
            "{text}"
        );
        fs::remove_dir_all(root.path().join("benchmarks")).unwrap();
        assert_eq!(load().unwrap(), finding(3.0), "the record alone");
    }

    #[test]
    fn names_of_criterions_own_folders_are_refused() {
        for name in CRITERIONS_OWN.into_iter().chain(["", ".hidden", "a/b"]) {
            assert!(!is_baseline_name(name), "{name}");
        }
        assert!(is_baseline_name("2026-11-21") && is_baseline_name("new-kernel"));
    }
}
