//! [`SharedBody`]: a request's body of which the rest can be read after whoever was to read it has
//! refused.
//!
//! A connection that closes while its client still sends is broken for the client, which then often
//! does not see the answer that says why.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

/// For a client to send what nobody wants.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A body that two hold, of whom one reads at a time.
#[derive(Clone)]
pub(crate) struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// Reads what is left, `bytes_max` at most, and forgets it.
    pub(crate) async fn drain(self, bytes_max: usize) {
        let mut rest = Limited::new(self, bytes_max);
        let drained = async { while let Some(Ok(_)) = rest.frame().await {} };
        // Whoever takes longer has to live without the answer.
        let _ = timeout(DRAIN_TIME, drained).await;
    }

    fn lock(&self) -> MutexGuard<'_, Body> {
        // A body that panicked is not polled again by whoever saw that, and ends by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut *self.lock()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}
