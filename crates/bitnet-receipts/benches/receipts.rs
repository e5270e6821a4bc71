//! Hashing the tokens of a receipt, its digest, and all gates together, less than 5 ms: `cargo
//! bench --no-default-features --features cpu,bench -- receipts`. `cargo bench -p xtask` adds the
//! JSON Schema.

use std::hint::black_box;
use std::path::Path;

use bitnet_inference::{Device, Engine, EngineOptions, Loaded, Request, load};
use bitnet_models::LoadOptions;
use bitnet_receipts::{Provenance, Receipt, digest, tokens_sha256, verify};
use bitnet_tokenizers::TokenId;
use criterion::{Criterion, criterion_group, criterion_main};

criterion_group!(benches, receipts);
criterion_main!(benches);

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
    let device = Device::cpu(1);
    let Loaded { model, .. } =
        load(&path, &LoadOptions::default(), device).expect("the golden model loads");
    let mut engine =
        Engine::new(model, None, device, EngineOptions::default()).expect("memory for the cache");
    let request = Request {
        prompt: (0..128).map(TokenId).collect(),
        max_tokens: Some(128),
        ..Request::default()
    };
    engine.counters().reset();
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
    Receipt::new(&engine.facts(), &request, &output, &finish, &provenance).expect("it verifies")
}
