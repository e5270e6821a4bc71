//! ENGINE: requests to tokens.
//!
//! [`load`](load()) opens a model with its tokenizer; an [`Engine`] takes [`Request`]s and, step by
//! step, gives [`Event`]s: each step runs the next tokens of every sequence through the model,
//! samples one token for each sequence whose prompt is done, and reports the text that it
//! completes. Synchronous and deterministic: no decision depends on a clock, and other requests
//! never change the tokens of a request.

#![forbid(unsafe_code)]

mod backlog;
mod bias_text;
mod block_pool;
mod candidates;
mod counts;
mod device;
mod draft;
mod driver;
mod engine;
mod error;
mod facts;
mod kernel_times;
mod load;
mod machine;
mod memory;
mod open;
mod options;
pub mod perplexity;
mod pooling;
mod random;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod states;
mod stop;
mod thinking;
mod tuning;
mod weight_cache;

pub use backlog::{Owner, Priority};
pub use bias_text::parse_logit_bias;
pub use bitnet_kernels::math::mix64;
pub use bitnet_models::Pooling;
pub use counts::{EngineCounts, HeadUse, StateCounts};
pub use device::{AdapterFacts, Device, DeviceName, DeviceProbe, GPU_SUPPORT, adapters};
pub use driver::{
    Completion, Driver, EngineLoop, EngineMonitor, EngineStats, Failure, Job, MakeConstraint,
    Observation, PanickedTask, Piece, RemakeEngine, Reply, ReplySink, ReplyStream, Token,
    panic_message,
};
pub use engine::Engine;
pub use error::{Error, Result};
pub use facts::EngineFacts;
pub use kernel_times::time_kernels;
pub use load::{
    Hints, LOST_ROTATION, Loaded, NO_TOKENIZER, Tokenization, likely_i2s_form, load, load_embedded,
    load_tokenization, load_with, tokenization_from_gguf, tokenizer_spec,
};
pub use machine::cpu_name;
pub use open::{ModelSource, OpenModel, context_length, kv_cache_positions};
pub use options::{DRAFT_MAX, EngineOptions};
pub use perplexity::Likelihood;
pub use pooling::normalize;
pub use request::{Constraint, Event, Finish, FinishReason, Logprobs, Request, RequestId, Timings};
pub use runner::{Model, ModelRunner, Runner};
pub use sampling::{Sampler, SamplingParams};
pub use stop::TokenSet;
pub use thinking::{Thinking, ThinkingMarks};
pub use tuning::{TernaryKernel, TunedShape, Tuning};
pub use weight_cache::{CacheEntry, CacheUse, CachedFile, WeightCache, program_hash};
