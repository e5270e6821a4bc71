//! [`serve`]: from an address to the end of the last answer.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use axum::Router;
use bitnet_inference::Engine;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::auth::ApiKeys;
use crate::connection::Connection;
use crate::engine_thread::{EngineThread, Job};
use crate::error::{Error, Result};
use crate::http::router;
use crate::options::{Limits, ServeOptions};
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::queue::Counts;
use crate::state::{App, ServedModel};
use crate::text::TEXT_THREADS;

/// Threads that read and write HTTP. Text is little work beside tokens, and the engine wants the
/// cores.
const HTTP_THREADS: usize = 2;
/// From one look at the file of API keys to the next.
const KEYS_PAUSE: Duration = Duration::from_secs(1);
/// From one look at the engine to the next, at most.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// After an accept that failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For the last telemetry to be sent, and where everything must end at once.
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS: Duration = Duration::from_secs(5);
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS_AT_ONCE: Duration = Duration::from_millis(500);

/// What a loader returns.
type Loaded = std::result::Result<ServedModel, Box<dyn std::error::Error + Send + Sync>>;

/// How a server ended that was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was under way has been answered.
    Drained,
    /// It took too long, or the server was told a second time.
    Cut {
        /// Requests that were not answered to their end.
        unfinished: usize,
    },
}

/// What becomes of a server, for whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// The address is bound, and connections are accepted.
    Listening(SocketAddr),
    /// The model is loaded, and requests are answered.
    Ready,
    /// The server was told to stop, and finishes what is under way.
    Draining,
}

/// Who is told.
type Tell = Arc<dyn Fn(ServerEvent) + Send + Sync>;

/// Serves until the process is told to stop (SIGTERM, SIGINT), then finishes what is under way.
///
/// `load` is called on the thread that will own the engine; until it returns, the server is there
/// but not ready.
///
/// # Errors
/// If the address cannot be bound, the model not be loaded, or the engine is lost.
pub fn serve(
    options: ServeOptions,
    load: impl FnOnce() -> Loaded + Send + 'static,
    tell: impl Fn(ServerEvent) + Send + Sync + 'static,
) -> Result<Ended> {
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(TEXT_THREADS)
        .thread_name("bitnet-http")
        .enable_all();
    let runtime = builder.build().map_err(Error::Threads)?;
    let ended = runtime.block_on(run(options, load, Arc::new(tell)));
    // Whatever is left has been given up.
    runtime.shutdown_background();
    ended
}

async fn run(
    options: ServeOptions,
    load: impl FnOnce() -> Loaded + Send + 'static,
    tell: Tell,
) -> Result<Ended> {
    let address = options.address;
    let cannot_bind = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(cannot_bind)?;
    let mut stop = StopSignals::new().map_err(Error::Threads)?;
    let drain_timeout = options.drain_timeout;
    let (jobs, received) = std::sync::mpsc::channel();
    let app = Arc::new(App::new(options, jobs));
    let address = listener.local_addr().map_err(cannot_bind)?;
    #[cfg(feature = "otlp")]
    start_otlp(&app, address)?;
    if app.options.api_keys.is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever reaches this address can use the server: there are no API keys");
    }
    tell(ServerEvent::Listening(address));
    let mut engine_ended = start_engine(Arc::clone(&app), received, load, Arc::clone(&tell))
        .map_err(Error::Threads)?;
    let engine_lost = |ended: std::result::Result<Error, _>| {
        ended.unwrap_or_else(|_| Error::EngineLost("it panicked".to_owned()))
    };
    let mut door = Door::new(listener, &app);
    tokio::spawn(watch(Arc::clone(&app)));
    if let Some(keys) = app.options.api_keys.clone() {
        tokio::spawn(watch_keys(keys));
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
    } = app.queue.counts();
    tracing::info!(
        running,
        waiting,
        "draining: what is under way is finished, nothing new is begun"
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
                () = app.probers.know() => {}
                () = stop.received() => {}
            }
        };
        door.open_until(known).await;
    }
    door.close(is_drained).await;
    #[cfg(feature = "otlp")]
    stop_otlp(
        app,
        if is_drained {
            OTLP_LAST_WORDS
        } else {
            OTLP_LAST_WORDS_AT_ONCE
        },
    )
    .await;
    if is_drained {
        return Ok(Ended::Drained);
    }
    Ok(Ended::Cut { unfinished })
}

/// Reads the API keys again, so that those that were added are taken and those that were removed
/// are not.
async fn watch_keys(keys: ApiKeys) {
    let mut last_problem = None;
    loop {
        tokio::time::sleep(KEYS_PAUSE).await;
        let file = keys.clone();
        let Ok(result) = tokio::task::spawn_blocking(move || file.read_again()).await else {
            return;
        };
        let path = keys.path().display();
        let problem = match result {
            Ok(true) => {
                tracing::info!(%path, "the API keys have changed");
                None
            }
            Ok(false) => None,
            Err(error) => Some(chain(&error)),
        };
        // Once, not every second.
        if let Some(error) = problem
            .as_ref()
            .filter(|problem| last_problem.as_ref() != Some(*problem))
        {
            tracing::error!(%path, error, "the API keys cannot be read again: those that were read last count");
        }
        last_problem = problem;
    }
}

/// Logs when the engine gets stuck, and when it goes on.
async fn watch(app: Arc<App>) {
    let mut was_stalled = false;
    loop {
        tokio::time::sleep(app.options.stall_timeout.min(WATCH_PAUSE)).await;
        let stalled = app.stalled();
        match stalled {
            Some(time) if !was_stalled => {
                tracing::error!(
                    seconds = time.as_secs_f64(),
                    "the engine is stuck: it has not finished its step"
                )
            }
            None if was_stalled => tracing::warn!("the engine goes on"),
            _ => {}
        }
        was_stalled = stalled.is_some();
    }
}

#[cfg(feature = "otlp")]
fn start_otlp(app: &App, address: SocketAddr) -> Result<()> {
    let signals = app.options.otlp;
    if signals.metrics || signals.traces {
        let otlp = Otlp::start(signals, address, &app.metrics, &app.queue).map_err(Error::Otlp)?;
        // Nobody has set it before.
        let _ = app.otlp.set(otlp);
    }
    Ok(())
}

/// Sends what is left, for as long as a process that is told to stop may take.
#[cfg(feature = "otlp")]
async fn stop_otlp(app: Arc<App>, patience: Duration) {
    let stopped = tokio::task::spawn_blocking(move || app.otlp.get().map(Otlp::stop));
    if timeout(patience, stopped).await.is_err() {
        tracing::warn!("the last telemetry could not be sent in time");
    }
}

/// Starts the thread that loads the model and owns the engine. It tells why it ended before it was
/// told to.
fn start_engine(
    app: Arc<App>,
    jobs: Receiver<Job>,
    load: impl FnOnce() -> Loaded + Send + 'static,
    tell: Tell,
) -> std::io::Result<oneshot::Receiver<Error>> {
    let (ended, has_ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("bitnet-engine".to_owned())
        .spawn(move || {
            let served = match load() {
                Ok(served) => served,
                Err(error) => return drop(ended.send(Error::Load(error))),
            };
            let (pulse, metrics) = (Arc::clone(&app.pulse), Arc::clone(&app.metrics));
            let (engine, remake) = app.set_model(served);
            if let Ok(model) = app.model() {
                tracing::info!(model = model.name(), context = model.context, "ready");
                tell(ServerEvent::Ready);
            }
            // The channel of jobs ends when nobody else holds the other end.
            drop(app);
            let thread = EngineThread::new(jobs, pulse, metrics, Engine::step);
            if let Err(error) = thread.run(engine, remake) {
                drop(ended.send(Error::EngineLost(error.to_string())));
            }
        })?;
    Ok(has_ended)
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    router: Router,
    limits: Limits,
    connections: JoinSet<()>,
    /// True tells connections to close after the answer they are at.
    closing: watch::Sender<bool>,
}

impl Door {
    fn new(listener: TcpListener, app: &Arc<App>) -> Self {
        Self {
            listener,
            router: router(Arc::clone(app)),
            limits: app.options.limits,
            connections: JoinSet::new(),
            closing: watch::Sender::new(false),
        }
    }

    /// Lets connections in until something has come about.
    async fn open_until<T>(&mut self, come_about: impl Future<Output = T>) -> T {
        let mut come_about = pin!(come_about);
        loop {
            tokio::select! {
                biased;
                what = &mut come_about => return what,
                Some(_) = self.connections.join_next() => {}
                accepted = self.listener.accept(), if self.connections.len() < self.limits.connections => match accepted {
                    Ok((stream, _)) => {
                        let connection = talk(stream, self.router.clone(), self.limits, self.closing.subscribe());
                        self.connections.spawn(connection);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Lets nobody in any more, and lets those who are in read the last bytes of their answers if
    /// these are complete.
    async fn close(self, is_drained: bool) {
        let Self {
            listener,
            mut connections,
            closing,
            limits,
            ..
        } = self;
        drop(listener);
        if !is_drained {
            // Answers that are given up end here, each with its line in the log.
            connections.shutdown().await;
            return;
        }
        closing.send_replace(true);
        let last_bytes = async { while connections.join_next().await.is_some() {} };
        if timeout(limits.write_timeout.min(Duration::from_secs(5)), last_bytes)
            .await
            .is_err()
        {
            tracing::warn!("some connections did not take the end of their answers");
        }
    }
}

/// Answers the requests of one connection.
async fn talk(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    // Pieces of an answer are small and must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes)
        // At least what hyper needs.
        .max_buf_size(limits.header_bytes.max(8192));
    let io = TokioIo::new(Connection::new(stream, limits.write_timeout));
    let mut connection = pin!(http.serve_connection(io, TowerToHyperService::new(router)));
    let closes = async { drop(closing.wait_for(|closing| *closing).await) };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closes => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "a connection ended badly");
    }
}

/// An error with what it came from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What tells the process to stop.
struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn received(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // There is no such signal here, so it never comes.
            std::future::pending().await
        }
    }
}
