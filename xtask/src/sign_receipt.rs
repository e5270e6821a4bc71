//! `xtask sign-receipt`: puts a signature under a receipt that verifies.

use std::path::PathBuf;

use anyhow::Context;
use xtask::{Verifier, read_signing_key, sign};

#[derive(clap::Args)]
pub struct Options {
    /// The receipt
    receipt: PathBuf,
    /// The ed25519 key (PEM), as `openssl genpkey -algorithm ed25519` makes one
    #[arg(long, value_name = "FILE")]
    sign_key: PathBuf,
}

/// Verifies, signs and writes the receipt again.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let key = read_signing_key(&options.sign_key)?;
    let path = &options.receipt;
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
