//! Criterion's results on disk: `<benchmark>/<baseline>/estimates.json`, below `target/criterion`
//! while they are made, and below `benchmarks/baselines/<baseline>/criterion` where they are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::WrongUsage;

/// Folders that Criterion makes beside the baselines.
const CRITERIONS_OWN: [&str; 4] = ["new", "base", "change", "report"];

/// What a benchmark of a baseline found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// The median time of an iteration.
    pub median_ns: f64,
    /// Of a benchmark that memory bounds: what share of the rate at which memory was read beside
    /// each sample it reached.
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

/// The folder in which a baseline is kept.
pub fn kept_folder(root: &Path, name: &str) -> PathBuf {
    root.join("benchmarks/baselines")
        .join(name)
        .join("criterion")
}

/// A baseline that is kept, or else was just made. A name that is neither is wrong usage, and so is
/// one that means two different ones.
pub fn load(root: &Path, name: &str) -> anyhow::Result<Findings> {
    if !is_baseline_name(name) {
        return Err(WrongUsage(format!("{name:?} is no name of a baseline")).into());
    }
    load_from([kept_folder(root, name), criterion_folder(root)], name)
}

fn load_from(places: [PathBuf; 2], name: &str) -> anyhow::Result<Findings> {
    let [kept, made] = places.each_ref().map(|place| -> anyhow::Result<Findings> {
        folders(place, name)?
            .iter()
            .map(|folder| read(folder))
            .collect()
    });
    let (kept, made) = (kept?, made?);
    let [kept_place, made_place] = places.map(|place| place.display().to_string());
    match (kept.is_empty(), made.is_empty()) {
        (false, false) if kept != made => {
            let problem = format!(
                "there are two baselines {name}, which differ, in {kept_place} and {made_place}"
            );
            let remedy =
                format!("file the new one with `bench-save --force {name}`, or remove either");
            return Err(WrongUsage(format!("{problem}: {remedy}")).into());
        }
        (false, _) => return Ok(kept),
        (true, false) => return Ok(made),
        (true, true) => {}
    }
    let how = format!(
        "make it with `cargo bench --no-default-features --features cpu,bench -- --save-baseline {name}`"
    );
    Err(WrongUsage(format!(
        "there is no baseline {name} in {kept_place} or {made_place}; {how}"
    ))
    .into())
}

/// Names that are one folder, which Criterion does not use itself.
pub fn is_baseline_name(name: &str) -> bool {
    !CRITERIONS_OWN.contains(&name)
        && !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        && !name.starts_with('.')
}

/// The folders below `folder` that hold a benchmark's results for the baseline, sorted.
pub fn folders(folder: &Path, baseline: &str) -> anyhow::Result<Vec<PathBuf>> {
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
}

/// What a benchmark writes beside Criterion's files if memory bounds it.
#[derive(Deserialize)]
struct ReadProbe {
    share: f64,
}

fn read(folder: &Path) -> anyhow::Result<(String, Finding)> {
    fn json<T: for<'a> Deserialize<'a>>(path: PathBuf) -> anyhow::Result<T> {
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not Criterion's", path.display()))
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
            share_of_read,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(place: &Path, name: &str, median_ns: f64) {
        let folder = place.join("group/bench").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("benchmark.json"),
            r#"{"full_id":"group/bench"}"#,
        )
        .unwrap();
        fs::write(
            folder.join("estimates.json"),
            format!(r#"{{"median":{{"point_estimate":{median_ns}}}}}"#),
        )
        .unwrap();
    }

    #[test]
    fn a_name_of_two_different_baselines_is_wrong_usage() {
        let root = tempfile::tempdir().unwrap();
        let places = ["kept", "made"].map(|folder| root.path().join(folder));
        let load = || load_from(places.clone(), "main");
        assert!(load().unwrap_err().is::<WrongUsage>());
        write(&places[1], "main", 2.0);
        assert_eq!(load().unwrap()["group/bench"].median_ns, 2.0);
        write(&places[0], "main", 2.0);
        assert_eq!(load().unwrap().len(), 1, "the same, filed");
        write(&places[1], "main", 3.0);
        let error = load().unwrap_err();
        let text = error.to_string();
        assert!(
            error.is::<WrongUsage>()
                && places
                    .iter()
                    .all(|place| text.contains(place.to_str().unwrap())),
            "{text}"
        );
    }

    #[test]
    fn names_of_criterions_own_folders_are_refused() {
        for name in CRITERIONS_OWN.into_iter().chain(["", ".hidden", "a/b"]) {
            assert!(!is_baseline_name(name), "{name}");
        }
        assert!(is_baseline_name("2026-11-21") && is_baseline_name("new-kernel"));
    }
}
