//! `xtask counter-cost`: what counting the kernels' work costs, reckoned and measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bitnet_inference::{Engine, Request, SamplingParams};
use bitnet_kernels::{Counters, Kernel};
use bitnet_models::synthetic;
use bitnet_tokenizers::TokenId;

use crate::model::ModelOptions;

/// The share of a decode step that counting may take.
const SHARE_MAX: f64 = 1e-3;
/// Events timed to tell what one costs.
const NUM_EVENTS: u32 = 20_000_000;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Pairs of runs, one with counting and one without, in turns
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(10..))]
    rounds: u32,
    /// Tokens decoded in each run
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
}

/// Prints events a token × cost of an event ÷ time of a token, and the difference that counting makes end to end, with its
/// confidence interval. Fails if the former is above a thousandth.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let tokens = options.tokens as usize;
    let mut engine = options.model.open(tokens + 8)?;
    run_once(&mut engine, tokens, true)?;

    let mut differences = Vec::new();
    let mut counted = Duration::ZERO;
    for round in 0..options.rounds {
        let first = round % 2 == 0;
        let times = [first, !first].map(|counting| run_once(&mut engine, tokens, counting));
        let [a, b] = times;
        let (with, without) = if first { (a?, b?) } else { (b?, a?) };
        counted += with;
        differences.push(with.as_secs_f64() / without.as_secs_f64() - 1.0);
    }

    engine.cpu().counters().reset();
    run_once(&mut engine, tokens, true)?;
    let calls = |kernel| engine.cpu().counters().get(kernel).calls;
    // The prompt is one pass, too; the token that it gives is not decoded.
    let events = Kernel::ALL.into_iter().map(calls).sum::<u64>() as f64 / tokens as f64;
    let token = counted.as_secs_f64() / f64::from(options.rounds) / (tokens - 1) as f64;
    let event = event_seconds();
    let share = events * event / token;
    let (mean, half_width) = confidence(&differences);
    println!("{}", options.model.path().display());
    println!(
        "{events:.0} events a token x {:.2} ns = {:.2} us of {:.3} ms: {:.5} % of a decode step",
        event * 1e9,
        events * event * 1e6,
        token * 1e3,
        share * 100.0
    );
    println!(
        "counting on against off, {} pairs of {tokens} tokens: {:+.3} % (95 % interval {:+.3} % to {:+.3} %)",
        options.rounds,
        mean * 100.0,
        (mean - half_width) * 100.0,
        (mean + half_width) * 100.0
    );
    ensure!(share < SHARE_MAX, "counting takes {:.3} % of a decode step", share * 100.0);
    Ok(())
}

/// The time that decoding takes after a short prompt.
fn run_once(engine: &mut Engine, tokens: usize, counting: bool) -> anyhow::Result<Duration> {
    engine.cpu().counters().set_counting(counting);
    let vocab_size = engine.model().config().vocab_size;
    let (_, finish) = engine.complete(Request {
        prompt: synthetic::tokens(8, vocab_size, 0).map(TokenId).collect(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(tokens),
        ..Request::default()
    })?;
    Ok(finish.timings.decode)
}

/// What one event costs, in seconds.
fn event_seconds() -> f64 {
    let counters = Counters::default();
    let start = Instant::now();
    for _ in 0..NUM_EVENTS {
        counters.add(black_box(Kernel::I2sGemv), black_box(1 << 20), black_box(1 << 18));
    }
    black_box(counters.get(Kernel::I2sGemv));
    start.elapsed().as_secs_f64() / f64::from(NUM_EVENTS)
}

/// The mean, and half the width of its 95 % confidence interval.
fn confidence(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // The quantile of Student's distribution, within 2 % from 9 degrees of freedom on.
    let quantile = 1.96 + 2.4 / (n - 1.0);
    (mean, quantile * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        let values: Vec<f64> = (0..30).map(|i| f64::from(i % 2)).collect();
        let (mean, half_width) = confidence(&values);
        // t(0.975, 29) = 2.0452, the deviation is √(7.5 / 29).
        let expected = 2.0452 * (7.5f64 / 29.0).sqrt() / 30f64.sqrt();
        assert!((mean - 0.5).abs() < 1e-12 && (half_width / expected - 1.0).abs() < 0.01, "{mean} ± {half_width}");
    }
}
