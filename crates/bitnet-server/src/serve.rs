//! [`serve`]: runs a server from binding its address to the end of the last answer.

use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "otlp")]
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::timeout;

use crate::batch::runner;
use crate::batch::store::BatchStore;
use crate::door::Door;
use crate::error::{Error, Result};
use crate::options::ServeOptions;
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::queue::Counts;
use crate::registry::Registry;
use crate::served::ModelSpec;
use crate::state::{App, Phase};
use crate::store::ResponseStore;
use crate::threads::runtime;
use crate::watch;

/// Time to send the last telemetry: after a drain, and when the server must stop immediately.
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS: Duration = Duration::from_secs(5);
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS_AT_ONCE: Duration = Duration::from_millis(500);

/// How a server stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All requests under way were answered.
    Drained,
    /// The drain took too long, or a second signal arrived.
    Cut {
        /// Number of requests whose answers were cut off.
        unfinished: usize,
    },
}

/// Changes of state that the program reports to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// The address is bound, and connections are accepted.
    Listening(SocketAddr),
    /// The model is loaded, and requests are answered.
    Ready,
    /// The server got a signal to stop, and finishes the requests under way.
    Draining,
}

/// Called at each event.
type Tell = Arc<dyn Fn(ServerEvent) + Send + Sync>;

/// Serves until a signal tells the process to stop (SIGTERM, SIGINT, SIGQUIT, SIGHUP), then
/// finishes the requests under way.
///
/// A model is loaded on the thread that will own its engine. The first model is loaded before the
/// server is ready, if [`ServeOptions::preload`] says so; the server listens meanwhile.
///
/// # Errors
/// If the address cannot be bound, or the only model cannot be loaded or its engine's thread ends.
///
/// # Panics
/// If there is no model.
pub fn serve(
    options: ServeOptions,
    models: Vec<ModelSpec>,
    tell: impl Fn(ServerEvent) + Send + Sync + 'static,
) -> Result<Ended> {
    let runtime = runtime().map_err(Error::Threads)?;
    let ended = runtime.block_on(run(options, models, Arc::new(tell)));
    // The remaining tasks are abandoned.
    runtime.shutdown_background();
    ended
}

/// The server's state, and a receiver of the error that ends it.
pub(crate) fn new_app(
    options: ServeOptions,
    models: Vec<ModelSpec>,
) -> Result<(Arc<App>, oneshot::Receiver<Error>)> {
    assert!(!models.is_empty(), "a server needs a model");
    let responses = match &options.state_dir {
        Some(folder) => ResponseStore::open(folder)?,
        None => ResponseStore::in_memory(),
    };
    let batches = match &options.state_dir {
        Some(folder) => Some(BatchStore::open(folder, options.file_limits)?),
        None => None,
    };
    let (app, ended) = App::new(options, models, responses);
    if let Some(batches) = batches {
        // Nothing else sets it, so this cannot fail.
        let _ = app.batches.set(Arc::new(batches));
    }
    Ok((Arc::new(app), ended))
}

/// The reason why the server has ended.
pub(crate) fn engine_lost(ended: std::result::Result<Error, RecvError>) -> Error {
    ended.unwrap_or_else(|_| Error::EngineLost("it panicked".to_owned()))
}

async fn run(options: ServeOptions, models: Vec<ModelSpec>, tell: Tell) -> Result<Ended> {
    let address = options.address;
    let cannot_bind = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(cannot_bind)?;
    let mut stop = StopSignals::new().map_err(Error::Threads)?;
    let drain_timeout = options.drain_timeout;
    let (app, mut engine_ended) = new_app(options, models)?;
    let address = listener.local_addr().map_err(cannot_bind)?;
    #[cfg(feature = "otlp")]
    start_otlp(&app, address)?;
    if app.options.api_keys.is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "every client that reaches this address can use the server: there are no API keys");
    }
    tell(ServerEvent::Listening(address));
    start_models(&app, Arc::clone(&tell));
    let mut door = Door::new(listener, &app);
    watch::start(&app).map_err(Error::Threads)?;
    if let Some(store) = app.batches.get() {
        runner::start(&app, store).map_err(Error::Threads)?;
    }

    let told = async {
        tokio::select! {
            ended = &mut engine_ended => Err(engine_lost(ended)),
            () = stop.received() => Ok(()),
        }
    };
    door.open_until(told).await?;

    app.drain();
    tell(ServerEvent::Draining);
    let Counts {
        waiting, running, ..
    } = app.registry.counts();
    tracing::info!(
        running,
        waiting,
        "draining: requests under way are finished, new ones are refused"
    );
    let drained = async {
        tokio::select! {
            ended = &mut engine_ended => Err(engine_lost(ended)),
            done = timeout(drain_timeout, app.all_done()) => Ok(done.is_ok()),
            () = stop.received() => Ok(false),
        }
    };
    let is_drained = door.open_until(drained).await?;
    let unfinished = app.num_under_way();
    if is_drained {
        let known = async {
            tokio::select! {
                () = app.probers.wait_until_informed() => {}
                () = stop.received() => {}
            }
        };
        door.open_until(known).await;
    }
    door.close(is_drained).await;
    #[cfg(feature = "otlp")]
    stop_otlp(app, is_drained).await;
    if is_drained {
        return Ok(Ended::Drained);
    }
    Ok(Ended::Cut { unfinished })
}

#[cfg(feature = "otlp")]
fn start_otlp(app: &App, address: SocketAddr) -> Result<()> {
    let signals = app.options.otlp;
    if signals.metrics || signals.traces {
        let otlp = Otlp::start(signals, address, app.registry.observed()).map_err(Error::Otlp)?;
        // Nothing else sets it, so this cannot fail.
        let _ = app.otlp.set(otlp);
    }
    Ok(())
}

/// Sends the rest of the telemetry; for a short time only, if answers were cut off.
#[cfg(feature = "otlp")]
async fn stop_otlp(app: Arc<App>, is_drained: bool) {
    let patience = if is_drained {
        OTLP_LAST_WORDS
    } else {
        OTLP_LAST_WORDS_AT_ONCE
    };
    let stopped = tokio::task::spawn_blocking(move || app.otlp.get().map(Otlp::stop));
    if timeout(patience, stopped).await.is_err() {
        tracing::warn!("the last telemetry could not be sent in time");
    }
}

/// Loads the first model if it is loaded at the start, then makes the server ready. The server ends
/// if it has no other model and cannot load this one. From then on, models are unloaded in time. A
/// server that drains meanwhile does not become ready.
pub(crate) fn start_models(app: &Arc<App>, tell: Tell) {
    let app = Arc::clone(app);
    if app.registry.can_unload() {
        tokio::spawn(Registry::unload_expired(Arc::downgrade(&app.registry)));
    }
    tokio::spawn(async move {
        if app.options.preload
            && let Err(problem) = app.registry.preload(0).await
            && app.registry.only().is_some()
        {
            return app.registry.end_server(problem.into());
        }
        if app.phase() == Phase::Draining {
            return;
        }
        app.set_ready();
        tell(ServerEvent::Ready);
    });
}

/// The signals that tell the process to stop.
struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    quit: tokio::signal::unix::Signal,
    /// SIGHUP, sent when a terminal closes; `None` if `nohup` made the process ignore it.
    #[cfg(unix)]
    hangup: Option<tokio::signal::unix::Signal>,
    /// Signals without an effect. Listening for them keeps them from ending the process.
    #[cfg(unix)]
    _user: [tokio::signal::unix::Signal; 2],
}

impl StopSignals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: match bitnet_guard::is_hangup_ignored() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
            _user: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    #[cfg(unix)]
    async fn received(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
            _ = hangup => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn received(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // This system has no such signal, so it never arrives.
            std::future::pending().await
        }
    }
}
