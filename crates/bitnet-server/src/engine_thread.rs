//! The thread that owns the engine: it takes jobs, steps, and sends what each step brought to
//! whoever asked.
//!
//! A job whose receiver has gone is cancelled before the next step, in whatever phase it is.
//!
//! A panic must not take others' answers with it. When a step panics, nobody knows for whom, so a
//! fresh engine runs each of the requests that were under way again, alone. Since tokens depend on
//! nothing but the request, what was sent already comes once more and is left out. The one that
//! panics alone fails; the others do not notice.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use bitnet_guard::FileProblem;
use bitnet_inference::{Constraint, Engine, Event, Finish, Logprobs, Request, RequestId};
use bitnet_tokenizers::TokenId;
use tokio::sync::mpsc::UnboundedSender;

use crate::backlog::{Backlog, InEngine, Owner};
use crate::grammar::TokenConstraint;
use crate::metrics::Metrics;
use crate::queue::Ticket;

/// Makes an engine like the first one.
pub(crate) type RemakeEngine = Box<dyn FnMut() -> bitnet_inference::Result<Engine>>;

/// One answer that is wanted.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// The beginning of an answer under the grammar that constrains it.
    pub(crate) constraint: Option<TokenConstraint>,
    /// Who shares the engine with others: see [`Backlog`].
    pub(crate) owner: Owner,
    /// Which answer of those that share `replies`.
    pub(crate) choice: usize,
    /// Holds no more than the answer has tokens, which the context bounds.
    pub(crate) replies: UnboundedSender<(usize, Reply)>,
    pub(crate) ticket: Ticket,
    /// When it was let in.
    pub(crate) entered: Instant,
}

/// What becomes of a job.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The engine has begun, after so long.
    Started { queued: Duration },
    Token {
        token: TokenId,
        /// May be empty.
        text: String,
        logprobs: Option<Logprobs>,
    },
    /// Of tokens of the prompt, of which the last is at `last`.
    Prompt {
        last: usize,
        logprobs: Vec<Logprobs>,
    },
    /// The end, with text that had been held back.
    Finished { text: String, finish: Finish },
    /// The end, without an answer.
    Failed(Failure),
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// The request cannot be run.
    Refused(bitnet_inference::Error),
    /// It made the engine panic.
    Panicked,
    /// What constrains its tokens could not go on.
    Constraint(String),
    /// A file of the model was changed while it is in use.
    File(FileProblem),
    /// What the model computes is of no use.
    Model(String),
}

/// Whether the thread is at work, and since when on the same step.
pub(crate) struct Pulse {
    epoch: Instant,
    /// Milliseconds from `epoch` to the beginning of the step, and 1; 0 between jobs.
    step: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            step: AtomicU64::new(0),
        }
    }

    fn beat(&self) {
        self.step.store(
            self.epoch.elapsed().as_millis() as u64 + 1,
            Ordering::Relaxed,
        );
    }

    fn rest(&self) {
        self.step.store(0, Ordering::Relaxed);
    }

    /// How long the present step has taken; zero between jobs.
    pub(crate) fn step_time(&self) -> Duration {
        match self.step.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            start => self
                .epoch
                .elapsed()
                .saturating_sub(Duration::from_millis(start - 1)),
        }
    }
}

/// What runs on the thread. `S` is `Engine::step`, or what a test puts in its place.
pub(crate) struct EngineThread<S> {
    jobs: Receiver<Job>,
    pulse: Arc<Pulse>,
    metrics: Arc<Metrics>,
    step: S,
    /// Jobs that the engine does not have yet.
    backlog: Backlog<Flight>,
    in_flight: HashMap<RequestId, Flight>,
    /// Those that were under way when a step panicked, to be run one by one.
    suspects: VecDeque<Flight>,
    /// The only one under way is a suspect.
    is_alone: bool,
    events: Vec<Event>,
}

/// A job, and how far it has come.
struct Flight {
    job: Job,
    /// Counts for the owner's share while the engine has the job.
    _in_engine: Option<InEngine>,
    /// Tokens sampled since it was last submitted.
    sampled: usize,
    /// Tokens sent.
    sent: usize,
}

/// Why the engine is not driven any more.
enum Stopped {
    /// Nobody can send jobs any more.
    NoMoreJobs,
    /// The engine is in no state to go on.
    Panicked,
}

impl<S: FnMut(&mut Engine, &mut Vec<Event>)> EngineThread<S> {
    pub(crate) fn new(
        jobs: Receiver<Job>,
        pulse: Arc<Pulse>,
        metrics: Arc<Metrics>,
        step: S,
    ) -> Self {
        let (in_flight, suspects) = (HashMap::new(), VecDeque::new());
        Self {
            jobs,
            pulse,
            metrics,
            step,
            backlog: Backlog::new(),
            in_flight,
            suspects,
            is_alone: false,
            events: Vec::new(),
        }
    }

    /// Runs jobs until no more can come.
    ///
    /// # Errors
    /// If there is no new engine after a panic.
    pub(crate) fn run(
        mut self,
        mut engine: Engine,
        mut remake: RemakeEngine,
    ) -> bitnet_inference::Result<()> {
        loop {
            match self.drive(&mut engine) {
                Stopped::NoMoreJobs => return Ok(()),
                Stopped::Panicked => {
                    // First the old one's memory, then the new one's.
                    drop(engine);
                    self.metrics.engine_lost();
                    engine = remake()?;
                }
            }
        }
    }

    fn drive(&mut self, engine: &mut Engine) -> Stopped {
        loop {
            if !self.take_jobs(engine) {
                return Stopped::Panicked;
            }
            self.cancel_abandoned(engine);
            if self.in_flight.is_empty() {
                if !self.suspects.is_empty() || !self.backlog.is_empty() {
                    continue;
                }
                self.pulse.rest();
                self.metrics.step(engine);
                self.is_alone = false;
                let Ok(job) = self.jobs.recv() else {
                    return Stopped::NoMoreJobs;
                };
                self.wait_for_engine(job);
                continue;
            }
            self.pulse.beat();
            self.events.clear();
            let (step, events) = (&mut self.step, &mut self.events);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(engine, events))) {
                self.step_panicked(&*panic);
                return Stopped::Panicked;
            }
            self.metrics.step(engine);
            if let Some(problem) = bitnet_guard::file_problems(false).first() {
                self.fail_all(engine, problem);
            }
            self.send_events();
        }
    }

    /// Takes jobs, and submits what is next, or the next suspect; false if that panicked.
    fn take_jobs(&mut self, engine: &mut Engine) -> bool {
        if self.in_flight.is_empty() {
            self.is_alone = false;
            if let Some(flight) = self.suspects.pop_front() {
                self.is_alone = true;
                return self.submit(
                    engine,
                    Flight {
                        sampled: 0,
                        ..flight
                    },
                );
            }
        }
        while let Ok(job) = self.jobs.try_recv() {
            self.wait_for_engine(job);
        }
        let running_max = engine.options().running_max.max(1);
        while !self.is_alone
            && self.in_flight.len() < running_max
            && let Some((in_engine, flight)) = self.backlog.next()
        {
            let flight = Flight {
                _in_engine: Some(in_engine),
                ..flight
            };
            if !self.submit(engine, flight) {
                return false;
            }
        }
        true
    }

    fn wait_for_engine(&mut self, job: Job) {
        let owner = Arc::clone(&job.owner);
        let flight = Flight {
            job,
            _in_engine: None,
            sampled: 0,
            sent: 0,
        };
        self.backlog.push(owner, flight);
    }

    /// Ends every answer under way: what the engine has computed may be wrong.
    fn fail_all(&mut self, engine: &mut Engine, problem: &FileProblem) {
        self.events.clear();
        for (id, flight) in self.in_flight.drain() {
            engine.cancel(id);
            flight.fail(Failure::File(problem.clone()));
        }
    }

    /// False if that panicked.
    fn submit(&mut self, engine: &mut Engine, flight: Flight) -> bool {
        let request = flight.job.request.clone();
        let constraint = flight.job.constraint.as_ref();
        let constraint =
            constraint.map(|beginning| Box::new(beginning.restarted()) as Box<dyn Constraint>);
        match catch_unwind(AssertUnwindSafe(|| {
            engine.submit_constrained(request, constraint)
        })) {
            Ok(Ok(id)) => {
                self.in_flight.insert(id, flight);
                true
            }
            Ok(Err(error)) => {
                flight.fail(Failure::Refused(error));
                true
            }
            Err(panic) => {
                tracing::error!(
                    panic = message(&*panic),
                    "a request made the engine panic when it was submitted"
                );
                flight.fail(Failure::Panicked);
                self.suspect_all();
                false
            }
        }
    }

    fn step_panicked(&mut self, panic: &(dyn Any + Send)) {
        let (panic, under_way) = (message(panic), self.in_flight.len());
        if self.is_alone {
            tracing::error!(
                panic,
                "a request made the engine panic again, alone, and has failed"
            );
            self.in_flight
                .drain()
                .for_each(|(_, flight)| flight.fail(Failure::Panicked));
        } else {
            tracing::error!(
                panic,
                under_way,
                "the engine panicked; a new one runs each request under way again, alone"
            );
            self.suspect_all();
        }
    }

    fn suspect_all(&mut self) {
        let mut flights: Vec<_> = self.in_flight.drain().collect();
        flights.sort_unstable_by_key(|(id, _)| *id);
        self.suspects
            .extend(flights.into_iter().map(|(_, flight)| flight));
    }

    fn cancel_abandoned(&mut self, engine: &mut Engine) {
        self.in_flight.retain(|id, flight| {
            let is_wanted = !flight.job.replies.is_closed();
            if !is_wanted {
                engine.cancel(*id);
            }
            is_wanted
        });
        self.suspects
            .retain(|flight| !flight.job.replies.is_closed());
        self.backlog
            .retain(|flight| !flight.job.replies.is_closed());
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
                Event::Prefill { logprobs, .. } if logprobs.is_empty() => {}
                Event::Prefill {
                    done,
                    total,
                    logprobs,
                    ..
                } => {
                    flight.send(Reply::Prompt {
                        last: done.min(total - 1),
                        logprobs,
                    });
                }
                Event::Token {
                    token,
                    text,
                    logprobs,
                    ..
                } => {
                    flight.sampled += 1;
                    if flight.sampled > flight.sent {
                        flight.sent += 1;
                        flight.send(Reply::Token {
                            token,
                            text,
                            logprobs,
                        });
                    }
                }
                Event::Finished { text, finish, .. } => {
                    if let Some(flight) = self.in_flight.remove(&id) {
                        flight.finish(Reply::Finished { text, finish });
                    }
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

impl Flight {
    fn start(&mut self) {
        if self.job.ticket.start() {
            self.send(Reply::Started {
                queued: self.job.entered.elapsed(),
            });
        }
    }

    fn send(&self, reply: Reply) {
        // Whoever went away is noticed before the next step.
        let _ = self.job.replies.send((self.job.choice, reply));
    }

    /// Sends the last reply. Whoever gets it, and looks, finds the answer's place free.
    fn finish(self, reply: Reply) {
        let Job {
            ticket,
            replies,
            choice,
            ..
        } = self.job;
        ticket.finish();
        let _ = replies.send((choice, reply)); // as in `send`
    }

    /// As [`Flight::finish`], but says nothing about how long an answer takes.
    fn fail(self, failure: Failure) {
        let Job {
            ticket,
            replies,
            choice,
            ..
        } = self.job;
        drop(ticket);
        let _ = replies.send((choice, Reply::Failed(failure))); // as in `send`
    }
}

/// The message of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use bitnet_inference::{Device, EngineOptions, FinishReason, Loaded, SamplingParams, load};
    use bitnet_models::LoadOptions;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::queue::{Counts, Queue};

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

    /// What became of a job: its tokens, and why it ended.
    type Outcome = (Vec<TokenId>, Result<FinishReason, &'static str>);

    fn outcome(replies: &mut UnboundedReceiver<(usize, Reply)>) -> Outcome {
        let mut tokens = Vec::new();
        while let Some((_, reply)) = replies.blocking_recv() {
            match reply {
                Reply::Started { .. } => assert!(tokens.is_empty(), "a job begins once"),
                Reply::Prompt { .. } => panic!("nobody asked for that"),
                Reply::Token { token, .. } => tokens.push(token),
                Reply::Finished { finish, .. } => return (tokens, Ok(finish.reason)),
                Reply::Failed(Failure::Refused(_)) => return (tokens, Err("refused")),
                Reply::Failed(Failure::Panicked) => return (tokens, Err("panicked")),
                Reply::Failed(Failure::Constraint(_)) => return (tokens, Err("constraint")),
                Reply::Failed(Failure::File(_) | Failure::Model(_)) => {
                    return (tokens, Err("model"));
                }
            }
        }
        (tokens, Err("dropped"))
    }

    /// Runs a job for each prompt length on an engine that panics in each step which, after some
    /// good ones, computes the end of a prompt of `poison` tokens.
    fn run(lengths: &[usize], poison: usize) -> (Vec<Outcome>, usize) {
        let queue = Arc::new(Queue::new(100, 100_000));
        let (sender, jobs) = mpsc::channel();
        let mut receivers = Vec::new();
        for (index, (&length, ticket)) in lengths
            .iter()
            .zip(queue.enter(lengths).expect("room"))
            .enumerate()
        {
            let (replies, receiver) = unbounded_channel();
            let request = Request {
                prompt: (0..length)
                    .map(|token| TokenId(token as u32 % 250))
                    .collect(),
                sampling: SamplingParams {
                    seed: index as u64,
                    ..SamplingParams::default()
                },
                max_tokens: Some(10),
                ..Request::default()
            };
            let job = Job {
                request,
                constraint: None,
                owner: "".into(),
                choice: 0,
                replies,
                ticket,
                entered: Instant::now(),
            };
            sender.send(job).expect("the thread takes jobs");
            receivers.push(receiver);
        }
        drop(sender);
        let mut poisoned = None;
        let mut num_panics = 0;
        let step = |engine: &mut Engine, events: &mut Vec<Event>| {
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
                num_panics += 1;
                panic!("a request of {poison} tokens");
            }
        };
        let mut engines = remake();
        let engine = engines().expect("an engine");
        let thread =
            EngineThread::new(jobs, Arc::new(Pulse::new()), Arc::new(Metrics::new()), step);
        thread.run(engine, engines).expect("engines");
        assert_eq!(
            queue.counts().running + queue.counts().waiting,
            0,
            "{:?}",
            queue.counts()
        );
        (receivers.iter_mut().map(outcome).collect(), num_panics)
    }

    #[test]
    fn a_panic_fails_the_request_that_causes_it_and_no_other() {
        let lengths = [5, 17, 30, 8];
        let (expected, num_panics) = run(&lengths, 0);
        assert_eq!(num_panics, 0);
        assert!(
            expected
                .iter()
                .all(|(tokens, reason)| tokens.len() == 10 && *reason == Ok(FinishReason::Length))
        );
        let (outcomes, num_panics) = run(&lengths, 17);
        assert_eq!(num_panics, 2, "among others, then alone");
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
    fn a_request_that_cannot_be_run_is_refused() {
        let (outcomes, _) = run(&[5, 60, 7], 0);
        assert_eq!(outcomes[1], (Vec::new(), Err("refused")));
        assert!(outcomes[0].1.is_ok() && outcomes[2].1.is_ok());
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_not_run() {
        let queue = Arc::new(Queue::new(10, 1000));
        let (sender, jobs) = mpsc::channel();
        let ticket = queue.enter(&[3]).expect("room").remove(0);
        let (replies, receiver) = unbounded_channel();
        drop(receiver);
        let request = Request {
            prompt: vec![TokenId(1); 3],
            ..Request::default()
        };
        let job = Job {
            request,
            constraint: None,
            owner: "".into(),
            choice: 0,
            replies,
            ticket,
            entered: Instant::now(),
        };
        sender.send(job).expect("the thread takes jobs");
        drop(sender);
        let mut engines = remake();
        let engine = engines().expect("an engine");
        let never = |_: &mut Engine, _: &mut Vec<Event>| panic!("there is nothing to do");
        let pulse = Arc::new(Pulse::new());
        let thread = EngineThread::new(jobs, Arc::clone(&pulse), Arc::new(Metrics::new()), never);
        thread.run(engine, engines).expect("no panic");
        assert_eq!(queue.counts(), Counts::default());
        assert_eq!(pulse.step_time(), Duration::ZERO);
    }
}
