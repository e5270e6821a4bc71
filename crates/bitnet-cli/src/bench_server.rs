//! `bitnet bench-server`: puts load on a server and measures the latency for its clients.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use bitnet_server::{
    Arrivals, LoadEndpoint, LoadGeneratorOptions, LoadReport, RequestTimes, run_load,
};
use serde_json::{Value, json};

use crate::args::{BenchServerArguments, EndpointArgument, WrongUsage};

/// Sends requests and prints their latencies. Fails if any request failed.
pub fn bench_server(arguments: &BenchServerArguments) -> anyhow::Result<()> {
    anyhow::ensure!(
        !arguments.token_ids || arguments.endpoint == EndpointArgument::Completions,
        WrongUsage("--token-ids is for --endpoint completions: a chat is text".to_owned())
    );
    let options = LoadGeneratorOptions {
        url: arguments.url.clone(),
        endpoint: match arguments.endpoint {
            EndpointArgument::Chat => LoadEndpoint::Chat,
            EndpointArgument::Completions => LoadEndpoint::Completions,
        },
        model: arguments.model.clone(),
        api_key: arguments.api_key.clone(),
        arrivals: match arguments.rate {
            Some(rate) => Arrivals::Open { rate },
            None => Arrivals::Closed {
                concurrency: arguments.concurrency,
            },
        },
        num_requests: arguments.requests,
        num_warmup: arguments.warmup,
        prompt_words: arguments.prompt_words,
        shared_words: arguments.shared_words,
        as_token_ids: arguments.token_ids,
        max_tokens: arguments.max_tokens,
        ignore_eos: !arguments.keep_eos,
        temperature: arguments.temp,
        seed: arguments.seed,
        timeout: arguments.timeout,
    };
    let report = run_load(&options)?;
    let mut out = std::io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", report_json(&options, &report))?,
        false => write_report(&mut out, &report)?,
    }
    anyhow::ensure!(
        report.failed.is_empty(),
        "{} of {} requests failed",
        report.failed.len(),
        options.num_requests
    );
    Ok(())
}

/// The name of each figure, and its values.
fn figures(answered: &[RequestTimes]) -> [(&'static str, Vec<Duration>); 4] {
    let of =
        |time: fn(&RequestTimes) -> Option<Duration>| answered.iter().filter_map(time).collect();
    [
        ("first_token", of(|times| Some(times.first_token))),
        ("token", of(RequestTimes::token_time)),
        (
            "gap",
            answered
                .iter()
                .flat_map(|times| times.gaps.iter().copied())
                .collect(),
        ),
        ("answer", of(|times| Some(times.total))),
    ]
}

/// The smallest value that at least a share of all values does not exceed.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn totals(report: &LoadReport) -> (usize, usize, usize) {
    let sum = |count: fn(&RequestTimes) -> usize| report.answered.iter().map(count).sum();
    (
        sum(|times| times.prompt_tokens),
        sum(|times| times.cached_tokens),
        sum(|times| times.output_tokens),
    )
}

fn reasons(failed: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    failed
        .iter()
        .for_each(|reason| *counts.entry(reason.as_str()).or_default() += 1);
    counts
}

fn write_report(out: &mut impl Write, report: &LoadReport) -> std::io::Result<()> {
    let (prompt, cached, output) = totals(report);
    let seconds = report.elapsed.as_secs_f64();
    writeln!(
        out,
        "{} requests answered in {seconds:.2} s: {:.2} a second",
        report.answered.len(),
        report.answered.len() as f64 / seconds
    )?;
    writeln!(
        out,
        "{output} tokens generated: {:.1} a second",
        output as f64 / seconds
    )?;
    writeln!(out, "{prompt} prompt tokens, {cached} of them cached")?;
    writeln!(
        out,
        "\n{:>24} {:>10} {:>10} {:>10} {:>10}",
        "ms", "median", "p90", "p99", "greatest"
    )?;
    for (name, mut values) in figures(&report.answered) {
        values.sort_unstable();
        if values.is_empty() {
            continue;
        }
        let name = match name {
            "first_token" => "to the first token",
            "token" => "a token, by answer",
            "gap" => "between pieces of text",
            _ => "to the end of the answer",
        };
        let ms = |share| percentile(&values, share).as_secs_f64() * 1e3;
        writeln!(
            out,
            "{name:>24} {:>10.2} {:>10.2} {:>10.2} {:>10.2}",
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0)
        )?;
    }
    for (reason, count) in reasons(&report.failed) {
        writeln!(out, "\n{count} failed: {reason}")?;
    }
    Ok(())
}

fn report_json(options: &LoadGeneratorOptions, report: &LoadReport) -> Value {
    let (prompt, cached, output) = totals(report);
    let seconds = report.elapsed.as_secs_f64();
    let mut object = json!({
        "answered": report.answered.len(),
        "failed": reasons(&report.failed),
        "elapsed_s": seconds,
        "requests_per_second": report.answered.len() as f64 / seconds,
        "output_tokens": output,
        "output_tokens_per_second": output as f64 / seconds,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "max_tokens": options.max_tokens,
    });
    match options.arrivals {
        Arrivals::Closed { concurrency } => object["concurrency"] = concurrency.into(),
        Arrivals::Open { rate } => object["rate"] = rate.into(),
    }
    for (name, mut values) in figures(&report.answered) {
        values.sort_unstable();
        if !values.is_empty() {
            let ms = |share| percentile(&values, share).as_secs_f64() * 1e3;
            object[format!("{name}_ms")] =
                json!({ "p50": ms(0.5), "p90": ms(0.9), "p99": ms(0.99), "max": ms(1.0) });
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<Duration> = (1..=10).map(Duration::from_secs).collect();
        let at = |share| percentile(&values, share).as_secs();
        assert_eq!((at(0.5), at(0.9), at(0.99), at(1.0)), (5, 9, 10, 10));
        assert_eq!(percentile(&values[..1], 0.5).as_secs(), 1);
    }
}
