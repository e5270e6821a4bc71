//! Watches the file of API keys, the files of the model, the engine, and the memory that a burst
//! leaves behind.
//!
//! Checks of files run on a separate thread, since a file on a network disk may block them. The
//! server then logs a line and continues.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::auth::ApiKeys;
use crate::error::{Result, chain};
use crate::state::App;

/// Maximum time between two checks.
const PAUSE: Duration = Duration::from_secs(1);
/// A check of a file that takes longer is logged.
const SLOW_LOOK: Duration = Duration::from_secs(5);
/// Memory is returned to the system after bodies of at least this total size have ended.
const BURST_BYTES: usize = 16 << 20;

/// Start of the current check, in milliseconds since the server's start, plus 1; 0 between checks.
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

/// Starts the thread that checks files; it ends with the process.
///
/// # Errors
/// If the system cannot start a thread.
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
    let (mut key_problem, mut tls_problem) = (None, None);
    let mut replaced = Vec::new();
    loop {
        std::thread::sleep(PAUSE);
        looks.begin();
        if let Some(keys) = &keys
            && let Some(path) = keys.path()
        {
            let read = keys.read_again();
            look_again(path, "the API keys", read, &mut key_problem);
        }
        if let Some(tls) = &app.options.tls {
            let read = tls.read_again();
            look_again(tls.path(), "the certificate", read, &mut tls_problem);
        }
        for problem in bitnet_guard::file_problems(true) {
            app.registry.damaged(&problem);
        }
        look_for_replaced(&mut replaced);
        looks.end();
    }
}

/// Logs each file of the model whose name now belongs to another file, or to none. `known` are the
/// ones that were logged before.
fn look_for_replaced(known: &mut Vec<PathBuf>) {
    let replaced = bitnet_guard::replaced_files();
    for path in replaced.iter().filter(|path| !known.contains(path)) {
        tracing::warn!(
            path = %path.display(),
            "a file of the model was replaced or deleted: the server goes on with the old one until it loads the model again"
        );
    }
    *known = replaced;
}

/// Logs the result of reading a file again: whether `what` has changed.
fn look_again(path: &Path, what: &str, read: Result<bool>, last_problem: &mut Option<String>) {
    let path = path.display();
    let problem = match read {
        Ok(true) => {
            tracing::info!(%path, "{what} changed: the server uses the new content");
            None
        }
        Ok(false) => None,
        Err(error) => Some(chain(&error)),
    };
    // Log a problem once, not every second.
    if let Some(error) = problem.as_ref().filter(|_| *last_problem != problem) {
        tracing::error!(%path, error, "{what} cannot be read again: the server keeps the last content");
    }
    *last_problem = problem;
}

/// Logs when something gets stuck or recovers, and returns memory to the system.
async fn watch(app: Arc<App>, looks: Arc<Looks>) {
    let mut engine = Stuck::new("the engine is stuck: it has not finished its step");
    let mut text = Stuck::new("the threads for text are stuck: no request is read");
    let mut files = Stuck::new(
        "a look at the API keys or the model's files takes long: changes are not noticed",
    );
    loop {
        tokio::time::sleep(app.options.stall_timeout.min(PAUSE)).await;
        engine.note(app.registry.stalled());
        text.note(app.text.stalled(app.options.stall_timeout));
        files.note(looks.time().filter(|time| *time > SLOW_LOOK));
        if app.inflight.is_over(BURST_BYTES) {
            bitnet_guard::give_memory_back();
        }
    }
}

/// Logs the beginning and the end of a problem once each.
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
