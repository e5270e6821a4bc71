//! The floor of a bench, measured beside it: bytes ÷ the read rate of memory or products ÷ the peak
//! of the instruction set, the longer of the two. A line with the floor and the share reached
//! follows Criterion's lines.

#[path = "../../../../xtask/src/stats.rs"]
mod stats;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bitnet_kernels::{Cpu, KernelSet, ReadProbe};
use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;

/// The least work of a call.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Bytes read from memory; 0 if all are in a cache.
    pub bytes: usize,
    /// Products of int8.
    pub i8_macs: usize,
    /// Products of f32, each a multiplication and an addition.
    pub f32_macs: usize,
}

/// The machine with one instruction set and some threads.
pub struct Machine {
    pub cpu: Cpu,
    read: Rc<ReadProbe>,
    peak_i8: Option<f64>,
    peak_f32: Option<f64>,
}

impl Machine {
    pub fn new(set: &'static KernelSet, num_threads: usize, read: Rc<ReadProbe>) -> Self {
        let cpu = Cpu::new(set, num_threads);
        let (peak_i8, peak_f32) = (cpu.peak_i8_macs_per_s(), cpu.peak_f32_macs_per_s());
        Self {
            cpu,
            read,
            peak_i8,
            peak_f32,
        }
    }

    /// `avx512, 2 threads`
    pub fn name(&self) -> String {
        let n = self.cpu.pool().num_threads();
        format!(
            "{}, {n} thread{}",
            self.cpu.set().name,
            if n == 1 { "" } else { "s" }
        )
    }

    /// Measures the function that `prepare` returns, and the memory's rate beside each sample if it
    /// reads memory. Benches that the command line filters out are not prepared.
    pub fn bench<R: FnMut(&Cpu)>(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        id: &str,
        prepare: impl Fn() -> (Work, R),
    ) {
        let mut prepared = None;
        let mut samples: Vec<Sample> = Vec::new();
        let id = format!("{id}, {}", self.name());
        group.bench_function(&id, |bencher| {
            let (work, run) = prepared.get_or_insert_with(&prepare);
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                (0..iterations).for_each(|_| run(&self.cpu));
                let elapsed = start.elapsed();
                let read = if work.bytes > 0 {
                    self.read.bytes_per_s(self.cpu.pool())
                } else {
                    f64::INFINITY
                };
                samples.push(Sample {
                    seconds: elapsed.as_secs_f64() / iterations as f64,
                    read,
                });
                elapsed
            });
        });
        if let Some((work, _)) = prepared {
            self.print(work, &samples);
            if work.bytes > 0 {
                record(&id, share_of_read(work, &samples));
            }
        }
    }

    fn print(&self, work: Work, samples: &[Sample]) {
        let seconds = median(samples.iter().map(|sample| sample.seconds));
        let mut floors = Vec::new();
        if work.bytes > 0 {
            let read = median(samples.iter().map(|sample| sample.read));
            let what = format!(
                "{:.2} MB at {:.1} GB/s",
                work.bytes as f64 / 1e6,
                read / 1e9
            );
            floors.push((work.bytes as f64 / read, share_of_read(work, samples), what));
        }
        for (macs, peak, kind) in [
            (work.i8_macs, self.peak_i8, "int8"),
            (work.f32_macs, self.peak_f32, "f32"),
        ] {
            if let Some(peak) = peak.filter(|_| macs > 0) {
                let floor = macs as f64 / peak;
                let what = format!(
                    "{:.2} M {kind} products at {:.0} G/s",
                    macs as f64 / 1e6,
                    peak / 1e9
                );
                floors.push((floor, floor / seconds, what));
            }
        }
        floors.sort_by(|a, b| b.0.total_cmp(&a.0));
        if let Some((floor, share, what)) = floors.first() {
            let floor = Duration::from_secs_f64(*floor);
            println!(
                "{:24}floor: {floor:.2?}, {what}; {:.0} % of it reached\n",
                "",
                100.0 * share
            );
        }
    }
}

struct Sample {
    seconds: f64,
    /// Bytes per second, measured right after.
    read: f64,
}

/// The share of the read rate, measured beside each sample, that the bench reached.
fn share_of_read(work: Work, samples: &[Sample]) -> f64 {
    median(
        samples
            .iter()
            .map(|sample| work.bytes as f64 / sample.read / sample.seconds),
    )
}

/// Writes the share beside Criterion's estimates of this run, where `xtask bench compare` reads it.
fn record(id: &str, share: f64) {
    let home = std::env::var_os("CRITERION_HOME").map(PathBuf::from);
    // The program is at target/release/deps/kernels-….
    let target = || {
        Some(
            std::env::current_exe()
                .ok()?
                .ancestors()
                .nth(3)?
                .join("criterion"),
        )
    };
    let Some(groups) = home
        .or_else(target)
        .and_then(|home| std::fs::read_dir(home).ok())
    else {
        return;
    };
    let written = |folder: &PathBuf| {
        std::fs::metadata(folder.join("new/estimates.json"))
            .ok()?
            .modified()
            .ok()
    };
    let folders = groups.flatten().map(|group| group.path().join(id));
    let Some(folder) = folders
        .filter(|folder| written(folder).is_some())
        .max_by_key(written)
    else {
        return;
    };
    let arguments = std::env::args()
        .flat_map(|argument| argument.split('=').map(str::to_owned).collect::<Vec<_>>());
    let baseline = arguments
        .skip_while(|argument| argument != "--save-baseline")
        .nth(1);
    for baseline in ["new", baseline.as_deref().unwrap_or("base")] {
        let probe = folder.join(baseline).join("read_probe.json");
        if let Err(error) = std::fs::write(&probe, format!("{{\"share\":{share}}}\n")) {
            eprintln!("{}: {error}", probe.display());
        }
    }
}

/// The median of at least one value.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    stats::median(values).expect("a sample")
}
