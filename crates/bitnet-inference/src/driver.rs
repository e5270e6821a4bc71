//! [`Driver`]: an engine on its own thread, used from any number of other threads.
//!
//! The thread takes requests between steps, runs [`Engine::step`], and passes each request's
//! results to the [`ReplySink`] that came with it. A sink may feed a blocking channel, as
//! [`ReplyStream`] does, or an asynchronous one; this module depends on no runtime. Before each
//! step, the thread cancels the requests whose sinks are closed.
//!
//! A panic must not take the answers of other requests with it. After a panic in a step, the
//! culprit is unknown, so a fresh engine runs each request in flight again, alone. Tokens depend
//! on nothing but the request, so the thread drops the tokens that it has already sent. The
//! request that panics alone fails; the other requests do not notice.
//!
//! If the device fails, as a lost GPU does, the results since an unknown moment are worthless. The
//! requests in flight fail, because one of them may be the cause. A fresh engine runs the requests
//! that wait, if one can be made.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bitnet_guard::FileProblem;
use bitnet_tokenizers::TokenId;

use crate::backlog::{Backlog, InEngine, Owner};
use crate::counts::{EngineCounts, HeadUse, StateCounts};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::request::{Constraint, Event, Finish, Logprobs, Request, RequestId, Timings};

/// Makes an engine like the first one, to replace an engine that has panicked or whose device has
/// failed.
pub type RemakeEngine = Box<dyn FnMut() -> Result<Engine> + Send>;

/// Makes the constraint of a request: once when the request is submitted, and again each time it
/// is rerun.
pub type MakeConstraint = Box<dyn Fn() -> Box<dyn Constraint> + Send>;

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// The text that is certain now: whole characters that cannot belong to a stop string. May be
    /// empty.
    pub text: String,
    /// Its log-probabilities, if the request asks for them.
    pub logprobs: Option<Logprobs>,
}

/// A piece of an answer.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Progress of the prompt.
    Prompt {
        /// Tokens of the prompt that have been computed.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// If the request asks for them, the log-probabilities of the next tokens of the prompt
        /// up to index `done`, the end of the prompt excluded. The first token has none. After a
        /// rerun they start again at the second token.
        logprobs: Vec<Logprobs>,
    },
    /// A token.
    Token(Token),
    /// The end.
    End {
        /// Text that was held back because it could have begun a stop string.
        text: String,
        /// The reason why the answer ended, its tokens and times.
        finish: Finish,
    },
}

/// A message from the engine's thread about one request. [`Piece::End`] and `Failed` are the last.
#[derive(Debug)]
pub enum Reply {
    /// The engine has started the request.
    Started {
        /// The time since the request was submitted.
        queued: Duration,
    },
    /// A piece of the answer.
    Piece(Piece),
    /// The request has ended without an answer.
    Failed(Failure),
}

/// Why a request ended without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request is invalid.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The request made the engine panic, with this message.
    #[error("a bug in the engine: this request made it panic: {0}")]
    Panicked(String),
    /// The constraint on the tokens failed, for this reason.
    #[error("the answer could not continue: {0}")]
    Constraint(String),
    /// A file of the model changed while it is in use, so the tokens may be wrong.
    #[error("{0}")]
    File(FileProblem),
    /// The model computes nothing useful, for this reason.
    #[error("{0}")]
    Model(String),
    /// The device failed, for this reason, while the engine had the request or was being replaced.
    #[error("{0}")]
    Device(String),
    /// The request was cancelled; these are its tokens and times so far.
    #[error("the request was cancelled")]
    Cancelled(Timings),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// The receiver of the replies to one request. The engine's thread calls it, so it must not block.
pub trait ReplySink: Send {
    /// Takes the next reply.
    fn send(&mut self, reply: Reply);

    /// Whether the client no longer reads the replies. The engine's thread then cancels the
    /// request.
    fn is_closed(&self) -> bool;
}

/// A request and the sink of its replies.
pub struct Job {
    /// The request.
    pub request: Request,
    /// Makes the constraint on its tokens, if it has one.
    pub constraint: Option<MakeConstraint>,
    /// Whose request it is: if requests have to wait, owners take turns.
    pub owner: Owner,
    /// Takes the replies.
    pub sink: Box<dyn ReplySink>,
}

/// Counts of all engines of a driver since its start, and the state of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps and tokens.
    pub counts: EngineCounts,
    /// Uses of the screened head.
    pub head_use: HeadUse,
    /// Blocks of the key/value cache that no request holds.
    pub free_blocks: usize,
    /// Blocks of the key/value cache.
    pub num_blocks: usize,
    /// Slots for recurrent states.
    pub states: StateCounts,
    /// Times that an engine panicked and was replaced.
    pub panics: u64,
    /// Times that the device failed.
    pub device_failures: u64,
}

/// Reports the engine's statistics to any thread.
#[derive(Debug)]
pub struct EngineMonitor {
    epoch: Instant,
    /// Milliseconds from `epoch` to the start of the current step, plus 1; 0 between jobs.
    step_start: AtomicU64,
    /// Whether the device has failed and the engine is being replaced.
    is_replacing: AtomicBool,
    stats: Mutex<EngineStats>,
}

/// An event that the engine's thread reports to the owner of the driver.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// A step has run tokens through the model.
    Stepped {
        /// The number of tokens.
        tokens: u64,
    },
    /// The engine has panicked.
    Panicked {
        /// The message of the panic.
        message: &'a str,
        /// What the engine was doing.
        during: PanickedTask,
    },
    /// The device has failed, and the requests in flight with it.
    DeviceFailed {
        /// Why.
        problem: &'a str,
        /// The number of these requests.
        num_requests: usize,
    },
    /// A new engine has replaced an engine whose device failed.
    DeviceReplaced,
}

/// What an engine was doing when it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanickedTask {
    /// Taking a request, which has failed.
    Submit,
    /// A step for this many requests, each of which runs again alone.
    Step {
        /// The number of requests.
        num_requests: usize,
    },
    /// A step for a request that ran alone after a panic, and has failed.
    Rerun,
    /// A function passed to [`Driver::call`].
    Call,
}

/// The handle of an engine that runs on its own thread. Clones share the engine. The thread ends
/// when all handles are gone and all requests have ended.
///
/// ```
/// use bitnet_inference::{Device, Driver, Engine, EngineOptions, Piece, Request, load};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories/stories.gguf");
/// let device = Device::default();
/// let loaded = load(path.as_ref(), &Default::default(), device)?;
/// let tokenizer = loaded.tokenization.expect("this model has one").tokenizer;
/// let mut engines = {
///     let (model, tokenizer) = (loaded.model, Some(tokenizer.clone()));
///     move || Engine::new(model.clone(), tokenizer.clone(), device, EngineOptions::default())
/// };
/// let driver = Driver::start(engines()?, Box::new(engines))?;
///
/// let request = Request {
///     prompt: tokenizer.encode("Once upon a time", Default::default())?,
///     max_tokens: Some(8),
///     ..Request::default()
/// };
/// let mut text = String::new();
/// for piece in driver.stream(request)? {
///     match piece? {
///         Piece::Prompt { .. } => {}
///         Piece::Token(token) => text += &token.text,
///         Piece::End { text: rest, .. } => text += &rest,
///     }
/// }
/// assert!(!text.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Driver {
    commands: Sender<Command>,
    monitor: Arc<EngineMonitor>,
    /// The failure of the device that has ended the thread.
    device_failure: Arc<OnceLock<String>>,
}

/// A command from a driver to its thread.
enum Command {
    Submit { job: Box<Job>, submitted: Instant },
    Call(Box<dyn FnOnce(&mut Engine) -> CallResult + Send>),
}

/// The message of the panic if a function panicked.
type CallResult = std::result::Result<(), String>;

impl Driver {
    /// A driver and the loop that serves it, for a caller that provides the thread.
    #[must_use]
    pub fn new() -> (Self, EngineLoop) {
        Self::with_step(Engine::step, Arc::default())
    }

    /// As [`new`](Self::new). The counts continue the counts of `monitor`, whose engines have ended.
    #[must_use]
    pub fn continuing(monitor: Arc<EngineMonitor>) -> (Self, EngineLoop) {
        Self::with_step(Engine::step, monitor)
    }

    fn with_step<S>(step: S, monitor: Arc<EngineMonitor>) -> (Self, EngineLoop<S>) {
        let (commands, received) = mpsc::channel();
        let driver = Self {
            commands,
            monitor: Arc::clone(&monitor),
            device_failure: Arc::default(),
        };
        let engine_loop = EngineLoop {
            commands: received,
            earlier: monitor.stats(),
            monitor,
            device_failure: Arc::clone(&driver.device_failure),
            observe: Box::new(|_| {}),
            step,
            files: None,
            backlog: Backlog::new(),
            in_flight: HashMap::new(),
            suspects: VecDeque::new(),
            is_alone: false,
            events: Vec::new(),
        };
        (driver, engine_loop)
    }

    /// Starts a thread that runs `engine`, and replaces it by `remake` after a panic or a failure of
    /// the device.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(engine: Engine, remake: RemakeEngine) -> std::io::Result<Self> {
        let (driver, engine_loop) = Self::new();
        std::thread::Builder::new()
            .name("bitnet-engine".to_owned())
            // If the engine cannot be replaced, the loop ends and all requests fail.
            .spawn(move || drop(engine_loop.run(engine, remake)))?;
        Ok(driver)
    }

    /// Submits a request. The sink gets everything that follows, a refusal included.
    ///
    /// # Errors
    /// If the engine's thread has ended.
    pub fn submit(&self, job: Job) -> Result<()> {
        let (job, submitted) = (Box::new(job), Instant::now());
        self.send(Command::Submit { job, submitted })
    }

    /// Submits a request and returns the pieces of its answer.
    ///
    /// # Errors
    /// If the engine's thread has ended.
    pub fn stream(&self, request: Request) -> Result<ReplyStream> {
        self.stream_constrained(request, None)
    }

    /// Submits a request whose tokens a constraint restricts.
    ///
    /// # Errors
    /// If the engine's thread has ended.
    pub fn stream_constrained(
        &self,
        request: Request,
        constraint: Option<MakeConstraint>,
    ) -> Result<ReplyStream> {
        let (sender, replies) = mpsc::channel();
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let sink = ChannelSink {
            replies: sender,
            is_cancelled: Arc::clone(&is_cancelled),
        };
        self.submit(Job {
            request,
            constraint,
            owner: Owner::from(""),
            sink: Box::new(sink),
        })?;
        Ok(ReplyStream {
            replies,
            is_cancelled,
            has_ended: false,
        })
    }

    /// Runs `work` on the engine's thread, between two steps, and returns its result.
    ///
    /// # Errors
    /// If the engine's thread has ended.
    ///
    /// # Panics
    /// If `work` panics. The requests in flight then run again on a fresh engine.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, result) = mpsc::sync_channel(1);
        self.send(Command::Call(Box::new(move |engine| {
            let returned = catch_unwind(AssertUnwindSafe(|| work(engine)));
            let problem = returned
                .as_ref()
                .err()
                .map(|panic| panic_message(&**panic).to_owned());
            // The caller waits for the result, so it still holds the receiver.
            let _ = sender.send(returned);
            problem.map_or(Ok(()), Err)
        })))?;
        match result.recv() {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(self.ended()),
        }
    }

    /// Reports the engine's statistics. Does not keep the thread alive.
    #[must_use]
    pub fn monitor(&self) -> &Arc<EngineMonitor> {
        &self.monitor
    }

    fn send(&self, command: Command) -> Result<()> {
        if self.device_failure.get().is_some() {
            return Err(self.ended());
        }
        self.commands.send(command).map_err(|_| self.ended())
    }

    /// Why the thread takes no commands.
    fn ended(&self) -> Error {
        match self.device_failure.get() {
            Some(problem) => Error::DeviceFailed(problem.clone()),
            None => Error::EngineStopped,
        }
    }
}

/// The pieces of one answer, in order. Dropping it cancels the request.
#[derive(Debug)]
pub struct ReplyStream {
    replies: Receiver<Reply>,
    is_cancelled: Arc<AtomicBool>,
    has_ended: bool,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The tokens, the stop token included.
    pub tokens: Vec<TokenId>,
    /// The text; empty for a model without a tokenizer.
    pub text: String,
    /// The reason why the answer ended, its tokens and times.
    pub finish: Finish,
}

impl ReplyStream {
    /// Waits at most `timeout` for the next piece; `Ready(None)` after the last one.
    pub fn poll_timeout(
        &mut self,
        timeout: Duration,
    ) -> Poll<Option<std::result::Result<Piece, Failure>>> {
        let deadline = Instant::now() + timeout;
        while !self.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            let reply = match self.replies.recv_timeout(left) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) => return Poll::Pending,
                Err(RecvTimeoutError::Disconnected) => Reply::Failed(Failure::Stopped),
            };
            if let Some(item) = self.item(reply) {
                return Poll::Ready(Some(item));
            }
        }
        Poll::Ready(None)
    }

    /// Asks the engine's thread to cancel the request before its next step. The stream then ends
    /// with [`Failure::Cancelled`], or as usual if the answer was complete.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// If the request fails.
    pub fn wait(self) -> std::result::Result<Completion, Failure> {
        let (mut tokens, mut all_text) = (Vec::new(), String::new());
        for piece in self {
            match piece? {
                Piece::Prompt { .. } => {}
                Piece::Token(Token { id, text, .. }) => {
                    tokens.push(id);
                    all_text += &text;
                }
                Piece::End { text, finish } => {
                    return Ok(Completion {
                        tokens,
                        text: all_text + &text,
                        finish,
                    });
                }
            }
        }
        Err(Failure::Stopped)
    }

    /// What a reply adds to the stream.
    fn item(&mut self, reply: Reply) -> Option<std::result::Result<Piece, Failure>> {
        self.has_ended = matches!(reply, Reply::Piece(Piece::End { .. }) | Reply::Failed(_));
        match reply {
            Reply::Started { .. } => None,
            Reply::Piece(piece) => Some(Ok(piece)),
            Reply::Failed(failure) => Some(Err(failure)),
        }
    }
}

impl Iterator for ReplyStream {
    type Item = std::result::Result<Piece, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.has_ended {
            let reply = self.replies.recv();
            let item = self.item(reply.unwrap_or(Reply::Failed(Failure::Stopped)));
            if item.is_some() {
                return item;
            }
        }
        None
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The sink of a [`ReplyStream`].
struct ChannelSink {
    replies: Sender<Reply>,
    is_cancelled: Arc<AtomicBool>,
}

impl ReplySink for ChannelSink {
    fn send(&mut self, reply: Reply) {
        // If the stream is gone, `is_closed` says so before the next step.
        let _ = self.replies.send(reply);
    }

    fn is_closed(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

impl Default for EngineMonitor {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            step_start: AtomicU64::new(0),
            is_replacing: AtomicBool::new(false),
            stats: Mutex::default(),
        }
    }
}

impl EngineMonitor {
    /// The statistics after the last step.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the statistics.
    pub fn record(&self, stats: EngineStats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// How long the current step has taken; zero between jobs.
    #[must_use]
    pub fn step_time(&self) -> Duration {
        match self.step_start.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            start => self
                .epoch
                .elapsed()
                .saturating_sub(Duration::from_millis(start - 1)),
        }
    }

    /// Whether the device has failed and the engine is being replaced. Requests wait meanwhile.
    #[must_use]
    pub fn is_replacing(&self) -> bool {
        self.is_replacing.load(Ordering::Relaxed)
    }

    fn step_starts(&self) {
        let now = self.epoch.elapsed().as_millis() as u64;
        self.step_start.store(now + 1, Ordering::Relaxed);
    }

    fn rests(&self) {
        self.step_start.store(0, Ordering::Relaxed);
    }
}

impl EngineStats {
    /// The statistics of an engine that follows engines with the statistics `earlier`.
    fn after(earlier: Self, engine: &Engine) -> Self {
        let (a, b) = (earlier.counts, engine.counts());
        let (c, d) = (earlier.head_use, engine.head_use());
        let (free_blocks, num_blocks) = engine.free_blocks();
        Self {
            counts: EngineCounts {
                steps: a.steps + b.steps,
                computed_tokens: a.computed_tokens + b.computed_tokens,
                prompt_tokens: a.prompt_tokens + b.prompt_tokens,
                cached_tokens: a.cached_tokens + b.cached_tokens,
                preemptions: a.preemptions + b.preemptions,
                drafts: a.drafts + b.drafts,
                drafted_tokens: a.drafted_tokens + b.drafted_tokens,
                accepted_tokens: a.accepted_tokens + b.accepted_tokens,
                accepted_by_place: std::array::from_fn(|place| {
                    a.accepted_by_place[place] + b.accepted_by_place[place]
                }),
            },
            head_use: HeadUse {
                screened: c.screened + d.screened,
                fell_back: c.fell_back + d.fell_back,
                exact_logits: c.exact_logits + d.exact_logits,
                wasted_logits: c.wasted_logits + d.wasted_logits,
            },
            free_blocks,
            states: engine.states(),
            num_blocks,
            panics: earlier.panics,
            device_failures: earlier.device_failures,
        }
    }
}

/// The loop that runs an engine for a [`Driver`]. `S` is [`Engine::step`], except in tests.
pub struct EngineLoop<S = fn(&mut Engine, &mut Vec<Event>)> {
    commands: Receiver<Command>,
    monitor: Arc<EngineMonitor>,
    /// Set if a failure of the device ends the loop.
    device_failure: Arc<OnceLock<String>>,
    observe: Box<dyn FnMut(Observation<'_>) + Send>,
    step: S,
    /// The model's files and folders; `None` for all mapped files.
    files: Option<Vec<PathBuf>>,
    /// The statistics of all engines before this one.
    earlier: EngineStats,
    /// Requests that the engine does not have yet.
    backlog: Backlog<Flight>,
    in_flight: HashMap<RequestId, Flight>,
    /// The requests that were in flight when a step panicked, to be rerun one by one.
    suspects: VecDeque<Flight>,
    /// Whether the only request in flight is a suspect.
    is_alone: bool,
    events: Vec<Event>,
}

/// A request and its progress.
struct Flight {
    job: Job,
    /// Counts for the owner's share while the engine has the request.
    _in_engine: Option<InEngine>,
    submitted: Instant,
    has_started: bool,
    /// Tokens sampled since it was last submitted to an engine.
    num_sampled: usize,
    /// Tokens sent to the sink.
    num_sent: usize,
}

/// The reason why the loop has stopped using an engine.
enum Stopped {
    /// All drivers are gone and all requests have ended.
    NoMoreCommands,
    /// The engine has panicked and is in an unknown state.
    Panicked(Panic),
    /// The device has failed, for this reason.
    DeviceFailed(String),
}

/// The payload of a panic.
type Panic = Box<dyn Any + Send>;

impl<S: FnMut(&mut Engine, &mut Vec<Event>)> EngineLoop<S> {
    /// Calls `observe` on the loop's thread for each event.
    #[must_use]
    pub fn observed(mut self, observe: impl FnMut(Observation<'_>) + Send + 'static) -> Self {
        self.observe = Box::new(observe);
        self
    }

    /// Fails requests only for problems of these files, and of files in these folders. Without this
    /// call, a problem of any mapped file of the process fails them.
    #[must_use]
    pub fn reading(mut self, files: Vec<PathBuf>) -> Self {
        self.files = Some(files);
        self
    }

    /// Runs until all drivers are gone and all requests have ended.
    ///
    /// # Errors
    /// If `remake` cannot replace an engine that has panicked or whose device has failed.
    pub fn run(mut self, mut engine: Engine, mut remake: RemakeEngine) -> Result<()> {
        loop {
            let stopped = self.drive(&mut engine);
            self.monitor.rests();
            self.earlier = self.monitor.stats();
            // Free the old engine's memory before the new engine takes its own.
            drop(engine);
            match stopped {
                Stopped::NoMoreCommands => return Ok(()),
                Stopped::Panicked(_) => {
                    self.earlier.panics += 1;
                    self.monitor.record(self.earlier);
                    engine = remake()?;
                }
                Stopped::DeviceFailed(problem) => {
                    self.earlier.device_failures += 1;
                    self.monitor.record(self.earlier);
                    engine = self.replace_device(&mut remake, problem)?;
                }
            }
        }
    }

    /// Makes an engine after a failure of the device. If that is not possible, fails all requests
    /// that wait.
    fn replace_device(&mut self, remake: &mut RemakeEngine, problem: String) -> Result<Engine> {
        let remade = remake();
        self.monitor.is_replacing.store(false, Ordering::Relaxed);
        match &remade {
            Ok(_) => (self.observe)(Observation::DeviceReplaced),
            Err(_) => self.fail_waiting(problem),
        }
        remade
    }

    /// Fails all requests that the engine does not have, and all later ones.
    fn fail_waiting(&mut self, problem: String) {
        // Nothing else sets it, so this cannot fail.
        let _ = self.device_failure.set(problem.clone());
        let mut waiting = self.backlog.take_unwanted(|_| false);
        waiting.extend(self.suspects.drain(..));
        waiting.extend(self.commands.try_iter().filter_map(Command::flight));
        for flight in waiting {
            flight.fail(Failure::Device(problem.clone()));
        }
    }

    /// Publishes the statistics of `engine` before the first step.
    pub fn publish(&self, engine: &Engine) {
        self.monitor
            .record(EngineStats::after(self.earlier, engine));
    }

    fn drive(&mut self, engine: &mut Engine) -> Stopped {
        loop {
            if let Some(problem) = engine.failure() {
                self.device_failed(engine, &problem);
                return Stopped::DeviceFailed(problem);
            }
            if let Err(panic) = self.take_commands(engine) {
                return Stopped::Panicked(panic);
            }
            self.cancel_closed(engine);
            if self.in_flight.is_empty() {
                if !self.suspects.is_empty() || !self.backlog.is_empty() {
                    continue;
                }
                self.monitor.rests();
                self.publish(engine);
                self.is_alone = false;
                let Ok(command) = self.commands.recv() else {
                    return Stopped::NoMoreCommands;
                };
                if let Err(panic) = self.take(engine, command) {
                    return Stopped::Panicked(panic);
                }
                continue;
            }
            if let Err(panic) = self.step(engine) {
                self.step_panicked(&*panic);
                return Stopped::Panicked(panic);
            }
            if let Some(problem) = self.file_problem() {
                self.fail_all(engine, &|| Failure::File(problem.clone()));
            }
            // The results of a step on a failed device are worthless.
            if engine.failure().is_none() {
                self.send_events();
            }
        }
    }

    /// A file of the model that lost bytes that were read.
    fn file_problem(&self) -> Option<FileProblem> {
        let mut problems = bitnet_guard::file_problems(false).into_iter();
        problems.find(|problem| match &self.files {
            None => true,
            Some(files) => files.iter().any(|file| problem.path().starts_with(file)),
        })
    }

    /// Fails the requests in flight after a failure of the device.
    fn device_failed(&mut self, engine: &mut Engine, problem: &str) {
        self.monitor.is_replacing.store(true, Ordering::Relaxed);
        let num_requests = self.in_flight.len();
        (self.observe)(Observation::DeviceFailed {
            problem,
            num_requests,
        });
        self.fail_all(engine, &|| Failure::Device(problem.to_owned()));
    }

    /// Fails every request in flight: what the engine has computed may be wrong.
    fn fail_all(&mut self, engine: &mut Engine, failure: &dyn Fn() -> Failure) {
        self.events.clear();
        for (id, flight) in self.in_flight.drain() {
            engine.cancel(id);
            flight.fail(failure());
        }
    }

    fn step(&mut self, engine: &mut Engine) -> std::result::Result<(), Panic> {
        self.monitor.step_starts();
        self.events.clear();
        let before = engine.counts();
        let (step, events) = (&mut self.step, &mut self.events);
        catch_unwind(AssertUnwindSafe(|| step(engine, events)))?;
        self.publish(engine);
        let after = engine.counts();
        if after.steps > before.steps {
            let tokens = after.computed_tokens - before.computed_tokens;
            (self.observe)(Observation::Stepped { tokens });
        }
        Ok(())
    }

    /// Takes the waiting commands, and submits the next requests or the next suspect. Returns the
    /// panic if one of them panicked.
    fn take_commands(&mut self, engine: &mut Engine) -> std::result::Result<(), Panic> {
        if self.in_flight.is_empty() {
            self.is_alone = false;
            if let Some(flight) = self.suspects.pop_front() {
                self.is_alone = true;
                return self.submit(engine, flight);
            }
        }
        while !self.is_alone
            && let Ok(command) = self.commands.try_recv()
        {
            self.take(engine, command)?;
        }
        let running_max = engine.options().running_max.max(1);
        let background_max = (running_max / 2).max(1);
        while !self.is_alone
            && self.in_flight.len() < running_max
            && let Some((in_engine, mut flight)) = self.backlog.next(background_max)
        {
            flight._in_engine = Some(in_engine);
            self.submit(engine, flight)?;
        }
        Ok(())
    }

    fn take(&mut self, engine: &mut Engine, command: Command) -> std::result::Result<(), Panic> {
        match command {
            Command::Submit { job, submitted } => {
                let (owner, priority) = (Arc::clone(&job.owner), job.request.priority);
                self.backlog
                    .push(priority, owner, Flight::new(job, submitted));
                Ok(())
            }
            Command::Call(call) => call(engine).map_err(|message| {
                self.panicked(&message, PanickedTask::Call);
                self.suspect_all();
                Box::new(message) as Panic
            }),
        }
    }

    /// Submits a request to the engine. Returns the panic if that panicked.
    fn submit(
        &mut self,
        engine: &mut Engine,
        mut flight: Flight,
    ) -> std::result::Result<(), Panic> {
        flight.num_sampled = 0;
        let request = flight.job.request.clone();
        let constraint = flight.job.constraint.as_ref().map(|make| make());
        let submit = || engine.submit_constrained(request, constraint);
        match catch_unwind(AssertUnwindSafe(submit)) {
            Ok(Ok(id)) => {
                self.in_flight.insert(id, flight);
                Ok(())
            }
            Ok(Err(error)) => {
                flight.fail(Failure::Refused(error));
                Ok(())
            }
            Err(panic) => {
                let message = panic_message(&*panic).to_owned();
                self.panicked(&message, PanickedTask::Submit);
                flight.fail(Failure::Panicked(message));
                self.suspect_all();
                Err(panic)
            }
        }
    }

    fn step_panicked(&mut self, panic: &(dyn Any + Send)) {
        let message = panic_message(panic).to_owned();
        if self.is_alone {
            self.panicked(&message, PanickedTask::Rerun);
            for (_, flight) in self.in_flight.drain() {
                flight.fail(Failure::Panicked(message.clone()));
            }
        } else {
            let num_requests = self.in_flight.len();
            self.panicked(&message, PanickedTask::Step { num_requests });
            self.suspect_all();
        }
    }

    fn panicked(&mut self, message: &str, during: PanickedTask) {
        (self.observe)(Observation::Panicked { message, during });
    }

    fn suspect_all(&mut self) {
        let mut flights: Vec<_> = self.in_flight.drain().collect();
        flights.sort_unstable_by_key(|(id, _)| *id);
        self.suspects
            .extend(flights.into_iter().map(|(_, flight)| flight));
    }

    fn cancel_closed(&mut self, engine: &mut Engine) {
        let closed = self
            .in_flight
            .extract_if(|_, flight| flight.job.sink.is_closed());
        for (id, flight) in closed {
            let timings = engine.cancel(id).unwrap_or_default();
            flight.fail(Failure::Cancelled(timings));
        }
        let is_wanted = |flight: &Flight| !flight.job.sink.is_closed();
        let mut waiting = self.backlog.take_unwanted(is_wanted);
        for index in (0..self.suspects.len()).rev() {
            if !is_wanted(&self.suspects[index]) {
                waiting.extend(self.suspects.remove(index));
            }
        }
        for flight in waiting {
            flight.fail(Failure::Cancelled(Timings::default()));
        }
    }

    fn send_events(&mut self) {
        for event in self.events.drain(..) {
            let (Event::Prefill { id, .. }
            | Event::Token { id, .. }
            | Event::Finished { id, .. }
            | Event::Failed { id, .. }) = event;
            let Some(flight) = self.in_flight.get_mut(&id) else {
                continue;
            };
            flight.start();
            match event {
                Event::Prefill {
                    done,
                    total,
                    logprobs,
                    ..
                } => flight.send(Piece::Prompt {
                    done,
                    total,
                    logprobs,
                }),
                Event::Token {
                    token: id,
                    text,
                    logprobs,
                    ..
                } => flight.send_token(Token { id, text, logprobs }),
                Event::Finished { text, finish, .. } => {
                    flight.send(Piece::End { text, finish });
                    self.in_flight.remove(&id);
                }
                Event::Failed { problem, .. } => {
                    if let Some(flight) = self.in_flight.remove(&id) {
                        let failure = match flight.job.constraint {
                            Some(_) => Failure::Constraint(problem),
                            None => Failure::Model(problem),
                        };
                        flight.fail(failure);
                    }
                }
            }
        }
    }
}

impl Command {
    /// The request of a command that submits one.
    fn flight(self) -> Option<Flight> {
        match self {
            Self::Submit { job, submitted } => Some(Flight::new(job, submitted)),
            Self::Call(_) => None,
        }
    }
}

impl Flight {
    fn new(job: Box<Job>, submitted: Instant) -> Self {
        Self {
            job: *job,
            _in_engine: None,
            submitted,
            has_started: false,
            num_sampled: 0,
            num_sent: 0,
        }
    }

    fn start(&mut self) {
        if !std::mem::replace(&mut self.has_started, true) {
            let queued = self.submitted.elapsed();
            self.job.sink.send(Reply::Started { queued });
        }
    }

    fn send(&mut self, piece: Piece) {
        self.job.sink.send(Reply::Piece(piece));
    }

    /// Sends a token, unless it was sent before a panic.
    fn send_token(&mut self, token: Token) {
        self.num_sampled += 1;
        if self.num_sampled > self.num_sent {
            self.num_sent += 1;
            self.send(Piece::Token(token));
        }
    }

    fn fail(mut self, failure: Failure) {
        self.job.sink.send(Reply::Failed(failure));
    }
}

impl Engine {
    /// Runs a request to its end on the calling thread: the sampled tokens, and how it ended.
    ///
    /// # Errors
    /// As [`Engine::submit`], or if a file of the model changes during the run, the device fails, or
    /// the model is broken.
    ///
    /// # Panics
    /// If other requests are waiting or running: their results would be lost.
    pub fn complete(&mut self, request: Request) -> Result<(Vec<TokenId>, Finish)> {
        assert!(
            !self.is_busy(),
            "(waiting, running) requests are {:?}, but `complete` needs an idle engine",
            self.num_requests()
        );
        let (driver, mut engine_loop) = Driver::new();
        let stream = driver.stream(request)?;
        drop(driver);
        match engine_loop.drive(self) {
            Stopped::NoMoreCommands => {}
            Stopped::Panicked(panic) => resume_unwind(panic),
            Stopped::DeviceFailed(problem) => return Err(Error::DeviceFailed(problem)),
        }
        match stream.wait() {
            Ok(Completion { tokens, finish, .. }) => Ok((tokens, finish)),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::File(problem)) => Err(Error::ModelFile(problem)),
            Err(Failure::Model(problem)) => Err(Error::BrokenModel(problem)),
            Err(failure) => unreachable!("the request has no constraint and runs here: {failure}"),
        }
    }
}

/// The message of a panic.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bitnet_models::LoadOptions;

    use super::*;
    use crate::device::Device;
    use crate::load::{Loaded, load};
    use crate::options::EngineOptions;
    use crate::request::FinishReason;
    use crate::sampling::SamplingParams;

    fn remake() -> RemakeEngine {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
        let Loaded { model, .. } =
            load(&path, &LoadOptions::default(), Device::cpu(1)).expect("the golden model loads");
        let options = EngineOptions {
            context: 64,
            cache: 256,
            ..EngineOptions::default()
        };
        Box::new(move || Engine::new(Arc::clone(&model), None, Device::cpu(1), options))
    }

    fn request(length: usize, seed: u64) -> Request {
        Request {
            prompt: (0..length)
                .map(|token| TokenId(token as u32 % 250))
                .collect(),
            sampling: SamplingParams {
                seed,
                ..SamplingParams::default()
            },
            max_tokens: Some(10),
            ..Request::default()
        }
    }

    /// The tokens of a request, and why it ended.
    type Outcome = (
        Vec<TokenId>,
        std::result::Result<FinishReason, &'static str>,
    );

    fn outcome(stream: ReplyStream) -> Outcome {
        let mut tokens = Vec::new();
        for piece in stream {
            match piece {
                Ok(Piece::Prompt { .. }) => {}
                Ok(Piece::Token(token)) => tokens.push(token.id),
                Ok(Piece::End { finish, .. }) => return (tokens, Ok(finish.reason)),
                Err(Failure::Refused(_)) => return (tokens, Err("refused")),
                Err(Failure::Panicked(message)) => {
                    assert_eq!(message, "poison");
                    return (tokens, Err("panicked"));
                }
                Err(Failure::Constraint(_)) => return (tokens, Err("constraint")),
                Err(Failure::File(_) | Failure::Model(_) | Failure::Device(_)) => {
                    return (tokens, Err("model"));
                }
                Err(Failure::Cancelled(_)) => return (tokens, Err("cancelled")),
                Err(Failure::Stopped) => return (tokens, Err("stopped")),
            }
        }
        (tokens, Err("no end"))
    }

    /// Runs a request for each prompt length, on an engine that panics in the third step after it
    /// has computed a prompt of `poison` tokens. Returns the outcomes and the panics.
    fn run(lengths: &[usize], poison: usize) -> (Vec<Outcome>, Vec<PanickedTask>) {
        let mut poisoned = None;
        let step = move |engine: &mut Engine, events: &mut Vec<Event>| {
            engine.step(events);
            for event in &*events {
                match event {
                    Event::Prefill {
                        id, done, total, ..
                    } if *total == poison && done == total => poisoned = Some((*id, 3)),
                    Event::Token { id, .. } => {
                        if let Some((_, left)) =
                            poisoned.as_mut().filter(|(poisoned, _)| poisoned == id)
                        {
                            *left -= 1;
                        }
                    }
                    _ => {}
                }
            }
            if poisoned.is_some_and(|(_, left)| left == 0) {
                poisoned = None;
                panic!("poison");
            }
        };
        let (driver, engine_loop) = Driver::with_step(step, Arc::default());
        let monitor = Arc::clone(driver.monitor());
        let streams: Vec<_> = (0..)
            .zip(lengths)
            .map(|(seed, &length)| driver.stream(request(length, seed)).expect("a loop"))
            .collect();
        drop(driver);
        let panics = Arc::new(Mutex::new(Vec::new()));
        let engine_loop = engine_loop.observed({
            let panics = Arc::clone(&panics);
            move |observation| {
                if let Observation::Panicked { message, during } = observation {
                    assert_eq!(message, "poison");
                    panics.lock().expect("no panic").push(during);
                }
            }
        });
        let mut remake = remake();
        let engine = remake().expect("an engine");
        engine_loop.run(engine, remake).expect("engines");
        let panics = panics.lock().expect("no panic").clone();
        assert_eq!(monitor.stats().panics, panics.len() as u64);
        assert_eq!(monitor.step_time(), Duration::ZERO);
        (streams.into_iter().map(outcome).collect(), panics)
    }

    #[test]
    fn a_panic_fails_the_request_that_causes_it_and_no_other() {
        let lengths = [5, 17, 30, 8];
        let (expected, panics) = run(&lengths, 0);
        assert_eq!(panics, []);
        assert!(
            expected
                .iter()
                .all(|(tokens, reason)| tokens.len() == 10 && *reason == Ok(FinishReason::Length))
        );
        let (outcomes, panics) = run(&lengths, 17);
        let num_requests = lengths.len();
        assert_eq!(
            panics,
            [PanickedTask::Step { num_requests }, PanickedTask::Rerun]
        );
        for (index, (outcome, expected)) in outcomes.iter().zip(&expected).enumerate() {
            match index {
                1 => assert!(
                    outcome.1 == Err("panicked") && expected.0.starts_with(&outcome.0),
                    "{outcome:?}"
                ),
                _ => assert_eq!(outcome, expected),
            }
        }
    }

    #[test]
    fn an_invalid_request_is_refused() {
        let (outcomes, _) = run(&[5, 60, 7], 0);
        assert_eq!(outcomes[1], (Vec::new(), Err("refused")));
        assert!(outcomes[0].1.is_ok() && outcomes[2].1.is_ok());
    }

    #[test]
    fn a_request_that_is_cancelled_early_does_not_run() {
        let never = |_: &mut Engine, _: &mut Vec<Event>| panic!("there is nothing to do");
        let (driver, engine_loop) = Driver::with_step(never, Arc::default());
        drop(driver.stream(request(3, 0)).expect("a loop"));
        let stream = driver.stream(request(3, 0)).expect("a loop");
        stream.cancel();
        drop(driver);
        let mut remake = remake();
        let engine = remake().expect("an engine");
        engine_loop.run(engine, remake).expect("no panic");
        assert_eq!(outcome(stream), (Vec::new(), Err("cancelled")));
    }

    #[test]
    fn requests_fail_if_the_engine_cannot_be_replaced() {
        let always = |_: &mut Engine, _: &mut Vec<Event>| panic!("poison");
        let (driver, engine_loop) = Driver::with_step(always, Arc::default());
        let stream = driver.stream(request(3, 0)).expect("a loop");
        let engine = remake()().expect("an engine");
        let no_engine = || Err(Error::EngineStopped);
        assert!(engine_loop.run(engine, Box::new(no_engine)).is_err());
        assert_eq!(outcome(stream), (Vec::new(), Err("stopped")));
        assert!(driver.stream(request(3, 0)).is_err());
        assert!(driver.call(|_| ()).is_err());
    }
}
