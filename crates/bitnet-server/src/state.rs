//! [`App`]: the state that all requests share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bitnet_guard::FileProblem;
use tokio::sync::{oneshot, watch};

use crate::api::ApiError;
use crate::batch::store::BatchStore;
use crate::clock::unix_time;
use crate::connections::Connections;
use crate::error::Error;
use crate::inflight::Inflight;
use crate::metrics::{HttpMetrics, Scene};
use crate::options::ServeOptions;
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::probers::Probers;
use crate::queue::QueueFull;
use crate::quotas::Quotas;
use crate::registry::{ModelLease, Registry};
use crate::served::ModelSpec;
use crate::store::ResponseStore;
use crate::text::TextThreads;

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
    pub(crate) options: Arc<ServeOptions>,
    /// The models.
    pub(crate) registry: Arc<Registry>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) text: TextThreads,
    pub(crate) http: HttpMetrics,
    pub(crate) probers: Probers,
    pub(crate) connections: Connections,
    pub(crate) inflight: Arc<Inflight>,
    pub(crate) responses: Arc<ResponseStore>,
    /// Set once, before the first request, if the server has a folder for state.
    pub(crate) batches: OnceLock<Arc<BatchStore>>,
    phase: watch::Sender<Phase>,
    has_started: AtomicBool,
    /// When the server was started, in seconds since 1970.
    pub(crate) started: u64,
    /// HTTP requests whose answer is not fully written.
    under_way: Arc<watch::Sender<usize>>,
    /// Set once, if at all, before the first request.
    #[cfg(feature = "otlp")]
    pub(crate) otlp: OnceLock<Otlp>,
}

impl App {
    /// A server that is not ready yet, and a receiver of the error that ends it.
    pub(crate) fn new(
        options: ServeOptions,
        models: Vec<ModelSpec>,
        responses: ResponseStore,
    ) -> (Self, oneshot::Receiver<Error>) {
        let options = Arc::new(options);
        let (registry, ended) = Registry::new(Arc::clone(&options), models);
        let app = Self {
            registry,
            quotas: Quotas::new(options.key_limits),
            text: TextThreads::new(options.limits.queue_requests),
            http: HttpMetrics::default(),
            probers: Probers::default(),
            connections: Connections::default(),
            inflight: Inflight::new(options.limits.inflight_bytes),
            responses: Arc::new(responses),
            batches: OnceLock::new(),
            phase: watch::Sender::new(Phase::Loading),
            has_started: AtomicBool::new(false),
            started: unix_time(),
            under_way: Arc::new(watch::Sender::new(0)),
            #[cfg(feature = "otlp")]
            otlp: OnceLock::new(),
            options,
        };
        (app, ended)
    }

    /// Marks the server as ready, unless it drains already.
    pub(crate) fn set_ready(&self) {
        self.has_started.store(true, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let was_loading = *phase == Phase::Loading;
            if was_loading {
                *phase = Phase::Ready;
            }
            was_loading
        });
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether the server has been ready, or would have been if it had not drained.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Relaxed)
    }

    /// Waits until the server refuses new requests.
    pub(crate) async fn drains(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
    }

    /// From now on refuses new requests, and requests that wait for a model.
    pub(crate) fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
        self.registry.drain();
    }

    /// Refuses a request while the server starts or drains, and if bytes of its only model are gone.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        match (self.phase(), self.registry.damage()) {
            (Phase::Ready, Some(problem @ FileProblem::Cut(_))) => {
                Err(ApiError::model_file(&problem))
            }
            (Phase::Ready, _) => Ok(()),
            (Phase::Draining, _) => Err(ApiError::draining()),
            (Phase::Loading, _) => Err(ApiError::loading()),
        }
    }

    /// Refuses a request for answers before any work on it: as [`check_open`](Self::check_open),
    /// and when the queue of the only model is full.
    pub(crate) fn check_room(&self) -> Result<(), ApiError> {
        self.check_open()?;
        if let Some(only) = self.registry.only() {
            only.queue.check_room()?;
        }
        Ok(())
    }

    /// The model with this name, or the first one, loaded if necessary. A server of one model does
    /// not look at the name.
    ///
    /// # Errors
    /// If the server accepts no requests, there is no such model, or it cannot be loaded.
    pub(crate) async fn lease(&self, name: Option<&str>) -> Result<ModelLease, ApiError> {
        self.check_open()?;
        self.registry.lease(self.model_index(name)?, None).await
    }

    /// The index of the model with this name, or of the first one.
    pub(crate) fn model_index(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let name = name.filter(|_| self.registry.only().is_none());
        let Some(name) = name else {
            return Ok(0);
        };
        match self.registry.find(name) {
            Some(index) => Ok(index),
            None if self.options.is_lenient => Ok(0),
            None => Err(ApiError::unknown_model(name, &self.registry.known_names())),
        }
    }

    /// The index of the model with this name, also on a server of one model. A lenient server has
    /// a model for every name.
    pub(crate) fn named_index(&self, name: &str) -> Result<usize, ApiError> {
        match self.registry.find(name) {
            None if self.registry.only().is_some() && !self.options.is_lenient => {
                Err(ApiError::unknown_model(name, &self.registry.known_names()))
            }
            found => found.map_or_else(|| self.model_index(Some(name)), Ok),
        }
    }

    /// The state that a scrape of the metrics shows, besides the models.
    pub(crate) fn scene(&self) -> Scene<'_> {
        Scene {
            http: &self.http,
            lost_log_lines: self.options.lost_log_lines.load(Ordering::Relaxed),
            text: self.text.in_use(),
            connections: &self.connections,
            batches: self.batches.get().map(|batches| batches.numbers()),
            inflight_bytes: self.inflight.bytes(),
            is_damaged: self.registry.is_damaged(),
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
