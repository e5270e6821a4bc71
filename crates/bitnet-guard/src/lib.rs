//! GUARD: keeps the process alive and its memory intact for any input from files and clients.
//!
//! - [`Contained`] runs foreign input (schemas, grammars, chat templates) in helper processes whose
//!   stack, memory and time are limited. A helper that breaks its limits ends; this process does
//!   not.
//! - [`MappedFile`] watches a file whose bytes are mapped into memory: truncating or rewriting such
//!   a file causes an error that names it, not a signal that ends the process.
//! - [`give_memory_back`] returns freed memory to the system after a burst.
//!
//! This crate knows neither models nor HTTP.

mod contained;
mod helper;
mod mapped;
mod memory;

pub use contained::{Breach, Cancel, Contained, HelperProgram};
pub use helper::{HelperLimits, answer_jobs};
pub use mapped::{FileProblem, MappedFile, file_problems, replaced_files};
pub use memory::{
    address_space_left, available_memory, give_memory_back, is_hangup_ignored, open_files_limit,
    peak_rss_bytes, rss_bytes,
};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
