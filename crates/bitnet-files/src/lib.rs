//! FILES: the containers that models come in, read and written. Knows no model graph.
//!
//! [`gguf::Gguf`] and [`safetensors`] open files and check them completely, so that their tensors
//! can be read in place afterwards. [`GgufWriter`](gguf::GgufWriter) and
//! [`SafetensorsWriter`](safetensors::SafetensorsWriter) write them front to back, and
//! [`Output`] gives a file its name only when it is complete. [`CacheFile`] has bytes that take
//! long to compute, with checksums.

#![deny(unsafe_code)]

mod cache_file;
mod checksum;
mod error;
pub mod gguf;
mod json;
mod mmap;
mod output;
mod pieces;
pub mod safetensors;

pub use cache_file::CacheFile;
pub use checksum::Checksum;
pub use error::{Error, Result, shown};
pub use json::read_json;
pub use mmap::{Extent, FileStamp, ModelBytes};
pub use output::{Output, Replace};

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
