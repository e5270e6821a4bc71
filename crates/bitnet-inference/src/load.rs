//! Loads models with their tokenizers and chat templates.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, Metadata, TensorType};
use bitnet_models::huggingface::{Checkpoint, end_tokens};
use bitnet_models::{Config, I2sForm, LoadOptions, SamplingDefaults, likely_form, lost_rotation};
use bitnet_tokenizers::{ChatTemplate, TokenId, Tokenizer, TokenizerFiles, TokenizerSpec};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::runner::Model;
use crate::weight_cache::{self, CacheUse, WeightCache};

/// The value of `tokenizer.ggml.model` in files without a tokenizer.
pub const NO_TOKENIZER: &str = "no_vocab";

/// The problem of a Bonsai 2 model without its keys.
pub const LOST_ROTATION: &str = "the name says Bonsai 2, whose weights are rotated, but the keys prism.hadamard.* are missing: \
     the text will be fluent nonsense";

/// The tokenizer and the chat template of a model.
pub struct Tokenization {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, `None` if the model has none, or why it cannot be used.
    pub chat_template: std::result::Result<Option<Arc<ChatTemplate>>, bitnet_tokenizers::Error>,
}

/// A loaded model.
pub struct Loaded {
    /// The weights.
    pub model: Arc<dyn Model>,
    /// Its tokenizer and chat template. A model without them takes and returns token ids only.
    pub tokenization: Option<Tokenization>,
    /// Oddities of the files; the model runs nevertheless.
    pub hints: Hints,
    /// The sampling settings that its files recommend.
    pub sampling: SamplingDefaults,
    /// How the load used the cache of packed weights.
    pub cache_use: CacheUse,
}

/// Loads the model at `path`: a GGUF file, or a directory in Hugging Face's layout.
///
/// # Errors
/// If there is no model, or it is damaged or not supported.
pub fn load(path: &Path, options: &LoadOptions, device: Device) -> Result<Loaded> {
    load_with(path, options, device, None)
}

/// The same, with packed weights from `cache`, or written to it.
///
/// # Errors
/// As [`load`]. A problem of the cache is not an error: [`Loaded::cache_use`] has it.
pub fn load_with(
    path: &Path,
    options: &LoadOptions,
    device: Device,
    cache: Option<&WeightCache>,
) -> Result<Loaded> {
    if !path.is_dir() {
        return load_gguf(&Arc::new(Gguf::open(path)?), options, device, cache);
    }
    let checkpoint = Checkpoint::open(path)?;
    let architecture = checkpoint.config().architecture.gguf_name();
    // Load the tokenizer first, so that an error in it is found before loading the weights takes
    // seconds.
    let tokenization = match TokenizerFiles::exist_in(path) {
        true => Some(with_template(tokenizer_of(path)?, architecture)),
        false => None,
    };
    let sampling = SamplingDefaults::from_directory(path)?;
    let files = cache.and_then(|_| checkpoint.identity());
    let weights = weight_cache::load_with(cache, files, device, options, |keeper| {
        device.load_checkpoint(&checkpoint, options, keeper)
    })?;
    let hints = Hints {
        extra_tensors: checkpoint.num_left_out(),
        ..Hints::default()
    };
    loaded(weights, tokenization, hints, sampling, true)
}

/// Loads a model that is embedded in the program.
///
/// # Errors
/// If it is damaged or not supported.
pub fn load_embedded(
    bytes: &'static [u8],
    options: &LoadOptions,
    device: Device,
) -> Result<Loaded> {
    load_gguf(&Arc::new(Gguf::from_static(bytes)?), options, device, None)
}

fn load_gguf(
    gguf: &Arc<Gguf>,
    options: &LoadOptions,
    device: Device,
    cache: Option<&WeightCache>,
) -> Result<Loaded> {
    let tokenization = match tokenization_from_gguf(gguf) {
        Err(Error::NoTokenizer) => None,
        result => Some(result?),
    };
    let sampling = SamplingDefaults::from_gguf(gguf)?;
    let files = cache.and_then(|_| gguf.identity());
    let weights = weight_cache::load_with(cache, files, device, options, |keeper| {
        device.load_gguf(gguf, options, keeper)
    })?;
    let form = likely_i2s_form(gguf, &weights.0.info().config);
    let hints = Hints {
        i2_s_form: form.filter(|form| *form != options.i2_s_form),
        lost_rotation: lost_rotation(gguf.metadata()),
        extra_layers: weights.0.info().config.num_extra_layers,
        extra_tensors: 0,
    };
    loaded(weights, tokenization, hints, sampling, false)
}

/// Oddities of a model's files. The model runs, but its text may be nonsense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// The likely arrangement of the I2_S codes, if it differs from the one that was used.
    pub i2_s_form: Option<I2sForm>,
    /// Whether the model's name says that its weights are rotated, but no key declares it.
    pub lost_rotation: bool,
    /// Layers that predict tokens after the next one, which the engine leaves out.
    pub extra_layers: usize,
    /// Tensors of a directory that see pictures or predict tokens after the next one, which the
    /// engine leaves out.
    pub extra_tensors: usize,
}

/// The likely arrangement of the I2_S codes of a file, from the dead neurons of its first layers;
/// `None` without dead neurons, as in random models. Takes about 10 ms per layer of a 2B model.
#[must_use]
pub fn likely_i2s_form(gguf: &Gguf, config: &Config) -> Option<I2sForm> {
    let tensor = |layer: usize, part: &str| gguf.tensor(&format!("blk.{layer}.{part}.weight"));
    (0..config.num_layers.min(2)).find_map(|layer| {
        let (gate, up, down) = (
            tensor(layer, "ffn_gate")?,
            tensor(layer, "ffn_up")?,
            tensor(layer, "ffn_down")?,
        );
        if [&gate, &up, &down]
            .iter()
            .any(|tensor| tensor.dtype != TensorType::I2_S)
        {
            return None;
        }
        likely_form(
            gate.data,
            up.data,
            down.data,
            config.hidden_size,
            config.ffn_size,
        )
        .ok()
        .flatten()
    })
}

fn loaded(
    (model, cache_use): (Arc<dyn Model>, CacheUse),
    tokenization: Option<Tokenization>,
    hints: Hints,
    sampling: SamplingDefaults,
    is_directory: bool,
) -> Result<Loaded> {
    let tokens = tokenization
        .as_ref()
        .map_or(0, |tokenization| tokenization.tokenizer.vocab_size());
    let rows = model.info().config.vocab_size;
    // In a GGUF file the list of tokens states the rows of the embedding. Directories may have more
    // tokens than rows, as in transformers: a prompt with such a token is refused.
    if tokens > rows && !is_directory {
        return Err(Error::VocabularySize {
            tokenizer: tokens,
            model: rows,
        });
    }
    Ok(Loaded {
        model,
        tokenization,
        hints,
        sampling,
        cache_use,
    })
}

/// The tokenizer at `path`: a GGUF file of any architecture, or a directory with `tokenizer.json`
/// or `tokenizer.model`.
///
/// # Errors
/// If there is no tokenizer, or it is damaged or not supported.
pub fn load_tokenization(path: &Path) -> Result<Tokenization> {
    if path.is_dir() {
        return Ok(with_template(tokenizer_of(path)?, ""));
    }
    tokenization_from_gguf(&Gguf::open(path)?)
}

/// The tokenizer of a directory. As in transformers, its answers end at the `eos_token_id`, one or
/// several, of `generation_config.json`, or else of `config.json`; where neither has one, at the
/// tokenizer's own end.
fn tokenizer_of(directory: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_dir(directory)?;
    let ids = end_tokens(directory)?;
    Ok(match ids.is_empty() {
        true => tokenizer,
        false => tokenizer.with_stop_ids(ids.into_iter().map(TokenId).collect()),
    })
}

/// The tokenizer in the metadata of a GGUF file.
///
/// # Errors
/// If there is no tokenizer, or it is damaged or not supported.
pub fn tokenization_from_gguf(gguf: &Gguf) -> Result<Tokenization> {
    let spec = tokenizer_spec(gguf)?;
    Ok(with_template(
        Tokenizer::from_spec(&spec)?,
        &spec.architecture,
    ))
}

/// The description of the tokenizer in the metadata of a GGUF file.
///
/// # Errors
/// If there is no tokenizer, or a key has the wrong type.
pub fn tokenizer_spec(gguf: &Gguf) -> Result<TokenizerSpec<'_>> {
    let metadata = gguf.metadata();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| -> Result<Option<u32>> { Ok(metadata.u32(&key(name))?) };
    let strings = |name: &str| -> Result<Vec<Cow<'_, str>>> {
        Ok(metadata
            .strings(&key(name))?
            .into_iter()
            .flatten()
            .map(Cow::Borrowed)
            .collect())
    };
    Ok(TokenizerSpec {
        architecture: metadata
            .str("general.architecture")?
            .unwrap_or_default()
            .into(),
        model: metadata
            .str(&key("model"))?
            .filter(|name| *name != NO_TOKENIZER)
            .ok_or(Error::NoTokenizer)?
            .into(),
        pre: metadata.str(&key("pre"))?.map(Cow::Borrowed),
        tokens: metadata
            .require_strings(&key("tokens"))?
            .map(Cow::Borrowed)
            .collect(),
        scores: metadata
            .f32s(&key("scores"))?
            .into_iter()
            .flatten()
            .collect(),
        token_types: metadata
            .i32s(&key("token_type"))?
            .into_iter()
            .flatten()
            .collect(),
        merges: strings("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
        add_bos: metadata.bool(&key("add_bos_token"))?,
        add_eos: metadata.bool(&key("add_eos_token"))?,
        add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
        chat_template: metadata.str("tokenizer.chat_template")?.map(Cow::Borrowed),
        named_chat_templates: named_chat_templates(metadata),
    })
}

/// `tokenizer.chat_template.NAME` of all NAMEs.
fn named_chat_templates(metadata: &Metadata) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("tokenizer.chat_template.")?;
        Some((name.into(), value.as_str()?.into()))
    });
    named.collect()
}

fn with_template(tokenizer: Tokenizer, architecture: &str) -> Tokenization {
    let chat_template =
        ChatTemplate::detect(architecture, &tokenizer).map(|template| template.map(Arc::new));
    Tokenization {
        tokenizer: Arc::new(tokenizer),
        chat_template,
    }
}
