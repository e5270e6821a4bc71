//! SERVER: the engine behind HTTP, as OpenAI's API.
//!
//! [`serve`] binds an address and answers requests until the process gets a signal to stop. Each
//! model ([`ModelSpec`]) is loaded on the thread that runs its [`Engine`](bitnet_inference::Engine),
//! when it is needed, and unloaded to make room for others. A handler reads a request, takes its
//! model, checks the request, turns it into tokens, takes a place in a bounded queue and submits it
//! to the model's [`Driver`](bitnet_inference::Driver). The pieces of the answer come
//! back over a channel, and leave as one response or as a stream. A client that disconnects closes
//! that channel, which cancels the request.
//!
//! [`LocalChats`] reads the same requests for a program that has the engine in its own process.
//!
//! [`BatchFile`] answers a file of requests without a network.
//!
//! [`run_load`] is the client side: it runs many clients at once and measures their waiting times.
//!
//! This crate handles text and JSON, not tensors. It reads neither arguments nor the environment:
//! the program settles [`ServeOptions`].

#![forbid(unsafe_code)]

mod answer_sink;
mod api;
mod auth;
mod batch;
mod clock;
mod connection;
mod connections;
mod cors;
mod door;
mod error;
mod forms;
mod grammar;
mod health;
mod hosts;
mod http;
mod id;
mod inflight;
mod keep_alive;
mod load;
mod local;
mod metrics;
mod openapi;
mod options;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod probers;
mod queue;
mod quotas;
mod record;
mod recording;
mod registry;
mod requests;
mod schedule;
mod schema;
mod serve;
mod served;
mod shared_body;
mod state;
mod store;
#[cfg(feature = "bench")]
mod telemetry_cost;
mod text;
mod threads;
mod tls;
mod vocabulary;
mod watch;

pub use auth::ApiKeys;
pub use batch::{BatchCounts, BatchFile};
pub use cors::CorsOrigins;
pub use error::{Error, Result};
pub use forms::{FormHelper, answer_forms};
pub use hosts::AllowedHosts;
pub use keep_alive::parse_keep_alive;
pub use load::{Arrivals, LoadEndpoint, LoadGeneratorOptions, LoadReport, RequestTimes, run_load};
pub use local::{LocalAnswer, LocalCall, LocalChat, LocalChats, LocalRefusal};
#[cfg(feature = "otlp")]
pub use options::OtlpSignals;
pub use options::{FileLimits, KeyLimits, Limits, ServeOptions};
pub use serve::{Ended, ServerEvent, serve};
pub use served::{Conversation, LoadedModel, LoaderError, ModelOutline, ModelPreview, ModelSpec};
#[cfg(feature = "bench")]
pub use telemetry_cost::{EventCosts, event_costs};
pub use threads::engine_thread;
pub use tls::Tls;
