//! LAYOUT: how weights and activations lie in memory, byte by byte, and the constants of that.

pub mod activations;
pub mod lookup;
pub mod packing;
