//! The checks: `.ci/run`, and with `--full` what is too slow for it, with a receipt of what ran.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::circumstances::Circumstances;

/// What is installed where cargo-fuzz is missing.
const CARGO_FUZZ: &str = "cargo-fuzz@0.13.2";
/// Memory that one input of a few kilobytes may ask for at once, in MiB.
const FUZZ_MALLOC_MIB_MAX: u32 = 64;
/// Seconds for which a server is overloaded.
const SOAK_SECONDS: &str = "120";
/// Bodies that nobody would write, for each endpoint of the server.
const FUZZED_BODIES: &str = "5000";
/// Seconds that one input may take, in a build with checks and coverage on a busy machine.
const FUZZ_INPUT_SECONDS_MAX: u32 = 10;
/// Bytes of the longest input: some room above the largest seed.
const FUZZ_INPUT_BYTES_MAX: u32 = 1 << 16;

#[derive(clap::Args)]
pub struct Options {
    /// Run the slow checks too, and write a receipt
    #[arg(long)]
    full: bool,
    /// Seconds for each fuzz target
    #[arg(long, default_value_t = 30, requires = "full")]
    fuzz_seconds: u32,
    /// Leave `.ci/run` out: it has just run
    #[arg(long, requires = "full")]
    only_slow: bool,
    /// Run the tests of the server by its clients only
    #[arg(long, requires = "full")]
    only_clients: bool,
}

/// What ran, with what, on what, and how it went.
#[derive(Serialize)]
struct Receipt {
    #[serde(flatten)]
    circumstances: Circumstances,
    passed: bool,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    command: String,
    passed: bool,
    /// Why it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    seconds: u64,
}

pub fn run(root: &Path, options: Options) -> anyhow::Result<()> {
    if !options.full {
        return succeed(&mut Command::new(root.join(".ci/run")));
    }
    let circumstances = Circumstances::now(root)?;
    // Asked for now: `.ci/run` may build another in its place.
    let xtask = env::current_exe().context("finding this program")?;
    let mut steps = Vec::new();
    if !options.only_slow && !options.only_clients {
        steps.extend(run_ci(root)?);
    }
    steps.extend(run_clients(root)?);
    if !options.only_clients {
        steps.push(step(
            Command::new(&xtask).current_dir(root).arg("determinism"),
        ));
        steps.push(step(&mut serve_command(
            root,
            "faults",
            ("BITNET_SOAK_SECONDS", SOAK_SECONDS),
        )));
        steps.push(step(&mut serve_command(
            root,
            "fuzz",
            ("PROPTEST_CASES", FUZZED_BODIES),
        )));
        let fuzz = cargo_fuzz(root)?;
        for target in names(&root.join("fuzz/fuzz_targets"), "", "rs")? {
            steps.push(step(&mut fuzz_command(
                root,
                &fuzz,
                &target,
                options.fuzz_seconds,
            )?));
        }
    }

    let passed = steps.iter().all(|step| step.passed);
    let receipt = Receipt {
        circumstances,
        passed,
        steps,
    };
    let path = write(root, &receipt)?;
    for Step {
        command,
        passed,
        skipped,
        seconds,
    } in &receipt.steps
    {
        match skipped {
            None => println!(
                "{} {seconds:5} s  {command}",
                if *passed { "pass" } else { "FAIL" }
            ),
            Some(reason) => println!("skip          {command}: {reason}"),
        }
    }
    println!("receipt: {}", path.display());
    ensure!(passed, "the checks failed");
    Ok(())
}

/// The steps of `.ci/run`, as it reports them.
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

/// A line of the report of `.ci/run`: result, seconds and command, with tabs between them.
fn reported_step(line: &str) -> anyhow::Result<Step> {
    let [result, seconds, command] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
        bail!(".ci/run reported {line:?}, which is not result, seconds and command");
    };
    Ok(Step {
        command: command.to_owned(),
        passed: result == "pass",
        skipped: None,
        seconds: seconds.parse()?,
    })
}

/// Tests of the server that take longer, or are stricter, if a variable says so; by themselves,
/// since they hold times to limits.
fn serve_command(root: &Path, tests: &str, (variable, value): (&str, &str)) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).env(variable, value);
    command.args([
        "test",
        "-p",
        "bitnet-cli",
        "--test",
        "serve",
        "--locked",
        "--",
        "--test-threads=1",
        tests,
    ]);
    command
}

/// A fuzz target on its seeds, and on what earlier runs found and left in `target/fuzz-corpus`, for
/// a while.
///
/// The nightly switches of the sanitizers work in a stable compiler that is told it may have them.
/// The fuzzer itself is C++, the one thing here that needs a C++ compiler.
fn fuzz_command(root: &Path, fuzz: &Path, target: &str, seconds: u32) -> anyhow::Result<Command> {
    let found = format!("target/fuzz-corpus/{target}");
    fs::create_dir_all(root.join(&found)).with_context(|| format!("making {found}"))?;
    let mut command = Command::new(fuzz);
    command.current_dir(root).env("RUSTC_BOOTSTRAP", "1");
    command.args([
        "run",
        target,
        &found,
        &format!("fuzz/corpus/{target}"),
        "--",
    ]);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={FUZZ_INPUT_SECONDS_MAX}"));
    command.arg(format!("-malloc_limit_mb={FUZZ_MALLOC_MIB_MAX}"));
    command.arg(format!("-max_len={FUZZ_INPUT_BYTES_MAX}"));
    Ok(command)
}

/// The server as its clients see it: each file of tests/clients, with what it needs in an
/// environment under target/tools.
fn run_clients(root: &Path) -> anyhow::Result<Vec<Step>> {
    let build = [
        "build",
        "--release",
        "--locked",
        "-p",
        "bitnet-cli",
        "--message-format",
        "json-render-diagnostics",
    ];
    let mut command = Command::new("cargo");
    command.current_dir(root).args(build);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        shown(&command),
        output.status
    );
    // Cargo tells where the program lies, and it alone knows.
    let messages = String::from_utf8(output.stdout).context("reading what cargo says")?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .next_back();
    let program = program.context("cargo built no program")?;

    let (clients, litellm) = (
        python(root, "requirements")?,
        python(root, "requirements-litellm")?,
    );
    let browser = chromium();
    let mut steps = Vec::new();
    for name in names(&root.join("tests/clients"), "test_", "py")? {
        let python = if name == "test_litellm" {
            &litellm
        } else {
            &clients
        };
        let mut command = Command::new(python);
        let file = format!("tests/clients/{name}.py");
        command
            .current_dir(root)
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", &file])
            .env("BITNET", &program);
        if name == "test_page" {
            match &browser {
                Ok(browser) => drop(command.env("CHROMIUM", browser)),
                Err(problem) => {
                    steps.push(skipped(&command, format!("{problem:#}")));
                    continue;
                }
            }
        }
        steps.push(step(&mut command));
    }
    Ok(steps)
}

/// The Python of an environment that has what a file of tests/clients lists, made if it is not
/// there or another.
fn python(root: &Path, list: &str) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/tools").join(list);
    let wanted = root.join("tests/clients").join(list).with_extension("txt");
    let installed = folder.join("installed.txt");
    let python = folder.join("bin/python");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("reading {}", wanted.display()))?;
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == text) {
        return Ok(python);
    }
    succeed(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    succeed(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&wanted),
    )?;
    fs::write(&installed, text).with_context(|| format!("writing {}", installed.display()))?;
    Ok(python)
}

/// Where a Chromium is: on the path, or installed by Debian's package if we may.
fn chromium() -> anyhow::Result<PathBuf> {
    let known = || {
        ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find_map(|name| on_path(name, None))
    };
    if let Some(found) = known() {
        return Ok(found);
    }
    on_path("apt-get", None).context("there is no Chromium, and no apt-get to install one")?;
    succeed(Command::new("apt-get").args(["update", "-qq"]))
        .and_then(|()| {
            let install = [
                "install",
                "-y",
                "-qq",
                "--no-install-recommends",
                "chromium",
            ];
            succeed(
                Command::new("apt-get")
                    .args(install)
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            )
        })
        .context("there is no Chromium, and it cannot be installed")?;
    known().context("the package chromium has no Chromium")
}

/// The names of the files of a folder with this beginning and extension, without the latter,
/// sorted.
fn names(folder: &Path, beginning: &str, extension: &str) -> anyhow::Result<Vec<String>> {
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
        "{} holds no {beginning}*.{extension}",
        folder.display()
    );
    Ok(names)
}

/// Where a program is: on the path, or in the folder beside.
fn on_path(program: &str, beside: Option<PathBuf>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(beside)
        .map(|folder| folder.join(program))
        .find(|place| place.is_file())
}

/// Where cargo-fuzz is: on the path, or in `target/tools`, where it is put if it is nowhere.
fn cargo_fuzz(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = root.join("target/tools");
    if let Some(found) = on_path("cargo-fuzz", Some(tools.join("bin"))) {
        return Ok(found);
    }
    succeed(
        Command::new("cargo")
            .args(["install", "--locked", CARGO_FUZZ, "--root"])
            .arg(&tools),
    )?;
    Ok(tools.join("bin/cargo-fuzz"))
}

fn step(command: &mut Command) -> Step {
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

fn skipped(command: &Command, reason: String) -> Step {
    println!("\n== {}: skipped: {reason}", shown(command));
    Step {
        command: shown(command),
        passed: true,
        skipped: Some(reason),
        seconds: 0,
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    println!("\n== {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("running {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// The command as one would type it, without the folders of the programs.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Writes the receipt under `ci/receipts`, named by its date.
fn write(root: &Path, receipt: &Receipt) -> anyhow::Result<PathBuf> {
    let folder = root.join("ci/receipts");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!(
        "{}.json",
        receipt.circumstances.date.replace(':', "-")
    ));
    let text = serde_json::to_string_pretty(receipt)? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
