//! [`Door`]: admits connections, and always leaves room for probes.
//!
//! Up to [`Limits::connections`](crate::Limits) connections are open. At this limit, a new
//! connection closes the one that has been idle for longest. If none is idle, the new one takes a
//! reserved place, where the server answers only health and metrics. One address may hold only a
//! part of all connections.
//!
//! A connection that has just opened counts as idle only after [`IDLE_MIN`], because its request
//! may be on its way. Reserved places are not left to clients that are slow: a connection
//! without a request, or older than [`RESERVED_AGE`], makes room for the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::error::chain;
use crate::http::router;
use crate::options::Limits;
use crate::state::App;

/// Places above [`Limits::connections`](crate::Limits) for probes.
pub(crate) const RESERVED: usize = 16;
/// Maximum time until a connection in a reserved place has sent its request.
const RESERVED_TIME: Duration = Duration::from_secs(5);
/// Minimum time without requests of a connection that is closed to let another one in.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Minimum age of a connection in a reserved place that is closed although a request is under way
/// on it. Answers to probes take milliseconds.
const RESERVED_AGE: Duration = Duration::from_secs(1);
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

/// The open connections, and counts of refused and closed ones.
#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    pub(crate) closed_idle: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) accept_failures: AtomicU64,
}

/// In the order of arrival.
#[derive(Default)]
struct Open {
    last_number: u64,
    peers: BTreeMap<u64, Arc<Peer>>,
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Peer {
    number: u64,
    /// The client's address.
    pub(crate) address: IpAddr,
    /// Whether it holds a reserved place, for probes only.
    pub(crate) is_reserved: bool,
    opened: Instant,
    requests: Mutex<Requests>,
    /// Tells the connection to close immediately.
    close: Notify,
}

#[derive(Debug)]
struct Requests {
    /// Requests under way: from the end of the headers to the end of the answer.
    num: usize,
    /// Start of the time without requests.
    idle_since: Instant,
}

/// A request under way on a connection, until it is dropped.
pub(crate) struct PeerRequest(Arc<Peer>);

impl Peer {
    /// Counts a request until the result is dropped.
    pub(crate) fn request(self: &Arc<Self>) -> PeerRequest {
        self.requests().num += 1;
        PeerRequest(Arc::clone(self))
    }

    /// When the connection became idle; `None` while it has requests.
    fn idle_since(&self) -> Option<Instant> {
        let requests = self.requests();
        (requests.num == 0).then_some(requests.idle_since)
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        lock(&self.requests)
    }
}

impl Drop for PeerRequest {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.num -= 1;
        requests.idle_since = Instant::now();
    }
}

/// Lock poisoning is harmless: no change under these locks can panic halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// The number of open connections.
    pub(crate) fn num_open(&self) -> usize {
        lock(&self.open).peers.len()
    }

    /// Admits a connection from `address`, and closes others if needed; `None` if there is no
    /// place.
    fn admit(&self, address: IpAddr, limits: &Limits, now: Instant) -> Option<Arc<Peer>> {
        let address = address.to_canonical();
        let mut open = lock(&self.open);
        let ordinary = |peer: &Peer| !peer.is_reserved;
        let of_address = |peer: &Peer| ordinary(peer) && peer.address == address;
        let mut has_room = |places: usize, counts: &dyn Fn(&Peer) -> bool| {
            let num_taken = open.peers.values().filter(|peer| counts(peer)).count();
            num_taken < places || self.close_idle(&mut open, counts, now, IDLE_MIN)
        };
        let has_place = has_room(limits.connections_per_address, &of_address)
            && has_room(limits.connections, &ordinary);
        if !has_place && !self.has_reserved_place(&mut open, now) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        open.last_number += 1;
        let peer = Arc::new(Peer {
            number: open.last_number,
            address,
            is_reserved: !has_place,
            opened: now,
            requests: Mutex::new(Requests {
                num: 0,
                idle_since: now,
            }),
            close: Notify::new(),
        });
        open.peers.insert(peer.number, Arc::clone(&peer));
        Some(peer)
    }

    /// Whether a reserved place is free, or was made free.
    fn has_reserved_place(&self, open: &mut Open, now: Instant) -> bool {
        let reserved = |peer: &Peer| peer.is_reserved;
        let num_taken = open.peers.values().filter(|peer| reserved(peer)).count();
        if num_taken < RESERVED || self.close_idle(open, &reserved, now, Duration::ZERO) {
            return true;
        }
        let is_old =
            |peer: &&Arc<Peer>| reserved(peer) && now.duration_since(peer.opened) >= RESERVED_AGE;
        let number = open.peers.values().find(is_old).map(|peer| peer.number);
        let oldest = number.and_then(|number| open.peers.remove(&number));
        oldest.is_some_and(|peer| {
            peer.close.notify_one();
            self.refused.fetch_add(1, Ordering::Relaxed);
            true
        })
    }

    /// Closes the longest idle connection among the `wanted` ones; false if none has been idle for
    /// at least `idle_min`.
    fn close_idle(
        &self,
        open: &mut Open,
        wanted: &dyn Fn(&Peer) -> bool,
        now: Instant,
        idle_min: Duration,
    ) -> bool {
        let idle = open.peers.values().filter(|peer| wanted(peer));
        let idle = idle.filter_map(|peer| Some((peer.idle_since()?, peer.number)));
        let longest = idle.min();
        let Some((_, number)) = longest.filter(|(since, _)| now.duration_since(*since) >= idle_min)
        else {
            return false;
        };
        if let Some(peer) = open.peers.remove(&number) {
            peer.close.notify_one();
            self.closed_idle.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn leave(&self, peer: &Peer) {
        lock(&self.open).peers.remove(&peer.number);
    }
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
        self.tasks.spawn(async move {
            talk(stream, router, limits, closing, &peer).await;
            app.connections.leave(&peer);
        });
    }

    /// Closes an idle connection, if there is one, to free a file descriptor, and waits a little.
    async fn accept_failed(&mut self, error: &std::io::Error) {
        let connections = &self.app.connections;
        connections.accept_failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        connections.close_idle(&mut lock(&connections.open), &|_| true, now, Duration::ZERO);
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

/// Answers the requests of one connection.
async fn talk(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    peer: &Arc<Peer>,
) {
    // Pieces of an answer are small and must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection closed immediately");
        return;
    }
    let header_timeout = match peer.is_reserved {
        true => limits.header_timeout.min(RESERVED_TIME),
        false => limits.header_timeout,
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(limits.header_bytes)
        // The minimum that hyper needs.
        .max_buf_size(limits.header_bytes.max(8192));
    let io = TokioIo::new(Connection::new(stream, limits.write_timeout));
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
        () = peer.close.notified() => return,
        () = closes => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn limits(connections: usize, connections_per_address: usize) -> Limits {
        Limits {
            connections,
            connections_per_address,
            ..Limits::for_tests()
        }
    }

    /// A time after which connections that are idle now may be closed.
    fn later(now: Instant) -> Instant {
        now + IDLE_MIN + Duration::from_secs(60)
    }

    #[test]
    fn the_longest_idle_connection_makes_room() {
        let (connections, limits) = (Connections::default(), limits(2, 2));
        let start = Instant::now();
        let admit = |last, now| {
            connections
                .admit(address(last), &limits, now)
                .expect("a place")
        };
        let first = admit(1, start);
        let second = admit(2, start + Duration::from_millis(1));
        let busy = first.request();
        let third = admit(3, later(start));
        assert!(!third.is_reserved, "the second was idle");
        assert_eq!(connections.num_open(), 2);
        let _busy = third.request();
        let fourth = admit(4, later(start));
        assert!(fourth.is_reserved, "no connection is idle");
        drop(busy);
        let fifth = admit(5, later(later(start)));
        assert!(!fifth.is_reserved, "the first is idle again");
        for peer in [first, second, third, fourth, fifth] {
            connections.leave(&peer);
        }
        assert_eq!(connections.num_open(), 0);
    }

    #[test]
    fn a_connection_whose_request_may_be_on_its_way_stays_open() {
        let (connections, limits) = (Connections::default(), limits(1, 1));
        let start = Instant::now();
        let admit = |now| connections.admit(address(1), &limits, now);
        let _first = admit(start).expect("a place");
        let second = admit(start + IDLE_MIN - Duration::from_millis(1)).expect("a place");
        assert!(second.is_reserved);
        let third = admit(start + IDLE_MIN).expect("a place");
        assert!(!third.is_reserved);
        assert_eq!(connections.closed_idle.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let (connections, limits) = (Connections::default(), limits(8, 3));
        let now = Instant::now();
        let busy: Vec<_> = (0..20)
            .filter_map(|_| connections.admit(address(1), &limits, now))
            .map(|peer| (peer.is_reserved, peer.request()))
            .collect();
        let ordinary = busy.iter().filter(|(is_reserved, _)| !is_reserved);
        assert_eq!(ordinary.count(), 3);
        assert_eq!(busy.len(), 3 + RESERVED);
        assert_eq!(connections.refused.load(Ordering::Relaxed), 1);
        let other = connections
            .admit(address(2), &limits, now)
            .expect("a place");
        assert!(!other.is_reserved);
    }

    #[test]
    fn silent_and_slow_connections_in_reserved_places_make_room_for_a_probe() {
        let (connections, limits) = (Connections::default(), limits(1, 1));
        let now = Instant::now();
        let admit = |now| connections.admit(address(1), &limits, now);
        let _busy = admit(now).expect("a place").request();
        for _ in 0..5 * RESERVED {
            assert!(admit(now).is_some_and(|peer| peer.is_reserved));
        }
        assert_eq!(connections.num_open(), 1 + RESERVED);
        let slow: Vec<_> = (0..RESERVED)
            .map(|_| admit(now).expect("a place").request())
            .collect();
        assert!(admit(now).is_none(), "their answers may be on their way");
        assert!(admit(now + RESERVED_AGE).is_some_and(|peer| peer.is_reserved));
        assert_eq!(connections.num_open(), 1 + RESERVED);
        drop(slow);
    }
}
