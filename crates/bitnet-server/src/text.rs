//! [`TextThreads`]: runs work on text, which may be slow and may panic, on separate threads.
//!
//! Most work takes milliseconds and cannot be cancelled once it runs; if the client disconnects
//! before that, the work never runs. Compiling a form is different: it may take seconds. So it
//! releases its place for text while it runs ([`as_form`]), uses separate places for forms, and is
//! cancelled when the client disconnects.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitnet_guard::Cancel;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::api::ApiError;

/// Maximum number of requests whose text is tokenized at once.
const TEXT_PLACES: usize = 2;
/// Maximum number of forms that are compiled at once.
const FORM_PLACES: usize = 2;
/// Maximum number of forms that wait to be compiled; each holds a thread.
const FORMS_WAITING_MAX: usize = 8;
/// Number of threads for text, for forms, and for checks of files.
pub(crate) const THREADS_MAX: usize = TEXT_PLACES + FORM_PLACES + FORMS_WAITING_MAX + 4;
/// Stack of each thread, in bytes: four times the stack of a helper process, so that every form
/// that a helper could compile can be compiled here.
pub(crate) const THREAD_STACK_BYTES: usize = 4 * FORM_STACK_BYTES;
/// Stack of a helper process that compiles forms, in bytes.
pub(crate) const FORM_STACK_BYTES: usize = 4 << 20;
/// `Retry-After` in seconds, for a request that finds too many others waiting.
const RETRY_AFTER_S: u64 = 1;

/// The places on the threads, and the requests that wait for one.
pub(crate) struct TextThreads {
    shared: Arc<Shared>,
    waiting: Semaphore,
    waiting_max: usize,
}

struct Shared {
    text: Arc<Semaphore>,
    forms: Arc<Semaphore>,
    forms_waiting: Semaphore,
    /// Forms that got a place so far.
    num_forms: AtomicU64,
    /// Start time of each running piece of work, by its number.
    running: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

/// Current use of the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TextUse {
    /// Number of requests whose text is being read.
    pub(crate) reading: usize,
    /// Number of forms that are being compiled.
    pub(crate) compiling: usize,
    /// Number of forms that wait to be compiled.
    pub(crate) forms_waiting: usize,
    /// Number of forms that the compiler has accepted or refused so far.
    pub(crate) num_forms: u64,
    /// Time since the oldest running text or form has begun.
    pub(crate) oldest: Duration,
}

/// The work of one request, on the thread that runs it.
struct Current {
    shared: Arc<Shared>,
    cancel: Cancel,
    gone: watch::Receiver<()>,
    place: Option<OwnedSemaphorePermit>,
}

thread_local! {
    /// The request that this thread works for: forms are compiled deep inside that work.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Cancels the work when its request is dropped.
struct CancelOnDrop {
    cancel: Cancel,
    _gone: watch::Sender<()>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Marks work as running until it is dropped.
struct Running {
    shared: Arc<Shared>,
    number: u64,
}

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut running = shared.running();
        running.0 += 1;
        let number = running.0;
        running.1.insert(number, Instant::now());
        drop(running);
        Self {
            shared: Arc::clone(shared),
            number,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.running().1.remove(&self.number);
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        // Lock poisoning is harmless: no change can panic halfway.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TextThreads {
    /// At most `waiting_max` requests wait for a thread, and at least one may.
    pub(crate) fn new(waiting_max: usize) -> Self {
        let waiting_max = waiting_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                text: Arc::new(Semaphore::new(TEXT_PLACES)),
                forms: Arc::new(Semaphore::new(FORM_PLACES)),
                forms_waiting: Semaphore::new(FORMS_WAITING_MAX),
                num_forms: AtomicU64::new(0),
                running: Mutex::default(),
            }),
            waiting: Semaphore::new(waiting_max),
            waiting_max,
        }
    }

    /// Runs work on one of the threads, when one is free.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = match Arc::clone(&self.shared.text).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = self.waiting.try_acquire().map_err(|_| self.full())?;
                let place = Arc::clone(&self.shared.text).acquire_owned().await;
                place.map_err(|_| stopped())?
            }
        };
        let cancel = Cancel::default();
        let (sender, gone) = watch::channel(());
        let current = Current {
            shared: Arc::clone(&self.shared),
            cancel: cancel.clone(),
            gone,
            place: Some(place),
        };
        // This value is dropped with the future when the client disconnects.
        let _cancel_on_drop = CancelOnDrop {
            cancel,
            _gone: sender,
        };
        let work = move || {
            let _running = Running::new(&current.shared);
            // Keep the place until the work is done, even if its client has disconnected.
            CURRENT.set(Some(current));
            let _clear = Clear;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::internal(
                "a bug in the server: this request made it panic",
            )),
        }
    }

    /// Current use of the threads.
    pub(crate) fn in_use(&self) -> TextUse {
        let shared = &self.shared;
        let now = Instant::now();
        let oldest = shared.running().1.values().min().copied();
        TextUse {
            reading: TEXT_PLACES - shared.text.available_permits().min(TEXT_PLACES),
            compiling: FORM_PLACES - shared.forms.available_permits().min(FORM_PLACES),
            forms_waiting: FORMS_WAITING_MAX
                - shared
                    .forms_waiting
                    .available_permits()
                    .min(FORMS_WAITING_MAX),
            num_forms: shared.num_forms.load(Ordering::Relaxed),
            oldest: oldest.map_or(Duration::ZERO, |oldest| {
                now.saturating_duration_since(oldest)
            }),
        }
    }

    /// How long the same work has occupied all places for text, if longer than `limit`. Meanwhile
    /// the server answers no request with text.
    pub(crate) fn stalled(&self, limit: Duration) -> Option<Duration> {
        let in_use = self.in_use();
        (in_use.reading == TEXT_PLACES && in_use.oldest > limit).then_some(in_use.oldest)
    }

    fn full(&self) -> ApiError {
        let message = format!(
            "{} requests wait to be read, which is the maximum; try again in {RETRY_AFTER_S} s",
            self.waiting_max
        );
        ApiError::too_many_requests(message, RETRY_AFTER_S)
    }
}

/// Ends the work of the thread's request, also when it panics.
struct Clear;

impl Drop for Clear {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

fn stopped() -> ApiError {
    ApiError::internal("the threads for text have stopped")
}

/// Compiles a form for the request that this thread works for: releases the place for text
/// meanwhile, and waits for a place for forms. The work receives its cancellation signal.
pub(crate) fn as_form<T>(work: impl FnOnce(&Cancel) -> Result<T, ApiError>) -> Result<T, ApiError> {
    let Some(mut current) = CURRENT.take() else {
        // The thread is not one of these: it reads a request outside a server.
        return work(&Cancel::default());
    };
    current.place = None;
    let result = current.run_form(work);
    let again = Arc::clone(&current.shared.text).acquire_owned();
    current.place = current.wait(again);
    CURRENT.set(Some(current));
    result
}

impl Current {
    fn run_form<T>(
        &self,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let Ok(waiting) = self.shared.forms_waiting.try_acquire() else {
            let message = format!(
                "{FORMS_WAITING_MAX} forms wait to be compiled, which is the maximum; try again in {RETRY_AFTER_S} s"
            );
            return Err(ApiError::too_many_requests(message, RETRY_AFTER_S));
        };
        let place = self.wait(Arc::clone(&self.shared.forms).acquire_owned());
        drop(waiting);
        match place {
            Some(_place) => {
                self.shared.num_forms.fetch_add(1, Ordering::Relaxed);
                work(&self.cancel)
            }
            None => Err(ApiError::internal("the client has gone")),
        }
    }

    /// Waits for a place, unless the client disconnects.
    fn wait<E>(
        &self,
        place: impl Future<Output = Result<OwnedSemaphorePermit, E>>,
    ) -> Option<OwnedSemaphorePermit> {
        let mut gone = self.gone.clone();
        Handle::current().block_on(async {
            tokio::select! {
                place = place => place.ok(),
                // The channel carries no value; it can only close.
                _ = gone.changed() => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("threads")
    }

    fn wait_until(is_so: &dyn Fn() -> bool) {
        while !is_so() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn cancelled_requests_never_run_and_excess_requests_are_refused() {
        let runtime = runtime();
        let threads = Arc::new(TextThreads::new(50));
        let num_done = Arc::new(AtomicUsize::new(0));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let start = |is_held: bool| {
            let (threads, num_done, released) = (
                Arc::clone(&threads),
                Arc::clone(&num_done),
                Arc::clone(&released),
            );
            runtime.spawn(async move {
                let work = move || {
                    if is_held {
                        released.lock().expect("a channel").recv().expect("a word");
                    }
                    num_done.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                threads.run(work).await
            })
        };
        let held: Vec<_> = (0..TEXT_PLACES).map(|_| start(true)).collect();
        wait_until(&|| threads.in_use().reading == TEXT_PLACES);
        let waiting: Vec<_> = (0..50).map(|_| start(false)).collect();
        wait_until(&|| threads.waiting.available_permits() == 0);
        let refused = runtime
            .block_on(start(false))
            .expect("no panic")
            .expect_err("too many");
        let body = serde_json::to_string(&refused.body()).expect("JSON");
        assert!(body.contains("50 requests wait"), "{body}");
        waiting.iter().for_each(|waiting| waiting.abort());
        wait_until(&|| threads.waiting.available_permits() == 50);
        // If the client disconnects while its work runs, the work keeps the thread until it is
        // done.
        held[0].abort();
        let last = start(false);
        wait_until(&|| threads.waiting.available_permits() == 49);
        assert_eq!(num_done.load(Ordering::Relaxed), 0);
        wait_until(&|| threads.stalled(Duration::ZERO).is_some());
        (0..TEXT_PLACES).for_each(|_| release.send(()).expect("a receiver"));
        runtime
            .block_on(last)
            .expect("no panic")
            .expect("it is done");
        wait_until(&|| threads.in_use() == TextUse::default());
        assert!(threads.stalled(Duration::ZERO).is_none());
        let done = num_done.load(Ordering::Relaxed);
        assert_eq!(done, TEXT_PLACES + 1, "cancelled requests did not run");
    }

    #[test]
    fn a_panic_is_an_error_of_its_request_and_frees_its_place() {
        let runtime = runtime();
        let threads = TextThreads::new(50);
        for _ in 0..=TEXT_PLACES {
            let work = || -> Result<(), ApiError> { panic!("on purpose") };
            let error = runtime.block_on(threads.run(work)).expect_err("a panic");
            assert_eq!(error.code(), "internal_error");
        }
        assert_eq!(runtime.block_on(threads.run(|| Ok(7))).ok(), Some(7));
        assert_eq!(threads.in_use(), TextUse::default());
    }

    #[test]
    fn forms_do_not_block_text_and_are_cancelled_with_their_request() {
        let runtime = runtime();
        let threads = Arc::new(TextThreads::new(50));
        let form = || {
            let threads = Arc::clone(&threads);
            runtime.spawn(async move {
                let work = || {
                    as_form(|cancel| {
                        while !cancel.is_cancelled() {
                            std::thread::yield_now();
                        }
                        Ok(())
                    })
                };
                threads.run(work).await
            })
        };
        let running: Vec<_> = (0..FORM_PLACES).map(|_| form()).collect();
        wait_until(&|| threads.in_use().compiling == FORM_PLACES);
        let waiting: Vec<_> = (0..FORMS_WAITING_MAX).map(|_| form()).collect();
        wait_until(&|| threads.in_use().forms_waiting == FORMS_WAITING_MAX);
        let refused = runtime.block_on(form()).expect("no panic");
        let body = serde_json::to_string(&refused.expect_err("too many").body()).expect("JSON");
        assert!(body.contains("8 forms wait"), "{body}");
        assert_eq!(
            runtime.block_on(threads.run(|| Ok(7))).ok(),
            Some(7),
            "text is read"
        );
        waiting.iter().for_each(|form| form.abort());
        wait_until(&|| threads.in_use().forms_waiting == 0);
        running.iter().for_each(|form| form.abort());
        wait_until(&|| threads.in_use().compiling == 0);
        assert_eq!(threads.in_use().num_forms, FORM_PLACES as u64);
    }
}
