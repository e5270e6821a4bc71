//! [`Probers`]: balancers that ask `/readyz` again and again to decide where to send requests.
//!
//! A balancer keeps connections open for its next requests. If a server that drains closed them at
//! once, a request could be on its way on one of them, and the balancer could not tell whether the
//! server had read it. So connections stay open until the balancers know that the server stops.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Bounds of the time to wait for the next probe, which is twice the pause between earlier ones.
/// The lower bound is for a prober that has just begun, whose pause is not known.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Time for requests that were sent before the answer to the last probe arrived.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// The probes and their answers so far.
#[derive(Default)]
pub(crate) struct Probers {
    ready: Mutex<Ready>,
    is_draining_known: watch::Sender<bool>,
}

/// The probes that were answered with "ready".
#[derive(Clone, Copy, Default)]
struct Ready {
    last: Option<Instant>,
    /// The longest recent pause between two probes; `None` before the second probe.
    pause: Option<Duration>,
}

impl Probers {
    /// Notes that a probe was answered with "ready".
    pub(crate) fn answered_ready(&self, now: Instant) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = ready.last {
            // There may be several probers, each with a different pause.
            ready.pause = Some((now - last).max(ready.pause.unwrap_or_default() * 3 / 4));
        }
        ready.last = Some(now);
    }

    /// Notes that a probe was answered with "not ready".
    pub(crate) fn answered_draining(&self) {
        self.is_draining_known.send_replace(true);
    }

    /// The longest time until the next probe; `None` if no prober is left.
    fn next_probe(&self, now: Instant) -> Option<Duration> {
        let Ready { last, pause } = *self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = (2 * pause?).clamp(WAIT_MIN, WAIT_MAX);
        let is_probed = *self.is_draining_known.borrow() || now - last? <= longest;
        is_probed.then_some(longest)
    }

    /// Waits until the probers know that the server stops, and their earlier requests have arrived.
    pub(crate) async fn wait_until_informed(&self) {
        let Some(longest) = self.next_probe(Instant::now()) else {
            return;
        };
        let mut known = self.is_draining_known.subscribe();
        if timeout(longest, known.wait_for(|known| *known))
            .await
            .is_ok()
        {
            sleep(LAST_REQUESTS).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_waits_for_a_regular_prober() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let probers = Probers::default();
        assert_eq!(probers.next_probe(start), None, "no probe yet");
        probers.answered_ready(start);
        assert_eq!(
            probers.next_probe(start),
            None,
            "one that waited for the server to start"
        );
        probers.answered_ready(start + second / 10);
        assert_eq!(probers.next_probe(start + second), Some(WAIT_MIN));
        probers.answered_ready(start + 3 * second);
        assert_eq!(
            probers.next_probe(start + 4 * second),
            Some(2 * (3 * second - second / 10))
        );
        probers.answered_ready(start + 4 * second);
        let longest = 2 * (3 * second - second / 10) * 3 / 4;
        assert_eq!(
            probers.next_probe(start + 4 * second),
            Some(longest.max(WAIT_MIN)),
            "pauses are forgotten slowly"
        );
        assert_eq!(
            probers.next_probe(start + 10 * second),
            None,
            "no prober is left"
        );
        probers.answered_draining();
        assert_eq!(
            probers.next_probe(start + 10 * second),
            Some(WAIT_MIN),
            "they asked while the server drained"
        );
        probers.answered_ready(start + 60 * second);
        assert_eq!(probers.next_probe(start + 60 * second), Some(WAIT_MAX));
    }
}
