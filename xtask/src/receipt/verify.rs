//! `xtask receipt verify`: checks gates, schema and signature, and on request the model's file and
//! the run itself.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_inference::{Device, Engine, EngineOptions, Request};
use bitnet_kernels::{Kernel, Packing};
use bitnet_models::{FfnSparsity, HeadMode, I2sForm, InputRounding, LoadOptions, Tl1Tile, Tl2Tile};
use bitnet_receipts::{HybridRecord, KernelCount, Receipt, model_sha256, tokens_sha256};
use xtask::{Rejection, Verifier, read_verifying_key};

use super::to_read;
use crate::model::options::{self, DeviceOptions};

#[derive(clap::Args)]
pub struct Options {
    /// The receipt (default: benchmarks/receipts/inference.json of the repository)
    receipt: Option<PathBuf>,
    /// Check that the receipt names this model: its hash and its dimensions
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Repeat the run, which must give the same tokens; uses the model that the receipt names
    /// unless --model is given
    #[arg(long)]
    rerun: bool,
    /// Require a signature by this ed25519 public key (PEM)
    #[arg(long, value_name = "FILE")]
    verify_key: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
}

/// Verifies a receipt. The error names the check that failed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let path = to_read(options.receipt.as_deref());
    let key = options
        .verify_key
        .as_deref()
        .map(read_verifying_key)
        .transpose()?;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let receipt = Verifier::new()
        .verify(&text, key.as_ref())
        .with_context(|| path.display().to_string())?;
    let mut checked = vec!["schema", "gates", "digest"];
    if receipt.signature.is_some() {
        checked.push("signature");
    }
    if options.model.is_some() || options.rerun {
        let model = options
            .model
            .clone()
            .map_or_else(|| find_model(&receipt), Ok)?;
        same_file(&receipt, &model).with_context(|| path.display().to_string())?;
        let mut engine = open(&receipt, &model, options.device.device())?;
        same_dimensions(&receipt, &engine).with_context(|| path.display().to_string())?;
        checked.push("model");
        if options.rerun {
            same_output(&receipt, &mut engine).with_context(|| path.display().to_string())?;
            checked.push("rerun");
        }
    }
    println!("{}: accepted ({})", path.display(), checked.join(", "));
    Ok(())
}

/// The model that a receipt names. The built-in one has no path; its file is in the repository.
fn find_model(receipt: &Receipt) -> anyhow::Result<PathBuf> {
    let stated = PathBuf::from(&receipt.model.path);
    let built_in = options::built_in();
    if stated.exists() {
        return Ok(stated);
    }
    if model_sha256(&built_in).is_ok_and(|hash| hash == receipt.model.sha256) {
        return Ok(built_in);
    }
    anyhow::bail!(
        "the receipt's model {} does not exist here: give its path with --model",
        stated.display()
    )
}

fn same_file(receipt: &Receipt, model: &Path) -> anyhow::Result<()> {
    let found = model_sha256(model).with_context(|| format!("cannot read {}", model.display()))?;
    if found == receipt.model.sha256 {
        return Ok(());
    }
    let problem = format!(
        "{} has the hash {found}, the receipt says {}",
        model.display(),
        receipt.model.sha256
    );
    Err(Rejection::Model(problem).into())
}

/// An engine with the model, loaded and run with the receipt's settings.
fn open(receipt: &Receipt, model: &Path, device: Device) -> anyhow::Result<Engine> {
    let run = &receipt.run;
    let form: I2sForm = run
        .i2_s_form
        .parse()
        .map_err(|error| Rejection::Model(format!("i2_s_form: {error}")))?;
    let tl1 = run
        .tl1_tiles
        .iter()
        .map(|&[rows, cols, tile_rows, block_cols, inner_rows]| {
            (
                (rows, cols),
                Tl1Tile {
                    tile_rows,
                    block_cols,
                    inner_rows,
                },
            )
        });
    let tl2 = run
        .tl2_tiles
        .iter()
        .map(|&[rows, cols, tile_rows, block_cols]| {
            (
                (rows, cols),
                Tl2Tile {
                    tile_rows,
                    block_cols,
                },
            )
        });
    let head = HeadMode::by_name(&run.head)
        .ok_or_else(|| Rejection::Model(format!("head: {:?}", run.head)))?;
    let load = LoadOptions {
        i2_s_form: form,
        tl1_tiles: tl1.collect(),
        tl2_tiles: tl2.collect(),
        head,
        // With mixed packings, the receipt does not say which matrix has which.
        packing: Packing::by_name(&run.packing),
        ffn_sparsity: FfnSparsity::by_name(&run.ffn_sparsity).unwrap_or_default(),
        group_inputs: run
            .group_inputs
            .as_deref()
            .and_then(InputRounding::by_name)
            .unwrap_or_default(),
        ..LoadOptions::default()
    };
    let context = run.prompt_tokens.len() + receipt.tokens_requested as usize;
    let options = EngineOptions {
        context,
        cache: context,
        kv_type: options::parse_kv_type(&run.kv_type).map_err(Rejection::Model)?,
        prefill_chunk: run.prefill_chunk as usize,
        draft_max: run.draft as usize,
        draft_adapts: run.draft_adapts,
        ..EngineOptions::default()
    };
    self::options::open(model, &load, device, options)
}

fn same_dimensions(receipt: &Receipt, engine: &Engine) -> Result<(), Rejection> {
    let (config, stated) = (&engine.model().config, &receipt.model);
    let attention = config.attention;
    for (name, found, stated) in [
        ("layers", config.num_layers, stated.layers),
        ("hidden", config.hidden_size, stated.hidden),
        ("ffn", config.ffn_size, stated.ffn),
        ("heads", attention.heads, stated.heads),
        ("kv_heads", attention.kv_heads, stated.kv_heads),
        ("head_dim", attention.head_dim, stated.head_dim),
        ("vocab", config.vocab_size, stated.vocab),
        (
            "tied",
            usize::from(engine.model().is_tied),
            u64::from(stated.tied),
        ),
    ] {
        if found as u64 != stated {
            return Err(Rejection::Model(format!(
                "{name} is {stated} in the receipt, {found} in the model"
            )));
        }
    }
    let hybrid = HybridRecord::of(config);
    if hybrid != stated.hybrid {
        return Err(Rejection::Model(format!(
            "hybrid is {:?} in the receipt, {hybrid:?} in the model",
            stated.hybrid
        )));
    }
    let (found, stated) = (&engine.model().quantization, &stated.quantization);
    if found == stated {
        return Ok(());
    }
    Err(Rejection::Model(format!(
        "quantization is {stated:?} in the receipt, {found:?} in the model"
    )))
}

fn same_output(receipt: &Receipt, engine: &mut Engine) -> anyhow::Result<()> {
    let run = &receipt.run;
    // Stop strings need a tokenizer. The tokens before a match are the same without one.
    engine.counters().reset();
    let max_tokens = if run.stop_strings.is_empty() {
        receipt.tokens_requested
    } else {
        receipt.tokens_generated
    };
    let (output, _) = engine.complete(Request {
        prompt: run.prompt_tokens.clone(),
        sampling: run.sampling.clone(),
        max_tokens: Some(max_tokens as usize),
        stop_ids: run.stop_ids.clone(),
        ..Request::default()
    })?;
    if output.len() as u64 != receipt.tokens_generated {
        let problem = format!(
            "{} tokens, the receipt says {}",
            output.len(),
            receipt.tokens_generated
        );
        return Err(Rejection::Rerun(problem).into());
    }
    let found = tokens_sha256(&output);
    if found != receipt.output_tokens_sha256 {
        let problem = format!(
            "output_tokens_sha256 is {found}, the receipt says {}",
            receipt.output_tokens_sha256
        );
        return Err(Rejection::Rerun(problem).into());
    }
    // The rows differ if a part of the prompt was cached, if the token limit differs, or if times
    // decided how many tokens were drafted.
    let same_rows = run.cached_tokens == 0
        && !run.draft_adapts
        && (run.draft == 0 || run.stop_strings.is_empty());
    if same_rows && engine.model().packing == run.packing {
        same_kernels(receipt, engine)?;
    }
    Ok(())
}

/// The kernels that run follow from the model and the settings, not from instruction set or
/// threads. With the same version of the program the counts must be equal, with another version the
/// set of kernels.
fn same_kernels(receipt: &Receipt, engine: &Engine) -> Result<(), Rejection> {
    let is_same_version = receipt.environment.bitnet_version == env!("CARGO_PKG_VERSION");
    for kernel in Kernel::ALL {
        let (id, found) = (kernel.id(), engine.counters().get(kernel));
        let stated = receipt.count(kernel);
        if stated.is_some() != (found.calls > 0) {
            let problem = if stated.is_some() {
                "listed, but does not run"
            } else {
                "not listed, but runs"
            };
            return Err(Rejection::Rerun(format!("kernel {id} is {problem}")));
        }
        let found = KernelCount::from(found);
        if let Some(stated) = stated.filter(|stated| is_same_version && **stated != found) {
            return Err(Rejection::Rerun(format!(
                "kernel {id} counts {found:?}, in the receipt {stated:?}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_inference::SamplingParams;
    use bitnet_receipts::{Provenance, verify};
    use bitnet_tokenizers::TokenId;

    /// The receipt of a request to a small model.
    fn receipt_of(path: &Path, request: &Request, options: EngineOptions) -> Receipt {
        let load = LoadOptions {
            group_inputs: InputRounding::Int8(64),
            ..LoadOptions::default()
        };
        let options = EngineOptions {
            context: 128,
            cache: 128,
            ..options
        };
        let mut engine = options::open(path, &load, Device::cpu(2), options).unwrap();
        engine.counters().reset();
        let (output, finish) = engine.complete(request.clone()).unwrap();
        let provenance = Provenance {
            model_path: path.display().to_string(),
            model_sha256: model_sha256(path).unwrap(),
            load,
            kernels_requested: None,
            seed_given: true,
            bitnet_deterministic: None,
            bitnet_seed: None,
        };
        Receipt::new(&engine.facts(), request, &output, &finish, &provenance).unwrap()
    }

    #[test]
    fn a_run_with_adaptive_drafts_repeats() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/data/golden-group/qwen3-ptq1_0/model.gguf");
        let request = Request {
            prompt: (0..40).map(|i| TokenId(i % 4)).collect(),
            max_tokens: Some(60),
            sampling: SamplingParams {
                logit_bias: vec![(TokenId(3), 100.0)],
                ..SamplingParams::default()
            },
            ..Request::default()
        };
        let options = EngineOptions {
            draft_max: 16,
            draft_adapts: true,
            ..EngineOptions::default()
        };
        let receipt = receipt_of(&path, &request, options);
        let read = verify(&receipt.to_json()).unwrap();
        assert!(read.run.draft_adapts && read.run.drafted_tokens > 0);
        let mut again = open(&read, &path, Device::cpu(1)).unwrap();
        same_output(&read, &mut again).unwrap();
    }

    #[test]
    fn runs_of_group_and_hybrid_models_repeat() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden-group");
        for name in ["qwen3-ptq1_0", "qwen35-ptq1_0-rot512-part"] {
            let path = data.join(name).join("model.gguf");
            let request = Request {
                prompt: (0..40).map(TokenId).collect(),
                max_tokens: Some(6),
                ..Request::default()
            };
            let receipt = receipt_of(&path, &request, EngineOptions::default());
            same_file(&receipt, &path).unwrap();
            let mut again = open(&receipt, &path, Device::cpu(1)).unwrap();
            same_dimensions(&receipt, &again).unwrap();
            same_output(&receipt, &mut again).unwrap();
            let mut forged = receipt.clone();
            forged.model.hybrid = match receipt.model.hybrid {
                None => Some(HybridRecord {
                    attention_layers: 1,
                    ends_with_attention: true,
                    rotary_dim: 2,
                    key_heads: 1,
                    value_heads: 1,
                    state_dim: 1,
                }),
                Some(_) => None,
            };
            let error = same_dimensions(&forged, &again).unwrap_err().to_string();
            assert!(error.contains("hybrid is "), "{error}");
        }
    }

    #[test]
    fn a_repeated_run_detects_kernels_of_another_packing() {
        let rerun = |receipt: &Receipt| {
            let mut engine = open(receipt, &options::built_in(), Device::cpu(1)).unwrap();
            same_output(receipt, &mut engine)
        };
        let text = std::fs::read_to_string(to_read(None)).unwrap();
        let mut receipt = verify(&text).unwrap();
        rerun(&receipt).unwrap();
        receipt.run.packing = Packing::Tl2.name().to_owned();
        let error = rerun(&receipt).unwrap_err().to_string();
        assert_eq!(error, "rerun: kernel i2s_gemv is listed, but does not run");
        for (ran, other) in Packing::FiveThirds
            .kernels()
            .into_iter()
            .zip(Packing::Tl2.kernels())
        {
            *receipt
                .kernels
                .iter_mut()
                .find(|id| *id == ran.id())
                .unwrap() = other.id().to_owned();
            let count = receipt.kernel_counts.remove(ran.id()).unwrap();
            receipt.kernel_counts.insert(other.id().to_owned(), count);
        }
        let error = rerun(&receipt).unwrap_err().to_string();
        assert!(
            error.starts_with("rerun: kernel tl2_gemv counts KernelCount"),
            "{error}"
        );
    }
}
