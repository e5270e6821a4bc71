//! Looks at what may change or get stuck while the server runs: the file of API keys, the files of
//! the model, the engine, and the memory that a burst has left behind.
//!
//! Looks at files have a thread of their own: a file on a network disk may let a look hang. Then a
//! line of the log says so, and everything else goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::auth::ApiKeys;
use crate::error::chain;
use crate::state::App;

/// From one look to the next, at most.
const PAUSE: Duration = Duration::from_secs(1);
/// A look at a file that takes longer is logged.
const SLOW_LOOK: Duration = Duration::from_secs(5);
/// Memory is given back after bodies of this size have come and gone.
const BURST_BYTES: usize = 16 << 20;

/// When the present look has begun, in milliseconds since the start and 1; 0 between looks.
struct Looks {
    start: Instant,
    since: AtomicU64,
}

impl Looks {
    fn begin(&self) {
        let now = self.start.elapsed().as_millis() as u64 + 1;
        self.since.store(now, Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn time(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.start
                .elapsed()
                .saturating_sub(Duration::from_millis(since)),
        )
    }
}

/// Starts the looks at files; they end with the process.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn start(app: &Arc<App>) -> std::io::Result<()> {
    let looks = Arc::new(Looks {
        start: Instant::now(),
        since: AtomicU64::new(0),
    });
    let (files, keys) = (Arc::clone(app), app.options.api_keys.clone());
    let for_thread = Arc::clone(&looks);
    std::thread::Builder::new()
        .name("bitnet-files".to_owned())
        .spawn(move || look_at_files(&files, keys, &for_thread))?;
    tokio::spawn(watch(Arc::clone(app), looks));
    Ok(())
}

fn look_at_files(app: &App, keys: Option<ApiKeys>, looks: &Looks) {
    let mut last_problem = None;
    loop {
        std::thread::sleep(PAUSE);
        looks.begin();
        if let Some(keys) = &keys {
            look_at_keys(keys, &mut last_problem);
        }
        if let Some(problem) = bitnet_guard::file_problems(true).first() {
            app.model_damaged(problem);
        }
        looks.end();
    }
}

/// Reads the API keys again, so that added keys are taken and removed ones are not.
fn look_at_keys(keys: &ApiKeys, last_problem: &mut Option<String>) {
    let path = keys.path().display();
    let problem = match keys.read_again() {
        Ok(true) => {
            tracing::info!(%path, "the API keys have changed");
            None
        }
        Ok(false) => None,
        Err(error) => Some(chain(&error)),
    };
    // Once, not every second.
    if let Some(error) = problem.as_ref().filter(|_| *last_problem != problem) {
        tracing::error!(%path, error, "the API keys cannot be read again: those that were read last count");
    }
    *last_problem = problem;
}

/// Logs what gets stuck and what goes on, and gives memory back.
async fn watch(app: Arc<App>, looks: Arc<Looks>) {
    let mut engine = Stuck::new("the engine is stuck: it has not finished its step");
    let mut text = Stuck::new("the threads for text are stuck: no request is read");
    let mut files = Stuck::new(
        "a look at the API keys or the model's files takes long: changes are not noticed",
    );
    loop {
        tokio::time::sleep(app.options.stall_timeout.min(PAUSE)).await;
        engine.note(app.stalled());
        text.note(app.text.stalled(app.options.stall_timeout));
        files.note(looks.time().filter(|time| *time > SLOW_LOOK));
        if app.inflight.is_over(BURST_BYTES) {
            bitnet_guard::give_memory_back();
        }
    }
}

/// Logs the beginning and the end of a trouble once each.
struct Stuck {
    what: &'static str,
    was_stuck: bool,
}

impl Stuck {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            was_stuck: false,
        }
    }

    fn note(&mut self, time: Option<Duration>) {
        match time {
            Some(time) if !self.was_stuck => {
                tracing::error!(seconds = time.as_secs_f64(), "{}", self.what);
            }
            None if self.was_stuck => tracing::warn!("over, it goes on: {}", self.what),
            _ => {}
        }
        self.was_stuck = time.is_some();
    }
}
