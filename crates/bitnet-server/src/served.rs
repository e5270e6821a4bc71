//! [`ServedModel`]: a loaded model as handlers see it. [`ModelSpec`]: a model that the program lets
//! the server load, and [`LoadedModel`], the result.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bitnet_inference::{Engine, EngineOptions, Pooling, RemakeEngine, SamplingParams};
use bitnet_tokenizers::{ChatTemplate, Tokenizer};

use crate::api::ApiError;
use crate::clock::unix_time;
use crate::forms::{FormHelper, Forms};
use crate::grammar::{Grammar, TokenConstraint};
use crate::options::ServeOptions;

/// Why a model cannot be loaded or described.
pub type LoaderError = Box<dyn std::error::Error + Send + Sync>;

/// A model that the server may load.
pub struct ModelSpec {
    /// Its names in requests; the first is the name in answers.
    pub names: Vec<String>,
    /// Bytes that it takes when it is loaded: weights, key/value cache and recurrent states.
    pub bytes: usize,
    /// What is known before it is loaded; `None` if its file cannot be read.
    pub outline: Option<ModelOutline>,
    /// Loads it. Called on the thread that will own the engine, again after each unloading.
    pub load: Box<dyn FnMut() -> Result<LoadedModel, LoaderError> + Send>,
    /// Reads its tokenizer and its template, but not its weights.
    pub preview: Box<dyn Fn() -> Result<ModelPreview, LoaderError> + Send + Sync>,
}

/// What is known about a model before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutline {
    /// The architecture, as its file names it.
    pub architecture: String,
    /// Maximum number of positions of a request, prompt and answer together.
    pub context: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Numbers of a hidden state.
    pub hidden_size: usize,
    /// Rows of logits.
    pub vocab_size: usize,
    /// How hidden states become an embedding, if its file says so.
    pub pooling: Option<Pooling>,
    /// Bytes of its files.
    pub file_bytes: usize,
}

/// The text side of a model without its weights.
pub struct ModelPreview {
    /// Without a tokenizer, prompts and answers are token ids.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// How the messages of a chat become a prompt.
    pub conversation: Conversation,
    /// The sampling parameters of requests that set none.
    pub sampling: SamplingParams,
}

/// The result of loading a model.
pub struct LoadedModel {
    /// The engine that runs it.
    pub engine: Engine,
    /// Makes another engine like it after a panic.
    pub remake: RemakeEngine,
    /// Without a tokenizer, prompts and answers are token ids.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// How the messages of a chat become a prompt.
    pub conversation: Conversation,
    /// The sampling parameters of requests that set none.
    pub sampling: SamplingParams,
    /// Positions of a block of the key/value cache.
    pub block_size: usize,
    /// Bytes that it takes: weights, key/value cache and recurrent states.
    pub bytes: usize,
    /// Its files, and folders with its files: a change of one of them damages this model only.
    pub files: Vec<PathBuf>,
}

/// How messages become a prompt.
pub enum Conversation {
    /// With the template that the model was trained on.
    Template(Arc<ChatTemplate>),
    /// The answer continues the text of the last message: for a model that tells stories and was
    /// not trained on conversations.
    ContinueLast,
    /// Chats are not supported, for this reason.
    Unavailable(String),
}

/// A loaded model as handlers see it.
pub(crate) struct ServedModel {
    /// The first is the name in answers.
    pub(crate) names: Vec<String>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) conversation: Conversation,
    pub(crate) vocab_size: usize,
    /// Numbers of a hidden state.
    pub(crate) hidden_size: usize,
    /// How hidden states become an embedding, if they do.
    pub(crate) pooling: Option<Pooling>,
    /// Maximum number of positions of a request, prompt and answer together.
    pub(crate) context: usize,
    /// Maximum number of answers that run at once.
    pub(crate) running_max: usize,
    /// When it was loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// The sampling parameters of requests that set none.
    pub(crate) sampling: SamplingParams,
    pub(crate) facts: ModelFacts,
    /// Positions of a block of the key/value cache.
    pub(crate) block_size: usize,
    /// Built when the first form is compiled.
    forms: OnceLock<Result<Forms, String>>,
    form_helper: Option<FormHelper>,
}

/// Facts about the model that clients may ask for.
#[derive(Clone, Default)]
pub(crate) struct ModelFacts {
    pub(crate) architecture: String,
    /// The format of the ternary weights.
    pub(crate) quantization: String,
    /// Weights of the embedding, the head and the projections.
    pub(crate) num_parameters: usize,
    /// Bytes of the packed ternary weights.
    pub(crate) weight_bytes: usize,
    pub(crate) num_layers: usize,
}

impl ModelFacts {
    fn new(engine: &Engine) -> Self {
        let info = engine.model();
        Self {
            architecture: info.config.architecture_name.clone(),
            quantization: info.quantization.clone(),
            num_parameters: info.num_parameters(),
            weight_bytes: info.num_ternary_bytes,
            num_layers: info.config.num_layers,
        }
    }

    /// What is known of a model that was never loaded.
    pub(crate) fn before_load(outline: Option<&ModelOutline>) -> Self {
        outline.map_or_else(Self::default, |outline| Self {
            architecture: outline.architecture.clone(),
            weight_bytes: outline.file_bytes,
            num_layers: outline.num_layers,
            ..Self::default()
        })
    }
}

impl ServedModel {
    /// The model of an engine that was loaded just now, the engine, and the function that remakes
    /// it.
    pub(crate) fn new(
        names: Vec<String>,
        loaded: LoadedModel,
        options: &ServeOptions,
    ) -> (Self, Engine, RemakeEngine) {
        let engine = loaded.engine;
        let config = &engine.model().config;
        let EngineOptions {
            context,
            running_max,
            ..
        } = engine.options();
        let model = Self {
            names,
            tokenizer: loaded.tokenizer,
            conversation: loaded.conversation,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            pooling: options.pooling.or(config.pooling),
            context,
            running_max,
            created: unix_time(),
            sampling: loaded.sampling,
            facts: ModelFacts::new(&engine),
            block_size: loaded.block_size,
            forms: OnceLock::new(),
            form_helper: options.form_helper.clone(),
        };
        (model, engine, loaded.remake)
    }

    /// A model that is described without its engine.
    pub(crate) fn described(
        names: Vec<String>,
        outline: &ModelOutline,
        preview: ModelPreview,
        facts: ModelFacts,
        options: &ServeOptions,
    ) -> Self {
        let ModelPreview {
            tokenizer,
            conversation,
            sampling,
        } = preview;
        Self {
            names,
            hidden_size: outline.hidden_size,
            pooling: options.pooling.or(outline.pooling),
            context: outline.context,
            sampling,
            facts,
            ..Self::outside_server(tokenizer, conversation, outline.vocab_size, None)
        }
    }

    /// A model that no server has. It has no name, no limit of the context, and no embeddings.
    pub(crate) fn outside_server(
        tokenizer: Option<Arc<Tokenizer>>,
        conversation: Conversation,
        vocab_size: usize,
        form_helper: Option<FormHelper>,
    ) -> Self {
        Self {
            names: vec![String::new()],
            tokenizer,
            conversation,
            vocab_size,
            hidden_size: 0,
            pooling: None,
            context: usize::MAX,
            running_max: 0,
            created: unix_time(),
            sampling: SamplingParams::default(),
            facts: ModelFacts::default(),
            block_size: 0,
            forms: OnceLock::new(),
            form_helper,
        }
    }

    /// The initial state of an answer under a grammar from the request's `field`.
    pub(crate) fn compile(
        &self,
        grammar: &Grammar,
        field: &str,
    ) -> Result<TokenConstraint, ApiError> {
        let tokenizer = self.tokenizer()?;
        let forms = self
            .forms
            .get_or_init(|| Forms::new(tokenizer, self.vocab_size, self.form_helper.as_ref()));
        forms
            .as_ref()
            .map_err(|problem| ApiError::unsupported(Some(field), problem.clone()))?
            .compile(grammar, field)
    }

    pub(crate) fn name(&self) -> &str {
        &self.names[0]
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        let missing = || {
            ApiError::unsupported(
                None,
                "this model has no tokenizer: prompts and answers are token ids",
            )
        };
        self.tokenizer.as_deref().ok_or_else(missing)
    }
}
