//! RECEIPTS: records of runs, made from the counters of the kernels that ran, and the gates that a
//! receipt must pass.
//!
//! [`Receipt::new`] makes one, [`verify`] checks the text of one, [`digest()`] computes its hash.

#![forbid(unsafe_code)]

mod digest;
mod record;
mod verify;
mod work;

pub use digest::{digest, model_sha256, sha256_hex, tokens_sha256};
pub use record::{
    DeviceRecord, Environment, HybridRecord, KernelCount, KernelRecord, ModelRecord, Parity,
    PhaseTime, Provenance, Receipt, RunRecord, SCHEMA_VERSION, Signature,
};
pub use verify::{ReceiptGate, Refusal, verify};

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
