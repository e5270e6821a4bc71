//! Errors of requests and of loading models.

use bitnet_tokenizers::TokenId;

/// The reason why a request was refused or a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's file.
    #[error(transparent)]
    File(#[from] bitnet_files::Error),
    /// The model's configuration or tensors.
    #[error(transparent)]
    Model(#[from] bitnet_models::Error),
    /// No GPU can be used.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(bitnet_wgpu::Error),
    /// A GPU was asked for, but this program cannot use any.
    #[cfg(not(feature = "gpu"))]
    #[error("no GPU can be used: this program was built without the feature gpu")]
    NoGpuSupport,
    /// The device of a model failed, for this reason. The model must be loaded again.
    #[error("{0}")]
    DeviceFailed(String),
    /// The tokenizer or chat template.
    #[error(transparent)]
    Tokenizer(#[from] bitnet_tokenizers::Error),
    /// The folder of packed weights.
    #[error("cannot use {} in the cache of packed weights", path.display())]
    WeightCache {
        /// The folder, or the file in it.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file without a tokenizer.
    #[error("the file has no tokenizer (metadata key tokenizer.ggml.model)")]
    NoTokenizer,
    /// The tokenizer has tokens that the model has no embedding for.
    #[error("the tokenizer has {tokenizer} tokens, but the model only {model}")]
    VocabularySize {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// A token id outside the vocabulary.
    #[error("prompt token {index} is {token}, but the vocabulary ends at {last}")]
    TokenRange {
        /// Its index in the prompt, from 0.
        index: usize,
        /// The id.
        token: TokenId,
        /// The largest valid id.
        last: usize,
    },
    /// More positions than the context has.
    #[error(
        "context length exceeded: {prompt} prompt tokens and {generate} to generate do not fit into {context}"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt: usize,
        /// Requested tokens; at least one.
        generate: usize,
        /// Positions in the context.
        context: usize,
    },
    /// A sampling parameter out of range.
    #[error("{name} is {value}, but must be {allowed}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The valid values.
        allowed: &'static str,
    },
    /// An empty stop string, or more of them than are allowed.
    #[error("stop string {index}: {problem}")]
    StopString {
        /// Its index in the list, from 0.
        index: usize,
        /// The problem.
        problem: &'static str,
    },
    /// A bias for a token that does not exist.
    #[error("logit bias for token {token}, but the vocabulary ends at {last}")]
    BiasRange {
        /// The id.
        token: TokenId,
        /// The largest valid id.
        last: usize,
    },
    /// A file of the model changed while it is in use, so the tokens may be wrong.
    #[error("{0}")]
    ModelFile(bitnet_guard::FileProblem),
    /// The model computes nothing useful, for this reason.
    #[error("{0}")]
    BrokenModel(String),
    /// The thread of a [`Driver`](crate::Driver) has ended: its engine panicked and could not be
    /// replaced.
    #[error("the engine has stopped")]
    EngineStopped,
    /// The system cannot start the thread of a [`Driver`](crate::Driver).
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
    /// The file of a [`Tuning`](crate::Tuning) is damaged.
    #[error("{} is damaged", path.display())]
    DamagedTuning {
        /// The file.
        path: std::path::PathBuf,
        /// The problem.
        source: serde_json::Error,
    },
    /// The file of a [`Tuning`](crate::Tuning) cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    TuningFile {
        /// The file.
        path: std::path::PathBuf,
        /// The problem.
        source: std::io::Error,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
