//! The server's log on standard error, written so that no reader and no disk can stop the server.
//!
//! Lines go into a bounded queue; one thread takes them out and writes them. A full queue or a
//! failed write loses lines and counts them; the threads that serve neither wait nor fail.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::LogFormat;

/// Maximum number of queued lines.
const QUEUE_LINES: usize = 8192;
/// Maximum number of queued bytes.
const QUEUE_BYTES: usize = 4 << 20;
/// Pause of the thread between two looks at an empty queue.
const PAUSE: Duration = Duration::from_millis(20);
/// Number of such pauses before the thread waits to be woken.
const PAUSES_MAX: u32 = 50;
/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log. Dropping it writes the queued lines, for a second at most.
pub struct Log {
    queue: LogQueue,
}

/// The sending side of the queue: never blocks, never fails.
#[derive(Clone)]
struct LogQueue {
    messages: SyncSender<Message>,
    queued_bytes: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// Answered when every earlier line has been written.
    Flush(SyncSender<()>),
}

impl Log {
    /// Starts the log: the subscriber of `tracing`, its thread, and a panic hook that logs.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(format: LogFormat, level: LevelFilter) -> std::io::Result<Self> {
        let is_terminal = std::io::stderr().is_terminal();
        let queue = LogQueue::start(std::io::stderr())?;
        let log = tracing_subscriber::fmt()
            .with_writer(queue.clone())
            // With the default, a failure is reported with `eprintln!`, which panics if standard
            // error cannot be written.
            .log_internal_errors(false)
            .with_ansi(is_terminal)
            .with_target(false)
            .with_max_level(level);
        let is_json = match format {
            LogFormat::Auto => !is_terminal,
            LogFormat::Json => true,
            LogFormat::Text => false,
        };
        if is_json {
            log.json().flatten_event(true).init();
        } else {
            log.init();
        }
        // The hook only formats and queues, so it cannot panic, which would abort the process.
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        Ok(Self { queue })
    }

    /// The number of lines lost so far; it keeps counting.
    pub fn lost_lines(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.queue.lost)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(LAST_LINES);
    }
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (messages, received) = sync_channel(QUEUE_LINES);
        let queue = Self {
            messages,
            queued_bytes: Arc::default(),
            lost: Arc::default(),
        };
        let (queued_bytes, lost) = (Arc::clone(&queue.queued_bytes), Arc::clone(&queue.lost));
        std::thread::Builder::new()
            .name("bitnet-log".to_owned())
            .spawn(move || write_lines(out, &received, &queued_bytes, &lost))?;
        Ok(queue)
    }

    fn push(&self, line: &[u8]) {
        let before = self.queued_bytes.fetch_add(line.len(), Ordering::Relaxed);
        let is_queued = before + line.len() <= QUEUE_BYTES
            && self.messages.try_send(Message::Line(line.to_vec())).is_ok();
        if !is_queued {
            self.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the queued lines have been written, for `patience` at most.
    fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (done, is_done) = sync_channel(1);
        while self
            .messages
            .try_send(Message::Flush(done.clone()))
            .is_err()
        {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // The lines are lost if no reader takes them in time.
        let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// The log thread.
fn write_lines(
    mut out: impl Write,
    messages: &Receiver<Message>,
    queued_bytes: &AtomicUsize,
    lost: &AtomicU64,
) {
    let (mut is_torn, mut reported) = (false, 0);
    while let Some(message) = next(messages) {
        let line = match message {
            Message::Line(line) => line,
            Message::Flush(done) => {
                // `flush` may have stopped waiting.
                let _ = done.send(());
                continue;
            }
        };
        // A write that failed halfway has left the beginning of a line.
        let begun = if is_torn {
            out.write_all(b"\n")
        } else {
            Ok(())
        };
        let written = begun.and_then(|()| out.write_all(&line));
        queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
        is_torn = written.is_err();
        if is_torn {
            lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let lost = lost.load(Ordering::Relaxed);
        if lost > reported {
            // This goes into the queue again, which never blocks.
            tracing::warn!(lines = lost - reported, "lines of the log were lost");
            reported = lost;
        }
    }
}

/// The next message; `None` if the process ends. Looks for it again and again before it waits for
/// it: a sender must wake a thread that waits, which costs a request more than its line does.
fn next(messages: &Receiver<Message>) -> Option<Message> {
    for _ in 0..PAUSES_MAX {
        match messages.try_recv() {
            Ok(message) => return Some(message),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::thread::sleep(PAUSE),
        }
    }
    messages.recv().ok()
}

/// Takes the text of one event.
impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogQueue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Result};
    use std::sync::Mutex;
    use std::sync::mpsc::Sender;

    use super::*;

    /// Writes into a vector, or fails as `fault` says.
    struct Out {
        text: Arc<Mutex<Vec<u8>>>,
        fault: Box<dyn FnMut() -> Result<()> + Send>,
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            (self.fault)()?;
            self.text.lock().expect("a text").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn start(
        fault: impl FnMut() -> Result<()> + Send + 'static,
    ) -> (LogQueue, Arc<Mutex<Vec<u8>>>) {
        let text = Arc::default();
        let out = Out {
            text: Arc::clone(&text),
            fault: Box::new(fault),
        };
        (LogQueue::start(out).expect("a thread"), text)
    }

    #[test]
    fn lines_are_written_in_order() {
        let (queue, text) = start(|| Ok(()));
        (0..100).for_each(|index| queue.push(format!("{index}\n").as_bytes()));
        queue.flush(Duration::from_secs(60));
        let expected: String = (0..100).map(|index| format!("{index}\n")).collect();
        assert_eq!(*text.lock().expect("a text"), expected.as_bytes());
        assert_eq!(queue.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stalled_reader_loses_lines_and_delays_no_thread() {
        let (wake, sleep): (Sender<()>, _) = std::sync::mpsc::channel();
        let (queue, text) = start(move || {
            // Sleep until the sender is dropped.
            let _ = sleep.recv();
            Ok(())
        });
        let num_lines = 3 * QUEUE_LINES as u64;
        (0..num_lines).for_each(|_| queue.push(b"line\n"));
        let lost = queue.lost.load(Ordering::Relaxed);
        assert!(lost >= 2 * QUEUE_LINES as u64 - 1, "{lost} lost");
        queue.flush(Duration::from_millis(20));
        drop(wake);
        queue.flush(Duration::from_secs(60));
        let written = text.lock().expect("a text").len() as u64 / 5;
        assert_eq!(written + lost, num_lines);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes() {
        let (_wake, sleep): (Sender<()>, _) = std::sync::mpsc::channel();
        let (queue, _) = start(move || {
            let _ = sleep.recv();
            Ok(())
        });
        (0..8).for_each(|_| queue.push(&vec![b'x'; QUEUE_BYTES / 4]));
        assert!(queue.queued_bytes.load(Ordering::Relaxed) <= QUEUE_BYTES);
        assert!(queue.lost.load(Ordering::Relaxed) >= 3);
    }

    #[test]
    fn a_disk_that_was_full_gets_whole_lines_again() {
        let mut num_failures = 3;
        let (queue, text) = start(move || {
            num_failures -= i32::from(num_failures > 0);
            match num_failures {
                0 => Ok(()),
                _ => Err(Error::from(ErrorKind::StorageFull)),
            }
        });
        for line in ["a\n", "b\n", "c\n", "d\n"] {
            queue.push(line.as_bytes());
        }
        queue.flush(Duration::from_secs(60));
        assert_eq!(*text.lock().expect("a text"), b"\nc\nd\n");
        assert_eq!(queue.lost.load(Ordering::Relaxed), 2);
    }
}
