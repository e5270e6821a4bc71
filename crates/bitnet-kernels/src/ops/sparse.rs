//! [`TernaryRows`] and [`TernaryColumns`]: ternary weights of which a step reads only the rows or
//! columns that matter.
//!
//! Where a gate is not positive, `relu(gate)² · up` is zero whatever that row of `up` gives; where
//! an int8 activation is zero, its column of `down` adds nothing. Both are left out, and the sums
//! are the same integers. A product of one row of activations reads a copy of the weights in which
//! each row, or each column, is a run of 64-byte lines:
//!
//! ```text
//! line b of a row:      byte 4 g + j (g 0..16, j 0..4), bits 2s..2s+1  =  weight + 1 of column 256 b + 16 g + 4 s + j
//!                       (the dwords that this row has in lines 16 b to 16 b + 15 of its block in a `TernaryMatrix`)
//! line b of a column:   byte 16 q + 4 t + i (q, t, i 0..4), bits 2s..2s+1  =  weight + 1 of row
//!                       256 b + 128 (t / 2) + 32 s + 16 (t % 2) + 4 q + i
//! ```
//!
//! The second is made so that interleaving the bytes of four columns and masking a field gives
//! sixteen rows in order.
//!
//! A hardware prefetcher that sees a run of lines fetches on past its end, into what was to be
//! skipped: naive skipping gains nothing until most is skipped. So the kernels take 64 runs at a
//! time and read line 0 of each, then line 1 of each, and so on, and ask for the same line of the
//! next 64 meanwhile. Then the time falls with the number of active runs.

use crate::layout::activations::Activations;
use crate::layout::packing::{GROUP_LINES, LINE_BYTES, LINE_COLS, Line, Scratch};
use crate::ops::cpu::Cpu;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;
use crate::threads::memory::Huge;
use crate::threads::pool::Pool;
use crate::weights::matrix::{BLOCK_ROWS, TernaryMatrix};

/// Bytes in a line.
pub(crate) const RUN_LINE_BYTES: usize = 64;
/// Weights in a line.
pub(crate) const RUN_LINE_WEIGHTS: usize = 4 * RUN_LINE_BYTES;
/// Runs that a kernel takes at a time.
pub(crate) const RUNS_AT_ONCE: usize = 64;
/// Threads share the active runs out in multiples of so many.
const SHARE_UNIT: usize = 4;
/// Lines of a block of rows that one line of each of its rows is made of.
const LINES_OF_RUN_LINE: usize = RUN_LINE_WEIGHTS / LINE_COLS;
/// Blocks of rows that one line of a column is made of.
const BLOCKS_OF_RUN_LINE: usize = RUN_LINE_WEIGHTS / BLOCK_ROWS;

/// Rows or columns, each a run of lines.
pub(crate) struct Runs {
    bytes: Huge<u8>,
    /// Lines in a run.
    run_lines: usize,
}

impl Runs {
    fn new(num_runs: usize, run_len: usize) -> Self {
        let run_lines = run_len.div_ceil(RUN_LINE_WEIGHTS);
        Self {
            bytes: Huge::zeros(num_runs * run_lines * RUN_LINE_BYTES),
            run_lines,
        }
    }

    /// All lines, those of run `i` from `i · run_lines` on.
    #[inline(always)]
    pub(crate) fn lines(&self) -> &[[u8; RUN_LINE_BYTES]] {
        self.bytes.as_chunks().0
    }

    /// Lines in a run.
    #[inline(always)]
    pub(crate) fn run_lines(&self) -> usize {
        self.run_lines
    }

    fn run_bytes(&self) -> usize {
        self.run_lines * RUN_LINE_BYTES
    }

    fn num_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// One matrix row by row, for products of which few rows are wanted.
pub struct TernaryRows {
    pub(crate) runs: Runs,
    rows: usize,
    cols: usize,
    scale: f32,
}

/// One matrix column by column, for activations of which few are not zero.
pub struct TernaryColumns {
    pub(crate) runs: Runs,
    rows: usize,
    cols: usize,
    scale: f32,
}

/// The row of a matrix, less `256 b`, that a field of a byte of line `b` of a column holds.
pub(crate) fn row_in_column_line(byte: usize, field: usize) -> usize {
    let (q, t, i) = (byte / 16, byte / 4 % 4, byte % 4);
    128 * (t / 2) + 32 * field + 16 * (t % 2) + 4 * q + i
}

impl TernaryRows {
    /// Copies one part of a stack, on all threads of `pool`.
    #[must_use]
    pub fn new(pool: &Pool, matrix: &TernaryMatrix, part: usize) -> Self {
        let (rows, scale) = (matrix.parts()[part].rows, matrix.parts()[part].scale);
        let first_block = matrix.part_blocks(part).start;
        let mut runs = Runs::new(rows, matrix.cols());
        let run_bytes = runs.run_bytes();
        let out = Disjoint::new(&mut runs.bytes);
        pool.split(rows, BLOCK_ROWS, &|share| {
            let mut scratch = Scratch::take();
            // SAFETY: each row is in one thread's share.
            let out = unsafe { out.slice(share.start * run_bytes..share.end * run_bytes) };
            for (block, out) in (first_block + share.start / BLOCK_ROWS..)
                .zip(out.chunks_mut(BLOCK_ROWS * run_bytes))
            {
                let lines = scratch
                    .unpack(matrix, block)
                    .unwrap_or_else(|| matrix.lines(block));
                copy_rows(lines, out, run_bytes);
            }
        });
        Self {
            runs,
            rows,
            cols: matrix.cols(),
            scale,
        }
    }

    /// Bytes of the weights, padding included.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.runs.num_bytes()
    }
}

/// The rows of a block, each a run: a row's dwords, one of each line, side by side.
fn copy_rows(lines: &[Line], out: &mut [u8], run_bytes: usize) {
    for (index, lines) in lines.chunks(LINES_OF_RUN_LINE).enumerate() {
        for (row, run) in out.chunks_exact_mut(run_bytes).enumerate() {
            let run_line = &mut run[index * RUN_LINE_BYTES..(index + 1) * RUN_LINE_BYTES];
            for (dword, line) in run_line.as_chunks_mut::<4>().0.iter_mut().zip(lines) {
                dword.copy_from_slice(&line[4 * row..4 * row + 4]);
            }
        }
    }
}

impl TernaryColumns {
    /// Copies a matrix, on all threads of `pool`.
    ///
    /// # Panics
    /// If it is a stack of several.
    #[must_use]
    pub fn new(pool: &Pool, matrix: &TernaryMatrix) -> Self {
        assert!(
            matrix.parts().len() == 1,
            "columns of a stack of {} matrices",
            matrix.parts().len()
        );
        let (rows, scale, cols) = (
            matrix.parts()[0].rows,
            matrix.parts()[0].scale,
            matrix.cols(),
        );
        let unpacked = matrix.unpacked(pool);
        let matrix = unpacked.as_ref().unwrap_or(matrix);
        let num_lines = cols.div_ceil(LINE_COLS);
        let mut runs = Runs::new(num_lines * LINE_COLS, rows);
        let (run_lines, group_bytes) = (runs.run_lines, LINE_COLS * runs.run_bytes());
        let out = Disjoint::new(&mut runs.bytes);
        pool.split(num_lines.div_ceil(GROUP_LINES), 1, &|share| {
            let mut unpacked = [[[0; LINE_BYTES]; GROUP_LINES]; BLOCKS_OF_RUN_LINE];
            for group in share {
                for index in 0..run_lines {
                    let blocks = BLOCKS_OF_RUN_LINE * index..matrix.num_blocks();
                    let num_blocks = blocks.len().min(BLOCKS_OF_RUN_LINE);
                    let lens = blocks
                        .zip(&mut unpacked)
                        .map(|(block, to)| matrix.unpack_group(block, group, to));
                    let len = lens.fold(0, usize::max);
                    for line in group * GROUP_LINES..group * GROUP_LINES + len {
                        let of_block = |block: usize| &unpacked[block][line % GROUP_LINES];
                        let lines = std::array::from_fn(|block| {
                            (block < num_blocks).then(|| of_block(block))
                        });
                        // SAFETY: each group of lines is in one thread's share, and its columns are
                        // those of no other.
                        let out =
                            unsafe { out.slice(line * group_bytes..(line + 1) * group_bytes) };
                        copy_columns(&lines, out.as_chunks_mut().0, run_lines, index);
                    }
                }
            }
        });
        Self {
            runs,
            rows,
            cols,
            scale,
        }
    }

    /// Bytes of the weights, padding included.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.runs.num_bytes()
    }
}

/// Line `index` of the runs of 16 columns: lines of the same columns in eight blocks of rows (those
/// past the end are missing), `out` all lines of the 16 runs.
fn copy_columns(
    lines: &[Option<&Line>; BLOCKS_OF_RUN_LINE],
    out: &mut [[u8; RUN_LINE_BYTES]],
    run_lines: usize,
    index: usize,
) {
    for (half, lines) in lines.as_chunks::<4>().0.iter().enumerate() {
        // Byte j of `packed[field][r]`: field s is the weight of column 4 field + j in row r of
        // block s.
        let mut packed = [[0u32; BLOCK_ROWS]; 4];
        for (s, line) in lines.iter().enumerate() {
            for (r, dword) in line
                .map(|line| &line[..])
                .unwrap_or_default()
                .as_chunks::<4>()
                .0
                .iter()
                .enumerate()
            {
                let dword = u32::from_le_bytes(*dword);
                for (field, packed) in packed.iter_mut().enumerate() {
                    packed[r] |= (dword >> (2 * field) & 0x0303_0303) << (2 * s);
                }
            }
        }
        for (field, packed) in packed.iter().enumerate() {
            for (four, packed) in packed.as_chunks::<4>().0.iter().enumerate() {
                let rows = packed.map(u32::to_le_bytes);
                let byte = 16 * (four % 4) + 4 * (2 * half + four / 4);
                for j in 0..4 {
                    let line = &mut out[(4 * field + j) * run_lines + index];
                    line[byte..byte + 4]
                        .copy_from_slice(&[rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
                }
            }
        }
    }
}

/// Activations in the order in which the fields of a row's lines meet them, `[run_lines, 4, 64]`.
type Arranged = [[i8; RUN_LINE_WEIGHTS]];

/// What an instruction set does for products of few rows or columns.
#[derive(Clone, Copy)]
pub(crate) struct SparseKernels {
    /// Lists the positions of numbers above zero in places that are [`LIST_SLACK`] more; returns
    /// how many there are.
    pub positive: unsafe fn(&[f32], &mut [u32]) -> usize,
    /// The same of int8 values that are not zero.
    pub nonzero: unsafe fn(&[i8], &mut [u32]) -> usize,
    /// `Σ code · q` of each active row.
    pub active_rows: unsafe fn(&TernaryRows, &[u32], &Arranged, &mut [i32]),
    /// `Σ code · q` of all rows over the active columns, `[run_lines, 256]`; the activations in
    /// natural order.
    pub active_columns: unsafe fn(&TernaryColumns, &[u32], &[i8], &mut [i32]),
}

/// Where the runs of a chunk begin, in lines; places that no run has begin where the first does.
#[inline(always)]
pub(crate) fn starts(runs: &[u32], run_lines: usize) -> [usize; RUNS_AT_ONCE] {
    let start = |run: u32| run as usize * run_lines;
    let mut starts = [runs.first().map_or(0, |first| start(*first)); RUNS_AT_ONCE];
    starts
        .iter_mut()
        .zip(runs)
        .for_each(|(to, run)| *to = start(*run));
    starts
}

/// Writes a step of a loop once for each value, so that each load is an instruction of its own.
///
/// Prefetchers learn each instruction's strides: in those of a single load over all runs they make
/// out a pattern, and fetch what is skipped. At 50 % sparsity that would cost half the gain; with
/// eight loads it does not happen.
macro_rules! unrolled {
    ($name:ident in $($value:literal)* => $step:block) => {
        $({
            const $name: usize = $value;
            $step
        })*
    };
}
pub(crate) use unrolled;

/// What products of few rows or columns need beside their result. Grows to the largest it meets.
#[derive(Default)]
pub struct SparseScratch {
    /// The active rows or columns, ascending.
    active: Vec<u32>,
    /// Activations in the order of the fields of a row's lines.
    values: Vec<[i8; RUN_LINE_WEIGHTS]>,
    /// Integer sums: of each active row, or for each thread of all rows.
    sums: Vec<i32>,
}

impl Cpu {
    /// `out[r] = W[r] · activations` for the rows `r` whose gate is positive, 0 for all others, if
    /// they are at most `active_max` and no product could overflow; else returns false and does
    /// nothing.
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
        arrange(tile.values, matrix.runs.run_lines, values);
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

    /// `out = W · activations`, reading only the columns whose activation is not zero, if they are
    /// at most `active_max`; else returns false and does nothing.
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
        // Each thread adds up columns of its own; integer sums do not depend on who adds what.
        let num_sums = matrix.runs.run_lines * RUN_LINE_WEIGHTS;
        let num_threads = self.pool().num_threads();
        sums.resize(num_threads * num_sums, 0);
        let all_sums = Disjoint::new(sums);
        self.pool().run(&|thread| {
            // SAFETY: a part for each thread.
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

/// Positions that a set may write past the last one it counts.
pub(crate) const LIST_SLACK: usize = 8;

/// Fills a list with the positions, of `len`, that `write` finds.
fn list(list: &mut Vec<u32>, len: usize, write: impl Fn(&mut [u32]) -> usize) {
    list.resize(list.len().max(len + LIST_SLACK), 0);
    let found = write(list);
    list.truncate(found);
}

/// Lists the positions of what is active in places of at least [`LIST_SLACK`] more, and returns how
/// many there are.
#[inline(always)]
pub(crate) fn positions<T>(
    values: &[T],
    is_active: impl Fn(&T) -> bool,
    places: &mut [u32],
) -> usize {
    // No branches, which would be mispredicted half the time: every position is written, and kept
    // if the next is not written over it.
    let mut len = 0;
    for (index, value) in values.iter().enumerate() {
        places[len] = index as u32;
        len += usize::from(is_active(value));
    }
    len
}

/// The activations that the fields of each line of a row meet: 64 for field 0, 64 for field 1, …;
/// zeros past the end.
fn arrange(activations: &[i8], run_lines: usize, values: &mut Vec<[i8; RUN_LINE_WEIGHTS]>) {
    values.clear();
    values.resize(run_lines, [0; RUN_LINE_WEIGHTS]);
    for (line, values) in activations.chunks(RUN_LINE_WEIGHTS).zip(values) {
        for (g, activations) in line.as_chunks::<LINE_COLS>().0.iter().enumerate() {
            for (s, four) in activations.as_chunks::<4>().0.iter().enumerate() {
                values[RUN_LINE_BYTES * s + 4 * g..][..4].copy_from_slice(four);
            }
        }
    }
}
