//! [`OpenModel`]: a model that is loaded with typed options, and makes engines and drivers.

use std::path::PathBuf;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Config, KvCache, KvType, LoadOptions, ModelInfo, SamplingDefaults};
use bitnet_tokenizers::Tokenizer;

use crate::device::Device;
use crate::driver::{Driver, RemakeEngine};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::load::{
    Hints, Loaded, Tokenization, load_embedded, load_tokenization, load_with,
    tokenization_from_gguf,
};
use crate::options::EngineOptions;
use crate::runner::Model;
use crate::weight_cache::{CacheUse, WeightCache};

/// The default limit of the context.
const DEFAULT_CONTEXT: usize = 4096;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A GGUF file, or a directory in Hugging Face's layout.
    Path(PathBuf),
    /// A GGUF file that is part of the program.
    Embedded {
        /// The name for messages and receipts.
        name: &'static str,
        /// The file.
        bytes: &'static [u8],
    },
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Embedded { name, .. } => f.write_str(name),
        }
    }
}

impl ModelSource {
    /// The shape of the model. Does not read the weights.
    ///
    /// # Errors
    /// If there is no model, or it is damaged or not supported.
    pub fn config(&self) -> Result<Config> {
        Ok(match self {
            Self::Embedded { bytes, .. } => Config::from_gguf(&Gguf::from_static(bytes)?)?,
            Self::Path(path) if path.is_dir() => Checkpoint::open(path)?.config().clone(),
            Self::Path(path) => Config::from_gguf(&Gguf::open(path)?)?,
        })
    }

    /// The sampling that the model's files recommend. Does not read the weights.
    ///
    /// # Errors
    /// If there is no model, or it is damaged.
    pub fn sampling(&self) -> Result<SamplingDefaults> {
        Ok(match self {
            Self::Embedded { bytes, .. } => {
                SamplingDefaults::from_gguf(&Gguf::from_static(bytes)?)?
            }
            Self::Path(path) if path.is_dir() => SamplingDefaults::from_directory(path)?,
            Self::Path(path) => SamplingDefaults::from_gguf(&Gguf::open(path)?)?,
        })
    }

    /// The tokenizer and the chat template; `None` if the model has no tokenizer. Does not read
    /// the weights.
    ///
    /// # Errors
    /// If there is no model, or its tokenizer is damaged or not supported.
    pub fn tokenization(&self) -> Result<Option<Tokenization>> {
        let tokenization = match self {
            Self::Embedded { bytes, .. } => tokenization_from_gguf(&Gguf::from_static(bytes)?),
            Self::Path(path) => load_tokenization(path),
        };
        match tokenization {
            Err(Error::NoTokenizer) => Ok(None),
            tokenization => tokenization.map(Some),
        }
    }
}

/// A loaded model. Engines made from it share its weights.
///
/// ```
/// use bitnet_inference::{Device, EngineOptions, ModelSource, OpenModel, Request};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories/stories.gguf");
/// let source = ModelSource::Path(path.into());
/// let model = OpenModel::open(source, Device::default(), Default::default())?;
/// let tokenizer = model.tokenizer().expect("this model has one");
/// let driver = model.start(EngineOptions::default())?;
/// let request = Request {
///     prompt: tokenizer.encode_prompt("Once upon a time", Default::default(), false)?,
///     max_tokens: Some(8),
///     ..Request::default()
/// };
/// let answer = driver.stream(request)?.wait()?;
/// assert!(!answer.text.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OpenModel {
    /// The weights.
    pub model: Arc<dyn Model>,
    /// The tokenizer and the chat template. A model without them takes and returns token ids only.
    pub tokenization: Option<Tokenization>,
    /// Where the model comes from.
    pub source: ModelSource,
    /// Where engines run.
    pub device: Device,
    /// The options that loaded the weights.
    pub load_options: LoadOptions,
    /// Oddities of the files; the model runs nevertheless.
    pub hints: Hints,
    /// The sampling that the model's files recommend.
    pub sampling: SamplingDefaults,
    /// How the load used the cache of packed weights.
    pub cache_use: CacheUse,
}

impl OpenModel {
    /// Loads a model.
    ///
    /// # Errors
    /// If there is no model, or it is damaged or not supported.
    pub fn open(source: ModelSource, device: Device, load_options: LoadOptions) -> Result<Self> {
        Self::open_with(source, device, load_options, None)
    }

    /// The same, with packed weights from `cache`, or written to it.
    ///
    /// # Errors
    /// As [`OpenModel::open`]. A problem of the cache is not an error: [`OpenModel::cache_use`] has
    /// it.
    pub fn open_with(
        source: ModelSource,
        device: Device,
        load_options: LoadOptions,
        cache: Option<&WeightCache>,
    ) -> Result<Self> {
        let Loaded {
            model,
            tokenization,
            hints,
            sampling,
            cache_use,
        } = match &source {
            ModelSource::Path(path) => load_with(path, &load_options, device, cache),
            ModelSource::Embedded { bytes, .. } => load_embedded(bytes, &load_options, device),
        }?;
        Ok(Self {
            model,
            tokenization,
            source,
            device,
            load_options,
            hints,
            sampling,
            cache_use,
        })
    }

    /// Facts about the model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// The tokenizer, if the model has one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenization
            .as_ref()
            .map(|tokenization| &tokenization.tokenizer)
    }

    /// An engine with its own threads and key/value cache.
    ///
    /// # Errors
    /// If there is not enough memory for the cache.
    pub fn engine(&self, options: EngineOptions) -> Result<Engine> {
        let (model, tokenizer) = (Arc::clone(&self.model), self.tokenizer().cloned());
        Engine::new(model, tokenizer, self.device, options)
    }

    /// Makes further engines with these options. Fails with [`Error::DeviceFailed`] if the device of
    /// the weights has failed: the model must be loaded again.
    #[must_use]
    pub fn remake(&self, options: EngineOptions) -> RemakeEngine {
        let (model, tokenizer) = (Arc::clone(&self.model), self.tokenizer().cloned());
        let device = self.device;
        Box::new(move || match model.failure() {
            Some(problem) => Err(Error::DeviceFailed(problem)),
            None => Engine::new(Arc::clone(&model), tokenizer.clone(), device, options),
        })
    }

    /// An engine on its own thread.
    ///
    /// # Errors
    /// If there is not enough memory for the cache, or the system cannot start a thread.
    pub fn start(&self, options: EngineOptions) -> Result<Driver> {
        let engine = self.engine(options)?;
        Driver::start(engine, self.remake(options)).map_err(Error::Thread)
    }
}

/// Memory of a key/value cache if the user names none and the context needs no more.
const DEFAULT_KV_BYTES: usize = 1 << 30;

/// The positions of a key/value cache of `bytes`; for `None` of 1 GiB, of less if a GPU cannot bind
/// so much at once, or of more if `context` needs it. Less than `context` if `bytes` is too small for
/// it.
#[must_use]
pub fn kv_cache_positions(
    device: &Device,
    config: &Config,
    kv_type: KvType,
    context: usize,
    bytes: Option<usize>,
) -> usize {
    let num_layers = config.num_attention_layers();
    let block_bytes = KvCache::block_bytes(config.attention, num_layers, kv_type);
    let needed = context.div_ceil(KvCache::BLOCK).saturating_mul(block_bytes);
    let bytes = bytes.unwrap_or_else(|| {
        // The cache of a layer is one binding.
        let of_binding = device.adapter().map_or(usize::MAX, |gpu| {
            let bytes = usize::try_from(gpu.binding_bytes_max).unwrap_or(usize::MAX);
            bytes.saturating_mul(num_layers)
        });
        DEFAULT_KV_BYTES.min(of_binding).max(needed)
    });
    // A model without attention layers needs no memory for a position, so any context fits.
    match bytes.checked_div(block_bytes) {
        Some(blocks) => blocks * KvCache::BLOCK,
        None => context.next_multiple_of(KvCache::BLOCK),
    }
}

/// The context of a model: `requested` positions, all that the model has for `Some(0)`, and at most
/// 4096 for `None`.
#[must_use]
pub fn context_length(config: &Config, requested: Option<usize>) -> usize {
    match requested {
        Some(0) => config.context_length,
        Some(context) => context,
        None => config.context_length.min(DEFAULT_CONTEXT),
    }
}
