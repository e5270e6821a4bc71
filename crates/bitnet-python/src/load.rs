//! From a name to a loaded model with a running engine, as the program does it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bitnet_guard::{HelperLimits, HelperProgram};
use bitnet_hub::{Cache, ModelName};
use bitnet_inference::{
    Device, Driver, EngineOptions, LOST_ROTATION, ModelSource, OpenModel, Tuning, context_length,
    kv_cache_positions,
};
use bitnet_kernels::Packing;
use bitnet_models::{Config, I2sForm, LoadOptions, LoadProgress};
use bitnet_server::{Conversation, FormHelper, LocalChats, engine_thread};
use bitnet_tokenizers::{ChatTemplate, Tokenizer};

/// Limits of the helper that compiles the forms of answers, as of `bitnet serve`.
const FORM_LIMITS: HelperLimits = HelperLimits {
    stack_bytes: FormHelper::STACK_BYTES,
    memory_bytes: 256 << 20,
    time: Duration::from_secs(10),
};

/// The story-teller inside the package, loaded where no model is named.
fn built_in() -> anyhow::Result<ModelSource> {
    let model = bitnet_cli::built_in_model();
    let (name, bytes) = model.context("this package was built without a model")?;
    Ok(ModelSource::Embedded { name, bytes })
}

/// What to load, and how.
pub(crate) struct Settings {
    pub(crate) source: Option<PathBuf>,
    pub(crate) device: Device,
    pub(crate) context: Option<usize>,
    pub(crate) kv_bytes: Option<usize>,
    pub(crate) i2_s_form: I2sForm,
    /// A built-in chat template or a file with one, in place of the model's own.
    pub(crate) chat_template: Option<String>,
    pub(crate) options: EngineOptions,
    /// A command that runs the program of this package, without arguments.
    pub(crate) program: HelperProgram,
    /// Called for each loaded layer.
    pub(crate) progress: LoadProgress,
}

/// A loaded model with its running engine.
pub(crate) struct Opened {
    pub(crate) model: OpenModel,
    pub(crate) options: EngineOptions,
    pub(crate) driver: Driver,
    /// Reads conversations.
    pub(crate) chats: LocalChats,
    /// What is odd about the model, though it runs.
    pub(crate) warnings: Vec<String>,
}

impl Settings {
    /// Loads the model and starts its engine.
    pub(crate) fn open(self) -> anyhow::Result<Opened> {
        let source = match &self.source {
            None => built_in()?,
            Some(path) => ModelSource::Path(resolve(path)?),
        };
        let mut device = self.device;
        if !device.is_cpu() {
            let config = source.config();
            let config = config.with_context(|| format!("cannot load {source}"))?;
            device = device.for_engine(self.engine_options(&config)?);
        }
        let (packings, mut warnings) = fastest_packings(device);
        let load_options = LoadOptions {
            packings,
            i2_s_form: self.i2_s_form,
            progress: self.progress.clone(),
            ..LoadOptions::default()
        };
        let mut model = OpenModel::open(source.clone(), device, load_options)
            .with_context(|| format!("cannot load {source}"))?;
        if let Some(problem) = bitnet_guard::file_problems(false).into_iter().next() {
            return Err(problem.into());
        }
        warnings.extend(oddities(&model));
        if let (Some(name), Some(tokenization)) = (&self.chat_template, &mut model.tokenization) {
            let template = named_template(name, &tokenization.tokenizer)?;
            tokenization.chat_template = Ok(Some(Arc::new(template)));
        }
        let options = self.engine_options(&model.info().config)?;
        let driver = start(&model, options)?;
        Ok(Opened {
            chats: self.chats(&model),
            model,
            options,
            driver,
            warnings,
        })
    }

    /// The reader of conversations.
    fn chats(self, model: &OpenModel) -> LocalChats {
        let is_story_teller = self.source.is_none() && self.chat_template.is_none();
        let conversation = match &model.tokenization {
            _ if is_story_teller => Conversation::ContinueLast,
            None => Conversation::Unavailable("this model has no tokenizer".to_owned()),
            Some(tokenization) => match &tokenization.chat_template {
                Ok(Some(template)) => Conversation::Template(Arc::clone(template)),
                Ok(None) => Conversation::Unavailable("this model has no chat template".to_owned()),
                Err(problem) => Conversation::Unavailable(format!(
                    "the model's chat template cannot be used: {problem}"
                )),
            },
        };
        let limits = FORM_LIMITS;
        let mut program = self.program;
        program.arguments.extend([
            "form-helper".to_owned(),
            format!("--stack={}", limits.stack_bytes),
            format!("--memory={}", limits.memory_bytes),
        ]);
        let (tokenizer, vocab_size) = (model.tokenizer().cloned(), model.info().config.vocab_size);
        let helper = FormHelper { program, limits };
        LocalChats::new(tokenizer, conversation, vocab_size, Some(helper))
    }

    /// The engine's bounds for this model.
    fn engine_options(&self, config: &Config) -> anyhow::Result<EngineOptions> {
        let context = context_length(config, self.context);
        let cache = kv_cache_positions(
            &self.device,
            config,
            self.options.kv_type,
            context,
            self.kv_bytes,
        );
        anyhow::ensure!(
            cache >= context,
            "kv_memory holds {cache} positions, but the context has {context}: \
             give it more, or choose a smaller ctx_size"
        );
        Ok(EngineOptions {
            context,
            cache,
            ..self.options
        })
    }
}

/// Starts an engine on a thread of its own, whose stack is large enough for forms of answers.
pub(crate) fn start(model: &OpenModel, options: EngineOptions) -> anyhow::Result<Driver> {
    let (engine, remake) = (model.engine(options)?, model.remake(options));
    let (driver, engine_loop) = Driver::new();
    // If the engine cannot be remade, the loop ends and all requests fail.
    engine_thread()
        .spawn(move || drop(engine_loop.run(engine, remake)))
        .context("cannot start the engine's thread")?;
    Ok(driver)
}

/// What is odd about a model, though it runs.
fn oddities(model: &OpenModel) -> Vec<String> {
    let source = &model.source;
    let form = model.hints.i2_s_form.map(|form| {
        format!(
            "the I2_S codes of {source} seem to be arranged as {form}: try i2_s_form=\"{form}\""
        )
    });
    let lost = model.hints.lost_rotation;
    let lost = lost.then(|| format!("{source}: {LOST_ROTATION}"));
    form.into_iter().chain(lost).collect()
}

/// The path of a pulled model if `path` is its name, else `path` itself.
fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = ModelName::from_path(path) else {
        return Ok(path.to_owned());
    };
    let cache = Cache::from_variables(variable);
    let cache = cache.context("cannot find a home folder for models; set HF_HOME")?;
    Ok(cache.find(&name)?)
}

/// A built-in template, or one in Jinja from a file.
fn named_template(name: &str, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    if ChatTemplate::names().any(|known| known == name) {
        return Ok(ChatTemplate::by_name(name, tokenizer)?);
    }
    let source = std::fs::read_to_string(name).with_context(|| {
        let names = ChatTemplate::names().collect::<Vec<_>>().join(", ");
        format!("chat_template is {name:?}, which is neither a file nor one of {names}")
    })?;
    ChatTemplate::from_jinja(&source, tokenizer).with_context(|| name.to_owned())
}

/// The packing for each shape.
type Packings = Vec<((usize, usize), Packing)>;

/// The packings that `bitnet tune` found to be the fastest on this machine, by shape, and a warning
/// if they cannot be read: the text is the same without them.
fn fastest_packings(device: Device) -> (Packings, Vec<String>) {
    match Tuning::path(variable).map(|path| Tuning::read(&path)) {
        None => Default::default(),
        Some(Ok(tuning)) => (tuning.packings(device), Vec::new()),
        Some(Err(error)) => {
            let warning = format!("{:#}; bitnet tune replaces it", anyhow::Error::from(error));
            (Vec::new(), vec![warning])
        }
    }
}

/// The value of an environment variable, if it is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}
