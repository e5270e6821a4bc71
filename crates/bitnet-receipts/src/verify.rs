//! The gates that a receipt must pass.
//!
//! They find inconsistencies even if the forger recomputed the digest. A consistent forgery passes
//! them: only a rerun or a signature detects it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use bitnet_kernels::Kernel;
use bitnet_models::{FfnSparsity, HeadMode, I2sForm, InputRounding, KvType};

use crate::digest::{digest, tokens_sha256};
use crate::record::{
    DECODE, HybridRecord, KernelRecord, Layout, ModelRecord, PREFILL, Receipt, RunRecord,
    SCHEMA_VERSION, has_groups, kernel_id,
};
use crate::work::WorkKind;

/// The compute path of a run that multiplied by the quantized weights.
const REAL: &str = "real";
/// The backend whose kernels all run on the CPU.
pub(crate) const CPU: &str = "cpu";
/// The backend whose kernels all run on a GPU, and their name.
pub(crate) const GPU: &str = "gpu";
const GPU_KERNELS: &str = "wgsl";
/// Prefixes of the ids of products with weights converted to floats.
const FLOAT_PRODUCTS: [&str; 3] = ["fp32_", "dequant_", "fallback_"];
/// Maximum relative difference between a stated rate and the rate computed from the times.
const RATE_TOLERANCE: f64 = 0.01;
/// The maximum number of kernels in the list, and of characters in an id.
const KERNELS_MAX: usize = 10_000;
const ID_CHARS_MAX: usize = 128;
/// The values of `BITNET_DETERMINISTIC` that turn it off.
const FALSE: [&str; 7] = ["", "0", "f", "false", "n", "no", "off"];
/// The largest dimension of a model, and the largest count of tokens: no model exceeds them, and
/// below them no formula overflows.
const DIMENSION_MAX: u64 = 1 << 24;
const TOKENS_MAX: u64 = 1 << 32;

/// The checks, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptGate {
    /// The version, the fields and their types.
    Schema = 1,
    /// The compute path is `real`, and the kernels show it.
    ComputePath,
    /// The list of kernels is complete, and every kernel is known and counted.
    Kernels,
    /// The ids in that list are well-formed.
    Hygiene,
    /// The backend is known, and at least one of its kernels for quantized weights ran.
    Backend,
    /// No product used weights converted to floats.
    FloatProducts,
    /// Tokens, times and rates are consistent.
    Rates,
    /// Each kernel did the work that follows from the dimensions and tokens.
    Work,
    /// The hashes and the digest are right.
    Digest,
}

/// The reason why a receipt is invalid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("gate {}: {problem}", *gate as u8)]
pub struct Refusal {
    /// The gate that refused it.
    pub gate: ReceiptGate,
    /// The culprit and the numbers.
    pub problem: String,
}

/// Returns a refusal of `gate` unless `holds`.
fn ensure(gate: ReceiptGate, holds: bool, problem: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds {
        Ok(())
    } else {
        Err(Refusal {
            gate,
            problem: problem(),
        })
    }
}

/// Verifies the text of a receipt with all checks that need no model. Takes less than a
/// millisecond.
///
/// # Errors
/// The first gate that the receipt does not pass.
pub fn verify(text: &str) -> Result<Receipt, Refusal> {
    let schema = |error: serde_json::Error| Refusal {
        gate: ReceiptGate::Schema,
        problem: error.to_string(),
    };
    let value: serde_json::Value = serde_json::from_str(text).map_err(schema)?;
    // Parse the text, not `value`: parsing the text reports duplicate fields.
    let receipt: Receipt = serde_json::from_str(text).map_err(schema)?;
    let version = &receipt.schema_version;
    ensure(ReceiptGate::Schema, version == SCHEMA_VERSION, || {
        format!("schema_version is {version:?}, expected {SCHEMA_VERSION:?}")
    })?;
    hygiene(&receipt)?;
    compute_path_is_real(&receipt)?;
    backend(&receipt)?;
    kernels(&receipt)?;
    facts(&receipt)?;
    products(&receipt)?;
    rates(&receipt)?;
    work_is_done(&receipt)?;
    hashes(&receipt)?;
    let expected = digest(&value);
    ensure(ReceiptGate::Digest, receipt.digest == expected, || {
        format!(
            "digest is {:?}, but the digest of the content is {expected}",
            receipt.digest
        )
    })?;
    Ok(receipt)
}

/// The compute path of a run with these kernels: `real`, `fallback` if a product used weights
/// converted to floats, or `none` if there was no product of quantized weights.
pub(crate) fn compute_path<'a>(
    backend: &str,
    kernels: impl Iterator<Item = &'a str>,
) -> &'static str {
    let mut path = "none";
    for id in kernels {
        if is_float_product(id) {
            return "fallback";
        }
        if Kernel::ALL.iter().any(|kernel| {
            WorkKind::Products.is_done_by(*kernel) && kernel_id(backend, *kernel) == id
        }) {
            path = REAL;
        }
    }
    path
}

fn is_float_product(id: &str) -> bool {
    FLOAT_PRODUCTS.iter().any(|prefix| id.starts_with(prefix))
}

fn hygiene(receipt: &Receipt) -> Result<(), Refusal> {
    let kernels = &receipt.kernels;
    ensure(ReceiptGate::Kernels, !kernels.is_empty(), || {
        "no kernel ran".to_owned()
    })?;
    let refuse = |problem: String| Refusal {
        gate: ReceiptGate::Hygiene,
        problem,
    };
    if kernels.len() > KERNELS_MAX {
        return Err(refuse(format!(
            "{} kernels are listed, but at most {KERNELS_MAX} are allowed",
            kernels.len()
        )));
    }
    for id in kernels {
        let shown: String = id.chars().take(ID_CHARS_MAX).collect();
        match () {
            () if id.trim().is_empty() || id.contains(char::is_whitespace) => {
                return Err(refuse(format!(
                    "kernel id {shown:?} is blank or has white space"
                )));
            }
            () if id.chars().count() > ID_CHARS_MAX => {
                return Err(refuse(format!(
                    "kernel id {shown:?}… has more than {ID_CHARS_MAX} characters"
                )));
            }
            () if id.to_lowercase().contains("mock") => {
                return Err(refuse(format!("kernel {shown:?} is a mock")));
            }
            () => {}
        }
    }
    Ok(())
}

fn compute_path_is_real(receipt: &Receipt) -> Result<(), Refusal> {
    if let Some(id) = receipt.kernels.iter().find(|id| is_float_product(id)) {
        let problem = format!(
            "kernel {id} multiplies by weights converted to floats, so the run is not {REAL:?}"
        );
        return Err(Refusal {
            gate: ReceiptGate::FloatProducts,
            problem,
        });
    }
    let path = &receipt.compute_path;
    ensure(ReceiptGate::ComputePath, path == REAL, || {
        format!("compute_path is {path:?}, not {REAL:?}")
    })
}

fn backend(receipt: &Receipt) -> Result<(), Refusal> {
    let name = &receipt.backend;
    ensure(
        ReceiptGate::Backend,
        [CPU, GPU].contains(&name.as_str()),
        || format!("backend is {name:?}, but the known backends are {CPU:?} and {GPU:?}"),
    )?;
    device(receipt)?;
    let path = compute_path(name, receipt.kernels.iter().map(String::as_str));
    ensure(ReceiptGate::Backend, path == REAL, || {
        format!(
            "backend is {name:?}, but {:?} has none of its kernels for quantized weights",
            receipt.kernels
        )
    })?;
    let summary = &receipt.backend_summary;
    let parts = summary.strip_prefix("requested=").and_then(|rest| {
        let (requested, rest) = rest.split_once(" detected=[")?;
        let (detected, selected) = rest.split_once("] selected=")?;
        Some((requested, detected, selected))
    });
    let set = receipt.kernel_set.as_str();
    let fits = parts.is_some_and(|(requested, detected, selected)| {
        selected == set
            && (requested == "auto" || requested == set)
            && detected.split(", ").any(|name| name == set)
    });
    ensure(ReceiptGate::Backend, fits, || {
        format!("backend_summary {summary:?} does not fit kernel_set {set:?}")
    })
}

/// A receipt of a GPU names the adapter and its driver, and its kernels are WGSL; one of the CPU has
/// neither.
fn device(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Backend;
    let (name, set) = (&receipt.backend, &receipt.kernel_set);
    let is_gpu = name == GPU;
    ensure(gate, (set == GPU_KERNELS) == is_gpu, || {
        format!("backend is {name:?}, but kernel_set is {set:?}")
    })?;
    let Some(device) = &receipt.device else {
        return ensure(gate, !is_gpu, || {
            format!("backend is {name:?}, but no device is named")
        });
    };
    ensure(gate, is_gpu, || {
        format!(
            "backend is {name:?}, but the device {:?} is named",
            device.adapter
        )
    })?;
    let facts = [&device.adapter, &device.driver, &device.interface];
    ensure(
        gate,
        facts.iter().all(|fact| !fact.trim().is_empty()),
        || "the adapter, driver or interface of the device is blank".to_owned(),
    )
}

fn kernels(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Kernels;
    let listed: BTreeSet<&str> = receipt.kernels.iter().map(String::as_str).collect();
    ensure(gate, listed.len() == receipt.kernels.len(), || {
        "a kernel is listed twice".to_owned()
    })?;
    for id in &listed {
        let is_phase = [PREFILL, DECODE].contains(id);
        let is_kernel = |kernel: &Kernel| kernel_id(&receipt.backend, *kernel) == *id;
        let known = is_phase || Kernel::ALL.iter().any(is_kernel);
        ensure(gate, known, || {
            format!(
                "kernel {id:?} is unknown on the backend {:?}",
                receipt.backend
            )
        })?;
        let fits = match receipt.kernel_counts.get(*id) {
            Some(KernelRecord::Phase(_)) => is_phase,
            Some(KernelRecord::Kernel(count)) => !is_phase && count.calls > 0,
            None => false,
        };
        ensure(gate, fits, || {
            format!("kernel {id} is listed, but its counts do not show that it ran")
        })?;
    }
    let unlisted = receipt
        .kernel_counts
        .keys()
        .find(|id| !listed.contains(id.as_str()));
    ensure(gate, unlisted.is_none(), || {
        format!(
            "kernel {} is counted, but not listed",
            unlisted.map_or("", |id| id)
        )
    })
}

/// The kernels of ternary products must belong to the run's packings. Copies for sparse
/// activations, which only single rows use, have 2 bits in every packing.
fn products(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Kernels;
    let ModelRecord {
        ffn,
        heads,
        head_dim,
        ..
    } = receipt.model;
    let name = &receipt.run.packing;
    let of_packing = |kernel| {
        receipt
            .run
            .layouts()
            .any(|layout| layout.kernels().contains(&kernel))
    };
    let has_copies = receipt.run.may_have_copies();
    for layout in receipt.run.layouts() {
        let ran = layout
            .kernels()
            .iter()
            .any(|kernel| receipt.count(*kernel).is_some());
        ensure(gate, ran, || {
            format!(
                "packing is {name}, but no kernel for {} is listed",
                layout.name()
            )
        })?;
    }
    let mut of_lone_rows = 0;
    for kernel in Kernel::ALL
        .into_iter()
        .filter(|kernel| WorkKind::Products.is_done_by(*kernel))
    {
        let Some(count) = receipt.count(kernel) else {
            continue;
        };
        let fits = of_packing(kernel) || has_copies && kernel == Kernel::I2sGemv;
        ensure(gate, fits, || {
            format!(
                "kernel {} is listed, but no weights are packed for it: packing is {name}",
                kernel.id()
            )
        })?;
        let macs = u128::from(count.macs) + u128::from(count.macs_skipped);
        ensure(gate, macs > 0, || {
            format!("kernel {} is listed, but multiplied nothing", kernel.id())
        })?;
        if of_packing(kernel) && WorkKind::SingleRows.is_done_by(kernel) {
            of_lone_rows += macs;
        }
    }
    // A row that uses the copies of a layer has used the layer's attention output before.
    let copies = receipt
        .count(Kernel::I2sGemv)
        .filter(|_| !of_packing(Kernel::I2sGemv));
    let copies = copies.map_or(0, |count| {
        u128::from(count.macs) + u128::from(count.macs_skipped)
    });
    let most = 3 * u128::from(ffn) * (of_lone_rows / u128::from(heads * head_dim));
    ensure(gate, copies <= most, || {
        format!(
            "i2s_gemv executed and skipped {copies} MACs, but copies of weights packed as {name} allow at most {most}"
        )
    })
}

/// Returns a refusal of the gate of fields unless `holds`.
fn ensure_field(holds: bool, problem: String) -> Result<(), Refusal> {
    ensure(ReceiptGate::Schema, holds, || problem)
}

/// The numbers and names of environment, model and run, each on its own.
fn facts(receipt: &Receipt) -> Result<(), Refusal> {
    texts(receipt)?;
    names(&receipt.run)?;
    dimensions(receipt)?;
    seed(receipt)?;
    parity(receipt)
}

/// Texts that no receipt leaves blank, and the time in its form.
fn texts(receipt: &Receipt) -> Result<(), Refusal> {
    let Receipt {
        environment, model, ..
    } = receipt;
    ensure_field(
        humantime::parse_rfc3339(&receipt.timestamp).is_ok(),
        format!("timestamp is {:?}, not RFC 3339", receipt.timestamp),
    )?;
    for (name, text) in [
        ("BITNET_VERSION", &environment.bitnet_version),
        ("OS", &environment.os),
        ("RUST_VERSION", &environment.rust_version),
        ("CPU", &environment.cpu),
        ("path", &model.path),
        ("quantization", &model.quantization),
    ] {
        ensure_field(!text.trim().is_empty(), format!("{name} is blank"))?;
    }
    Ok(())
}

/// Names of the run's options.
fn names(run: &RunRecord) -> Result<(), Refusal> {
    // Several packings are joined with `+`.
    let is_packing = |name: &str| Layout::by_name(name).is_some();
    let is_kv_type = |kv_type: KvType| kv_type.name() == run.kv_type;
    let is_head = |mode: HeadMode| mode.name() == run.head;
    for (name, value, is_known) in [
        (
            "kv_type",
            &run.kv_type,
            [KvType::F16, KvType::F32].into_iter().any(is_kv_type),
        ),
        (
            "packing",
            &run.packing,
            run.packing.split('+').all(is_packing),
        ),
        // `auto` resolves to one of these at run time.
        (
            "head",
            &run.head,
            [HeadMode::Full, HeadMode::Screened]
                .into_iter()
                .any(is_head),
        ),
        (
            "ffn_sparsity",
            &run.ffn_sparsity,
            FfnSparsity::by_name(&run.ffn_sparsity).is_some(),
        ),
        (
            "i2_s_form",
            &run.i2_s_form,
            run.i2_s_form.parse::<I2sForm>().is_ok(),
        ),
    ] {
        ensure_field(is_known, format!("{name} is {value:?}, which is unknown"))?;
    }
    let rounding = run.group_inputs.as_deref();
    ensure_field(
        rounding.is_some() == has_groups(&run.packing)
            && rounding.is_none_or(|name| InputRounding::by_name(name).is_some()),
        format!(
            "group_inputs is {rounding:?}, which does not fit packing {:?}",
            run.packing
        ),
    )
}

fn dimensions(receipt: &Receipt) -> Result<(), Refusal> {
    ensure_field(receipt.environment.threads > 0, "threads is 0".to_owned())?;
    ensure_field(
        receipt.peak_rss_bytes != Some(0),
        "peak_rss_bytes is 0".to_owned(),
    )?;
    let ModelRecord {
        layers,
        hidden,
        ffn,
        heads,
        kv_heads,
        head_dim,
        vocab,
        hybrid,
        ..
    } = receipt.model;
    for (name, size) in [
        ("layers", layers),
        ("hidden", hidden),
        ("ffn", ffn),
        ("heads", heads),
        ("kv_heads", kv_heads),
        ("head_dim", head_dim),
        ("heads · head_dim", heads.saturating_mul(head_dim)),
        ("vocab", vocab),
        ("prefill_chunk", receipt.run.prefill_chunk),
    ] {
        ensure_dimension(name, size)?;
    }
    if let Some(hybrid) = hybrid {
        hybrid_dimensions(hybrid, layers, head_dim)?;
    }
    ensure_field(
        heads % kv_heads == 0,
        format!("{heads} heads are not a multiple of {kv_heads} key/value heads"),
    )
}

fn hybrid_dimensions(hybrid: HybridRecord, layers: u64, head_dim: u64) -> Result<(), Refusal> {
    let HybridRecord {
        key_heads,
        value_heads,
        state_dim,
        ..
    } = hybrid;
    for (name, size) in [
        ("hybrid.rotary_dim", hybrid.rotary_dim),
        ("hybrid.key_heads", key_heads),
        ("hybrid.value_heads", value_heads),
        ("hybrid.state_dim", state_dim),
        (
            "hybrid.key_heads · state_dim",
            key_heads.saturating_mul(state_dim),
        ),
        (
            "hybrid.value_heads · state_dim",
            value_heads.saturating_mul(state_dim),
        ),
    ] {
        ensure_dimension(name, size)?;
    }
    ensure_field(
        hybrid.attention_layers < layers
            && (hybrid.attention_layers > 0 || !hybrid.ends_with_attention)
            && hybrid.rotary_dim <= head_dim,
        format!("{hybrid:?} contradicts {layers} layers with heads of {head_dim}"),
    )
}

fn ensure_dimension(name: &str, size: u64) -> Result<(), Refusal> {
    ensure_field(
        (1..=DIMENSION_MAX).contains(&size),
        format!("{name} is {size}, but must be from 1 to {DIMENSION_MAX}"),
    )
}

/// The sampling parameters, and whether the run is as deterministic as they say.
fn seed(receipt: &Receipt) -> Result<(), Refusal> {
    let Receipt {
        environment, run, ..
    } = receipt;
    run.sampling
        .check(receipt.model.vocab as usize)
        .map_err(|error| Refusal {
            gate: ReceiptGate::Schema,
            problem: error.to_string(),
        })?;
    let is_set = environment
        .deterministic
        .as_deref()
        .is_some_and(|text| !FALSE.contains(&text.to_lowercase().as_str()));
    let fixed = run.sampling.temperature == 0.0 || environment.seed.is_some() || is_set;
    ensure_field(
        receipt.deterministic || !fixed,
        "deterministic is false, but the seed was fixed".to_owned(),
    )
}

fn parity(receipt: &Receipt) -> Result<(), Refusal> {
    let Some(parity) = &receipt.parity else {
        return Ok(());
    };
    let compared = [parity.cosine.is_some(), parity.exact_match_rate.is_some()];
    ensure_field(
        compared == [parity.status != "rust_only"; 2],
        format!(
            "parity status is {:?}, which contradicts its numbers",
            parity.status
        ),
    )
}

fn rates(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Rates;
    let Receipt {
        tokens_generated: generated,
        tokens_requested: requested,
        prefill_ms,
        ..
    } = *receipt;
    ensure(gate, generated > 0, || {
        "tokens_generated is 0: nothing ran".to_owned()
    })?;
    ensure(
        gate,
        generated <= requested && requested < TOKENS_MAX,
        || format!("tokens_generated is {generated}, tokens_requested {requested}"),
    )?;
    let reason = receipt.run.finish_reason.as_str();
    ensure(
        gate,
        reason == "stop" || reason == "length" && generated == requested,
        || format!("finish_reason is {reason:?} after {generated} of {requested} tokens"),
    )?;
    ensure(gate, prefill_ms > 0.0, || {
        format!("prefill_ms is {prefill_ms}")
    })?;
    let first = receipt.first_token_ms;
    ensure(gate, first >= prefill_ms, || {
        format!("first_token_ms is {first}, less than prefill_ms {prefill_ms}")
    })?;
    decode_rate(receipt)?;
    phase_times(receipt)
}

/// The rate of decoding: tokens after the first by the time that they took.
fn decode_rate(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Rates;
    let Receipt {
        tokens_generated: generated,
        decode_ms,
        ..
    } = *receipt;
    match (generated, receipt.tokens_per_second) {
        (1, None) => ensure(gate, decode_ms == 0.0, || {
            format!("decode_ms is {decode_ms} for a single token")
        }),
        (1, Some(rate)) => {
            let problem = format!("tokens_per_second is {rate}, but a single token has no rate");
            Err(Refusal { gate, problem })
        }
        (_, rate) => {
            ensure(gate, decode_ms > 0.0, || {
                format!("decode_ms is {decode_ms} for {generated} tokens")
            })?;
            let expected = (generated - 1) as f64 / (decode_ms / 1e3);
            let fits = rate
                .is_some_and(|rate| rate > 0.0 && (rate / expected - 1.0).abs() <= RATE_TOLERANCE);
            let shown = rate.map_or_else(|| "null".to_owned(), |rate| rate.to_string());
            ensure(gate, fits, || {
                format!(
                    "tokens_per_second is {shown}, but {generated} tokens in {decode_ms} ms make {expected:.3}"
                )
            })
        }
    }
}

/// The times of the kernels in each phase, which its whole time bounds.
fn phase_times(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Rates;
    let generated = receipt.tokens_generated;
    let wanted = [
        (PREFILL, true, receipt.prefill_ms),
        (DECODE, generated > 1, receipt.decode_ms),
    ];
    for (phase, ran, limit) in wanted {
        let time = match receipt.kernel_counts.get(phase) {
            Some(KernelRecord::Phase(time)) => Some(time.ms),
            _ => None,
        };
        ensure(gate, time.is_some() == ran, || {
            format!("{phase} contradicts {generated} generated tokens")
        })?;
        let ms = time.unwrap_or(limit);
        ensure(gate, !ran || ms > 0.0 && ms <= limit, || {
            format!("{phase} took {ms} ms of {limit} ms")
        })?;
    }
    Ok(())
}

fn work_is_done(receipt: &Receipt) -> Result<(), Refusal> {
    prompt_fits(receipt)?;
    drafts_fit(receipt)?;
    WorkKind::ALL
        .into_iter()
        .try_for_each(|work| counts_fit(work, receipt))
}

fn prompt_fits(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Work;
    let run = &receipt.run;
    let (prompt, cached) = (run.prompt_tokens.len() as u64, run.cached_tokens);
    ensure(gate, prompt < TOKENS_MAX && cached < prompt, || {
        format!("{cached} of {prompt} prompt tokens were cached, but at least one is computed")
    })?;
    let vocab = receipt.model.vocab;
    let stray = run
        .prompt_tokens
        .iter()
        .find(|token| u64::from(token.0) >= vocab);
    ensure(gate, stray.is_none(), || {
        format!("a prompt token is outside the vocabulary of {vocab} tokens")
    })
}

fn drafts_fit(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Work;
    let run = &receipt.run;
    let (drafted, accepted) = (run.drafted_tokens, run.accepted_tokens);
    let fits = accepted < receipt.tokens_generated
        && accepted <= drafted
        && drafted
            <= run
                .draft
                .saturating_mul(receipt.tokens_generated - 1 - accepted);
    ensure(gate, fits && run.draft < TOKENS_MAX, || {
        format!(
            "{drafted} tokens were drafted and {accepted} accepted, with at most {} in a step",
            run.draft
        )
    })?;
    // A refused draft makes a hybrid model compute the accepted tokens again, from a saved state.
    ensure(gate, receipt.model.hybrid.is_none() || drafted == 0, || {
        format!("{drafted} tokens were drafted, but receipts of hybrid models cover no drafts")
    })
}

/// The counts of the kernels that did `work`, together, are those that the run's dimensions and
/// tokens demand.
fn counts_fit(work: WorkKind, receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Work;
    let kernels = || {
        Kernel::ALL
            .into_iter()
            .filter(|kernel| work.is_done_by(*kernel))
    };
    let counts = kernels().filter_map(|kernel| receipt.count(kernel));
    let (mut executed, mut skipped, mut calls, mut bytes) = (0u128, 0u128, 0u128, 0u128);
    for count in counts {
        executed += u128::from(count.macs);
        skipped += u128::from(count.macs_skipped);
        calls += u128::from(count.calls);
        bytes += u128::from(count.bytes);
    }
    let ids = || {
        let ids = kernels().map(|kernel| kernel_id(&receipt.backend, kernel));
        ids.collect::<Vec<_>>().join(" and ")
    };
    let (macs, expected) = (executed + skipped, work.macs(receipt));
    ensure(gate, expected.contains(&macs), || {
        format!(
            "{} executed and skipped {macs} MACs, but dimensions and tokens demand {}",
            ids(),
            expected.end()
        )
    })?;
    let skipped_max = work.skipped_max(receipt);
    ensure(gate, skipped <= skipped_max, || {
        format!(
            "{} skipped {skipped} MACs, but at most {skipped_max} can be without effect",
            ids()
        )
    })?;
    let expected = work.bytes(receipt, executed);
    ensure(gate, expected.contains(&bytes), || {
        format!(
            "{} read {bytes} bytes, but {executed} MACs take {expected:?}",
            ids()
        )
    })?;
    let expected = work.calls(receipt);
    let fits = expected
        .as_ref()
        .is_none_or(|expected| expected.contains(&calls));
    ensure(gate, fits, || {
        let (least, most) = expected.map(RangeInclusive::into_inner).unwrap_or_default();
        format!("{} was called {calls} times, not {least} to {most}", ids())
    })
}

fn hashes(receipt: &Receipt) -> Result<(), Refusal> {
    let gate = ReceiptGate::Digest;
    for (name, hash) in [
        ("model.sha256", &receipt.model.sha256),
        ("prompt_tokens_sha256", &receipt.prompt_tokens_sha256),
        ("output_tokens_sha256", &receipt.output_tokens_sha256),
        ("digest", &receipt.digest),
    ] {
        let well_formed = hash.len() == 64
            && hash
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ensure(gate, well_formed, || {
            format!("{name} is {hash:?}, which is not a SHA-256")
        })?;
    }
    let expected = tokens_sha256(&receipt.run.prompt_tokens);
    ensure(gate, receipt.prompt_tokens_sha256 == expected, || {
        format!(
            "prompt_tokens_sha256 is {}, but the hash of the prompt is {expected}",
            receipt.prompt_tokens_sha256
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_decide_the_compute_path() {
        for (kernels, path) in [
            (&["embedding_lookup", "i2s_gemv"][..], "real"),
            (&["i2s_gemm"], "real"),
            (&["embedding_lookup", "logits_projection"], "none"),
            (&["i2s_gemv", "dequant_gemm"], "fallback"),
            (&["fp32_matmul"], "fallback"),
            (&["fallback_gemv", "i2s_gemv"], "fallback"),
            (&[], "none"),
        ] {
            assert_eq!(
                compute_path(CPU, kernels.iter().copied()),
                path,
                "{kernels:?}"
            );
        }
        assert_eq!(compute_path(GPU, ["gpu_i2s_gemv"].into_iter()), "real");
        assert_eq!(compute_path(GPU, ["i2s_gemv"].into_iter()), "none");
    }
}
