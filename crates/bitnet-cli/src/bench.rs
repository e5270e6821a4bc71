//! `bitnet bench`: tokens a second of prefill and decode.

use std::io::Write;

use bitnet_inference::receipt::Receipt;
use bitnet_inference::{Finish, Request, SamplingParams, peak_rss_bytes};
use bitnet_models::synthetic;
use bitnet_tokenizers::TokenId;
use serde_json::{Value, json};

use crate::args::{BenchArguments, WrongUsage};
use crate::{receipt, report, session};

/// Runs a prompt of made-up tokens some times and prints the median, least and greatest speed.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    let BenchArguments { prompt, predict, repetitions, .. } = *arguments;
    if prompt == 0 || repetitions == 0 {
        return Err(
            WrongUsage("a benchmark needs at least 1 token of prompt (-p) and 1 repetition (-r)".to_owned()).into()
        );
    }
    receipt::check_place(arguments.receipt.as_deref())?;
    // The first token comes out of the prefill; decoding n tokens takes n steps more.
    let max_tokens = predict + 1;
    let mut session = session::open(&arguments.model, Some(prompt + max_tokens))?;
    let vocab = session.engine.model().config().vocab_size;
    let mut speeds: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let provenance = || receipt::provenance(&session, &arguments.model, true);
    let provenance = arguments.receipt.is_some().then(provenance).transpose()?;
    let mut receipts = Vec::new();
    for round in 0..=repetitions {
        let request = Request {
            prompt: synthetic::tokens(prompt, vocab, round).map(TokenId).collect(),
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens: Some(max_tokens),
            ..Request::default()
        };
        session.engine.cpu().counters().reset();
        let answer = session.answer(request.clone(), &|| false, |_| Ok(()))?;
        if round == 0 {
            continue;
        }
        let (prefill, decode) = report::speeds(&answer.timings);
        speeds[0].extend(prefill);
        speeds[1].extend(decode);
        if let Some(provenance) = &provenance {
            let Some(reason) = answer.reason else { unreachable!("nothing interrupts this command") };
            let finish = Finish { reason, timings: answer.timings };
            receipts.push(Receipt::new(&session.engine, &request, &answer.tokens, &finish, provenance)?);
        }
    }
    let [prefill, decode] = speeds.map(|mut speeds| {
        speeds.sort_by(f64::total_cmp);
        speeds
    });
    if let Some(path) = &arguments.receipt {
        let time = |receipt: &Receipt| receipt.prefill_ms + receipt.decode_ms;
        receipts.sort_by(|a, b| time(a).total_cmp(&time(b)));
        receipt::write(&receipts[(receipts.len() - 1) / 2], path)?;
    }
    let cpu = session.engine.cpu();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "prefill": summary_json(prompt, &prefill),
            "decode": summary_json(predict, &decode),
            "threads": cpu.pool().num_threads(),
            "kernels": cpu.set().name,
            "packing": session.engine.model().packing(),
            "ternary_bytes": session.engine.model().num_ternary_bytes(),
            "head": report::head_json(&session.engine),
            "ffn_sparsity": report::ffn_sparsity_json(&session.engine),
            "model": report::model_json(&session),
            "load_ms": session.load_time.as_secs_f64() * 1e3,
            "peak_rss_bytes": peak_rss_bytes(),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{} · {} · {} threads · {} kernels · packing {}",
        session.source,
        session.engine.model().config().architecture_name,
        cpu.pool().num_threads(),
        cpu.set().name,
        session.engine.model().packing()
    )?;
    for (name, tokens, speeds) in [("prefill", prompt, &prefill), ("decode", predict, &decode)] {
        if let Some((median, least, greatest)) = summary(speeds) {
            writeln!(out, "{name:>8} {tokens:5} tokens  {median:8.1} tokens/s  (from {least:.1} to {greatest:.1})")?;
        }
    }
    if let Some(line) = report::ffn_sparsity_line(&session.engine) {
        writeln!(out, "  zeros in feed-forward networks  {line}")?;
    }
    if let Some(bytes) = peak_rss_bytes() {
        writeln!(out, "    peak memory  {:.0} MB", bytes as f64 / 1e6)?;
    }
    Ok(())
}

/// Median, least and greatest of sorted values.
fn summary(sorted: &[f64]) -> Option<(f64, f64, f64)> {
    let (least, greatest) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some((median, least, greatest))
}

fn summary_json(tokens: usize, sorted: &[f64]) -> Value {
    let speed = summary(sorted).map(|(median, min, max)| json!({ "median": median, "min": min, "max": max }));
    json!({ "tokens": tokens, "tokens_per_second": speed })
}
