//! `bitnet tokenize`: text to token ids.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use bitnet_files::gguf::Gguf;
use bitnet_inference::{load_tokenization, tokenization_from_gguf};
use bitnet_tokenizers::{EncodeOptions, TokenId, Tokenizer, TokenizerFiles};
use serde_json::json;

use crate::args::TokenizeArguments;
use crate::run::read_stdin;
use crate::session::ModelSource;

/// Prints the ids and pieces of a text.
pub fn tokenize(arguments: &TokenizeArguments) -> anyhow::Result<()> {
    let source = ModelSource::new(arguments.model.as_deref())?;
    let tokenizer = open(&source).with_context(|| format!("cannot load {source}"))?;
    let text = match &arguments.text {
        Some(text) => text.clone(),
        None => read_stdin("the text")?,
    };
    let options = EncodeOptions {
        add_special: !arguments.no_bos,
        parse_special: arguments.parse_special,
    };
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

/// The tokenizer of a model file, of a directory, of a `tokenizer.json` by itself, or of the
/// built-in model.
fn open(source: &ModelSource) -> anyhow::Result<Arc<Tokenizer>> {
    let path = match source {
        ModelSource::Path(path) => path,
        ModelSource::BuiltIn(bytes) => {
            return Ok(tokenization_from_gguf(&Gguf::from_static(bytes)?)?.tokenizer);
        }
    };
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        let files = TokenizerFiles {
            tokenizer: std::fs::read_to_string(path)?,
            ..TokenizerFiles::default()
        };
        return Ok(Arc::new(Tokenizer::from_files(&files)?));
    }
    Ok(load_tokenization(path)?.tokenizer)
}
