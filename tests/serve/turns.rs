//! Conversations of many turns with a model whose layers keep a state: the cache changes no answer,
//! and a turn computes little more than its own tokens.

use serde_json::{Value, json};

use crate::client::{HYBRID, Server, with};
use crate::hybrid::states;

const COMPLETIONS: &str = "/v1/completions";
/// Positions of a block: states are saved where one ends.
const BLOCK: u64 = 32;

/// Tokens that a user might say.
fn said(turn: u64) -> Vec<u64> {
    (0..17).map(|i| (turn * 31 + i * 7) % 250).collect()
}

fn tokens(answer: &Value) -> Vec<u64> {
    let ids = answer["choices"][0]["token_ids"].as_array();
    let ids = ids.unwrap_or_else(|| panic!("no ids in {answer}"));
    ids.iter().map(|id| id.as_u64().expect("an id")).collect()
}

#[test]
fn turns_compute_at_most_one_block_again_and_answer_as_without_a_cache() {
    let server = Server::start(&["-m", HYBRID, "--ctx-size", "1024", "--draft", "auto"]);
    let mut conversation = said(0);
    let (mut cached_sum, mut known) = (0, 0);
    for turn in 1..=12 {
        let body = json!({
            "prompt": conversation, "max_tokens": 40, "seed": turn, "return_token_ids": true,
            "ignore_eos": true,
        });
        let answer = server.answer(COMPLETIONS, &body);
        let salted = with(body, json!({ "cache_salt": format!("turn {turn}") }));
        let fresh = server.answer(COMPLETIONS, &salted);
        assert_eq!(tokens(&answer), tokens(&fresh), "turn {turn}");
        let cached = |answer: &Value| {
            let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
            cached.as_u64().expect("a number")
        };
        assert_eq!(cached(&fresh), 0);
        // The last token of an answer is sampled, but not computed.
        let lost = known - cached(&answer).min(known);
        assert!(lost <= BLOCK, "turn {turn} computes {lost} tokens again");
        cached_sum += cached(&answer);
        conversation.extend(tokens(&answer));
        known = conversation.len() as u64 - 1;
        conversation.extend(said(turn));
    }
    let metrics = server.get("/metrics").text();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok())
            .expect("a number")
    };
    assert_eq!(value("vllm:prefix_cache_hits_total"), cached_sum as f64);
    assert!(value("bitnet_recurrent_state_bytes") > 0.0);
}

#[test]
fn a_memory_for_few_states_delays_requests_and_changes_no_answer() {
    let state_bytes = 6 * 4 * (8 * 64 * 64 + 3 * (2 * 2 * 64 + 8 * 64));
    let two = (2 * state_bytes).to_string();
    let small = Server::start(&["-m", HYBRID, "--ctx-size", "256", "--state-memory", &two]);
    let large = Server::start(&["-m", HYBRID, "--ctx-size", "256"]);
    let ask = |server: &Server, turn| {
        let body = json!({ "prompt": said(turn), "max_tokens": 30, "seed": turn,
            "return_token_ids": true, "ignore_eos": true });
        tokens(&server.answer(COMPLETIONS, &body))
    };
    std::thread::scope(|scope| {
        for turn in 0..6 {
            let (small, large) = (&small, &large);
            scope.spawn(move || assert_eq!(ask(small, turn), ask(large, turn), "{turn}"));
        }
    });
    let states = ["held", "saved", "free"].map(|kind| states(&small, kind));
    assert_eq!(states.iter().sum::<usize>(), 2, "{states:?}");
    assert_eq!(states[0], 0, "no request holds a state");
}
