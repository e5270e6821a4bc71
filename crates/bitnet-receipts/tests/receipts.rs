//! Receipts of real runs verify, and edited ones do not.

use std::path::{Path, PathBuf};

use bitnet_inference::{
    Device, Engine, EngineOptions, Finish, Loaded, Request, SamplingParams, load,
};
use bitnet_kernels::{KernelSet, Packing};
use bitnet_models::{FfnSparsity, HeadMode, InputRounding, KvType, LoadOptions};
use bitnet_receipts::{
    KernelRecord, Parity, Provenance, Receipt, ReceiptGate, Refusal, model_sha256, verify,
};
use bitnet_tokenizers::TokenId;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden")
        .join(name)
}

fn engine(path: &Path, kernels: &'static KernelSet, options: EngineOptions) -> Engine {
    let device = Device::with_kernels(kernels, 2);
    let Loaded { model, .. } =
        load(path, &LoadOptions::default(), device).expect("a golden model loads");
    Engine::new(model, None, device, options).expect("memory for the cache")
}

fn request(prompt: impl IntoIterator<Item = u32>, max_tokens: Option<usize>) -> Request {
    Request {
        prompt: prompt.into_iter().map(TokenId).collect(),
        sampling: SamplingParams {
            seed: 5,
            ..SamplingParams::default()
        },
        max_tokens,
        ..Request::default()
    }
}

/// Runs a request alone, with the counters at zero.
fn run(engine: &mut Engine, request: &Request) -> (Vec<TokenId>, Finish) {
    engine.counters().reset();
    engine.complete(request.clone()).expect("a good request")
}

fn receipt(engine: &mut Engine, request: &Request, path: &Path) -> Result<Receipt, Refusal> {
    let (tokens, finish) = run(engine, request);
    let provenance = Provenance {
        model_path: path.display().to_string(),
        model_sha256: model_sha256(path).expect("it can be read"),
        load: LoadOptions::default(),
        kernels_requested: None,
        seed_given: true,
        bitnet_deterministic: None,
        bitnet_seed: None,
    };
    Receipt::new(&engine.facts(), request, &tokens, &finish, &provenance)
}

#[test]
fn counts_of_every_graph_and_format_match_the_formula() {
    for (name, prompt, generate, prefill_chunk, kv_type) in [
        ("strict-b158/model-i2_s.gguf", 1, 1, 128, KvType::F16),
        ("strict-b158/model-i2_s.gguf", 9, 12, 4, KvType::F32),
        ("strict-b158/hf-packed", 8, 3, 4, KvType::F16),
        ("strict-b158/hf-packed", 5, 1, 1, KvType::F16),
        ("strict-1bitllm/model-i2_s.gguf", 300, 20, 128, KvType::F16),
        ("strict-1bitllm/model-i2_s.gguf", 129, 2, 128, KvType::F32),
        ("strict-rms/hf-packed", 7, 5, 3, KvType::F16),
        ("strict-rms/hf-bf16", 2, 5, 64, KvType::F16),
    ] {
        let options = EngineOptions {
            context: 512,
            kv_type,
            prefill_chunk,
            ..EngineOptions::default()
        };
        let mut engine = engine(&golden(name), KernelSet::detect(), options);
        let request = request((0..prompt).map(|i| i % 7), Some(generate));
        let receipt = receipt(&mut engine, &request, &golden(name))
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(receipt.tokens_generated, generate as u64);
        assert_eq!(receipt.tokens_per_second.is_some(), generate > 1, "{name}");
    }
}

/// A model with group scales, in a folder of `tests/data`.
fn grouped(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    data.join(name).join("model.gguf")
}

#[test]
fn counts_of_group_and_hybrid_models_match_the_formula() {
    for name in [
        "golden-graphs/qwen2",
        "golden-graphs/qwen2-i2_s",
        "golden-graphs/qwen3",
        "golden-graphs/minicpm",
        "golden-graphs/hunyuan-dense",
        "golden-group/qwen3-ptq1_0",
        "golden-group/qwen35-ptq1_0-rot512-part",
    ] {
        for (prompt, generate, prefill_chunk) in [
            (1, 1, 128),
            (37, 12, 5),
            (70, 3, 128),
            (33, 2, 32),
            (96, 3, 128),
            (64, 2, 48),
            (5, 6, 1),
        ] {
            let options = EngineOptions {
                context: 256,
                prefill_chunk,
                ..EngineOptions::default()
            };
            let path = grouped(name);
            let mut engine = engine(&path, KernelSet::detect(), options);
            let request = request((0..prompt).map(|i| i % 7), Some(generate));
            let receipt = receipt(&mut engine, &request, &path)
                .unwrap_or_else(|refusal| panic!("{name} {prompt} {prefill_chunk}: {refusal}"));
            assert_eq!(receipt.compute_path, "real");
            let has_groups = !name.ends_with("i2_s");
            assert_eq!(receipt.run.group_inputs.is_some(), has_groups, "{name}");
            assert_eq!(receipt.model.hybrid.is_some(), name.contains("qwen35"));
            if prompt != 37 {
                continue;
            }
            // A count that is off by little is found, in each kernel.
            for id in &receipt.kernels {
                let mut forged = receipt.clone();
                match forged.kernel_counts.get_mut(id) {
                    Some(KernelRecord::Kernel(count)) if count.macs > 0 => count.macs -= 1,
                    _ => continue,
                }
                let text = forged.with_parity(rust_only()).to_json();
                let refusal = verify(&text).expect_err(id);
                assert_eq!(refusal.gate, ReceiptGate::Work, "{name} {id}: {refusal}");
            }
            let mut forged = receipt.clone();
            let mut has_products = false;
            for (id, record) in &mut forged.kernel_counts {
                if let KernelRecord::Kernel(count) = record
                    && (id.starts_with("sign_") || id.starts_with("two_bit_"))
                {
                    (count.bytes, has_products) = (2 * count.bytes, true);
                }
            }
            let text = forged.with_parity(rust_only()).to_json();
            assert_eq!(
                verify(&text).is_err(),
                has_products,
                "{name}: twice the bytes"
            );
        }
    }
}

fn rust_only() -> Parity {
    Parity {
        reference: "none".to_owned(),
        cosine: None,
        exact_match_rate: None,
        status: "rust_only".to_owned(),
    }
}

#[test]
fn drafts_of_hybrid_models_and_unrounded_inputs_have_no_receipt() {
    let path = grouped("golden-group/qwen35-ptq1_0-rot512-part");
    let mut hybrid = engine(&path, KernelSet::detect(), EngineOptions::default());
    let request = request((0..40).map(|i| i % 3), Some(30));
    let mut forged = receipt(&mut hybrid, &request, &path).expect("a receipt");
    (forged.run.draft, forged.run.drafted_tokens) = (3, 1);
    let text = forged.with_parity(rust_only()).to_json();
    let refusal = verify(&text).expect_err("it drafted");
    let expected = "receipts of hybrid models cover no drafts";
    assert!(refusal.problem.contains(expected), "{refusal}");

    let load_options = LoadOptions {
        group_inputs: InputRounding::None,
        ..LoadOptions::default()
    };
    let path = grouped("golden-group/qwen3-ptq1_0");
    let device = Device::cpu(1);
    let Loaded { model, .. } = load(&path, &load_options, device).expect("it loads");
    let mut floats =
        Engine::new(model, None, device, EngineOptions::default()).expect("memory for the cache");
    let refusal = receipt(&mut floats, &request, &path).expect_err("floats are not quantized");
    assert_eq!(refusal.gate, ReceiptGate::ComputePath, "{refusal}");
}

#[test]
fn receipts_of_all_packings_and_modes_verify() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let mut packings: Vec<_> = Packing::ALL
        .map(|packing| (Some(packing), Vec::new()))
        .into();
    let up = (2 * 384, 256);
    packings.push((Some(Packing::Two), vec![(up, Packing::Tl2)]));
    packings.push((Some(Packing::Tl1), vec![((256, 384), Packing::FiveThirds)]));
    packings.push((Some(Packing::Tl1), vec![(up, Packing::Tl2)]));
    let mut with_copies = 0;
    for (packing, packings) in packings {
        for (ffn_sparsity, head) in FfnSparsity::ALL
            .into_iter()
            .flat_map(|sparsity| [HeadMode::Full, HeadMode::Screened].map(|head| (sparsity, head)))
        {
            let load_options = LoadOptions {
                packing,
                packings: packings.clone(),
                ffn_sparsity,
                head,
                ..LoadOptions::default()
            };
            let Loaded { model, .. } =
                load(&path, &load_options, Device::cpu(2)).expect("a golden model loads");
            for (draft_max, kv_type) in [(0, KvType::F16), (0, KvType::F32), (3, KvType::F16)] {
                for prefill_chunk in [1, 4, 128] {
                    let options = EngineOptions {
                        draft_max,
                        kv_type,
                        prefill_chunk,
                        ..EngineOptions::default()
                    };
                    let device = Device::cpu(2);
                    let mut engine = Engine::new(model.clone(), None, device, options)
                        .expect("memory for the cache");
                    let request = request((0..21).map(|i| i % 5), Some(12));
                    let receipt = receipt(&mut engine, &request, &path).unwrap_or_else(|refusal| {
                        panic!("{load_options:?} {options:?}: {refusal}");
                    });
                    let looked_up = receipt
                        .run
                        .packing
                        .split('+')
                        .all(|name| name.starts_with("tl"));
                    with_copies +=
                        usize::from(looked_up && receipt.kernels.iter().any(|id| id == "i2s_gemv"));
                }
            }
        }
    }
    assert!(
        with_copies > 0,
        "no row used a copy for sparse activations, so this test does not cover them"
    );
}

#[test]
fn cached_prompt_tokens_are_not_counted_as_computed() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let mut engine = engine(
        &path,
        KernelSet::detect(),
        EngineOptions {
            prefill_chunk: 5,
            ..EngineOptions::default()
        },
    );
    run(&mut engine, &request(0..200, Some(4)));
    let receipt = receipt(&mut engine, &request(0..230, Some(6)), &path).expect("it verifies");
    assert!(
        (64..=200).contains(&receipt.run.cached_tokens),
        "{} tokens",
        receipt.run.cached_tokens
    );
}

#[test]
fn accepted_and_rejected_draft_tokens_are_counted() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let (mut right, mut wrong) = (0, 0);
    for (seed, head) in (0..6).zip([HeadMode::Full, HeadMode::Screened].into_iter().cycle()) {
        let load_options = LoadOptions {
            head,
            ..LoadOptions::default()
        };
        let device = Device::cpu(2);
        let Loaded { model, .. } =
            load(&path, &load_options, device).expect("a golden model loads");
        let options = EngineOptions {
            draft_max: 3,
            prefill_chunk: 7,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(model, None, device, options).expect("memory for the cache");
        let mut request = request((0..30).map(|i| (i + seed) % 5), Some(40));
        request.sampling.temperature = 0.0;
        let receipt = receipt(&mut engine, &request, &path).expect("it verifies");
        assert_eq!(receipt.run.head, head.name());
        right += receipt.run.accepted_tokens;
        wrong += receipt.run.drafted_tokens - receipt.run.accepted_tokens;
    }
    assert!(
        right > 0 && wrong > 0,
        "{right} accepted, {wrong} rejected: this test needs both"
    );
}

#[test]
fn a_run_with_the_scalar_kernels_is_real() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let scalar = KernelSet::by_name("scalar").expect("always there");
    let mut engine = engine(&path, scalar, EngineOptions::default());
    let receipt = receipt(&mut engine, &request(0..5, Some(3)), &path).expect("it verifies");
    assert_eq!(
        (receipt.compute_path.as_str(), receipt.kernel_set.as_str()),
        ("real", "scalar")
    );
    for id in [
        "embedding_lookup",
        "prefill_forward",
        "i2s_gemv",
        "rope_apply",
        "attention_real",
        "decode_forward",
    ] {
        assert!(
            receipt.kernels.iter().any(|kernel| kernel == id),
            "{id} in {:?}",
            receipt.kernels
        );
    }
    assert_eq!(receipt.model.quantization, "I2_S");
}

#[test]
fn receipts_name_the_table_lookup_kernels() {
    let path = golden("strict-b158/model-i2_s.gguf");
    for (packing, of_one, of_several) in [
        (Packing::Tl1, "tl1_gemv", "tl1_gemm"),
        (Packing::Tl2, "tl2_gemv", "tl2_gemm"),
    ] {
        let device = Device::cpu(2);
        let load_options = LoadOptions {
            packing: Some(packing),
            ..LoadOptions::default()
        };
        let Loaded { model, .. } =
            load(&path, &load_options, device).expect("a golden model loads");
        let mut engine = Engine::new(model, None, device, EngineOptions::default())
            .expect("memory for the cache");
        let receipt = receipt(&mut engine, &request(0..5, Some(3)), &path).expect("it verifies");
        assert_eq!(
            (receipt.run.packing.as_str(), receipt.compute_path.as_str()),
            (packing.name(), "real")
        );
        let products = receipt
            .kernels
            .iter()
            .filter(|id| id.contains("_gem"))
            .collect::<Vec<_>>();
        assert_eq!(products, [of_several, of_one]);
    }
}

#[test]
fn answers_that_end_at_the_context_or_at_a_stop_token_verify() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let mut engine = engine(
        &path,
        KernelSet::detect(),
        EngineOptions {
            context: 64,
            ..EngineOptions::default()
        },
    );
    let whole = receipt(&mut engine, &request(0..5, None), &path).expect("it verifies");
    assert_eq!((whole.tokens_requested, whole.tokens_generated), (59, 59));
    let (tokens, _) = run(&mut engine, &request(9..14, Some(10)));
    let stopped = Request {
        stop_ids: vec![tokens[3]],
        ..request(9..14, Some(10))
    };
    let mut fresh = self::engine(&path, KernelSet::detect(), EngineOptions::default());
    let stopped = receipt(&mut fresh, &stopped, &path).expect("it verifies");
    assert!(stopped.tokens_generated <= 4 && stopped.run.finish_reason == "stop");
}

#[test]
fn a_receipt_with_the_work_of_other_requests_is_refused() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let mut engine = engine(&path, KernelSet::detect(), EngineOptions::default());
    let request = request(0..5, Some(3));
    let (tokens, finish) = run(&mut engine, &request);
    engine
        .evaluate(&request.prompt, 0, |_, _| {
            Ok::<_, bitnet_inference::Error>(())
        })
        .expect("a good prompt");
    let provenance = Provenance {
        model_path: path.display().to_string(),
        model_sha256: "0".repeat(64),
        load: LoadOptions::default(),
        kernels_requested: None,
        seed_given: true,
        bitnet_deterministic: None,
        bitnet_seed: None,
    };
    let refusal = Receipt::new(&engine.facts(), &request, &tokens, &finish, &provenance)
        .expect_err("too much was counted");
    assert_eq!(refusal.gate, ReceiptGate::Work, "{refusal}");
}

#[test]
fn a_written_receipt_reads_back_equal() {
    let path = golden("strict-b158/model-i2_s.gguf");
    let mut engine = engine(&path, KernelSet::detect(), EngineOptions::default());
    let mut request = request(0..5, Some(3));
    request.sampling.logit_bias = vec![
        (TokenId(3), f32::NEG_INFINITY),
        (TokenId(4), 0.1),
        (TokenId(5), -1.5),
    ];
    request.sampling.temperature = 0.7;
    let receipt = receipt(&mut engine, &request, &path).expect("it verifies");
    assert_eq!(receipt.run.sampling, request.sampling);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("receipt.json");
    receipt.write(&file).expect("it can be written");
    let text = std::fs::read_to_string(&file).expect("it can be read");
    assert_eq!(verify(&text).expect("it verifies"), receipt);
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        1,
        "the temporary file is gone"
    );
}

#[cfg(unix)]
#[test]
fn writing_a_receipt_keeps_links_and_devices() {
    use std::os::unix::fs::FileTypeExt;

    let path = golden("strict-b158/model-i2_s.gguf");
    let mut engine = engine(&path, KernelSet::detect(), EngineOptions::default());
    let receipt = receipt(&mut engine, &request(0..5, Some(3)), &path).expect("it verifies");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("elsewhere")).expect("a folder");
    std::fs::write(at("elsewhere/file"), "of before").expect("a file");
    std::os::unix::fs::symlink("elsewhere/file", at("link")).expect("a link");
    receipt.write(&at("link")).expect("it can be written");
    assert!(
        std::fs::symlink_metadata(at("link"))
            .expect("a link")
            .is_symlink()
    );
    assert_eq!(
        std::fs::read_to_string(at("elsewhere/file")).expect("a file"),
        receipt.to_json()
    );

    let pipe = at("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .expect("it runs")
            .success()
    );
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe)
    });
    receipt.write(&pipe).expect("it can be written");
    assert!(
        std::fs::metadata(&pipe)
            .expect("it is there")
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        reader
            .join()
            .expect("no panic")
            .expect("the received bytes"),
        receipt.to_json()
    );

    std::os::unix::fs::symlink("nowhere", at("dangling")).expect("a link");
    assert!(receipt.write(&at("dangling")).is_err());
    assert!(receipt.write(folder.path()).is_err());
}
