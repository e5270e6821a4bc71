//! Measures the peak of a set and its threads: the rate of products in registers, the cost of a
//! join.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ops::cpu::Cpu;

/// Rounds of a peak loop, some tens of microseconds.
const PEAK_ROUNDS: usize = 20_000;

impl Cpu {
    /// The rate of int8 products of all threads together in products per second, with all operands
    /// in registers; the best of a few tries. `None` for the scalar set, whose loops the compiler
    /// chooses.
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

    /// The time to run a job on all threads and wait for its end: the median of some hundred runs.
    /// Each thread ends its share as soon as all threads have begun theirs.
    #[must_use]
    pub fn join_latency(&self) -> Duration {
        let run = |_| {
            let (begun, num_workers) = (AtomicUsize::new(0), self.pool().num_threads() - 1);
            let start = Instant::now();
            // Without this wait, the calling thread would run shares that no other thread has
            // begun.
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
    use crate::threads::probe::ReadProbe;

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
