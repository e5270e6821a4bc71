//! `bitnet embed`: turns texts into vectors.

use std::collections::VecDeque;
use std::io::Write;

use anyhow::Context;
use bitnet_inference::{
    Device, EngineOptions, Pooling, ReplyStream, Request, context_length, kv_cache_positions,
    normalize,
};
use bitnet_models::Config;
use bitnet_tokenizers::{EncodeOptions, TokenId};
use serde_json::json;

use crate::args::{EmbedArguments, WrongUsage};
use crate::cache::CacheDefault;
use crate::run::read_stdin;
use crate::{bars, session};

/// Texts that the engine has at once.
const TEXTS_AT_ONCE: usize = 64;

/// Reads texts, computes their vectors, and prints them.
pub fn embed(arguments: &EmbedArguments) -> anyhow::Result<()> {
    let texts = texts(arguments)?;
    let device = session::device(&arguments.model)?;
    // The smallest engine: how many tokens the texts have is not known yet.
    let engine = |config: &Config| Ok(engine_options(arguments, &device, config, 0));
    let model = session::open_model(&arguments.model, device, CacheDefault::On, &engine)?;
    let config = &model.info().config;
    let pooling = arguments.pooling.or(config.pooling).ok_or_else(|| {
        WrongUsage(format!(
            "{} does not say how it pools: name a way with --pooling last, mean or cls",
            model.source
        ))
    })?;
    let dimensions = arguments.dimensions.unwrap_or(config.hidden_size);
    if dimensions > config.hidden_size {
        let message = format!(
            "--dimensions {dimensions}, but the vectors have {}",
            config.hidden_size
        );
        return Err(WrongUsage(message).into());
    }
    let tokenizer = &session::tokenization(&model)?.tokenizer;
    let encode = |text: &String| tokenizer.encode(text, EncodeOptions::default());
    let prompts = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let num_tokens: usize = prompts.iter().map(Vec::len).sum();
    let driver = model.start(engine_options(arguments, &device, config, num_tokens))?;

    let bar = bars::bar(prompts.len(), "texts");
    let (mut printer, mut started) = (Printer::new(arguments), VecDeque::new());
    let mut rest = prompts.into_iter();
    loop {
        while started.len() < TEXTS_AT_ONCE
            && let Some(prompt) = rest.next()
        {
            started.push_back(driver.stream(request(prompt, pooling))?);
        }
        let Some(next) = started.pop_front() else {
            break;
        };
        let index = printer.num_printed;
        let mut vector = vector(next).with_context(|| format!("text {}", index + 1))?;
        vector.truncate(dimensions);
        if !arguments.raw {
            normalize(&mut vector);
        }
        printer.print(vector)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    printer.finish(&model.source.to_string(), num_tokens)
}

/// The engine's bounds for texts of `num_tokens` together.
fn engine_options(
    arguments: &EmbedArguments,
    device: &Device,
    config: &Config,
    num_tokens: usize,
) -> EngineOptions {
    let context = context_length(config, arguments.model.ctx_size);
    let kv_type = arguments.model.kv_type.into();
    let most = kv_cache_positions(device, config, kv_type, context, None).max(context);
    EngineOptions {
        cache: num_tokens.clamp(context, most),
        states: TEXTS_AT_ONCE,
        ..session::engine_options(&arguments.model, context)
    }
}

/// The texts that the arguments give.
fn texts(arguments: &EmbedArguments) -> anyhow::Result<Vec<String>> {
    if !arguments.texts.is_empty() {
        return Ok(arguments.texts.clone());
    }
    let Some(path) = &arguments.file else {
        return Err(WrongUsage("no text given: pass texts, or --file FILE".to_owned()).into());
    };
    let text = if path.as_os_str() == "-" {
        read_stdin("the texts")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return Err(WrongUsage(format!("{} is empty", path.display())).into());
    }
    Ok(lines)
}

fn request(prompt: Vec<TokenId>, pooling: Pooling) -> Request {
    Request {
        prompt,
        max_tokens: Some(0),
        pooling: Some(pooling),
        ..Request::default()
    }
}

/// Waits for the vector of a text.
fn vector(answer: ReplyStream) -> anyhow::Result<Vec<f32>> {
    let finish = answer.wait()?.finish;
    finish.pooled.context("the engine returned no vector")
}

/// Prints vectors: each on a line, or all in one object.
struct Printer<'a> {
    arguments: &'a EmbedArguments,
    num_printed: usize,
    data: Vec<serde_json::Value>,
}

impl<'a> Printer<'a> {
    fn new(arguments: &'a EmbedArguments) -> Self {
        Self {
            arguments,
            num_printed: 0,
            data: Vec::new(),
        }
    }

    fn print(&mut self, vector: Vec<f32>) -> anyhow::Result<()> {
        let index = self.num_printed;
        self.num_printed += 1;
        if self.arguments.json {
            let object = json!({ "object": "embedding", "index": index, "embedding": vector });
            self.data.push(object);
            return Ok(());
        }
        let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
        writeln!(std::io::stdout().lock(), "{}", numbers.join(" "))?;
        Ok(())
    }

    fn finish(self, model: &str, num_tokens: usize) -> anyhow::Result<()> {
        if self.arguments.json {
            let object = json!({
                "object": "list",
                "data": self.data,
                "model": model,
                "usage": { "prompt_tokens": num_tokens, "total_tokens": num_tokens },
            });
            writeln!(std::io::stdout().lock(), "{object}")?;
        }
        Ok(())
    }
}
