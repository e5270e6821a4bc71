//! `bitnet tokenize`: shows the token ids of a text.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use bitnet_inference::{Error, ModelSource};
use bitnet_tokenizers::{TokenId, Tokenizer, TokenizerFiles};
use serde_json::json;

use crate::args::TokenizeArguments;
use crate::run::{prompt_bos, read_stdin};
use crate::session;

/// Prints the ids and pieces of a text, as `bitnet run` gives them to the model.
pub fn tokenize(arguments: &TokenizeArguments) -> anyhow::Result<()> {
    let source = session::source(arguments.model.as_deref())?;
    let tokenizer = open(&source).with_context(|| format!("cannot load {source}"))?;
    let text = match &arguments.text {
        Some(text) => text.clone(),
        None => read_stdin("the text")?,
    };
    let bos = prompt_bos(arguments.no_bos);
    let tokens = tokenizer.encode_prompt(&text, bos, arguments.parse_special)?;
    let piece = |id: &TokenId| String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let pieces: Vec<String> = tokens.iter().map(piece).collect();
        writeln!(out, "{}", json!({ "tokens": tokens, "pieces": pieces }))?;
        return Ok(());
    }
    for token in &tokens {
        writeln!(out, "{token:>8}  {:?}", piece(token))?;
    }
    Ok(())
}

/// The tokenizer of a model file, of a directory, of a single `tokenizer.json`, or of the built-in
/// model.
fn open(source: &ModelSource) -> anyhow::Result<Arc<Tokenizer>> {
    match source {
        ModelSource::Path(path) if path.extension().is_some_and(|name| name == "json") => {
            let files = TokenizerFiles {
                tokenizer: std::fs::read_to_string(path)?,
                ..TokenizerFiles::default()
            };
            Ok(Arc::new(Tokenizer::from_files(&files)?))
        }
        source => Ok(source.tokenization()?.ok_or(Error::NoTokenizer)?.tokenizer),
    }
}
