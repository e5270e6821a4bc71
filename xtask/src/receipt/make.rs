//! `xtask receipt make`: times a run of a model and writes its receipt.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use bitnet_inference::{Request, SamplingParams};
use bitnet_models::{LoadOptions, synthetic};
use bitnet_receipts::{Provenance, Receipt, model_sha256};
use bitnet_tokenizers::TokenId;
use xtask::{Rejection, Verifier, read_signing_key, sign};

use super::{DEFAULT, kept};
use crate::model::options::ModelOptions;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Tokens of the prompt, which is synthetic
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Where to write the receipt (default: benchmarks/receipts/inference.json of the repository)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also keep the receipt as benchmarks/receipts/YYYYMMDD-cpu.json
    #[arg(long)]
    baseline: bool,
    /// The seed that the receipt records; the tokens do not depend on it, because decoding is
    /// greedy
    #[arg(long, value_name = "N", default_value_t = 0, env = "BITNET_SEED")]
    seed: u64,
    /// Sign the receipt with this ed25519 key (PEM)
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
}

/// Runs once to warm up and once for the receipt. Writes nothing unless the receipt verifies.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let key = options
        .sign_key
        .as_deref()
        .map(read_signing_key)
        .transpose()?;
    let path = options.json.clone().unwrap_or_else(|| kept(DEFAULT));
    // Check before the run, so that a path that cannot be written fails at once.
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let (prompt, tokens) = (options.prompt as usize, options.tokens as usize);
    let mut engine = options.model.open(prompt + tokens)?;
    let vocab_size = engine.model().config.vocab_size;
    let request = |round, max_tokens| Request {
        prompt: synthetic::tokens(prompt, vocab_size, round)
            .map(TokenId)
            .collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            seed: options.seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens),
        ..Request::default()
    };
    engine.complete(request(0, tokens.min(8)))?;
    let request = request(1, tokens);
    engine.counters().reset();
    let (output, finish) = engine.complete(request.clone())?;

    let model = options.model.path();
    let variable = |name: &str| std::env::var(name).ok();
    let provenance = Provenance {
        model_path: options.model.stated_path().display().to_string(),
        model_sha256: model_sha256(&model)
            .with_context(|| format!("cannot read {}", model.display()))?,
        load: LoadOptions::default(),
        kernels_requested: options.model.kernels().map(|set| set.name.to_owned()),
        seed_given: true,
        bitnet_deterministic: variable("BITNET_DETERMINISTIC"),
        bitnet_seed: variable("BITNET_SEED"),
    };
    let mut receipt = Receipt::new(&engine.facts(), &request, &output, &finish, &provenance)
        .map_err(Rejection::from)?;
    if let Some(key) = key {
        receipt = sign(receipt, &key);
    }
    Verifier::new().verify(&receipt.to_json(), None)?;

    keep(&receipt, path, options.baseline)?;
    let rate = receipt.tokens_per_second.map_or_else(
        || "one token".to_owned(),
        |rate| format!("{rate:.1} tokens/s"),
    );
    println!(
        "prompt {prompt} tokens in {:.1} ms; {} generated, {rate}; {} kernels, {} threads",
        receipt.prefill_ms,
        receipt.tokens_generated,
        receipt.kernel_set,
        receipt.environment.threads
    );
    Ok(())
}

/// Writes the receipt to `path`, and beside the other baselines if asked.
fn keep(receipt: &Receipt, path: PathBuf, baseline: bool) -> anyhow::Result<()> {
    let mut paths = vec![path];
    if baseline {
        let day = receipt.timestamp[..10].replace('-', "");
        paths.push(kept(&format!("{day}-cpu.json")));
    }
    for path in paths {
        receipt
            .write(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("receipt: {}", path.display());
    }
    Ok(())
}
