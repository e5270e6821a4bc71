//! [`TextThreads`]: work on text, which may take long and may panic, beside the threads that serve.
//!
//! Work that has begun cannot be called off, so whoever waits for a thread does so before it
//! begins, where hanging up is the end of it; and no more may wait than for the engine.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::api::ApiError;

/// Threads that turn text into tokens.
pub(crate) const TEXT_THREADS: usize = 2;
/// When whoever finds too many waiting should come again, in seconds. Nobody knows how long their
/// work takes.
const RETRY_AFTER_S: u64 = 1;

/// The threads, and who waits for them.
pub(crate) struct TextThreads {
    idle: Arc<Semaphore>,
    places: Semaphore,
    waiting_max: usize,
}

impl TextThreads {
    /// At most `waiting_max` wait, but one always may.
    pub(crate) fn new(waiting_max: usize) -> Self {
        let waiting_max = waiting_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            idle: Arc::new(Semaphore::new(TEXT_THREADS)),
            places: Semaphore::new(waiting_max),
            waiting_max,
        }
    }

    /// Runs work on one of the threads, when one is idle.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let stopped = |_| ApiError::internal("the threads for text have stopped");
        let thread = match Arc::clone(&self.idle).try_acquire_owned() {
            Ok(thread) => thread,
            Err(_) => {
                let _place = self.places.try_acquire().map_err(|_| self.full())?;
                Arc::clone(&self.idle)
                    .acquire_owned()
                    .await
                    .map_err(stopped)?
            }
        };
        let work = move || {
            // Until the work is done, not until nobody waits for it any more.
            let _thread = thread;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::internal(
                "a bug in the server: this request made it panic",
            )),
        }
    }

    fn full(&self) -> ApiError {
        let message = format!(
            "{} requests wait to be read, which is the most; try again in {RETRY_AFTER_S} s",
            self.waiting_max
        );
        ApiError::too_many_requests(message, RETRY_AFTER_S)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn whoever_goes_away_costs_nothing_and_whoever_is_too_many_is_told() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("threads");
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
        let wait_until = |is_so: &dyn Fn() -> bool| {
            while !is_so() {
                std::thread::yield_now();
            }
        };
        let held: Vec<_> = (0..TEXT_THREADS).map(|_| start(true)).collect();
        wait_until(&|| threads.idle.available_permits() == 0);
        let waiting: Vec<_> = (0..50).map(|_| start(false)).collect();
        wait_until(&|| threads.places.available_permits() == 0);
        let refused = runtime
            .block_on(start(false))
            .expect("no panic")
            .expect_err("too many");
        let told = serde_json::to_string(&refused.body()).expect("JSON");
        assert!(told.contains("50 requests wait"), "{told}");
        waiting.iter().for_each(|waiting| waiting.abort());
        wait_until(&|| threads.places.available_permits() == 50);
        // One that goes away while its work runs keeps the thread until that is done.
        held[0].abort();
        let last = start(false);
        wait_until(&|| threads.places.available_permits() == 49);
        assert_eq!(num_done.load(Ordering::Relaxed), 0);
        (0..TEXT_THREADS).for_each(|_| release.send(()).expect("somebody listens"));
        runtime
            .block_on(last)
            .expect("no panic")
            .expect("it is done");
        wait_until(&|| threads.idle.available_permits() == TEXT_THREADS);
        assert_eq!(
            num_done.load(Ordering::Relaxed),
            TEXT_THREADS + 1,
            "those that went away"
        );
    }
}
