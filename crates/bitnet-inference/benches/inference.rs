//! What the engine does between forward passes: `cargo bench --no-default-features --features
//! cpu,bench -- FILTER`.
//!
//! `stop_tokens`: whether a token ends an answer, asked once a token: less than 10 ns. `receipts`:
//! hashing the tokens of a receipt, its digest, and all gates together: less than 5 ms. The JSON
//! Schema comes on top of that in `cargo bench -p xtask`.

use std::hint::black_box;
use std::path::Path;

use bitnet_inference::receipt::{Provenance, Receipt, digest, tokens_sha256, verify};
use bitnet_inference::{Engine, EngineOptions, Loaded, Request, TokenSet, load};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, stop_tokens, receipts);
criterion_main!(benches);

/// Tokens asked about in one iteration, all over a vocabulary of 128,256.
const NUM_TOKENS: u32 = 4096;

fn stop_tokens(criterion: &mut Criterion) {
    let set = TokenSet::new(&[128_001, 128_008, 128_009].map(TokenId));
    let tokens: Vec<TokenId> = (0..NUM_TOKENS)
        .map(|i| TokenId(i.wrapping_mul(2_654_435_761) % 128_256))
        .collect();
    let mut group = criterion.benchmark_group("stop_tokens");
    group.throughput(Throughput::Elements(u64::from(NUM_TOKENS)));
    group.bench_function("contains", |bencher| {
        bencher.iter(|| {
            tokens
                .iter()
                .filter(|token| set.contains(black_box(**token)))
                .count()
        });
    });
}

fn receipts(criterion: &mut Criterion) {
    let receipt = receipt();
    let text = receipt.to_json();
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut group = criterion.benchmark_group("receipts");
    group.bench_function("verify", |bencher| {
        bencher.iter(|| verify(black_box(&text)).expect("it verifies"))
    });
    group.bench_function("digest", |bencher| {
        bencher.iter(|| digest(black_box(&value)))
    });
    let tokens = &receipt.run.prompt_tokens;
    group.bench_function("tokens_sha256", |bencher| {
        bencher.iter(|| tokens_sha256(black_box(tokens)))
    });
}

/// The receipt of a prompt of 128 tokens and 128 generated.
fn receipt() -> Receipt {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let Loaded { model, .. } =
        load(&path, &LoadOptions::default(), &cpu).expect("the golden model loads");
    let mut engine =
        Engine::new(model, None, cpu, EngineOptions::default()).expect("memory for the cache");
    let request = Request {
        prompt: (0..128).map(TokenId).collect(),
        max_tokens: Some(128),
        ..Request::default()
    };
    engine.cpu().counters().reset();
    let (output, finish) = engine.complete(request.clone()).expect("a good request");
    let provenance = Provenance {
        model_path: path.display().to_string(),
        model_sha256: "0".repeat(64),
        load: LoadOptions::default(),
        kernels_requested: None,
        seed_given: true,
        bitnet_deterministic: None,
        bitnet_seed: None,
    };
    Receipt::new(&engine, &request, &output, &finish, &provenance).expect("it verifies")
}
