//! SERVER: the engine behind HTTP, as OpenAI's API.
//!
//! [`serve`] binds an address, loads a model on the one thread that owns the
//! [`Engine`](bitnet_inference::Engine), and answers until it is told to stop. A request is read
//! and checked here, turned into tokens, put into a bounded queue and handed to the engine's
//! thread; what the engine brings comes back over a channel, as a whole answer or piece by piece.
//! Whoever hangs up closes that channel, which cancels the request.
//!
//! [`run_load`] is the other side: many clients at once, and how long each was kept waiting.
//!
//! This crate knows text and JSON, no tensors. It reads neither arguments nor the environment: the
//! program settles [`ServeOptions`].

#![forbid(unsafe_code)]

mod api;
mod auth;
mod backlog;
mod connection;
mod cors;
mod door;
mod engine_thread;
mod error;
mod forms;
mod grammar;
mod health;
mod hosts;
mod http;
mod id;
mod inflight;
mod load;
mod metrics;
mod openapi;
mod options;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod probers;
mod queue;
mod record;
mod schema;
mod serve;
mod shared_body;
mod state;
#[cfg(feature = "bench")]
mod telemetry_cost;
mod text;
mod vocabulary;
mod watch;

pub use auth::ApiKeys;
pub use cors::CorsOrigins;
pub use error::{Error, Result};
pub use forms::{FormHelper, answer_forms};
pub use hosts::AllowedHosts;
pub use load::{Arrivals, LoadEndpoint, LoadGeneratorOptions, LoadReport, RequestTimes, run_load};
pub use options::{Limits, ServeOptions};
#[cfg(feature = "otlp")]
pub use otlp::OtlpSignals;
pub use serve::{Ended, ServerEvent, serve};
pub use state::{Conversation, ServedModel};
#[cfg(feature = "bench")]
pub use telemetry_cost::{EventCosts, event_costs};
