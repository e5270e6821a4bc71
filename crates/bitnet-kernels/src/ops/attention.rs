//! Attention over the paged key/value cache, and the writing of that cache.
//!
//! The keys of a sequence are walked in segments of [`SEGMENT_KEYS`] at absolute positions 0, 256,
//! 512, …. Each segment gives a partial result (largest score, sum of weights, weighted sum of
//! values); partials are merged in ascending order. Neither the number of threads, nor how many
//! rows are computed at once, nor where blocks lie in the pool moves a segment border, so none of
//! them moves a bit of the result.

use std::cell::RefCell;
use std::ops::Range;

use crate::layout::cache::{CACHE_BLOCK, SEGMENT_KEYS};
use crate::ops::cpu::Cpu;
use crate::sets::segment::{CacheElement, Partial, Segment, SegmentScratch};
use crate::sets::table::KernelSet;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;

/// The longest head that the kernels take.
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

    /// Where the keys of a head lie in a pair of keys and values that begins at `pair`.
    fn keys(&self, pair: usize, kv_head: usize) -> Range<usize> {
        let len = self.head_dim * CACHE_BLOCK;
        pair + kv_head * len..pair + (kv_head + 1) * len
    }

    /// Where the values of a head lie in such a pair.
    fn values(&self, pair: usize, kv_head: usize) -> Range<usize> {
        let (start, len) = (pair + self.key_block_len(), CACHE_BLOCK * self.value_dim());
        start + kv_head * len..start + (kv_head + 1) * len
    }

    /// `1/√head_dim`, the factor of scores.
    #[must_use]
    pub fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// The part of a cache that belongs to one layer.
///
/// A cache is `[blocks, layers]` of pairs: the keys of [`CACHE_BLOCK`] positions, `[kv_heads,
/// head_dim, CACHE_BLOCK]` (transposed, so that a vector lane is a key), then their values,
/// `[kv_heads, CACHE_BLOCK, value_dim]`.
pub struct LayerCache<'a, T> {
    /// All blocks of all layers.
    pub data: &'a mut [T],
    /// Where this layer's pair of block 0 begins.
    pub offset: usize,
    /// Elements from a block to the next.
    pub stride: usize,
}

/// The position of a row in its sequence, and where the blocks of that sequence are listed.
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
    /// The tables of all sequences: entry `table + i` is the block that holds positions `i ·
    /// CACHE_BLOCK` and on.
    pub blocks: &'a [u32],
}

impl Places<'_> {
    /// The block of the cache that holds the `index`-th run of positions of a row's sequence.
    fn block(&self, place: &Place, index: usize) -> usize {
        self.blocks[place.table + index] as usize
    }
}

/// Rows of queries, keys and values side by side in one buffer, `[rows, stride]`, as the fused
/// projection gives them.
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

/// Partial results of rows that several threads share, kept until they are merged.
#[derive(Default)]
pub struct AttentionScratch {
    partials: Vec<f32>,
}

/// Maximum number of queries of several rows in one pass over a segment: enough to pay for
/// converting the segment to f32, and few enough that their sums stay in a cache.
const RUN_QUERIES: usize = 64;

/// Where one thread's share of the work ends and the next one's begins. The work is ordered by
/// head, then row, then segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    kv_head: usize,
    row: usize,
    segment: usize,
}

/// Consecutive rows of a sequence with one key/value head, over a range of their segments.
struct Piece {
    kv_head: usize,
    rows: Range<usize>,
    segments: Range<usize>,
}

thread_local! {
    /// Kept, so that a decode step allocates nothing.
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The buffers of one thread.
#[derive(Default)]
struct Buffers {
    /// The queries of a piece, `[rows · group, head_dim]`.
    queries: Vec<f32>,
    /// The keys that each query attends to in a segment.
    num_keys: Vec<usize>,
    /// The merged results of the segments so far.
    merged: Results,
    /// The result of the next segment.
    later: Results,
    segment: SegmentScratch,
}

/// Partial results of several queries.
#[derive(Default)]
struct Results {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[queries, value_dim]`
    acc: Vec<f32>,
}

impl Results {
    /// The partial results of a range of queries.
    fn part(&mut self, queries: Range<usize>, value_dim: usize) -> Partial<'_> {
        grow(&mut self.max, queries.end);
        grow(&mut self.sum, queries.end);
        grow(&mut self.acc, queries.end * value_dim);
        Partial {
            max: &mut self.max[queries.clone()],
            sum: &mut self.sum[queries.clone()],
            acc: &mut self.acc[queries.start * value_dim..queries.end * value_dim],
        }
    }
}

/// Makes room for `len` elements. Never shrinks.
fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
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
        let AttentionShape {
            kv_heads, head_dim, ..
        } = shape;
        assert!(head_dim <= MAX_HEAD_DIM, "{shape:?}");
        let (value_dim, set) = (shape.value_dim(), self.set());
        let (offset, stride) = (cache.offset, cache.stride);
        let data = Disjoint::new(cache.data);
        let store = |heads: Range<usize>| {
            let mut rounded = [T::default(); MAX_HEAD_DIM];
            let rounded = &mut rounded[..head_dim];
            for head in heads {
                let range = head * head_dim..(head + 1) * head_dim;
                for (row, place) in places.rows.iter().enumerate() {
                    let pair = offset + places.block(place, place.position / CACHE_BLOCK) * stride;
                    let slot = place.position % CACHE_BLOCK;
                    // SAFETY: each head is in one thread's share, and blocks of different heads do
                    // not overlap.
                    let (keys, values) = unsafe {
                        (
                            data.slice(shape.keys(pair, head)),
                            data.slice(shape.values(pair, head)),
                        )
                    };
                    set.round(qkv.part(row, 1, range.clone()), rounded);
                    for (to, from) in keys[slot..].iter_mut().step_by(CACHE_BLOCK).zip(&*rounded) {
                        *to = *from;
                    }
                    set.round(
                        qkv.part(row, 2, range.clone()),
                        &mut values[slot * value_dim..][..head_dim],
                    );
                }
            }
        };
        if places.rows.len() < 4 {
            store(0..kv_heads)
        } else {
            self.pool().split(kv_heads, 1, &store)
        }
    }

    /// Attends each row's queries over the cache up to and including the row's own position
    /// (causal); `out` is `[rows, heads · head_dim]`. Query head `h` reads key/value head `h ·
    /// kv_heads / heads`.
    ///
    /// Reads the cached bytes of one row once. Consecutive rows of a sequence read them together.
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
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
        } = shape;
        assert!(heads.is_multiple_of(kv_heads), "{shape:?}");
        assert_eq!(
            out.len(),
            places.rows.len() * heads * head_dim,
            "attention output"
        );
        if places.rows.is_empty() {
            return;
        }
        let job = AttentionCall {
            set: self.set(),
            shape,
            qkv,
            places,
            cache,
            num_threads: self.pool().num_threads(),
        };
        self.counters().add(
            Kernel::AttentionReal,
            2 * job.keys_seen() * heads * head_dim,
            2 * job.keys_read() * kv_heads * head_dim * size_of::<T>(),
        );
        let slot_len = job.group() * (shape.value_dim() + 2);
        grow(
            &mut scratch.partials,
            if job.cuts_rows() {
                job.num_threads * job.slots() * slot_len
            } else {
                0
            },
        );
        let (slots, shared_out) = (
            Disjoint::new(&mut scratch.partials),
            Disjoint::new(&mut *out),
        );
        self.pool().run(&|thread| {
            BUFFERS.with_borrow_mut(|buffers| {
                let first = thread * job.slots() * slot_len;
                job.pieces(thread, &mut |piece| {
                    // SAFETY: the slots of a thread are its own, and it takes each once.
                    job.attend(piece, buffers, &shared_out, &mut |slot| unsafe {
                        slots.slice(first + slot * slot_len..first + (slot + 1) * slot_len)
                    });
                });
            });
        });
        if job.cuts_rows() {
            job.merge_cut_rows(&mut scratch.partials, slot_len, out);
        }
    }
}

/// The arguments of one call of [`Cpu::attention`], which all threads read.
struct AttentionCall<'a, T> {
    set: &'static KernelSet,
    shape: AttentionShape,
    qkv: Qkv<'a>,
    places: Places<'a>,
    cache: &'a LayerCache<'a, T>,
    num_threads: usize,
}

impl<T: CacheElement> AttentionCall<'_, T> {
    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Keys of all rows together.
    fn keys_seen(&self) -> usize {
        self.places
            .rows
            .iter()
            .map(|place| place.position + 1)
            .sum()
    }

    /// The same, but counts keys that consecutive rows of a sequence share once.
    fn keys_read(&self) -> usize {
        let mut index = 0;
        let mut keys = 0;
        while index < self.places.rows.len() {
            index = self.run_end(index, usize::MAX);
            keys += self.places.rows[index - 1].position + 1;
        }
        keys
    }

    /// The end of a run of consecutive rows of one sequence that begins with row `first`, at most
    /// `end`.
    fn run_end(&self, first: usize, end: usize) -> usize {
        let rows = &self.places.rows[..end.min(self.places.rows.len())];
        let follows = |pair: &[Place]| {
            pair[0].table == pair[1].table && pair[0].position + 1 == pair[1].position
        };
        first
            + 1
            + rows[first..]
                .windows(2)
                .take_while(|pair| follows(pair))
                .count()
    }

    /// Whether shares may end inside a row: a few whole rows cannot be divided evenly among the
    /// threads.
    fn cuts_rows(&self) -> bool {
        self.num_threads > 1 && self.places.rows.len() * self.shape.kv_heads < 16 * self.num_threads
    }

    /// Maximum number of slots for partial results of a thread: one for its last row, and one for
    /// each segment of its first row.
    fn slots(&self) -> usize {
        1 + self
            .places
            .rows
            .iter()
            .map(Place::num_segments)
            .max()
            .unwrap_or(0)
    }

    /// Where a thread's share begins. `thread == num_threads` gives the end of the last share.
    fn cut(&self, thread: usize) -> Cut {
        let per_head = self.keys_seen();
        let before = self.shape.kv_heads * per_head * thread / self.num_threads;
        let kv_head = before / per_head;
        let mut rest = before % per_head;
        for (row, place) in self.places.rows.iter().enumerate() {
            let keys = place.position + 1;
            if rest < keys {
                // Round to the nearest allowed border.
                let segment = match self.cuts_rows() {
                    true => (rest + SEGMENT_KEYS / 2) / SEGMENT_KEYS,
                    false if 2 * rest < keys => 0,
                    false => place.num_segments(),
                };
                return if segment < place.num_segments() {
                    Cut {
                        kv_head,
                        row,
                        segment,
                    }
                } else if row + 1 < self.places.rows.len() {
                    Cut {
                        kv_head,
                        row: row + 1,
                        segment: 0,
                    }
                } else {
                    Cut {
                        kv_head: kv_head + 1,
                        row: 0,
                        segment: 0,
                    }
                };
            }
            rest -= keys;
        }
        unreachable!("more keys than all rows have")
    }

    /// Calls `work` with the pieces of a thread's share, in order.
    fn pieces(&self, thread: usize, work: &mut dyn FnMut(&Piece)) {
        let (begin, end) = (self.cut(thread), self.cut(thread + 1));
        let num_rows = self.places.rows.len();
        let rows_max = (RUN_QUERIES / self.group()).max(1);
        let mut at = begin;
        while at != end {
            let Cut {
                kv_head,
                row,
                segment,
            } = at;
            let ends_here = kv_head == end.kv_head;
            let piece = if segment > 0 || ends_here && row == end.row {
                // Another thread begins or ends this row.
                let last = if ends_here && row == end.row {
                    end.segment
                } else {
                    self.places.rows[row].num_segments()
                };
                Piece {
                    kv_head,
                    rows: row..row + 1,
                    segments: segment..last,
                }
            } else {
                let last = if ends_here { end.row } else { num_rows };
                let rows = row..self.run_end(row, last.min(row + rows_max));
                Piece {
                    kv_head,
                    segments: 0..self.places.rows[rows.end - 1].num_segments(),
                    rows,
                }
            };
            let Piece {
                ref rows,
                ref segments,
                ..
            } = piece;
            at = match () {
                () if segments.end < self.places.rows[row].num_segments() => Cut {
                    segment: segments.end,
                    ..at
                },
                () if rows.end < num_rows => Cut {
                    kv_head,
                    row: rows.end,
                    segment: 0,
                },
                () => Cut {
                    kv_head: kv_head + 1,
                    row: 0,
                    segment: 0,
                },
            };
            work(&piece);
        }
    }

    /// Computes a piece. A piece of whole rows is written to `out`. Of a row that threads share,
    /// the thread with the row's beginning stores its merged result in `slot(0)`; the others store
    /// the result of each segment separately from `slot(1)` on, because segments must be merged in
    /// ascending order.
    fn attend<'s>(
        &self,
        piece: &Piece,
        buffers: &mut Buffers,
        out: &Disjoint<'_, f32>,
        slot: &mut dyn FnMut(usize) -> &'s mut [f32],
    ) {
        let Buffers {
            queries,
            num_keys,
            merged,
            later,
            segment: scratch,
        } = buffers;
        let (value_dim, group) = (self.shape.value_dim(), self.group());
        let places = &self.places.rows[piece.rows.clone()];
        self.pack_queries(piece, queries);
        let (all, has_beginning) = (0..places.len() * group, piece.segments.start == 0);
        for segment in piece.segments.clone() {
            // Earlier rows may have no key in this segment.
            let without = places
                .iter()
                .take_while(|place| place.num_segments() <= segment)
                .count();
            num_keys.clear();
            for place in &places[without..] {
                let keys = (place.position + 1 - segment * SEGMENT_KEYS).min(SEGMENT_KEYS);
                num_keys.extend(std::iter::repeat_n(keys, group));
            }
            let with = without * group..all.end;
            let queries =
                &queries[with.start * self.shape.head_dim..with.end * self.shape.head_dim];
            let mut attend = |partial: &mut Partial<'_>| {
                self.attend_segment(piece, segment, queries, num_keys, scratch, partial);
            };
            if !has_beginning {
                attend(&mut slot_results(
                    slot(1 + segment - piece.segments.start),
                    value_dim,
                ));
            } else if segment == 0 {
                attend(&mut merged.part(with, value_dim));
            } else {
                let mut later = later.part(with.clone(), value_dim);
                attend(&mut later);
                self.merge(&mut merged.part(with, value_dim), &later);
            }
        }
        let merged = merged.part(all, value_dim);
        if has_beginning
            && piece.segments.end == self.places.rows[piece.rows.end - 1].num_segments()
        {
            for (index, row) in piece.rows.clone().enumerate() {
                // SAFETY: pieces differ in rows or heads, and only pieces of whole rows write here.
                let out = unsafe { out.slice(self.output_range(row, piece.kv_head)) };
                let queries = index * group..(index + 1) * group;
                let acc = &merged.acc[queries.start * value_dim..queries.end * value_dim];
                divide(acc, &merged.sum[queries], value_dim, out);
            }
        } else if has_beginning {
            let result = slot_results(slot(0), value_dim);
            result.max.copy_from_slice(merged.max);
            result.sum.copy_from_slice(merged.sum);
            result.acc.copy_from_slice(merged.acc);
        }
    }

    /// The queries of a piece side by side: `[rows · group, head_dim]`.
    fn pack_queries(&self, piece: &Piece, queries: &mut Vec<f32>) {
        let width = self.group() * self.shape.head_dim;
        grow(queries, piece.rows.len() * width);
        for (row, to) in piece.rows.clone().zip(queries.chunks_exact_mut(width)) {
            to.copy_from_slice(self.qkv.part(
                row,
                0,
                piece.kv_head * width..(piece.kv_head + 1) * width,
            ));
        }
    }

    /// The partial results of the queries of a piece over one segment.
    fn attend_segment(
        &self,
        piece: &Piece,
        segment: usize,
        queries: &[f32],
        num_keys: &[usize],
        scratch: &mut SegmentScratch,
        partial: &mut Partial<'_>,
    ) {
        const BLOCKS: usize = SEGMENT_KEYS / CACHE_BLOCK;
        let place = &self.places.rows[piece.rows.end - 1];
        let num_blocks = place.position / CACHE_BLOCK + 1;
        let pair = |block| self.cache.offset + self.places.block(place, block) * self.cache.stride;
        let keys = |block, kv_head| &self.cache.data[self.shape.keys(pair(block), kv_head)];
        let is_there = |i: &usize| segment * BLOCKS + i < num_blocks;
        let block = |i: usize| Some(i).filter(is_there).map(|i| segment * BLOCKS + i);
        // Prefetch the segment that this thread reads next: the next one, or the first of the next
        // head.
        let next = match () {
            () if segment + 1 < piece.segments.end => keys((segment + 1) * BLOCKS, piece.kv_head),
            () if piece.kv_head + 1 < self.shape.kv_heads => keys(0, piece.kv_head + 1),
            () => &[],
        };
        let segment = Segment {
            queries,
            num_keys,
            head_dim: self.shape.head_dim,
            value_dim: self.shape.value_dim(),
            keys: std::array::from_fn(|i| {
                block(i).map_or(&[][..], |block| keys(block, piece.kv_head))
            }),
            values: std::array::from_fn(|i| {
                block(i).map_or(&[][..], |block| {
                    &self.cache.data[self.shape.values(pair(block), piece.kv_head)]
                })
            }),
            scale: self.shape.scale(),
            next,
        };
        self.set.attend(&segment, scratch, partial);
    }

    /// Merges the results of a later segment into the results of the earlier segments.
    fn merge(&self, merged: &mut Partial<'_>, later: &Partial<'_>) {
        let value_dim = self.shape.value_dim();
        let accs = merged
            .acc
            .chunks_exact_mut(value_dim)
            .zip(later.acc.chunks_exact(value_dim));
        for (i, (acc, later_acc)) in accs.enumerate() {
            let later = (later.max[i], later.sum[i], later_acc);
            self.set
                .merge_segment(&mut merged.max[i], &mut merged.sum[i], acc, later);
        }
    }

    /// Where the query heads of a key/value head lie in the output.
    fn output_range(&self, row: usize, kv_head: usize) -> Range<usize> {
        let width = self.group() * self.shape.head_dim;
        let start = (row * self.shape.kv_heads + kv_head) * width;
        start..start + width
    }

    /// Merges the rows whose segments several threads computed, and writes them to `out`.
    fn merge_cut_rows(&self, partials: &mut [f32], slot_len: usize, out: &mut [f32]) {
        let value_dim = self.shape.value_dim();
        for owner in 0..self.num_threads {
            let (begin, end) = (self.cut(owner), self.cut(owner + 1));
            let Cut { kv_head, row, .. } = end;
            let begins_row = end.segment > 0 && begin <= Cut { segment: 0, ..end };
            if !begins_row {
                continue;
            }
            let (first, rest) =
                partials[owner * self.slots() * slot_len..].split_at_mut(self.slots() * slot_len);
            let mut merged = slot_results(&mut first[..slot_len], value_dim);
            let num_segments = self.places.rows[row].num_segments();
            let mut segment = end.segment;
            for (thread, slots) in rest.chunks_exact_mut(self.slots() * slot_len).enumerate() {
                let last = self.cut(owner + 2 + thread);
                let last = if (last.kv_head, last.row) == (kv_head, row) {
                    last.segment
                } else {
                    num_segments
                };
                for slot in slots
                    .chunks_exact_mut(slot_len)
                    .skip(1)
                    .take(last - segment)
                {
                    self.merge(&mut merged, &slot_results(slot, value_dim));
                }
                segment = last;
                if segment == num_segments {
                    break;
                }
            }
            divide(
                merged.acc,
                merged.sum,
                value_dim,
                &mut out[self.output_range(row, kv_head)],
            );
        }
    }
}

/// A slot as the results of the queries of one row: `[group, value_dim]` sums of values, the
/// largest scores, the sums.
fn slot_results(slot: &mut [f32], value_dim: usize) -> Partial<'_> {
    let group = slot.len() / (value_dim + 2);
    let (acc, rest) = slot.split_at_mut(group * value_dim);
    let (max, sum) = rest.split_at_mut(group);
    Partial { max, sum, acc }
}

/// `out[q] = acc[q] / sum[q]`; acc is `[queries, value_dim]`, out `[queries, head_dim]`.
fn divide(acc: &[f32], sum: &[f32], value_dim: usize, out: &mut [f32]) {
    let head_dim = out.len() / sum.len();
    for ((out, acc), sum) in out
        .chunks_exact_mut(head_dim)
        .zip(acc.chunks_exact(value_dim))
        .zip(sum)
    {
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = acc / sum;
        }
    }
}
