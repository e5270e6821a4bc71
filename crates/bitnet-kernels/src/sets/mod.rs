//! SETS: for each instruction set one module of functions over slices, and the table that names
//! them.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod compiled;
pub mod math;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod portable;
pub mod scalar;
pub mod segment;
pub mod table;
