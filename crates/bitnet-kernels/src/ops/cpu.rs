//! [`Cpu`]: the operations of a forward pass, each dispatched to all threads and counted.
//!
//! Threads share rows of weights, rows of activations or heads. No float sum is split between two
//! threads, so the division of work never changes a bit of the result.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::layout::activations::{Activations, TILE_ROWS, interleave};
use crate::layout::lines::BLOCK_ROWS;
use crate::layout::packing::Packing;
use crate::ops::lookup;
use crate::ops::prompt::{deal_wide, wide_rows};
use crate::sets::output::Output;
use crate::sets::table::{Gate, KernelSet};
use crate::threads::counters::{Counters, Kernel};
use crate::threads::disjoint::Disjoint;
use crate::threads::pool::Pool;
use crate::weights::matrix::TernaryMatrix;

/// Minimum number of rows for which [`KernelSet::ternary_tile`] is faster: with fewer, reading
/// weights takes longer than computing.
const TILE_KERNEL_ROWS_MIN: usize = 4;
/// Minimum number of blocks for which it is faster: preparing a tile takes a thread as long as it
/// saves in six blocks.
const TILE_KERNEL_BLOCKS_MIN: usize = 8;

/// A CPU's kernels, threads and counters. Runs one job at a time: it is `Send`, not `Sync`.
pub struct Cpu {
    set: &'static KernelSet,
    pool: Pool,
    counters: Counters,
}

/// A root-mean-square norm: its weights and epsilon.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// One weight for each column.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

/// The columns of a row that hold the gates and values of a feed-forward network.
#[derive(Clone, Debug)]
pub struct Neurons<'a> {
    /// The gates.
    pub gates: Range<usize>,
    /// The gated values, one for each gate.
    pub ups: Range<usize>,
    /// The neurons that have columns; `None` if all have.
    pub live: Option<LiveNeurons<'a>>,
}

/// The neurons of a feed-forward network that are not always zero.
#[derive(Clone, Copy, Debug)]
pub struct LiveNeurons<'a> {
    /// Their positions among all, ascending.
    pub positions: &'a [u32],
    /// Number of all neurons.
    pub num_neurons: usize,
}

/// Counts of the zeros among the inner values of a feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InnerZeros {
    /// Gates that were not positive.
    pub closed_gates: usize,
    /// Int8 values that were zero.
    pub zeros: usize,
}

/// Makes a quantized row from its index, scratch of two rows and the int8 row to fill. Returns the
/// row's factor and sum.
type MakeRow<'a> = dyn Fn(usize, &mut [f32], &mut [i8]) -> (f32, i32) + Sync + 'a;

thread_local! {
    /// Buffers to quantize a row: two float rows and the int8 row. Kept, so that a decode step
    /// allocates nothing.
    static ROW: RefCell<(Vec<f32>, Vec<i8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    /// The int8 values of all neurons; a matrix without dead neurons keeps only some of them.
    static ALL_NEURONS: RefCell<Vec<i8>> = const { RefCell::new(Vec::new()) };
}

impl Cpu {
    /// Uses the given instruction set on `num_threads` threads, including the caller's.
    #[must_use]
    pub fn new(set: &'static KernelSet, num_threads: usize) -> Self {
        Self {
            set,
            pool: Pool::new(num_threads),
            counters: Counters::default(),
        }
    }

    /// The instruction set in use.
    #[must_use]
    pub fn set(&self) -> &'static KernelSet {
        self.set
    }

    /// The threads in use.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The kernels that ran so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Quantizes the first `cols` values of each row of `x`, `[rows, stride]`, normalised first if
    /// a norm is given.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn quantize(
        &self,
        x: &[f32],
        stride: usize,
        cols: usize,
        norm: Option<Norm<'_>>,
        to: &mut Activations,
    ) {
        let set = self.set;
        self.fill(x.len() / stride, cols, cols, to, &|row, float, int8| {
            let x = &x[row * stride..row * stride + cols];
            normalize_and_quantize(set, x, norm, &mut float[..cols], int8)
        });
    }

    /// The inner rows of a feed-forward network: gates `up` by `gate`, normalises if a norm is
    /// given, quantizes. Returns the number of zeros.
    ///
    /// x: `[rows, stride]`. If columns exist for live neurons only, norm and quantization treat the
    /// other neurons as zeros, and `to` gets the live ones.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn gate_and_quantize(
        &self,
        gate: Gate,
        x: &[f32],
        stride: usize,
        neurons: &Neurons<'_>,
        norm: Option<Norm<'_>>,
        to: &mut Activations,
    ) -> InnerZeros {
        let cols = neurons.gates.len();
        let num_neurons = neurons.live.map_or(cols, |live| live.num_neurons);
        let set = self.set;
        let (closed_gates, zeros) = (AtomicUsize::new(0), AtomicUsize::new(0));
        self.fill(
            x.len() / stride,
            cols,
            num_neurons,
            to,
            &|row, float, int8| {
                let x = &x[row * stride..(row + 1) * stride];
                let (gates, ups) = (&x[neurons.gates.clone()], &x[neurons.ups.clone()]);
                let (inner, normed) = float.split_at_mut(num_neurons);
                let multiply = |inner: &mut [f32]| set.gate_mul(gate, gates, ups, inner);
                let quantized = match neurons.live {
                    None => {
                        multiply(inner);
                        normalize_and_quantize(set, inner, norm, normed, int8)
                    }
                    Some(LiveNeurons { positions, .. }) => ALL_NEURONS.with_borrow_mut(|all| {
                        let live = &mut normed[..cols];
                        multiply(live);
                        inner.fill(0.0);
                        positions
                            .iter()
                            .zip(live)
                            .for_each(|(position, live)| inner[*position as usize] = *live);
                        all.resize(num_neurons, 0);
                        let quantized = normalize_and_quantize(set, inner, norm, normed, all);
                        int8.fill(0);
                        positions
                            .iter()
                            .zip(int8.iter_mut())
                            .for_each(|(position, live)| *live = all[*position as usize]);
                        quantized
                    }),
                };
                // A NaN does not count as an open gate.
                let open_gates = gates.iter().filter(|gate| **gate > 0.0).count();
                closed_gates.fetch_add(cols - open_gates, Ordering::Relaxed);
                zeros.fetch_add(
                    int8[..cols].iter().filter(|q| **q == 0).count(),
                    Ordering::Relaxed,
                );
                quantized
            },
        );
        InnerZeros {
            closed_gates: closed_gates.into_inner(),
            zeros: zeros.into_inner(),
        }
    }

    /// Fills `to` with rows made by `make(row, float scratch [2 · scratch_cols], int8 row [padded
    /// cols]) → (s, Σ q)`.
    fn fill(
        &self,
        rows: usize,
        cols: usize,
        scratch_cols: usize,
        to: &mut Activations,
        make: &MakeRow<'_>,
    ) {
        to.reset(rows, cols);
        let padded = to.padded_cols();
        let all = to.all_mut();
        let (values, scales, sums) = (
            Disjoint::new(all.values),
            Disjoint::new(all.scales),
            Disjoint::new(all.sums),
        );
        // A thread takes whole tiles, because the rows of a tile share cache lines.
        self.pool.deal(rows.div_ceil(TILE_ROWS), 1, &|tiles| {
            ROW.with_borrow_mut(|(float, int8)| {
                float.resize(float.len().max(2 * scratch_cols), 0.0);
                int8.resize(int8.len().max(padded), 0);
                let (float, int8) = (&mut float[..2 * scratch_cols], &mut int8[..padded]);
                let tile_rows = tiles.start * TILE_ROWS..rows.min(tiles.end * TILE_ROWS);
                for first in tile_rows.clone().step_by(TILE_ROWS) {
                    let in_tile = first..tile_rows.end.min(first + TILE_ROWS);
                    // SAFETY: each tile is in one thread's share.
                    let (tile, scales, sums) = unsafe {
                        (
                            values.slice(in_tile.start * padded..in_tile.end * padded),
                            scales.slice(in_tile.clone()),
                            sums.slice(in_tile.clone()),
                        )
                    };
                    if in_tile.len() == 1 {
                        (scales[0], sums[0]) = make(first, float, tile);
                        continue;
                    }
                    for (index, row) in in_tile.clone().enumerate() {
                        (scales[index], sums[index]) = make(row, float, int8);
                        interleave(int8, tile, in_tile.len(), index);
                    }
                }
            });
        });
    }

    /// `out[t] = W · activations[t]`, all rows of all parts of the stack; `out` is `[rows,
    /// matrix.output_len()]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn ternary_matmul(
        &self,
        matrix: &TernaryMatrix,
        activations: &Activations,
        out: &mut [f32],
    ) {
        self.multiply_blocks(
            matrix,
            0..matrix.num_blocks(),
            matrix.num_weights(),
            activations,
            out,
        );
    }

    /// [`Cpu::ternary_matmul`] for one part of the stack; the other outputs of `out`, `[rows,
    /// matrix.output_len()]`, are left as they are.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn ternary_matmul_part(
        &self,
        matrix: &TernaryMatrix,
        part: usize,
        activations: &Activations,
        out: &mut [f32],
    ) {
        let num_weights = matrix.parts()[part].rows * matrix.cols();
        self.multiply_blocks(
            matrix,
            matrix.part_blocks(part),
            num_weights,
            activations,
            out,
        );
    }

    /// Multiplies by the blocks of a matrix that hold `num_weights` weights.
    fn multiply_blocks(
        &self,
        matrix: &TernaryMatrix,
        blocks: Range<usize>,
        num_weights: usize,
        activations: &Activations,
        out: &mut [f32],
    ) {
        let (rows, stride) = (activations.rows(), matrix.output_len());
        assert_eq!(
            activations.cols(),
            matrix.cols(),
            "columns of activations and weights"
        );
        assert_eq!(
            out.len(),
            rows * stride,
            "outputs for {rows} rows of {stride}"
        );
        self.counters.add(
            matrix.kernel(rows),
            rows * num_weights,
            blocks.len() * matrix.block_bytes(),
        );
        let output = Output::new(out, stride);
        let mut tiles = 0..activations.num_tiles();
        let is_looked_up = matrix.packing().cut(matrix.cols()).is_some();
        if let Some(multiply_wide) = self.set.ternary_wide
            && !is_looked_up
        {
            let wide = wide_rows(rows, blocks.len());
            deal_wide(&self.pool, wide, blocks.len(), &|rows, share| {
                let share = blocks.start + share.start..blocks.start + share.end;
                // SAFETY: a set exists only on a CPU that can run it, and each block of outputs of
                // a row is in one item.
                unsafe { multiply_wide(matrix, share, rows, activations, &output) }
            });
            tiles.start = wide.div_ceil(TILE_ROWS);
        }
        if !tiles.is_empty() {
            self.multiply_tiles(matrix, blocks, tiles, activations, &output);
        }
    }

    /// Multiplies by blocks of a matrix with the rows of some tiles.
    fn multiply_tiles(
        &self,
        matrix: &TernaryMatrix,
        blocks: Range<usize>,
        tiles: Range<usize>,
        activations: &Activations,
        output: &Output<'_>,
    ) {
        let multiply = |share: Range<usize>| {
            let share = blocks.start + share.start..blocks.start + share.end;
            // SAFETY: a set exists only on a CPU that can run it, and each block of outputs is in
            // one thread's share.
            unsafe {
                match matrix.packing().cut(matrix.cols()) {
                    None => (self.set.ternary)(matrix, share, tiles.clone(), activations, output),
                    Some(cut) => {
                        lookup::multiply(&self.set.lookup, matrix, cut, share, activations, output)
                    }
                }
            }
        };
        let threads = self.pool.num_threads();
        let rows = activations.rows() - tiles.start * TILE_ROWS;
        let shares = if tiles.len() == 1 { threads } else { 1 };
        if let Some(multiply_tile) = self.set.ternary_tile
            && matrix.packing() == Packing::FiveThirds
            && rows >= TILE_KERNEL_ROWS_MIN
            && blocks.len() >= TILE_KERNEL_BLOCKS_MIN * shares
        {
            let multiply = |tile: usize, share: Range<usize>| {
                let share = blocks.start + share.start..blocks.start + share.end;
                // SAFETY: as above.
                unsafe { multiply_tile(matrix, share, tiles.start + tile, activations, output) }
            };
            if tiles.len() == 1 {
                return self
                    .pool
                    .split(blocks.len(), 1, &|share| multiply(0, share));
            }
            // Threads share tiles, not blocks, because a thread prepares a tile once for all
            // blocks.
            let parts = (32 * threads)
                .div_ceil(tiles.len())
                .min(blocks.len() / TILE_KERNEL_BLOCKS_MIN);
            return self.pool.deal(tiles.len() * parts, 1, &|items| {
                for tile in items.start / parts..items.end.div_ceil(parts) {
                    let first = items.start.max(tile * parts) - tile * parts;
                    let end = items.end.min((tile + 1) * parts) - tile * parts;
                    let edge = |part| blocks.len() * part / parts;
                    multiply(tile, edge(first)..edge(end));
                }
            });
        }
        // With few rows, each thread reads one sequential stream of weights at memory speed.
        if tiles.len() > 1 {
            self.pool.deal(blocks.len(), 1, &multiply);
        } else {
            self.pool.split(blocks.len(), 1, &multiply);
        }
    }

    /// `out[t][v] = rows[v] · x[t]` for `num_rows` rows of `cols` in f16, little endian; x is `[n,
    /// cols]`, out `[n, num_rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn project_f16(&self, rows: &[u8], x: &[f32], cols: usize, out: &mut [f32]) {
        let (set, n) = (self.set, x.len() / cols);
        if n == 0 {
            return;
        }
        let (row_bytes, num_rows) = (2 * cols, out.len() / n);
        assert!(
            n * cols == x.len() && n * num_rows == out.len(),
            "{} inputs, {} outputs of {n} rows",
            x.len(),
            out.len()
        );
        assert_eq!(
            rows.len(),
            num_rows * row_bytes,
            "bytes of {num_rows} f16 rows of {cols}"
        );
        self.counters
            .add(Kernel::LogitsProjection, n * num_rows * cols, rows.len());
        let out = Disjoint::new(out);
        self.pool.split(num_rows, BLOCK_ROWS, &|share| {
            // A block of rows is read from memory once, and from a cache for the other inputs.
            for first in share.clone().step_by(BLOCK_ROWS) {
                let block = first..share.end.min(first + BLOCK_ROWS);
                let bytes = &rows[block.start * row_bytes..block.end * row_bytes];
                for (t, x) in x.chunks_exact(cols).enumerate() {
                    let columns = t * num_rows + block.start..t * num_rows + block.end;
                    // SAFETY: each range of rows is one thread's share, and so are its columns.
                    set.matvec_f16(bytes, x, unsafe { out.slice(columns) });
                }
            }
        });
    }

    /// Like [`Cpu::project_f16`] for rows of `row_bytes` in any format, which `decode` turns into
    /// f32.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn project(
        &self,
        row_bytes: usize,
        rows: &[u8],
        x: &[f32],
        cols: usize,
        out: &mut [f32],
        decode: &(dyn Fn(&[u8], &mut [f32]) + Sync),
    ) {
        let n = x.len() / cols;
        if n == 0 {
            return;
        }
        let num_rows = out.len() / n;
        assert!(
            n * cols == x.len() && n * num_rows == out.len(),
            "{} inputs, {} outputs of {n} rows",
            x.len(),
            out.len()
        );
        assert_eq!(rows.len(), num_rows * row_bytes, "bytes of {num_rows} rows");
        self.counters
            .add(Kernel::LogitsProjection, n * num_rows * cols, rows.len());
        let set = self.set;
        let out = Disjoint::new(out);
        self.pool.split(num_rows, BLOCK_ROWS, &|share| {
            ROW.with_borrow_mut(|(float, _)| {
                float.resize(float.len().max(cols), 0.0);
                let values = &mut float[..cols];
                for row in share {
                    decode(&rows[row * row_bytes..(row + 1) * row_bytes], values);
                    for (t, x) in x.chunks_exact(cols).enumerate() {
                        // SAFETY: each column of `out` is one row of the matrix, which is in one
                        // thread's share.
                        let out = unsafe { out.slice(t * num_rows + row..t * num_rows + row + 1) };
                        set.matvec_f32(values, x, out);
                    }
                }
            });
        });
    }
}

/// Quantizes `x`, normalised into `normed` first if a norm is given.
fn normalize_and_quantize(
    set: &KernelSet,
    x: &[f32],
    norm: Option<Norm<'_>>,
    normed: &mut [f32],
    int8: &mut [i8],
) -> (f32, i32) {
    match norm {
        None => set.quantize(x, int8),
        Some(norm) => {
            set.rms_norm(x, norm.weight, norm.eps, normed);
            set.quantize(normed, int8)
        }
    }
}
