//! `xtask receipt sign`: signs a receipt that verifies.

use std::path::PathBuf;

use anyhow::Context;
use xtask::{Verifier, read_signing_key, sign};

use super::to_read;

#[derive(clap::Args)]
pub struct Options {
    /// The receipt
    receipt: PathBuf,
    /// The ed25519 private key (PEM), as `openssl genpkey -algorithm ed25519` writes it
    #[arg(long, value_name = "FILE")]
    sign_key: PathBuf,
}

/// Verifies the receipt, signs it and writes it back.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let key = read_signing_key(&options.sign_key)?;
    let path = &to_read(Some(&options.receipt));
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let receipt = Verifier::new()
        .verify(&text, None)
        .with_context(|| path.display().to_string())?;
    sign(receipt, &key)
        .write(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("signed: {}", path.display());
    Ok(())
}
