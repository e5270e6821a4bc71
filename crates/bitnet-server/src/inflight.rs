//! [`Inflight`]: the number of bytes of request bodies in memory, over all requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes under way and their maximum.
pub(crate) struct Inflight {
    max: usize,
    bytes: AtomicUsize,
    /// Maximum since memory was last returned to the system.
    peak: AtomicUsize,
}

/// Counts the bytes of one body until it is dropped.
pub(crate) struct BodyBytes {
    inflight: Arc<Inflight>,
    bytes: usize,
}

impl Inflight {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            bytes: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        })
    }

    /// Maximum number of bytes in flight.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Bytes under way now.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Starts a body with 0 bytes.
    pub(crate) fn body(self: &Arc<Self>) -> BodyBytes {
        BodyBytes {
            inflight: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Whether a burst of at least `bytes` has ended; true once for each burst.
    pub(crate) fn is_over(&self, bytes: usize) -> bool {
        let is_over = self.peak.load(Ordering::Relaxed) >= bytes && self.bytes() < bytes / 4;
        if is_over {
            self.peak.store(0, Ordering::Relaxed);
        }
        is_over
    }
}

impl BodyBytes {
    /// Adds bytes that have arrived; false if there is no room for them.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let inflight = &self.inflight;
        let before = inflight.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        inflight.peak.fetch_max(before + bytes, Ordering::Relaxed);
        before + bytes <= inflight.max
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        self.inflight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_maximum_and_release_their_bytes() {
        let inflight = Inflight::new(100);
        let (mut first, mut second) = (inflight.body(), inflight.body());
        assert!(first.add(60) && second.add(40) && !first.add(1));
        drop(first);
        assert_eq!(inflight.bytes(), 40);
        assert!(second.add(60));
        assert!(!inflight.is_over(90), "the body is still in memory");
        drop(second);
        assert_eq!(inflight.bytes(), 0);
        assert!(inflight.is_over(90) && !inflight.is_over(90), "once");
    }
}
