//! [`ScreenTable`]: an 8-bit copy of the head, which shows with half the memory traffic which
//! logits can matter.
//!
//! A logit is the product of a row `e` of the head and the hidden state `h`. The row is kept as
//! 8-bit integers times a scale and the hidden state as 16-bit integers times a scale, so that the
//! estimate is an exact integer sum and two multiplications. Each estimate has an error bound,
//! proved in `docs/screened-head.md`. To find the largest logits, the sampler computes in full only
//! the logits whose upper bound reaches the lower bounds of the others, so it never misses one.

use bytes::Bytes;

use crate::layout::activations::TILE_ROWS;
use crate::layout::lines::{BLOCK_ROWS, LINE_COLS, MAX_COLS};
use crate::layout::screen::{PLANE_FACTOR, Plane, ScreenStates, ScreenSums, pack_block};
use crate::ops::cpu::Cpu;
use crate::sets::table::KernelSet;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::threads::memory::Huge;
use crate::threads::pool::Pool;
use crate::weights::head::{BlockBounds, ScreenTable};

/// Half a unit in the last place of 1: the relative error of one rounded operation.
const UNIT: f32 = f32::EPSILON / 2.0;
/// Added to the root of a sum of squares: more than squares below the smallest float can lose.
const NORM_FLOOR: f32 = 1e-15;
/// Added to every error bound: more than products below the smallest float can lose.
const ERROR_FLOOR: f32 = 1e-30;
/// Maximum norm for screening: products of larger norms could overflow.
const MAX_NORM: f32 = 1e15;

/// The hidden states of a pass as integers, and their estimates. Grows to the largest number of
/// rows so far.
#[derive(Default)]
pub struct ScreenScratch {
    states: ScreenStates,
    hidden: Vec<HiddenBounds>,
    residual: Vec<f32>,
    /// The two planes of a state.
    integers: [Vec<i8>; 2],
    values: Vec<f32>,
    errors: Vec<f32>,
    stride: usize,
}

/// The terms of a hidden state in the error bounds.
#[derive(Clone, Copy)]
struct HiddenBounds {
    /// The scale of the integers.
    scale: f32,
    /// The factor of a row's `residual` in a bound: at least `‖h‖`.
    of_residual: f32,
    /// The factor of a row's `norm` in a bound.
    of_norm: f32,
}

/// Logits over the vocabulary, each with a bound: the true logit differs from `values[i]` by at
/// most `errors[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Estimates<'a> {
    /// `[vocab]`
    pub values: &'a [f32],
    /// `[vocab]`, positive or infinite, and large enough to cover the rounding of `value ± error`.
    pub errors: &'a [f32],
}

/// A vector as integers times a scale.
struct Quantized {
    scale: f32,
    sum: i32,
    /// At least `‖x − scale · integers‖`.
    residual: f32,
    /// At least `‖x‖` and `‖scale · integers‖`.
    norm: f32,
}

impl Quantized {
    fn plane<'a>(&self, integers: &'a [i8]) -> Plane<'a> {
        Plane {
            integers,
            scale: self.scale,
            sum: self.sum,
        }
    }

    /// Whether nothing computed from it can overflow.
    fn is_bounded(&self) -> bool {
        self.norm <= MAX_NORM && self.residual <= MAX_NORM
    }
}

/// Quantizes `x` into `integers`, followed by zeros. Norms are rounded up by more than their sums
/// can lose: a sum of `n` squares in 64 lanes is off by a factor of at most `1 + (n / 64 + 8) ·
/// 2⁻²⁴ < 1 + 2e-4`.
fn quantize(set: &KernelSet, x: &[f32], integers: &mut [i8]) -> Quantized {
    let (factor, sum) = set.quantize(x, integers);
    measured(set, x, integers, 1.0 / factor, sum)
}

/// Quantizes what the first plane left with a scale of a 256th of its scale. That is a power of
/// two, so both planes are one integer times one scale.
fn quantize_rest(
    set: &KernelSet,
    rest: &[f32],
    first_scale: f32,
    integers: &mut [i8],
) -> Quantized {
    let scale = first_scale / PLANE_FACTOR as f32;
    let factor = 1.0 / scale;
    let mut sum = 0;
    for (integer, x) in integers.iter_mut().zip(rest) {
        // The rest is at most half the first scale, 128 units. Adding 1.5 · 2^23 rounds to an
        // integer and leaves it in the low bits. A NaN gives some integer.
        *integer = ((x * factor).clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i8;
        sum += i32::from(*integer);
    }
    integers[rest.len()..].fill(0);
    measured(set, rest, integers, scale, sum)
}

/// The norms of `x` and of its integers.
fn measured(set: &KernelSet, x: &[f32], integers: &[i8], scale: f32, sum: i32) -> Quantized {
    // SAFETY: a set exists only on a CPU that can run it.
    let [residual, norm, image] = unsafe { (set.residual_squares)(x, integers, scale) }
        .map(|squares| squares.sqrt() * 1.000_2);
    let norm = if image > norm { image } else { norm } + NORM_FLOOR;
    // Each product was rounded, and each difference again.
    let residual = residual + 2.0 * UNIT * norm + NORM_FLOOR;
    Quantized {
        scale,
        sum,
        residual,
        norm,
    }
}

impl ScreenTable {
    /// Quantizes a table of `[rows, cols]`, on all threads of `pool`. `read_row(row, out)` gives
    /// its rows, in any order.
    ///
    /// # Panics
    /// If there are no columns or more than a ternary matrix may have.
    #[must_use]
    pub fn pack(
        set: &KernelSet,
        pool: &Pool,
        rows: usize,
        cols: usize,
        read_row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Self {
        assert!(
            (1..=MAX_COLS).contains(&cols),
            "a screened table of {cols} columns; 1 to {MAX_COLS} are possible"
        );
        let num_blocks = rows.div_ceil(BLOCK_ROWS);
        let block_bytes = Self::block_bytes(cols);
        let mut lines = Huge::zeros(num_blocks * block_bytes);
        let zeros = BlockBounds {
            scale: [0.0; BLOCK_ROWS],
            residual: [0.0; BLOCK_ROWS],
            norm: [0.0; BLOCK_ROWS],
        };
        let mut bounds = vec![zeros; num_blocks];
        let (bytes, all_bounds) = (Disjoint::new(&mut lines), Disjoint::new(&mut bounds));
        pool.split(num_blocks, 1, &|blocks| {
            let mut row = vec![0.0; cols];
            let padded = cols.next_multiple_of(LINE_COLS);
            let mut integers = vec![0i8; BLOCK_ROWS * padded];
            for block in blocks {
                // SAFETY: each block is in one thread's share.
                let (bytes, bounds) = unsafe {
                    (
                        bytes.slice(block * block_bytes..(block + 1) * block_bytes),
                        all_bounds.slice(block..block + 1),
                    )
                };
                for (lane, integers) in integers.chunks_exact_mut(padded).enumerate() {
                    if block * BLOCK_ROWS + lane >= rows {
                        integers.fill(0);
                        continue;
                    }
                    read_row(block * BLOCK_ROWS + lane, &mut row);
                    let quantized = quantize(set, &row, integers);
                    if quantized.is_bounded() {
                        bounds[0].scale[lane] = quantized.scale;
                        bounds[0].residual[lane] = quantized.residual;
                        bounds[0].norm[lane] = quantized.norm;
                    } else {
                        bounds[0].residual[lane] = f32::INFINITY;
                    }
                }
                pack_block(&integers, padded, bytes);
            }
        });
        Self {
            rows,
            cols,
            lines: Bytes::from_owner(lines),
            bounds,
        }
    }
}

impl ScreenScratch {
    /// The estimates of hidden state `index` of the last pass.
    ///
    /// # Panics
    /// If there was no such state.
    #[must_use]
    pub fn estimates(&self, index: usize, vocab: usize) -> Estimates<'_> {
        let range = index * self.stride..index * self.stride + vocab;
        Estimates {
            values: &self.values[range.clone()],
            errors: &self.errors[range],
        }
    }

    /// Turns each hidden state into integers. False if one has values that cannot be bounded.
    fn split(&mut self, set: &KernelSet, x: &[f32], cols: usize) -> bool {
        self.states.reset(x.len() / cols, cols);
        self.hidden.clear();
        self.residual.resize(cols, 0.0);
        let padded = self.states.padded_cols();
        let planes = self.integers.each_mut();
        let [of_first, of_second] = planes.map(|plane| {
            plane.resize(padded.max(plane.len()), 0);
            &mut plane[..padded]
        });
        for (index, x) in x.chunks_exact(cols).enumerate() {
            let first = quantize(set, x, of_first);
            for ((residual, x), integer) in self.residual.iter_mut().zip(x).zip(&*of_first) {
                *residual = x - first.scale * f32::from(*integer);
            }
            let second = quantize_rest(set, &self.residual, first.scale, of_second);
            self.states
                .set(index, &first.plane(of_first), &second.plane(of_second));
            if !(first.is_bounded() && second.is_bounded()) {
                return false;
            }
            // The rest of h is the residual of the second plane plus the rounding of the second
            // plane's input.
            let left = second.residual + 2.0 * UNIT * first.norm;
            let of_sum = (cols.div_ceil(64) + 10) as f32 * UNIT;
            let of_norm = left + of_sum * first.norm + 8.0 * UNIT * (first.norm + second.norm);
            // One part in a million covers the rounding of this product and of the next two.
            self.hidden.push(HiddenBounds {
                scale: second.scale,
                of_residual: first.norm * 1.000_001,
                of_norm: of_norm * 1.000_001,
            });
        }
        true
    }
}

impl Cpu {
    /// Estimates the logits of hidden states `x`, `[n, cols]`; `scratch` then holds them. Returns
    /// false and estimates nothing if a hidden state is too large for a bound or not a number.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn screen(&self, table: &ScreenTable, x: &[f32], scratch: &mut ScreenScratch) -> bool {
        let cols = table.cols;
        assert!(
            x.len().is_multiple_of(cols),
            "{} values in rows of {cols}",
            x.len()
        );
        let n = x.len() / cols;
        if !scratch.split(self.set(), x, cols) {
            self.counters().add(Kernel::LogitsScreen, 0, 0);
            return false;
        }
        self.counters().add(
            Kernel::LogitsScreen,
            2 * n * table.rows * cols,
            table.num_bytes(),
        );
        scratch.stride = table.bounds.len() * BLOCK_ROWS;
        let len = n * scratch.stride;
        scratch.values.resize(len.max(scratch.values.len()), 0.0);
        scratch.errors.resize(len.max(scratch.errors.len()), 0.0);
        let (stride, states, hidden) = (scratch.stride, &scratch.states, &scratch.hidden);
        let (values, errors) = (
            Disjoint::new(&mut scratch.values),
            Disjoint::new(&mut scratch.errors),
        );
        let block_bytes = ScreenTable::block_bytes(cols);
        let set = self.set();
        let tiles = states.num_tiles();
        let part = block_bytes.div_ceil(tiles);
        self.pool().split(table.bounds.len(), 1, &|blocks| {
            let mut sums: ScreenSums = [[0; BLOCK_ROWS]; TILE_ROWS];
            for block in blocks {
                let lines = &table.lines[block * block_bytes..(block + 1) * block_bytes];
                // With one tile the loop always waits for memory, and the hardware prefetcher keeps
                // up. With several, only the first tile of a block would wait, so each tile
                // prefetches its part of the next block.
                let next = if tiles == 1 {
                    &[]
                } else {
                    &table.lines[(block + 1) * block_bytes..]
                };
                for tile in 0..tiles {
                    let ahead = next.get(tile * part..(tile + 1) * part).unwrap_or_default();
                    // SAFETY: a set exists only on a CPU that can run it.
                    unsafe { (set.screen_block)(lines, ahead, &states.tile(tile), &mut sums) };
                    for (index, sums) in states.tile_states(tile).zip(sums.as_chunks::<2>().0) {
                        let range = index * stride + block * BLOCK_ROWS
                            ..index * stride + (block + 1) * BLOCK_ROWS;
                        // SAFETY: each block is in one thread's share.
                        let (values, errors) =
                            unsafe { (values.slice(range.clone()), errors.slice(range)) };
                        table.bounds[block].estimate(&hidden[index], sums, values, errors);
                    }
                }
            }
        });
        true
    }
}

impl BlockBounds {
    /// The estimates of a block of rows from the two parts of the integer sums.
    fn estimate(
        &self,
        hidden: &HiddenBounds,
        sums: &[[i32; BLOCK_ROWS]; 2],
        values: &mut [f32],
        errors: &mut [f32],
    ) {
        for (lane, (value, error)) in values.iter_mut().zip(errors).enumerate() {
            // Exact: the parts have 32 bits, a float of 64 bits has 53.
            let parts = [sums[0][lane], sums[1][lane]].map(f64::from);
            let sum = f64::from(PLANE_FACTOR) * parts[0] + parts[1];
            *value = self.scale[lane] * (hidden.scale * sum as f32);
            *error = self.residual[lane] * hidden.of_residual
                + self.norm[lane] * hidden.of_norm
                + ERROR_FLOOR;
        }
    }
}
