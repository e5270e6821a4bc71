//! A decode step allocates nothing, on any thread: counted by the allocator.
//!
//! A helping thread creates its buffers with its first shares of the work and keeps them. The step
//! in which this happens depends on the system's scheduler, so the test counts its allocations over
//! all steps, and the calling thread's allocations for each step.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_inference::{Device, Engine, EngineOptions, Loaded, Request, SamplingParams, load};
use bitnet_models::{HeadMode, KvCache, LoadOptions};
use bitnet_tokenizers::TokenId;

/// The system's allocator with a count of allocations.
struct Counting;

static BY_CALLER: AtomicUsize = AtomicUsize::new(0);
static BY_OTHERS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    let counter = if IS_CALLER.get() {
        &BY_CALLER
    } else {
        &BY_OTHERS
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Maximum number of allocations of a helping thread: its buffers, some of which grow once.
const BY_OTHERS_MAX: usize = 16;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: calls the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller guarantees the same preconditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees the same preconditions.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller guarantees the same preconditions.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// For `steps` decode steps of `batch` sequences: allocations by this thread in each of the last
/// `counted` steps, and allocations by other threads in all steps.
fn allocations(
    head: HeadMode,
    sampling: &SamplingParams,
    batch: u32,
    steps: usize,
    counted: usize,
) -> (Vec<usize>, usize) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let device = Device::cpu(2);
    let options = LoadOptions {
        head,
        ..LoadOptions::default()
    };
    let Loaded { model, .. } = load(&golden, &options, device).expect("the golden model loads");
    let options = EngineOptions {
        context: 256,
        cache: 256 * batch as usize,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(model, None, device, options).expect("memory for the cache");
    for first in 0..batch {
        let prompt = vec![TokenId(first), TokenId(1), TokenId(2)];
        let request = Request {
            prompt,
            sampling: sampling.clone(),
            max_tokens: Some(250),
            ..Request::default()
        };
        engine.submit(request).expect("a good request");
    }
    // Room for the events of the steps; a caller clears it after each step.
    let mut events = Vec::with_capacity(4 * batch as usize);
    let by_others = BY_OTHERS.load(Ordering::Relaxed);
    let mut step = || {
        let before = BY_CALLER.load(Ordering::Relaxed);
        engine.step(&mut events);
        events.clear();
        BY_CALLER.load(Ordering::Relaxed) - before
    };
    let counts = (0..steps).map(|_| step()).skip(steps - counted).collect();
    (counts, BY_OTHERS.load(Ordering::Relaxed) - by_others)
}

#[test]
fn a_decode_step_allocates_nothing() {
    IS_CALLER.set(true);
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let all = SamplingParams {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let penalised = SamplingParams {
        repetition_penalty: 1.1,
        ..SamplingParams::default()
    };
    for head in [HeadMode::Full, HeadMode::Screened] {
        for sampling in [&greedy, &SamplingParams::default(), &all, &penalised] {
            for batch in [1, 3] {
                let (counts, by_others) = allocations(head, sampling, batch, 128, 64);
                assert!(
                    by_others <= BY_OTHERS_MAX,
                    "{head:?}, {batch} rows, {sampling:?}: {by_others} by others"
                );
                // The pool records the content of a full block, and the sequence takes another
                // block.
                let free = counts.iter().filter(|count| **count == 0).count();
                let borders = 2 * counts.len() / KvCache::BLOCK;
                assert!(
                    free >= counts.len() - borders,
                    "{head:?}, {batch} rows, {sampling:?}: {counts:?}"
                );
                assert!(
                    counts.iter().all(|count| *count <= 4 * batch as usize),
                    "{counts:?}"
                );
            }
        }
    }
}
