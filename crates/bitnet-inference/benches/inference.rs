//! The engine's work between forward passes: `cargo bench --no-default-features --features
//! cpu,bench -- FILTER`.
//!
//! `stop_tokens`: looking up whether a token ends an answer, once per token: less than 10 ns.

use std::hint::black_box;

use bitnet_inference::TokenSet;
use bitnet_tokenizers::TokenId;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, stop_tokens);
criterion_main!(benches);

/// Tokens looked up in one iteration, spread over a vocabulary of 128,256.
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
