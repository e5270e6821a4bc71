//! Products of codes of 2 bits with group scales, with `vpmaddubsw`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::signs::signs;
use super::vector::{broadcast, fold, load_quarter, load_scales, store8};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, CELL_LINES, SCALE_BYTES};
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::Line;
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::GroupMatrix;

pub(crate) const KERNELS: GroupKernels = GroupKernels { signs, two_bits };

/// Registers for the sums of a block: 8 of its 32 rows in each.
const QUARTERS: usize = 4;

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx2,f16c")]
fn two_bits(
    matrix: &GroupMatrix,
    blocks: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let Some(chunk) = matrix.layout().chunks().next() else {
        return;
    };
    for block in blocks {
        let bytes = matrix.chunk(block, &chunk);
        for tile in 0..activations.num_tiles() {
            let destination = Destination {
                output,
                first_row: tile * TILE_ROWS,
                block,
            };
            let tile = activations.tile(tile);
            match activations.run_cols() / CELL_COLS {
                1 => tile_products::<1>(matrix, bytes, &tile, &destination),
                2 => tile_products::<2>(matrix, bytes, &tile, &destination),
                _ => tile_products::<4>(matrix, bytes, &tile, &destination),
            }
        }
    }
}

/// Where to store the products of a tile with a block.
struct Destination<'a> {
    output: &'a Output<'a>,
    first_row: usize,
    block: usize,
}

/// Stores the products of a block with the rows of a tile. The runs of activations have `R` cells.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn tile_products<const R: usize>(
    matrix: &GroupMatrix,
    block: &[u8],
    tile: &GroupTile<'_>,
    destination: &Destination<'_>,
) {
    macro_rules! of_rows {
        ($($n:literal)*) => {
            match tile.rows {
                $($n => destination.store(&block_sums::<$n, R>(matrix, block, tile)),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8);
}

impl Destination<'_> {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn store<const N: usize>(&self, sums: &[[__m256; QUARTERS]; N]) {
        for (row, sums) in (self.first_row..).zip(sums) {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { self.output.block(row, self.block) };
            for (out, sum) in out.chunks_exact_mut(8).zip(sums) {
                store8(out, *sum);
            }
        }
    }
}

/// The outputs of 32 rows with the `N` rows of a tile, by the rule of `portable`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn block_sums<const N: usize, const R: usize>(
    matrix: &GroupMatrix,
    block: &[u8],
    tile: &GroupTile<'_>,
) -> [[__m256; QUARTERS]; N] {
    let mut sums = [[_mm256_setzero_ps(); QUARTERS]; N];
    let mut runs = RunsOfTile::<N, R>::new(tile);
    for bytes in block.chunks(matrix.layout().group_bytes()) {
        let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let lines: &[Line] = codes.as_chunks().0;
        let num_runs = lines.len().div_ceil(R * CELL_LINES);
        for quarter in 0..QUARTERS {
            let mut of_runs = [_mm256_setzero_ps(); N];
            for (run, lines) in lines.chunks(R * CELL_LINES).enumerate() {
                runs.add(run, lines, quarter, &mut of_runs);
            }
            let scales = load_scales(scales, quarter);
            for (sums, of_runs) in sums.iter_mut().zip(of_runs) {
                sums[quarter] = fold(sums[quarter], of_runs, scales);
            }
        }
        runs.skip(num_runs);
    }
    sums
}

/// The remaining runs, of `R` cells each, of a tile of `N` rows.
struct RunsOfTile<'a, const N: usize, const R: usize> {
    values: &'a [i8],
    scales: &'a [[f32; N]],
    sums: &'a [[i32; N]],
}

impl<'a, const N: usize, const R: usize> RunsOfTile<'a, N, R> {
    /// Bytes of the activations of a run.
    const RUN_VALUES: usize = R * CELL_COLS * N;

    fn new(tile: &GroupTile<'a>) -> Self {
        Self {
            values: tile.values,
            scales: tile.scales.as_chunks().0,
            sums: tile.sums.as_chunks().0,
        }
    }

    /// Skips the first `num_runs` runs.
    #[inline(always)]
    fn skip(&mut self, num_runs: usize) {
        let values = (num_runs * Self::RUN_VALUES).min(self.values.len());
        self.values = &self.values[values..];
        self.scales = &self.scales[num_runs..];
        self.sums = &self.sums[num_runs..];
    }

    /// Adds run `run`, whose codes are in `lines`, to the sums of 8 rows.
    ///
    /// A lane of 16 bits takes 2 products of at most 3 · 127 for each four columns: 64 of them,
    /// 24,384, in the 128 columns that a run has at most. `Σ code · q − Σ q` is exact, since a code
    /// is a weight + 1.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn add(&self, run: usize, lines: &[Line], quarter: usize, of_runs: &mut [__m256; N]) {
        let mask = _mm256_set1_epi8(3);
        let mut acc = [_mm256_setzero_si256(); N];
        let values = &self.values[run * Self::RUN_VALUES..];
        for (line, values) in lines.iter().zip(values.chunks_exact(16 * N)) {
            let codes = load_quarter(line, quarter);
            let fields = [
                _mm256_and_si256(codes, mask),
                _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
                _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
            ];
            for (s, field) in fields.into_iter().enumerate() {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let q = broadcast(values, s * N + i);
                    *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(field, q));
                }
            }
        }
        for (i, (of_runs, acc)) in of_runs.iter_mut().zip(acc).enumerate() {
            let sum = _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
            let sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(self.sums[run][i]));
            let scale = _mm256_set1_ps(self.scales[run][i]);
            *of_runs = fold(*of_runs, _mm256_cvtepi32_ps(sum), scale);
        }
    }
}
