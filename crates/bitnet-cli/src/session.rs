//! The steps that commands share: from arguments to an open model, a running engine and an answer.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_guard::FileProblem;
use bitnet_inference::{
    CacheUse, Device, Driver, EngineOptions, Failure, FinishReason, LOST_ROTATION, MakeConstraint,
    ModelSource, OpenModel, Piece, Request, Timings, Token, Tokenization, context_length,
};
use bitnet_kernels::{KernelSet, default_threads};
use bitnet_models::Config;
use bitnet_tokenizers::TokenId;
use indicatif::ProgressBar;

use crate::args::{GenerationArguments, ModelArguments, SamplingArguments, WrongUsage};
use crate::cache::CacheDefault;
use crate::{bars, built_in, cache, tuning_file};

/// The time between two checks for Ctrl-C while an answer is computed.
const INTERRUPT_PAUSE: Duration = Duration::from_millis(20);

/// A model with its engine.
pub struct Session {
    pub model: OpenModel,
    pub driver: Driver,
    /// The positions of the context.
    pub context: usize,
    pub load_time: Duration,
}

/// Recurrent states of a command with one sequence: of the sequence, and of its draft.
const STATES: usize = 2;
/// The same for a conversation: also two saved states, of the last prompt and its answer.
const STATES_OF_CHAT: usize = 4;

/// Opens the model that the arguments name, and starts its engine. `context`: the number of
/// positions, if the command knows it.
pub fn open(arguments: &ModelArguments, context: Option<usize>) -> anyhow::Result<Session> {
    open_with(arguments, context, STATES)
}

/// The same for a conversation, whose turns continue each other.
pub fn open_for_chat(arguments: &ModelArguments) -> anyhow::Result<Session> {
    open_with(arguments, None, STATES_OF_CHAT)
}

fn open_with(
    arguments: &ModelArguments,
    context: Option<usize>,
    states: usize,
) -> anyhow::Result<Session> {
    let start = Instant::now();
    let context =
        |config: &Config| context.unwrap_or_else(|| context_length(config, arguments.ctx_size));
    let options = |config: &Config| {
        Ok(EngineOptions {
            states,
            ..engine_options(arguments, context(config))
        })
    };
    let device = device(arguments)?;
    let model = open_model(arguments, device, CacheDefault::On, &options)?;
    let context = context(&model.info().config);
    let driver = model.start(options(&model.info().config)?)?;
    Ok(Session {
        model,
        driver,
        context,
        load_time: start.elapsed(),
    })
}

/// The options of the engine for a model with this configuration.
pub type EngineFor<'a> = dyn Fn(&Config) -> anyhow::Result<EngineOptions> + 'a;

/// Loads the model that the arguments name. A GPU must have room for the engine, too.
pub fn open_model(
    arguments: &ModelArguments,
    device: Device,
    cache_default: CacheDefault,
    engine: &EngineFor<'_>,
) -> anyhow::Result<OpenModel> {
    let source = source(arguments.only_model()?)?;
    open_source(&source, arguments, device, cache_default, engine)
}

/// Loads the model at `source` as the arguments say. A GPU must have room for the engine, too.
pub fn open_source(
    source: &ModelSource,
    arguments: &ModelArguments,
    mut device: Device,
    cache_default: CacheDefault,
    engine: &EngineFor<'_>,
) -> anyhow::Result<OpenModel> {
    if !device.is_cpu() {
        let config = source.config();
        let config = config.with_context(|| format!("cannot load {source}"))?;
        device = device.for_engine(engine(&config)?);
    }
    let mut options = arguments.load_options();
    if options.packing.is_none() && device.is_cpu() {
        options.packings = tuning_file::fastest_packings(device);
    }
    let weights = match source {
        ModelSource::Path(_) => cache::of(&arguments.weight_cache, cache_default),
        ModelSource::Embedded { .. } => None,
    };
    let progress = options.progress.clone();
    let load = || OpenModel::open_with(source.clone(), device, options, weights.as_ref());
    let model = bars::with_load_bar(&progress, format!("loading {source}"), load)
        .with_context(|| format!("cannot load {source}"))?;
    check_files(&files(&model))?;
    cache::report(source, &model.cache_use);
    if let Some(form) = model.hints.i2_s_form {
        eprintln!(
            "warning: the I2_S codes of {source} seem to be arranged as {form}: try --i2-s-form {form}"
        );
    }
    if model.hints.lost_rotation {
        eprintln!("warning: {source}: {LOST_ROTATION}");
    }
    for line in left_out(model.hints.extra_layers, model.hints.extra_tensors) {
        eprintln!("note: {source}: {line}");
    }
    Ok(model)
}

/// Notes about the parts of a model that are left out: layers of a GGUF file, tensors of a
/// directory.
pub fn left_out(extra_layers: usize, extra_tensors: usize) -> Vec<String> {
    let layers = match extra_layers {
        0 => None,
        1 => Some("1 layer that predicts tokens after the next one (nextn) is".to_owned()),
        n => Some(format!(
            "{n} layers that predict tokens after the next one (nextn) are"
        )),
    };
    let tensors = (extra_tensors > 0).then(|| {
        format!(
            "{extra_tensors} tensors that see pictures (model.visual) or predict tokens after the \
             next one (mtp) are"
        )
    });
    let parts = layers.into_iter().chain(tensors);
    parts
        .map(|part| format!("{part} left out; no answer to a text depends on them"))
        .collect()
}

/// Fails if one of the files was cut while it is in use: the bytes that were read may be wrong.
fn check_files(files: &[PathBuf]) -> anyhow::Result<()> {
    let is_ours = |problem: &FileProblem| files.iter().any(|file| problem.path().starts_with(file));
    match bitnet_guard::file_problems(false).into_iter().find(is_ours) {
        Some(problem) => Err(problem.into()),
        None => Ok(()),
    }
}

/// The files of a model, and folders of its files.
pub fn files(model: &OpenModel) -> Vec<PathBuf> {
    let source = match &model.source {
        ModelSource::Path(path) => Some(path.clone()),
        ModelSource::Embedded { .. } => None,
    };
    let cached = match &model.cache_use {
        CacheUse::Mapped(file) | CacheUse::Written { file, .. } => Some(file.path.clone()),
        CacheUse::None | CacheUse::Small | CacheUse::Failed(_) => None,
    };
    source.into_iter().chain(cached).collect()
}

/// The model at `path`, or the built-in one if there is no path.
pub fn source(path: Option<&Path>) -> anyhow::Result<ModelSource> {
    match (path, built_in::model()) {
        (None, Some(bytes)) => Ok(ModelSource::Embedded {
            name: built_in::NAME,
            bytes,
        }),
        (path, _) => Ok(ModelSource::Path(model_path(path)?)),
    }
}

/// The device that the arguments name.
pub fn device(arguments: &ModelArguments) -> anyhow::Result<Device> {
    let threads = match arguments.threads[..] {
        [] => default_threads(),
        [n] => usize::from(n),
        _ => {
            let message = "-t takes one number of threads: only bench compares several";
            return Err(WrongUsage(message.to_owned()).into());
        }
    };
    named_device(arguments, threads)
}

/// The device that the arguments name, with these threads of the host.
pub fn named_device(arguments: &ModelArguments, threads: usize) -> anyhow::Result<Device> {
    static NOTE: Once = Once::new();
    let kernels = arguments.kernels.unwrap_or_else(KernelSet::detect);
    let memory_max = arguments.device_memory.map(|mib| mib << 20);
    let cpu = Device::with_kernels(kernels, threads);
    let (device, no_gpu) = cpu
        .named(&arguments.device, memory_max)
        .context("cannot use the device")?;
    if let Some(reason) = no_gpu {
        NOTE.call_once(|| eprintln!("note: the CPU runs the model: {reason}"));
    }
    Ok(device)
}

/// The engine's bounds for one sequence of `context` positions.
pub fn engine_options(arguments: &ModelArguments, context: usize) -> EngineOptions {
    EngineOptions {
        context,
        cache: context,
        kv_type: arguments.kv_type.into(),
        prefill_chunk: arguments.prefill_chunk,
        draft_max: arguments.draft.max,
        draft_adapts: arguments.draft.adapts,
        ..EngineOptions::default()
    }
}

/// The path of the model that the user names. Without a name, an error that says how to get one.
pub fn model_path(path: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = path.ok_or_else(|| {
        WrongUsage(
            "no model given: download one, such as ggml-model-i2_s.gguf from \
             https://huggingface.co/microsoft/bitnet-b1.58-2B-4T-gguf, and pass it with -m FILE"
                .to_owned(),
        )
    })?;
    #[cfg(feature = "hub")]
    return crate::hub::resolve(path);
    #[cfg(not(feature = "hub"))]
    Ok(path.to_owned())
}

/// The tokenizer and chat template of a model, which text needs.
pub fn tokenization(model: &OpenModel) -> anyhow::Result<&Tokenization> {
    model.tokenization.as_ref().ok_or_else(|| {
        anyhow::anyhow!(
            "{} has no tokenizer, so it takes and returns token ids only (--prompt-tokens with --json)",
            model.source
        )
    })
}

/// A whole answer.
pub struct Answer {
    pub tokens: Vec<TokenId>,
    pub text: String,
    /// `None` if the user interrupted it.
    pub reason: Option<FinishReason>,
    pub timings: Timings,
}

impl Session {
    /// The tokenizer and chat template, which text needs.
    pub fn tokenization(&self) -> anyhow::Result<&Tokenization> {
        tokenization(&self.model)
    }

    /// A request for an answer to `prompt`.
    pub fn request(
        &self,
        prompt: Vec<TokenId>,
        generation: &GenerationArguments,
        sampling: &SamplingArguments,
    ) -> Request {
        let stop_ids = match self.model.tokenizer() {
            Some(tokenizer) if !generation.ignore_eos => tokenizer.stop_ids(),
            _ => &[],
        };
        Request {
            prompt,
            sampling: sampling.params(&self.model.sampling),
            max_tokens: usize::try_from(generation.predict).ok(),
            stop_ids: stop_ids.to_vec(),
            stop_strings: generation.stop.clone(),
            ..Request::default()
        }
    }

    /// Runs a request to its end, or until `interrupted` returns true. Calls `show` for each piece
    /// of text.
    pub fn answer(
        &self,
        request: Request,
        constraint: Option<MakeConstraint>,
        interrupted: &dyn Fn() -> bool,
        mut show: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        // A short prompt takes too little time for a bar.
        let bar = if request.prompt.len() > 256 {
            bars::bar(request.prompt.len(), "prompt tokens")
        } else {
            ProgressBar::hidden()
        };
        let mut answer = Answer {
            tokens: Vec::new(),
            text: String::new(),
            reason: None,
            timings: Timings::default(),
        };
        let mut stream = self.driver.stream_constrained(request, constraint)?;
        loop {
            if interrupted() {
                stream.cancel();
            }
            let piece = match stream.poll_timeout(INTERRUPT_PAUSE) {
                Poll::Pending => continue,
                Poll::Ready(None) => break,
                Poll::Ready(Some(Ok(piece))) => piece,
                Poll::Ready(Some(Err(Failure::Cancelled(timings)))) => {
                    answer.timings = timings;
                    break;
                }
                // An invalid parameter has its own exit code.
                Poll::Ready(Some(Err(Failure::Refused(error)))) => return Err(error.into()),
                Poll::Ready(Some(Err(failure))) => return Err(failure.into()),
            };
            let text = match piece {
                Piece::Prompt { done, total, .. } => {
                    bar.set_position(done as u64);
                    if done == total {
                        bar.finish_and_clear();
                    }
                    continue;
                }
                Piece::Token(Token { id, text, .. }) => {
                    answer.tokens.push(id);
                    text
                }
                Piece::End { text, finish } => {
                    answer.reason = Some(finish.reason);
                    answer.timings = finish.timings;
                    text
                }
            };
            if !text.is_empty() {
                show(&text)?;
                answer.text.push_str(&text);
            }
        }
        bar.finish_and_clear();
        Ok(answer)
    }
}
