//! The verification of receipts as maintainers run it: the library's gates, the JSON Schema, the
//! signature.
//!
//! A library, so that the benchmark times what the command does.
#![forbid(unsafe_code)]
#![cfg(feature = "inference")]

mod signature;

use bitnet_receipts::{Receipt, ReceiptGate, Refusal, verify};

use signature::VerifyingKey;
pub use signature::{read_signing_key, read_verifying_key, sign};

/// The schema that receipts are checked against.
pub const SCHEMA: &str = include_str!("../../docs/receipt.schema.json");

/// What receipts are checked with.
pub struct Verifier {
    schema: jsonschema::Validator,
}

/// Why a receipt is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// One of the gates.
    #[error(transparent)]
    Gate(#[from] Refusal),
    /// The signature, or that there is none.
    #[error("signature: {0}")]
    Signature(String),
    /// The model at hand is not the one of the receipt.
    #[error("model: {0}")]
    Model(String),
    /// The run, made again, gave something else.
    #[error("rerun: {0}")]
    Rerun(String),
}

impl Rejection {
    /// The exit code that says which check failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Gate(refusal) => 30 + refusal.gate as u8,
            Self::Signature(_) => 40,
            Self::Model(_) => 41,
            Self::Rerun(_) => 42,
        }
    }
}

impl Verifier {
    /// A verifier with the schema compiled.
    ///
    /// # Panics
    /// If the schema in the repository is no schema.
    #[must_use]
    pub fn new() -> Self {
        let schema = serde_json::from_str(SCHEMA).expect("docs/receipt.schema.json is JSON");
        Self {
            schema: jsonschema::validator_for(&schema)
                .expect("docs/receipt.schema.json is a schema"),
        }
    }

    /// Verifies the text of a receipt: schema, gates and the signature, which must be of `key` if
    /// one is given.
    ///
    /// # Errors
    /// The first check that it does not pass.
    pub fn verify(&self, text: &str, key: Option<&VerifyingKey>) -> Result<Receipt, Rejection> {
        let refuse = |problem: String| Refusal {
            gate: ReceiptGate::Schema,
            problem,
        };
        let value = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if let Err(error) = self.schema.validate(&value) {
            let at = error.instance_path().to_string();
            return Err(refuse(format!(
                "{}: {error}",
                if at.is_empty() { "receipt" } else { &at }
            ))
            .into());
        }
        let receipt = verify(text)?;
        signature::check(&receipt, key)?;
        Ok(receipt)
    }
}

impl Default for Verifier {
    fn default() -> Self {
        Self::new()
    }
}
