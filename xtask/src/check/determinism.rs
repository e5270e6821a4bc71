//! `xtask check determinism`: repeats the matrix of docs/determinism.md while other processes keep
//! the CPU busy.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

#[derive(clap::Args)]
pub struct Options {
    /// Number of repetitions
    #[arg(long, value_name = "N", default_value_t = 20)]
    repeat: u32,
    /// Processes that compete for the CPU (default: one per hardware thread)
    #[arg(long, value_name = "N")]
    load: Option<usize>,
}

/// Processes, killed on drop.
struct Load(Vec<Child>);

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // The process may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Repeats the matrix under load. Fails at the first failing run.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let matrix = build(root)?;
    let count = options
        .load
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let program = std::env::current_exe().context("finding this program")?;
    let busy = || {
        Command::new(&program)
            .args(["check", "busy"])
            .stdin(Stdio::piped())
            .spawn()
            .context("starting a busy process")
    };
    let _load = Load((0..count).map(|_| busy()).collect::<anyhow::Result<_>>()?);
    for round in 1..=options.repeat {
        println!(
            "== round {round} of {}, beside {count} busy processes",
            options.repeat
        );
        let mut command = Command::new(&matrix);
        command
            .current_dir(root.join("crates/bitnet-models"))
            .args(["--quiet", "determinism::"]);
        let status = command
            .status()
            .with_context(|| format!("running {}", matrix.display()))?;
        ensure!(status.success(), "the matrix failed: {status}");
    }
    println!(
        "{} rounds passed, beside {count} busy processes",
        options.repeat
    );
    Ok(())
}

/// Builds the test program with the matrix, before the load starts. Returns its path.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.current_dir(root).args([
        "test",
        "-p",
        "bitnet-models",
        "--test",
        "models",
        "--no-run",
    ]);
    let output = command
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "building the matrix failed: {}",
        output.status
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs =
        programs.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs
        .next_back()
        .context("cargo reported no test program of bitnet-models")
}

/// Computes and touches memory until standard input ends, that is, until its parent exits.
pub fn busy() -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let mut buffer = vec![1u64; 1 << 20];
        loop {
            for index in 1..buffer.len() {
                buffer[index] = buffer[index - 1]
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(buffer[index]);
            }
            std::hint::black_box(&mut buffer);
        }
    });
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the end of standard input")?;
    Ok(())
}
