//! From a name to a loaded model with a running engine, as the program does it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bitnet_hub::{Cache, ModelName};
use bitnet_inference::{
    Device, Driver, EngineOptions, LOST_ROTATION, ModelSource, OpenModel, Tuning, context_length,
    kv_cache_positions,
};
use bitnet_kernels::Packing;
use bitnet_models::{Config, I2sForm, LoadOptions};
use bitnet_tokenizers::{ChatTemplate, Tokenizer};

/// The story-teller inside the package, loaded where no model is named.
const BUILT_IN: ModelSource = ModelSource::Embedded {
    name: "built-in story-teller",
    bytes: include_bytes!("../../../models/stories/stories.gguf"),
};

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
}

/// A loaded model, its engine's options and thread, and what is odd about it.
pub(crate) type Opened = (OpenModel, EngineOptions, Driver, Vec<String>);

impl Settings {
    /// Loads the model and starts its engine.
    pub(crate) fn open(self) -> anyhow::Result<Opened> {
        let source = match &self.source {
            None => BUILT_IN,
            Some(path) => ModelSource::Path(resolve(path)?),
        };
        let (packings, mut warnings) = fastest_packings(self.device);
        let load_options = LoadOptions {
            packings,
            i2_s_form: self.i2_s_form,
            ..LoadOptions::default()
        };
        let mut model = OpenModel::open(source.clone(), self.device, load_options)
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
        let driver = model.start(options)?;
        Ok((model, options, driver, warnings))
    }

    /// The engine's bounds for this model.
    fn engine_options(&self, config: &Config) -> anyhow::Result<EngineOptions> {
        let context = context_length(config, self.context);
        let cache = kv_cache_positions(config, self.options.kv_type, context, self.kv_bytes);
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
