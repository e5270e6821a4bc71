//! Settles the options that all commands share: opens the model, starts the threads, makes the
//! engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_files::gguf::Gguf;
use bitnet_inference::{
    Device, Engine, EngineOptions, Event, FinishReason, Loaded, Request, Timings, Tokenization,
    load, load_embedded,
};
#[cfg(feature = "server")]
use bitnet_inference::{Model, load_tokenization, tokenization_from_gguf};
use bitnet_kernels::{KernelSet, default_threads};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Config, LoadOptions, SamplingDefaults};
use bitnet_tokenizers::TokenId;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{GenerationArguments, ModelArguments, SamplingArguments, WrongUsage};
use crate::built_in;

/// The context that is used where none is asked for and the model has more.
const DEFAULT_CONTEXT: usize = 4096;

/// An engine with a model, and what loading it took.
pub struct Session {
    pub engine: Engine,
    #[cfg(feature = "server")]
    model: Arc<dyn Model>,
    /// `None` if the model came without a tokenizer.
    tokenization: Option<Tokenization>,
    /// The sampling that the model recommends.
    sampling: SamplingDefaults,
    pub source: ModelSource,
    /// The options that loaded the model.
    pub load_options: LoadOptions,
    pub load_time: Duration,
}

/// Where the model comes from.
pub enum ModelSource {
    /// A file or directory.
    Path(PathBuf),
    /// Inside the program.
    BuiltIn(&'static [u8]),
}

impl ModelSource {
    /// What the arguments name: without a path the built-in model, if there is one.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        match (path, built_in::model()) {
            (None, Some(bytes)) => Ok(Self::BuiltIn(bytes)),
            (path, _) => Ok(Self::Path(model_path(path)?)),
        }
    }

    /// The shape of the model, without its weights.
    pub fn config(&self) -> anyhow::Result<Config> {
        self.read_config()
            .with_context(|| format!("cannot open {self}"))
    }

    fn read_config(&self) -> Result<Config, bitnet_models::Error> {
        match self {
            Self::BuiltIn(bytes) => Config::from_gguf(&Gguf::from_static(bytes)?),
            Self::Path(path) if path.is_dir() => Ok(Checkpoint::open(path)?.config().clone()),
            Self::Path(path) => Config::from_gguf(&Gguf::open(path)?),
        }
    }

    /// The sampling that the model recommends, without the weights.
    #[cfg(feature = "server")]
    pub fn sampling(&self) -> anyhow::Result<SamplingDefaults> {
        self.read_sampling()
            .with_context(|| format!("cannot open {self}"))
    }

    #[cfg(feature = "server")]
    fn read_sampling(&self) -> Result<SamplingDefaults, bitnet_models::Error> {
        match self {
            Self::BuiltIn(bytes) => SamplingDefaults::from_gguf(&Gguf::from_static(bytes)?),
            Self::Path(path) if path.is_dir() => SamplingDefaults::from_directory(path),
            Self::Path(path) => SamplingDefaults::from_gguf(&Gguf::open(path)?),
        }
    }

    /// The tokenizer and chat template, without the weights; `None` if there is no tokenizer.
    #[cfg(feature = "server")]
    pub fn tokenization(&self) -> anyhow::Result<Option<Tokenization>> {
        let tokenization = match self {
            Self::BuiltIn(bytes) => tokenization_from_gguf(&Gguf::from_static(bytes)?),
            Self::Path(path) => load_tokenization(path),
        };
        match tokenization {
            Err(bitnet_inference::Error::NoTokenizer) => Ok(None),
            tokenization => tokenization
                .map(Some)
                .with_context(|| format!("cannot load {self}")),
        }
    }
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::BuiltIn(_) => f.write_str(built_in::NAME),
        }
    }
}

/// Opens the model that the arguments name. `context`: positions needed, where the command knows.
pub fn open(arguments: &ModelArguments, context: Option<usize>) -> anyhow::Result<Session> {
    open_with(arguments, context, |_, options| Ok(options))
}

/// The same, with an engine whose options depend on the model.
pub fn open_with(
    arguments: &ModelArguments,
    context: Option<usize>,
    change: impl FnOnce(&Config, EngineOptions) -> anyhow::Result<EngineOptions>,
) -> anyhow::Result<Session> {
    let start = Instant::now();
    let device = Device::with_kernels(
        arguments.kernels.unwrap_or_else(KernelSet::detect),
        num_threads(arguments)?,
    );
    let LoadedModel {
        loaded,
        source,
        load_options,
    } = load_model(arguments, device)?;
    let Loaded {
        model,
        tokenization,
        sampling,
        ..
    } = loaded;
    let context = context.unwrap_or_else(|| context_length(arguments, &model.info().config));
    let options = change(&model.info().config, engine_options(arguments, context))?;
    let tokenizer = tokenization
        .as_ref()
        .map(|tokenization| Arc::clone(&tokenization.tokenizer));
    let engine = Engine::new(Arc::clone(&model), tokenizer, device, options)?;
    Ok(Session {
        engine,
        #[cfg(feature = "server")]
        model,
        tokenization,
        sampling,
        source,
        load_options,
        load_time: start.elapsed(),
    })
}

/// The threads of the engine.
pub fn num_threads(arguments: &ModelArguments) -> anyhow::Result<usize> {
    match arguments.threads[..] {
        [] => Ok(default_threads()),
        [n] => Ok(usize::from(n)),
        _ => Err(WrongUsage(
            "one number of threads (-t), not several: only bench compares them".into(),
        )
        .into()),
    }
}

/// The positions of the context, where the command does not know.
pub fn context_length(arguments: &ModelArguments, config: &Config) -> usize {
    match arguments.ctx_size {
        Some(0) => config.context_length,
        Some(context) => context,
        None => config.context_length.min(DEFAULT_CONTEXT),
    }
}

/// A model, where it comes from, and the options that loaded it.
pub struct LoadedModel {
    pub loaded: Loaded,
    pub source: ModelSource,
    pub load_options: LoadOptions,
}

/// Loads the model that the arguments name.
pub fn load_model(arguments: &ModelArguments, device: Device) -> anyhow::Result<LoadedModel> {
    let source = ModelSource::new(arguments.model.as_deref())?;
    let spinner = spinner(format!("loading {source}"));
    let load_options = arguments.load_options(device);
    let loaded = match &source {
        ModelSource::Path(path) => load(path, &load_options, device),
        ModelSource::BuiltIn(bytes) => load_embedded(bytes, &load_options, device),
    };
    let loaded = loaded.with_context(|| format!("cannot load {source}"))?;
    spinner.finish_and_clear();
    check_files()?;
    if let Some(form) = loaded.i2_s_hint {
        eprintln!(
            "warning: the I2_S codes of {source} look as if they were arranged as {form}: try --i2-s-form {form}"
        );
    }
    Ok(LoadedModel {
        loaded,
        source,
        load_options,
    })
}

/// Fails if a file of the model was cut while it is in use: what was read is not the model.
fn check_files() -> anyhow::Result<()> {
    match bitnet_guard::file_problems(false).into_iter().next() {
        Some(problem) => Err(problem.into()),
        None => Ok(()),
    }
}

/// The engine's bounds, as far as the arguments say.
pub fn engine_options(arguments: &ModelArguments, context: usize) -> EngineOptions {
    EngineOptions {
        context,
        cache: context,
        kv_type: arguments.kv_type.into(),
        prefill_chunk: arguments.prefill_chunk,
        draft_max: arguments.draft,
        ..EngineOptions::default()
    }
}

/// The path of a model that a person names, or how to get one.
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

/// A spinner on a terminal; nothing in a pipe.
fn spinner(message: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// An answer, whole.
pub struct Answer {
    pub tokens: Vec<TokenId>,
    pub text: String,
    /// `None` if it was interrupted.
    pub reason: Option<FinishReason>,
    pub timings: Timings,
}

impl Session {
    /// The tokenizer and chat template, which text needs.
    pub fn tokenization(&self) -> anyhow::Result<&Tokenization> {
        let message =
            "has no tokenizer, so it takes and gives token ids only (--prompt-tokens with --json)";
        self.tokenization
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("{} {message}", self.source))
    }

    /// Makes further engines like this one.
    #[cfg(feature = "server")]
    pub fn remake(&self) -> impl FnMut() -> bitnet_inference::Result<Engine> + 'static {
        let (model, options) = (Arc::clone(&self.model), self.engine.options());
        let tokenizer = self
            .tokenization
            .as_ref()
            .map(|tokenization| Arc::clone(&tokenization.tokenizer));
        let device = self.engine.device();
        move || Engine::new(Arc::clone(&model), tokenizer.clone(), device, options)
    }

    /// How an answer is asked for.
    pub fn request(
        &self,
        prompt: Vec<TokenId>,
        generation: &GenerationArguments,
        sampling: &SamplingArguments,
    ) -> Request {
        let stop_ids = match &self.tokenization {
            Some(tokenization) if !generation.ignore_eos => tokenization.tokenizer.stop_ids(),
            _ => &[],
        };
        Request {
            prompt,
            sampling: sampling.params(&self.sampling),
            max_tokens: usize::try_from(generation.predict).ok(),
            stop_ids: stop_ids.to_vec(),
            stop_strings: generation.stop.clone(),
            ..Request::default()
        }
    }

    /// Runs a request to its end, or until `interrupted` says so. `show` gets each piece of text as
    /// soon as it is certain.
    pub fn answer(
        &mut self,
        request: Request,
        interrupted: &dyn Fn() -> bool,
        mut show: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        // A prompt that takes no time needs no bar.
        let bar = if request.prompt.len() > 256 {
            bar(request.prompt.len(), "prompt tokens")
        } else {
            ProgressBar::hidden()
        };
        let id = self.engine.submit(request)?;
        let mut answer = Answer {
            tokens: Vec::new(),
            text: String::new(),
            reason: None,
            timings: Timings::default(),
        };
        let mut events = Vec::new();
        while answer.reason.is_none() {
            if interrupted() {
                answer.timings = self.engine.cancel(id).unwrap_or_default();
                bar.finish_and_clear();
                return Ok(answer);
            }
            self.engine.step(&mut events);
            check_files()?;
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
                    Event::Failed { problem, .. } => {
                        anyhow::bail!("the answer could not go on: {problem}")
                    }
                    Event::Finished { text, finish, .. } => {
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
        }
        Ok(answer)
    }
}

/// A bar on a terminal that counts bytes, with their speed; nothing in a pipe.
#[cfg(feature = "hub")]
pub fn byte_bar(len: u64, what: String) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::new(len).with_message(what);
    if let Ok(style) = style {
        bar.with_style(style)
    } else {
        bar
    }
}

/// A bar on a terminal that counts to `len`; nothing in a pipe.
pub fn bar(len: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} {msg}, {eta} left");
    let bar = ProgressBar::new(len as u64).with_message(what);
    if let Ok(style) = style {
        bar.with_style(style)
    } else {
        bar
    }
}
