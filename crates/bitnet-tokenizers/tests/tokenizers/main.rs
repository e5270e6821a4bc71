//! What must hold of the tokenizers, seen from outside.

mod chat;
mod common;
mod json;
mod metadata;
mod properties;
mod vectors;
