//! `bitnet tune`: measures which ternary kernel is the fastest for each matrix of a model, and
//! remembers it for this machine. `--ternary-kernel auto` follows these measurements.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use bitnet_inference::{Device, TernaryKernel, TunedShape, Tuning, cpu_name};
use bitnet_kernels::math::median;
use bitnet_kernels::{Activations, Cpu, KernelSet, Packing, Part, TernaryMatrix, default_threads};
use bitnet_models::matrix_shapes;
use serde_json::json;

use crate::args::TuneArguments;
use crate::session;

/// The number of weights of a shape that a round multiplies by: like those of a model, they do not
/// fit into a CPU cache.
const ROUND_WEIGHTS: usize = 256 << 20;
/// The rounds in which each kernel is timed; the median counts.
const ROUNDS: usize = 7;

/// The packings that `bitnet tune` found to be the fastest on this machine, by shape; empty if it
/// has not run.
pub fn fastest_packings(device: Device) -> Vec<((usize, usize), Packing)> {
    match tuning_path().map(|path| Tuning::read(&path)) {
        Some(Ok(tuning)) => tuning.packings(device),
        None => Vec::new(),
        Some(Err(error)) => {
            // The model runs without the file, and the results are the same.
            let error = anyhow::Error::from(error);
            eprintln!("warning: {error:#}; bitnet tune replaces it");
            Vec::new()
        }
    }
}

/// Measures the kernels, remembers the result and prints it.
pub fn tune(arguments: &TuneArguments) -> anyhow::Result<()> {
    let source = session::source(arguments.model.as_deref())?;
    let config = source
        .config()
        .with_context(|| format!("cannot open {source}"))?;
    let set = arguments.kernels.unwrap_or_else(KernelSet::detect);
    let threads = arguments.threads.map_or_else(default_threads, usize::from);
    let (device, cpu) = (Device::with_kernels(set, threads), Cpu::new(set, threads));
    let mut shapes = matrix_shapes(&config);
    shapes.sort_unstable();
    shapes.dedup();
    let shapes: Vec<TunedShape> = shapes
        .into_iter()
        .map(|(rows, cols)| measure(&cpu, rows, cols, config.num_layers))
        .collect();
    let path = tuning_path()
        .context("no folder for the measurements: neither XDG_CACHE_HOME nor HOME is set")?;
    // A damaged file is replaced.
    let mut tuning = Tuning::read(&path).unwrap_or_default();
    tuning.add(device, &shapes);
    tuning
        .write(&path)
        .context("cannot write the measurements")?;
    print(arguments, &cpu, &shapes, &path)
}

fn print(
    arguments: &TuneArguments,
    cpu: &Cpu,
    shapes: &[TunedShape],
    path: &Path,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "cpu": cpu_name(),
            "kernels": cpu.set().name,
            "threads": cpu.pool().num_threads(),
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
        cpu.pool().num_threads(),
        cpu.set().name
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
        "\nThe time of one product with one token, for --ternary-kernel auto: {}",
        path.display()
    )?;
    Ok(())
}

/// Times each kernel in turn on one row of activations. Multiplies by enough matrices of the shape
/// that each comes from memory, but by at most as many as the model has.
fn measure(cpu: &Cpu, rows: usize, cols: usize, num_layers: usize) -> TunedShape {
    let count = ROUND_WEIGHTS.div_ceil(rows * cols).min(num_layers);
    let kernels = TernaryKernel::ALL;
    let matrices = kernels.map(|kernel| {
        let packing = kernel.packing(cpu.set().packing);
        (0..count)
            .map(|_| made_up_matrix(cpu, rows, cols, packing))
            .collect::<Vec<_>>()
    });
    let mut activations = Activations::new();
    let x: Vec<f32> = (0..cols)
        .map(|col| (col * 7919 % 255) as f32 - 127.0)
        .collect();
    cpu.quantize(&x, cols, cols, None, &mut activations);
    let mut out = vec![0.0; matrices[0][0].output_len()];
    let mut seconds = [(); 3].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        for (matrices, seconds) in matrices.iter().zip(&mut seconds) {
            let start = Instant::now();
            matrices
                .iter()
                .for_each(|matrix| cpu.ternary_matmul(matrix, &activations, &mut out));
            seconds.push(start.elapsed().as_secs_f64() / count as f64);
        }
    }
    let [i2s_us, tl1_us, tl2_us] =
        seconds.map(|mut seconds| 1e6 * median(&mut seconds).unwrap_or(f64::NAN));
    let times = [i2s_us, tl1_us, tl2_us];
    let fastest = (0..3)
        .min_by(|a, b| times[*a].total_cmp(&times[*b]))
        .map_or(TernaryKernel::I2s, |i| kernels[i]);
    TunedShape {
        rows,
        cols,
        fastest,
        i2s_us,
        tl1_us,
        tl2_us,
    }
}

/// A matrix of weights without a pattern.
fn made_up_matrix(cpu: &Cpu, rows: usize, cols: usize, packing: Packing) -> TernaryMatrix {
    let unpack = |_: usize,
                  rows: std::ops::Range<usize>,
                  codes: &mut [i8]|
     -> Result<(), std::convert::Infallible> {
        let mut state = rows.start as u64 + 1;
        for codes in codes.chunks_mut(16) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bits = state;
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(i, code)| *code = (bits >> (4 * i) & 15) as i8 % 3 - 1);
        }
        Ok(())
    };
    let Ok(matrix) = TernaryMatrix::pack(
        cpu.pool(),
        &[Part { rows, scale: 1.0 }],
        cols,
        packing,
        &unpack,
    );
    matrix
}

/// The file of the measurements.
fn tuning_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Some(
        cache
            .filter(|path| path.is_absolute())
            .or_else(home)?
            .join("bitnet/tuning.json"),
    )
}
