//! A hybrid model, whose layers of linear attention keep a state for each sequence: chunks,
//! batches, preemption, drafts and shared prefixes change no bit of an answer.
//!
//! The golden model has six such layers and two of attention, so keys and values of later layers
//! depend on the states, too. Tests of `bitnet-models` check its logits.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_inference::{
    Device, Engine, EngineOptions, Event, ModelRunner, Request, RequestId, SamplingParams,
};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{LanguageModel, LoadOptions};
use bitnet_tokenizers::TokenId;

fn engine(options: EngineOptions) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf");
    let gguf = Arc::new(Gguf::open(&path).expect("the golden file opens"));
    let cpu = || Cpu::new(KernelSet::detect(), 2);
    let model = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &cpu());
    let model = Arc::new(model.expect("the golden model loads"));
    assert!(model.info().state_len > 0, "a model with states");
    let runner = ModelRunner::new(model, cpu(), Device::cpu(2), &options);
    Engine::with_runner(
        Box::new(runner.expect("memory for the cache")),
        None,
        options,
    )
}

/// Options of an engine with room for everything.
fn roomy() -> EngineOptions {
    EngineOptions {
        context: 512,
        cache: 2048,
        prefill_chunk: 64,
        ..EngineOptions::default()
    }
}

fn request(prompt: &[u32], seed: u64, max_tokens: usize) -> Request {
    Request {
        prompt: prompt.iter().map(|&token| TokenId(token)).collect(),
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (seed + i * 7) % 256).collect()
}

/// Runs requests together; returns the tokens of each, and how many tokens of its prompt were
/// cached.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<TokenId>, usize)> {
    let submit = |request: &Request| engine.submit(request.clone()).expect("a good request");
    let ids: Vec<RequestId> = requests.iter().map(submit).collect();
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
    let answer = |wanted: RequestId| {
        let (mut tokens, mut cached) = (Vec::new(), 0);
        for event in &events {
            match event {
                Event::Token { id, token, .. } if *id == wanted => tokens.push(*token),
                Event::Finished { id, finish, .. } if *id == wanted => {
                    cached = finish.timings.cached_tokens;
                }
                _ => {}
            }
        }
        (tokens, cached)
    };
    ids.into_iter().map(answer).collect()
}

/// The tokens of a request that runs alone in an engine.
fn alone(request: &Request) -> Vec<TokenId> {
    run(&mut engine(roomy()), std::slice::from_ref(request))
        .remove(0)
        .0
}

fn tokens(answers: &[(Vec<TokenId>, usize)]) -> Vec<Vec<TokenId>> {
    answers.iter().map(|(tokens, _)| tokens.clone()).collect()
}

#[test]
fn chunks_and_batches_change_no_token_of_a_model_with_a_state() {
    let requests = [
        request(&prompt(1, 100), 1, 12),
        request(&prompt(2, 3), 2, 40),
        request(&prompt(3, 64), 3, 9),
        request(&prompt(4, 31), 4, 70),
    ];
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for prefill_chunk in [1, 7, 33, 128] {
        let options = EngineOptions {
            prefill_chunk,
            ..roomy()
        };
        let found = run(&mut engine(options), &requests);
        assert_eq!(tokens(&found), expected, "chunks of {prefill_chunk}");
    }
}

#[test]
fn a_preempted_sequence_with_a_state_gives_the_same_tokens() {
    let requests: Vec<Request> = (0..5)
        .map(|i| request(&prompt(10 + i, 4 + 9 * i), u64::from(i), 80))
        .collect();
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for states in [3, 5, 7, 80] {
        let mut engine = engine(EngineOptions {
            context: 128,
            cache: 192,
            states,
            ..roomy()
        });
        assert_eq!(tokens(&run(&mut engine, &requests)), expected);
        assert!(engine.counts().preemptions > 0);
    }
}

#[test]
fn refused_drafts_restore_the_state() {
    let repetitive: Vec<u32> = (0..60).map(|i| 40 + i % 4).collect();
    let greedy = |request: Request| Request {
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        ..request
    };
    // With only two different tokens, answers often repeat themselves, and often do not.
    let of_two_tokens = |mut request: Request| {
        request.sampling.logit_bias = vec![(TokenId(40), 100.0), (TokenId(41), 100.0)];
        request
    };
    let requests = [
        of_two_tokens(request(&repetitive, 3, 60)),
        greedy(request(&repetitive, 3, 90)),
        of_two_tokens(request(&prompt(7, 50), 1, 60)),
    ];
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for (draft_max, draft_adapts) in [(1, false), (5, false), (16, false), (16, true)] {
        let options = EngineOptions {
            draft_max,
            draft_adapts,
            ..roomy()
        };
        let mut engine = engine(options);
        for (request, expected) in requests.iter().zip(&expected) {
            let (found, _) = run(&mut engine, std::slice::from_ref(request)).remove(0);
            assert_eq!(found, *expected, "drafts of {draft_max}");
        }
        let counts = engine.counts();
        // Times decide how much an engine that adapts drafts.
        if !draft_adapts {
            assert!(counts.accepted_tokens > 0, "{counts:?}");
            assert!(counts.accepted_tokens < counts.drafted_tokens, "{counts:?}");
        }
    }
}

#[test]
fn a_longer_conversation_computes_at_most_one_block_again() {
    let mut engine = engine(roomy());
    let mut conversation = prompt(5, 75);
    let mut cached = Vec::new();
    for turn in 0..4 {
        let request = request(&conversation, turn, 30);
        let (answer, hit) = run(&mut engine, std::slice::from_ref(&request)).remove(0);
        assert_eq!(answer, alone(&request), "turn {turn}");
        cached.push((hit, conversation.len()));
        conversation.extend(answer.iter().map(|token| token.0));
        conversation.extend(prompt(6 + turn as u32, 11));
    }
    // Each turn resumes at the last block border of the previous turn, whose last token was never
    // computed.
    let computed: Vec<usize> = cached.iter().skip(1).map(|(hit, len)| len - hit).collect();
    assert!(computed.iter().all(|n| *n < 32 + 1 + 11), "{cached:?}");
}

#[test]
fn a_prefix_is_shared_from_the_second_time_that_requests_diverge_at_it() {
    let mut engine = engine(roomy());
    let beginning = prompt(5, 70);
    let ask = |engine: &mut Engine, end: u32| {
        let request = request(&[&beginning[..], &prompt(end, 40)].concat(), 1, 5);
        let (answer, cached) = run(engine, std::slice::from_ref(&request)).remove(0);
        assert_eq!(answer, alone(&request));
        cached
    };
    // The first request saves its state at 96. The second finds keys up to 64 but no state, and
    // saves one there.
    assert_eq!(ask(&mut engine, 100), 0);
    assert_eq!(ask(&mut engine, 101), 0);
    assert_eq!(ask(&mut engine, 102), 64);
    assert_eq!(ask(&mut engine, 103), 64);
    // The same prompt again resumes at its last border.
    assert_eq!(ask(&mut engine, 100), 96);
}

#[test]
fn the_same_prompt_computes_at_most_one_block_again() {
    for len in [32, 33, 95, 96, 97, 128, 160] {
        let request = request(&prompt(3, len), 1, 40);
        let expected = alone(&request);
        let mut engine = engine(roomy());
        for cached in [0, (len as usize - 1) / 32 * 32] {
            let found = run(&mut engine, std::slice::from_ref(&request)).remove(0);
            assert_eq!(
                found,
                (expected.clone(), cached),
                "a prompt of {len} tokens"
            );
        }
    }
}

#[test]
fn prompts_with_a_common_prefix_compute_it_once() {
    let common = prompt(9, 150);
    let mut requests: Vec<Request> = (0..6).map(|seed| request(&common, seed, 6)).collect();
    requests.push(request(
        &[&common[..70], &prompt(50, 30)[..]].concat(),
        8,
        6,
    ));
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for prefill_chunk in [128, 40, 7] {
        let mut engine = engine(EngineOptions {
            prefill_chunk,
            ..roomy()
        });
        let found = run(&mut engine, &requests);
        assert_eq!(tokens(&found), expected, "chunks of {prefill_chunk}");
        // All but the first take over the four whole blocks of the common beginning.
        assert!(
            found[1..6].iter().all(|(_, cached)| *cached == 128),
            "chunks of {prefill_chunk}: {:?}",
            found.iter().map(|(_, cached)| cached).collect::<Vec<_>>()
        );
    }
}

#[test]
fn evaluation_leaves_the_states_of_requests_alone() {
    let mut engine = engine(roomy());
    let request = request(&prompt(1, 40), 1, 20);
    let expected = alone(&request);
    let id = engine.submit(request).expect("a good request");
    let (mut events, mut rows) = (Vec::new(), Vec::new());
    let text: Vec<TokenId> = prompt(3, 90).into_iter().map(TokenId).collect();
    while engine.is_busy() {
        engine.step(&mut events);
        let mut logits = Vec::new();
        let evaluated = engine.evaluate::<bitnet_inference::Error>(&text, 0, |_, found| {
            logits.extend_from_slice(found);
            Ok(())
        });
        evaluated.expect("good tokens");
        rows.push(logits);
    }
    assert!(rows.windows(2).all(|pair| pair[0] == pair[1]));
    let found: Vec<TokenId> = events
        .iter()
        .filter_map(|event| match event {
            Event::Token { id: of, token, .. } if *of == id => Some(*token),
            _ => None,
        })
        .collect();
    assert_eq!(found, expected);
}
