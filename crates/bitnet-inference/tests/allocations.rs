//! A decode step allocates nothing, on any thread: counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_inference::{Engine, EngineOptions, Loaded, Request, SamplingParams, load};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{HeadMode, KvCache, LoadOptions};
use bitnet_tokenizers::TokenId;

/// The system's allocator, with a count of what is asked of it.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// Allocations of each of the last `counted` of `steps` decode steps of `batch` sequences.
fn allocations(head: HeadMode, sampling: &SamplingParams, batch: u32, steps: usize, counted: usize) -> Vec<usize> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let options = LoadOptions { head, ..LoadOptions::default() };
    let Loaded { model, .. } = load(&golden, &options, &cpu).expect("the golden model loads");
    let options = EngineOptions { context: 256, cache: 256 * batch as usize, ..EngineOptions::default() };
    let mut engine = Engine::new(model, None, cpu, options).expect("memory for the cache");
    for first in 0..batch {
        let prompt = vec![TokenId(first), TokenId(1), TokenId(2)];
        let request = Request { prompt, sampling: sampling.clone(), max_tokens: Some(250), ..Request::default() };
        engine.submit(request).expect("a good request");
    }
    // Room for what the steps report; a caller empties it after each.
    let mut events = Vec::with_capacity(4 * batch as usize);
    let mut step = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        engine.step(&mut events);
        events.clear();
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    (0..steps).map(|_| step()).skip(steps - counted).collect()
}

#[test]
fn a_decode_step_allocates_nothing() {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let all = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..SamplingParams::default() };
    let penalised = SamplingParams { repetition_penalty: 1.1, ..SamplingParams::default() };
    for head in [HeadMode::Full, HeadMode::Screened] {
        for sampling in [&greedy, &SamplingParams::default(), &all, &penalised] {
            for batch in [1, 3] {
                let counts = allocations(head, sampling, batch, 128, 64);
                // The pool notes what is in a block that has become full, and a sequence takes another one.
                let free = counts.iter().filter(|count| **count == 0).count();
                let borders = 2 * counts.len() / KvCache::BLOCK;
                assert!(free >= counts.len() - borders, "{head:?}, {batch} rows, {sampling:?}: {counts:?}");
                assert!(counts.iter().all(|count| *count <= 4 * batch as usize), "{counts:?}");
            }
        }
    }
}
