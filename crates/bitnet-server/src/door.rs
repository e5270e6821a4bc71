//! [`Door`]: accepts connections and answers their requests, as far as
//! [`Connections`](crate::connections::Connections) admits them.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::connection::Connection;
use crate::connections::Peer;
use crate::error::chain;
use crate::http::router;
use crate::options::Limits;
use crate::state::App;
use crate::tls::Tls;

/// Maximum time until a connection in a reserved place has sent its request.
const RESERVED_TIME: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Minimum time between two log lines about connections.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Accepts connections.
pub(crate) struct Door {
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    limits: Limits,
    tasks: JoinSet<()>,
    /// True tells connections to close after their current answer.
    closing: watch::Sender<bool>,
    last_logged: Option<Instant>,
}

impl Door {
    pub(crate) fn new(listener: TcpListener, app: &Arc<App>) -> Self {
        Self {
            listener,
            app: Arc::clone(app),
            router: router(Arc::clone(app)),
            limits: app.options.limits,
            tasks: JoinSet::new(),
            closing: watch::Sender::new(false),
            last_logged: None,
        }
    }

    /// Accepts connections until `ended` is ready.
    pub(crate) async fn open_until<T>(&mut self, ended: impl Future<Output = T>) -> T {
        let mut ended = pin!(ended);
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return ended,
                Some(_) = self.tasks.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => self.let_in(stream, address.ip()),
                    Err(error) => self.accept_failed(&error).await,
                }
            }
        }
    }

    fn let_in(&mut self, stream: TcpStream, address: IpAddr) {
        let connections = &self.app.connections;
        let Some(peer) = connections.admit(address, &self.limits, Instant::now()) else {
            self.log_limit("every place is taken: a connection was refused");
            return;
        };
        if peer.is_reserved {
            self.log_limit("every place is taken: only probes are answered on further connections");
        }
        let (router, limits) = (self.router.clone(), self.limits);
        let (app, closing) = (Arc::clone(&self.app), self.closing.subscribe());
        let tls = app.options.tls.as_ref().map(Tls::acceptor);
        self.tasks.spawn(async move {
            talk(stream, tls, router, limits, closing, &peer).await;
            app.connections.leave(&peer);
        });
    }

    /// Closes an idle connection, if there is one, to free a file descriptor, and waits a little.
    async fn accept_failed(&mut self, error: &std::io::Error) {
        self.app.connections.accept_failed(Instant::now());
        self.log_limit(&format!("cannot accept a connection: {error}"));
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// Logs that connections are at a limit, but not too often.
    fn log_limit(&mut self, problem: &str) {
        let now = Instant::now();
        if self.last_logged.is_some_and(|last| now - last < LOG_PAUSE) {
            return;
        }
        self.last_logged = Some(now);
        let connections = &self.app.connections;
        tracing::warn!(
            open = connections.num_open(),
            closed_idle = connections.closed_idle.load(Ordering::Relaxed),
            refused = connections.refused.load(Ordering::Relaxed),
            "{problem}"
        );
    }

    /// Stops accepting connections, and lets clients read the last bytes of complete answers.
    pub(crate) async fn close(self, is_drained: bool) {
        let Self {
            listener,
            mut tasks,
            closing,
            limits,
            ..
        } = self;
        drop(listener);
        if !is_drained {
            // Abandoned answers end here; each one logs its line.
            tasks.shutdown().await;
            return;
        }
        closing.send_replace(true);
        let last_bytes = async { while tasks.join_next().await.is_some() {} };
        if timeout(limits.write_timeout.min(Duration::from_secs(5)), last_bytes)
            .await
            .is_err()
        {
            tracing::warn!("some connections did not take the end of their answers");
        }
    }
}

/// Answers the requests of one connection, in TLS if the server speaks it.
async fn talk(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    closing: watch::Receiver<bool>,
    peer: &Arc<Peer>,
) {
    // Pieces of an answer are small and must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection closed immediately");
        return;
    }
    let connection = Connection::new(stream, limits.write_timeout);
    let Some(tls) = tls else {
        return answer(connection, router, limits, closing, peer).await;
    };
    let handshake = timeout(header_timeout(limits, peer), tls.accept(connection));
    let accepted = tokio::select! {
        accepted = handshake => accepted,
        () = peer.closed() => return,
    };
    match accepted {
        Ok(Ok(connection)) => answer(connection, router, limits, closing, peer).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection did not begin TLS"),
        Err(_) => tracing::debug!("a connection took too long to begin TLS"),
    }
}

/// Maximum time until a connection has sent the headers of a request.
fn header_timeout(limits: Limits, peer: &Peer) -> Duration {
    match peer.is_reserved {
        true => limits.header_timeout.min(RESERVED_TIME),
        false => limits.header_timeout,
    }
}

/// Answers the requests that arrive on a stream of bytes.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    peer: &Arc<Peer>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(header_timeout(limits, peer))
        .max_header_size(limits.header_bytes)
        // The minimum that hyper needs.
        .max_buf_size(limits.header_bytes.max(8192));
    let io = TokioIo::new(stream);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(peer));
        router.call(request)
    });
    let mut connection = pin!(http.serve_connection(io, service));
    let closes = async { drop(closing.wait_for(|closing| *closing).await) };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // The connection is idle, and another client needs its place.
        () = peer.closed() => return,
        () = closes => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "a connection ended badly");
    }
}
