//! The helper's side: a process that limits itself, then answers jobs from standard input on
//! standard output until the input ends.
//!
//! A frame is a length n in 4 bytes (little endian), then n bytes. The first frame prepares the
//! helper; each further one is a job. The helper answers every frame with one frame.

use std::io::{Read, Result, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Maximum length of a frame in bytes.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// A helper ends by itself after this number of jobs, so that memory that a library never frees
/// does not add up.
const JOBS_MAX: usize = 256;
/// Bytes of address space that the allocator may reserve.
#[cfg(unix)]
const RESERVED_BYTES: u64 = 256 << 20;
/// The exit code of a helper whose job panicked.
pub(crate) const PANICKED: i32 = 101;

/// Limits of one helper process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelperLimits {
    /// Bytes of stack.
    pub stack_bytes: usize,
    /// Bytes of memory that jobs may take, besides the memory of the preparation.
    pub memory_bytes: usize,
    /// Wall-clock time of one job.
    pub time: Duration,
}

/// Answers jobs until standard input ends, and never returns. `prepare` gets the first frame and
/// returns the function that answers jobs, or the message of an error.
///
/// The main thread only reads, so the process ends at once when its parent ends, even during a job.
pub fn answer_jobs<F>(
    limits: HelperLimits,
    prepare: impl FnOnce(&[u8]) -> std::result::Result<F, String> + Send + 'static,
) -> !
where
    F: FnMut(&[u8]) -> Vec<u8>,
{
    let (frames, received) = channel();
    let worker = std::thread::Builder::new()
        .stack_size(limits.stack_bytes)
        .spawn(move || {
            let work = AssertUnwindSafe(|| work(limits.memory_bytes, &received, prepare));
            std::process::exit(match catch_unwind(work) {
                Ok(()) => 0,
                Err(_) => PANICKED,
            })
        });
    if worker.is_err() {
        std::process::exit(1);
    }
    let mut input = std::io::stdin().lock();
    while let Ok(frame) = read_frame(&mut input) {
        if frames.send(frame).is_err() {
            break;
        }
    }
    std::process::exit(0)
}

fn work<F: FnMut(&[u8]) -> Vec<u8>>(
    memory_bytes: usize,
    frames: &Receiver<Vec<u8>>,
    prepare: impl FnOnce(&[u8]) -> std::result::Result<F, String>,
) {
    let Ok(first) = frames.recv() else { return };
    let mut out = std::io::stdout().lock();
    let mut answer = match prepare(&first) {
        Ok(answer) => answer,
        Err(problem) => {
            // The parent reads the reason; if the parent has ended, this process ends anyway.
            let _ = write_frame(&mut out, problem.as_bytes());
            return;
        }
    };
    drop(first);
    limit_memory(memory_bytes);
    if write_frame(&mut out, b"").is_err() {
        return;
    }
    for job in frames.iter().take(JOBS_MAX) {
        if write_frame(&mut out, &answer(&job)).is_err() {
            return;
        }
    }
}

/// Limits writable memory to `bytes` more than now, and disables core dumps.
///
/// The allocator reserves addresses before it uses them, so the limit on addresses is higher.
#[cfg(unix)]
fn limit_memory(bytes: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let bytes = bytes as u64;
    let (addresses, data) = crate::memory::in_use().unwrap_or((1 << 30, 1 << 30));
    let limits = [
        (Resource::Data, data + bytes),
        (Resource::As, addresses + 2 * bytes + RESERVED_BYTES),
        (Resource::Core, 0),
    ];
    for (resource, wanted) in limits {
        let limit = getrlimit(resource);
        let current = Some(limit.current.map_or(wanted, |limit| limit.min(wanted)));
        // If the system refuses, the current limits remain.
        let _ = setrlimit(
            resource,
            Rlimit {
                current,
                maximum: limit.maximum,
            },
        );
    }
}

#[cfg(not(unix))]
fn limit_memory(_bytes: usize) {}

pub(crate) fn read_frame(input: &mut impl Read) -> Result<Vec<u8>> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(std::io::Error::other(format!("a frame of {len} bytes")));
    }
    let mut frame = vec![0; len];
    input.read_exact(&mut frame)?;
    Ok(frame)
}

pub(crate) fn write_frame(out: &mut impl Write, frame: &[u8]) -> Result<()> {
    let len = u32::try_from(frame.len())
        .ok()
        .filter(|len| *len as usize <= FRAME_BYTES_MAX)
        .ok_or_else(|| std::io::Error::other(format!("a frame of {} bytes", frame.len())))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(frame)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_memory_is_taken() {
        let refused = read_frame(&mut &[0xff; 4][..]).expect_err("4 GiB");
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"abc").expect("a frame");
        assert_eq!(bytes, b"\x03\0\0\0abc");
        assert_eq!(read_frame(&mut &bytes[..]).expect("a frame"), b"abc");
    }
}
