//! SETS: for each instruction set one module of functions over slices and the table that names
//! them. This storey uses layout and reads weights.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod checked;
pub mod compiled;
pub mod detect;
pub mod groups;
pub mod hadamard;
pub mod lookup;
pub mod math;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod output;
pub mod portable;
pub mod recurrent;
pub mod scalar;
pub mod segment;
pub mod sparse;
pub mod table;
