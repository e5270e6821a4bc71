//! What a record was made with and on.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use serde::Serialize;

/// When, from what, with what, on what.
#[derive(Serialize)]
pub struct Circumstances {
    /// UTC.
    pub date: String,
    pub commit: String,
    /// Whether the tree held changes that the commit does not.
    pub modified: bool,
    pub rustc: String,
    pub cpu: String,
    pub threads: usize,
}

impl Circumstances {
    /// Those of this moment.
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

/// What a command prints, trimmed.
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
