//! Every kernel, with its floor beside it: `cargo bench --no-default-features --features cpu,bench
//! -- FILTER`.
//!
//! The shapes come from BitNet b1.58 2B-4T, so figures can be compared with the time of one token.
//! A kernel runs with every instruction set of this CPU except the scalar one, on one thread and on
//! one thread per core.

mod attention;
mod counters;
mod floor;
mod groups;
mod head;
mod pool;
mod rows;
mod ternary;

use std::rc::Rc;
use std::time::Duration;

use bitnet_kernels::{KernelSet, Packing, READ_PROBE_BYTES, ReadProbe, default_threads};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

use crate::floor::Machine;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let read = Rc::new(ReadProbe::new(READ_PROBE_BYTES));
    let mut machines = machines(&read);
    ternary::bench(&mut criterion, &machines);
    ternary::patterns(&mut criterion, &read);
    groups::bench(&mut criterion, &machines);
    // The sets with and without VBMI differ only in products with ternary weights and trits.
    machines.retain(|machine| machine.cpu.set().packing == Packing::Two);
    attention::bench(&mut criterion, &machines);
    head::bench(&mut criterion, &machines);
    rows::bench(&mut criterion, &machines);
    pool::bench(&mut criterion, &machines);
    counters::bench(&mut criterion);
    criterion.final_summary();
}

/// Every set except the last, the scalar reference, with one thread and with all threads.
fn machines(read: &Rc<ReadProbe>) -> Vec<Machine> {
    let mut threads = vec![1, default_threads()];
    threads.dedup();
    let sets = KernelSet::available().filter(|set| set.name != "scalar");
    sets.flat_map(|set| {
        threads
            .iter()
            .map(|&n| Machine::new(set, n, Rc::clone(read)))
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Few and short samples: there are many benches, and changes of the machine exceed what more
/// samples would resolve.
fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    group
}

/// A small generator of inputs (xorshift), 64 bits at a time.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between −1 and 1.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}
