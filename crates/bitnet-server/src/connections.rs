//! [`Connections`]: which connections are open, and which one makes room for another.
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::options::Limits;

/// Places above [`Limits::connections`](crate::Limits) for probes.
pub(crate) const RESERVED: usize = 16;
/// Minimum time without requests of a connection that is closed to let another one in.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Minimum age of a connection in a reserved place that is closed although a request is under way
/// on it. Answers to probes take milliseconds.
const RESERVED_AGE: Duration = Duration::from_secs(1);

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

    /// Waits until the connection must close, because another client needs its place.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
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
    pub(crate) fn admit(
        &self,
        address: IpAddr,
        limits: &Limits,
        now: Instant,
    ) -> Option<Arc<Peer>> {
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

    pub(crate) fn leave(&self, peer: &Peer) {
        lock(&self.open).peers.remove(&peer.number);
    }

    /// Counts a failed accept, and closes the longest idle connection, if there is one: its file
    /// descriptor may be what the system lacks.
    pub(crate) fn accept_failed(&self, now: Instant) {
        self.accept_failures.fetch_add(1, Ordering::Relaxed);
        self.close_idle(&mut lock(&self.open), &|_| true, now, Duration::ZERO);
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
