//! OPS: the operations of a forward pass, each on all threads and counted.

pub mod attention;
pub mod cpu;
pub mod screen;
pub mod sparse;
