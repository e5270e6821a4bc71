//! Receipts of runs.

use anyhow::Context;
use bitnet_inference::{EngineOptions, OpenModel, Piece, Request};
use bitnet_receipts::{Provenance, Receipt};

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
            let known = Provenance::of(model, |name| std::env::var(name).ok())
                .with_context(|| format!("cannot read {}", model.source))?;
            let provenance = Provenance {
                seed_given,
                ..known
            };
            let receipt = Receipt::new(&facts, &request, &tokens, &finish, &provenance)?;
            return Ok((whole, receipt.to_json()));
        }
    }
    anyhow::bail!("the engine has stopped")
}
