//! Attention over the paged key/value cache, and the writing of that cache.
//!
//! The keys of a sequence are walked in segments of [`SEGMENT_KEYS`] at absolute positions 0, 256, 512, …. Each segment
//! gives a partial result (largest score, sum of weights, weighted sum of values); partials are merged in ascending
//! order. Neither the number of threads, nor how many rows are computed at once, nor where blocks lie in the pool moves a
//! segment border, so none of them moves a bit of the result.

use std::ops::Range;

use crate::counters::Kernel;
use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::set::{CACHE_BLOCK, CacheElement, KernelSet, Partial, SEGMENT_HEADS, SEGMENT_KEYS, Segment};

/// The longest head that the stack buffers take.
pub const MAX_HEAD_DIM: usize = 512;

/// The shape of the attention of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Length of a head, at most [`MAX_HEAD_DIM`].
    pub head_dim: usize,
}

impl AttentionShape {
    /// Length of a value row in the cache: `head_dim` rounded up to a multiple of 16.
    #[must_use]
    pub fn value_dim(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Elements of the keys of one block, all heads: `[kv_heads, head_dim, CACHE_BLOCK]`.
    #[must_use]
    pub fn key_block_len(&self) -> usize {
        self.kv_heads * self.head_dim * CACHE_BLOCK
    }

    /// Elements of the values of one block, all heads: `[kv_heads, CACHE_BLOCK, value_dim]`.
    #[must_use]
    pub fn value_block_len(&self) -> usize {
        self.kv_heads * CACHE_BLOCK * self.value_dim()
    }

    /// `1/√head_dim`, what scores are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// The cache of one layer: keys `[blocks, kv_heads, head_dim, CACHE_BLOCK]`, values `[blocks, kv_heads, CACHE_BLOCK, value_dim]`.
pub struct LayerCache<'a, T> {
    /// Keys, transposed inside a block.
    pub keys: &'a mut [T],
    /// Values.
    pub values: &'a mut [T],
}

/// Where a row stands in its sequence, and where the blocks of that sequence are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub position: usize,
    /// Index into [`Places::blocks`] of the sequence's first block.
    pub table: usize,
}

impl Place {
    fn num_segments(&self) -> usize {
        self.position / SEGMENT_KEYS + 1
    }
}

/// The places of the rows of a batch, and the block tables of their sequences.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// One for each row.
    pub rows: &'a [Place],
    /// The tables of all sequences: entry `table + i` is the block that holds positions `i · CACHE_BLOCK` and on.
    pub blocks: &'a [u32],
}

impl Places<'_> {
    /// The block of the cache that holds the `index`-th run of positions of a row's sequence.
    fn block(&self, place: &Place, index: usize) -> usize {
        self.blocks[place.table + index] as usize
    }
}

/// Rows of queries, keys and values side by side in one buffer, `[rows, stride]`, as the fused projection gives them.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// All rows.
    pub data: &'a [f32],
    /// Length of a row.
    pub stride: usize,
    /// Where in a row its queries begin, then its keys, then its values.
    pub offsets: [usize; 3],
}

impl<'a> Qkv<'a> {
    fn part(&self, row: usize, part: usize, range: Range<usize>) -> &'a [f32] {
        let start = row * self.stride + self.offsets[part];
        &self.data[start + range.start..start + range.end]
    }
}

/// Partial results kept between the two steps of a split attention. Grows when the context does.
#[derive(Default)]
pub struct AttentionScratch {
    partials: Vec<f32>,
}

impl Cpu {
    /// Writes the keys and values of each row into the cache, rounded to its element type.
    ///
    /// # Panics
    /// If the shapes do not fit, or a place names a block that the cache does not have.
    pub fn store_kv<T: CacheElement>(
        &self,
        shape: AttentionShape,
        qkv: Qkv<'_>,
        places: Places<'_>,
        cache: &mut LayerCache<'_, T>,
    ) {
        let AttentionShape { kv_heads, head_dim, .. } = shape;
        let value_dim = shape.value_dim();
        let (key_head, value_head) = (head_dim * CACHE_BLOCK, CACHE_BLOCK * value_dim);
        let (keys, values) = (Disjoint::new(cache.keys), Disjoint::new(cache.values));
        let store = |heads: Range<usize>| {
            for (row, place) in places.rows.iter().enumerate() {
                let block = places.block(place, place.position / CACHE_BLOCK);
                let slot = place.position % CACHE_BLOCK;
                for head in heads.clone() {
                    let index = block * kv_heads + head;
                    // SAFETY: each head is in one thread's share, and blocks of different heads do not overlap.
                    let (keys, values) = unsafe {
                        (
                            keys.slice(index * key_head..(index + 1) * key_head),
                            values.slice(index * value_head..(index + 1) * value_head),
                        )
                    };
                    let range = head * head_dim..(head + 1) * head_dim;
                    let column = keys[slot..].iter_mut().step_by(CACHE_BLOCK);
                    for (to, from) in column.zip(qkv.part(row, 1, range.clone())) {
                        *to = T::from_f32(*from);
                    }
                    let value_row = &mut values[slot * value_dim..(slot + 1) * value_dim];
                    for (to, from) in value_row.iter_mut().zip(qkv.part(row, 2, range)) {
                        *to = T::from_f32(*from);
                    }
                }
            }
        };
        if places.rows.len() < 4 { store(0..kv_heads) } else { self.pool().split(kv_heads, 1, &store) }
    }

    /// Attends each row's queries over the cache up to and with the row's own position (causal); `out` is
    /// `[rows, heads · head_dim]`. Query head `h` reads key/value head `h · kv_heads / heads`.
    ///
    /// # Panics
    /// If the shapes do not fit, or a place names a block that the cache does not have.
    pub fn attention<T: CacheElement>(
        &self,
        shape: AttentionShape,
        qkv: Qkv<'_>,
        places: Places<'_>,
        cache: &LayerCache<'_, T>,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
    ) {
        let AttentionShape { heads, kv_heads, head_dim } = shape;
        assert!(head_dim <= MAX_HEAD_DIM && heads.is_multiple_of(kv_heads), "{shape:?}");
        assert_eq!(out.len(), places.rows.len() * heads * head_dim, "attention output");
        let keys_seen: usize = places.rows.iter().map(|place| place.position + 1).sum();
        self.counters().add(
            Kernel::AttentionReal,
            2 * keys_seen * heads * head_dim,
            2 * keys_seen * kv_heads * head_dim * size_of::<T>(),
        );
        let job = Job { set: self.set(), shape, qkv, places, keys: cache.keys, values: cache.values };
        // With few rows the heads alone would not share out evenly over the threads once the context is long.
        let split = places.rows.len() * heads < 16 * self.pool().num_threads()
            && places.rows.iter().any(|p| p.num_segments() > 1);
        if split {
            self.attend_split(&job, scratch, out);
        } else {
            self.attend_whole(&job, out);
        }
    }

    /// One item is a row and some of its heads, over all segments.
    fn attend_whole<T: CacheElement>(&self, job: &Job<'_, T>, out: &mut [f32]) {
        let AttentionShape { heads, head_dim, .. } = job.shape;
        let chunks = HeadChunks::new(job.shape, if job.places.rows.len() == 1 { 2 } else { SEGMENT_HEADS });
        let num_items = job.places.rows.len() * chunks.count();
        let num_threads = self.pool().num_threads();
        let out = Disjoint::new(out);
        let value_dim = job.shape.value_dim();
        self.pool().run(&|thread| {
            let mut acc = [0.0; SEGMENT_HEADS * MAX_HEAD_DIM];
            let mut later = [0.0; SEGMENT_HEADS * MAX_HEAD_DIM];
            // Later rows cost more, so the threads take turns.
            for item in (thread..num_items).step_by(num_threads) {
                let (row, chunk) = (item / chunks.count(), chunks.get(item % chunks.count()));
                let len = chunk.len() * value_dim;
                let (mut max, mut sum) = ([0.0; SEGMENT_HEADS], [0.0; SEGMENT_HEADS]);
                job.attend(row, &chunk, 0, &mut max[..chunk.len()], &mut sum[..chunk.len()], &mut acc[..len]);
                for segment in 1..job.places.rows[row].num_segments() {
                    let (mut later_max, mut later_sum) = ([0.0; SEGMENT_HEADS], [0.0; SEGMENT_HEADS]);
                    let (m, s) = (&mut later_max[..chunk.len()], &mut later_sum[..chunk.len()]);
                    job.attend(row, &chunk, segment, m, s, &mut later[..len]);
                    for i in 0..chunk.len() {
                        let range = i * value_dim..(i + 1) * value_dim;
                        let partial = (later_max[i], later_sum[i], &later[range.clone()]);
                        job.set.merge_segment(&mut max[i], &mut sum[i], &mut acc[range], partial);
                    }
                }
                let start = row * heads * head_dim;
                // SAFETY: each item is one thread's, and items differ in row or heads.
                let out = unsafe { out.slice(start + chunk.start * head_dim..start + chunk.end * head_dim) };
                for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    divide(&acc[i * value_dim..][..head_dim], sum[i], out);
                }
            }
        });
    }

    /// One item is a row, some of its heads and a segment; the calling thread merges.
    fn attend_split<T: CacheElement>(&self, job: &Job<'_, T>, scratch: &mut AttentionScratch, out: &mut [f32]) {
        let AttentionShape { heads, head_dim, .. } = job.shape;
        let value_dim = job.shape.value_dim();
        let chunks = HeadChunks::new(job.shape, SEGMENT_HEADS);
        // For each row, segment and head: value_dim sums, the largest score, the sum of weights.
        let partial_len = value_dim + 2;
        let row_segments: usize = job.places.rows.iter().map(Place::num_segments).sum();
        let needed = row_segments * heads * partial_len;
        if scratch.partials.len() < needed {
            // To the next power of two, so that a growing context allocates seldom.
            scratch.partials.resize(needed.next_power_of_two(), 0.0);
        }
        let partials = &mut scratch.partials[..needed];
        let shared = Disjoint::new(partials);
        self.pool().split(row_segments * chunks.count(), 1, &|items| {
            let mut acc = [0.0; SEGMENT_HEADS * MAX_HEAD_DIM];
            for item in items {
                let chunk = chunks.get(item % chunks.count());
                let row_segment = item / chunks.count();
                let (row, segment) = job.row_and_segment(row_segment);
                let (mut max, mut sum) = ([0.0; SEGMENT_HEADS], [0.0; SEGMENT_HEADS]);
                let len = chunk.len();
                job.attend(row, &chunk, segment, &mut max[..len], &mut sum[..len], &mut acc[..len * value_dim]);
                let start = (row_segment * heads + chunk.start) * partial_len;
                // SAFETY: each item is one thread's, and items differ in row, segment or heads.
                let out = unsafe { shared.slice(start..start + len * partial_len) };
                for (i, out) in out.chunks_exact_mut(partial_len).enumerate() {
                    out[..value_dim].copy_from_slice(&acc[i * value_dim..(i + 1) * value_dim]);
                    out[value_dim] = max[i];
                    out[value_dim + 1] = sum[i];
                }
            }
        });
        let mut first = 0;
        for (row, place) in job.places.rows.iter().enumerate() {
            let num_segments = place.num_segments();
            let (earliest, later) = partials[first * heads * partial_len..(first + num_segments) * heads * partial_len]
                .split_at_mut(heads * partial_len);
            for (head, partial) in earliest.chunks_exact_mut(partial_len).enumerate() {
                let (acc, max_sum) = partial.split_at_mut(value_dim);
                let [max, sum] = max_sum else { unreachable!("a partial ends in two numbers") };
                for segment in later.chunks_exact(heads * partial_len) {
                    let later = &segment[head * partial_len..(head + 1) * partial_len];
                    job.set.merge_segment(max, sum, acc, (later[value_dim], later[value_dim + 1], &later[..value_dim]));
                }
                let start = (row * heads + head) * head_dim;
                divide(&acc[..head_dim], *sum, &mut out[start..start + head_dim]);
            }
            first += num_segments;
        }
    }
}

/// `out = acc / sum`.
fn divide(acc: &[f32], sum: f32, out: &mut [f32]) {
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = acc / sum;
    }
}

/// The query heads, in chunks that share a key/value head.
struct HeadChunks {
    group: usize,
    chunk: usize,
    per_group: usize,
    kv_heads: usize,
}

impl HeadChunks {
    fn new(shape: AttentionShape, max: usize) -> Self {
        let group = shape.heads / shape.kv_heads;
        let chunk = group.min(max);
        Self { group, chunk, per_group: group.div_ceil(chunk), kv_heads: shape.kv_heads }
    }

    fn count(&self) -> usize {
        self.kv_heads * self.per_group
    }

    fn get(&self, index: usize) -> Range<usize> {
        let (kv_head, part) = (index / self.per_group, index % self.per_group);
        let start = part * self.chunk;
        kv_head * self.group + start..kv_head * self.group + self.group.min(start + self.chunk)
    }
}

struct Job<'a, T> {
    set: &'static KernelSet,
    shape: AttentionShape,
    qkv: Qkv<'a>,
    places: Places<'a>,
    keys: &'a [T],
    values: &'a [T],
}

impl<T: CacheElement> Job<'_, T> {
    /// Which row and segment the `index`-th of all rows' segments is.
    fn row_and_segment(&self, mut index: usize) -> (usize, usize) {
        for (row, place) in self.places.rows.iter().enumerate() {
            if index < place.num_segments() {
                return (row, index);
            }
            index -= place.num_segments();
        }
        unreachable!("more segments than the rows have")
    }

    /// The partial result of some heads of a row over one segment.
    fn attend(
        &self,
        row: usize,
        heads: &Range<usize>,
        segment: usize,
        max: &mut [f32],
        sum: &mut [f32],
        acc: &mut [f32],
    ) {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let value_dim = self.shape.value_dim();
        let place = &self.places.rows[row];
        let kv_head = heads.start * kv_heads / self.shape.heads;
        let first_key = segment * SEGMENT_KEYS;
        let num_keys = (place.position + 1 - first_key).min(SEGMENT_KEYS);
        let first_block = first_key / CACHE_BLOCK;
        let block = |i: usize| {
            (i * CACHE_BLOCK < num_keys).then(|| self.places.block(place, first_block + i) * kv_heads + kv_head)
        };
        let (key_head, value_head) = (head_dim * CACHE_BLOCK, CACHE_BLOCK * value_dim);
        let segment = Segment {
            queries: self.qkv.part(row, 0, heads.start * head_dim..heads.end * head_dim),
            heads: heads.len(),
            head_dim,
            value_dim,
            keys: std::array::from_fn(|i| block(i).map_or(&[][..], |b| &self.keys[b * key_head..(b + 1) * key_head])),
            values: std::array::from_fn(|i| {
                block(i).map_or(&[][..], |b| &self.values[b * value_head..(b + 1) * value_head])
            }),
            num_keys,
            scale: self.shape.scale(),
        };
        self.set.attend(&segment, &mut Partial { max, sum, acc });
    }
}
