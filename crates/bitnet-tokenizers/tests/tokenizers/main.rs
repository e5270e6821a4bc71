//! Tests of the tokenizers through the public interface.

mod chat;
mod common;
mod json;
mod metadata;
mod properties;
mod vectors;
