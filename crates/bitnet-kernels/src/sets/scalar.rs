//! The reference: every kernel in plain Rust, one element after the other. All other sets must give
//! its bits.

pub(crate) mod groups;
pub(crate) mod sparse;
mod tl;

use std::ops::Range;

use crate::layout::activations::{Activations, Tile};
use crate::layout::cache::{CACHE_BLOCK, SEGMENT_KEYS};
use crate::layout::lines::{BLOCK_ROWS, LINE_COLS, Line};
use crate::layout::packing::Packing;
use crate::layout::screen::{ScreenSums, ScreenTile};
use crate::sets::output::Output;
use crate::sets::portable;
use crate::sets::segment::{CacheElement, Partial, Segment, SegmentScratch};
use crate::sets::table::kernel_set;
use crate::weights::matrix::{LineScratch, TernaryMatrix};

kernel_set!(
    SCALAR = "scalar",
    own {
        ternary: ternary,
        ternary_tile: None,
        ternary_wide: None,
        lookup: tl::LOOKUP,
        screen_block: screen_block,
        sparse: sparse::KERNELS,
        groups: groups::KERNELS,
        packing: Packing::Two,
        matvec_f16: matvec_f16,
        round_f16: round_f16,
        attend_f16: attend::<half::f16>,
        attend_f32: attend::<f32>,
        peak_i8: None,
        peak_f32: None,
    }
);

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and all activation rows.
fn ternary(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tiles: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    let mut scratch = LineScratch::take();
    for block in blocks {
        let scale = matrix.scale(block);
        let lines = scratch
            .unpack(matrix, block)
            .unwrap_or_else(|| matrix.lines(block));
        for tile_index in tiles.clone() {
            let tile = activations.tile(tile_index);
            for (index, row) in activations.tile_rows(tile_index).enumerate() {
                let sums = block_sums(lines, &tile, index);
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(row, block) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = (sum - tile.sums[index]) as f32 / tile.scales[index] * scale;
                }
            }
        }
    }
}

/// `Σ code · q` of each row of a block with one row of a tile.
fn block_sums(lines: &[Line], tile: &Tile<'_>, index: usize) -> [i32; BLOCK_ROWS] {
    let rows = tile.scales.len();
    let mut sums = [0; BLOCK_ROWS];
    for (line, cols) in lines.iter().zip(tile.values.chunks_exact(LINE_COLS * rows)) {
        for s in 0..4 {
            let q = &cols[(s * rows + index) * 4..][..4];
            for (sum, codes) in sums.iter_mut().zip(line.chunks_exact(4)) {
                for j in 0..4 {
                    *sum += i32::from(codes[j] >> (2 * s) & 3) * i32::from(q[j]);
                }
            }
        }
    }
    sums
}

/// `Σ integer · q` of each row of a block with each plane of a tile.
fn screen_block(lines: &[u8], _ahead: &[u8], tile: &ScreenTile<'_>, sums: &mut ScreenSums) {
    let tile = tile.planes;
    let planes = tile.scales.len();
    for (plane, sums) in sums[..planes].iter_mut().enumerate() {
        sums.fill(0);
        for (line, q) in lines
            .chunks_exact(4 * BLOCK_ROWS)
            .zip(tile.values.chunks_exact(4 * planes))
        {
            for (sum, bytes) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
                for (byte, q) in bytes.iter().zip(&q[4 * plane..4 * plane + 4]) {
                    *sum += (i32::from(*byte) - 128) * i32::from(*q);
                }
            }
        }
    }
}

fn matvec_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    let mut row_f32 = vec![0.0; x.len()];
    for (row, out) in rows.chunks_exact(2 * x.len()).zip(out) {
        for (value, bytes) in row_f32.iter_mut().zip(row.as_chunks::<2>().0) {
            *value = half::f16::from_le_bytes(*bytes).to_f32();
        }
        *out = portable::dot(&row_f32, x);
    }
}

/// Computes scores (one sum for each key, in ascending dimension), then softmax, then the sum of
/// values in ascending key.
fn attend<T: CacheElement>(
    segment: &Segment<'_, T>,
    _: &mut SegmentScratch,
    partial: &mut Partial<'_>,
) {
    let Segment {
        head_dim,
        value_dim,
        ..
    } = *segment;
    let queries = segment.queries.chunks_exact(head_dim).zip(segment.num_keys);
    for (index, ((query, &num_keys), acc)) in queries
        .zip(partial.acc.chunks_exact_mut(value_dim))
        .enumerate()
    {
        let mut scores = [0.0; SEGMENT_KEYS];
        for (key, score) in scores[..num_keys].iter_mut().enumerate() {
            let block = segment.keys[key / CACHE_BLOCK];
            for (d, q) in query.iter().enumerate() {
                *score += q * block[d * CACHE_BLOCK + key % CACHE_BLOCK].to_f32();
            }
        }
        (partial.max[index], partial.sum[index]) =
            portable::softmax_segment(&mut scores[..num_keys], segment.scale);
        acc.fill(0.0);
        for (key, weight) in scores[..num_keys].iter().enumerate() {
            let values =
                &segment.values[key / CACHE_BLOCK][key % CACHE_BLOCK * value_dim..][..value_dim];
            for (acc, value) in acc.iter_mut().zip(values) {
                *acc += weight * value.to_f32();
            }
        }
    }
}

fn round_f16(from: &[f32], to: &mut [half::f16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = half::f16::from_f32(*from);
    }
}
