//! [`App`]: the state that all requests share. [`ServedModel`]: the result of the program's loader.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitnet_guard::FileProblem;
use bitnet_inference::{Driver, Engine, EngineOptions, Job, Pooling, RemakeEngine};
use bitnet_tokenizers::{ChatTemplate, Tokenizer};
use tokio::sync::watch;

use crate::api::ApiError;
use crate::connections::Connections;
use crate::forms::FormHelper;
use crate::forms::Forms;
use crate::grammar::{Grammar, TokenConstraint};
use crate::inflight::Inflight;
use crate::metrics::{Metrics, Scene};
use crate::options::ServeOptions;
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::probers::Probers;
use crate::queue::{Queue, QueueFull};
use crate::quotas::Quotas;
use crate::store::ResponseStore;
use crate::text::TextThreads;

/// A model that is ready to be served.
pub struct ServedModel {
    /// The engine that runs it.
    pub engine: Engine,
    /// Makes another engine like it after a panic.
    pub remake: RemakeEngine,
    /// Without a tokenizer, prompts and answers are token ids.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// How the messages of a chat become a prompt.
    pub conversation: Conversation,
    /// The model's name if the options have no name.
    pub name: String,
    /// Positions of a block of the key/value cache.
    pub block_size: usize,
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

/// The model as handlers see it.
pub(crate) struct Model {
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
    pub(crate) facts: ModelFacts,
    block_size: usize,
    /// Built when the first form is compiled.
    forms: OnceLock<Result<Forms, String>>,
    form_helper: Option<FormHelper>,
}

/// Facts about the model that clients may ask for.
#[derive(Default)]
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
}

impl Model {
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

/// State of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Ready,
    /// The server finishes requests under way and refuses new ones.
    Draining,
}

/// The state that all requests share.
pub(crate) struct App {
    pub(crate) options: ServeOptions,
    pub(crate) queue: Arc<Queue>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) text: TextThreads,
    driver: Driver,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) probers: Probers,
    pub(crate) connections: Connections,
    pub(crate) inflight: Arc<Inflight>,
    pub(crate) responses: Arc<ResponseStore>,
    /// The problem of a model file that was changed while it is in use.
    damage: OnceLock<FileProblem>,
    phase: watch::Sender<Phase>,
    model: OnceLock<Model>,
    /// HTTP requests whose answer is not fully written.
    under_way: Arc<watch::Sender<usize>>,
    /// Set once, if at all, before the first request.
    #[cfg(feature = "otlp")]
    pub(crate) otlp: OnceLock<Otlp>,
}

impl App {
    pub(crate) fn new(
        options: ServeOptions,
        driver: Driver,
        metrics: Arc<Metrics>,
        responses: ResponseStore,
    ) -> Self {
        Self {
            queue: Arc::new(Queue::new(
                options.limits.queue_requests,
                options.limits.queue_tokens,
            )),
            quotas: Quotas::new(options.key_limits),
            text: TextThreads::new(options.limits.queue_requests),
            driver,
            metrics,
            probers: Probers::default(),
            connections: Connections::default(),
            inflight: Inflight::new(options.limits.inflight_bytes),
            responses: Arc::new(responses),
            damage: OnceLock::new(),
            phase: watch::Sender::new(Phase::Loading),
            model: OnceLock::new(),
            under_way: Arc::new(watch::Sender::new(0)),
            #[cfg(feature = "otlp")]
            otlp: OnceLock::new(),
            options,
        }
    }

    /// Stores the model and marks the server as ready. Returns the engine and the function that
    /// remakes it.
    pub(crate) fn set_model(&self, served: ServedModel) -> (Engine, RemakeEngine) {
        let ServedModel {
            engine,
            remake,
            tokenizer,
            conversation,
            name,
            block_size,
        } = served;
        let names = match &self.options.model_names[..] {
            [] => vec![name],
            names => names.to_vec(),
        };
        let config = &engine.model().config;
        let EngineOptions {
            context,
            running_max,
            ..
        } = engine.options();
        let model = Model {
            names,
            tokenizer,
            conversation,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            pooling: self.options.pooling.or(config.pooling),
            context,
            running_max,
            created: unix_time(),
            facts: ModelFacts::new(&engine),
            block_size,
            forms: OnceLock::new(),
            form_helper: self.options.form_helper.clone(),
        };
        // Set once, by the one thread that loads.
        let _ = self.model.set(model);
        self.phase.send_if_modified(|phase| {
            let was_loading = *phase == Phase::Loading;
            if was_loading {
                *phase = Phase::Ready;
            }
            was_loading
        });
        (engine, remake)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.model.get().is_some()
    }

    /// How long the engine has been in one step, if that is longer than `stall_timeout`.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        Some(self.driver.monitor().step_time()).filter(|time| *time > self.options.stall_timeout)
    }

    /// Records that a file of the model was changed while it is in use: the engine's results are no
    /// longer the model's.
    pub(crate) fn model_damaged(&self, problem: &FileProblem) {
        if self.damage.set(problem.clone()).is_ok() {
            tracing::error!(
                %problem,
                "a file of the model was changed in place; start the server again, and replace model files by renaming"
            );
        }
    }

    /// The problem of the model's files, if there is one.
    pub(crate) fn damage(&self) -> Option<&FileProblem> {
        self.damage.get()
    }

    /// Refuses new requests from now on.
    pub(crate) fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Refuses a request for answers before any work on it: while the model is loaded, while the
    /// server drains, and when the queue is full.
    pub(crate) fn check_room(&self) -> Result<(), ApiError> {
        self.model()?;
        Ok(self.queue.check_room()?)
    }

    /// The model, if new requests are accepted.
    pub(crate) fn model(&self) -> Result<&Model, ApiError> {
        match (self.phase(), self.model.get()) {
            (Phase::Ready, Some(model)) => match self.damage() {
                Some(problem @ FileProblem::Cut(_)) => Err(ApiError::model_file(problem)),
                _ => Ok(model),
            },
            (Phase::Draining, _) => Err(ApiError::draining()),
            _ => Err(ApiError::loading()),
        }
    }

    /// The state that a scrape of the metrics shows.
    pub(crate) fn scene(&self) -> Scene<'_> {
        let model = self.model.get();
        let name = model
            .map(Model::name)
            .or(self.options.model_names.first().map(String::as_str));
        Scene {
            lost_log_lines: self.options.lost_log_lines.load(Ordering::Relaxed),
            model: name.unwrap_or_default(),
            block_size: model.map_or(0, |model| model.block_size),
            queue: self.queue.counts(),
            text: self.text.in_use(),
            connections: &self.connections,
            inflight_bytes: self.inflight.bytes(),
            is_damaged: self.damage().is_some(),
        }
    }

    /// Counts an HTTP request until the result is dropped.
    pub(crate) fn count_request(&self) -> UnderWay {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(Arc::clone(&self.under_way))
    }

    /// Waits until no HTTP request is under way and nothing runs or waits in the engine.
    pub(crate) async fn all_done(&self) {
        let mut under_way = self.under_way.subscribe();
        // The sender lives as long as `self`.
        let _ = under_way.wait_for(|count| *count == 0).await;
    }

    /// HTTP requests under way.
    pub(crate) fn num_under_way(&self) -> usize {
        *self.under_way.borrow()
    }

    /// Submits jobs to the engine.
    pub(crate) fn send_jobs(&self, jobs: impl Iterator<Item = Job>) -> Result<(), ApiError> {
        for job in jobs {
            self.driver
                .submit(job)
                .map_err(|_| ApiError::internal("the engine has stopped"))?;
        }
        Ok(())
    }
}

/// An HTTP request whose answer is not complete.
pub(crate) struct UnderWay(Arc<watch::Sender<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl From<QueueFull> for ApiError {
    fn from(full: QueueFull) -> Self {
        let QueueFull {
            waiting,
            waiting_tokens,
            retry_after_s,
        } = full;
        let message = format!(
            "the queue is full: {waiting} requests with {waiting_tokens} prompt tokens wait; try again in {retry_after_s} s"
        );
        Self::too_many_requests(message, retry_after_s)
    }
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
