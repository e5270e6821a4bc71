//! `bitnet tune`: measures which ternary kernel is the fastest for each matrix of a model, and
//! remembers it for this machine. `--packing auto` follows these measurements.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use bitnet_inference::{Device, TunedShape, Tuning, cpu_name, time_kernels};
use bitnet_kernels::{KernelSet, default_threads};
use bitnet_models::matrix_shapes;
use serde_json::json;

use crate::args::TuneArguments;
use crate::session;
use crate::tuning_file::tuning_path;

/// Measures the kernels, remembers the result and prints it.
pub fn tune(arguments: &TuneArguments) -> anyhow::Result<()> {
    let source = session::source(arguments.model.as_deref())?;
    let config = source
        .config()
        .with_context(|| format!("cannot open {source}"))?;
    let set = arguments.kernels.unwrap_or_else(KernelSet::detect);
    let threads = arguments.threads.map_or_else(default_threads, usize::from);
    let device = Device::with_kernels(set, threads);
    let mut shapes = matrix_shapes(&config);
    shapes.sort_unstable();
    shapes.dedup();
    let shapes: Vec<TunedShape> = shapes
        .into_iter()
        .map(|(rows, cols)| time_kernels(device, rows, cols, config.num_layers))
        .collect();
    let path = tuning_path()
        .context("no folder for the measurements: neither XDG_CACHE_HOME nor HOME is set")?;
    // A damaged file is replaced.
    let mut tuning = Tuning::read(&path).unwrap_or_default();
    tuning.add(device, &shapes);
    tuning
        .write(&path)
        .context("cannot write the measurements")?;
    print(arguments, device, &shapes, &path)
}

fn print(
    arguments: &TuneArguments,
    device: Device,
    shapes: &[TunedShape],
    path: &Path,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "cpu": cpu_name(),
            "kernels": device.kernels().name,
            "threads": device.threads(),
            "shapes": shapes,
            "path": path,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{} · {} threads · {} kernels",
        cpu_name(),
        device.threads(),
        device.kernels().name
    )?;
    writeln!(
        out,
        "  rows x cols          i2s         tl1         tl2   fastest"
    )?;
    for TunedShape {
        rows,
        cols,
        fastest,
        i2s_us,
        tl1_us,
        tl2_us,
    } in shapes
    {
        writeln!(
            out,
            "{rows:6} x {cols:<6} {i2s_us:9.1} µs{tl1_us:9.1} µs{tl2_us:9.1} µs   {}",
            fastest.name()
        )?;
    }
    writeln!(
        out,
        "\nThe time of one product with one token, for --packing auto: {}",
        path.display()
    )?;
    Ok(())
}
