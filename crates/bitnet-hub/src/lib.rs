//! HUB: models from the Hugging Face Hub.
//!
//! A [`ModelName`] names a model; [`Cache::find`] returns the path of a model in the cache, and
//! [`pull`] downloads one. The cache is the same as that of Hugging Face's own tools, file for
//! file:
//!
//! ```text
//! models--ORG--NAME/blobs/HASH             a file's bytes, under the hash that they must have
//!                  /blobs/HASH.incomplete  the first part of them
//!                  /snapshots/COMMIT/FILE  a link to them
//!                  /refs/REVISION          the commit that a branch or tag is at
//! .locks/models--ORG--NAME/HASH.lock       held by the process that downloads
//! ```
//! Responses of servers are not trusted: names stay inside the cache, and a file gets its name only
//! when its hash is right.

#![forbid(unsafe_code)]

mod cache;
mod client;
mod error;
mod name;
mod proxies;
mod pull;

pub use cache::{Cache, Cached, home_folder};
pub use client::Hub;
pub use error::{Error, Result};
pub use name::{ModelName, SHORT_NAMES};
pub use proxies::Proxies;
pub use pull::{PullPhase, PullProgress, pull};

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
