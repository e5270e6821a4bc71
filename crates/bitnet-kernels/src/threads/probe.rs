//! What this machine can do, measured: the rate at which memory is read, multiply-accumulates in
//! registers, the cost of a join. Floors are made of these, and a figure means little on a machine
//! whose memory changes its speed by the minute unless they were measured beside it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ops::cpu::Cpu;
use crate::threads::memory::Huge;
use crate::threads::pool::Pool;

/// Bytes of a [`ReadProbe`] that no cache holds.
pub const READ_PROBE_BYTES: usize = 256 << 20;

/// A buffer to read.
pub struct ReadProbe(Huge<u8>);

impl ReadProbe {
    /// A buffer of `num_bytes`, written once, so that every page of it is there.
    #[must_use]
    pub fn new(num_bytes: usize) -> Self {
        let mut lines = Huge::zeros(num_bytes);
        lines.fill(1);
        Self(lines)
    }

    /// Bytes a second at which all threads together read the buffer once, each one sequential
    /// stream.
    #[must_use]
    pub fn bytes_per_s(&self, pool: &Pool) -> f64 {
        let chunks = self.0.as_chunks::<64>().0;
        let start = Instant::now();
        pool.split(chunks.len(), 1, &|share| {
            let mut sums = [0u64; 8];
            for chunk in &chunks[share] {
                for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*bytes));
                }
            }
            black_box(sums);
        });
        (64 * chunks.len()) as f64 / start.elapsed().as_secs_f64()
    }
}

/// Rounds of a peak loop, some tens of microseconds.
const PEAK_ROUNDS: usize = 20_000;

impl Cpu {
    /// Products of int8 a second that all threads together add up when nothing leaves the
    /// registers, at best of a few tries; `None` for the scalar set, whose loops are the
    /// compiler's.
    #[must_use]
    pub fn peak_i8_macs_per_s(&self) -> Option<f64> {
        self.set().peak_i8.map(|peak| self.best_rate(peak))
    }

    /// The same for f32, a multiplication and an addition for each.
    #[must_use]
    pub fn peak_f32_macs_per_s(&self) -> Option<f64> {
        self.set().peak_f32.map(|peak| self.best_rate(peak))
    }

    fn best_rate(&self, peak: unsafe fn(usize) -> usize) -> f64 {
        let mut best = 0.0f64;
        for _ in 0..8 {
            let macs = AtomicUsize::new(0);
            let start = Instant::now();
            self.pool().run(&|_| {
                // SAFETY: a set exists only on a CPU that can run it.
                let n = unsafe { peak(PEAK_ROUNDS) };
                macs.fetch_add(n, Ordering::Relaxed);
            });
            best = best.max(macs.into_inner() as f64 / start.elapsed().as_secs_f64());
        }
        best
    }

    /// What it takes to run a job on all threads, each of which ends as soon as all have begun, and
    /// to wait for its end: the median of some hundreds.
    #[must_use]
    pub fn join_latency(&self) -> Duration {
        let run = |_| {
            let (begun, num_workers) = (AtomicUsize::new(0), self.pool().num_threads() - 1);
            let start = Instant::now();
            // The calling thread would run the shares that nobody has begun when its own is done.
            self.pool().run(&|index| match index {
                0 => {
                    while begun.load(Ordering::Relaxed) < num_workers {
                        std::hint::spin_loop();
                    }
                }
                _ => {
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            });
            start.elapsed()
        };
        let mut times: Vec<Duration> = (0..501).map(run).collect();
        times.sort_unstable();
        times[times.len() / 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sets::table::KernelSet;

    #[test]
    fn every_probe_gives_a_rate_on_every_set_but_the_reference() {
        for set in KernelSet::available() {
            let cpu = Cpu::new(set, 2);
            let is_rate = |rate: f64| rate.is_finite() && rate > 0.0;
            assert!(is_rate(ReadProbe::new(1 << 20).bytes_per_s(cpu.pool())));
            for peak in [cpu.peak_i8_macs_per_s(), cpu.peak_f32_macs_per_s()] {
                assert_eq!(
                    peak.is_some_and(is_rate),
                    set.name != "scalar",
                    "{}",
                    set.name
                );
            }
        }
    }
}
