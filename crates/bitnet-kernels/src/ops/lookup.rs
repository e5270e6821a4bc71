//! Products by table lookup: builds the tables of one chunk of columns, multiplies all blocks with
//! them, then goes to the next chunk.

use std::cell::RefCell;
use std::ops::Range;

use crate::layout::activations::Activations;
use crate::layout::lines::BLOCK_ROWS;
use crate::layout::lookup::{Cut, FIELDS, LookupChunk};
use crate::sets::lookup::{Lookup, LookupTable};
use crate::sets::output::Output;
use crate::weights::matrix::TernaryMatrix;

/// A thread's buffers for a product: a part of a row of activations, tables, sums. Kept, so that a
/// decode step allocates nothing.
#[derive(Default)]
struct LookupScratch {
    values: Vec<i16>,
    tables: Vec<LookupTable>,
    sums: Vec<[i32; BLOCK_ROWS]>,
}

thread_local! {
    static SCRATCH: RefCell<LookupScratch> = RefCell::default();
}

/// Rows of activations whose tables stay in a core's second-level cache: at most 8 KiB each, 256
/// KiB.
const ROWS_AT_ONCE: usize = 32;

/// `y = Σ w · q / s · scale` for the given blocks of rows and all activation rows.
///
/// Every thread builds all tables itself: waiting for another thread and fetching its tables would
/// take longer.
///
/// # Safety
/// The CPU must have the instructions of `lookup`, and no other thread may hold the same blocks of
/// outputs.
pub(crate) unsafe fn multiply(
    lookup: &Lookup,
    matrix: &TernaryMatrix,
    cut: Cut,
    blocks: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    SCRATCH.with_borrow_mut(
        |LookupScratch {
             values,
             tables,
             sums,
         }| {
            for first in (0..activations.rows()).step_by(ROWS_AT_ONCE) {
                let rows = first..activations.rows().min(first + ROWS_AT_ONCE);
                sums.clear();
                sums.resize(rows.len() * blocks.len(), [0; BLOCK_ROWS]);
                for chunk in cut.chunks() {
                    let LookupChunk { cut, first_col, .. } = chunk;
                    let row_tables = FIELDS * (lookup.triple_tables * cut.units + cut.lines);
                    values.resize(cut.cols(), 0);
                    tables.resize(rows.len() * row_tables, LookupTable([0; 32]));
                    for (row, tables) in rows.clone().zip(tables.chunks_exact_mut(row_tables)) {
                        activations.copy_row(row, first_col, values);
                        // SAFETY: the caller guarantees the preconditions of this function.
                        unsafe { (lookup.make_tables)(values, cut, tables) };
                    }
                    for (block, sums) in blocks.clone().zip(sums.chunks_exact_mut(rows.len())) {
                        let packed = matrix.chunk(block, &chunk);
                        for (tables, sums) in tables.chunks_exact(row_tables).zip(sums) {
                            // SAFETY: the caller guarantees the preconditions of this function.
                            unsafe { (lookup.add)(packed, cut, tables, sums) };
                        }
                    }
                }
                for (block, sums) in blocks.clone().zip(sums.chunks_exact(rows.len())) {
                    for (row, sums) in rows.clone().zip(sums) {
                        // SAFETY: the caller guarantees that no other thread has this block.
                        let out = unsafe { output.block(row, block) };
                        // SAFETY: the caller guarantees the preconditions of this function.
                        unsafe {
                            (lookup.finish)(sums, activations.scale(row), matrix.scale(block), out)
                        };
                    }
                }
            }
        },
    );
}
