//! [`Recording`]: ends the record of a request.
//!
//! A record ends when the last byte of the answer has been sent, or when the client disconnects.
//! The body of the answer holds the recording ([`RecordedBody`]), and dropping the body ends it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use bitnet_inference::Priority;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::connections::PeerRequest;
use crate::record::Record;
#[cfg(feature = "otlp")]
use crate::record::RequestEnd;
use crate::state::{App, UnderWay};

/// Recorded status of a request whose client disconnected before the answer began; nginx uses the
/// same.
const CLIENT_GONE: u16 = 499;

/// Ends the record when it is dropped.
pub(crate) struct Recording {
    pub(crate) record: Arc<Record>,
    pub(crate) app: Arc<App>,
    /// `None` if the client disconnected before the answer began.
    pub(crate) status: Option<StatusCode>,
    pub(crate) is_complete: bool,
    pub(crate) _under_way: UnderWay,
    /// Marks the connection as busy.
    pub(crate) _peer: Option<PeerRequest>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let record = &self.record;
        // Measured once, so that log, Prometheus and OpenTelemetry show the same number.
        let duration = record.elapsed();
        record.log(self.status, self.is_complete, duration);
        let status = self.status.map_or(CLIENT_GONE, |status| status.as_u16());
        // The requests of batches did not come over HTTP, and wait for all others.
        if record.details().priority == Priority::Interactive {
            let http = &self.app.http;
            http.ended(record.route(), record.method(), status, duration);
        }
        #[cfg(feature = "otlp")]
        if let Some(otlp) = self.app.otlp.get() {
            otlp.ended(
                record,
                &RequestEnd {
                    status,
                    is_complete: self.is_complete,
                    duration,
                },
            );
        }
    }
}

/// A body that ends the record of its request when it ends.
pub(crate) struct RecordedBody {
    body: Body,
    recording: Recording,
}

impl RecordedBody {
    pub(crate) fn new(body: Body, recording: Recording) -> Self {
        Self { body, recording }
    }
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.recording.is_complete |= frame.is_none();
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        self.recording.is_complete |= self.body.is_end_stream();
    }
}
