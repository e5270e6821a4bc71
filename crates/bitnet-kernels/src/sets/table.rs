//! [`KernelSet`]: one table of functions for each instruction set, and the macro that fills it.

use std::ops::Range;

use crate::layout::activations::Activations;
use crate::layout::packing::Packing;
use crate::layout::screen::{ScreenSums, ScreenTile};
use crate::sets::groups::GroupKernels;
use crate::sets::lookup::Lookup;
use crate::sets::output::Output;
use crate::sets::segment::AttendFn;
use crate::sets::sparse::SparseKernels;
use crate::weights::matrix::TernaryMatrix;

/// `y = Σ w · q / s · scale` for some blocks and some tiles of activations.
pub(crate) type Ternary =
    unsafe fn(&TernaryMatrix, Range<usize>, Range<usize>, &Activations, &Output<'_>);

/// The same for one tile.
pub(crate) type TernaryTile =
    unsafe fn(&TernaryMatrix, Range<usize>, usize, &Activations, &Output<'_>);

/// The same for up to four tiles, given as rows from the first of a tile on.
pub(crate) type TernaryWide =
    unsafe fn(&TernaryMatrix, Range<usize>, Range<usize>, &Activations, &Output<'_>);

/// Quantizes values by runs. Arguments: the values, the inputs in a run, the int8 values, the scale
/// and the sum of each run.
pub(crate) type QuantizeRuns = unsafe fn(&[f32], usize, &mut [i8], &mut [f32], &mut [i32]);

/// The functions of one instruction set. A value of this type proves that this CPU can run them:
/// only [`KernelSet::available`] returns such values, after checking the CPU.
///
/// Every set gives the same bits for the same input; `tests/agree.rs` checks this.
pub struct KernelSet {
    /// Its name in the option `--kernels`.
    pub name: &'static str,
    /// The packing that it reads without unpacking, and that is fastest when weights come from
    /// memory.
    pub packing: Packing,
    /// Products with the given blocks of rows and tiles of activations.
    pub(crate) ternary: Ternary,
    /// Products with the given tile of activations; `Some` if the set has a faster way for many
    /// rows of activations and weights of 1.67 bits.
    pub(crate) ternary_tile: Option<TernaryTile>,
    /// Products with four tiles at once; `Some` if the set has a faster way for weights that are
    /// not looked up.
    pub(crate) ternary_wide: Option<TernaryWide>,
    pub(crate) lookup: Lookup,
    pub(crate) sparse: SparseKernels,
    /// Products with group scales.
    pub(crate) groups: GroupKernels,
    pub(crate) matvec_f16: unsafe fn(&[u8], &[f32], &mut [f32]),
    pub(crate) matvec_f32: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(crate) quantize: unsafe fn(&[f32], &mut [i8]) -> (f32, i32),
    pub(crate) quantize_runs: QuantizeRuns,
    pub(crate) residual_squares: unsafe fn(&[f32], &[i8], f32) -> [f32; 3],
    /// Arguments: a block, lines to prefetch, a tile, its sums.
    pub(crate) screen_block: unsafe fn(&[u8], &[u8], &ScreenTile<'_>, &mut ScreenSums),
    pub(crate) relu2_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) gelu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    pub(crate) rope_half_split: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(crate) round_f16: unsafe fn(&[f32], &mut [half::f16]),
    pub(crate) attend_f16: AttendFn<half::f16>,
    pub(crate) attend_f32: AttendFn<f32>,
    pub(crate) merge_segment: unsafe fn(&mut f32, &mut f32, &mut [f32], f32, f32, &[f32]),
    /// Runs n rounds of the set's fastest int8 products, all in registers; returns the number of
    /// products.
    pub(crate) peak_i8: Option<unsafe fn(usize) -> usize>,
    /// The same for multiplications and additions of f32.
    pub(crate) peak_f32: Option<unsafe fn(usize) -> usize>,
}

/// The function that gates a feed-forward network's inner values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `relu(gate)² · up`
    Relu2,
    /// `gate · sigmoid(gate) · up`
    Silu,
    /// `gelu(gate) · up`, with the form of GELU that uses tanh
    Gelu,
}

/// Compiles the portable functions for an instruction set and fills a [`KernelSet`] with them and
/// with the set's own.
macro_rules! kernel_set {
    ($name:ident = $text:literal, $(#[$features:meta])? own { $($field:ident: $own:expr),* $(,)? }) => {
        /// The table of this instruction set.
        pub(crate) static $name: $crate::sets::table::KernelSet = $crate::sets::table::KernelSet {
            name: $text,
            $($field: $own,)*
            rms_norm, relu2_mul, silu_mul, gelu_mul, add, rope_half_split, merge_segment, matvec_f32, quantize,
            quantize_runs, residual_squares,
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
        fn quantize_runs(x: &[f32], run_cols: usize, q: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
            $crate::sets::portable::quantize_runs(x, run_cols, q, scales, sums);
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
        fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            $crate::sets::portable::gelu_mul(gate, up, out);
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
