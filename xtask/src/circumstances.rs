//! When, with what and on what machine a record was made.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use serde::Serialize;

/// Date, commit, compiler and machine of a record.
#[derive(Serialize)]
pub struct Circumstances {
    /// UTC.
    pub date: String,
    pub commit: String,
    /// Whether the tree had uncommitted changes.
    pub modified: bool,
    pub rustc: String,
    pub cpu: String,
    pub threads: usize,
}

impl Circumstances {
    /// The date without the time: `2026-01-31`.
    pub fn day(&self) -> &str {
        self.date.split('T').next().unwrap_or(&self.date)
    }

    /// `commit 0123456789ab with changes`
    pub fn commit(&self) -> String {
        let commit = &self.commit[..self.commit.len().min(12)];
        let changes = if self.modified { " with changes" } else { "" };
        format!("commit {commit}{changes}")
    }

    /// The present ones.
    pub fn now(root: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: output(root, "git", &["rev-parse", "HEAD"])?,
            modified: !output(root, "git", &["status", "--porcelain"])?.is_empty(),
            rustc: output(root, "rustc", &["--version"])?,
            cpu: bitnet_inference::cpu_name(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = self.commit();
        let Self {
            date,
            rustc,
            cpu,
            threads,
            ..
        } = self;
        write!(f, "{date}, {commit}, {rustc}, {cpu}, {threads} threads")
    }
}

/// The trimmed output of a command.
fn output(root: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .current_dir(root)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
