//! The time of `receipt verify`: `cargo bench -p xtask --features bench`. Required: less than 5 ms,
//! including the compilation of the schema.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use xtask::Verifier;

criterion_group!(benches, verify_receipt);
criterion_main!(benches);

fn verify_receipt(criterion: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benchmarks/receipts/inference.json");
    let text = std::fs::read_to_string(path).expect("the repository's receipt");
    let verifier = Verifier::new();
    let mut group = criterion.benchmark_group("verify_receipt");
    group.bench_function("verify", |bencher| {
        bencher.iter(|| {
            verifier
                .verify(black_box(&text), None)
                .expect("it verifies")
        });
    });
    group.bench_function("verify_with_a_new_verifier", |bencher| {
        bencher.iter(|| {
            Verifier::new()
                .verify(black_box(&text), None)
                .expect("it verifies")
        });
    });
}
