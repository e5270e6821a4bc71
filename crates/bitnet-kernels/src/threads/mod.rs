//! THREADS: the pool that divides work among threads, memory in huge pages, counters and probes.

pub mod counters;
pub mod disjoint;
pub mod memory;
pub mod pool;
pub mod probe;
