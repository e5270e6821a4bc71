//! `bitnet perplexity`: measures how well a model predicts a text.

use std::io::Write;
use std::ops::Range;

use anyhow::Context;
use bitnet_inference::Likelihood;
use bitnet_inference::perplexity::{chunks, strides};
use bitnet_tokenizers::{PromptBos, TokenId};
use serde_json::json;

use crate::args::{PerplexityArguments, WrongUsage};
use crate::{bars, report, session};

/// The line that separates documents.
const SEPARATOR: &str = "<|endoftext|>";

/// Reads a text, computes the likelihood of its tokens, and prints perplexity and bits per byte.
pub fn perplexity(arguments: &PerplexityArguments) -> anyhow::Result<()> {
    let path = &arguments.file;
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let context = arguments.context;
    let stride = arguments.stride.unwrap_or(0);
    if stride >= context + stride / 2 {
        return Err(
            WrongUsage(format!("--stride {stride} is too long for --ctx {context}")).into(),
        );
    }
    let session = session::open(&arguments.model, Some(context + stride / 2))?;
    let (total, documents, bytes) = match arguments.stride {
        _ if arguments.documents => documents_likelihood(&session, &text, context)?,
        Some(stride) => {
            windows_likelihood(&session, &text, false, |len| strides(len, context, stride))?
        }
        None => windows_likelihood(&session, &text, true, |len| chunks(len, context))?,
    };
    if total.tokens == 0 {
        return Err(WrongUsage(format!(
            "{} is too short: there is no token to predict",
            path.display()
        ))
        .into());
    }
    let bits_per_byte = total.nats / std::f64::consts::LN_2 / bytes as f64;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "documents": documents,
            "tokens": total.tokens,
            "nats": total.nats,
            "perplexity": total.perplexity(),
            "bytes": bytes,
            "bits_per_byte": bits_per_byte,
            "context": context,
            "stride": arguments.stride,
            "model": report::model_json(&session.model.source, session.model.info()),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(
        out,
        "perplexity {:.4} · {bits_per_byte:.5} bits per byte · {} tokens, {bytes} bytes, {documents} documents",
        total.perplexity(),
        total.tokens
    )?;
    Ok(())
}

/// Evaluates each document alone, after BOS, and counts all its tokens. Reads long documents in
/// windows that move by half the context.
fn documents_likelihood(
    session: &session::Session,
    text: &str,
    context: usize,
) -> anyhow::Result<(Likelihood, usize, usize)> {
    let documents: Vec<&str> = documents(text).collect();
    let bar = bars::bar(documents.len(), "documents");
    let (mut total, mut bytes) = (Likelihood::default(), 0);
    for document in &documents {
        // BOS even if the model's files do not ask for it: the first token needs a context.
        let tokenizer = &session.tokenization()?.tokenizer;
        let tokens = tokenizer.encode_prompt(document, PromptBos::Always, false)?;
        let likelihood = session
            .driver
            .call(move |engine| engine.likelihood(&tokens, context))??;
        total.add(likelihood);
        bytes += document.len();
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((total, documents.len(), bytes))
}

/// Evaluates windows over the text, as llama.cpp defines them: the first tokens of each window are
/// not counted. The text starts with BOS if the model asks for it. With `bos_in_each`, BOS also
/// replaces the first token of each window.
fn windows_likelihood<W: ExactSizeIterator<Item = (Range<usize>, usize)>>(
    session: &session::Session,
    text: &str,
    bos_in_each: bool,
    windows: impl FnOnce(usize) -> W,
) -> anyhow::Result<(Likelihood, usize, usize)> {
    let tokenizer = std::sync::Arc::clone(&session.tokenization()?.tokenizer);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let tokens = tokenizer.encode_prompt(text, PromptBos::AsModel, false)?;
    let windows = windows(tokens.len());
    let bar = bars::bar(windows.len(), "chunks");
    let (mut total, mut bytes) = (Likelihood::default(), 0);
    for (window, skip) in windows {
        let mut window: Vec<TokenId> = tokens[window].to_vec();
        if let Some(bos) = bos.filter(|_| bos_in_each) {
            window[0] = bos;
        }
        bytes += window[skip..]
            .iter()
            .map(|id| tokenizer.token_bytes(*id).len())
            .sum::<usize>();
        let likelihood = session
            .driver
            .call(move |engine| engine.likelihood_of_window(&window, skip))??;
        total.add(likelihood);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if total.tokens == 0 {
        let message = format!(
            "the text has {} tokens, too few for --ctx and --stride",
            tokens.len()
        );
        return Err(WrongUsage(message).into());
    }
    Ok((total, 1, bytes))
}

fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split(SEPARATOR)
        .map(str::trim)
        .filter(|document| !document.is_empty())
}
