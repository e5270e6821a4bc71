//! Products with group scales: codes of 2 bits with `vpdpbusd`; signs are looked up as with AVX2,
//! where the same ports take 256 bits as often as twice as many.

use std::arch::x86_64::*;
use std::ops::Range;

use super::vector::{broadcast, load_half, store16};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, CELL_LINES, SCALE_BYTES};
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::Line;
use crate::sets::avx2;
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::GroupMatrix;

pub(crate) const KERNELS: GroupKernels = GroupKernels {
    signs: avx2::groups::signs,
    two_bits,
};

/// The sums of 32 rows: rows 0–15 and 16–31.
type HalfSums = [__m512; 2];

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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
            let place = Place {
                output,
                first_row: tile * TILE_ROWS,
                block,
            };
            let tile = activations.tile(tile);
            match activations.run_cols() / CELL_COLS {
                1 => tile_products::<1>(matrix, bytes, &tile, &place),
                2 => tile_products::<2>(matrix, bytes, &tile, &place),
                _ => tile_products::<4>(matrix, bytes, &tile, &place),
            }
        }
    }
}

/// Where the products of a tile with a block go.
struct Place<'a> {
    output: &'a Output<'a>,
    first_row: usize,
    block: usize,
}

/// Stores the products of a block with the rows of a tile, whose runs are of `R` cells.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile_products<const R: usize>(
    matrix: &GroupMatrix,
    block: &[u8],
    tile: &GroupTile<'_>,
    place: &Place<'_>,
) {
    macro_rules! of_rows {
        ($($n:literal)*) => {
            match tile.rows {
                $($n => place.store(&block_sums::<$n, R>(matrix, block, tile)),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8);
}

impl Place<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn store<const N: usize>(&self, sums: &[HalfSums; N]) {
        for (row, sums) in (self.first_row..).zip(sums) {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { self.output.block(row, self.block) };
            for (out, sum) in out.chunks_exact_mut(16).zip(sums) {
                store16(out, *sum);
            }
        }
    }
}

/// The outputs of 32 rows with the `N` rows of a tile, by the rule of `portable`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn block_sums<const N: usize, const R: usize>(
    matrix: &GroupMatrix,
    block: &[u8],
    tile: &GroupTile<'_>,
) -> [HalfSums; N] {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    let mut runs = RunsOfTile::<N, R>::new(tile);
    for bytes in block.chunks(matrix.layout().group_bytes()) {
        let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let lines: &[Line] = codes.as_chunks().0;
        let num_runs = lines.len().div_ceil(R * CELL_LINES);
        for half in 0..2 {
            let mut of_runs = [_mm512_setzero_ps(); N];
            for (run, lines) in lines.chunks(R * CELL_LINES).enumerate() {
                runs.add(run, lines, half, &mut of_runs);
            }
            let scales = load_scales(scales, half);
            for (sums, of_runs) in sums.iter_mut().zip(of_runs) {
                sums[half] = fold(sums[half], of_runs, scales);
            }
        }
        runs.skip(num_runs);
    }
    sums
}

/// What is left of a tile of `N` rows in runs of `R` cells.
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

    /// Leaves out the first `num_runs` runs.
    #[inline(always)]
    fn skip(&mut self, num_runs: usize) {
        let values = (num_runs * Self::RUN_VALUES).min(self.values.len());
        self.values = &self.values[values..];
        self.scales = &self.scales[num_runs..];
        self.sums = &self.sums[num_runs..];
    }

    /// Adds run `run`, whose codes are in `lines`, to the sums of 16 rows: `Σ code · q − Σ q` is
    /// exact, since a code is a weight + 1.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add(&self, run: usize, lines: &[Line], half: usize, of_runs: &mut [__m512; N]) {
        let mask = _mm512_set1_epi8(3);
        let mut acc = self.sums[run].map(|sum| _mm512_set1_epi32(-sum));
        let values = &self.values[run * Self::RUN_VALUES..];
        for (line, values) in lines.iter().zip(values.chunks_exact(16 * N)) {
            let codes = load_half(line, half);
            let fields = [
                _mm512_and_si512(codes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask),
            ];
            for (s, field) in fields.into_iter().enumerate() {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_dpbusd_epi32(*acc, field, broadcast(values, s * N + i));
                }
            }
        }
        for ((of_runs, acc), scale) in of_runs.iter_mut().zip(acc).zip(self.scales[run]) {
            *of_runs = fold(*of_runs, _mm512_cvtepi32_ps(acc), _mm512_set1_ps(scale));
        }
    }
}

/// `acc + sum · scale`, as `portable::fold_run` and `portable::fold_group` say.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn fold(acc: __m512, sum: __m512, scale: __m512) -> __m512 {
    _mm512_add_ps(acc, _mm512_mul_ps(sum, scale))
}

/// The scales of rows `16 half` to `16 half + 15`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_scales(scales: &[u8], half: usize) -> __m512 {
    let bytes = &scales[32 * half..32 * half + 32];
    // SAFETY: 32 readable bytes; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}
