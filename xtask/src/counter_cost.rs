//! `xtask counter-cost`: what counting the kernels' work costs, reckoned and measured.

use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use bitnet_inference::{Engine, Event, Request, SamplingParams};
use bitnet_kernels::{Counters, Kernel};
use bitnet_models::synthetic;
use bitnet_tokenizers::TokenId;

use crate::model::ModelOptions;

/// The share of a decode step that counting may take.
const SHARE_MAX: f64 = 1e-3;
/// Events timed to tell what one costs.
const NUM_EVENTS: u32 = 20_000_000;

/// Tokens decoded of a prompt before the next.
const RUN_TOKENS: usize = 64;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Pairs of decode steps, one with counting and the next without, or the other way round
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(50..))]
    pairs: u32,
}

/// Prints events a token × cost of an event ÷ time of a token, and the difference that counting
/// makes end to end, with its confidence interval. Fails if the former is above a thousandth.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut engine = options.model.open(RUN_TOKENS + 9)?;
    let (mut steps, mut ratios) = (Vec::new(), Vec::new());
    // The first run is not counted.
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

    let counters = engine.cpu().counters();
    // One step of each pair was counted, with the prompt's.
    let events = Kernel::ALL
        .into_iter()
        .map(|kernel| counters.get(kernel).calls)
        .sum::<u64>() as f64;
    let events = events / (1 + RUN_TOKENS / 2) as f64;
    let (token, ..) = median(steps);
    let event = event_seconds();
    let share = events * event / token;
    let num_pairs = ratios.len();
    let (middle, least, most) = median(ratios);
    println!("{}", options.model.path().display());
    println!(
        "{events:.0} events a token x {:.2} ns = {:.2} us of {:.3} ms: {:.5} % of a decode step",
        event * 1e9,
        events * event * 1e6,
        token * 1e3,
        share * 100.0
    );
    println!(
        "counting on against off, median of {num_pairs} pairs of steps: {:+.3} % (95 % interval {:+.3} % to {:+.3} %)",
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

/// Whether a step counts: on, off, off, on, so that what grows with the context falls on both
/// alike.
fn is_counting(step: usize) -> bool {
    matches!(step % 4, 0 | 3)
}

/// The seconds of each decode step after a short prompt. Counters hold what was counted of the
/// prompt and of every other step.
fn run_once(engine: &mut Engine) -> anyhow::Result<Vec<f64>> {
    let vocab_size = engine.model().config().vocab_size;
    engine.cpu().counters().set_counting(true);
    engine.cpu().counters().reset();
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
        engine.cpu().counters().set_counting(is_counting(step));
        let start = Instant::now();
        engine.step(&mut events);
        times.push(start.elapsed().as_secs_f64());
    }
    ensure!(
        events
            .iter()
            .any(|event| matches!(event, Event::Finished { .. })),
        "the run has not ended"
    );
    Ok(times)
}

/// What one event costs, in seconds; the kernels take turns, as they do in a step.
fn event_seconds() -> f64 {
    let counters = Counters::default();
    let start = Instant::now();
    for kernel in Kernel::ALL.into_iter().cycle().take(NUM_EVENTS as usize) {
        counters.add(black_box(kernel), black_box(1 << 20), black_box(1 << 18));
    }
    black_box(counters.get(Kernel::I2sGemv));
    start.elapsed().as_secs_f64() / f64::from(NUM_EVENTS)
}

/// The median, and its 95 % confidence interval: from order statistics, so whatever the
/// distribution.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let half_width = (0.98 * (n as f64).sqrt()).ceil() as usize;
    (
        values[n / 2],
        values[(n / 2).saturating_sub(half_width)],
        values[(n / 2 + half_width).min(n - 1)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_order_statistics() {
        // Of 100 values, the 41st and the 61st enclose the median with 95 % (binomial
        // distribution).
        let (middle, least, most) = median((0..100).rev().map(f64::from).collect());
        assert_eq!((middle, least, most), (50.0, 40.0, 60.0));
        assert_eq!(median(vec![3.0]), (3.0, 3.0, 3.0));
    }

    #[test]
    fn pairs_take_turns() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(is_counting),
            [true, false, false, true, true]
        );
    }
}
