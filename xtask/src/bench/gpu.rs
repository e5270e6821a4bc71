//! `xtask bench gpu`: measures a GPU beside the CPU, in under five minutes.
//!
//! Makes random models of published shapes, runs `bitnet bench` on the device and on the CPU, and
//! prints a table: decoding of 1, 8 and 64 sequences, a prompt of 512 tokens, and the device's shares
//! of its own memory and int8 rates, which `bitnet bench` probes beside each run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, ensure};
use bitnet_models::I2sForm;
use bitnet_models::synthetic::{Shape, SyntheticModel};
use bitnet_quantization::{GroupFormat, TernaryFormat};
use serde_json::Value;

use super::engines;
use crate::circumstances::Circumstances;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// The device, as for `bitnet bench --device`
    #[arg(long, value_name = "gpu|NAME", default_value = "gpu")]
    device: String,
    /// Models: a shape as for `model make --shape`, or `tiny`; then the format of its weights, i2_s
    /// or q2_0
    #[arg(
        long,
        value_name = "SHAPE:FORMAT,…",
        value_delimiter = ',',
        default_value = "2b4t:i2_s,8b:q2_0"
    )]
    models: Vec<Subject>,
    /// Numbers of sequences decoded together
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "8,64"
    )]
    batches: Vec<usize>,
    /// Length of the prompt
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens that each sequence decodes on the device
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32)]
    decode: usize,
    /// Where the models are kept for the next run (1 to 4 GB)
    #[arg(long, value_name = "FOLDER", default_value = "target/gpu-bench")]
    folder: PathBuf,
    /// Our program, built with the feature gpu (default: `bitnet` beside this program)
    #[arg(long, value_name = "FILE")]
    bitnet: Option<PathBuf>,
}

/// A model to measure.
#[derive(Clone, Debug, PartialEq)]
struct Subject {
    /// The name of its shape.
    name: String,
    shape: Shape,
    weights: Weights,
}

/// How a model's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    /// One scale for each matrix; tables in F16.
    I2S,
    /// A scale for each group of 64 columns, in tables, too.
    Q2_0,
}

impl Weights {
    fn name(self) -> &'static str {
        match self {
            Self::I2S => "i2_s",
            Self::Q2_0 => "q2_0",
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, format) = text.split_once(':').unwrap_or((text, "i2_s"));
        let shape = match name {
            "tiny" => Some(Shape::default()),
            name => Shape::named(name),
        };
        let known = Shape::NAMES.join(", ");
        let known = || format!("unknown shape {name:?}; known are tiny, {known}");
        let formats = [Weights::I2S, Weights::Q2_0];
        let weights = formats.into_iter().find(|known| known.name() == format);
        Ok(Self {
            name: name.to_owned(),
            shape: shape.ok_or_else(known)?,
            weights: weights
                .ok_or_else(|| format!("unknown format {format:?}; known are i2_s and q2_0"))?,
        })
    }
}

/// Measures and prints.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let program = engines::program(options.bitnet.as_deref())?;
    let folder = root.join(&options.folder);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    println!(
        "Measured {}.",
        engines::conditions(&Circumstances::now(root)?)
    );
    let (prompt, decode) = (options.prompt.to_string(), options.decode.to_string());
    let batches: Vec<String> = options.batches.iter().map(ToString::to_string).collect();
    let batches = batches.join(",");
    let common = [
        "-p",
        &prompt,
        "--prefill-chunk",
        &prompt,
        "--batch",
        &batches,
    ];
    for subject in &options.models {
        let model = subject.file(&folder)?;
        let on_device = ["--device", &options.device, "-n", &decode, "-r", "3"];
        let device = bench(&program, &model, &[&common[..], &on_device].concat())?;
        // The CPU takes longer for a token, so it repeats nothing.
        let on_cpu = ["-n", "4", "-r", "1"];
        let cpu = bench(&program, &model, &[&common[..], &on_cpu].concat())?;
        println!("{}", table(subject, &device, &cpu)?);
    }
    Ok(())
}

impl Subject {
    /// The file of the random model, made if it is not there.
    fn file(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let name = format!("{}-{}.gguf", self.name, self.weights.name());
        let path = folder.join(name);
        if !path.exists() {
            let model = SyntheticModel {
                shape: self.shape.clone(),
                seed: 0,
            };
            match self.weights {
                Weights::I2S => {
                    let format = TernaryFormat::I2_S(I2sForm::Block128);
                    model.write_gguf(&path, &|_, _| format)?;
                }
                Weights::Q2_0 => model.write_group_gguf(&path, GroupFormat::Q2_0)?,
            }
        }
        Ok(path)
    }
}

/// The report of `bitnet bench`.
fn bench(program: &Path, model: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(program)
        .args(["bench", "--json", "-m"])
        .arg(model)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "bitnet bench {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The table of a model.
fn table(subject: &Subject, device: &Value, cpu: &Value) -> anyhow::Result<String> {
    let runs = device["runs"].as_array().context("runs of the device")?;
    let cpu = cpu["runs"].as_array().context("runs of the CPU")?;
    let name = |key: &str| device["device"][key].as_str().unwrap_or("?").to_owned();
    let (adapter, driver) = (name("adapter"), name("driver"));
    let title = format!(
        "### {} {} on {adapter} ({driver})",
        subject.name,
        subject.weights.name()
    );
    let mut lines = vec![
        String::new(),
        title,
        String::new(),
        "| | tokens/s | CPU | times the CPU | of memory rate | of int8 rate |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    lines.extend(runs.iter().map(|run| row(run, cpu)));
    let rate = |key: &str| runs.first().map_or(f64::NAN, |run| number(run, key));
    let read = rate("read_probe_bytes_per_second");
    let macs = rate("macs_per_second") / rate("share_of_peak");
    lines.push(format!(
        "\nThe device reads memory at {:.0} GB/s and multiplies {:.1} T int8 a second at most.",
        read / 1e9,
        macs / 1e12
    ));
    Ok(lines.join("\n"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

/// The line of a run, beside the same run of the CPU.
fn row(run: &Value, cpu: &[Value]) -> String {
    let speed = |run: &Value| number(&run["tokens_per_second"], "median");
    let (what, batch) = (&run["what"], &run["batch"]);
    let same = |other: &&Value| (&other["what"], &other["batch"]) == (what, batch);
    let title = match what.as_str() {
        Some("prefill") => format!("prompt of {}", run["tokens"]),
        _ => format!("decode {batch}"),
    };
    let cpu = cpu.iter().find(same).map_or(f64::NAN, speed);
    let share = |key: &str| {
        let share = run[key].as_f64();
        share.map_or_else(String::new, |share| format!("{:.0} %", 1e2 * share))
    };
    let (read, peak) = (share("share_of_read_probe"), share("share_of_peak"));
    let (speed, ratio) = (speed(run), speed(run) / cpu);
    format!("| {title} | {speed:.1} | {cpu:.1} | {ratio:.2} | {read} | {peak} |")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Subject, Weights, table};

    #[test]
    fn a_model_is_a_shape_and_a_format() {
        let subject: Subject = "8b:q2_0".parse().expect("both are known");
        assert_eq!((&*subject.name, subject.weights), ("8b", Weights::Q2_0));
        let subject: Subject = "2b4t".parse().expect("a shape alone");
        assert_eq!(subject.weights, Weights::I2S);
        for (text, problem) in [("9b", "unknown shape \"9b\""), ("8b:q9", "format \"q9\"")] {
            let error = text.parse::<Subject>().expect_err(text);
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_table_has_each_run_beside_the_same_run_of_the_cpu() {
        let run = |what: &str, batch: u32, speed: f64| {
            json!({
                "what": what, "batch": batch, "tokens": 512,
                "tokens_per_second": { "median": speed },
                "share_of_read_probe": 0.25, "share_of_peak": 0.126,
                "read_probe_bytes_per_second": 2e12, "macs_per_second": 126e12,
            })
        };
        let device = json!({
            "device": { "adapter": "A", "driver": "D" },
            "runs": [run("prefill", 1, 900.0), run("decode", 8, 300.0), run("decode", 64, 500.0)],
        });
        let cpu = json!({ "runs": [run("decode", 8, 20.0), run("prefill", 1, 100.0)] });
        let subject: Subject = "2b4t".parse().expect("a shape");
        let text = table(&subject, &device, &Value::clone(&cpu)).expect("both have runs");
        let expected = [
            "### 2b4t i2_s on A (D)",
            "| prompt of 512 | 900.0 | 100.0 | 9.00 | 25 % | 13 % |",
            "| decode 8 | 300.0 | 20.0 | 15.00 | 25 % | 13 % |",
            "| decode 64 | 500.0 | NaN | NaN | 25 % | 13 % |",
            "The device reads memory at 2000 GB/s and multiplies 1000.0 T int8 a second at most.",
        ];
        for line in expected {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
