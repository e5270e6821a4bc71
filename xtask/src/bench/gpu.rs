//! `xtask bench gpu`: measures a GPU beside the CPU, in under five minutes.
//!
//! Makes random models of published shapes, runs `bitnet bench` on the device and on the CPU, and
//! prints a table: decoding of 1, 8 and 64 sequences, a prompt of 512 tokens, and the device's shares
//! of its own memory and int8 rates, which `bitnet bench` probes beside each run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use bitnet_models::I2sForm;
use bitnet_models::synthetic::{Shape, SyntheticModel};
use bitnet_quantization::TernaryFormat;
use serde_json::Value;

use super::engines;
use crate::circumstances::Circumstances;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// The device, as for `bitnet bench --device`
    #[arg(long, value_name = "gpu|NAME", default_value = "gpu")]
    device: String,
    /// Shapes of models, as for `model make --shape`
    #[arg(
        long,
        value_name = "SHAPE,…",
        value_delimiter = ',',
        default_value = "2b4t,8b"
    )]
    shapes: Vec<String>,
    /// Numbers of sequences decoded together on the device
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
    /// Where the models are kept for the next run (1 to 4 GB)
    #[arg(long, value_name = "FOLDER", default_value = "target/gpu-bench")]
    folder: PathBuf,
    /// Our program, built with the feature gpu (default: `bitnet` beside this program)
    #[arg(long, value_name = "FILE")]
    bitnet: Option<PathBuf>,
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
    for shape in &options.shapes {
        let model = model(&folder, shape)?;
        let prompt = options.prompt.to_string();
        let batches: Vec<String> = options.batches.iter().map(ToString::to_string).collect();
        let device = bench(
            &program,
            &model,
            &[
                "--device",
                &options.device,
                "-p",
                &prompt,
                "-n",
                "32",
                "-r",
                "3",
                "--prefill-chunk",
                &prompt,
                "--batch",
                &batches.join(","),
            ],
        )?;
        // The CPU decodes one sequence only, and a shorter prompt: a whole one takes minutes.
        let cpu = bench(&program, &model, &["-p", "64", "-n", "8", "-r", "1"])?;
        print(shape, &device, &cpu)?;
    }
    Ok(())
}

/// The file of a random model of a shape, made if it is not there.
fn model(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let known = || {
        format!(
            "unknown shape {name}; known are {}",
            Shape::NAMES.join(", ")
        )
    };
    let shape = Shape::named(name).with_context(known)?;
    let path = folder.join(format!("{name}.gguf"));
    if !path.exists() {
        let format = TernaryFormat::I2_S(I2sForm::Block128);
        SyntheticModel { shape, seed: 0 }.write_gguf(&path, &|_, _| format)?;
    }
    Ok(path)
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

fn print(shape: &str, device: &Value, cpu: &Value) -> anyhow::Result<()> {
    let runs = device["runs"].as_array().context("runs of the device")?;
    let name = |key: &str| device["device"][key].as_str().unwrap_or("?").to_owned();
    let (adapter, driver) = (name("adapter"), name("driver"));
    println!("\n### {shape} on {adapter} ({driver})\n");
    println!("| | tokens/s | times the CPU | of memory rate | of int8 rate |");
    println!("|---|---|---|---|---|");
    for run in runs {
        println!("{}", row(run, cpu));
    }
    let read = runs
        .first()
        .map_or(f64::NAN, |run| number(run, "read_probe_bytes_per_second"));
    println!("\nMemory is read at {:.0} GB/s.", read / 1e9);
    Ok(())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

fn row(run: &Value, cpu: &Value) -> String {
    let speed = |run: &Value| number(&run["tokens_per_second"], "median");
    let what = run["what"].as_str().unwrap_or("");
    let batch = number(run, "batch");
    let title = match what {
        "prefill" => format!("prompt of {}", number(run, "tokens")),
        _ => format!("decode {batch}"),
    };
    let ratio = speed(run) / speed(&cpu[what]);
    let share = |key: &str| {
        let share = run[key].as_f64();
        share.map_or_else(String::new, |share| format!("{:.0} %", 1e2 * share))
    };
    let (read, peak) = (share("share_of_read_probe"), share("share_of_peak"));
    format!(
        "| {title} | {:.1} | {ratio:.2} | {read} | {peak} |",
        speed(run)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::row;

    #[test]
    fn a_row_has_the_ratio_to_the_cpu_and_the_shares() {
        let run = json!({
            "what": "decode", "batch": 8, "tokens": 256,
            "tokens_per_second": { "median": 300.0 },
            "share_of_read_probe": 0.25, "share_of_peak": 0.126,
        });
        let cpu = json!({ "decode": { "tokens_per_second": { "median": 20.0 } } });
        assert_eq!(
            row(&run, &cpu),
            "| decode 8 | 300.0 | 15.00 | 25 % | 13 % |"
        );
    }
}
