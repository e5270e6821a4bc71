//! Continues a prompt and prints each piece of text as soon as it is certain:
//! `cargo run --release -p bitnet-inference --example generate`

use std::error::Error;
use std::io::Write;
use std::path::Path;

use bitnet_inference::{
    Device, EngineOptions, ModelSource, OpenModel, Piece, Request, SamplingParams,
};
use bitnet_tokenizers::PromptBos;

/// The story model of this repository. Any GGUF file or Hugging Face directory works, too.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/stories/stories.gguf"
);

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let request = Request {
        max_tokens: Some(100),
        ..Request::default()
    };
    generate(Path::new(MODEL), "Once upon a time", request, &mut out)
}

/// Writes the continuation of `prompt` to `out`, by the parameters of `request`.
pub fn generate(
    path: &Path,
    prompt: &str,
    request: Request,
    out: &mut dyn Write,
) -> Result<(), Box<dyn Error>> {
    let source = ModelSource::Path(path.to_owned());
    let model = OpenModel::open(source, Device::default(), Default::default())?;
    let tokenizer = model.tokenizer().ok_or("the model has no tokenizer")?;

    // The engine runs on its own thread and serves any number of requests at once.
    let driver = model.start(EngineOptions::default())?;
    let request = Request {
        prompt: tokenizer.encode_prompt(prompt, PromptBos::AsModel, false)?,
        stop_ids: tokenizer.stop_ids().to_vec(),
        sampling: SamplingParams {
            seed: 7,
            ..request.sampling
        },
        ..request
    };
    for piece in driver.stream(request)? {
        match piece? {
            Piece::Prompt { .. } => {}
            Piece::Token(token) => {
                write!(out, "{}", token.text)?;
                out.flush()?;
            }
            Piece::End { text, finish } => {
                writeln!(out, "{text}")?;
                let tokens = finish.timings.generated_tokens;
                writeln!(out, "[{tokens} tokens, {}]", finish.reason.name())?;
            }
        }
    }
    Ok(())
}
