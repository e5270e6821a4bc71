//! Products with weights that have a scale for each group of columns, and quantization of their
//! activations.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::GroupCodes;
use crate::layout::group_activations::{GroupActivations, Offset};
use crate::layout::lines::BLOCK_ROWS;
use crate::ops::cpu::{Cpu, Norm};
use crate::ops::prompt::{deal_wide, wide_rows};
use crate::sets::output::Output;
use crate::sets::table::KernelSet;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::weights::groups::{BlockScratch, GroupMatrix};

/// Makes a row of activations. Arguments: its index, the row to fill.
type MakeRow<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// A thread's buffers to quantize a row. Kept, so that a decode step allocates nothing.
#[derive(Default)]
struct RowScratch {
    values: Vec<f32>,
    int8: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    offsets: Vec<Offset>,
}

thread_local! {
    static ROW: RefCell<RowScratch> = RefCell::default();
    /// The outputs of a last block that reaches past the end of a row.
    static LAST_BLOCK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Cpu {
    /// Quantizes the first `cols` values of each row of `x`, `[rows, stride]`, in runs of
    /// `run_cols` (32, 64 or 128), normalised first if a norm is given: d = absmax / 127, q = x / d
    /// rounded half to even, a run of zeros gives zeros.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn quantize_groups(
        &self,
        x: &[f32],
        stride: usize,
        cols: usize,
        run_cols: usize,
        norm: Option<Norm<'_>>,
        to: &mut GroupActivations,
    ) {
        let set = self.set();
        self.fill_groups(x.len() / stride, cols, run_cols, to, &|row, values| {
            let x = &x[row * stride..row * stride + cols];
            match norm {
                None => values.copy_from_slice(x),
                Some(norm) => set.rms_norm(x, norm.weight, norm.eps, values),
            }
        });
    }

    /// Quantizes `rows` rows of `cols` that `make(row, values)` writes, in runs of `run_cols`, as
    /// [`Cpu::quantize_groups`] does. For rows that the caller computes, such as gated or rotated
    /// ones.
    ///
    /// # Panics
    /// If a run is not of 32, 64 or 128 inputs.
    pub fn fill_groups(
        &self,
        rows: usize,
        cols: usize,
        run_cols: usize,
        to: &mut GroupActivations,
        make: &MakeRow<'_>,
    ) {
        assert!(
            [32, 64, 128].contains(&run_cols),
            "activations in runs of {run_cols}; 32, 64 and 128 are possible"
        );
        to.reset(rows, cols, run_cols);
        let (padded, runs, set) = (to.padded_cols(), to.num_runs(), self.set());
        let all = to.all_mut();
        let (values, scales, offsets) = (
            Disjoint::new(all.values),
            Disjoint::new(all.scales),
            Disjoint::new(all.offsets),
        );
        self.pool().deal(rows.div_ceil(TILE_ROWS), 1, &|tiles| {
            ROW.with_borrow_mut(|scratch| {
                for first in tiles.map(|tile| tile * TILE_ROWS) {
                    let in_tile = first..rows.min(first + TILE_ROWS);
                    let (at_values, at_runs) = (
                        in_tile.start * padded..in_tile.end * padded,
                        in_tile.start * runs..in_tile.end * runs,
                    );
                    // SAFETY: each tile is in one thread's share.
                    let (values, scales, offsets) = unsafe {
                        (
                            values.slice(at_values),
                            scales.slice(at_runs.clone()),
                            offsets.slice(at_runs),
                        )
                    };
                    for (index, row) in in_tile.clone().enumerate() {
                        scratch.quantize(set, cols, run_cols, &|values| make(row, values));
                        let n = in_tile.len();
                        scatter(&scratch.int8[..padded], 4, n, index, values);
                        scatter(&scratch.scales[..runs], 1, n, index, scales);
                        scatter(&scratch.offsets[..runs], 1, n, index, offsets);
                    }
                }
            });
        });
    }

    /// `out[t] = W · activations[t]`, all rows of all parts of the stack; `out` is `[rows,
    /// matrix.output_len()]`.
    ///
    /// The result is y = Σ_g (Σ_a float(Σ w · q) · d_a) · d_g in f32, groups g of weights and runs
    /// a of activations in ascending order, integer sums exact: the same bits for every instruction
    /// set, number of threads and number of rows.
    ///
    /// # Panics
    /// If the shapes do not fit, or a run of activations is longer than a group of weights.
    pub fn group_matmul(
        &self,
        matrix: &GroupMatrix,
        activations: &GroupActivations,
        out: &mut [f32],
    ) {
        let (rows, stride) = (activations.rows(), matrix.output_len());
        assert_eq!(
            out.len(),
            rows * stride,
            "outputs for {rows} rows of {stride}"
        );
        self.counters().add(
            matrix.kernel(rows),
            rows * matrix.num_weights(),
            matrix.num_bytes(),
        );
        self.multiply_groups(
            matrix,
            0..matrix.num_blocks(),
            activations,
            &Output::new(out, stride),
        );
    }

    /// [`Cpu::group_matmul`] with a matrix of one part as the head: `out` is `[rows, vocabulary]`
    /// without padding, and it counts as the projection to logits.
    ///
    /// # Panics
    /// If the shapes do not fit, or the matrix is a stack of several.
    pub fn group_logits(
        &self,
        matrix: &GroupMatrix,
        activations: &GroupActivations,
        out: &mut [f32],
    ) {
        let &[vocab] = matrix.parts() else {
            panic!("logits of a stack of {} matrices", matrix.parts().len())
        };
        let rows = activations.rows();
        assert_eq!(out.len(), rows * vocab, "logits for {rows} rows of {vocab}");
        self.counters().add(
            Kernel::LogitsProjection,
            rows * matrix.num_weights(),
            matrix.num_bytes(),
        );
        let whole = vocab / BLOCK_ROWS;
        self.multiply_groups(matrix, 0..whole, activations, &Output::new(out, vocab));
        if whole < matrix.num_blocks() {
            // The last block reaches past the end of a row.
            let mut last = LAST_BLOCK.take();
            last.clear();
            last.resize(rows * BLOCK_ROWS, 0.0);
            let place = Output::with_first_block(&mut last, BLOCK_ROWS, whole);
            self.multiply_groups(matrix, whole..whole + 1, activations, &place);
            for (out, last) in out
                .chunks_exact_mut(vocab)
                .zip(last.chunks_exact(BLOCK_ROWS))
            {
                let rest = &mut out[whole * BLOCK_ROWS..];
                rest.copy_from_slice(&last[..rest.len()]);
            }
            LAST_BLOCK.set(last);
        }
    }

    /// [`Cpu::group_matmul`] with inputs in f32, `[rows, cols]`: each row of weights is turned into
    /// f32 first. Slow: a reference that shows the error of rounded inputs.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn group_matmul_floats(&self, matrix: &GroupMatrix, x: &[f32], out: &mut [f32]) {
        let rows = x.len() / matrix.cols();
        assert_eq!(
            out.len(),
            rows * matrix.output_len(),
            "outputs for {rows} rows of {}",
            matrix.output_len()
        );
        self.counters().add(
            Kernel::FloatGemm,
            rows * matrix.num_weights(),
            matrix.num_bytes(),
        );
        out.fill(0.0);
        for part in 0..matrix.parts().len() {
            let place = matrix.output_range(part);
            self.multiply_row_by_row(matrix, part, x, out, matrix.output_len(), place.start);
        }
    }

    /// [`Cpu::group_logits`] with inputs in f32, as [`Cpu::group_matmul_floats`].
    ///
    /// # Panics
    /// If the shapes do not fit, or the matrix is a stack of several.
    pub fn group_logits_floats(&self, matrix: &GroupMatrix, x: &[f32], out: &mut [f32]) {
        let &[vocab] = matrix.parts() else {
            panic!("logits of a stack of {} matrices", matrix.parts().len())
        };
        let rows = x.len() / matrix.cols();
        assert_eq!(out.len(), rows * vocab, "logits for {rows} rows of {vocab}");
        self.counters().add(
            Kernel::LogitsProjection,
            rows * matrix.num_weights(),
            matrix.num_bytes(),
        );
        self.multiply_row_by_row(matrix, 0, x, out, vocab, 0);
    }

    /// Products of one part with rows of f32; the outputs of a row begin at `first` of every
    /// `stride`.
    fn multiply_row_by_row(
        &self,
        matrix: &GroupMatrix,
        part: usize,
        x: &[f32],
        out: &mut [f32],
        stride: usize,
        first: usize,
    ) {
        let (set, cols) = (self.set(), matrix.cols());
        let out = Disjoint::new(out);
        self.pool()
            .split(matrix.parts()[part], BLOCK_ROWS, &|share| {
                let mut weights = vec![0.0; cols];
                for row in share {
                    matrix.read_row(part, row, &mut weights);
                    for (t, x) in x.chunks_exact(cols).enumerate() {
                        let at = t * stride + first + row;
                        // SAFETY: each row of the matrix is in one thread's share.
                        set.matvec_f32(&weights, x, unsafe { out.slice(at..at + 1) });
                    }
                }
            });
    }

    fn multiply_groups(
        &self,
        matrix: &GroupMatrix,
        blocks: Range<usize>,
        activations: &GroupActivations,
        output: &Output<'_>,
    ) {
        assert_eq!(
            activations.cols(),
            matrix.cols(),
            "columns of activations and weights"
        );
        assert!(
            activations.run_cols() <= matrix.group_cols(),
            "activations in runs of {} for weights in groups of {}",
            activations.run_cols(),
            matrix.group_cols()
        );
        let kernels = self.set().groups;
        let (multiply, multiply_wide) = match matrix.codes() {
            GroupCodes::Signs => (kernels.signs, kernels.wide_signs),
            GroupCodes::Trits => (kernels.trits.unwrap_or(kernels.two_bits), None),
            GroupCodes::TwoBits => (kernels.two_bits, kernels.wide_two_bits),
        };
        let spreads_first = matrix.codes() == GroupCodes::Trits && kernels.trits.is_none();
        let weights = matrix.blocks();
        let mut rows = 0..activations.rows();
        if let Some(multiply) = multiply_wide {
            rows.start = wide_rows(rows.end, blocks.len());
            deal_wide(self.pool(), rows.start, blocks.len(), &|rows, share| {
                let share = blocks.start + share.start..blocks.start + share.end;
                // SAFETY: a set exists only on a CPU that can run it, and each block of outputs of
                // a row is in one item.
                unsafe { multiply(&weights, share, rows, activations, output) }
            });
        }
        if rows.is_empty() {
            return;
        }
        let run = |share: Range<usize>| {
            let share = blocks.start + share.start..blocks.start + share.end;
            if !spreads_first {
                // SAFETY: as above; each block of outputs is in one thread's share.
                return unsafe { multiply(&weights, share, rows.clone(), activations, output) };
            }
            let mut scratch = BlockScratch::take();
            for block in share {
                let weights = weights.spread(block, &mut scratch);
                // SAFETY: as above.
                unsafe {
                    multiply(
                        &weights,
                        block..block + 1,
                        rows.clone(),
                        activations,
                        output,
                    );
                }
            }
        };
        // With few rows, each thread reads one sequential stream of weights at memory speed.
        if rows.len() > TILE_ROWS {
            self.pool().deal(blocks.len(), 1, &run);
        } else {
            self.pool().split(blocks.len(), 1, &run);
        }
    }
}

impl RowScratch {
    /// Quantizes the row that `make` writes.
    fn quantize(
        &mut self,
        set: &KernelSet,
        cols: usize,
        run_cols: usize,
        make: &dyn Fn(&mut [f32]),
    ) {
        let (padded, runs) = (cols.next_multiple_of(32), cols.div_ceil(run_cols));
        self.values.resize(cols.max(self.values.len()), 0.0);
        self.int8.resize(padded.max(self.int8.len()), 0);
        self.scales.resize(runs.max(self.scales.len()), 0.0);
        self.sums.resize(runs.max(self.sums.len()), 0);
        let values = &mut self.values[..cols];
        make(values);
        self.int8[cols..padded].fill(0);
        set.quantize_runs(
            values,
            run_cols,
            &mut self.int8[..cols],
            &mut self.scales[..runs],
            &mut self.sums[..runs],
        );
        let offsets = self.sums[..runs].iter().map(|sum| Offset::of_sum(*sum));
        self.offsets.clear();
        self.offsets.extend(offsets);
    }
}

/// Interleaves the values of row `index`, `unit` at a time, with the other rows of a tile of
/// `rows`.
fn scatter<T: Copy>(row: &[T], unit: usize, rows: usize, index: usize, tile: &mut [T]) {
    for (from, to) in row
        .chunks_exact(unit)
        .zip(tile.chunks_exact_mut(unit * rows))
    {
        to[unit * index..unit * (index + 1)].copy_from_slice(from);
    }
}
