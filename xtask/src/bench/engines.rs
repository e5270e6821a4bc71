//! `xtask bench engines`: runs our program and others in turns on one machine, and probes the
//! memory around each run.
//!
//! On a virtual machine the rate at which two threads read memory can change by half within
//! seconds, so figures from different minutes cannot be compared. Every round runs each engine
//! once, in rotating order, and probes the memory before and after each. Ratios are taken within
//! rounds, and rounds are grouped by the rate of the memory.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bitnet_inference::Device;
use bitnet_kernels::{READ_PROBE_BYTES, ReadProbe};
use serde_json::Value;

use crate::circumstances::Circumstances;
use crate::stats::median;

/// What to run and how often.
#[derive(clap::Args)]
pub struct Options {
    /// The model of our program
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Our program (default: `bitnet` beside this program)
    #[arg(long, value_name = "FILE")]
    bitnet: Option<PathBuf>,
    /// Our program with further arguments of `bitnet bench`, under a name. Can be repeated
    #[arg(long, value_name = "NAME=ARGUMENTS")]
    ours: Vec<Named>,
    /// Another engine: a shell command that prints the JSON of `llama-bench -o json`; {threads},
    /// {prompt} and {predict} are replaced by the numbers. Can be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Named>,
    /// Where a peer with other output prints the tokens per second of prefill and decode: a JSON
    /// pointer, or the text before the number
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
    /// Tokens of the prompt
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    prompt: usize,
    /// Tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    predict: usize,
    /// Where to write the tables (default: benchmarks/DATE-engines.md)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `NAME=TEXT`
#[derive(Clone, Debug)]
pub(crate) struct Named {
    name: String,
    text: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, text)) if !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                text: text.to_owned(),
            }),
            _ => Err("expected a name, = and a text".to_owned()),
        }
    }
}

/// A program to run.
pub(crate) struct Engine {
    name: String,
    command: String,
    /// Where the speeds of prefill and decode are; `None` for the JSON of `llama-bench -o json`.
    places: Option<[String; 2]>,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speeds {
    prefill: f64,
    decode: f64,
}

/// The state of the memory.
#[derive(Clone, Copy)]
struct Probe {
    /// Bytes per second, read by all threads together.
    read: f64,
    join: Duration,
}

/// One run of each engine with one number of threads.
pub(crate) struct Round {
    pub threads: usize,
    /// Before the first run, between them, after the last.
    probes: Vec<Probe>,
    /// In the order of the engines; `None` if a run failed.
    speeds: Vec<Option<Speeds>>,
}

/// Ranges of the memory's rate, in GB/s, that are reported apart.
const REGIMES: [(&str, std::ops::Range<f64>); 3] = [
    ("below 40 GB/s", 0.0..40.0),
    ("40 to 50 GB/s", 40.0..50.0),
    ("above 50 GB/s", 50.0..f64::INFINITY),
];

impl Round {
    fn read(&self) -> f64 {
        median(self.probes.iter().map(|probe| probe.read / 1e9)).unwrap_or(f64::NAN)
    }

    /// The range in which all probes lie; `None` if the rate changed between ranges.
    fn regime(&self) -> Option<&'static str> {
        let (name, range) = REGIMES
            .iter()
            .find(|(_, range)| range.contains(&self.read()))?;
        self.probes
            .iter()
            .all(|probe| range.contains(&(probe.read / 1e9)))
            .then_some(name)
    }
}

/// The engines, and how they run.
pub(crate) struct Setup {
    pub engines: Vec<Engine>,
    pub rounds: usize,
    pub threads: Vec<usize>,
    pub prompt: usize,
    pub predict: usize,
}

/// Runs all rounds, prints each when it ends, and writes the tables.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let program = program(options.bitnet.as_deref())?;
    let mut engines: Vec<Engine> = options
        .ours
        .iter()
        .map(|named| ours(&program, &options.model, &named.name, &named.text))
        .collect();
    if engines.is_empty() {
        engines.push(ours(&program, &options.model, "bitnet", ""));
    }
    engines.extend(peers(&options.peer, &options.figures)?);
    let Options {
        rounds,
        prompt,
        predict,
        ..
    } = *options;
    let setup = Setup {
        engines,
        rounds,
        threads: options.threads.clone(),
        prompt,
        predict,
    };
    let circumstances = Circumstances::now(root)?;
    let text = report(&setup, &circumstances, &measure(&setup)?)?;
    let path = match &options.output {
        Some(path) => path.clone(),
        None => {
            let name = format!("{}-engines.md", circumstances.day());
            root.join("benchmarks").join(name)
        }
    };
    fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
    println!("\n{text}\nwritten to {}", path.display());
    Ok(())
}

/// Runs all rounds and prints each when it ends.
pub(crate) fn measure(setup: &Setup) -> anyhow::Result<Vec<Round>> {
    let read = ReadProbe::new(READ_PROBE_BYTES);
    let mut rounds = Vec::new();
    for index in 0..setup.rounds {
        for &threads in &setup.threads {
            let round = run_round(setup, threads, index, &read);
            eprintln!("{}", round_line(&setup.engines, &round));
            rounds.push(round);
        }
    }
    Ok(rounds)
}

/// Our program: the given one, or the one beside this program.
pub(crate) fn program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?
            .with_file_name(format!("bitnet{}", std::env::consts::EXE_SUFFIX)),
    };
    ensure!(
        program.is_file(),
        "{} does not exist: build it with cargo build --release, or give its path with --bitnet",
        program.display()
    );
    Ok(program)
}

/// Our program with further arguments.
pub(crate) fn ours(program: &Path, model: &Path, name: &str, arguments: &str) -> Engine {
    let (program, model) = (program.display(), model.display());
    let what = "-t {threads} -p {prompt} -n {predict} -r 1 --json";
    Engine {
        name: name.to_owned(),
        command: format!("'{program}' bench -m '{model}' {what} {arguments}")
            .trim_end()
            .to_owned(),
        places: Some(
            ["prefill", "decode"].map(|phase| format!("/{phase}/tokens_per_second/median")),
        ),
    }
}

/// Other programs.
pub(crate) fn peers(peers: &[Named], figures: &[Named]) -> anyhow::Result<Vec<Engine>> {
    if let Some(Named { name, .. }) = figures
        .iter()
        .find(|f| peers.iter().all(|p| p.name != f.name))
    {
        return Err(crate::WrongUsage(format!(
            "--figures names {name}, but no --peer has that name"
        ))
        .into());
    }
    let engine = |Named { name, text }: &Named| Engine {
        name: name.clone(),
        command: text.clone(),
        places: figures
            .iter()
            .find(|figures| figures.name == *name)
            .map(|figures| {
                let (prefill, decode) = figures
                    .text
                    .split_once('|')
                    .unwrap_or((&figures.text, &figures.text));
                [prefill.to_owned(), decode.to_owned()]
            }),
    };
    Ok(peers.iter().map(engine).collect())
}

fn run_round(setup: &Setup, threads: usize, index: usize, read: &ReadProbe) -> Round {
    let probe = || {
        // Drop it before the engine starts, because its waiting threads would take CPU time.
        let probe = Device::cpu(threads).probe().expect("the CPU can be probed");
        Probe {
            read: probe.read_bytes_per_s(read),
            join: probe.join_latency(),
        }
    };
    let mut round = Round {
        threads,
        probes: vec![probe()],
        speeds: vec![None; setup.engines.len()],
    };
    for turn in 0..setup.engines.len() {
        let at = (index + turn) % setup.engines.len();
        let engine = &setup.engines[at];
        let command = engine.command.replace("{threads}", &threads.to_string());
        let command = command.replace("{prompt}", &setup.prompt.to_string());
        let command = command.replace("{predict}", &setup.predict.to_string());
        match speeds(engine, &command) {
            Ok(speeds) => round.speeds[at] = Some(speeds),
            Err(error) => eprintln!("{}: {error:#}", engine.name),
        }
        round.probes.push(probe());
    }
    round
}

/// Runs a command in a shell and reads the speeds from its output.
fn speeds(engine: &Engine, command: &str) -> anyhow::Result<Speeds> {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .with_context(|| format!("running {command}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command} failed: {}\n{}",
        output.status,
        last_lines(&errors)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let found = match &engine.places {
        Some([prefill, decode]) => figure(&text, prefill).zip(figure(&text, decode)),
        None => llama_bench(&text),
    };
    let (prefill, decode) =
        found.ok_or_else(|| anyhow!("{command} printed no speeds:\n{}", last_lines(&text)))?;
    Ok(Speeds { prefill, decode })
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// The number at a JSON pointer, or the number after the last occurrence of a text.
fn figure(text: &str, place: &str) -> Option<f64> {
    if place.starts_with('/') {
        let from = text.find(['{', '['])?;
        return serde_json::from_str::<Value>(&text[from..])
            .ok()?
            .pointer(place)?
            .as_f64();
    }
    let (_, after) = text.rsplit_once(place)?;
    let number = after.trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '=');
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

/// Prefill and decode speeds in the JSON of `llama-bench -o json`: the first test that only reads a
/// prompt, and the first that generates.
fn llama_bench(text: &str) -> Option<(f64, f64)> {
    let tests: Vec<Value> = serde_json::from_str(&text[text.find('[')?..]).ok()?;
    let generated = |test: &&Value| test["n_gen"].as_u64().unwrap_or(0) > 0;
    let speed = |test: &Value| test["avg_ts"].as_f64();
    let prefill = tests.iter().find(|test| !generated(test)).and_then(speed)?;
    let decode = tests.iter().find(generated).and_then(speed)?;
    Some((prefill, decode))
}

fn round_line(engines: &[Engine], round: &Round) -> String {
    let mut line = format!(
        "{} thread{}, {}:",
        round.threads,
        if round.threads == 1 { "" } else { "s" },
        round.regime().unwrap_or("changing")
    );
    for (engine, speeds) in engines.iter().zip(&round.speeds) {
        let text = speeds.map_or_else(
            || "failed".to_owned(),
            |s| format!("{:.1} and {:.1}", s.prefill, s.decode),
        );
        let _ = write!(line, "  {} {text}", engine.name);
    }
    line
}

/// The tables, in Markdown.
fn report(
    setup: &Setup,
    circumstances: &Circumstances,
    rounds: &[Round],
) -> Result<String, std::fmt::Error> {
    let names = setup.engines[1..].iter().map(|engine| engine.name.as_str());
    let mut out = format!(
        "# {} beside {}\n\n{}. ",
        setup.engines[0].name,
        list(names),
        conditions(circumstances)
    );
    writeln!(
        out,
        "Tokens/s for a prompt of {} tokens and {} generated tokens. {} rounds; the engines take turns within each. Medians, \
         with the least and greatest in brackets; a ratio is the median of the ratios within rounds.\n",
        setup.prompt, setup.predict, setup.rounds
    )?;
    for engine in &setup.engines {
        writeln!(
            out,
            "- {}: `{}`",
            engine.name,
            without_folders(&engine.command)
        )?;
    }
    for threads in setup.threads.iter().copied() {
        let of_threads: Vec<&Round> = rounds
            .iter()
            .filter(|round| round.threads == threads)
            .collect();
        writeln!(
            out,
            "\n## {threads} thread{}\n",
            if threads == 1 { "" } else { "s" }
        )?;
        write!(out, "{}", summaries(&setup.engines, &of_threads)?)?;
        writeln!(out, "\nRound by round, prefill and decode:\n")?;
        write!(out, "{}", round_table(&setup.engines, &of_threads)?)?;
    }
    Ok(out)
}

/// `2026-01-02T03:04:05Z, commit 0123456789ab, AMD EPYC`
pub(crate) fn conditions(circumstances: &Circumstances) -> String {
    let (Circumstances { date, cpu, .. }, commit) = (circumstances, circumstances.commit());
    format!("{date}, {commit}, {cpu}")
}

/// Medians of all rounds, then of the rounds in each range of the memory's rate, if there are
/// several.
pub(crate) fn summaries(engines: &[Engine], rounds: &[&Round]) -> Result<String, std::fmt::Error> {
    let mut out = summary(engines, rounds)?;
    for (name, _) in REGIMES {
        let in_regime: Vec<&Round> = rounds
            .iter()
            .copied()
            .filter(|round| round.regime() == Some(name))
            .collect();
        if !in_regime.is_empty() && in_regime.len() < rounds.len() {
            writeln!(
                out,
                "\nOnly rounds with memory {name} throughout, {} of {}:\n",
                in_regime.len(),
                rounds.len()
            )?;
            write!(out, "{}", summary(engines, &in_regime)?)?;
        }
    }
    Ok(out)
}

/// Medians of some rounds, and the ratio of ours to each.
fn summary(engines: &[Engine], rounds: &[&Round]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("| | prefill | decode | ");
    let ours = &engines[0].name;
    writeln!(
        out,
        "{ours} ÷ it, prefill | decode |\n|---|---|---|---|---|"
    )?;
    for (index, engine) in engines.iter().enumerate() {
        let figures = |get: fn(Speeds) -> f64| {
            let values: Vec<f64> = rounds
                .iter()
                .filter_map(|round| round.speeds[index].map(get))
                .collect();
            let ratio = |round: &&Round| Some(get(round.speeds[0]?) / get(round.speeds[index]?));
            (span(&values), median(rounds.iter().filter_map(ratio)))
        };
        let ((prefill, prefill_ratio), (decode, decode_ratio)) =
            (figures(|s| s.prefill), figures(|s| s.decode));
        let ratio = |ratio: Option<f64>| match (index, ratio) {
            (0, _) | (_, None) => String::new(),
            (_, Some(ratio)) => format!("{ratio:.2}"),
        };
        let (prefill_ratio, decode_ratio) = (ratio(prefill_ratio), ratio(decode_ratio));
        writeln!(
            out,
            "| {} | {prefill} | {decode} | {prefill_ratio} | {decode_ratio} |",
            engine.name
        )?;
    }
    Ok(out)
}

fn round_table(engines: &[Engine], rounds: &[&Round]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("| GB/s read | fork and join, µs |");
    engines
        .iter()
        .for_each(|engine| out.push_str(&format!(" {} |", engine.name)));
    writeln!(out, "\n|---|---|{}", "---|".repeat(engines.len()))?;
    for round in rounds {
        let reads: Vec<f64> = round.probes.iter().map(|probe| probe.read / 1e9).collect();
        let join = median(
            round
                .probes
                .iter()
                .map(|probe| probe.join.as_secs_f64() * 1e6),
        )
        .unwrap_or(f64::NAN);
        write!(out, "| {} | {join:.2} |", span(&reads))?;
        for speeds in &round.speeds {
            let text = speeds.map_or_else(
                || "failed".to_owned(),
                |s| format!("{:.1}, {:.1}", s.prefill, s.decode),
            );
            write!(out, " {text} |")?;
        }
        writeln!(out)?;
    }
    Ok(out)
}

/// Median, least and greatest value.
fn span(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    median(values.iter().copied()).map_or_else(
        || "–".to_owned(),
        |m| format!("{m:.1} ({least:.1}–{greatest:.1})"),
    )
}

/// `a, b and c`
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.split_last() {
        None => "no other engine".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

/// A command without the folders of its files, which differ by machine.
fn without_folders(command: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches('\'');
        bare.rsplit_once('/')
            .map_or(bare, |(_, name)| name)
            .to_owned()
    };
    command.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_found_in_the_output_of_programs() {
        let llama = r#"warning: none
            [{"n_prompt": 128, "n_gen": 0, "avg_ts": 101.5}, {"n_prompt": 128, "n_gen": 64, "avg_ts": 31.25}]"#;
        assert_eq!(llama_bench(llama), Some((101.5, 31.25)));
        assert_eq!(llama_bench("[]"), None);
        let text = "prefill: 12.5 t/s\nwarm\nprefill: 13.5 t/s\ndecode speed = 7 t/s";
        assert_eq!(
            (figure(text, "prefill"), figure(text, "decode speed")),
            (Some(13.5), Some(7.0))
        );
        assert_eq!(figure(text, "nothing"), None);
        assert_eq!(
            figure(r#"{"decode": {"median": 3.5}}"#, "/decode/median"),
            Some(3.5)
        );
    }

    #[test]
    fn rounds_are_grouped_by_the_rate_of_memory_and_ratios_taken_within_rounds() {
        let engine = |name: &str, command: &str| Engine {
            name: name.into(),
            command: command.into(),
            places: None,
        };
        let engines = [
            engine("ours", "'/a/b/bitnet' bench -m '/c/d.gguf' -t {threads}"),
            engine("theirs", "x/y -m z"),
        ];
        let round = |read: f64, ours, theirs| Round {
            threads: 2,
            probes: [1.0, 1.01]
                .map(|f| Probe {
                    read: f * read * 1e9,
                    join: Duration::from_nanos(200),
                })
                .to_vec(),
            speeds: vec![
                Some(Speeds {
                    prefill: 200.0,
                    decode: ours,
                }),
                Some(Speeds {
                    prefill: 100.0,
                    decode: theirs,
                }),
            ],
        };
        let rounds = [
            round(35.0, 40.0, 30.0),
            round(60.0, 70.0, 35.0),
            round(39.9, 41.0, 31.0),
        ];
        assert_eq!(rounds[0].regime(), Some("below 40 GB/s"));
        assert_eq!(rounds[1].regime(), Some("above 50 GB/s"));
        assert_eq!(rounds[2].regime(), None);
        let all: Vec<&Round> = rounds.iter().collect();
        let table = summary(&engines, &all).expect("a string takes all");
        assert!(
            table.contains("| theirs | 100.0 (100.0–100.0) | 31.0 (30.0–35.0) | 2.00 | 1.33 |"),
            "{table}"
        );
        assert!(
            round_table(&engines, &all)
                .expect("a string takes all")
                .contains("| 200.0, 70.0 | 100.0, 35.0 |")
        );
        assert_eq!(
            without_folders(&engines[0].command),
            "bitnet bench -m d.gguf -t {threads}"
        );
    }
}
