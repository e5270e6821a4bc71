//! `xtask ci`: runs `.ci/run`, with `--full` also the slow checks, and records what ran.

mod python;
mod steps;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::circumstances::Circumstances;
use steps::{Step, names, on_path, step, succeed};

/// The version to install if cargo-fuzz is missing.
const CARGO_FUZZ: &str = "cargo-fuzz@0.13.2";
/// Maximum size of one allocation for an input of a few kilobytes, in MiB.
const FUZZ_MALLOC_MIB_MAX: u32 = 64;
/// Random request bodies for each endpoint of the server.
const FUZZED_BODIES: &str = "5000";
/// Maximum seconds for one input, in a build with checks and coverage on a busy machine.
const FUZZ_INPUT_SECONDS_MAX: u32 = 10;
/// Maximum bytes of an input: some room above the largest seed.
const FUZZ_INPUT_BYTES_MAX: u32 = 1 << 16;

/// Printed below the options.
const STEPS: &str = "\
Without --full: .ci/run
  tests, rustfmt, clippy, rustdoc, release build, ARM under qemu, cargo deny    about 22 min

With --full, also:
  tests/clients    real clients against `bitnet serve`, each file with pytest   about 20 min
  tests/templates  chat templates compared with jinja2, if the folder exists    about 2 min
  bitnet-python    the package for Python: clippy, build, pytest, Ray           about 12 min
  determinism      the matrix of docs/determinism.md 20 times under load        about 11 min
  serve faults     a server overloaded for --soak-seconds                       about 5 min
  serve soak       four servers, each under mixed faults for --soak-seconds     about 9 min
  serve churn      state that comes and goes for --soak-seconds                 about 2 min
  serve fuzz       5000 random bodies for each endpoint                         about 2 min
  fuzz             each target of fuzz/ for --fuzz-seconds                      about 10 min

Times are for two cores, after a first build. Python packages are installed into target/tools from
the requirements files (about 8 GB, most of it torch for lm-eval), npm packages from
tests/clients/package.json; their versions are printed. Chromium is installed with apt-get if
missing; without it, or without npm, the tests that need it are skipped. The record goes to
ci/records/DATE.json, which git ignores.";

#[derive(clap::Args)]
#[command(after_help = STEPS)]
pub struct Options {
    /// Also run the slow checks, and write a record
    #[arg(long)]
    full: bool,
    /// Seconds for each fuzz target
    #[arg(long, value_name = "N", default_value_t = 30, requires = "full")]
    fuzz_seconds: u32,
    /// Seconds for each server that is overloaded, gets mixed faults or has state that comes and goes
    #[arg(long, value_name = "N", default_value_t = 120, requires = "full")]
    soak_seconds: u32,
    /// Skip `.ci/run`, because it has just run
    #[arg(long, requires = "full")]
    only_slow: bool,
    /// Run only the Python tests: clients and templates
    #[arg(long, requires = "full")]
    only_clients: bool,
}

/// The record of a run: circumstances, versions of outside software, results.
#[derive(Serialize)]
struct Record {
    #[serde(flatten)]
    circumstances: Circumstances,
    /// Versions of Python packages, by environment.
    versions: BTreeMap<String, Vec<String>>,
    passed: bool,
    steps: Vec<Step>,
}

pub fn run(root: &Path, options: Options) -> anyhow::Result<()> {
    if !options.full {
        return succeed(&mut Command::new(root.join(".ci/run")));
    }
    let circumstances = Circumstances::now(root)?;
    let mut steps = Vec::new();
    // Find the program now, because `.ci/run` may replace it.
    let xtask = env::current_exe().context("finding this program")?;
    if !options.only_slow && !options.only_clients {
        steps.extend(run_ci(root)?);
    }
    let versions = python::run(root, &mut steps)?;
    if !options.only_clients {
        run_slow(root, &xtask, &options, &mut steps)?;
    }
    let passed = steps.iter().all(|step| step.passed);
    let record = Record {
        circumstances,
        versions,
        passed,
        steps,
    };
    let path = write(root, &record)?;
    summarize(&record);
    println!("record: {}", path.display());
    ensure!(passed, "the checks failed");
    Ok(())
}

/// The slow checks in Rust: determinism, the server under stress, fuzzing.
fn run_slow(
    root: &Path,
    xtask: &Path,
    options: &Options,
    steps: &mut Vec<Step>,
) -> anyhow::Result<()> {
    let mut determinism = Command::new(xtask);
    steps.push(step(
        determinism.current_dir(root).args(["check", "determinism"]),
    ));
    let soak_seconds = options.soak_seconds.to_string();
    for tests in ["faults", "soak", "churn"] {
        let length = ("BITNET_SOAK_SECONDS", &*soak_seconds);
        steps.push(step(&mut serve_command(root, tests, length)));
    }
    let fuzzed = ("PROPTEST_CASES", FUZZED_BODIES);
    steps.push(step(&mut serve_command(root, "fuzz", fuzzed)));
    let fuzz = cargo_fuzz(root)?;
    for target in names(&root.join("fuzz/fuzz_targets"), "", "rs")? {
        let mut command = fuzz_command(root, &fuzz, &target, options.fuzz_seconds)?;
        steps.push(step(&mut command));
    }
    Ok(())
}

/// Prints the versions of outside software and a line for each step.
fn summarize(record: &Record) {
    println!();
    for (environment, versions) in &record.versions {
        println!("{environment}: {}", versions.join(", "));
    }
    for step in &record.steps {
        let Step {
            command, seconds, ..
        } = step;
        match &step.skipped {
            Some(reason) => println!("skip          {command}: {reason}"),
            None if step.passed => println!("pass {seconds:5} s  {command}"),
            None => println!("FAIL {seconds:5} s  {command}"),
        }
    }
}

/// The steps of `.ci/run`, from its report.
fn run_ci(root: &Path) -> anyhow::Result<Vec<Step>> {
    let report = root
        .join("target")
        .join(format!("ci-steps-{}", std::process::id()));
    fs::create_dir_all(root.join("target"))?;
    fs::write(&report, "").with_context(|| format!("writing {}", report.display()))?;
    let whole = step(Command::new(root.join(".ci/run")).env("CI_STEPS", &report));
    let text = fs::read_to_string(&report)?;
    fs::remove_file(&report)?;
    let mut steps = text
        .lines()
        .map(reported_step)
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !whole.passed && steps.iter().all(|step| step.passed) {
        steps.push(whole);
    }
    Ok(steps)
}

/// A line of the report of `.ci/run`: result, seconds and command, separated by tabs.
fn reported_step(line: &str) -> anyhow::Result<Step> {
    let [result, seconds, command] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
        bail!(".ci/run reported {line:?}, expected result, seconds and command");
    };
    Ok(Step {
        command: command.to_owned(),
        passed: result == "pass",
        skipped: None,
        seconds: seconds.parse()?,
    })
}

/// Tests of the server that a variable makes longer or stricter. They run alone and one at a time,
/// because they have time limits.
fn serve_command(root: &Path, tests: &str, (variable, value): (&str, &str)) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).env(variable, value);
    command.args(["test", "-p", "bitnet-cli", "--test", "serve", "--locked"]);
    command.args(["--", "--test-threads=1", tests]);
    command
}

/// Runs a fuzz target for some seconds, on its seeds and on the inputs that earlier runs left in
/// `target/fuzz-corpus`.
///
/// `RUSTC_BOOTSTRAP` allows the sanitizers' nightly options in a stable compiler. The fuzzer is
/// C++, the only part of these checks that needs a C++ compiler.
fn fuzz_command(root: &Path, fuzz: &Path, target: &str, seconds: u32) -> anyhow::Result<Command> {
    let found = format!("target/fuzz-corpus/{target}");
    fs::create_dir_all(root.join(&found)).with_context(|| format!("making {found}"))?;
    let mut command = Command::new(fuzz);
    command.current_dir(root).env("RUSTC_BOOTSTRAP", "1");
    command.args(["run", target, &found, &format!("fuzz/corpus/{target}")]);
    command.arg("--").arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={FUZZ_INPUT_SECONDS_MAX}"));
    command.arg(format!("-malloc_limit_mb={FUZZ_MALLOC_MIB_MAX}"));
    command.arg(format!("-max_len={FUZZ_INPUT_BYTES_MAX}"));
    Ok(command)
}

/// Path of cargo-fuzz: on PATH, or in `target/tools`, where it is installed if missing.
fn cargo_fuzz(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = root.join("target/tools");
    if let Some(found) = on_path("cargo-fuzz", Some(tools.join("bin"))) {
        return Ok(found);
    }
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", CARGO_FUZZ, "--root"]);
    succeed(install.arg(&tools))?;
    Ok(tools.join("bin/cargo-fuzz"))
}

/// Writes the record to `ci/records/DATE.json`.
fn write(root: &Path, record: &Record) -> anyhow::Result<PathBuf> {
    let folder = root.join("ci/records");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let date = record.circumstances.date.replace(':', "-");
    let path = folder.join(date).with_extension("json");
    let text = serde_json::to_string_pretty(record)? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
