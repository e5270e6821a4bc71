//! `xtask check counter-cost`: the cost of counting the kernels' work, computed and measured.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};
use bitnet_inference::{Engine, Event, Request, SamplingParams};
use bitnet_kernels::{Counters, Kernel, math};
use bitnet_models::synthetic;
use bitnet_tokenizers::TokenId;

use crate::model::options::ModelOptions;
use crate::stats::median;

/// Maximum share of a decode step that counting may take.
const SHARE_MAX: f64 = 1e-3;
/// Number of events timed to find the cost of one.
const NUM_EVENTS: u32 = 20_000_000;

/// Tokens decoded after each prompt.
const RUN_TOKENS: usize = 64;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Pairs of decode steps, one with counting and one without
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(50..))]
    pairs: u32,
}

/// Prints events per token × cost per event ÷ time per token, and the end-to-end difference that
/// counting makes, with its confidence interval. Fails if the former is above a thousandth.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut engine = options.model.open(RUN_TOKENS + 9)?;
    let (mut steps, mut ratios) = (Vec::new(), Vec::new());
    // The first run warms up.
    for round in 0.. {
        let times = run_once(&mut engine)?;
        for (index, pair) in times.chunks_exact(2).enumerate().filter(|_| round > 0) {
            let [with, without] = if is_counting(2 * index) {
                [pair[0], pair[1]]
            } else {
                [pair[1], pair[0]]
            };
            steps.push(with);
            ratios.push(with / without - 1.0);
        }
        if ratios.len() >= options.pairs as usize {
            break;
        }
    }

    let counters = engine.counters();
    // The counters saw the prompt's step and one step of each pair.
    let events = Kernel::ALL
        .into_iter()
        .map(|kernel| counters.get(kernel).calls)
        .sum::<u64>() as f64;
    let events = events / (1 + RUN_TOKENS / 2) as f64;
    let token = median(steps).context("no steps")?;
    let event = event_seconds();
    let share = events * event / token;
    let num_pairs = ratios.len();
    let [least, most] = math::median_interval(&mut ratios.clone()).context("no pairs")?;
    let middle = median(ratios).context("no pairs")?;
    println!("{}", options.model.path().display());
    println!(
        "{events:.0} events per token x {:.2} ns = {:.2} us of {:.3} ms: {:.5} % of a decode step",
        event * 1e9,
        events * event * 1e6,
        token * 1e3,
        share * 100.0
    );
    println!(
        "counting on versus off, median of {num_pairs} pairs of steps: {:+.3} % (95 % interval {:+.3} % to {:+.3} %)",
        middle * 100.0,
        least * 100.0,
        most * 100.0
    );
    ensure!(
        share < SHARE_MAX,
        "counting takes {:.3} % of a decode step",
        share * 100.0
    );
    Ok(())
}

/// Whether a step counts: on, off, off, on, so that costs that grow with the context are shared
/// equally.
fn is_counting(step: usize) -> bool {
    matches!(step % 4, 0 | 3)
}

/// The seconds of each decode step after a short prompt. Counters hold the prompt's step and every
/// other step.
fn run_once(engine: &mut Engine) -> anyhow::Result<Vec<f64>> {
    let vocab_size = engine.model().config.vocab_size;
    engine.counters().set_counting(true);
    engine.counters().reset();
    engine.submit(Request {
        prompt: synthetic::tokens(8, vocab_size, 0).map(TokenId).collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: Some(RUN_TOKENS + 1),
        ..Request::default()
    })?;
    let (mut events, mut times) = (Vec::new(), Vec::new());
    engine.step(&mut events);
    for step in 0..RUN_TOKENS {
        engine.counters().set_counting(is_counting(step));
        let start = Instant::now();
        engine.step(&mut events);
        times.push(start.elapsed().as_secs_f64());
    }
    ensure!(
        events
            .iter()
            .any(|event| matches!(event, Event::Finished { .. })),
        "the run did not finish"
    );
    Ok(times)
}

/// The cost of one event, in seconds. The kernels take turns, as they do in a step.
fn event_seconds() -> f64 {
    let counters = Counters::default();
    let start = Instant::now();
    for kernel in Kernel::ALL.into_iter().cycle().take(NUM_EVENTS as usize) {
        counters.add(black_box(kernel), black_box(1 << 20), black_box(1 << 18));
    }
    black_box(counters.get(Kernel::I2sGemv));
    start.elapsed().as_secs_f64() / f64::from(NUM_EVENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_in_alternating_pairs() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(is_counting),
            [true, false, false, true, true]
        );
    }
}
