//! `bitnet serve`, the real program on the built-in model, over real connections.

mod api;
mod client;
mod faults;
mod fuzz;
mod metrics;
mod operations;
mod structured;
