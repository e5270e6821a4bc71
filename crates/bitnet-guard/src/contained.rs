//! [`Contained`]: a pool of helper processes that run foreign input within limits.
//!
//! A stack overflow or a failed allocation ends a process, and a library that loops cannot be
//! stopped inside it. So the library runs in a helper: the same program, started again. This
//! process waits for the answer, and kills the helper when it takes too long or the request is
//! cancelled.

use std::io::Error;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::helper::{HelperLimits, PANICKED, read_frame, write_frame};

/// Maximum number of helpers that wait for a job.
const IDLE_MAX: usize = 2;
/// How long a helper may take to start and prepare, on a machine that has other work.
const START_TIME: Duration = Duration::from_secs(60);
/// Maximum number of times that a job moves to a new helper because something else ended its
/// helper, for example a signal to all processes of a service.
const TRIES: usize = 3;

/// How to start a helper: a program that calls [`answer_jobs`](crate::helper::answer_jobs).
#[derive(Clone, Debug)]
pub struct HelperProgram {
    /// The program. On Linux `/proc/self/exe` is this program, even after its file was replaced.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A pool of equally prepared helpers. The pool starts helpers when it needs them.
#[derive(Debug)]
pub struct Contained {
    program: HelperProgram,
    limits: HelperLimits,
    first_frame: Vec<u8>,
    idle: Mutex<Vec<Helper>>,
}

/// The reason why a job has no answer.
#[derive(Debug)]
pub enum Breach {
    /// The job exceeded its time limit.
    Time(Duration),
    /// The helper ended: the job exceeded its limit of stack or memory.
    Memory(HelperLimits),
    /// The library panicked.
    Panic,
    /// The job was cancelled.
    Cancelled,
    /// The system cannot start a helper.
    Start(String),
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "it takes longer than {} s", limit.as_secs_f64()),
            Self::Memory(limits) => write!(
                f,
                "it needs more than {} KiB of stack or {} KiB of memory",
                limits.stack_bytes >> 10,
                limits.memory_bytes >> 10
            ),
            Self::Panic => f.write_str("the library that reads it fails"),
            Self::Cancelled => f.write_str("it was cancelled"),
            Self::Start(problem) => write!(f, "the helper process cannot be started: {problem}"),
        }
    }
}

impl std::error::Error for Breach {}

/// Cancels work: kills the helper that runs it. Clones cancel the same work.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<CancelState>>);

#[derive(Debug, Default)]
struct CancelState {
    is_cancelled: bool,
    child: Option<Arc<Mutex<Child>>>,
}

impl Cancel {
    /// Cancels the work. Jobs that have not begun never begin.
    pub fn cancel(&self) {
        let mut state = lock(&self.0);
        state.is_cancelled = true;
        if let Some(child) = state.child.take() {
            kill(&child);
        }
    }

    /// Whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        lock(&self.0).is_cancelled
    }

    /// Sets the helper that runs the work; false if the work was cancelled before.
    fn set(&self, child: Option<&Arc<Mutex<Child>>>) -> bool {
        let mut state = lock(&self.0);
        state.child = child.filter(|_| !state.is_cancelled).cloned();
        !state.is_cancelled
    }
}

/// A helper process and the thread that reads its answers.
#[derive(Debug)]
struct Helper {
    child: Arc<Mutex<Child>>,
    input: ChildStdin,
    answers: Receiver<Vec<u8>>,
}

impl Contained {
    /// A pool of helpers that all get `first_frame` before their first job.
    pub fn new(program: HelperProgram, limits: HelperLimits, first_frame: Vec<u8>) -> Self {
        Self {
            program,
            limits,
            first_frame,
            idle: Mutex::default(),
        }
    }

    /// The limits of each helper.
    pub fn limits(&self) -> HelperLimits {
        self.limits
    }

    /// Runs one job, and blocks until it is answered, breaks a limit, or is cancelled.
    ///
    /// # Errors
    /// If there is no answer. The job is the cause, except for [`Breach::Start`].
    pub fn run(&self, job: &[u8], cancel: &Cancel) -> Result<Vec<u8>, Breach> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut helper = match self.idle_helper() {
                Some(helper) => helper,
                None => self.start(cancel)?,
            };
            if !cancel.set(Some(&helper.child)) {
                return Err(Breach::Cancelled);
            }
            // The write fails if the helper has ended; the missing answer below gives the reason.
            let _ = write_frame(&mut helper.input, job);
            let answer = helper.answers.recv_timeout(self.limits.time);
            let is_cancelled = !cancel.set(None);
            match answer {
                _ if is_cancelled => return Err(Breach::Cancelled),
                Ok(answer) => {
                    let mut idle = lock(&self.idle);
                    if idle.len() < IDLE_MAX {
                        idle.push(helper);
                    }
                    return Ok(answer);
                }
                Err(RecvTimeoutError::Timeout) => return Err(Breach::Time(self.limits.time)),
                Err(RecvTimeoutError::Disconnected) => match helper.end() {
                    Some(status) if is_from_outside(status) && tries < TRIES => {}
                    Some(status) if status.code() == Some(PANICKED) => return Err(Breach::Panic),
                    _ => return Err(Breach::Memory(self.limits)),
                },
            }
        }
    }

    /// A helper that waits for a job and is still running.
    fn idle_helper(&self) -> Option<Helper> {
        loop {
            let helper = lock(&self.idle).pop()?;
            let has_ended = !matches!(lock(&helper.child).try_wait(), Ok(None));
            if !has_ended {
                return Some(helper);
            }
        }
    }

    fn start(&self, cancel: &Cancel) -> Result<Helper, Breach> {
        let io = |error: Error| Breach::Start(error.to_string());
        let mut command = Command::new(&self.program.path);
        command
            .args(&self.program.arguments)
            // Foreign input must not see the environment.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Ctrl-C at a terminal must reach this process only.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(io)?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(mut output)) = pipes else {
            return Err(Breach::Start("it has no pipes".to_owned()));
        };
        let (sender, answers) = channel();
        let mut helper = Helper {
            child: Arc::new(Mutex::new(child)),
            input,
            answers,
        };
        std::thread::Builder::new()
            .name("bitnet-helper".to_owned())
            .spawn(move || {
                while let Ok(answer) = read_frame(&mut output) {
                    if sender.send(answer).is_err() {
                        return;
                    }
                }
            })
            .map_err(io)?;
        if !cancel.set(Some(&helper.child)) {
            return Err(Breach::Cancelled);
        }
        let sent = write_frame(&mut helper.input, &self.first_frame);
        let ready = helper.answers.recv_timeout(START_TIME);
        if !cancel.set(None) {
            return Err(Breach::Cancelled);
        }
        match ready {
            Ok(problem) if problem.is_empty() => Ok(helper),
            Ok(problem) => Err(Breach::Start(
                String::from_utf8_lossy(&problem).into_owned(),
            )),
            Err(_) => Err(Breach::Start(match (sent, helper.end()) {
                (Err(error), _) => error.to_string(),
                (_, Some(status)) => format!("it ended with {status}"),
                (_, None) => "it does not answer".to_owned(),
            })),
        }
    }
}

impl Helper {
    /// Waits for a helper whose output has ended.
    fn end(&self) -> Option<ExitStatus> {
        lock(&self.child).wait().ok()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        kill(&self.child);
    }
}

/// Kills a process and reads its status, so that no zombie remains.
fn kill(child: &Mutex<Child>) {
    let mut child = lock(child);
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Whether a helper was ended by something other than its job: by itself after many jobs, or by a
/// signal that asks processes to stop.
fn is_from_outside(status: ExitStatus) -> bool {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].contains(&signal);
    }
    status.success()
}

/// Ignores poisoning: every change under these locks is complete before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
