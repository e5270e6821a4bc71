//! Batches in OpenAI's format: files of requests, each on a line, and the files with their answers.
//!
//! `lines.rs` reads requests, `output.rs` writes answers. [`BatchFile`] is a batch of the program's
//! command; `store.rs` keeps the files and batches of a server, whose `runner.rs` answers them and
//! whose `tally.rs` adds up.
//!
//! Answers are written in the order of the requests, each as one whole line that begins with the
//! hash of its request. So the files themselves say which requests are answered, and a process that
//! was killed continues there.

mod command;
mod database;
mod lines;
mod output;
pub(crate) mod runner;
pub(crate) mod store;
pub(crate) mod tally;

pub use command::{BatchCounts, BatchFile};
