//! [`Probers`]: whoever asks again and again whether the server is ready, so as to send requests or
//! not.
//!
//! A balancer holds connections to send the next request on. If the server closed them as soon as
//! it has nothing more to do, a request could be under way on one of them, and nobody could say
//! whether it was heard. So they stay open until those who ask know that the server stops.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The longest time to wait for the next question: twice the pause between those before, and within
/// these bounds. The lower one is for whoever has just begun to ask, when no pause of its own has
/// been seen.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// For requests that were sent before the answer to it arrived.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// What they asked and what they were told.
#[derive(Default)]
pub(crate) struct Probers {
    ready: Mutex<Ready>,
    told_to_leave: watch::Sender<bool>,
}

/// When they were told that the server is ready.
#[derive(Clone, Copy, Default)]
struct Ready {
    last: Option<Instant>,
    /// From one question to the next: the longest of the latest. None before the second question.
    pause: Option<Duration>,
}

impl Probers {
    /// They were told that the server is ready.
    pub(crate) fn told_ready(&self, now: Instant) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = ready.last {
            // Several may ask, each at its own times.
            ready.pause = Some((now - last).max(ready.pause.unwrap_or_default() * 3 / 4));
        }
        ready.last = Some(now);
    }

    /// They were told that it stops.
    pub(crate) fn told_to_leave(&self) {
        self.told_to_leave.send_replace(true);
    }

    /// How long it may take until they ask again, if anyone still does.
    fn next_question(&self, now: Instant) -> Option<Duration> {
        let Ready { last, pause } = *self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = (2 * pause?).clamp(WAIT_MIN, WAIT_MAX);
        let still_ask = *self.told_to_leave.borrow() || now - last? <= longest;
        still_ask.then_some(longest)
    }

    /// Waits until those who still ask know that the server stops, and what they sent before has
    /// come.
    pub(crate) async fn know(&self) {
        let Some(longest) = self.next_question(Instant::now()) else {
            return;
        };
        let mut told = self.told_to_leave.subscribe();
        if timeout(longest, told.wait_for(|told| *told)).await.is_ok() {
            sleep(LAST_REQUESTS).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_again_and_again_is_waited_for() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let probers = Probers::default();
        assert_eq!(probers.next_question(start), None, "nobody has asked");
        probers.told_ready(start);
        assert_eq!(
            probers.next_question(start),
            None,
            "whoever waited for the server to start"
        );
        probers.told_ready(start + second / 10);
        assert_eq!(probers.next_question(start + second), Some(WAIT_MIN));
        probers.told_ready(start + 3 * second);
        assert_eq!(
            probers.next_question(start + 4 * second),
            Some(2 * (3 * second - second / 10))
        );
        probers.told_ready(start + 4 * second);
        let longest = 2 * (3 * second - second / 10) * 3 / 4;
        assert_eq!(
            probers.next_question(start + 4 * second),
            Some(longest.max(WAIT_MIN)),
            "pauses are forgotten slowly"
        );
        assert_eq!(
            probers.next_question(start + 10 * second),
            None,
            "nobody asks any more"
        );
        probers.told_to_leave();
        assert_eq!(
            probers.next_question(start + 10 * second),
            Some(WAIT_MIN),
            "they asked while the server drained"
        );
        probers.told_ready(start + 60 * second);
        assert_eq!(probers.next_question(start + 60 * second), Some(WAIT_MAX));
    }
}
