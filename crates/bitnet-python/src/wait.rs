//! Waiting that lets other Python threads run, and ends at Ctrl-C.

use std::panic::resume_unwind;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::{PyResult, Python};

use crate::error;

/// The time between two looks for signals.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// Locks a mutex; no code panics while it holds one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a thread of its own and waits for its result, without the interpreter. If a
/// signal handler raises an exception, calls `cancel` and returns the exception at once; `work`
/// then ends by itself.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
    cancel: impl Fn(),
) -> PyResult<T> {
    interruptible_with(py, work, cancel, || Ok(()))
}

/// The same, and calls `look` in each pause: its error ends the wait like an exception.
pub(crate) fn interruptible_with<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
    cancel: impl Fn(),
    mut look: impl FnMut() -> PyResult<()>,
) -> PyResult<T> {
    let (sender, result) = mpsc::sync_channel(1);
    let worker = std::thread::Builder::new()
        .name("bitnet-work".to_owned())
        // The waiting side may have left.
        .spawn(move || drop(sender.send(work())))
        .map_err(|problem| error::engine(format!("cannot start a thread: {problem}")))?;
    let result = Mutex::new(result);
    loop {
        match py.detach(|| lock(&result).recv_timeout(PAUSE)) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => {
                let checked = py.check_signals().and_then(|()| look());
                checked.inspect_err(|_| cancel())?;
            }
            Err(RecvTimeoutError::Disconnected) => match worker.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("the worker sends its result before it ends"),
            },
        }
    }
}
