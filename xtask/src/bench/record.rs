//! Recorded baselines: one CSV file per machine and date, `benchmarks/record/MACHINE/DATE.csv`.
//!
//! A file begins with a comment line for each baseline, which says when, with which program and on
//! which machine it was measured. Then there is one line for each benchmark of each baseline.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::baselines::{Finding, Findings};

/// A line of a file: the measurement of one benchmark in one baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    baseline: String,
    benchmark: String,
    median_ns: f64,
    /// The 95 % confidence interval of the median.
    low_ns: f64,
    high_ns: f64,
    share_of_read: Option<f64>,
}

/// The baselines of one machine and date.
#[derive(Debug, Default, PartialEq)]
struct File {
    /// A line for each baseline, without `#`: its name, a colon, its circumstances.
    notes: Vec<String>,
    rows: Vec<Row>,
}

impl File {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let notes = text.lines().filter_map(|line| line.strip_prefix("# "));
        let mut reader = csv::ReaderBuilder::new()
            .comment(Some(b'#'))
            .from_reader(text.as_bytes());
        let rows = reader.deserialize().collect::<Result<Vec<Row>, _>>();
        Ok(Self {
            notes: notes.map(str::to_owned).collect(),
            rows: rows.with_context(|| format!("{} is not a record", path.display()))?,
        })
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let notes = self.notes.iter().map(|note| format!("# {note}\n"));
        let mut writer = csv::Writer::from_writer(notes.collect::<String>().into_bytes());
        for row in &self.rows {
            writer.serialize(row)?;
        }
        fs::write(path, writer.into_inner()?).with_context(|| format!("writing {}", path.display()))
    }

    fn findings(&self, baseline: &str) -> Findings {
        let rows = self.rows.iter().filter(|row| row.baseline == baseline);
        rows.map(|row| {
            let finding = Finding {
                median_ns: row.median_ns,
                interval_ns: [row.low_ns, row.high_ns],
                share_of_read: row.share_of_read,
            };
            (row.benchmark.clone(), finding)
        })
        .collect()
    }

    fn remove(&mut self, baseline: &str) {
        self.rows.retain(|row| row.baseline != baseline);
        self.notes
            .retain(|note| note.split(':').next() != Some(baseline));
    }

    fn add(&mut self, baseline: &str, circumstances: &str, findings: &Findings) {
        self.notes.push(format!("{baseline}: {circumstances}"));
        self.rows
            .extend(findings.iter().map(|(benchmark, finding)| Row {
                baseline: baseline.to_owned(),
                benchmark: benchmark.clone(),
                median_ns: finding.median_ns,
                low_ns: finding.interval_ns[0],
                high_ns: finding.interval_ns[1],
                share_of_read: finding.share_of_read,
            }));
    }
}

/// The given folder of records, or the repository's.
pub fn folder(root: &Path, given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| root.join("benchmarks/record"), Path::to_owned)
}

/// The recorded baseline of that name and its file, if there is one.
pub fn find(folder: &Path, baseline: &str) -> anyhow::Result<Option<(PathBuf, Findings)>> {
    for path in paths(folder)? {
        let findings = File::read(&path)?.findings(baseline);
        if !findings.is_empty() {
            return Ok(Some((path, findings)));
        }
    }
    Ok(None)
}

/// Records a baseline in the file of that machine and date (`2026-01-31`). A recorded baseline of
/// the same name is removed. Returns the file's path.
pub fn put(
    folder: &Path,
    [machine, date]: [&str; 2],
    baseline: &str,
    circumstances: &str,
    findings: &Findings,
) -> anyhow::Result<PathBuf> {
    if let Some((path, _)) = find(folder, baseline)? {
        let mut file = File::read(&path)?;
        file.remove(baseline);
        if file.rows.is_empty() {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        } else {
            file.write(&path)?;
        }
    }
    let path = folder.join(machine).join(date).with_extension("csv");
    let folder = folder.join(machine);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut file = match path.exists() {
        true => File::read(&path)?,
        false => File::default(),
    };
    file.add(baseline, circumstances, findings);
    file.write(&path)?;
    Ok(path)
}

/// All files of the record, sorted. A folder that does not exist has none.
fn paths(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder);
        let entries = entries.with_context(|| format!("listing {}", folder.display()))?;
        Ok(entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_, std::io::Error>>()?)
    };
    let mut found = Vec::new();
    if folder.is_dir() {
        for machine in list(folder)?.iter().filter(|path| path.is_dir()) {
            found.extend(list(machine)?);
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(median_ns: f64) -> Findings {
        let finding = |share_of_read| Finding {
            median_ns,
            interval_ns: [0.9 * median_ns, 1.1 * median_ns],
            share_of_read,
        };
        [("a, \"b\"/1", None), ("c", Some(0.75))]
            .map(|(name, share)| (name.to_owned(), finding(share)))
            .into()
    }

    #[test]
    fn a_recorded_baseline_is_found_with_all_its_digits() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, found) = (folder.path(), findings(1.0 / 3.0));
        assert_eq!(find(folder, "main").unwrap(), None);
        let path = put(folder, ["zen4", "2026-01-31"], "main", "today", &found).unwrap();
        assert_eq!(path, folder.join("zen4/2026-01-31.csv"));
        let other = findings(7.0);
        put(folder, ["zen4", "2026-01-31"], "other", "later", &other).unwrap();
        assert_eq!(find(folder, "main").unwrap(), Some((path.clone(), found)));
        assert_eq!(find(folder, "other").unwrap(), Some((path.clone(), other)));
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(
                "# main: today\n# other: later\n\
                 baseline,benchmark,median_ns,low_ns,high_ns,share_of_read\n\
                 main,\"a, \"\"b\"\"/1\",0.3333333333333333,"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_baseline_recorded_again_replaces_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let first = put(folder, ["a", "2026-01-31"], "main", "x", &findings(1.0)).unwrap();
        let kept = put(folder, ["a", "2026-01-30"], "kept", "y", &findings(3.0)).unwrap();
        let second = put(folder, ["b", "2026-02-01"], "main", "z", &findings(2.0)).unwrap();
        assert!(!first.exists() && kept.exists());
        assert_eq!(find(folder, "main").unwrap(), Some((second, findings(2.0))));
    }

    #[test]
    fn a_malformed_record_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zen4/2026-01-31.csv");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "baseline,benchmark,median_ns\nmain,a,fast\n").unwrap();
        let error = find(folder.path(), "main").unwrap_err().to_string();
        assert!(error.contains("2026-01-31.csv is not a record"), "{error}");
    }
}
