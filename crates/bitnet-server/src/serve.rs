//! [`serve`]: runs a server from binding its address to the end of the last answer.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(feature = "otlp")]
use std::time::Duration;

use bitnet_inference::{Driver, EngineLoop, panic_message};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::timeout;

use crate::answer_sink::observe;
use crate::door::Door;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::options::ServeOptions;
#[cfg(feature = "otlp")]
use crate::otlp::Otlp;
use crate::queue::Counts;
use crate::state::{App, ServedModel};
use crate::store::ResponseStore;
use crate::text::{THREAD_STACK_BYTES, THREADS_MAX};
use crate::watch;

/// Threads that read and write HTTP. HTTP is little work compared to tokens, and the engine needs
/// the cores.
const HTTP_THREADS: usize = 2;
/// Stack of the engine's thread in bytes. It follows grammars that were compiled on a stack of
/// [`THREAD_STACK_BYTES`] at most.
const ENGINE_STACK_BYTES: usize = 2 * THREAD_STACK_BYTES;

/// Time to send the last telemetry: after a drain, and when the server must stop immediately.
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS: Duration = Duration::from_secs(5);
#[cfg(feature = "otlp")]
const OTLP_LAST_WORDS_AT_ONCE: Duration = Duration::from_millis(500);

/// Result of a loader.
pub(crate) type Loaded = std::result::Result<ServedModel, Box<dyn std::error::Error + Send + Sync>>;

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
/// `load` is called on the thread that will own the engine; until it returns, the server listens
/// but is not ready.
///
/// # Errors
/// If the address cannot be bound, the model cannot be loaded, or the engine's thread ends.
pub fn serve(
    options: ServeOptions,
    load: impl FnOnce() -> Loaded + Send + 'static,
    tell: impl Fn(ServerEvent) + Send + Sync + 'static,
) -> Result<Ended> {
    let runtime = runtime().map_err(Error::Threads)?;
    let ended = runtime.block_on(run(options, load, Arc::new(tell)));
    // The remaining tasks are abandoned.
    runtime.shutdown_background();
    ended
}

/// The threads for HTTP and for text.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(THREADS_MAX)
        .thread_stack_size(THREAD_STACK_BYTES)
        .thread_name("bitnet-http")
        .enable_all()
        .build()
}

/// The thread that owns an engine: its stack is large enough for every form of an answer.
pub fn engine_thread() -> std::thread::Builder {
    std::thread::Builder::new()
        .name("bitnet-engine".to_owned())
        .stack_size(ENGINE_STACK_BYTES)
}

/// The server's state, and the loop of its engine, which the metrics observe.
pub(crate) fn new_app(options: ServeOptions) -> Result<(Arc<App>, EngineLoop)> {
    let (driver, engine_loop) = Driver::new();
    let metrics = Arc::new(Metrics::new(Arc::clone(driver.monitor())));
    let engine_loop = engine_loop.observed({
        let metrics = Arc::clone(&metrics);
        move |observation| observe(&metrics, observation)
    });
    let responses = match &options.state_dir {
        Some(folder) => ResponseStore::open(folder)?,
        None => ResponseStore::in_memory(),
    };
    let app = App::new(options, driver, metrics, responses);
    Ok((Arc::new(app), engine_loop))
}

/// The reason why the engine's thread has ended.
pub(crate) fn engine_lost(ended: std::result::Result<Error, RecvError>) -> Error {
    ended.unwrap_or_else(|_| Error::EngineLost("it panicked".to_owned()))
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
    let (app, engine_loop) = new_app(options)?;
    let address = listener.local_addr().map_err(cannot_bind)?;
    #[cfg(feature = "otlp")]
    start_otlp(&app, address)?;
    if app.options.api_keys.is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "every client that reaches this address can use the server: there are no API keys");
    }
    tell(ServerEvent::Listening(address));
    let mut engine_ended = start_engine(Arc::clone(&app), engine_loop, load, Arc::clone(&tell))
        .map_err(Error::Threads)?;
    let mut door = Door::new(listener, &app);
    watch::start(&app).map_err(Error::Threads)?;

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
                () = app.probers.know() => {}
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
        let otlp = Otlp::start(signals, address, &app.metrics, &app.queue).map_err(Error::Otlp)?;
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

/// Starts the thread that loads the model and owns the engine. The result gets an error if the
/// thread ends early.
pub(crate) fn start_engine(
    app: Arc<App>,
    engine_loop: EngineLoop,
    load: impl FnOnce() -> Loaded + Send + 'static,
    tell: Tell,
) -> std::io::Result<oneshot::Receiver<Error>> {
    let (ended, has_ended) = oneshot::channel();
    engine_thread().spawn(move || {
        let served = match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(served)) => served,
            Ok(Err(error)) => return drop(ended.send(Error::Load(error))),
            // The panic hook has logged the location.
            Err(panic) => {
                let error = Error::LoadPanicked(panic_message(&*panic).to_owned());
                return drop(ended.send(error));
            }
        };
        // Publish before the server is ready, so that the first scrape finds the cache's size.
        engine_loop.publish(&served.engine);
        let (engine, remake) = app.set_model(served);
        if let Ok(model) = app.model() {
            tracing::info!(model = model.name(), context = model.context, "ready");
            tell(ServerEvent::Ready);
        }
        // The loop ends when all drivers are gone, and `app` holds one.
        drop(app);
        if let Err(error) = engine_loop.run(engine, remake) {
            drop(ended.send(Error::EngineLost(error.to_string())));
        }
    })?;
    Ok(has_ended)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::FORM_STACK_BYTES;

    /// Recurses until this thread has used `bytes` of stack since `start`.
    fn use_stack(start: usize, bytes: usize) -> usize {
        let frame = std::hint::black_box([1u8; 1024]);
        if start.abs_diff(frame.as_ptr().addr()) >= bytes {
            return 0;
        }
        use_stack(start, bytes) + usize::from(frame[bytes % 1024])
    }

    fn stack_of(bytes: usize) -> bool {
        let here = 0u8;
        use_stack((&raw const here).addr(), bytes) > 0
    }

    /// A part of a stack that a test may use without the thread's own frames overflowing it.
    const PART: usize = 7;

    #[test]
    fn threads_have_more_stack_than_the_helper_that_compiled_a_form() {
        let runtime = runtime().expect("threads");
        let on_text_thread = runtime.spawn_blocking(|| stack_of(4 * FORM_STACK_BYTES / 8 * PART));
        assert!(runtime.block_on(on_text_thread).expect("no panic"));
        let on_engine_thread = engine_thread().spawn(|| stack_of(8 * FORM_STACK_BYTES / 8 * PART));
        assert!(
            on_engine_thread
                .expect("a thread")
                .join()
                .expect("no panic")
        );
    }
}
