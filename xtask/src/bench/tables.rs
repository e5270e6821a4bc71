//! `xtask bench tables`: measures the tables of `docs/performance.md` in one run on a quiet
//! machine.
//!
//! One `bitnet bench` shows how cost grows with threads, context and batch. Options (packing, head,
//! sparsity, instruction set) and other engines are compared in turns.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::engines::{self, Engine, Named, Round, Setup};
use crate::circumstances::Circumstances;
use crate::marked;

const DOCUMENT: &str = "docs/performance.md";
/// Positions before the decoded token.
const CONTEXTS: &str = "128,512,1024,2048,4096";
/// Numbers of sequences decoded together.
const BATCHES: &str = "2,4,8,16,32";

/// What to measure with.
#[derive(clap::Args)]
pub struct Options {
    /// A model with dense weights, from `model make FILE --shape 2b4t`
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// A model with a sparse feed-forward network
    #[arg(long, value_name = "FILE")]
    sparse_model: Option<PathBuf>,
    /// A model of another shape. Can be repeated
    #[arg(long, value_name = "FILE")]
    other: Vec<PathBuf>,
    /// Our program (default: `bitnet` beside this program)
    #[arg(long, value_name = "FILE")]
    bitnet: Option<PathBuf>,
    /// Another engine, as for `bench engines`
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Named>,
    /// Where a peer prints its speeds, as for `bench engines`
    #[arg(long, value_name = "NAME=PREFILL|DECODE")]
    figures: Vec<Named>,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Numbers of threads
    #[arg(
        short,
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "2,1"
    )]
    threads: Vec<usize>,
    /// Write the tables into docs/performance.md instead of printing them
    #[arg(long)]
    write: bool,
}

/// Measures and prints the tables, or replaces the ones in the document.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let program = engines::program(options.bitnet.as_deref())?;
    let conditions = engines::conditions(&Circumstances::now(root)?);
    let mut out = format!(
        "Measured {conditions}. Medians of {} rounds. `share` is the share of the memory's read rate, or of the peak rate of \
         int8 products, measured beside each run. Made by `cargo run --release -p xtask -- bench tables`.\n",
        options.rounds
    );
    growth(&program, options, &mut out)?;
    choices(&program, options, &mut out)?;
    shapes(&program, options, &mut out)?;
    peers(&program, options, &mut out)?;
    if !options.write {
        print!("{out}");
        return Ok(());
    }
    marked::write(&root.join(DOCUMENT), "performance", &out)
}

/// One `bitnet bench` over threads, contexts and batches.
fn growth(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    let report = bench(
        program,
        &options.model,
        options,
        &["--context", CONTEXTS, "--batch", BATCHES, "-n", "32"],
    )?;
    let runs = report["runs"].as_array().context("runs")?;
    writeln!(out, "\n### Threads, context, batch\n")?;
    writeln!(
        out,
        "Loaded in {:.2} s.\n",
        report["load_ms"].as_f64().unwrap_or(0.0) / 1e3
    )?;
    writeln!(
        out,
        "| | threads | tokens/s | ms a step | MB a step | GB/s read | share |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    runs.iter()
        .try_for_each(|run| writeln!(out, "{}", row(run)))?;
    Ok(())
}

/// A run of `bitnet bench` as a row.
fn row(run: &Value) -> String {
    let number = |key: &str| run[key].as_f64().unwrap_or(f64::NAN);
    let (context, batch, threads) = (number("context"), number("batch"), number("threads"));
    let speed = run["tokens_per_second"]["median"]
        .as_f64()
        .unwrap_or(f64::NAN);
    if run["what"] == "prefill" {
        let share = run["share_of_peak"].as_f64();
        let share = share.map_or_else(String::new, |share| {
            format!("{:.0} % of products", 1e2 * share)
        });
        return format!("| prefill of {context} | {threads} | {speed:.1} | | | | {share} |");
    }
    let what = if batch > 1.0 {
        format!("{batch} rows after {context}")
    } else {
        format!("decode after {context}")
    };
    let (step, bytes) = (number("step_ms"), number("step_bytes") / 1e6);
    let (rate, share) = (
        number("bytes_per_second") / 1e9,
        1e2 * number("share_of_read_probe"),
    );
    format!(
        "| {what} | {threads} | {speed:.1} | {step:.2} | {bytes:.0} | {rate:.1} | {share:.0} % |"
    )
}

fn bench(
    program: &Path,
    model: &Path,
    options: &Options,
    arguments: &[&str],
) -> anyhow::Result<Value> {
    let threads: Vec<String> = options.threads.iter().map(usize::to_string).collect();
    let mut command = Command::new(program);
    command.args([
        "bench",
        "--json",
        "-t",
        &threads.join(","),
        "-r",
        &options.rounds.to_string(),
    ]);
    command.arg("-m").arg(model).args(arguments);
    let output = command
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Each option against the default choice.
fn choices(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    let dense = [
        ("default", ""),
        ("--packing 2", "--packing 2"),
        ("--head full", "--head full"),
        ("--memory low", "--memory low"),
        ("--kernels avx2", "--kernels avx2"),
        ("--kv-type f32", "--kv-type f32"),
    ];
    let sparse = [
        ("default", ""),
        ("--ffn-sparsity off", "--ffn-sparsity off"),
    ];
    let models = [
        (Some(&options.model), "dense weights", &dense[..]),
        (options.sparse_model.as_ref(), "a sparse network", &sparse),
    ];
    for (model, what, choices) in models {
        let Some(model) = model else { continue };
        let engines = choices
            .iter()
            .map(|(name, arguments)| engines::ours(program, model, name, arguments));
        writeln!(
            out,
            "\n### Choices: {what}\n\nA prompt of 128, then 64 tokens."
        )?;
        in_turns(engines.collect(), options, 128, out)?;
    }
    Ok(())
}

/// Other shapes, each with its shares.
fn shapes(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    if options.other.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n### Other shapes\n\n| | | threads | tokens/s | ms a step | MB a step | GB/s read | share |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for model in &options.other {
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let report = bench(program, model, options, &["-n", "32"])?;
        let runs = report["runs"].as_array().context("runs")?;
        runs.iter()
            .try_for_each(|run| writeln!(out, "| {name} {}", row(run)))?;
    }
    Ok(())
}

/// Our engine and the peers, with short and long prompts.
fn peers(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    if options.peer.is_empty() {
        return Ok(());
    }
    for prompt in [128, 512] {
        let mut engines = vec![engines::ours(program, &options.model, "bitnet", "")];
        engines.extend(engines::peers(&options.peer, &options.figures)?);
        writeln!(
            out,
            "\n### Other engines\n\nA prompt of {prompt}, then 64 tokens."
        )?;
        in_turns(engines, options, prompt, out)?;
    }
    Ok(())
}

fn in_turns(
    engines: Vec<Engine>,
    options: &Options,
    prompt: usize,
    out: &mut String,
) -> anyhow::Result<()> {
    let setup = Setup {
        engines,
        rounds: options.rounds,
        threads: options.threads.clone(),
        prompt,
        predict: 64,
    };
    let rounds = engines::measure(&setup)?;
    for &threads in &setup.threads {
        let on_threads: Vec<&Round> = rounds
            .iter()
            .filter(|round| round.threads == threads)
            .collect();
        writeln!(
            out,
            "\n{threads} thread{}:\n",
            if threads == 1 { "" } else { "s" }
        )?;
        out.push_str(&engines::summaries(&setup.engines, &on_threads)?);
    }
    Ok(())
}
