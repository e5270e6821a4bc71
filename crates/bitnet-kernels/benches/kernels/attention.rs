//! Attention: first one row over a cache in memory, then the rows of a prompt; and writes to the
//! cache.

use bitnet_kernels::{
    AttentionScratch, AttentionShape, CACHE_BLOCK, Cpu, Huge, LayerCache, Place, Places, Qkv,
};
use criterion::Criterion;
use half::f16;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// Queries by head dimension: 2B-4T, then a model in which every head has its own keys, then one
/// with long heads.
const SHAPES: [(&str, AttentionShape); 3] = [
    (
        "20/5 heads of 128",
        AttentionShape {
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
        },
    ),
    (
        "32/32 heads of 100",
        AttentionShape {
            heads: 32,
            kv_heads: 32,
            head_dim: 100,
        },
    ),
    (
        "12/4 heads of 256",
        AttentionShape {
            heads: 12,
            kv_heads: 4,
            head_dim: 256,
        },
    ),
];
/// Bytes of key/value caches: more than any CPU cache has.
const MEMORY_BYTES: usize = 160 << 20;

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    let mut decode = group(criterion, "attention decode");
    for (name, shape) in SHAPES {
        for context in [128, 1024, 4096] {
            for machine in machines {
                machine.bench(&mut decode, &format!("{context} positions, {name}"), || {
                    attend(shape, context, 1)
                });
            }
        }
    }
    decode.finish();

    let mut prefill = group(criterion, "attention prefill");
    for (name, shape) in SHAPES {
        for (context, rows) in [(128, 128), (512, 128), (4096, 128)] {
            for machine in machines {
                let id = format!("{rows} rows up to {context}, {name}");
                machine.bench(&mut prefill, &id, || attend(shape, context, rows));
            }
        }
    }
    prefill.finish();

    let mut store = group(criterion, "attention store");
    for rows in [1, 128] {
        for machine in machines {
            machine.bench(&mut store, &format!("{rows} rows, {}", SHAPES[0].0), || {
                store_kv(SHAPES[0].1, rows)
            });
        }
    }
}

/// The cache of some layers, and rows of queries, keys and values.
struct Layers {
    shape: AttentionShape,
    data: Huge<f16>,
    layers: usize,
    blocks: Vec<u32>,
    rows: Vec<Place>,
    qkv: Vec<f32>,
    next: usize,
}

impl Layers {
    /// The last `rows` of `context` positions.
    fn new(shape: AttentionShape, context: usize, rows: usize, layers: usize) -> Self {
        let num_blocks = context.div_ceil(CACHE_BLOCK);
        let mut rng = Rng(context as u64);
        let pair = shape.key_block_len() + shape.value_block_len();
        let some: Vec<f16> = rng.floats(pair).into_iter().map(f16::from_f32).collect();
        // Use huge pages, as a model's cache does.
        let mut data = Huge::zeros(pair * num_blocks * layers);
        data.chunks_exact_mut(pair)
            .for_each(|to| to.copy_from_slice(&some));
        Self {
            shape,
            data,
            layers,
            blocks: (0..num_blocks as u32).collect(),
            rows: (context - rows..context)
                .map(|position| Place { position, table: 0 })
                .collect(),
            qkv: rng.floats(rows * (shape.heads + 2 * shape.kv_heads) * shape.head_dim),
            next: 0,
        }
    }

    /// The next layer's cache with its queries, keys and values.
    fn next(&mut self) -> (AttentionShape, Qkv<'_>, Places<'_>, LayerCache<'_, f16>) {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
        } = self.shape;
        self.next = (self.next + 1) % self.layers;
        let pair = self.shape.key_block_len() + self.shape.value_block_len();
        let offsets = [0, heads * head_dim, (heads + kv_heads) * head_dim];
        (
            self.shape,
            Qkv {
                data: &self.qkv,
                stride: (heads + 2 * kv_heads) * head_dim,
                offsets,
            },
            Places {
                rows: &self.rows,
                blocks: &self.blocks,
            },
            LayerCache {
                data: &mut self.data,
                offset: self.next * pair,
                stride: self.layers * pair,
            },
        )
    }
}

fn attend(shape: AttentionShape, context: usize, rows: usize) -> (Work, impl FnMut(&Cpu)) {
    let keys_seen: usize = (context - rows + 1..=context).sum();
    let cache_bytes = 2 * context * shape.kv_heads * shape.head_dim * size_of::<f16>();
    // One row reads another layer's cache each time; the rows of a prompt reuse what earlier rows
    // read.
    let (bytes, layers) = if rows == 1 {
        (cache_bytes, MEMORY_BYTES.div_ceil(cache_bytes))
    } else {
        (0, 1)
    };
    let work = Work {
        bytes,
        i8_macs: 0,
        f32_macs: 2 * keys_seen * shape.heads * shape.head_dim,
    };
    let mut layers = Layers::new(shape, context, rows, layers);
    let mut scratch = AttentionScratch::default();
    let mut out = vec![0.0; rows * shape.heads * shape.head_dim];
    let run = move |cpu: &Cpu| {
        let (shape, qkv, places, cache) = layers.next();
        cpu.attention(shape, qkv, places, &cache, &mut scratch, &mut out);
    };
    (work, run)
}

/// Writes rows to the caches of as many layers as a model has, so that the CPU's caches no longer
/// hold the blocks.
fn store_kv(shape: AttentionShape, rows: usize) -> (Work, impl FnMut(&Cpu)) {
    let mut layers = Layers::new(shape, 4096, rows, 16);
    let run = move |cpu: &Cpu| {
        let (shape, qkv, places, mut cache) = layers.next();
        cpu.store_kv(shape, qkv, places, &mut cache);
    };
    (Work::default(), run)
}
