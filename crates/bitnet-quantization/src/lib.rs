//! FORMATS: the ternary and embedding formats: sizes, pack, unpack, quantize, dequantize.
//!
//! Slices in, slices out. Every function checks its slices against the shape with checked
//! arithmetic, so the bytes of a file need no checks before; a slice that does not fit is an
//! [`Error`] with the numbers. Ternary formats unpack to `i8` weights −1, 0, 1, some rows at a
//! time, so that a loader can repack a matrix through a buffer that stays in cache.
//!
//! Matrices are `[rows, cols]`: output rows of `cols` contiguous weights.

#![forbid(unsafe_code)]

pub mod absmean;
mod block;
mod codes;
pub mod dense;
mod error;
mod format;
pub mod group;
pub mod hf_packed;
pub mod i2_s;
pub mod i2s_32;
pub mod iq_bn;
mod kquants;
mod pieces;
pub mod q4_0;
mod q6_k;
pub mod qk256;
mod recover;
mod scaling;
pub mod tl1;
pub mod tl2;
pub mod tq;
mod vectorized;

#[cfg(test)]
mod golden;

pub use block::BlockForm;
pub use error::{Error, Result};
pub use format::TernaryFormat;
pub use group::GroupFormat;
pub use recover::{ReadGroups, ReadRow, pack_rows, recover, recover_near};
pub use scaling::Scaling;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
