//! Prints the most probable next tokens after a text:
//! `cargo run --release -p bitnet-inference --example logits`

use std::error::Error;
use std::path::Path;

use bitnet_inference::{Device, EngineOptions, ModelSource, OpenModel};
use bitnet_tokenizers::{PromptBos, TokenId};

/// The story model of this repository. Any GGUF file or Hugging Face directory works, too.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/stories/stories.gguf"
);

/// A token, its logit and its text.
pub type RankedToken = (TokenId, f32, String);

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    for (id, logit, text) in top_tokens(Path::new(MODEL), "Once upon a time", 5)? {
        println!("{logit:8.3}  {id:>6}  {text:?}");
    }
    Ok(())
}

/// The `n` tokens with the largest logits after `text`.
pub fn top_tokens(path: &Path, text: &str, n: usize) -> Result<Vec<RankedToken>, Box<dyn Error>> {
    let source = ModelSource::Path(path.to_owned());
    let model = OpenModel::open(source, Device::default(), Default::default())?;
    let tokenizer = model.tokenizer().ok_or("the model has no tokenizer")?;
    let tokens = tokenizer.encode_prompt(text, PromptBos::AsModel, false)?;

    // Without a driver, an engine runs on the calling thread.
    let mut engine = model.engine(EngineOptions::default())?;
    let vocab_size = model.info().config.vocab_size;
    let mut last = Vec::new();
    engine.evaluate(&tokens, tokens.len() - 1, |_, rows| {
        // Rows of logits, `[n, vocab]`; the last one belongs to the last token so far.
        last = rows[rows.len() - vocab_size..].to_vec();
        Ok::<(), bitnet_inference::Error>(())
    })?;
    let mut ranked: Vec<_> = (0..).map(TokenId).zip(last).collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let with_text = |(id, logit): (TokenId, f32)| {
        let text = String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        (id, logit, text)
    };
    Ok(ranked.into_iter().take(n).map(with_text).collect())
}
