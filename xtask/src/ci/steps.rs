//! Steps of the checks: commands that run, with their results.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;

/// A command and its result.
#[derive(Serialize)]
pub struct Step {
    pub command: String,
    pub passed: bool,
    /// The reason why it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    pub seconds: u64,
}

/// Runs a command. A failure is printed and recorded.
pub fn step(command: &mut Command) -> Step {
    let start = Instant::now();
    let result = succeed(command);
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    Step {
        command: shown(command),
        passed: result.is_ok(),
        skipped: None,
        seconds: start.elapsed().as_secs(),
    }
}

/// A command that does not run, for a reason.
pub fn skipped(command: &Command, reason: String) -> Step {
    println!("\n== {}: skipped: {reason}", shown(command));
    Step {
        command: shown(command),
        passed: true,
        skipped: Some(reason),
        seconds: 0,
    }
}

/// Runs a command.
///
/// # Errors
/// If it cannot start or fails.
pub fn succeed(command: &mut Command) -> anyhow::Result<()> {
    println!("\n== {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("running {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// The command as typed in a shell, without the program's folder.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The names, without extension, of a folder's files with this beginning and extension, sorted.
pub fn names(folder: &Path, beginning: &str, extension: &str) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().and_then(OsStr::to_str) == Some(extension) {
            let name = path
                .file_stem()
                .and_then(OsStr::to_str)
                .filter(|name| name.starts_with(beginning));
            names.extend(name.map(str::to_owned));
        }
    }
    names.sort();
    ensure!(
        !names.is_empty(),
        "{} has no {beginning}*.{extension}",
        folder.display()
    );
    Ok(names)
}

/// Path of a program: on PATH, or in the extra folder.
pub fn on_path(program: &str, extra: Option<PathBuf>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(extra)
        .map(|folder| folder.join(program))
        .find(|place| place.is_file())
}
