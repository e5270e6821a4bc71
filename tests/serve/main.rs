//! `bitnet serve`, the real program on the built-in model, over real connections.

mod api;
mod batches;
#[cfg(target_os = "linux")]
mod churn;
mod client;
#[cfg(feature = "otlp")]
mod collector;
mod devices;
mod embeddings;
mod faults;
mod fuzz;
mod hybrid;
mod limits;
mod messages;
mod metrics;
mod models;
mod ollama;
mod operations;
#[cfg(feature = "otlp")]
mod otlp;
mod responses;
#[cfg(target_os = "linux")]
mod soak;
mod structured;
mod thinking;
mod turns;
