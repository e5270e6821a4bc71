//! [`AnswerSink`]: passes the engine's replies for one answer to its handler, and keeps the
//! answer's place in the queue. [`observe`] logs and counts the events of the engine's thread.

use std::sync::Arc;

use bitnet_inference::{Observation, PanickedTask, Piece, Reply, ReplySink};
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::Metrics;
use crate::queue::Ticket;

/// The destination of the replies for one answer.
pub(crate) struct AnswerSink {
    /// The index among the answers that share `replies`.
    choice: usize,
    /// Holds at most as many replies as the answer has tokens, which the context bounds.
    replies: UnboundedSender<(usize, Reply)>,
    /// `None` after the end.
    ticket: Option<Ticket>,
}

impl AnswerSink {
    pub(crate) fn new(
        choice: usize,
        replies: UnboundedSender<(usize, Reply)>,
        ticket: Ticket,
    ) -> Self {
        Self {
            choice,
            replies,
            ticket: Some(ticket),
        }
    }
}

impl ReplySink for AnswerSink {
    /// Frees the answer's place before it sends the last reply, so that a handler that gets this
    /// reply finds the place free.
    fn send(&mut self, reply: Reply) {
        match &reply {
            // Handlers need no progress.
            Reply::Piece(Piece::Prompt { logprobs, .. }) if logprobs.is_empty() => return,
            Reply::Started { .. } => {
                if let Some(ticket) = &mut self.ticket {
                    ticket.start();
                }
            }
            Reply::Piece(Piece::End { .. }) => {
                if let Some(ticket) = self.ticket.take() {
                    ticket.finish();
                }
            }
            // A failed request says nothing about the duration of answers.
            Reply::Failed(_) => drop(self.ticket.take()),
            Reply::Piece(_) => {}
        }
        // If the channel is closed, `is_closed` says so before the next step.
        let _ = self.replies.send((self.choice, reply));
    }

    fn is_closed(&self) -> bool {
        self.replies.is_closed()
    }
}

/// Counts the engine's steps, and logs its panics and the failures of its device.
pub(crate) fn observe(metrics: &Arc<Metrics>, observation: Observation<'_>) {
    let (message, during) = match observation {
        Observation::Stepped { tokens } => return metrics.stepped(tokens),
        Observation::Panicked { message, during } => (message, during),
        Observation::DeviceFailed {
            problem,
            num_requests,
        } => {
            return tracing::error!(
                problem,
                under_way = num_requests,
                "the device failed, and the requests under way with it; the model is loaded again"
            );
        }
        Observation::DeviceReplaced => return tracing::info!("the model is loaded again"),
    };
    match during {
        PanickedTask::Submit => {
            tracing::error!(
                panic = message,
                "a request made the engine panic when it was submitted"
            )
        }
        PanickedTask::Step { num_requests } => tracing::error!(
            panic = message,
            under_way = num_requests,
            "the engine panicked; a new one runs each request under way again, alone"
        ),
        PanickedTask::Rerun => tracing::error!(
            panic = message,
            "a request made the engine panic again, alone, and has failed"
        ),
        PanickedTask::Call => tracing::error!(panic = message, "the engine panicked in a call"),
    }
}

#[cfg(test)]
mod tests {
    use bitnet_inference::{Failure, Finish, FinishReason, Priority, Timings};
    use std::time::Duration;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::queue::Queue;

    fn sink() -> (
        Arc<Queue>,
        AnswerSink,
        tokio::sync::mpsc::UnboundedReceiver<(usize, Reply)>,
    ) {
        let queue = Arc::new(Queue::new(10, 1000));
        let ticket = queue
            .enter(&[3], Priority::Interactive)
            .expect("room")
            .remove(0);
        let (replies, receiver) = unbounded_channel();
        (
            Arc::clone(&queue),
            AnswerSink::new(2, replies, ticket),
            receiver,
        )
    }

    #[test]
    fn an_answer_waits_then_runs_then_leaves_the_queue() {
        let (queue, mut sink, mut replies) = sink();
        assert_eq!((queue.counts().waiting, queue.counts().running), (1, 0));
        sink.send(Reply::Started {
            queued: Duration::ZERO,
        });
        assert_eq!((queue.counts().waiting, queue.counts().running), (0, 1));
        let finish = Finish {
            reason: FinishReason::Stop,
            stop_string: None,
            timings: Timings::default(),
            pooled: None,
        };
        sink.send(Reply::Piece(Piece::End {
            text: String::new(),
            finish,
        }));
        assert_eq!((queue.counts().waiting, queue.counts().running), (0, 0));
        assert!(matches!(replies.try_recv(), Ok((2, Reply::Started { .. }))));
        assert!(matches!(
            replies.try_recv(),
            Ok((2, Reply::Piece(Piece::End { .. })))
        ));
    }

    #[test]
    fn failed_and_dropped_answers_leave_the_queue() {
        let (queue, mut sink, replies) = self::sink();
        sink.send(Reply::Failed(Failure::Stopped));
        assert_eq!(queue.counts().waiting, 0);
        assert!(!sink.is_closed());
        drop(replies);
        assert!(sink.is_closed());
        let (queue, sink, _replies) = self::sink();
        drop(sink);
        assert_eq!(queue.counts().waiting, 0);
    }
}
