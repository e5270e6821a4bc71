//! The engine's guarantees for requests that run together, run alone, are cancelled or are refused,
//! on a small model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_inference::{
    Constraint, Device, Engine, EngineOptions, Error, Event, FinishReason, Loaded, Priority,
    Request, RequestId, SamplingParams, TokenSet, load,
};
use bitnet_kernels::Kernel;
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf")
}

fn engine(context: usize, prefill_chunk: usize) -> Engine {
    engine_with(EngineOptions {
        context,
        cache: context,
        prefill_chunk,
        ..EngineOptions::default()
    })
}

fn engine_with(options: EngineOptions) -> Engine {
    let Loaded {
        model,
        tokenization,
        ..
    } = load(&golden(), &LoadOptions::default(), Device::cpu(1)).expect("the golden model loads");
    let tokenizer = tokenization.map(|tokenization| Arc::clone(&tokenization.tokenizer));
    Engine::new(model, tokenizer, Device::cpu(2), options).expect("memory for the cache")
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

/// Runs until nothing is left to do; returns the tokens of each request in order.
fn finish(engine: &mut Engine, ids: &[RequestId]) -> Vec<Vec<TokenId>> {
    let mut tokens = vec![Vec::new(); ids.len()];
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    for event in events {
        if let Event::Token { id, token, .. } = event {
            let index = ids
                .iter()
                .position(|known| *known == id)
                .expect("a known request");
            tokens[index].push(token);
        }
    }
    tokens
}

#[test]
fn requests_that_run_together_give_the_same_tokens_as_alone() {
    let requests = [
        request(&[256, 1, 2, 3], 1, 12),
        request(&[256, 9], 2, 20),
        request(&[7; 70], 3, 9),
    ];
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
        let ids = requests
            .clone()
            .map(|request| engine.submit(request).expect("a good request"));
        assert_eq!(
            finish(&mut engine, &ids),
            alone,
            "context {context}, {prefill_chunk} tokens per step"
        );
        assert_eq!(
            engine.free_blocks().0,
            engine.free_blocks().1,
            "every block is free again"
        );
    }
}

#[test]
fn an_answer_of_no_tokens_computes_its_prompt_and_samples_nothing() {
    let mut engine = engine(512, 16);
    let alone = engine
        .complete(request(&[256, 9, 9], 2, 6))
        .expect("a good request")
        .0;
    let none = request(&[5; 40], 1, 0);
    let reported = Request {
        logprobs: Some(1),
        prompt_logprobs: true,
        ..none.clone()
    };
    // These requests run beside a sampled one, whose rows lie between theirs.
    let requests = [none, request(&[256, 9, 9], 2, 6), reported];
    let ids = requests.map(|request| engine.submit(request).expect("a good request"));
    let (mut events, mut num_logprobs, mut reasons) = (Vec::new(), 0, Vec::new());
    let mut tokens = vec![Vec::new(); 3];
    while engine.is_busy() {
        engine.step(&mut events);
    }
    for event in events {
        match event {
            Event::Prefill { logprobs, .. } => num_logprobs += logprobs.len(),
            Event::Token { id, token, .. } => tokens[(id == ids[1]) as usize].push(token),
            Event::Finished { finish, .. } => {
                reasons.push((finish.reason, finish.timings.generated_tokens));
            }
            Event::Failed { problem, .. } => panic!("{problem}"),
        }
    }
    assert_eq!((&tokens[0][..], &tokens[1]), (&[][..], &alone));
    assert_eq!(num_logprobs, 39);
    reasons.sort_by_key(|(_, generated)| *generated);
    let length = FinishReason::Length;
    assert_eq!(reasons, [(length, 0), (length, 0), (length, 6)]);
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
}

#[test]
fn nothing_ends_an_answer_before_its_minimum_number_of_tokens() {
    let mut engine = engine(512, 16);
    let free = request(&[256, 1, 2, 3], 1, 12);
    let tokens = engine.complete(free.clone()).expect("a good request").0;
    let stopped = Request {
        stop_ids: vec![tokens[2]],
        ..free
    };
    assert_eq!(
        engine
            .complete(stopped.clone())
            .expect("a good request")
            .0
            .len(),
        3
    );
    let longer = Request {
        min_tokens: 6,
        ..stopped
    };
    let longer = engine.complete(longer).expect("a good request").0;
    assert_eq!(longer[..2], tokens[..2]);
    assert!(
        longer.len() > 6 && !longer[..6].contains(&tokens[2]),
        "{longer:?}"
    );
}

#[test]
fn a_prompt_that_continues_the_last_one_is_not_computed_again() {
    let mut engine = engine(512, 64);
    let first = engine
        .submit(request(&[5; 40], 1, 10))
        .expect("a good request");
    let answer = finish(&mut engine, &[first]).remove(0);
    let mut prompt = vec![TokenId(5); 40];
    prompt.extend(&answer);
    prompt.push(TokenId(3));
    let longer = Request {
        prompt,
        ..request(&[0], 2, 8)
    };
    let id = engine.submit(longer.clone()).expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let Some(Event::Finished { finish: end, .. }) = events.last() else {
        panic!("an end")
    };
    assert_eq!(end.reason, FinishReason::Length);
    // The first block is full; the second block was computed only in part.
    assert_eq!(end.timings.cached_tokens, 32);
    let with_cache: Vec<_> = events
        .iter()
        .filter_map(|e| {
            if let Event::Token { token, .. } = e {
                Some(*token)
            } else {
                None
            }
        })
        .collect();
    let mut fresh = self::engine(512, 64);
    let fresh_id = fresh.submit(longer).expect("a good request");
    assert_eq!(
        with_cache,
        finish(&mut fresh, &[fresh_id]).remove(0),
        "{id:?}"
    );
}

#[test]
fn cancelled_requests_free_their_blocks_and_disturb_no_other() {
    let mut alone = engine(512, 16);
    let id = alone
        .submit(request(&[256, 4], 9, 30))
        .expect("a good request");
    let expected = finish(&mut alone, &[id]);

    let mut engine = engine(512, 16);
    let mut events = Vec::new();
    let waiting = engine
        .submit(request(&[3; 100], 1, 400))
        .expect("a good request");
    let kept = engine
        .submit(request(&[256, 4], 9, 30))
        .expect("a good request");
    let never_started = engine
        .submit(request(&[3; 10], 1, 400))
        .expect("a good request");
    engine.step(&mut events);
    engine.cancel(waiting);
    engine.cancel(never_started);
    let found = finish(&mut engine, &[kept]);
    let early = events
        .iter()
        .filter(|e| matches!(e, Event::Token { id, .. } if *id == kept))
        .count();
    assert_eq!(found[0], expected[0][early..]);
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
}

#[test]
fn invalid_requests_are_refused_with_the_numbers() {
    let mut engine = engine(64, 16);
    let refused = |engine: &mut Engine, request| engine.submit(request).expect_err("a refusal");
    assert!(matches!(
        refused(&mut engine, request(&[], 0, 1)),
        Error::EmptyPrompt
    ));
    let error = refused(&mut engine, request(&[1, 512], 0, 1)).to_string();
    assert!(
        error.contains("prompt token 1 is 512") && error.contains("511"),
        "{error}"
    );
    let error = refused(&mut engine, request(&[1; 60], 0, 5)).to_string();
    assert!(
        error.contains("60") && error.contains('5') && error.contains("64"),
        "{error}"
    );
    let bad = Request {
        stop_strings: vec![String::new()],
        ..request(&[1], 0, 1)
    };
    assert!(matches!(
        refused(&mut engine, bad),
        Error::StopString { index: 0, .. }
    ));
    assert!(!engine.is_busy());
}

#[test]
fn an_answer_without_a_limit_ends_at_the_end_of_the_context() {
    let mut engine = engine(64, 16);
    let id = engine
        .submit(Request {
            max_tokens: None,
            ..request(&[256, 4], 9, 1)
        })
        .expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let Some(Event::Finished { finish, .. }) = events.last() else {
        panic!("an end of {id:?}")
    };
    assert_eq!(
        (finish.reason, finish.timings.generated_tokens),
        (FinishReason::Context, 62)
    );
}

/// The tokens of each request when it runs in its own engine.
fn alone(requests: &[Request]) -> Vec<Vec<TokenId>> {
    let run = |request: &Request| {
        let mut engine = engine(512, 64);
        let id = engine.submit(request.clone()).expect("a good request");
        finish(&mut engine, &[id]).remove(0)
    };
    requests.iter().map(run).collect()
}

#[test]
fn sequences_that_gave_up_their_blocks_give_the_same_tokens() {
    let requests: Vec<Request> = (0..5)
        .map(|i| request(&[256, 10 + i, 3, i], u64::from(i), 80 + i as usize))
        .collect();
    let expected = alone(&requests);
    // There are five blocks, and each sequence needs three.
    let options = EngineOptions {
        context: 96,
        cache: 160,
        prefill_chunk: 32,
        ..EngineOptions::default()
    };
    let mut engine = engine_with(options);
    let ids: Vec<_> = requests
        .iter()
        .map(|r| engine.submit(r.clone()).expect("a good request"))
        .collect();
    assert_eq!(finish(&mut engine, &ids), expected);
    assert!(engine.counts().preemptions > 0);
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
}

#[test]
fn a_cached_prompt_saves_exactly_the_work_of_its_tokens() {
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 256).collect();
    let mut engine = engine(512, 64);
    let mut run = |salt: Option<&str>| {
        let request = Request {
            cache_salt: salt.map(Into::into),
            ..request(&prompt, 4, 6)
        };
        engine.counters().reset();
        let id = engine.submit(request).expect("a good request");
        let cached_before = engine.counts().cached_tokens;
        let tokens = finish(&mut engine, &[id]);
        let macs = |kernel| engine.counters().get(kernel).macs;
        let ternary = macs(Kernel::I2sGemm) + macs(Kernel::I2sGemv);
        (
            tokens,
            engine.counts().cached_tokens - cached_before,
            ternary,
        )
    };
    let (first, none, all_macs) = run(None);
    let (second, cached, some_macs) = run(None);
    let (other, none_again, other_macs) = run(Some("somebody else"));
    assert_eq!((none, cached, none_again), (0, 128, 0));
    assert!(first == second && first == other);
    assert_eq!(all_macs, other_macs);
    // The last layer computes only keys and values for tokens whose logits are not wanted.
    let config = &engine.model().config;
    let width = config.attention.heads * config.attention.head_dim;
    let after_qkv = config.hidden_size * (width + 3 * config.ffn_size);
    let a_token = engine.model().num_ternary_weights - after_qkv;
    assert_eq!(all_macs - some_macs, cached * a_token as u64);
}

#[test]
fn drafts_change_no_token_and_save_steps() {
    let prompt: Vec<u32> = [256]
        .into_iter()
        .chain((0..60).map(|i| 40 + i % 4))
        .collect();
    let requests = [
        request(&prompt, 3, 40),
        Request {
            sampling: greedy(),
            ..request(&prompt, 3, 60)
        },
        request(&[7; 5], 1, 30),
    ];
    let expected = alone(&requests);
    let mut engine = engine_with(EngineOptions {
        draft_max: 5,
        context: 256,
        cache: 512,
        ..EngineOptions::default()
    });
    for (request, expected) in requests.iter().zip(&expected) {
        let id = engine.submit(request.clone()).expect("a good request");
        assert_eq!(finish(&mut engine, &[id])[0], *expected);
    }
    let counts = engine.counts();
    assert!(
        counts.accepted_tokens > 0 && counts.accepted_tokens <= counts.drafted_tokens,
        "{counts:?}"
    );
    let generated: usize = expected.iter().map(Vec::len).sum();
    assert!(
        (counts.steps as usize) < generated,
        "{counts:?}, {generated} tokens"
    );
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

#[test]
fn a_long_prompt_does_not_delay_other_requests() {
    let mut engine = engine(512, 128);
    let mut events = Vec::new();
    let first = engine
        .submit(request(&[256, 4], 9, 100))
        .expect("a good request");
    engine.step(&mut events);
    let long = engine
        .submit(request(&[3; 200], 1, 5))
        .expect("a good request");
    let of = |events: &[Event], wanted: RequestId| {
        events
            .iter()
            .filter(|e| matches!(e, Event::Token { id, .. } if *id == wanted))
            .count()
    };
    let mut chunks = Vec::new();
    while of(&events, long) == 0 {
        let (before, computed) = (of(&events, first), engine.counts().computed_tokens);
        engine.step(&mut events);
        chunks.push(engine.counts().computed_tokens - computed - 1);
        assert_eq!(of(&events, first), before + 1, "step {}", chunks.len());
    }
    // In this model attention over 240 positions takes as long as the rest of the work, so a token
    // there takes twice the time. Each pair is the number of prompt tokens in a step, for the time
    // of 8 tokens at the beginning, and the number of steps with this many tokens.
    let steps_of = [(8, 3), (7, 5), (6, 9), (5, 15), (4, 3)];
    let expected: Vec<u64> = steps_of
        .into_iter()
        .flat_map(|(tokens, n)| std::iter::repeat_n(tokens, n))
        .collect();
    assert_eq!(chunks, expected);
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut engine = engine(512, 128);
    let mut events = Vec::new();
    engine
        .submit(request(&[256, 4], 9, 100))
        .expect("a good request");
    engine.step(&mut events);
    let long = engine
        .submit(request(&[3; 400], 1, 5))
        .expect("a good request");
    engine.step(&mut events);
    let short = engine
        .submit(request(&[256, 7, 8, 9, 10, 11, 12, 13], 1, 5))
        .expect("a good request");
    let done = |events: &[Event], wanted: RequestId| {
        let done = |e: &Event| match e {
            Event::Prefill { id, done, .. } if *id == wanted => Some(*done),
            _ => None,
        };
        events.iter().filter_map(done).max().unwrap_or(0)
    };
    let half = EngineOptions::default().mixed_chunk / 2;
    let before = done(&events, long);
    engine.step(&mut events);
    engine.step(&mut events);
    assert_eq!(done(&events, short), 8, "half of each step is its own");
    assert_eq!(
        done(&events, long),
        before + 2 * half,
        "the other half is the long one's"
    );
    engine.step(&mut events);
    assert_eq!(
        done(&events, long),
        before + 4 * half,
        "which gets all the time that no other sequence needs"
    );
}

#[test]
fn whole_chunks_of_prompts_beside_answers_take_fewer_steps() {
    let requests: Vec<Request> = (0..16)
        .map(|i| {
            request(
                &(0..64).map(|t| (t * 3 + i) % 256).collect::<Vec<_>>(),
                1,
                8,
            )
        })
        .collect();
    let steps = |mixed_chunk, priority| {
        let mut engine = engine_with(EngineOptions {
            context: 128,
            cache: 2048,
            mixed_chunk,
            ..EngineOptions::default()
        });
        for request in &requests {
            let request = Request {
                priority,
                ..request.clone()
            };
            engine.submit(request).expect("a good request");
        }
        let mut steps = 0;
        while engine.is_busy() {
            engine.step(&mut Vec::new());
            steps += 1;
        }
        steps
    };
    // The prompts have 1024 tokens: 8 chunks of 128. The last answers need 7 steps more.
    assert_eq!(steps(128, Priority::Interactive), 8 + 7);
    assert!(steps(8, Priority::Interactive) > 2 * (8 + 7));
    // Answers for which no client waits let prompts go first, whatever the options say.
    assert_eq!(steps(8, Priority::Background), 8 + 7);
}

#[test]
fn prompts_in_the_background_take_small_chunks_beside_interactive_answers() {
    let mut engine = engine(512, 128);
    let mut events = Vec::new();
    let interactive = request(&[256, 4], 9, 100);
    engine.submit(interactive).expect("a good request");
    engine.step(&mut events);
    let background = Request {
        priority: Priority::Background,
        ..request(&[3; 400], 1, 5)
    };
    let id = engine.submit(background).expect("a good request");
    engine.step(&mut events);
    let chunk = |event: &Event| match event {
        Event::Prefill { id: of, done, .. } if *of == id => Some(*done),
        _ => None,
    };
    let mixed_chunk = EngineOptions::default().mixed_chunk;
    assert_eq!(events.iter().find_map(chunk), Some(mixed_chunk));
}

#[test]
fn common_prefixes_of_prompts_are_computed_once() {
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 256).collect();
    let mut requests: Vec<Request> = (0..8).map(|seed| request(&prompt, seed, 6)).collect();
    // This prompt differs from the others after two blocks.
    requests.push(request(&[&prompt[..70], &[9; 30]].concat(), 8, 6));
    let expected = alone(&requests);
    for prefill_chunk in [128, 40, 7] {
        let mut engine = engine_with(EngineOptions {
            context: 512,
            cache: 2048,
            prefill_chunk,
            ..EngineOptions::default()
        });
        let mut events = Vec::new();
        let others: Vec<_> = (0..3).map(|i| request(&[256, i], 1, 4)).collect();
        for other in others {
            engine.submit(other).expect("a good request");
        }
        let ids: Vec<_> = requests
            .iter()
            .map(|r| engine.submit(r.clone()).expect("a good request"))
            .collect();
        while engine.is_busy() {
            engine.step(&mut events);
        }
        let counts = engine.counts();
        let cached = |wanted: RequestId| {
            let cached = |e: &Event| match e {
                Event::Finished { id, finish, .. } if *id == wanted => {
                    Some(finish.timings.cached_tokens)
                }
                _ => None,
            };
            events.iter().find_map(cached).expect("an end")
        };
        let cached: Vec<_> = ids.iter().map(|id| cached(*id)).collect();
        let tokens = |wanted: RequestId| -> Vec<TokenId> {
            let token = |e: &Event| match e {
                Event::Token { id, token, .. } if *id == wanted => Some(*token),
                _ => None,
            };
            events.iter().filter_map(token).collect()
        };
        assert_eq!(
            ids.iter().map(|id| tokens(*id)).collect::<Vec<_>>(),
            expected,
            "chunks of {prefill_chunk}"
        );
        // Each request computes the tokens after the last whole block itself.
        assert_eq!(cached.iter().sum::<usize>() as u64, counts.cached_tokens);
        let computed = counts.prompt_tokens - counts.cached_tokens;
        assert!(
            computed <= 150 + 7 * 22 + 36 + 6 + 2 * 32,
            "{computed} tokens of prompts computed: {cached:?} cached"
        );
        assert_eq!(counts.computed_tokens, computed + 9 * 5 + 3 * 3);
        assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
    }
}

#[test]
fn tokens_that_a_request_computes_again_do_not_count_as_cached() {
    // Six blocks: one for each of the first two requests, which soon need another, and four for the
    // long prompt.
    let options = EngineOptions {
        context: 128,
        cache: 192,
        ..EngineOptions::default()
    };
    let mut engine = engine_with(options);
    let mut events = Vec::new();
    for prompt in [[1; 26], [2; 26]] {
        engine
            .submit(request(&prompt, 1, 30))
            .expect("a good request");
    }
    engine.step(&mut events);
    let long: Vec<u32> = (0..120).map(|i| i * 7 % 256).collect();
    let id = engine.submit(request(&long, 1, 2)).expect("a good request");
    while engine.is_busy() {
        engine.step(&mut events);
    }
    assert!(engine.counts().preemptions > 0, "{:?}", engine.counts());
    let cached = events.iter().find_map(|e| match e {
        Event::Finished { id: of, finish, .. } if *of == id => Some(finish.timings.cached_tokens),
        _ => None,
    });
    assert_eq!(
        (
            cached,
            engine.counts().cached_tokens,
            engine.counts().prompt_tokens
        ),
        (Some(0), 0, 172)
    );
}

#[test]
fn log_probabilities_equal_the_softmax_of_the_logits() {
    let mut engine = engine(512, 64);
    let with = Request {
        logprobs: Some(3),
        ..request(&[256, 9, 8], 5, 12)
    };
    let without = Request {
        logprobs: None,
        ..with.clone()
    };
    let id = engine.submit(with.clone()).expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let mut tokens = with.prompt.clone();
    let mut found = Vec::new();
    for event in events {
        if let Event::Token {
            token, logprobs, ..
        } = event
        {
            tokens.push(token);
            found.push(logprobs.expect("asked for"));
        }
    }
    let id_without = engine.submit(without).expect("a good request");
    assert_eq!(finish(&mut engine, &[id_without])[0], tokens[3..], "{id:?}");
    let mut rows = Vec::new();
    engine
        .evaluate::<Error>(&tokens, 0, |_, logits| {
            rows.extend(logits.chunks_exact(512).map(<[f32]>::to_vec));
            Ok(())
        })
        .expect("good tokens");
    for (index, found) in found.iter().enumerate() {
        let logits = &rows[index + 2];
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let logprob = |token: TokenId| f64::from(logits[token.0 as usize]) - sum.ln();
        assert!((logprob(tokens[index + 3]) - f64::from(found.token)).abs() < 1e-4);
        assert_eq!(found.top.len(), 3);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(logits[found.top[0].0.0 as usize], largest);
        assert!(found.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        assert!(
            found
                .top
                .iter()
                .all(|(token, value)| (logprob(*token) - f64::from(*value)).abs() < 1e-4)
        );
    }
}

#[test]
fn prompts_have_the_same_log_probabilities_in_any_schedule() {
    let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 256).collect();
    let plain = request(&prompt, 5, 6);
    let reported = Request {
        logprobs: Some(2),
        prompt_logprobs: true,
        ..plain.clone()
    };
    let expected_tokens = alone(std::slice::from_ref(&plain));
    let mut reference = engine(512, 64);
    let mut expected = Vec::new();
    reference
        .evaluate::<Error>(&plain.prompt, 0, |first, logits| {
            for (index, logits) in logits.chunks_exact(512).enumerate() {
                let Some(token) = plain.prompt.get(first + index + 1) else {
                    continue;
                };
                let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                expected.push(f64::from(logits[token.0 as usize]) - sum.ln());
            }
            Ok(())
        })
        .expect("good tokens");
    // Run the request alone; then in small chunks beside other requests, with the prompt in the
    // cache; then with too few blocks, so that it is preempted.
    for (cache, prefill_chunk, others) in [(512, 64, 0), (512, 16, 3), (192, 64, 2)] {
        let mut engine = engine_with(EngineOptions {
            context: 128,
            cache,
            prefill_chunk,
            ..EngineOptions::default()
        });
        let first = engine.submit(plain.clone()).expect("a good request");
        assert_eq!(finish(&mut engine, &[first]), expected_tokens);
        for other in 0..others {
            engine
                .submit(request(&[[1; 26], [2; 26], [3; 26]][other], 1, 30))
                .expect("a good request");
        }
        let mut events = Vec::new();
        engine.step(&mut events);
        let id = engine.submit(reported.clone()).expect("a good request");
        while engine.is_busy() {
            engine.step(&mut events);
        }
        let (mut reports, mut tokens) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Prefill {
                    id: of, logprobs, ..
                } if of == id => reports.extend(logprobs),
                Event::Token { id: of, token, .. } if of == id => tokens.push(token),
                Event::Finished { id: of, finish, .. } if of == id => {
                    assert_eq!(finish.timings.cached_tokens, 0)
                }
                _ => {}
            }
        }
        assert_eq!(tokens, expected_tokens[0]);
        assert_eq!(
            reports.len(),
            expected.len(),
            "{cache} positions, {:?}",
            engine.counts()
        );
        assert!(
            reports
                .iter()
                .zip(&expected)
                .all(|(report, expected)| (f64::from(report.token) - expected).abs() < 1e-4)
        );
        assert!(reports.iter().all(|report| report.top.len() == 2));
        assert_eq!(engine.counts().preemptions > 0, cache == 192);
    }
}

/// Allows tokens that are larger than the last one by at most 20, n times.
struct Rising {
    last: u32,
    left: usize,
}

impl Constraint for Rising {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let ids: Vec<TokenId> = (self.last + 1..=self.last + 20).map(TokenId).collect();
        *allowed = TokenSet::new(&ids);
        Ok(())
    }
    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        if token.0 <= self.last || token.0 > self.last + 20 {
            return Err(format!("token {token} after {}", self.last));
        }
        self.last = token.0;
        self.left = self.left.checked_sub(1).ok_or("too many tokens")?;
        Ok(())
    }
}

#[test]
fn constraints_are_kept_and_their_failures_end_the_request_alone() {
    let mut engine = engine(512, 64);
    let plain = request(&[256, 9], 2, 10);
    let expected = alone(std::slice::from_ref(&plain));
    let other = engine.submit(plain).expect("a good request");
    let rising = |left| Some(Box::new(Rising { last: 0, left }) as Box<dyn Constraint>);
    let kept = engine
        .submit_constrained(request(&[256, 4], 1, 8), rising(8))
        .expect("a good request");
    let broken = engine
        .submit_constrained(request(&[256, 4], 1, 8), rising(3))
        .expect("a good request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let tokens = |wanted: RequestId| -> Vec<TokenId> {
        let token = |e: &Event| match e {
            Event::Token { id, token, .. } if *id == wanted => Some(*token),
            _ => None,
        };
        events.iter().filter_map(token).collect()
    };
    assert_eq!(tokens(other), expected[0]);
    assert_eq!(tokens(kept).len(), 8);
    assert!(tokens(kept).windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(tokens(broken), tokens(kept)[..3]);
    let failures: Vec<_> = events
        .iter()
        .filter(|e| matches!(e, Event::Failed { .. }))
        .collect();
    assert!(
        matches!(failures[..], [Event::Failed { id, problem }] if *id == broken && problem == "too many tokens")
    );
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
}

#[test]
fn a_model_with_nan_embeddings_fails_its_requests() {
    let mut file = std::fs::read(golden()).expect("the golden model");
    let gguf = bitnet_files::gguf::Gguf::open(&golden()).expect("the golden model");
    let embedding = gguf.tensor("token_embd.weight").expect("an embedding");
    assert_eq!(embedding.dtype.name(), "F16");
    let data = embedding.data;
    let start = file
        .windows(data.len())
        .position(|bytes| bytes == data)
        .expect("the embedding's bytes");
    // A NaN in 16 bits.
    for value in file[start..start + data.len()].chunks_exact_mut(2) {
        value.copy_from_slice(&0x7e00u16.to_le_bytes());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file).expect("a file");
    let Loaded { model, .. } =
        load(&path, &LoadOptions::default(), Device::cpu(1)).expect("the shapes are right");
    let options = EngineOptions {
        context: 64,
        cache: 64,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(model, None, Device::cpu(1), options).expect("memory");
    for (temperature, logprobs) in [(0.0, None), (0.8, None), (0.8, Some(2))] {
        let mut request = request(&[1, 2, 3], 7, 5);
        request.sampling.temperature = temperature;
        request.logprobs = logprobs;
        engine.submit(request).expect("a place");
        let mut events = Vec::new();
        while engine.is_busy() {
            engine.step(&mut events);
        }
        let failed = events.iter().any(|event| {
            matches!(event, Event::Failed { problem, .. } if problem.contains("not numbers"))
        });
        assert!(failed, "temperature {temperature}: {events:?}");
    }
}
