//! LAYOUT: how weights and activations lie in memory, byte by byte, with the constants of each
//! layout. The lowest storey: it uses nothing above it.

pub mod activations;
pub mod cache;
pub mod cells;
pub mod group_activations;
pub mod lines;
pub mod lookup;
pub mod packing;
pub mod runs;
pub mod screen;
