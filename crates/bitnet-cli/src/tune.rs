//! `bitnet tune`: measures which ternary kernel is the fastest for each matrix of a model, and
//! remembers it for this machine; and what `--ternary-kernel auto` makes of what is remembered.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use bitnet_inference::{Device, cpu_name};
use bitnet_kernels::{Activations, Cpu, KernelSet, Packing, Part, TernaryMatrix, default_threads};
use bitnet_models::matrix_shapes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{TernaryKernel, TuneArguments};
use crate::session::ModelSource;

/// Weights of a shape that a round multiplies by: too many for a cache, as those of a model are.
const ROUND_WEIGHTS: usize = 256 << 20;
/// Times that each kernel's turn comes; the median counts.
const ROUNDS: usize = 7;

/// What is remembered: a machine for each CPU, instruction set and number of threads.
#[derive(Default, Serialize, Deserialize)]
struct Tuning {
    /// Of the program that measured. Another's kernels may be faster or slower: what it measured is
    /// not used.
    version: String,
    machines: Vec<Machine>,
}

#[derive(Serialize, Deserialize)]
struct Machine {
    cpu: String,
    kernels: String,
    threads: usize,
    shapes: Vec<Shape>,
}

/// A matrix, the kernel to multiply by it with, and the time that each took.
#[derive(Clone, Serialize, Deserialize)]
struct Shape {
    rows: usize,
    cols: usize,
    fastest: TernaryKernel,
    i2s_us: f64,
    tl1_us: f64,
    tl2_us: f64,
}

impl Machine {
    fn is_this(&self, device: Device) -> bool {
        self.cpu == cpu_name()
            && self.kernels == device.kernels().name
            && self.threads == device.threads()
    }
}

/// What `bitnet tune` found to be the fastest on this machine, by shape; nothing where it did not
/// run.
pub fn fastest_packings(device: Device) -> Vec<((usize, usize), Packing)> {
    let tuning = match cache_path().map(|path| read(&path)) {
        Some(Ok(Some(tuning))) => tuning,
        Some(Ok(None)) | None => return Vec::new(),
        Some(Err(error)) => {
            // Not a reason not to run: results do not depend on it.
            eprintln!("warning: {error:#}; bitnet tune writes it anew");
            return Vec::new();
        }
    };
    let machine = tuning
        .machines
        .iter()
        .find(|machine| machine.is_this(device));
    let shapes = machine.map_or(&[][..], |machine| &machine.shapes);
    shapes
        .iter()
        .map(|shape| {
            (
                (shape.rows, shape.cols),
                shape.fastest.packing(device.kernels().packing),
            )
        })
        .collect()
}

/// Measures, prints and remembers.
pub fn tune(arguments: &TuneArguments) -> anyhow::Result<()> {
    let config = ModelSource::new(arguments.model.as_deref())?.config()?;
    let set = arguments.kernels.unwrap_or_else(KernelSet::detect);
    let threads = arguments.threads.map_or_else(default_threads, usize::from);
    let (device, cpu) = (Device::with_kernels(set, threads), Cpu::new(set, threads));
    let mut shapes = matrix_shapes(&config);
    shapes.sort_unstable();
    shapes.dedup();
    let shapes: Vec<Shape> = shapes
        .into_iter()
        .map(|(rows, cols)| measure(&cpu, rows, cols, config.num_layers))
        .collect();
    let path = cache_path().context(
        "there is no place for what was measured: neither XDG_CACHE_HOME nor HOME is set",
    )?;
    remember(&path, device, &shapes).with_context(|| format!("cannot write {}", path.display()))?;
    print(arguments, &cpu, &shapes, &path)
}

fn print(
    arguments: &TuneArguments,
    cpu: &Cpu,
    shapes: &[Shape],
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
    for Shape {
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

/// Multiplies one row of activations by matrices of a shape, as many as it takes to fetch each from
/// memory, though not more than the model has; each kernel in turn.
fn measure(cpu: &Cpu, rows: usize, cols: usize, num_layers: usize) -> Shape {
    let count = ROUND_WEIGHTS.div_ceil(rows * cols).min(num_layers);
    let kernels = [TernaryKernel::I2s, TernaryKernel::Tl1, TernaryKernel::Tl2];
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
    let [i2s_us, tl1_us, tl2_us] = seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[ROUNDS / 2] * 1e6
    });
    let times = [i2s_us, tl1_us, tl2_us];
    let fastest = (0..3)
        .min_by(|a, b| times[*a].total_cmp(&times[*b]))
        .map_or(TernaryKernel::I2s, |i| kernels[i]);
    Shape {
        rows,
        cols,
        fastest,
        i2s_us,
        tl1_us,
        tl2_us,
    }
}

/// A matrix of weights that follow no pattern.
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

/// Puts what was measured beside, or in place of, what is remembered of this machine.
fn remember(path: &Path, device: Device, shapes: &[Shape]) -> anyhow::Result<()> {
    // A file that is damaged or another version's is replaced.
    let mut tuning = read(path).ok().flatten().unwrap_or_default();
    env!("CARGO_PKG_VERSION").clone_into(&mut tuning.version);
    let index = tuning
        .machines
        .iter()
        .position(|machine| machine.is_this(device))
        .unwrap_or_else(|| {
            let (kernels, threads) = (device.kernels().name.to_owned(), device.threads());
            tuning.machines.push(Machine {
                cpu: cpu_name(),
                kernels,
                threads,
                shapes: Vec::new(),
            });
            tuning.machines.len() - 1
        });
    let known = &mut tuning.machines[index].shapes;
    known.retain(|old| {
        !shapes
            .iter()
            .any(|new| (new.rows, new.cols) == (old.rows, old.cols))
    });
    known.extend_from_slice(shapes);
    let directory = path.parent().context("the path of a file has a parent")?;
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer_pretty(&mut file, &tuning)?;
    file.persist(path)?;
    Ok(())
}

/// What is remembered; `None` if there is no file, or it is another version's.
fn read(path: &Path) -> anyhow::Result<Option<Tuning>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let tuning: Tuning =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok((tuning.version == env!("CARGO_PKG_VERSION")).then_some(tuning))
}

/// Where what is measured is kept.
fn cache_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Some(
        cache
            .filter(|path| path.is_absolute())
            .or_else(home)?
            .join("bitnet/tuning.json"),
    )
}
