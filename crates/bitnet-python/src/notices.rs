//! Answers for `asyncio`: the engine's thread puts replies into a mailbox, and a thread of Python's
//! that waits in [`Notices::wait`] learns of mailboxes that have mail.
//!
//! The engine's thread never takes the interpreter: a Python program that holds it for long would
//! stop all requests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use bitnet_inference::{Failure, Piece, Reply, ReplySink};
use pyo3::prelude::*;

use crate::answer::{Collected, PieceTuple, WholeTuple, piece_tuple};
use crate::error;
use crate::wait::lock;

/// The number of a mailbox that has mail.
pub(crate) enum Notice {
    Mail(u64),
    Close,
}

/// Replies that were not read yet.
#[derive(Default)]
struct Mailbox {
    replies: Mutex<VecDeque<Result<Piece, Failure>>>,
    is_closed: AtomicBool,
}

/// Fills a mailbox.
pub(crate) struct MailboxSink {
    mailbox: Arc<Mailbox>,
    id: u64,
    /// Whether only the end is worth a notice.
    is_whole: bool,
    notices: Sender<Notice>,
}

impl ReplySink for MailboxSink {
    fn send(&mut self, reply: Reply) {
        let reply = match reply {
            Reply::Started { .. } => return,
            Reply::Piece(piece) => Ok(piece),
            Reply::Failed(failure) => Err(failure),
        };
        let is_last = matches!(reply, Err(_) | Ok(Piece::End { .. }));
        let mut replies = lock(&self.mailbox.replies);
        let was_empty = replies.is_empty();
        replies.push_back(reply);
        drop(replies);
        if is_last || was_empty && !self.is_whole {
            // If the model is gone, so is the reader of notices.
            let _ = self.notices.send(Notice::Mail(self.id));
        }
    }

    fn is_closed(&self) -> bool {
        self.mailbox.is_closed.load(Ordering::Relaxed)
    }
}

/// An answer whose pieces are taken after a notice. Dropping it cancels the request.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct PolledAnswer {
    mailbox: Arc<Mailbox>,
    collected: Mutex<Collected>,
}

impl PolledAnswer {
    /// The answer and the sink that fills it. `is_whole`: send a notice at the end only.
    pub(crate) fn new(id: u64, is_whole: bool, notices: Sender<Notice>) -> (Self, MailboxSink) {
        let mailbox = Arc::new(Mailbox::default());
        let sink = MailboxSink {
            mailbox: Arc::clone(&mailbox),
            id,
            is_whole,
            notices,
        };
        let collected = Mutex::default();
        (Self { mailbox, collected }, sink)
    }

    fn take(&self) -> PyResult<Option<Piece>> {
        let reply = lock(&self.mailbox.replies).pop_front();
        reply.transpose().map_err(error::failure)
    }
}

#[pymethods]
impl PolledAnswer {
    /// The next piece, if it has arrived.
    fn poll(&self) -> PyResult<Option<PieceTuple>> {
        while let Some(piece) = self.take()? {
            let piece = piece_tuple(piece);
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    /// The whole answer, if its end has arrived.
    fn poll_whole(&self) -> PyResult<Option<WholeTuple>> {
        while let Some(piece) = self.take()? {
            let whole = lock(&self.collected).add(piece);
            if whole.is_some() {
                return Ok(whole);
            }
        }
        Ok(None)
    }

    /// Cancels the request.
    fn cancel(&self) {
        self.mailbox.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for PolledAnswer {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Tells which answers have new pieces.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct Notices {
    sender: Sender<Notice>,
    receiver: Mutex<Receiver<Notice>>,
}

impl Notices {
    pub(crate) fn new(sender: Sender<Notice>, receiver: Receiver<Notice>) -> Self {
        Self {
            sender,
            receiver: Mutex::new(receiver),
        }
    }
}

#[pymethods]
impl Notices {
    /// Waits for notices and returns the numbers of the answers; `None` after `close`.
    fn wait(&self, py: Python<'_>) -> Option<Vec<u64>> {
        py.detach(|| {
            let receiver = lock(&self.receiver);
            let mut ids = Vec::new();
            let mut notice = receiver.recv().ok();
            while let Some(Notice::Mail(id)) = notice {
                ids.push(id);
                match receiver.try_recv() {
                    Ok(next) => notice = Some(next),
                    Err(_) => return Some(ids),
                }
            }
            None
        })
    }

    /// Ends `wait`, now or when it is next called.
    fn close(&self) {
        // This object has the receiver, too.
        let _ = self.sender.send(Notice::Close);
    }
}
