//! `xtask determinism`: the matrix of docs/determinism.md again and again, while other processes keep the CPU busy.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

#[derive(clap::Args)]
pub struct Options {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 20)]
    repeat: u32,
    /// Processes that compete for the CPU meanwhile; as many as it has threads if not given
    #[arg(long, value_name = "N")]
    load: Option<usize>,
}

/// Processes that end with this value.
struct Load(Vec<Child>);

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended by itself is what was wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Repeats the matrix under load; fails at the first run that does.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    // Built before there is load.
    let matrix = |list: &[&str]| -> anyhow::Result<()> {
        let mut command = Command::new("cargo");
        command.current_dir(root).args(["test", "--quiet", "-p", "bitnet-models", "--test", "models"]).args(list);
        let status = command.status().context("running cargo")?;
        ensure!(status.success(), "the matrix failed: {status}");
        Ok(())
    };
    matrix(&["--no-run"])?;
    let count = options.load.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let program = std::env::current_exe().context("finding this program")?;
    let busy = || Command::new(&program).arg("busy").stdin(Stdio::piped()).spawn().context("starting a busy process");
    let _load = Load((0..count).map(|_| busy()).collect::<anyhow::Result<_>>()?);
    for round in 1..=options.repeat {
        println!("== round {round} of {}, beside {count} busy processes", options.repeat);
        matrix(&["determinism::"])?;
    }
    Ok(())
}

/// Computes and touches memory until standard input ends: when whoever started it goes away.
pub fn busy() -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let mut buffer = vec![1u64; 1 << 20];
        loop {
            for index in 1..buffer.len() {
                buffer[index] = buffer[index - 1].wrapping_mul(6_364_136_223_846_793_005).wrapping_add(buffer[index]);
            }
            std::hint::black_box(&mut buffer);
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the end of standard input")?;
    Ok(())
}
