//! [`KernelSet`]: one table of functions for each instruction set, and the one place where the CPU
//! is asked what it can do.

use std::ops::Range;
use std::sync::LazyLock;

use crate::layout::activations::{Activations, Tile};
use crate::layout::lookup::Lookup;
use crate::layout::packing::Packing;
use crate::ops::screen::ScreenSums;
use crate::ops::sparse::SparseKernels;
#[cfg(target_arch = "aarch64")]
use crate::sets::neon;
use crate::sets::scalar;
use crate::sets::segment::{
    AttendFn, CACHE_BLOCK, CacheElement, Partial, SEGMENT_KEYS, Segment, SegmentScratch,
};
#[cfg(target_arch = "x86_64")]
use crate::sets::{avx2, avx512};
use crate::threads::disjoint::Disjoint;
use crate::weights::matrix::{BLOCK_ROWS, TernaryMatrix};

/// Where a matrix product goes: rows of `stride` floats.
pub(crate) struct Output<'a> {
    data: Disjoint<'a, f32>,
    stride: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self {
            data: Disjoint::new(data),
            stride,
        }
    }

    /// Output `block` of `row`.
    ///
    /// # Safety
    /// No other thread may hold the same block of the same row.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "threads write different blocks, as the caller promises"
    )]
    pub(crate) unsafe fn block(&self, row: usize, block: usize) -> &mut [f32] {
        let start = row * self.stride + block * BLOCK_ROWS;
        // SAFETY: passed on to the caller.
        unsafe { self.data.slice(start..start + BLOCK_ROWS) }
    }
}

/// `y = Σ w · q / s · scale` for some blocks and one tile.
pub(crate) type TernaryTile =
    unsafe fn(&TernaryMatrix, Range<usize>, usize, &Activations, &Output<'_>);

/// The functions of one instruction set. A value of this type is the proof that this CPU can run
/// them: only [`KernelSet::available`] gives any, and it asks the CPU.
///
/// Every set gives the same bits for the same input; `tests/agree.rs` holds them to it.
pub struct KernelSet {
    /// What `--kernels` calls it.
    pub name: &'static str,
    /// The packing it reads without unpacking it first, and multiplies by fastest where weights
    /// come from memory.
    pub packing: Packing,
    pub(crate) ternary: unsafe fn(&TernaryMatrix, Range<usize>, &Activations, &Output<'_>),
    /// Products with one tile of activations, the given one, if there is a faster way for many rows
    /// and 1.67 bits.
    pub(crate) ternary_tile: Option<TernaryTile>,
    pub(crate) lookup: Lookup,
    pub(crate) sparse: SparseKernels,
    pub(crate) matvec_f16: unsafe fn(&[u8], &[f32], &mut [f32]),
    pub(crate) matvec_f32: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(crate) quantize: unsafe fn(&[f32], &mut [i8]) -> (f32, i32),
    pub(crate) residual_squares: unsafe fn(&[f32], &[i8], f32) -> [f32; 3],
    /// A block, lines to be fetched meanwhile, a tile, its sums.
    pub(crate) screen_block: unsafe fn(&[u8], &[u8], &Tile<'_>, &mut ScreenSums),
    pub(crate) relu2_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    pub(crate) rope_half_split: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(crate) round_f16: unsafe fn(&[f32], &mut [half::f16]),
    pub(crate) attend_f16: AttendFn<half::f16>,
    pub(crate) attend_f32: AttendFn<f32>,
    pub(crate) merge_segment: unsafe fn(&mut f32, &mut f32, &mut [f32], f32, f32, &[f32]),
    /// So many rounds of the set's fastest int8 products, all in registers; returns how many
    /// products that were.
    pub(crate) peak_i8: Option<unsafe fn(usize) -> usize>,
    /// The same for products of f32, multiplied, then added.
    pub(crate) peak_f32: Option<unsafe fn(usize) -> usize>,
}

/// Compiles the portable functions for an instruction set and fills a [`KernelSet`] with them and
/// with the set's own.
macro_rules! kernel_set {
    ($name:ident = $text:literal, $(#[$features:meta])? own { $($field:ident: $own:expr),* $(,)? }) => {
        /// The table of this instruction set.
        pub(crate) static $name: $crate::sets::table::KernelSet = $crate::sets::table::KernelSet {
            name: $text,
            $($field: $own,)*
            rms_norm, relu2_mul, silu_mul, add, rope_half_split, merge_segment, matvec_f32, quantize,
            residual_squares,
        };
        $(#[$features])?
        fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            $crate::sets::portable::rms_norm(x, weight, eps, out);
        }
        $(#[$features])?
        fn quantize(x: &[f32], out: &mut [i8]) -> (f32, i32) {
            $crate::sets::portable::quantize(x, out)
        }
        $(#[$features])?
        fn residual_squares(x: &[f32], q: &[i8], scale: f32) -> [f32; 3] {
            $crate::sets::portable::residual_squares(x, q, scale)
        }
        $(#[$features])?
        fn relu2_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            $crate::sets::portable::relu2_mul(gate, up, out);
        }
        $(#[$features])?
        fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            $crate::sets::portable::silu_mul(gate, up, out);
        }
        $(#[$features])?
        fn add(x: &mut [f32], y: &[f32]) {
            $crate::sets::portable::add(x, y);
        }
        $(#[$features])?
        fn rope_half_split(head: &mut [f32], cos: &[f32], sin: &[f32]) {
            $crate::sets::portable::rope_half_split(head, cos, sin);
        }
        $(#[$features])?
        fn merge_segment(max: &mut f32, sum: &mut f32, acc: &mut [f32], later_max: f32, later_sum: f32, later_acc: &[f32]) {
            $crate::sets::portable::merge_segment(max, sum, acc, later_max, later_sum, later_acc);
        }
        $(#[$features])?
        fn matvec_f32(rows: &[f32], x: &[f32], out: &mut [f32]) {
            for (row, out) in rows.chunks_exact(x.len()).zip(out) {
                *out = $crate::sets::portable::dot(row, x);
            }
        }
    };
}
pub(crate) use kernel_set;

impl KernelSet {
    /// The sets that this CPU can run, best first. The scalar set, which is the reference, is
    /// always the last.
    pub fn available() -> impl Iterator<Item = &'static KernelSet> {
        let mut sets: [Option<&'static KernelSet>; 5] =
            [None, None, None, None, Some(&scalar::SCALAR)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                sets[3] = Some(&avx2::AVX2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    sets[2] = Some(&avx512::AVX512);
                    if is_x86_feature_detected!("avx512vbmi") {
                        let by_amd = avx512::made_by_amd();
                        sets[usize::from(by_amd)] = Some(&avx512::AVX512_VBMI);
                        sets[usize::from(!by_amd)] = Some(&avx512::AVX512_ZEN);
                    }
                }
            }
        }
        // The kernels take four bytes in memory for a dword of a register, lowest byte first.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            if std::arch::is_aarch64_feature_detected!("neon") {
                sets[1] = Some(&neon::NEON);
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    sets[0] = Some(&neon::NEON_DOTPROD);
                }
            }
        }
        sets.into_iter().flatten()
    }

    /// The best set for this CPU.
    #[must_use]
    pub fn detect() -> &'static KernelSet {
        // Found once: asking for the name of the CPU's maker leaves a virtual machine, which takes
        // 8 µs.
        static BEST: LazyLock<&KernelSet> =
            LazyLock::new(|| KernelSet::available().next().unwrap_or(&scalar::SCALAR));
        &BEST
    }

    /// The set of that name, if this CPU can run it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static KernelSet> {
        Self::available().find(|set| set.name == name)
    }

    /// `out[r] = Σ rows[r] · x` for rows of little-endian f16, `[out.len(), x.len()]`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn matvec_f16(&self, rows: &[u8], x: &[f32], out: &mut [f32]) {
        assert_eq!(
            rows.len(),
            2 * x.len() * out.len(),
            "f16 matrix bytes for {} rows of {}",
            out.len(),
            x.len()
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { (self.matvec_f16)(rows, x, out) }
    }

    /// `out[r] = Σ rows[r] · x` for rows of f32, `[out.len(), x.len()]`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn matvec_f32(&self, rows: &[f32], x: &[f32], out: &mut [f32]) {
        assert!(!x.is_empty(), "a matrix without columns");
        assert_eq!(
            rows.len(),
            x.len() * out.len(),
            "matrix elements for {} rows of {}",
            out.len(),
            x.len()
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { (self.matvec_f32)(rows, x, out) }
    }

    /// `out = weight · (x / sqrt(mean(x²) + eps))`, all of one length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(
            x.len() == weight.len() && x.len() == out.len(),
            "rms_norm of {} by {}",
            x.len(),
            weight.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// Quantizes `x` to int8 by its largest magnitude; zeros follow where `out` is longer. Returns
    /// `s` and `Σ q`: `s = 127 / max(absmax, 1e-5)` by one division, `q = round_half_even(x · s)`.
    ///
    /// # Panics
    /// If `out` is shorter than `x`.
    pub fn quantize(&self, x: &[f32], out: &mut [i8]) -> (f32, i32) {
        assert!(
            out.len() >= x.len(),
            "{} values into {}",
            x.len(),
            out.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.quantize)(x, out) }
    }

    /// `out = relu(gate)² · up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn relu2_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(
            gate.len() == up.len() && gate.len() == out.len(),
            "gate {} and up {}",
            gate.len(),
            up.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.relu2_mul)(gate, up, out) }
    }

    /// `out = gate · sigmoid(gate) · up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(
            gate.len() == up.len() && gate.len() == out.len(),
            "gate {} and up {}",
            gate.len(),
            up.len()
        );
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.silu_mul)(gate, up, out) }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "the terms of a sum");
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.add)(x, y) }
    }

    /// Rotates each head of `x`, `[heads, 2 · cos.len()]`, pairing element `i` with `i +
    /// cos.len()`.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length or do not divide `x`.
    pub fn rope_half_split(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let head_dim = 2 * cos.len();
        assert!(
            cos.len() == sin.len() && head_dim > 0 && x.len().is_multiple_of(head_dim),
            "heads of {head_dim}"
        );
        for head in x.chunks_exact_mut(head_dim) {
            // SAFETY: a set exists only on a CPU that can run it.
            unsafe { (self.rope_half_split)(head, cos, sin) }
        }
    }

    /// Attends over one segment of the cache.
    ///
    /// # Panics
    /// If a slice is shorter than the shapes say.
    pub fn attend<T: CacheElement>(
        &self,
        segment: &Segment<'_, T>,
        scratch: &mut SegmentScratch,
        partial: &mut Partial<'_>,
    ) {
        let Segment {
            head_dim,
            value_dim,
            num_keys,
            ..
        } = *segment;
        let queries = num_keys.len();
        let most = num_keys.iter().copied().max().unwrap_or(0);
        assert!(
            num_keys.iter().all(|n| (1..=SEGMENT_KEYS).contains(n)),
            "{num_keys:?} keys"
        );
        assert!(
            value_dim.is_multiple_of(16) && value_dim >= head_dim,
            "value rows of {value_dim} for heads of {head_dim}"
        );
        assert!(
            segment.queries.len() == queries * head_dim,
            "{queries} queries"
        );
        for block in 0..most.div_ceil(CACHE_BLOCK) {
            assert!(
                segment.keys[block].len() == head_dim * CACHE_BLOCK,
                "key block {block}"
            );
            assert!(
                segment.values[block].len() == CACHE_BLOCK * value_dim,
                "value block {block}"
            );
        }
        assert!(
            partial.max.len() == queries
                && partial.sum.len() == queries
                && partial.acc.len() == queries * value_dim,
            "partial"
        );
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { T::attend(self)(segment, scratch, partial) }
    }

    /// Rounds to the element type of the cache, to nearest, half to even.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn round<T: CacheElement>(&self, from: &[f32], to: &mut [T]) {
        assert_eq!(from.len(), to.len(), "elements to round");
        // SAFETY: a set exists only on a CPU that can run it; the lengths were checked.
        unsafe { T::round(self)(from, to) }
    }

    /// Merges the partial result of a later segment of one head into that of the earlier ones.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn merge_segment(
        &self,
        max: &mut f32,
        sum: &mut f32,
        acc: &mut [f32],
        later: (f32, f32, &[f32]),
    ) {
        assert_eq!(acc.len(), later.2.len(), "partial results");
        // SAFETY: a set exists only on a CPU that can run it.
        unsafe { (self.merge_segment)(max, sum, acc, later.0, later.1, later.2) }
    }
}

impl std::fmt::Debug for KernelSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KernelSet").field(&self.name).finish()
    }
}
