//! `xtask performance`: the tables of `docs/performance.md`, measured in one go on a quiet machine.
//!
//! How cost grows with threads, context and batch comes from one `bitnet bench`; choices (packing,
//! head, sparsity, instruction set) are held against each other in turns, and so are other
//! programs.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::circumstances::Circumstances;
use crate::compare::{self, Engine, Named, Round, Setup};
use crate::marked;

const DOCUMENT: &str = "docs/performance.md";
/// Positions before the token that is decoded.
const CONTEXTS: &str = "128,512,1024,2048,4096";
/// Sequences decoded at once.
const BATCHES: &str = "2,4,8,16,32";

/// What to measure with.
#[derive(clap::Args)]
pub struct Options {
    /// A model of dense weights: `make-model FILE --shape 2b4t`
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// One whose feed-forward network is sparse
    #[arg(long, value_name = "FILE")]
    sparse_model: Option<PathBuf>,
    /// Other models, to see that nothing is tuned to one shape; may be given more than once
    #[arg(long, value_name = "FILE")]
    other: Vec<PathBuf>,
    /// Our program; beside this one if not given
    #[arg(long, value_name = "FILE")]
    bitnet: Option<PathBuf>,
    /// Another program, as for `compare`
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Named>,
    /// Where a peer prints its speeds, as for `compare`
    #[arg(long, value_name = "NAME=PREFILL|DECODE")]
    figures: Vec<Named>,
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    rounds: usize,
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

/// Measures and prints the tables, or puts them where the document has its last ones.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let program = compare::program(options.bitnet.as_deref())?;
    let conditions = compare::conditions(&Circumstances::now(root)?);
    let mut out = format!(
        "Measured {conditions}. Medians of {} rounds; `share` is that of the rate at which memory was read, or of the peak of \
         int8 products, measured beside each run. Made by `cargo run --release -p xtask -- performance`.\n",
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

/// Each choice that has an option, against what is chosen by itself.
fn choices(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    let dense = [
        ("as chosen", ""),
        ("--packing 2", "--packing 2"),
        ("--head full", "--head full"),
        ("--memory low", "--memory low"),
        ("--kernels avx2", "--kernels avx2"),
        ("--kv-type f32", "--kv-type f32"),
    ];
    let sparse = [
        ("as chosen", ""),
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
            .map(|(name, arguments)| compare::ours(program, model, name, arguments));
        writeln!(
            out,
            "\n### Choices: {what}\n\nA prompt of 128, then 64 tokens."
        )?;
        in_turns(engines.collect(), options, 128, out)?;
    }
    Ok(())
}

/// Other shapes, each by its shares.
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

/// Ours beside others, with short prompts and long ones.
fn peers(program: &Path, options: &Options, out: &mut String) -> anyhow::Result<()> {
    if options.peer.is_empty() {
        return Ok(());
    }
    for prompt in [128, 512] {
        let mut engines = vec![compare::ours(program, &options.model, "bitnet", "")];
        engines.extend(compare::peers(&options.peer, &options.figures)?);
        writeln!(
            out,
            "\n### Beside others\n\nA prompt of {prompt}, then 64 tokens."
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
    let rounds = compare::measure(&setup)?;
    for &threads in &setup.threads {
        let those: Vec<&Round> = rounds
            .iter()
            .filter(|round| round.threads == threads)
            .collect();
        writeln!(
            out,
            "\n{threads} thread{}:\n",
            if threads == 1 { "" } else { "s" }
        )?;
        out.push_str(&compare::summaries(&setup.engines, &those)?);
    }
    Ok(())
}
