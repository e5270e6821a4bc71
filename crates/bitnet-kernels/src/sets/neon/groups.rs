//! Products of codes of 2 bits with group scales: by 16-bit sums with `smlal`, and with `sdot`
//! where the CPU has it.

use std::arch::aarch64::*;
use std::ops::Range;

use super::signs::signs;
use super::vector::{LINE_REGISTERS, broadcast, dot, fold, fold_group, load_registers, store_rows};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, CELL_LINES, SCALE_BYTES};
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::Line;
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::GroupBlocks;

pub(super) const KERNELS: GroupKernels = GroupKernels {
    signs,
    trits: None,
    two_bits,
    wide_signs: None,
    wide_two_bits: None,
};

pub(super) const KERNELS_DOTPROD: GroupKernels = GroupKernels {
    signs,
    trits: None,
    two_bits: two_bits_dotprod,
    wide_signs: None,
    wide_two_bits: None,
};

/// Defines a [`crate::sets::groups::GroupMultiply`] whose integer sums come from `$run_sums`.
macro_rules! two_bits {
    ($name:ident: $features:literal, $run_sums:path) => {
        #[target_feature(enable = $features)]
        fn $name(
            matrix: &GroupBlocks<'_>,
            blocks: Range<usize>,
            rows: Range<usize>,
            activations: &GroupActivations,
            output: &Output<'_>,
        ) {
            let layout = matrix.layout();
            let run_lines = activations.run_cols() / CELL_COLS * CELL_LINES;
            let Some(chunk) = layout.chunks().next() else {
                return;
            };
            for block in blocks {
                let bytes = matrix.chunk(block, &chunk);
                for row in rows.clone() {
                    let (tile, index) = (activations.tile(row / TILE_ROWS), row % TILE_ROWS);
                    let mut sums = [vdupq_n_f32(0.0); LINE_REGISTERS];
                    let (mut run, mut first_line) = (0, 0);
                    for bytes in bytes.chunks(layout.group_bytes()) {
                        let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
                        let mut of_runs = [vdupq_n_f32(0.0); LINE_REGISTERS];
                        for lines in codes.as_chunks().0.chunks(run_lines) {
                            let at = run * tile.rows + index;
                            let offset = vdupq_n_s32(tile.offsets[at].whole);
                            let scale = vdupq_n_f32(tile.scales[at]);
                            let products = $run_sums(lines, first_line, &tile, index);
                            for (of_runs, product) in of_runs.iter_mut().zip(products) {
                                let sum = vcvtq_f32_s32(vaddq_s32(product, offset));
                                *of_runs = fold(*of_runs, sum, scale);
                            }
                            run += 1;
                            first_line += lines.len();
                        }
                        fold_group(&mut sums, &of_runs, scales);
                    }
                    // SAFETY: each block of outputs is computed by one thread.
                    store_rows(&sums, unsafe { output.block(row, block) });
                }
            }
        }
    };
}

two_bits!(two_bits: "neon", run_sums);
two_bits!(two_bits_dotprod: "neon,dotprod", run_sums_dotprod);

/// The codes of the four fields of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn fields(codes: uint8x16_t) -> [uint8x16_t; 4] {
    let mask = vdupq_n_u8(3);
    [
        vandq_u8(codes, mask),
        vandq_u8(vshrq_n_u8::<2>(codes), mask),
        vandq_u8(vshrq_n_u8::<4>(codes), mask),
        vshrq_n_u8::<6>(codes),
    ]
}

/// `Σ code · q` of 32 rows over the lines of a run, with row `index` of a tile.
///
/// A 16-bit lane takes four products of at most 3 · 127 a line: 12,192 in the eight lines that a
/// run has at most.
#[inline]
#[target_feature(enable = "neon")]
fn run_sums(
    lines: &[Line],
    first_line: usize,
    tile: &GroupTile<'_>,
    index: usize,
) -> [int32x4_t; LINE_REGISTERS] {
    let mut acc = [[vdupq_n_s16(0); 2]; LINE_REGISTERS];
    for (line, first_dword) in lines.iter().zip((4 * first_line..).step_by(4)) {
        let q: [int8x16_t; 4] =
            std::array::from_fn(|s| broadcast(tile.values, (first_dword + s) * tile.rows + index));
        let registers = load_registers::<LINE_REGISTERS>(line, 0);
        for (acc, codes) in acc.iter_mut().zip(registers) {
            for (codes, q) in fields(codes).into_iter().zip(q) {
                let codes = vreinterpretq_s8_u8(codes);
                acc[0] = vmlal_s8(acc[0], vget_low_s8(codes), vget_low_s8(q));
                acc[1] = vmlal_high_s8(acc[1], codes, q);
            }
        }
    }
    acc.map(|[low, high]| vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
}

/// The same with `sdot`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn run_sums_dotprod(
    lines: &[Line],
    first_line: usize,
    tile: &GroupTile<'_>,
    index: usize,
) -> [int32x4_t; LINE_REGISTERS] {
    let mut acc = [vdupq_n_s32(0); LINE_REGISTERS];
    for (line, first_dword) in lines.iter().zip((4 * first_line..).step_by(4)) {
        let q: [int8x16_t; 4] =
            std::array::from_fn(|s| broadcast(tile.values, (first_dword + s) * tile.rows + index));
        let registers = load_registers::<LINE_REGISTERS>(line, 0);
        for (acc, codes) in acc.iter_mut().zip(registers) {
            for (codes, q) in fields(codes).into_iter().zip(q) {
                *acc = dot::<0>(*acc, codes, q);
            }
        }
    }
    acc
}
