//! Measures the machine: the rate of reading memory. Benchmarks derive floors from it and measure
//! it beside each figure, because on some machines the speed of memory changes by the minute.

use std::hint::black_box;
use std::time::Instant;

use crate::threads::memory::Huge;
use crate::threads::pool::Pool;

/// Bytes of a [`ReadProbe`] that no cache holds.
pub const READ_PROBE_BYTES: usize = 256 << 20;

/// A buffer to read.
pub struct ReadProbe(Huge<u8>);

impl ReadProbe {
    /// A buffer of `num_bytes`, written once, so that every page is resident.
    #[must_use]
    pub fn new(num_bytes: usize) -> Self {
        let mut lines = Huge::zeros(num_bytes);
        lines.fill(1);
        Self(lines)
    }

    /// Bytes per second at which all threads together read the buffer once, each one sequential
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
