//! Floats to packed weights and back: `cargo bench --no-default-features --features cpu,bench --
//! quantization`.
//!
//! On one thread, except the group `quantization_threads`, which gives the size from which threads
//! share the work. Rates are weights per second. The goals, from 16,384 weights on and for a core
//! with AVX-512: 1 Gelem/s to quantize and 2 to dequantize I2_S and I2S-32, 0.3 and 1 for the tiled
//! TL1 and TL2; and time proportional to size.

use std::f32::consts::TAU;

use bitnet_kernels::{Pool, default_threads};
use bitnet_quantization::i2_s::Form;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{Scaling, TernaryFormat, i2s_32, qk256, tl1, tl2};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};

const I2S: TernaryFormat = TernaryFormat::I2_S(Form::Block128);
const SIZES: [usize; 7] = [1_024, 4_096, 8_192, 16_384, 65_536, 262_144, 1_048_576];
/// The size for comparisons of formats, inputs and quantizers: floats and bytes fit into a core's
/// cache.
const SIZE: usize = 65_536;

criterion_group!(benches, sizes, patterns, formats, quantizers, threads);
criterion_main!(benches);

/// The three formats of the published CPU engine at every size.
fn sizes(criterion: &mut Criterion) {
    let pool = Pool::new(1);
    let mut group = criterion.benchmark_group("quantization_sizes");
    for size in SIZES {
        for codec in published(size) {
            codec.bench_quantize(
                &mut group,
                codec.id(size),
                &gaussian(size),
                Scaling::AbsMean,
                &pool,
            );
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("dequantization_sizes");
    for size in SIZES {
        for codec in published(size) {
            codec.bench_dequantize(&mut group, codec.id(size), &gaussian(size), &pool);
        }
    }
    group.finish();
}

/// Inputs whose neighbours differ more or less; times should not depend on it.
fn patterns(criterion: &mut Criterion) {
    let pool = Pool::new(1);
    let inputs: [(&str, Vec<f32>); 4] = [
        (
            "sequential",
            (0..SIZE).map(|i| i as f32 / SIZE as f32 - 0.5).collect(),
        ),
        (
            "sine",
            (0..SIZE).map(|i| (i as f32 * TAU / 1000.0).sin()).collect(),
        ),
        ("gaussian", gaussian(SIZE)),
        (
            "sparse",
            gaussian(SIZE)
                .into_iter()
                .enumerate()
                .map(|(i, x)| if i % 10 == 0 { x } else { 0.0 })
                .collect(),
        ),
    ];
    let mut group = criterion.benchmark_group("quantization_patterns");
    for (pattern, weights) in &inputs {
        for codec in published(SIZE) {
            let id = BenchmarkId::new(codec.name, pattern);
            codec.bench_quantize(&mut group, id, weights, Scaling::AbsMean, &pool);
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("dequantization_patterns");
    for (pattern, weights) in &inputs {
        for codec in published(SIZE) {
            codec.bench_dequantize(
                &mut group,
                BenchmarkId::new(codec.name, pattern),
                weights,
                &pool,
            );
        }
    }
    group.finish();
}

/// Every other format at one size.
fn formats(criterion: &mut Criterion) {
    let (pool, weights) = (Pool::new(1), gaussian(SIZE));
    let codecs = [
        Codec::ternary("I2S-block64", TernaryFormat::I2_S(Form::Block64), SIZE),
        Codec::ternary("I2S-row4", TernaryFormat::I2_S(Form::Row4), SIZE),
        Codec::ternary("TQ1_0", TernaryFormat::TQ(Kind::TQ1_0), SIZE),
        Codec::ternary("TQ2_0", TernaryFormat::TQ(Kind::TQ2_0), SIZE),
        Codec::ternary("Q4_0", TernaryFormat::Q4_0, SIZE),
        Codec::ternary("packed-uint8", TernaryFormat::HfPacked, SIZE),
        Codec {
            name: "I2S-32",
            shape: shape(SIZE),
            form: Packing::I2s32,
        },
        Codec {
            name: "QK256",
            shape: shape(SIZE),
            form: Packing::Qk256,
        },
    ];
    let mut group = criterion.benchmark_group("quantization_formats");
    for codec in &codecs {
        codec.bench_quantize(&mut group, codec.id(SIZE), &weights, Scaling::AbsMax, &pool);
    }
    group.finish();
    let mut group = criterion.benchmark_group("dequantization_formats");
    for codec in &codecs {
        codec.bench_dequantize(&mut group, codec.id(SIZE), &weights, &pool);
    }
    group.finish();
}

/// Different sources of the scale.
fn quantizers(criterion: &mut Criterion) {
    let (pool, weights) = (Pool::new(1), gaussian(SIZE));
    let mut group = criterion.benchmark_group("quantization_scalings");
    let codecs = [
        Codec::ternary("I2S", I2S, SIZE),
        Codec {
            name: "I2S-32",
            shape: shape(SIZE),
            form: Packing::I2s32,
        },
        Codec {
            name: "QK256",
            shape: shape(SIZE),
            form: Packing::Qk256,
        },
    ];
    for codec in codecs {
        for (name, scaling) in [
            ("absmean", Scaling::AbsMean),
            ("absmax", Scaling::AbsMax),
            ("given", Scaling::Given(0.8)),
        ] {
            codec.bench_quantize(
                &mut group,
                BenchmarkId::new(codec.name, name),
                &weights,
                scaling,
                &pool,
            );
        }
    }
    group.finish();
}

/// One thread and all threads, around the size from which they share the work.
fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantization_threads");
    let mut counts = vec![1, default_threads()];
    counts.dedup();
    for pool in counts.into_iter().map(Pool::new) {
        for size in [262_144, 524_288, 1_048_576, 16_777_216] {
            let codec = Codec::ternary("I2S", I2S, size);
            let id = BenchmarkId::new(format!("I2S-threads-{}", pool.num_threads()), size);
            codec.bench_quantize(&mut group, id, &gaussian(size), Scaling::AbsMean, &pool);
        }
    }
    group.finish();
}

/// A format, with a shape of the measured size.
struct Codec {
    name: &'static str,
    shape: (usize, usize),
    form: Packing,
}

#[derive(Clone, Copy)]
enum Packing {
    Ternary(TernaryFormat),
    I2s32,
    Qk256,
}

impl Codec {
    fn ternary(name: &'static str, format: TernaryFormat, size: usize) -> Self {
        Self {
            name,
            shape: shape(size),
            form: Packing::Ternary(format),
        }
    }

    fn id(&self, size: usize) -> BenchmarkId {
        BenchmarkId::new(self.name, size)
    }

    fn bench_quantize(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        id: BenchmarkId,
        weights: &[f32],
        scaling: Scaling,
        pool: &Pool,
    ) {
        let mut bytes = vec![0; self.size_bytes()];
        group.throughput(Throughput::Elements(weights.len() as u64));
        group.bench_function(id, |bencher| {
            bencher.iter(|| self.quantize(weights, scaling, &mut bytes, pool))
        });
    }

    fn bench_dequantize(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        id: BenchmarkId,
        weights: &[f32],
        pool: &Pool,
    ) {
        let (mut bytes, mut out) = (vec![0; self.size_bytes()], vec![0.0; weights.len()]);
        let scale = self.quantize(weights, Scaling::AbsMean, &mut bytes, pool);
        group.throughput(Throughput::Elements(weights.len() as u64));
        group.bench_function(id, |bencher| {
            bencher.iter(|| self.dequantize(&bytes, scale, &mut out, pool))
        });
    }

    fn size_bytes(&self) -> usize {
        let (rows, cols) = self.shape;
        let size = match self.form {
            Packing::Ternary(format) => format.size_bytes(rows, cols),
            Packing::I2s32 => i2s_32::size_bytes(rows, cols),
            Packing::Qk256 => qk256::size_bytes(rows, cols),
        };
        size.expect("the format holds the shape")
    }

    fn quantize(&self, weights: &[f32], scaling: Scaling, bytes: &mut [u8], pool: &Pool) -> f32 {
        let (rows, cols) = self.shape;
        let scale = match self.form {
            Packing::Ternary(format) => format.quantize(weights, rows, cols, scaling, bytes, pool),
            Packing::I2s32 => {
                i2s_32::quantize(weights, rows, cols, scaling, bytes, pool).map(|()| 1.0)
            }
            Packing::Qk256 => qk256::quantize(weights, rows, cols, scaling, bytes, pool),
        };
        scale.expect("the weights are finite")
    }

    fn dequantize(&self, bytes: &[u8], scale: f32, out: &mut [f32], pool: &Pool) {
        let (rows, cols) = self.shape;
        match self.form {
            Packing::Ternary(TernaryFormat::HfPacked) => TernaryFormat::HfPacked.dequantize_rows(
                bytes,
                scale,
                (rows, cols),
                0..rows,
                out,
                pool,
            ),
            Packing::Ternary(format) => {
                format.dequantize_rows(bytes, 1.0, (rows, cols), 0..rows, out, pool)
            }
            Packing::I2s32 => i2s_32::dequantize(bytes, rows, cols, out, pool),
            Packing::Qk256 => qk256::dequantize(bytes, scale, rows, cols, out, pool),
        }
        .expect("quantized by us");
    }
}

/// I2_S, TL1 and, from 8,192 weights on, TL2, whose smallest matrix is 32 rows of 256.
fn published(size: usize) -> Vec<Codec> {
    let (rows, cols) = shape(size);
    let tl1 = tl1::Tile::choose(rows, cols).expect("multiples of 32");
    let tl2 = tl2::Tile::choose(rows, cols);
    let named = [
        ("I2S", Some(I2S)),
        ("TL1", Some(TernaryFormat::TL1(tl1))),
        ("TL2", tl2.map(TernaryFormat::TL2)),
    ];
    named
        .into_iter()
        .filter_map(|(name, format)| Some(Codec::ternary(name, format?, size)))
        .collect()
}

/// The rows and columns, both powers of two, of a matrix with this number of weights, which is a
/// power of two of at least 1,024.
fn shape(size: usize) -> (usize, usize) {
    let rows = 32 << (size.ilog2().saturating_sub(13) / 2);
    (rows, size / rows)
}

/// Weights with mean 0 and standard deviation 1.
fn gaussian(size: usize) -> Vec<f32> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 24) as f32
    };
    // Box–Muller transform; 1 − u is never 0.
    (0..size)
        .map(|_| (-2.0 * (1.0 - uniform()).ln()).sqrt() * (TAU * uniform()).cos())
        .collect()
}
