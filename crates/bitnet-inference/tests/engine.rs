//! Requests together and alone, cancelled, refused: the engine's promises, on a small model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_inference::{
    Engine, EngineOptions, Error, Event, FinishReason, Loaded, Request, RequestId, SamplingParams, load,
};
use bitnet_kernels::{Cpu, KernelSet, Pool};
use bitnet_models::{KvType, LoadOptions};
use bitnet_tokenizers::TokenId;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/strict-b158/model-i2_s.gguf")
}

fn engine(context: usize, prefill_chunk: usize) -> Engine {
    let Loaded { model, tokenization, .. } =
        load(&golden(), &LoadOptions::default(), &Pool::new(1)).expect("the golden model loads");
    let tokenizer = tokenization.map(|tokenization| Arc::clone(&tokenization.tokenizer));
    let options = EngineOptions { context, kv_type: KvType::F16, prefill_chunk };
    Engine::new(model, tokenizer, Cpu::new(KernelSet::detect(), 2), options).expect("memory for the cache")
}

fn request(prompt: &[u32], seed: u64, max_tokens: usize) -> Request {
    Request {
        prompt: prompt.iter().map(|&token| TokenId(token)).collect(),
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        max_tokens: Some(max_tokens),
        stop_ids: Vec::new(),
        stop_strings: Vec::new(),
    }
}

/// Runs until nothing is left to do; the tokens of each request in order.
fn finish(engine: &mut Engine, ids: &[RequestId]) -> Vec<Vec<TokenId>> {
    let mut tokens = vec![Vec::new(); ids.len()];
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    for event in events {
        if let Event::Token { id, token, .. } = event {
            let index = ids.iter().position(|known| *known == id).expect("a known request");
            tokens[index].push(token);
        }
    }
    tokens
}

#[test]
fn requests_together_give_the_tokens_they_give_alone() {
    let requests = [request(&[256, 1, 2, 3], 1, 12), request(&[256, 9], 2, 20), request(&[7; 70], 3, 9)];
    let alone: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut engine = engine(256, 16);
            let id = engine.submit(request.clone()).expect("a good request");
            finish(&mut engine, &[id]).remove(0)
        })
        .collect();
    for (context, prefill_chunk) in [(512, 128), (512, 5), (160, 7)] {
        let mut engine = engine(context, prefill_chunk);
        let ids = requests.clone().map(|request| engine.submit(request).expect("a good request"));
        assert_eq!(finish(&mut engine, &ids), alone, "context {context}, {prefill_chunk} tokens a step");
        assert_eq!(engine.free_blocks().0, engine.free_blocks().1, "every block is free again");
    }
}

#[test]
fn a_prompt_that_continues_the_last_one_is_not_computed_again() {
    let mut engine = engine(512, 64);
    let first = engine.submit(request(&[5; 40], 1, 10)).expect("a good request");
    let answer = finish(&mut engine, &[first]).remove(0);
    let mut prompt = vec![TokenId(5); 40];
    prompt.extend(&answer);
    prompt.push(TokenId(3));
    let longer = Request { prompt, ..request(&[0], 2, 8) };
    let id = engine.submit(longer.clone()).expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let Some(Event::Finished { finish: end, .. }) = events.last() else { panic!("an end") };
    assert_eq!(end.reason, FinishReason::Length);
    // All but the token sampled last, whose keys and values nobody needed, and the new one.
    assert_eq!(end.timings.cached_tokens, 49);
    let with_cache: Vec<_> =
        events.iter().filter_map(|e| if let Event::Token { token, .. } = e { Some(*token) } else { None }).collect();
    let mut fresh = self::engine(512, 64);
    let fresh_id = fresh.submit(longer).expect("a good request");
    assert_eq!(with_cache, finish(&mut fresh, &[fresh_id]).remove(0), "{id:?}");
}

#[test]
fn cancelled_requests_free_their_blocks_and_disturb_no_other() {
    let mut alone = engine(512, 16);
    let id = alone.submit(request(&[256, 4], 9, 30)).expect("a good request");
    let expected = finish(&mut alone, &[id]);

    let mut engine = engine(512, 16);
    let mut events = Vec::new();
    let waiting = engine.submit(request(&[3; 100], 1, 400)).expect("a good request");
    let kept = engine.submit(request(&[256, 4], 9, 30)).expect("a good request");
    let never_started = engine.submit(request(&[3; 10], 1, 400)).expect("a good request");
    engine.step(&mut events);
    engine.cancel(waiting);
    engine.cancel(never_started);
    let found = finish(&mut engine, &[kept]);
    let early = events.iter().filter(|e| matches!(e, Event::Token { id, .. } if *id == kept)).count();
    assert_eq!(found[0], expected[0][early..]);
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_numbers() {
    let mut engine = engine(64, 16);
    let refused = |engine: &mut Engine, request| engine.submit(request).expect_err("a refusal");
    assert!(matches!(refused(&mut engine, request(&[], 0, 1)), Error::EmptyPrompt));
    let error = refused(&mut engine, request(&[1, 512], 0, 1)).to_string();
    assert!(error.contains("prompt token 1 is 512") && error.contains("511"), "{error}");
    let error = refused(&mut engine, request(&[1; 60], 0, 5)).to_string();
    assert!(error.contains("60") && error.contains('5') && error.contains("64"), "{error}");
    let bad = Request { stop_strings: vec![String::new()], ..request(&[1], 0, 1) };
    assert!(matches!(refused(&mut engine, bad), Error::StopString { index: 0, .. }));
    assert!(!engine.is_busy());
}

#[test]
fn an_answer_without_a_limit_ends_where_the_context_does() {
    let mut engine = engine(64, 16);
    let id = engine.submit(Request { max_tokens: None, ..request(&[256, 4], 9, 1) }).expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let Some(Event::Finished { finish, .. }) = events.last() else { panic!("an end of {id:?}") };
    assert_eq!((finish.reason, finish.timings.generated_tokens), (FinishReason::Context, 62));
}
