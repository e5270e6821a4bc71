//! Products of few rows or few columns: weights that are multiplied by zero are skipped, and the
//! integer sums stay the same.
//!
//! Where a gate is not positive, `relu(gate)² · up` is zero for any result of that row of `up`;
//! where an int8 activation is zero, its column of `down` adds nothing. A product of one row of
//! activations reads a copy of the weights in which each row ([`TernaryRows`]) or each column
//! ([`TernaryColumns`]) is contiguous.

use crate::layout::activations::Activations;
use crate::layout::runs::{LIST_SLACK, RUN_LINE_WEIGHTS, arrange};
use crate::ops::cpu::Cpu;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::threads::pool::Pool;
use crate::weights::columns::TernaryColumns;
use crate::weights::rows::TernaryRows;
use crate::weights::runs::Runs;

/// Each thread's share of the active runs is a multiple of this number.
const SHARE_UNIT: usize = 4;
/// Buffers for products of few rows or columns. Grow to the largest product so far.
#[derive(Default)]
pub struct SparseScratch {
    /// The active rows or columns, ascending.
    active: Vec<u32>,
    /// Activations in the order of the fields of a row's lines.
    values: Vec<[i8; RUN_LINE_WEIGHTS]>,
    /// Integer sums: one for each active row, or for each thread one for each row.
    sums: Vec<i32>,
}

impl Cpu {
    /// `out[r] = W[r] · activations` for the rows `r` whose gate is positive, and 0 for all others.
    /// If more than `active_max` gates are positive, or a product could overflow, returns false and
    /// does nothing.
    ///
    /// gates: `[rows]`, activations: one row, out: at least `[rows]`. With `relu(gate)² · out`
    /// next, the zeros change nothing, since all products are finite.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn gated_rows_matvec(
        &self,
        matrix: &TernaryRows,
        gates: &[f32],
        active_max: usize,
        activations: &Activations,
        scratch: &mut SparseScratch,
        out: &mut [f32],
    ) -> bool {
        let TernaryRows {
            rows, cols, scale, ..
        } = *matrix;
        assert!(
            activations.rows() == 1 && activations.cols() == cols,
            "activations of {cols} columns, one row"
        );
        assert!(
            gates.len() == rows && out.len() >= rows,
            "{} gates and {} outputs of {rows} rows",
            gates.len(),
            out.len()
        );
        let tile = activations.tile(0);
        let (activation_sum, activation_scale) = (tile.sums[0], tile.scales[0]);
        let largest = (127 * cols) as f32 / activation_scale * scale;
        let SparseScratch {
            active,
            values,
            sums,
        } = scratch;
        let kernels = &self.set().sparse;
        // SAFETY: a set exists only on a CPU that can run it.
        list(active, rows, |places| unsafe {
            (kernels.positive)(gates, places)
        });
        if active.len() > active_max || !largest.is_finite() {
            return false;
        }
        self.count_runs(&matrix.runs, active.len(), rows, cols);
        arrange(tile.values, matrix.runs.run_lines(), values);
        sums.resize(active.len(), 0);
        out.fill(0.0);
        let (sums, out) = (Disjoint::new(sums), Disjoint::new(out));
        self.pool().split(active.len(), SHARE_UNIT, &|share| {
            // SAFETY: each active row is in one thread's share.
            let sums = unsafe { sums.slice(share.clone()) };
            let active = &active[share];
            // SAFETY: a set exists only on a CPU that can run it.
            unsafe { (kernels.active_rows)(matrix, active, values, sums) }
            for (row, sum) in active.iter().zip(sums) {
                let row = *row as usize;
                // SAFETY: the active rows differ, and each is in one thread's share.
                let out = unsafe { out.slice(row..row + 1) };
                out[0] = (*sum - activation_sum) as f32 / activation_scale * scale;
            }
        });
        true
    }

    /// `out = W · activations`, reading only the columns whose activation is not zero. If these are
    /// more than `active_max`, returns false and does nothing.
    ///
    /// activations: one row, out: at least `[rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn active_columns_matvec(
        &self,
        matrix: &TernaryColumns,
        active_max: usize,
        activations: &Activations,
        scratch: &mut SparseScratch,
        out: &mut [f32],
    ) -> bool {
        let TernaryColumns {
            rows, cols, scale, ..
        } = *matrix;
        assert!(
            activations.rows() == 1 && activations.cols() == cols,
            "activations of {cols} columns, one row"
        );
        assert!(out.len() >= rows, "{} outputs of {rows} rows", out.len());
        let tile = activations.tile(0);
        let (activation_sum, activation_scale) = (tile.sums[0], tile.scales[0]);
        let SparseScratch { active, sums, .. } = scratch;
        let kernels = &self.set().sparse;
        // SAFETY: a set exists only on a CPU that can run it.
        list(active, cols, |places| unsafe {
            (kernels.nonzero)(&tile.values[..cols], places)
        });
        if active.len() > active_max {
            return false;
        }
        self.count_runs(&matrix.runs, active.len(), cols, rows);
        // Each thread adds up its own columns; integer sums do not depend on the division of work.
        let num_sums = matrix.runs.run_lines() * RUN_LINE_WEIGHTS;
        let num_threads = self.pool().num_threads();
        sums.resize(num_threads * num_sums, 0);
        let all_sums = Disjoint::new(sums);
        self.pool().run(&|thread| {
            // SAFETY: each thread has its own part.
            let sums = unsafe { all_sums.slice(thread * num_sums..(thread + 1) * num_sums) };
            let share = Pool::share(active.len(), SHARE_UNIT, thread, num_threads);
            // SAFETY: a set exists only on a CPU that can run it.
            unsafe { (kernels.active_columns)(matrix, &active[share], tile.values, sums) }
        });
        let (first, others) = sums.split_at_mut(num_sums);
        for others in others.chunks_exact(num_sums) {
            first
                .iter_mut()
                .zip(others)
                .for_each(|(sum, other)| *sum += other);
        }
        for (out, sum) in out[..rows].iter_mut().zip(first) {
            *out = (*sum - activation_sum) as f32 / activation_scale * scale;
        }
        true
    }

    fn count_runs(&self, runs: &Runs, active: usize, num_runs: usize, run_len: usize) {
        self.counters()
            .add(Kernel::I2sGemv, active * run_len, active * runs.run_bytes());
        self.counters()
            .skip(Kernel::I2sGemv, (num_runs - active) * run_len);
    }
}

/// Fills a list with the positions below `len` that `write` finds.
fn list(list: &mut Vec<u32>, len: usize, write: impl Fn(&mut [u32]) -> usize) {
    list.resize(list.len().max(len + LIST_SLACK), 0);
    let found = write(list);
    list.truncate(found);
}
