//! Products with group scales, one sum after the other.

use std::ops::Range;

use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{SCALE_BYTES, scale_of};
use crate::layout::group_activations::GroupActivations;
use crate::layout::lines::BLOCK_ROWS;
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::sets::portable::{fold_group, fold_run};
use crate::weights::groups::GroupBlocks;

pub(crate) const KERNELS: GroupKernels = GroupKernels {
    signs: multiply,
    trits: None,
    two_bits: multiply,
    wide_signs: None,
    wide_two_bits: None,
};

fn multiply(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let layout = matrix.layout();
    for (block, row) in blocks.flat_map(|block| rows.clone().map(move |row| (block, row))) {
        let mut sums = [0.0; BLOCK_ROWS];
        for chunk in layout.chunks() {
            let groups = matrix.chunk(block, &chunk).chunks(layout.group_bytes());
            for (group, bytes) in (chunk.first_group..).zip(groups) {
                add_group(matrix, group, bytes, activations, row, &mut sums);
            }
        }
        // SAFETY: each block of outputs is computed by one thread.
        unsafe { output.block(row, block) }.copy_from_slice(&sums);
    }
}

/// Adds a group of columns to the sums of 32 rows with one row of activations.
fn add_group(
    matrix: &GroupBlocks<'_>,
    group: usize,
    bytes: &[u8],
    activations: &GroupActivations,
    row: usize,
    sums: &mut [f32; BLOCK_ROWS],
) {
    let (layout, run_cols) = (matrix.layout(), activations.run_cols());
    let first_col = group * layout.group_cols;
    let cols = first_col..layout.cols.min(first_col + layout.group_cols);
    let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
    let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
    for (lane, sum) in sums.iter_mut().enumerate() {
        let mut of_runs = 0.0;
        for run_start in cols.clone().step_by(run_cols) {
            let product = |col: usize| {
                let weight = layout
                    .codes
                    .weight(layout.code(codes, lane, col - first_col));
                let q = tile.values[(col / 4 * tile.rows + index) * 4 + col % 4];
                i32::from(weight) * i32::from(q)
            };
            let of_run = (run_start..cols.end.min(run_start + run_cols))
                .map(product)
                .sum();
            let scale = tile.scales[run_start / run_cols * tile.rows + index];
            of_runs = fold_run(of_runs, of_run, scale);
        }
        *sum = fold_group(*sum, of_runs, scale_of(scales, lane));
    }
}
