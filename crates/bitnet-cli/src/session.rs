//! Settles the options that all commands share: opens the model, starts the threads, makes the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_inference::{Engine, EngineOptions, Event, Finish, Loaded, Request, Tokenization, load};
use bitnet_kernels::{Cpu, KernelSet, default_threads};
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{GenerationArguments, ModelArguments, SamplingArguments, WrongUsage};

/// The context that is used where none is asked for and the model has more.
const DEFAULT_CONTEXT: usize = 4096;

/// An engine with a model, and what loading it took.
pub struct Session {
    pub engine: Engine,
    pub tokenization: Tokenization,
    pub path: PathBuf,
    pub load_time: Duration,
}

/// Opens the model that the arguments name. `context`: positions needed, where the command knows.
pub fn open(arguments: &ModelArguments, context: Option<usize>) -> anyhow::Result<Session> {
    let path = model_path(arguments.model.as_deref())?;
    let start = Instant::now();
    let spinner = spinner(format!("loading {}", path.display()));
    let set = arguments.kernels.unwrap_or_else(KernelSet::detect);
    let cpu = Cpu::new(set, arguments.threads.map_or_else(default_threads, usize::from));
    let options = LoadOptions { i2_s_form: arguments.i2_s_form, ..LoadOptions::default() };
    let Loaded { model, tokenization } =
        load(&path, options, cpu.pool()).with_context(|| format!("cannot load {}", path.display()))?;
    let trained = model.config().context_length;
    let context = match (context, arguments.ctx_size) {
        (Some(context), _) => context,
        (None, Some(0)) => trained,
        (None, Some(context)) => context,
        (None, None) => trained.min(DEFAULT_CONTEXT),
    };
    let options = EngineOptions { context, kv_type: arguments.kv_type.into(), prefill_chunk: arguments.prefill_chunk };
    let engine = Engine::new(model, Arc::clone(&tokenization.tokenizer), cpu, options)?;
    spinner.finish_and_clear();
    Ok(Session { engine, tokenization, path, load_time: start.elapsed() })
}

/// The model's path, or how to get one.
pub fn model_path(path: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = path.ok_or_else(|| {
        WrongUsage(
            "no model given: download one, such as ggml-model-i2_s.gguf from \
             https://huggingface.co/microsoft/bitnet-b1.58-2B-4T-gguf, and pass it with -m FILE"
                .to_owned(),
        )
    })?;
    Ok(path.to_owned())
}

/// A spinner on a terminal; nothing in a pipe.
fn spinner(message: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// How an answer is asked for.
pub fn request(
    prompt: Vec<TokenId>,
    tokenization: &Tokenization,
    generation: &GenerationArguments,
    sampling: &SamplingArguments,
) -> Request {
    let stop_ids = if generation.ignore_eos { &[][..] } else { tokenization.tokenizer.stop_ids() };
    Request {
        prompt,
        sampling: sampling.params(),
        max_tokens: usize::try_from(generation.predict).ok(),
        stop_ids: stop_ids.to_vec(),
        stop_strings: generation.stop.clone(),
    }
}

/// An answer, whole.
pub struct Answer {
    pub tokens: Vec<TokenId>,
    pub text: String,
    /// `None` if it was interrupted.
    pub finish: Option<Finish>,
}

impl Session {
    /// Runs a request to its end, or until `interrupted` says so. `show` gets each piece of text as soon as it is certain.
    pub fn answer(
        &mut self,
        request: Request,
        interrupted: &dyn Fn() -> bool,
        mut show: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        // A prompt that takes no time needs no bar.
        let bar = if request.prompt.len() > 256 { prompt_bar(request.prompt.len()) } else { ProgressBar::hidden() };
        let id = self.engine.submit(request)?;
        let mut answer = Answer { tokens: Vec::new(), text: String::new(), finish: None };
        let mut events = Vec::new();
        while answer.finish.is_none() {
            if interrupted() {
                self.engine.cancel(id);
                bar.finish_and_clear();
                return Ok(answer);
            }
            self.engine.step(&mut events);
            for event in events.drain(..) {
                let text = match event {
                    Event::Prefill { done, total, .. } => {
                        bar.set_position(done as u64);
                        if done == total {
                            bar.finish_and_clear();
                        }
                        continue;
                    }
                    Event::Token { token, text, .. } => {
                        answer.tokens.push(token);
                        text
                    }
                    Event::Finished { text, finish, .. } => {
                        answer.finish = Some(finish);
                        text
                    }
                };
                if !text.is_empty() {
                    show(&text)?;
                    answer.text.push_str(&text);
                }
            }
        }
        Ok(answer)
    }
}

fn prompt_bar(tokens: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("reading the prompt {wide_bar} {pos}/{len} tokens {eta}");
    let bar = ProgressBar::new(tokens as u64);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}
