//! The threads of a server, with stacks that are large enough for every form of an answer.

use tokio::runtime::{Builder, Runtime};

use crate::text::{THREAD_STACK_BYTES, THREADS_MAX};

/// Threads that read and write HTTP. HTTP is little work compared to tokens, and the engine needs
/// the cores.
const HTTP_THREADS: usize = 2;
/// Stack of the engine's thread in bytes. It follows grammars that were compiled on a stack of
/// [`THREAD_STACK_BYTES`] at most.
const ENGINE_STACK_BYTES: usize = 2 * THREAD_STACK_BYTES;

/// The threads for HTTP and for text.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(THREADS_MAX)
        .thread_stack_size(THREAD_STACK_BYTES)
        .thread_name("bitnet-http")
        .enable_all()
        .build()
}

/// The thread that owns an engine: its stack is large enough for every form of an answer.
pub fn engine_thread() -> std::thread::Builder {
    std::thread::Builder::new()
        .name("bitnet-engine".to_owned())
        .stack_size(ENGINE_STACK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::FORM_STACK_BYTES;

    /// Recurses until this thread has used `bytes` of stack since `start`.
    fn use_stack(start: usize, bytes: usize) -> usize {
        let frame = std::hint::black_box([1u8; 1024]);
        if start.abs_diff(frame.as_ptr().addr()) >= bytes {
            return 0;
        }
        use_stack(start, bytes) + usize::from(frame[bytes % 1024])
    }

    fn stack_of(bytes: usize) -> bool {
        let here = 0u8;
        use_stack((&raw const here).addr(), bytes) > 0
    }

    /// A part of a stack that a test may use without the thread's own frames overflowing it.
    const PART: usize = 7;

    #[test]
    fn threads_have_more_stack_than_the_helper_that_compiled_a_form() {
        let runtime = runtime().expect("threads");
        let on_text_thread = runtime.spawn_blocking(|| stack_of(4 * FORM_STACK_BYTES / 8 * PART));
        assert!(runtime.block_on(on_text_thread).expect("no panic"));
        let on_engine_thread = engine_thread().spawn(|| stack_of(8 * FORM_STACK_BYTES / 8 * PART));
        assert!(
            on_engine_thread
                .expect("a thread")
                .join()
                .expect("no panic")
        );
    }
}
