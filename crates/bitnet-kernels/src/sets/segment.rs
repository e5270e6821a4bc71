//! Attention of some queries over one segment of keys: the arguments of the sets' functions, and
//! the code that the vector sets share.
//!
//! Scores and weighted sums of values are one shape of product, a [`Panel`]: `out[q] += Σ_i
//! coefs[q][i] · data[i]`. For scores `data` is a block of transposed keys, a row for each
//! dimension; for values it has a row for each key. Every sum has one accumulator and goes through
//! its terms in ascending order, so tiles, blocks and registers change no bit.

use crate::layout::cache::{CACHE_BLOCK, SEGMENT_KEYS};
use crate::sets::portable;
use crate::sets::table::KernelSet;

/// An element of the key/value cache: f16 (as its bits) or f32.
pub trait CacheElement: Copy + Default + Send + Sync + private::Sealed + 'static {
    /// Its name in the option `--kv-type`.
    const NAME: &'static str;
    /// Converts exactly.
    fn to_f32(self) -> f32;
    #[doc(hidden)]
    fn attend(set: &KernelSet) -> AttendFn<Self>;
    #[doc(hidden)]
    fn round(set: &KernelSet) -> RoundFn<Self>;
}

#[doc(hidden)]
pub type AttendFn<T> = unsafe fn(&Segment<'_, T>, &mut SegmentScratch, &mut Partial<'_>);
#[doc(hidden)]
pub type RoundFn<T> = unsafe fn(&[f32], &mut [T]);

mod private {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

impl CacheElement for half::f16 {
    const NAME: &'static str = "f16";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
    fn attend(set: &KernelSet) -> AttendFn<Self> {
        set.attend_f16
    }
    fn round(set: &KernelSet) -> RoundFn<Self> {
        set.round_f16
    }
}

impl CacheElement for f32 {
    const NAME: &'static str = "f32";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    fn attend(set: &KernelSet) -> AttendFn<Self> {
        set.attend_f32
    }
    fn round(_: &KernelSet) -> RoundFn<Self> {
        |from, to| to.copy_from_slice(from)
    }
}

/// Queries that share one key/value head, over up to [`SEGMENT_KEYS`] keys of one segment.
#[derive(Clone, Copy)]
pub struct Segment<'a, T> {
    /// `[queries, head_dim]`
    pub queries: &'a [f32],
    /// For each query the number n of keys that it attends to, which are the first n of the
    /// segment; at least 1.
    pub num_keys: &'a [usize],
    /// Length of a query and of a key.
    pub head_dim: usize,
    /// Length of a value row: `head_dim` rounded up to a multiple of 16, the rest zeros.
    pub value_dim: usize,
    /// For each block of keys `[head_dim, CACHE_BLOCK]`: transposed, so that a vector lane is a
    /// key.
    pub keys: [&'a [T]; SEGMENT_KEYS / CACHE_BLOCK],
    /// For each block of values `[CACHE_BLOCK, value_dim]`.
    pub values: [&'a [T]; SEGMENT_KEYS / CACHE_BLOCK],
    /// The factor of the product of a query and a key, `1/√head_dim`.
    pub scale: f32,
    /// The data that is read after this segment, to prefetch. May be empty.
    pub next: &'a [T],
}

/// The result of a segment for each query, before the division by the sum.
pub struct Partial<'a> {
    /// The largest score, `[queries]`.
    pub max: &'a mut [f32],
    /// `Σ exp(score − max)`, `[queries]`.
    pub sum: &'a mut [f32],
    /// `Σ exp(score − max) · value`, `[queries, value_dim]`.
    pub acc: &'a mut [f32],
}

/// Buffers of one thread. They grow to the largest use so far, so a decode step allocates nothing.
#[derive(Default)]
pub struct SegmentScratch {
    /// Scores, then weights, of the queries of a tile, `[queries, SCORES_STRIDE]`.
    scores: Vec<f32>,
    /// The segment's keys as f32, then its values.
    wide: Vec<f32>,
}

/// Bytes of a line of the CPU's caches.
const LINE: usize = 64;

/// The distance between the scores of two queries: the scores of one query and some padding, so
/// that the scores of several queries use different sets of a cache.
const SCORES_STRIDE: usize = SEGMENT_KEYS + 16;

/// `out[q][j] = Σ_i coefs[q][i] · data[i][j]`, from zero or added to the present values.
pub(crate) struct Panel<'a, T> {
    /// `[steps, stride]`
    pub data: &'a [T],
    pub stride: usize,
    /// Number of elements of a row of `data` to use, a multiple of 16.
    pub width: usize,
    /// `[queries, coef_stride]`; the first `steps` of each row are used.
    pub coefs: &'a [f32],
    pub coef_stride: usize,
    /// The number of terms `i` in each sum.
    pub steps: usize,
    /// The number of queries `q`.
    pub queries: usize,
    /// `[queries, out_stride]`
    pub out: &'a mut [f32],
    pub out_stride: usize,
    /// Whether to add to the present values of `out`.
    pub adds: bool,
    /// The data that is read next, to prefetch: one line at each step.
    pub next: &'a [T],
}

impl<T> Panel<'_, T> {
    /// Panics if `data`, `coefs` or `out` is too short for its rows.
    #[inline(always)]
    pub(crate) fn check(&self) {
        let Self {
            stride,
            width,
            coef_stride,
            steps,
            queries,
            out_stride,
            ..
        } = *self;
        assert!(
            queries > 0 && width.is_multiple_of(16),
            "{queries} queries, width {width}"
        );
        assert!(
            steps == 0 || self.data.len() >= (steps - 1) * stride + width,
            "{steps} rows of {stride}"
        );
        assert!(
            self.coefs.len() >= (queries - 1) * coef_stride + steps,
            "coefficients of {queries} queries"
        );
        assert!(
            self.out.len() >= (queries - 1) * out_stride + width,
            "sums of {queries} queries"
        );
    }
}

/// The addresses of the next data, to prefetch line by line.
pub(crate) struct Fetch {
    line: *const i8,
    step: usize,
}

impl Fetch {
    /// Starts at line `first`. Past the end it repeats the last line: prefetching a line that is in
    /// the cache costs nothing.
    #[inline(always)]
    pub(crate) fn new<T>(next: &[T], first: usize) -> Self {
        let bytes = size_of_val(next);
        let (start, step) = if first * LINE < bytes {
            (first * LINE, LINE)
        } else {
            (0, 0)
        };
        Self {
            line: next.as_ptr().cast::<i8>().wrapping_add(start),
            step,
        }
    }

    /// The next line's address, only for prefetching: the last addresses may lie past the end of
    /// `next`.
    #[inline(always)]
    pub(crate) fn line(&mut self) -> *const i8 {
        let line = self.line;
        self.line = line.wrapping_add(self.step);
        line
    }
}

/// How a vector set multiplies a panel of `T`.
pub(crate) trait Panels<T> {
    /// Maximum number of queries of a panel.
    const QUERIES: usize;

    /// # Safety
    /// The CPU must have the instruction set.
    unsafe fn panel(panel: Panel<'_, T>);
}

/// Attention of a vector set over f16. If the queries need several tiles, the segment is converted
/// to f32 once.
///
/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn attend_f16<S: Panels<half::f16> + Panels<f32>>(
    segment: &Segment<'_, half::f16>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
    widen: unsafe fn(&[half::f16], &mut [f32]),
) {
    if segment.num_keys.len() <= <S as Panels<half::f16>>::QUERIES {
        // SAFETY: the caller guarantees that the CPU has the set's features.
        return unsafe { attend::<S, half::f16>(segment, &mut scratch.scores, partial) };
    }
    let (key_len, value_len) = (
        segment.head_dim * CACHE_BLOCK,
        CACHE_BLOCK * segment.value_dim,
    );
    let blocks = segment
        .num_keys
        .iter()
        .copied()
        .max()
        .unwrap_or(0)
        .div_ceil(CACHE_BLOCK);
    let len = blocks * (key_len + value_len);
    scratch.wide.resize(len.max(scratch.wide.len()), 0.0);
    let (keys, values) = scratch.wide[..len].split_at_mut(blocks * key_len);
    for (wide, half) in keys.chunks_exact_mut(key_len).zip(segment.keys) {
        // SAFETY: the caller guarantees that the CPU has the set's features.
        unsafe { widen(half, wide) };
    }
    for (wide, half) in values.chunks_exact_mut(value_len).zip(segment.values) {
        // SAFETY: the caller guarantees that the CPU has the set's features.
        unsafe { widen(half, wide) };
    }
    let wide = Segment {
        queries: segment.queries,
        num_keys: segment.num_keys,
        head_dim: segment.head_dim,
        value_dim: segment.value_dim,
        keys: std::array::from_fn(|i| keys.get(i * key_len..(i + 1) * key_len).unwrap_or_default()),
        values: std::array::from_fn(|i| {
            values
                .get(i * value_len..(i + 1) * value_len)
                .unwrap_or_default()
        }),
        scale: segment.scale,
        next: &[],
    };
    // SAFETY: the caller guarantees that the CPU has the set's features.
    unsafe { attend::<S, f32>(&wide, &mut scratch.scores, partial) }
}

/// Attention of a vector set over f32.
///
/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn attend_f32<S: Panels<f32>>(
    segment: &Segment<'_, f32>,
    scratch: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    // SAFETY: the caller guarantees that the CPU has the set's features.
    unsafe { attend::<S, f32>(segment, &mut scratch.scores, partial) }
}

/// Attention of a vector set, a tile of queries at a time.
///
/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
unsafe fn attend<S: Panels<T>, T: CacheElement>(
    segment: &Segment<'_, T>,
    scores: &mut Vec<f32>,
    partial: &mut Partial<'_>,
) {
    let Segment {
        head_dim,
        value_dim,
        ..
    } = *segment;
    scores.resize((S::QUERIES * SCORES_STRIDE).max(scores.len()), 0.0);
    let queries = segment.queries.chunks(S::QUERIES * head_dim);
    let tiles = queries
        .zip(segment.num_keys.chunks(S::QUERIES))
        .zip(partial.acc.chunks_mut(S::QUERIES * value_dim));
    for (tile, ((queries, num_keys), acc)) in tiles.enumerate() {
        let range = tile * S::QUERIES..tile * S::QUERIES + num_keys.len();
        let (least, most) = num_keys
            .iter()
            .fold((SEGMENT_KEYS, 0), |(least, most), &n| {
                (least.min(n), most.max(n))
            });
        let blocks = most.div_ceil(CACHE_BLOCK);
        for block in 0..blocks {
            let next = if block + 1 < blocks {
                segment.keys[block + 1]
            } else {
                segment.values[0]
            };
            let panel = Panel {
                data: segment.keys[block],
                stride: CACHE_BLOCK,
                // Later keys have no score.
                width: (most - block * CACHE_BLOCK)
                    .min(CACHE_BLOCK)
                    .next_multiple_of(16),
                coefs: queries,
                coef_stride: head_dim,
                steps: head_dim,
                queries: num_keys.len(),
                out: &mut scores[block * CACHE_BLOCK..],
                out_stride: SCORES_STRIDE,
                adds: false,
                next,
            };
            // SAFETY: the caller guarantees that the CPU has the set's features.
            unsafe { S::panel(panel) };
        }
        for (query, index) in range.enumerate() {
            let scores = &mut scores[query * SCORES_STRIDE..][..num_keys[query]];
            (partial.max[index], partial.sum[index]) =
                portable::softmax_segment(scores, segment.scale);
        }
        for block in 0..blocks {
            let next = if block + 1 < blocks {
                segment.values[block + 1]
            } else {
                segment.next
            };
            let first_key = block * CACHE_BLOCK;
            // The keys that all queries of the tile see; a later row of the prompt sees more.
            let common = least.saturating_sub(first_key).min(CACHE_BLOCK);
            let panel = Panel {
                data: segment.values[block],
                stride: value_dim,
                width: value_dim,
                coefs: &scores[first_key..],
                coef_stride: SCORES_STRIDE,
                steps: common,
                queries: num_keys.len(),
                out: acc,
                out_stride: value_dim,
                adds: block > 0,
                next,
            };
            // SAFETY: the caller guarantees that the CPU has the set's features.
            unsafe { S::panel(panel) };
            let mut query = 0;
            for alike in num_keys.chunk_by(|a, b| a == b) {
                let seen = alike[0].saturating_sub(first_key).min(CACHE_BLOCK);
                if seen > common {
                    let panel = Panel {
                        data: &segment.values[block][common * value_dim..],
                        stride: value_dim,
                        width: value_dim,
                        coefs: &scores[query * SCORES_STRIDE + first_key + common..],
                        coef_stride: SCORES_STRIDE,
                        steps: seen - common,
                        queries: alike.len(),
                        out: &mut acc[query * value_dim..],
                        out_stride: value_dim,
                        adds: true,
                        next: &[],
                    };
                    // SAFETY: the caller guarantees that the CPU has the set's features.
                    unsafe { S::panel(panel) };
                }
                query += alike.len();
            }
        }
    }
}
