//! `xtask model crossval`: compares a model's logits with another engine's for the same tokens.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use bitnet_receipts::{Parity, model_sha256};
use bitnet_tokenizers::TokenId;
use serde::Serialize;
use xtask::Verifier;

use super::options::ModelOptions;
use crate::receipt::to_read;

/// Number of most probable tokens that are compared as sets.
const TOP: usize = 5;

#[derive(clap::Args)]
pub struct Options {
    /// The other engine's logits: a .npy file (f32, [tokens, vocab]) or a folder with logits.npy
    /// and tokens.json
    #[arg(long, value_name = "DIR|FILE.npy")]
    reference: PathBuf,
    /// The token ids: a JSON list, or an object with a list under "tokens" (default: tokens.json
    /// beside the logits)
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    /// Difference above which a position counts as the first divergence
    #[arg(long, value_name = "DELTA", default_value_t = 1e-5)]
    tolerance: f32,
    /// Least accepted cosine of any position
    #[arg(long, value_name = "X", default_value_t = 0.99)]
    min_cosine: f64,
    /// Least accepted share of positions with the same most probable token
    #[arg(long, value_name = "X", default_value_t = 0.85)]
    min_match: f64,
    /// Also write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Add the result to this receipt, which must name the same model
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
}

/// The comparison of one position.
#[derive(Clone, Debug, Serialize)]
struct Position {
    position: usize,
    token: u32,
    /// The largest |Δ| of any logit.
    max_delta: f32,
    cosine: f64,
    /// KL divergence of our distribution from the reference, in nats.
    kl: f64,
    /// Whether the most probable token is the same.
    top1: bool,
    /// The share of the reference's five most probable tokens that are among ours.
    top5: f64,
}

/// The comparison of all positions.
#[derive(Serialize)]
struct Report {
    reference: String,
    model: String,
    model_sha256: String,
    positions: usize,
    max_delta: f32,
    mean_delta: f64,
    min_cosine: f64,
    mean_kl: f64,
    max_kl: f64,
    top1_agreement: f64,
    top5_agreement: f64,
    /// The first position with a difference above the tolerance.
    first_divergence: Option<usize>,
    /// The first position at which the most probable tokens differ.
    first_other_token: Option<usize>,
    tolerance: f32,
    status: &'static str,
    by_position: Vec<Position>,
}

/// Exit code 0 if the logits are close enough, 1 if not.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (logits, tokens) = match options.reference.is_dir() {
        true => (
            options.reference.join("logits.npy"),
            options.reference.join("tokens.json"),
        ),
        false => (
            options.reference.clone(),
            options.reference.with_file_name("tokens.json"),
        ),
    };
    let tokens = read_tokens(options.tokens.as_deref().unwrap_or(&tokens))?;
    let ([rows, vocab], expected) = read_npy(&logits)?;
    ensure!(
        rows == tokens.len(),
        "{} has logits of {rows} positions, but there are {} tokens",
        logits.display(),
        tokens.len()
    );

    let mut engine = options.model.open(tokens.len())?;
    let ours = engine.model().config.vocab_size;
    ensure!(
        ours == vocab,
        "{} has logits of {vocab} tokens, the model of {ours}",
        logits.display()
    );
    let (mut positions, mut total_delta) = (Vec::new(), 0.0);
    engine.evaluate(&tokens, 0, |first, found| -> anyhow::Result<()> {
        for (index, found) in found.chunks_exact(vocab).enumerate() {
            let position = first + index;
            let expected = &expected[position * vocab..(position + 1) * vocab];
            total_delta += found
                .iter()
                .zip(expected)
                .map(|(a, b)| f64::from((a - b).abs()))
                .sum::<f64>();
            positions.push(compare(position, tokens[position].0, found, expected));
        }
        Ok(())
    })?;

    let model = options.model.path();
    let report = summarize(
        options,
        &model,
        positions,
        total_delta / expected.len() as f64,
    )?;
    print!("{}", table(&report));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.receipt {
        let parity = Parity {
            reference: report.reference.clone(),
            cosine: Some(report.min_cosine),
            exact_match_rate: Some(report.top1_agreement),
            status: report.status.to_owned(),
        };
        add_to_receipt(parity, &report.model_sha256, &to_read(Some(path)))?;
    }
    Ok(if report.status == "ok" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn summarize(
    options: &Options,
    model: &Path,
    positions: Vec<Position>,
    mean_delta: f64,
) -> anyhow::Result<Report> {
    let mean = |value: fn(&Position) -> f64| {
        positions.iter().map(value).sum::<f64>() / positions.len() as f64
    };
    let top1_agreement = mean(|p| f64::from(u8::from(p.top1)));
    // NaN fails every comparison.
    let close = positions.iter().all(|p| p.cosine >= options.min_cosine)
        && top1_agreement >= options.min_match;
    Ok(Report {
        reference: options.reference.display().to_string(),
        model: model.display().to_string(),
        model_sha256: model_sha256(model)
            .with_context(|| format!("cannot read {}", model.display()))?,
        positions: positions.len(),
        max_delta: largest(positions.iter().map(|p| f64::from(p.max_delta))) as f32,
        mean_delta,
        min_cosine: least(positions.iter().map(|p| p.cosine)),
        mean_kl: mean(|p| p.kl),
        max_kl: largest(positions.iter().map(|p| p.kl)),
        top1_agreement,
        top5_agreement: mean(|p| p.top5),
        first_divergence: positions
            .iter()
            .position(|p| p.max_delta > options.tolerance || p.max_delta.is_nan()),
        first_other_token: positions.iter().position(|p| !p.top1),
        tolerance: options.tolerance,
        status: if close { "ok" } else { "divergence" },
        by_position: positions,
    })
}

fn compare(position: usize, token: u32, found: &[f32], expected: &[f32]) -> Position {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum::<f64>()
    };
    let (ours, theirs) = (top(found), top(expected));
    Position {
        position,
        token,
        max_delta: largest(
            found
                .iter()
                .zip(expected)
                .map(|(a, b)| f64::from((a - b).abs())),
        ) as f32,
        cosine: dot(found, expected) / (dot(found, found) * dot(expected, expected)).sqrt(),
        kl: divergence(expected, found),
        top1: ours[0] == theirs[0],
        top5: theirs.iter().filter(|token| ours.contains(token)).count() as f64
            / theirs.len() as f64,
    }
}

/// The largest value; NaN counts as the largest.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |max, value| {
        if value > max || value.is_nan() {
            value
        } else {
            max
        }
    })
}

/// The least value; NaN counts as the least.
fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, |min, value| {
        if value < min || value.is_nan() {
            value
        } else {
            min
        }
    })
}

/// The ids of the most probable tokens; equal logits in order of id.
fn top(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let count = TOP.min(ids.len());
    let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    ids.select_nth_unstable_by(count - 1, before);
    ids.truncate(count);
    ids.sort_by(before);
    ids
}

/// Σ p · (ln p − ln q) of the softmax of both.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        max + logits
            .iter()
            .map(|logit| (f64::from(*logit) - max).exp())
            .sum::<f64>()
            .ln()
    };
    let (sum_p, sum_q) = (log_sum(p), log_sum(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - sum_p, f64::from(*q) - sum_q);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

fn table(report: &Report) -> String {
    let mut text = format!("{} beside {}\n\n", report.model, report.reference);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "position    token    max |Δ|      cosine          KL  top-1  top-5"
    );
    for p in &report.by_position {
        let top1 = if p.top1 { "same" } else { "OTHER" };
        let Position {
            position,
            token,
            max_delta,
            cosine,
            kl,
            top5,
            ..
        } = p;
        let _ = writeln!(
            text,
            "{position:8} {token:8} {max_delta:10.2e}  {cosine:10.8} {kl:11.2e}  {top1:5} {:5.0} %",
            100.0 * top5
        );
    }
    let at = |position: Option<usize>| {
        position.map_or_else(|| "none".to_owned(), |at| format!("at position {at}"))
    };
    let _ = writeln!(
        text,
        "\n{}: largest |Δ| {:.2e}, mean {:.2e}; least cosine {:.8}; KL mean {:.2e}, largest {:.2e} nats",
        report.status,
        report.max_delta,
        report.mean_delta,
        report.min_cosine,
        report.mean_kl,
        report.max_kl
    );
    let _ = writeln!(
        text,
        "top-1 {:.1} %, top-5 {:.1} % of {} positions; first |Δ| above {:e}: {}; first other token: {}",
        100.0 * report.top1_agreement,
        100.0 * report.top5_agreement,
        report.positions,
        report.tolerance,
        at(report.first_divergence),
        at(report.first_other_token)
    );
    text
}

/// Adds a comparison of the model with this hash to its receipt. Leaves the file unchanged if the
/// receipt would not verify.
fn add_to_receipt(parity: Parity, model_sha256: &str, path: &Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let verifier = Verifier::new();
    let receipt = verifier
        .verify(&text, None)
        .with_context(|| path.display().to_string())?;
    if receipt.model.sha256 != model_sha256 {
        bail!(
            "{} is of another model: its hash is {}",
            path.display(),
            receipt.model.sha256
        );
    }
    let was_signed = receipt.signature.is_some();
    let receipt = receipt.with_parity(parity);
    verifier.verify(&receipt.to_json(), None).with_context(|| {
        format!(
            "{} stays as it was: with this comparison it would be refused",
            path.display()
        )
    })?;
    receipt
        .write(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if was_signed {
        println!(
            "{}: signature dropped, since it was made before the comparison",
            path.display()
        );
    }
    Ok(())
}

fn read_tokens(path: &Path) -> anyhow::Result<Vec<TokenId>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the tokens in {}", path.display()))?;
    let mut value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    if let Some(list) = value.get_mut("tokens") {
        value = list.take();
    }
    serde_json::from_value(value)
        .with_context(|| format!("{} has no list of token ids", path.display()))
}

/// Shape and numbers of a `.npy` file with a matrix of f32, little endian, row after row.
fn read_npy(path: &Path) -> anyhow::Result<([usize; 2], Vec<f32>)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_npy(&bytes).with_context(|| {
        format!(
            "{} is not a matrix of f32 in NumPy's format",
            path.display()
        )
    })
}

fn parse_npy(bytes: &[u8]) -> Option<([usize; 2], Vec<f32>)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (len, rest) = match version[0] {
        1 => rest
            .split_first_chunk::<2>()
            .map(|(len, rest)| (usize::from(u16::from_le_bytes(*len)), rest))?,
        _ => rest
            .split_first_chunk::<4>()
            .map(|(len, rest)| (u32::from_le_bytes(*len) as usize, rest))?,
    };
    let (header, data) = rest.split_at_checked(len)?;
    let header = std::str::from_utf8(header).ok()?;
    if !header.contains("'<f4'") || !header.contains("'fortran_order': False") {
        return None;
    }
    let shape = header.split_once("'shape': (")?.1.split(')').next()?;
    let shape: Vec<usize> = shape
        .split(',')
        .map(|size| size.trim().parse())
        .collect::<Result<_, _>>()
        .ok()?;
    let [rows, cols] = shape[..] else { return None };
    let (values, rest) = data.as_chunks::<4>();
    (rows.checked_mul(cols)? == values.len() && rest.is_empty()).then(|| {
        (
            [rows, cols],
            values
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_agree_in_everything() {
        let logits = [0.5, -1.0, 3.0, 2.0, 2.0, -7.0, 0.0];
        let same = compare(3, 9, &logits, &logits);
        assert_eq!((same.max_delta, same.top1, same.top5), (0.0, true, 1.0));
        assert!(
            (same.cosine - 1.0).abs() < 1e-12 && same.kl.abs() < 1e-12,
            "{same:?}"
        );
    }

    #[test]
    fn differences_are_reported_by_kind() {
        let (ours, theirs) = (
            [1.0, 0.0, 0.0, 0.0, 0.0, -9.0],
            [0.0, 2.0, 0.0, 0.0, 0.0, -9.0],
        );
        let found = compare(0, 0, &ours, &theirs);
        assert_eq!((found.max_delta, found.top1, found.top5), (2.0, false, 1.0));
        // p = softmax(theirs) and q = softmax(ours), computed by hand.
        let (z_p, z_q) = (
            4.0 + 2f64.exp() + (-9f64).exp(),
            4.0 + 1f64.exp() + (-9f64).exp(),
        );
        let kl = (2f64.exp() / z_p) * 2.0 - 1.0 / z_p + (z_q / z_p).ln();
        assert!((found.kl - kl).abs() < 1e-9, "{} {kl}", found.kl);
        let nan = compare(0, 0, &[f32::NAN; 6], &theirs);
        assert!(nan.max_delta.is_nan() && nan.cosine.is_nan());
    }

    #[test]
    fn nan_is_the_worst_value() {
        let numbers = [0.5, f64::NAN, 0.25, 2.0];
        assert!(least(numbers.into_iter()).is_nan() && largest(numbers.into_iter()).is_nan());
        assert_eq!(
            (
                least([0.5, 0.25].into_iter()),
                largest([0.5, 2.0].into_iter())
            ),
            (0.25, 2.0)
        );
    }

    #[test]
    fn a_receipt_stays_unchanged_if_it_would_not_verify() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipt.json");
        std::fs::copy(to_read(None), &path).unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        let sha256 = Verifier::new().verify(&before, None).unwrap().model.sha256;
        let parity = |cosine| Parity {
            reference: "elsewhere".to_owned(),
            cosine: Some(cosine),
            exact_match_rate: Some(0.5),
            status: "divergence".to_owned(),
        };
        let error = add_to_receipt(parity(f64::NAN), &sha256, &path).unwrap_err();
        assert!(
            format!("{error:#}").contains("stays as it was"),
            "{error:#}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        add_to_receipt(parity(0.5), &sha256, &path).unwrap();
        let after = Verifier::new()
            .verify(&std::fs::read_to_string(&path).unwrap(), None)
            .unwrap();
        assert_eq!(after.parity.unwrap().cosine, Some(0.5));
    }

    #[test]
    fn npy_files_are_read_and_other_files_rejected() {
        let file = |header: &str, data: &[f32]| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            data.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            bytes
        };
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(
            parse_npy(&file(header, &data)),
            Some(([2, 3], data.to_vec()))
        );
        assert_eq!(parse_npy(&file(header, &data[1..])), None);
        for (from, to) in [
            ("<f4", "<f8"),
            ("False", "True"),
            ("(2, 3)", "(6,)"),
            ("(2, 3)", "(2, x)"),
        ] {
            assert_eq!(
                parse_npy(&file(&header.replace(from, to), &data)),
                None,
                "{to}"
            );
        }
        assert_eq!(parse_npy(b"\x93NUMPY\x01"), None);
    }
}
