//! [`SharedBody`]: a request's body whose rest can be read after a handler has refused it.
//!
//! If a connection closes while its client still sends, the client sees a broken connection and
//! often not the answer that says why.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

/// Time for a client to send the rest of a refused body.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A body with two owners; one reads at a time.
#[derive(Clone)]
pub(crate) struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// Reads and discards the rest of the body, at most `bytes_max`.
    pub(crate) async fn drain(self, bytes_max: usize) {
        let mut rest = Limited::new(self, bytes_max);
        let drained = async { while let Some(Ok(_)) = rest.frame().await {} };
        // A client that takes longer may not see the answer.
        let _ = timeout(DRAIN_TIME, drained).await;
    }

    fn lock(&self) -> MutexGuard<'_, Body> {
        // A body that panicked ends by itself.
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
