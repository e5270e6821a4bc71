//! Signatures of receipts: ed25519 over the 32 bytes of the digest, with keys in OpenSSL's PEM
//! format.

use std::path::Path;

use anyhow::Context;
use bitnet_receipts::{Receipt, Signature};
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signer, SigningKey};

use crate::Rejection;

pub use ed25519_dalek::VerifyingKey;

/// Reads a private key, as `openssl genpkey -algorithm ed25519` writes it.
///
/// # Errors
/// If the file cannot be read or has no such key.
pub fn read_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    read_key(path, "private", SigningKey::from_pkcs8_pem)
}

/// Reads a public key, as `openssl pkey -in KEY -pubout` writes it.
///
/// # Errors
/// If the file cannot be read or has no such key.
pub fn read_verifying_key(path: &Path) -> anyhow::Result<VerifyingKey> {
    read_key(path, "public", VerifyingKey::from_public_key_pem)
}

fn read_key<K, E>(path: &Path, half: &str, parse: fn(&str) -> Result<K, E>) -> anyhow::Result<K> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).map_err(|_| anyhow::anyhow!("{} has no ed25519 {half} key (PEM)", path.display()))
}

/// Signs a finished receipt.
///
/// # Panics
/// If the digest is malformed. A verified receipt has a valid one.
#[must_use]
pub fn sign(mut receipt: Receipt, key: &SigningKey) -> Receipt {
    let digest: [u8; 32] =
        from_hex(&receipt.digest).expect("a verified receipt has a valid digest");
    receipt.signature = Some(Signature {
        public_key: to_hex(key.verifying_key().as_bytes()),
        value: to_hex(&key.sign(&digest).to_bytes()),
    });
    receipt
}

/// Checks the signature. A present signature must be valid; with `key`, there must be one by that
/// key.
pub(crate) fn check(receipt: &Receipt, key: Option<&VerifyingKey>) -> Result<(), Rejection> {
    let wrong = |problem: &str| Err(Rejection::Signature(problem.to_owned()));
    let Some(Signature { public_key, value }) = &receipt.signature else {
        return if key.is_some() {
            wrong("the receipt is not signed")
        } else {
            Ok(())
        };
    };
    let stated = from_hex::<32>(public_key).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    let (Some(stated), Some(value), Some(digest)) = (
        stated,
        from_hex::<64>(value),
        from_hex::<32>(&receipt.digest),
    ) else {
        return wrong("its public key or value is malformed");
    };
    if key.is_some_and(|key| *key != stated) {
        return wrong("it was made with another key");
    }
    match stated.verify_strict(&digest, &ed25519_dalek::Signature::from_bytes(&value)) {
        Ok(()) => Ok(()),
        Err(_) => wrong("it does not belong to this digest"),
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}
