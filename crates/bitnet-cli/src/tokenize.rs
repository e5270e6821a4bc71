//! `bitnet tokenize`: text to token ids.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bitnet_inference::load_tokenization;
use bitnet_tokenizers::{EncodeOptions, TokenId, Tokenizer, TokenizerFiles};
use serde_json::json;

use crate::args::TokenizeArguments;
use crate::run::read_stdin;
use crate::session::model_path;

/// Prints the ids and pieces of a text.
pub fn tokenize(arguments: &TokenizeArguments) -> anyhow::Result<()> {
    let path = model_path(arguments.model.as_deref())?;
    let tokenizer = open(&path).with_context(|| format!("cannot load {}", path.display()))?;
    let text = match &arguments.text {
        Some(text) => text.clone(),
        None => read_stdin("the text")?,
    };
    let options = EncodeOptions { add_special: !arguments.no_bos, parse_special: arguments.parse_special };
    let tokens = tokenizer.encode(&text, options)?;
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

/// The tokenizer of a model file, of a directory, or of a `tokenizer.json` by itself.
fn open(path: &Path) -> anyhow::Result<Arc<Tokenizer>> {
    if path.extension().is_some_and(|extension| extension == "json") {
        let files = TokenizerFiles { tokenizer: std::fs::read_to_string(path)?, ..TokenizerFiles::default() };
        return Ok(Arc::new(Tokenizer::from_files(&files)?));
    }
    Ok(load_tokenization(path)?.tokenizer)
}
