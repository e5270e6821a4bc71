//! Verification of receipts: the gates of `bitnet-receipts`, the JSON Schema and the signature.
//!
//! A library, so that the benchmark times the same code as the command.
#![forbid(unsafe_code)]
#![cfg(feature = "inference")]

mod signature;

use bitnet_receipts::{Receipt, ReceiptGate, Refusal, verify};

use signature::VerifyingKey;
pub use signature::{read_signing_key, read_verifying_key, sign};

/// The JSON Schema of receipts.
pub const SCHEMA: &str = include_str!("../../docs/receipt.schema.json");

/// Checks receipts.
pub struct Verifier {
    schema: jsonschema::Validator,
}

/// The reason why a receipt is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// A gate failed.
    #[error(transparent)]
    Gate(#[from] Refusal),
    /// The signature is wrong or missing.
    #[error("signature: {0}")]
    Signature(String),
    /// The given model is not the receipt's.
    #[error("model: {0}")]
    Model(String),
    /// The repeated run gave another result.
    #[error("rerun: {0}")]
    Rerun(String),
}

impl Rejection {
    /// The exit code of the failed check.
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
    /// A verifier with a compiled schema.
    ///
    /// # Panics
    /// If the schema in the repository is invalid.
    #[must_use]
    pub fn new() -> Self {
        let schema = serde_json::from_str(SCHEMA).expect("docs/receipt.schema.json is JSON");
        Self {
            schema: jsonschema::validator_for(&schema)
                .expect("docs/receipt.schema.json is a schema"),
        }
    }

    /// Verifies the text of a receipt: schema, gates and signature. With `key`, the receipt must be
    /// signed by that key.
    ///
    /// # Errors
    /// The first failed check.
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
