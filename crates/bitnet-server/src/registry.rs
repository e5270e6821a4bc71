//! [`Registry`]: the models of the server. It loads a model when a request needs it, each on a
//! thread of its own, and unloads it when [`Schedule`] says so.
//!
//! A request holds a [`ModelLease`] from the moment that its model is known to the end of its
//! answer; a model is unloaded only while no lease exists. A model's thread ends when its last
//! [`Driver`] is dropped. The thread holds the registry weakly, so that it also ends with the
//! server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bitnet_guard::FileProblem;
use bitnet_inference::{Driver, Engine, EngineLoop, Job, RemakeEngine, panic_message};
use tokio::sync::{Notify, oneshot};

use crate::answer_sink::observe;
use crate::api::ApiError;
use crate::error::{Error, chain};
use crate::metrics::{Metrics, ModelScene};
use crate::options::ServeOptions;
#[cfg(feature = "otlp")]
use crate::otlp::ObservedModel;
use crate::queue::{Counts, Queue};
use crate::schedule::{Schedule, Stage, Step};
use crate::served::{
    LoadedModel, LoaderError, ModelFacts, ModelOutline, ModelPreview, ModelSpec, ServedModel,
};
use crate::threads::engine_thread;

/// All models of the server.
pub(crate) struct Registry {
    options: Arc<ServeOptions>,
    slots: Vec<Slot>,
    /// Whether models are unloaded: there are several, or they have a time to stay.
    can_unload: bool,
    state: Mutex<State>,
    /// Notified when a model has become idle.
    idle: Arc<Notify>,
    /// Gets the error that ends the server, at most once.
    ended: Mutex<Option<oneshot::Sender<Error>>>,
}

/// The lasting parts of a model.
pub(crate) struct Slot {
    /// The first is the name in answers.
    pub(crate) names: Vec<String>,
    pub(crate) outline: Option<ModelOutline>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    load: Mutex<Box<dyn FnMut() -> Result<LoadedModel, LoaderError> + Send>>,
    preview: Box<dyn Fn() -> Result<ModelPreview, LoaderError> + Send + Sync>,
}

/// The parts that change.
struct State {
    /// Whether the server is about to stop.
    drains: bool,
    schedule: Schedule,
    models: Vec<ModelState>,
}

/// The parts of a model that change.
#[derive(Default)]
struct ModelState {
    /// While it is loaded.
    ready: Option<Ready>,
    /// The requests that wait for it.
    waiting: Vec<oneshot::Sender<LeaseResult>>,
    /// From when it was last loaded.
    facts: Option<ModelFacts>,
    /// A problem of its files since it was loaded.
    damage: Option<FileProblem>,
    files: Vec<PathBuf>,
}

struct Ready {
    model: Arc<ServedModel>,
    driver: Driver,
}

/// Why a request does not get its model.
#[derive(Clone)]
pub(crate) enum LoadProblem {
    /// The loader failed.
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader panicked, for example without enough memory.
    Panicked(String),
    /// The system gives no thread.
    NoThread(String),
    /// It takes more memory than all models together may.
    TooLarge { bytes: usize, bytes_max: usize },
}

type LeaseResult = Result<ModelLease, LoadProblem>;

/// A model as a request sees it between its loading and its unloading.
pub(crate) struct ModelView {
    pub(crate) stage: Stage,
    /// Of a loaded model.
    pub(crate) model: Option<Arc<ServedModel>>,
    /// From when it was last loaded.
    pub(crate) facts: Option<ModelFacts>,
    /// When it is unloaded if no request comes; `None` for never, or if it is not loaded.
    pub(crate) expires: Option<SystemTime>,
}

impl Registry {
    /// None of the models is loaded. The result also has a receiver of the error that ends the
    /// server.
    pub(crate) fn new(
        options: Arc<ServeOptions>,
        models: Vec<ModelSpec>,
    ) -> (Arc<Self>, oneshot::Receiver<Error>) {
        let (ended, has_ended) = oneshot::channel();
        let sizes = models.iter().map(|model| model.bytes);
        let schedule = Schedule::new(sizes, options.models_memory, options.keep_alive);
        let registry = Self {
            state: Mutex::new(State {
                drains: false,
                schedule,
                models: models.iter().map(|_| ModelState::default()).collect(),
            }),
            can_unload: models.len() > 1 || options.keep_alive.is_some(),
            slots: models
                .into_iter()
                .map(|spec| Slot::new(spec, &options))
                .collect(),
            idle: Arc::default(),
            ended: Mutex::new(Some(ended)),
            options,
        };
        (Arc::new(registry), has_ended)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The only model, if there is one only.
    pub(crate) fn only(&self) -> Option<&Slot> {
        match &self.slots[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether models are unloaded.
    pub(crate) fn can_unload(&self) -> bool {
        self.can_unload
    }

    /// The index of the model with this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let has_name = |slot: &Slot| slot.names.iter().any(|known| known == name);
        self.slots.iter().position(has_name)
    }

    /// The first names of all models, for messages.
    pub(crate) fn known_names(&self) -> String {
        let names: Vec<_> = self
            .slots
            .iter()
            .map(|slot| format!("'{}'", slot.names[0]))
            .collect();
        names.join(", ")
    }

    /// The model at `index`, loaded if necessary. `keep_alive`: how long it stays loaded after its
    /// last use, if the request says so; `Some(None)` for ever.
    ///
    /// # Errors
    /// If too many requests wait for it, it cannot be loaded, it takes longer than requests may, or
    /// it is not loaded when the server is about to stop.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        index: usize,
        keep_alive: Option<Option<Duration>>,
    ) -> Result<ModelLease, ApiError> {
        let name = &self.slots[index].names[0];
        let limit = self.options.limits.request_timeout;
        let keep_alive = keep_alive.unwrap_or(self.options.keep_alive);
        let result = match self.ask(index, keep_alive)? {
            Ok(lease) => return Ok(lease),
            Err(waiting) => tokio::time::timeout(limit, waiting).await,
        };
        match result {
            Err(_) => Err(ApiError::answer_too_slow(limit.as_secs_f64())),
            Ok(None) if self.state().drains => Err(ApiError::draining()),
            Ok(None) => Err(ApiError::internal("the model's thread has ended")),
            Ok(Some(result)) => result.map_err(|problem| problem.for_client(name)),
        }
    }

    /// Loads the model at `index` before requests arrive.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub(crate) async fn preload(self: &Arc<Self>, index: usize) -> Result<(), LoadProblem> {
        if let Some((bytes, bytes_max)) = self.state().schedule.too_large(index) {
            return Err(LoadProblem::TooLarge { bytes, bytes_max });
        }
        match self.ask(index, self.options.keep_alive) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(waiting)) => waiting.await.map_or(Ok(()), |result| result.map(drop)),
            // Other requests wait for it already.
            Err(_) => Ok(()),
        }
    }

    /// From now on no request waits for a model: those that do are refused, because the server is
    /// about to stop.
    pub(crate) fn drain(self: &Arc<Self>) {
        let waiting: Vec<_> = self.update(|state, _| {
            state.drains = true;
            let models = state.models.iter_mut();
            models
                .flat_map(|model| std::mem::take(&mut model.waiting))
                .collect()
        });
        // The requests learn it by the loss of their senders, which takes the lock.
        drop(waiting);
    }

    /// A lease, or what a request must wait for.
    fn ask(
        self: &Arc<Self>,
        index: usize,
        keep_alive: Option<Duration>,
    ) -> Result<Result<ModelLease, Waiting>, ApiError> {
        let waiting_max = self.options.limits.queue_requests;
        let name = &self.slots[index].names[0];
        let (sender, receiver) = oneshot::channel();
        let asked = self.update(|state, now| {
            let model = &mut state.models[index];
            if self.can_unload {
                state.schedule.set_keep_alive(index, keep_alive);
            }
            if state.schedule.take(index, now) {
                return Ok(model
                    .ready
                    .as_ref()
                    .map(|ready| self.new_lease(index, ready)));
            }
            if state.drains {
                return Err(ApiError::draining());
            }
            if let Some((bytes, bytes_max)) = state.schedule.too_large(index) {
                let problem = LoadProblem::TooLarge { bytes, bytes_max };
                return Err(problem.for_client(name));
            }
            let waiting = model.waiting.len();
            if waiting >= waiting_max {
                return Err(ApiError::too_many_wait_for_load(name, waiting));
            }
            model.waiting.push(sender);
            Ok(None)
        })?;
        Ok(asked.ok_or_else(|| Waiting {
            receiver,
            registry: Arc::clone(self),
        }))
    }

    fn new_lease(self: &Arc<Self>, index: usize, ready: &Ready) -> ModelLease {
        ModelLease {
            held: Arc::new(Held {
                registry: Arc::clone(self),
                index,
            }),
            model: Arc::clone(&ready.model),
            driver: ready.driver.clone(),
        }
    }

    /// Changes the state, and does all that can happen then.
    fn update<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.state();
        let result = change(&mut state, now);
        let State {
            schedule, models, ..
        } = &mut *state;
        for (index, model) in models.iter_mut().enumerate() {
            model.waiting.retain(|waiting| !waiting.is_closed());
            schedule.set_waiting(index, model.waiting.len());
        }
        let (mut loads, mut grants, mut unloaded) = (Vec::new(), Vec::new(), Vec::new());
        for step in schedule.advance(now) {
            match step {
                Step::Load(index) => loads.push(index),
                Step::Unload(index) => {
                    tracing::info!(model = self.slots[index].names[0], "unloading");
                    unloaded.push(models[index].ready.take());
                }
                Step::Grant(index) => {
                    let model = &mut models[index];
                    let waiting = std::mem::take(&mut model.waiting);
                    let ready = model.ready.iter();
                    let leases = ready
                        .flat_map(|ready| waiting.iter().map(|_| self.new_lease(index, ready)));
                    let leases: Vec<_> = leases.collect();
                    grants.extend(waiting.into_iter().zip(leases));
                }
            }
        }
        drop(state);
        // Without the lock, which the ends of leases and threads take.
        drop(unloaded);
        for (waiting, lease) in grants {
            // A request that has gone gives its lease back.
            drop(waiting.send(Ok(lease)));
        }
        loads.into_iter().for_each(|index| self.start(index));
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Lock poisoning is harmless: no change above can panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that loads and runs the model at `index`.
    fn start(self: &Arc<Self>, index: usize) {
        let slot = &self.slots[index];
        let (driver, engine_loop) = Driver::continuing(slot.metrics.engine());
        let metrics = Arc::clone(&slot.metrics);
        let engine_loop = engine_loop.observed(move |seen| observe(&metrics, seen));
        let registry = Arc::downgrade(self);
        let run = move || run_model(&registry, index, driver, engine_loop);
        if let Err(error) = engine_thread().spawn(run) {
            self.load_failed(index, LoadProblem::NoThread(error.to_string()));
        }
    }

    /// Runs the loader of the model at `index`.
    fn load(self: &Arc<Self>, index: usize) -> Result<LoadedModel, LoadProblem> {
        let slot = &self.slots[index];
        let mut load = slot.load.lock().unwrap_or_else(PoisonError::into_inner);
        match catch_unwind(AssertUnwindSafe(&mut *load)) {
            Ok(Ok(loaded)) => match self.options.models_memory {
                Some(bytes_max) if loaded.bytes > bytes_max => Err(LoadProblem::TooLarge {
                    bytes: loaded.bytes,
                    bytes_max,
                }),
                _ => Ok(loaded),
            },
            Ok(Err(error)) => Err(LoadProblem::Failed(error.into())),
            // The panic hook has logged the location.
            Err(panic) => Err(LoadProblem::Panicked(panic_message(&*panic).to_owned())),
        }
    }

    fn load_failed(self: &Arc<Self>, index: usize, problem: LoadProblem) {
        if self.can_unload {
            let error = Error::from(problem.clone());
            let name = &self.slots[index].names[0];
            tracing::error!(model = name, error = chain(&error), "cannot load the model");
        }
        let waiting = self.update(|state, _| {
            state.schedule.gone(index);
            std::mem::take(&mut state.models[index].waiting)
        });
        for waiting in waiting {
            // The request may have gone.
            drop(waiting.send(Err(problem.clone())));
        }
    }

    fn loaded(self: &Arc<Self>, index: usize, ready: Ready, bytes: usize, files: Vec<PathBuf>) {
        self.update(|state, now| {
            state.schedule.loaded(index, bytes, now);
            let model = &mut state.models[index];
            model.facts = Some(ready.model.facts.clone());
            (model.damage, model.files) = (None, files);
            model.ready = Some(ready);
        });
        self.idle.notify_one();
    }

    /// The thread of a model that was loaded has ended, for this reason if not for its unloading.
    fn thread_ended(self: &Arc<Self>, index: usize, problem: Option<String>) {
        let name = &self.slots[index].names[0];
        if let Some(problem) = problem {
            tracing::error!(model = name, problem, "the engine's thread has ended");
            if !self.can_unload {
                return self.end_server(Error::EngineLost(problem));
            }
        } else {
            tracing::info!(model = name, "unloaded");
        }
        self.slots[index].metrics.engine_gone();
        let ready = self.update(|state, _| {
            state.schedule.gone(index);
            let model = &mut state.models[index];
            (model.damage, model.files) = (None, Vec::new());
            model.ready.take()
        });
        drop(ready);
        bitnet_guard::give_memory_back();
    }

    /// Ends the server with an error.
    pub(crate) fn end_server(&self, error: Error) {
        let ended = self
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // If the receiver is gone, the server has ended.
        drop(ended.map(|ended| ended.send(error)));
    }

    /// Records that a file was changed while it is in use. Models that can be loaded again leave;
    /// the others keep the problem.
    pub(crate) fn damaged(self: &Arc<Self>, problem: &FileProblem) {
        self.update(|state, _| {
            for (index, model) in state.models.iter_mut().enumerate() {
                let is_ours = |file: &PathBuf| problem.path().starts_with(file);
                let is_new = model.ready.is_some() && model.damage.is_none();
                if !is_new || !model.files.iter().any(is_ours) {
                    continue;
                }
                model.damage = Some(problem.clone());
                if self.can_unload {
                    tracing::warn!(%problem, "a file of the model was changed in place; the model is loaded again");
                    state.schedule.leave(index);
                } else {
                    tracing::error!(
                        %problem,
                        "a file of the model was changed in place; start the server again, and replace model files by renaming"
                    );
                }
            }
        });
    }

    /// The problem of the files of a model that is not loaded again by itself.
    pub(crate) fn damage(&self) -> Option<FileProblem> {
        let lasts = !self.can_unload;
        let state = self.state();
        let mut damages = state.models.iter().filter_map(|model| model.damage.clone());
        damages.next().filter(|_| lasts)
    }

    /// Whether the device of the only model has failed, and the model is loaded again.
    pub(crate) fn is_reloading(&self) -> bool {
        let only = self.only();
        only.is_some_and(|slot| slot.metrics.engine().is_replacing())
    }

    /// How long an engine has been in one step, if that is longer than it may be.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        let state = self.state();
        let has_engine = |index: &usize| state.schedule.stage(*index) != Stage::Absent;
        let engines = (0..self.slots.len()).filter(has_engine);
        let times = engines.map(|index| self.slots[index].metrics.engine().step_time());
        times
            .max()
            .filter(|time| *time > self.options.stall_timeout)
    }

    /// How the model at `index` is now.
    pub(crate) fn view(&self, index: usize) -> ModelView {
        let state = self.state();
        let model = &state.models[index];
        let stays = match state.schedule.expires(index) {
            Some(expires) => Some(expires.saturating_duration_since(Instant::now())),
            // A request uses it.
            None => state.schedule.keep_alive(index),
        };
        let ready = model.ready.as_ref().map(|ready| Arc::clone(&ready.model));
        ModelView {
            stage: state.schedule.stage(index),
            expires: stays
                .filter(|_| ready.is_some() && self.can_unload)
                .and_then(|stays| SystemTime::now().checked_add(stays)),
            model: ready,
            facts: model.facts.clone(),
        }
    }

    /// The model at `index` without its engine. Blocks while it reads the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn preview(&self, index: usize) -> Result<ServedModel, ApiError> {
        let slot = &self.slots[index];
        let name = &slot.names[0];
        let unreadable = |error: LoaderError| ApiError::not_loaded(name, &root_cause(&*error));
        let outline = slot.outline.as_ref();
        let outline = outline.ok_or_else(|| unreadable("its file cannot be read".into()))?;
        let preview = (slot.preview)().map_err(unreadable)?;
        let facts = self.state().models[index].facts.clone();
        let facts = facts.unwrap_or_else(|| ModelFacts::before_load(Some(outline)));
        let names = slot.names.clone();
        let options = &self.options;
        Ok(ServedModel::described(
            names, outline, preview, facts, options,
        ))
    }

    /// Unloads the model at `index` as soon as no request uses it, if models are unloaded.
    pub(crate) fn unload(self: &Arc<Self>, index: usize) {
        if self.can_unload {
            self.update(|state, _| state.schedule.set_keep_alive(index, Some(Duration::ZERO)));
        }
    }

    /// The counts of all queues together.
    pub(crate) fn counts(&self) -> Counts {
        let counts = self.slots.iter().map(|slot| slot.queue.counts());
        counts.fold(Counts::default(), Counts::plus)
    }

    /// What OpenTelemetry gets of each model.
    #[cfg(feature = "otlp")]
    pub(crate) fn observed(&self) -> Vec<ObservedModel> {
        let observed = |slot: &Slot| ObservedModel {
            name: slot.names[0].clone(),
            metrics: Arc::clone(&slot.metrics),
            queue: Arc::clone(&slot.queue),
        };
        self.slots.iter().map(observed).collect()
    }

    /// The greatest part of a cache that requests hold, from 0 to 1.
    pub(crate) fn cache_usage(&self) -> f64 {
        let usages = self.slots.iter().map(|slot| slot.metrics.cache_usage());
        usages.fold(0.0, f64::max)
    }

    /// What a scrape of the metrics shows of each model.
    pub(crate) fn scenes(&self) -> Vec<ModelScene<'_>> {
        let state = self.state();
        let scenes = self.slots.iter().zip(&state.models);
        scenes
            .map(|(slot, model)| ModelScene {
                name: &slot.names[0],
                metrics: &slot.metrics,
                block_size: model
                    .ready
                    .as_ref()
                    .map_or(0, |ready| ready.model.block_size),
                queue: slot.queue.counts(),
                is_loaded: model.ready.is_some(),
            })
            .collect()
    }

    /// Whether a file of a model was changed while it is in use.
    pub(crate) fn is_damaged(&self) -> bool {
        self.state()
            .models
            .iter()
            .any(|model| model.damage.is_some())
    }

    /// Unloads models when their time is over. Ends with the registry.
    pub(crate) async fn unload_expired(registry: Weak<Self>) {
        loop {
            let Some(strong) = registry.upgrade() else {
                return;
            };
            let next = strong.update(|state, _| state.schedule.next_expiry());
            let idle = Arc::clone(&strong.idle);
            drop(strong);
            let idle = idle.notified();
            match next {
                None => idle.await,
                Some(next) => {
                    // A model that expires now was unloaded above.
                    drop(tokio::time::timeout_at(next.into(), idle).await);
                }
            }
        }
    }
}

/// Loads a model and runs its engine until its last driver is dropped.
fn run_model(registry: &Weak<Registry>, index: usize, driver: Driver, engine_loop: EngineLoop) {
    let Some(strong) = registry.upgrade() else {
        return;
    };
    let start = Instant::now();
    let mut loaded = match strong.load(index) {
        Ok(loaded) => loaded,
        Err(problem) => return strong.load_failed(index, problem),
    };
    let (bytes, files) = (loaded.bytes, std::mem::take(&mut loaded.files));
    let engine_loop = engine_loop.reading(files.clone());
    // Publish before the model is ready, so that the first scrape finds the cache's size.
    engine_loop.publish(&loaded.engine);
    let names = strong.slots[index].names.clone();
    let (model, engine, remake) = ServedModel::new(names, loaded, &strong.options);
    let remake = reloading(Weak::clone(registry), index, remake);
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(
        model = model.name(),
        context = model.context,
        seconds,
        "ready"
    );
    let model = Arc::new(model);
    strong.loaded(index, Ready { model, driver }, bytes, files);
    drop(strong);
    let ended = catch_unwind(AssertUnwindSafe(|| engine_loop.run(engine, remake)));
    let problem = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(panic_message(&*panic).to_owned()),
    };
    if let Some(strong) = registry.upgrade() {
        strong.thread_ended(index, problem);
    }
}

/// Makes engines with `remake`, or by loading the model at `index` again if its device has failed.
fn reloading(registry: Weak<Registry>, index: usize, mut remake: RemakeEngine) -> RemakeEngine {
    Box::new(move || match remake() {
        Err(bitnet_inference::Error::DeviceFailed(problem)) => {
            // Free the lost weights before the new ones take memory.
            remake = Box::new(|| Err(bitnet_inference::Error::EngineStopped));
            let engine;
            (engine, remake) = reload(&registry, index, &problem)?;
            Ok(engine)
        }
        made => made,
    })
}

/// Loads the model at `index` again after this failure of its device.
fn reload(
    registry: &Weak<Registry>,
    index: usize,
    failure: &str,
) -> bitnet_inference::Result<(Engine, RemakeEngine)> {
    let registry = registry.upgrade();
    let registry = registry.ok_or(bitnet_inference::Error::EngineStopped)?;
    let loaded = registry.load(index).map_err(|problem| {
        let problem = Error::from(problem);
        let problem = chain(&problem);
        bitnet_inference::Error::DeviceFailed(format!(
            "{failure}; the model cannot be loaded again: {problem}"
        ))
    })?;
    Ok((loaded.engine, loaded.remake))
}

impl Slot {
    fn new(spec: ModelSpec, options: &ServeOptions) -> Self {
        let limits = &options.limits;
        Self {
            names: spec.names,
            outline: spec.outline,
            queue: Arc::new(Queue::new(limits.queue_requests, limits.queue_tokens)),
            metrics: Arc::new(Metrics::new(Arc::default())),
            load: Mutex::new(spec.load),
            preview: spec.preview,
        }
    }
}

impl LoadProblem {
    /// The answer to a request for the model of this name. The log has the whole error, which may
    /// have folders that clients need not know.
    fn for_client(&self, name: &str) -> ApiError {
        match self {
            Self::Failed(error) => ApiError::not_loaded(name, &root_cause(error)),
            Self::Panicked(problem) | Self::NoThread(problem) => {
                ApiError::not_loaded(name, problem)
            }
            Self::TooLarge { bytes, bytes_max } => {
                ApiError::model_too_large(name, *bytes, *bytes_max)
            }
        }
    }
}

/// The last source of an error.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl From<LoadProblem> for Error {
    fn from(problem: LoadProblem) -> Self {
        match problem {
            LoadProblem::Failed(error) => Self::Load(error),
            LoadProblem::Panicked(problem) | LoadProblem::NoThread(problem) => {
                Self::LoadPanicked(problem)
            }
            LoadProblem::TooLarge { bytes, bytes_max } => Self::ModelTooLarge { bytes, bytes_max },
        }
    }
}

/// A place among the requests that wait for a model.
struct Waiting {
    receiver: oneshot::Receiver<LeaseResult>,
    registry: Arc<Registry>,
}

impl Future for Waiting {
    type Output = Option<LeaseResult>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let receiver = std::pin::Pin::new(&mut self.receiver);
        receiver.poll(context).map(Result::ok)
    }
}

impl Drop for Waiting {
    /// Other models may go on if nothing waits for this one any more.
    fn drop(&mut self) {
        self.receiver.close();
        self.registry.update(|_, _| ());
    }
}

/// The use of a loaded model by one request: the model stays loaded until all clones of the lease
/// are dropped.
#[derive(Clone)]
pub(crate) struct ModelLease {
    held: Arc<Held>,
    model: Arc<ServedModel>,
    driver: Driver,
}

/// Counts as one use of a model.
struct Held {
    registry: Arc<Registry>,
    index: usize,
}

impl ModelLease {
    /// The model, which lives longer than the lease. Work on text may outlive its request.
    pub(crate) fn model(&self) -> Arc<ServedModel> {
        Arc::clone(&self.model)
    }

    fn slot(&self) -> &Slot {
        &self.held.registry.slots[self.held.index]
    }

    /// Counts the answers that wait for the model's engine.
    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.slot().queue
    }

    /// Counts the model's answers.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.slot().metrics
    }

    /// Submits jobs to the engine.
    pub(crate) fn send_jobs(&self, jobs: impl Iterator<Item = Job>) -> Result<(), ApiError> {
        for job in jobs {
            self.driver
                .submit(job)
                .map_err(|_| ApiError::engine_stopped())?;
        }
        Ok(())
    }
}

impl std::ops::Deref for ModelLease {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let index = self.index;
        self.registry
            .update(|state, now| state.schedule.release(index, now));
        self.registry.idle.notify_one();
    }
}

#[cfg(test)]
mod engine_tests;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::options::Limits;

    /// A model of `bytes` that waits for a word before it fails to load.
    fn spec(name: &str, bytes: usize) -> (ModelSpec, mpsc::Sender<()>) {
        let (go, wait) = mpsc::channel();
        let spec = ModelSpec {
            names: vec![name.to_owned()],
            bytes,
            outline: None,
            load: Box::new(move || {
                // The test may be over.
                let _ = wait.recv();
                Err("it is broken".into())
            }),
            preview: Box::new(|| Err("it is broken".into())),
        };
        (spec, go)
    }

    /// Two models, and room for one request that waits for each.
    fn registry() -> (Arc<Registry>, mpsc::Sender<()>) {
        let options = ServeOptions {
            models_memory: Some(100),
            limits: Limits {
                queue_requests: 1,
                ..Limits::for_tests()
            },
            ..ServeOptions::for_tests()
        };
        let ((small, go), (large, _)) = (spec("small", 60), spec("large", 101));
        let (registry, _) = Registry::new(Arc::new(options), vec![small, large]);
        (registry, go)
    }

    async fn refusal(registry: &Arc<Registry>, index: usize) -> (u16, String) {
        let refused = registry.lease(index, None).await;
        let error = refused.err().expect("a refusal");
        (error.status().as_u16(), error.message().to_owned())
    }

    #[tokio::test]
    async fn requests_wait_for_a_load_within_the_queue_and_get_its_failure() {
        let (registry, go) = registry();
        let (first, second) = (refusal(&registry, 0), refusal(&registry, 0));
        let ((status, message), (second, full)) = tokio::join!(first, async {
            let refused = second.await;
            go.send(()).expect("the loader waits");
            refused
        });
        assert_eq!(
            (status, message.as_str()),
            (500, "The model 'small' cannot be loaded: it is broken.")
        );
        assert_eq!(second, 429);
        assert!(
            full.starts_with("1 requests wait for the model 'small'"),
            "{full}"
        );
        assert_eq!(registry.view(0).stage, Stage::Absent);
        // The next request tries again.
        go.send(()).expect("the loader waits");
        assert_eq!(refusal(&registry, 0).await.0, 500);
    }

    #[tokio::test]
    async fn a_request_that_goes_away_leaves_its_place_to_the_next() {
        let (registry, go) = registry();
        let waits = registry.lease(0, None);
        let gone = tokio::time::timeout(Duration::from_millis(1), waits).await;
        assert!(gone.is_err(), "the loader waits");
        assert_eq!(registry.view(0).stage, Stage::Loading);
        go.send(()).expect("the loader waits");
        assert_eq!(refusal(&registry, 0).await.0, 500);
    }

    #[tokio::test]
    async fn a_model_that_is_too_large_is_refused_without_loading() {
        let (registry, _go) = registry();
        let expected =
            "The model 'large' takes 101 bytes of memory, but all models together may take 100.";
        assert_eq!(refusal(&registry, 1).await, (507, expected.to_owned()));
        assert_eq!(registry.view(1).stage, Stage::Absent);
        let preloaded = registry.preload(1).await.map_err(Error::from);
        let problem = preloaded.expect_err("it is too large").to_string();
        assert_eq!(
            problem,
            "the model takes 101 bytes of memory, but may take 100"
        );
        assert_eq!(
            (registry.find("large"), registry.find("none")),
            (Some(1), None)
        );
        assert_eq!(registry.known_names(), "'small', 'large'");
    }
}
