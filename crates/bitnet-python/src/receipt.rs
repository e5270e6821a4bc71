//! Receipts of runs.

use anyhow::Context;
use bitnet_inference::{EngineOptions, ModelSource, OpenModel, Piece, Request};
use bitnet_receipts::{Provenance, Receipt, model_sha256, sha256_hex};

use crate::answer::{Collected, WholeTuple};
use crate::load::start;

/// Runs a request alone, on an engine of its own, and returns the answer and its receipt as JSON.
/// `is_cancelled` is asked at each piece. Hashes the model's files.
pub(crate) fn run(
    model: &OpenModel,
    options: EngineOptions,
    request: Request,
    seed_given: bool,
    is_cancelled: impl Fn() -> bool,
) -> anyhow::Result<(WholeTuple, String)> {
    let driver = start(model, options)?;
    driver.call(|engine| engine.counters().reset())?;
    let mut stream = driver.stream(request.clone())?;
    let (mut collected, mut tokens) = (Collected::default(), Vec::new());
    for piece in &mut stream {
        anyhow::ensure!(!is_cancelled(), "the run was cancelled");
        let piece = piece?;
        let finish = match &piece {
            Piece::Prompt { .. } => None,
            Piece::Token(token) => {
                tokens.push(token.id);
                None
            }
            Piece::End { finish, .. } => Some(finish.clone()),
        };
        let whole = collected.add(piece);
        if let (Some(finish), Some(whole)) = (finish, whole) {
            let facts = driver.call(|engine| engine.facts())?;
            let provenance = provenance(model, seed_given)?;
            let receipt = Receipt::new(&facts, &request, &tokens, &finish, &provenance)?;
            return Ok((whole, receipt.to_json()));
        }
    }
    anyhow::bail!("the engine has stopped")
}

/// The facts of a receipt about model and environment.
fn provenance(model: &OpenModel, seed_given: bool) -> anyhow::Result<Provenance> {
    let model_sha256 = match &model.source {
        ModelSource::Path(path) => {
            model_sha256(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        ModelSource::Embedded { bytes, .. } => sha256_hex(bytes),
    };
    let variable = |name: &str| std::env::var(name).ok();
    Ok(Provenance {
        model_path: model.source.to_string(),
        model_sha256,
        load: model.load_options.clone(),
        kernels_requested: None,
        seed_given,
        bitnet_deterministic: variable("BITNET_DETERMINISTIC"),
        bitnet_seed: variable("BITNET_SEED"),
    })
}
