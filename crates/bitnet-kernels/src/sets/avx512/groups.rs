//! Products with group scales with `vpdpbusd`. Products of signs with a few rows of activations use
//! the table lookup of AVX2: the ports that look up process 256 bits as often as 512, so lookup
//! gains nothing from wider registers.
//!
//! `vpermb` turns trits into codes: in registers in products with up to a tile of rows; products with
//! more rows spread a block to codes of 2 bits first, for all tiles.

use std::arch::x86_64::*;
use std::ops::Range;

use super::ternary::{self, Masks};
use super::vector::{broadcast, load_half, store16};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::{CELL_COLS, GroupLayout, SCALE_BYTES};
use crate::layout::group_activations::{GroupActivations, GroupTile, Offset};
use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES, LINE_COLS};
use crate::layout::packing::Group;
use crate::sets::avx2;
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::{BlockScratch, GroupBlocks};

pub(crate) const KERNELS: GroupKernels = GroupKernels {
    signs,
    trits: None,
    two_bits,
    wide_signs: Some(avx2::group_prompt::signs),
    wide_two_bits: None,
};

/// The products of CPUs with VBMI.
pub(crate) const KERNELS_VBMI: GroupKernels = GroupKernels {
    trits: Some(trits),
    ..KERNELS
};

/// The number of rows from which unpacking signs and multiplying is faster than lookup.
const LOOKUP_ROWS_END: usize = 4;

/// The sums of 32 rows. For codes of 2 bits: rows 0–15, then rows 16–31. For signs: the first four
/// rows of each eight, then the other rows.
type HalfSums = [__m512; 2];

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn two_bits(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    products::<false>(matrix, blocks, rows, activations, output);
}

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn trits(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let masks = Masks::new();
    if rows.len() > TILE_ROWS || activations.run_cols() != CELL_COLS {
        let spread = |layout: GroupLayout, stored: &[u8], plain: &mut [u8]| {
            layout.spread_with(stored, plain, |trits, lines| {
                ternary::spread((trits, &[]), lines, &masks);
            });
        };
        let mut scratch = BlockScratch::take();
        for block in blocks {
            let two_bits = matrix.spread_with(block, &mut scratch, spread);
            products::<false>(
                &two_bits,
                block..block + 1,
                rows.clone(),
                activations,
                output,
            );
        }
        return;
    }
    let tile = activations.tile(rows.start / TILE_ROWS);
    for block in blocks {
        let product = Product {
            matrix,
            block,
            output,
            first_row: rows.start,
        };
        macro_rules! of_rows {
            ($($n:literal)*) => {
                match tile.rows {
                    $($n => product.store::<$n, false>(&product.sums_of_trits::<$n>(&tile, &masks)),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        of_rows!(1 2 3 4 5 6 7 8);
    }
}

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn signs(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    match rows.len() {
        ..LOOKUP_ROWS_END => avx2::signs::signs(matrix, blocks, rows, activations, output),
        _ => products::<true>(matrix, blocks, rows, activations, output),
    }
}

/// The products with signs, or with codes of 2 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products<const SIGNS: bool>(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    for block in blocks {
        for tile in rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS) {
            let product = Product {
                matrix,
                block,
                output,
                first_row: tile * TILE_ROWS,
            };
            let tile = activations.tile(tile);
            match activations.run_cols() / CELL_COLS {
                1 => product.of_tile::<1, SIGNS>(&tile),
                2 => product.of_tile::<2, SIGNS>(&tile),
                _ => product.of_tile::<4, SIGNS>(&tile),
            }
        }
    }
}

/// A block, and where to write its products with a tile.
struct Product<'a> {
    matrix: &'a GroupBlocks<'a>,
    block: usize,
    output: &'a Output<'a>,
    first_row: usize,
}

impl Product<'_> {
    /// Stores the products with the rows of a tile. The runs of activations have `R` cells.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn of_tile<const R: usize, const SIGNS: bool>(&self, tile: &GroupTile<'_>) {
        macro_rules! of_rows {
            ($($n:literal)*) => {
                match tile.rows {
                    $($n => self.store::<$n, SIGNS>(&self.sums::<$n, R, SIGNS>(tile)),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        of_rows!(1 2 3 4 5 6 7 8);
    }

    /// The outputs of 32 rows with the `N` rows of a tile, by the rule of `portable`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn sums<const N: usize, const R: usize, const SIGNS: bool>(
        &self,
        tile: &GroupTile<'_>,
    ) -> [HalfSums; N] {
        let layout = self.matrix.layout();
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        let mut runs = RunsOfTile::<N, R>::new(tile);
        for chunk in layout.chunks() {
            let bytes = self.matrix.chunk(self.block, &chunk);
            for bytes in bytes.chunks(layout.group_bytes()) {
                let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
                runs.add_group::<SIGNS>(codes, scales, &mut sums);
            }
        }
        sums
    }

    /// The same for a block of trits whose activations are in runs of a cell.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn sums_of_trits<const N: usize>(&self, tile: &GroupTile<'_>, masks: &Masks) -> [HalfSums; N] {
        let layout = self.matrix.layout();
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        let mut runs = RunsOfTile::<N, 1>::new(tile);
        let (trios, rest) = layout.split_trios(self.matrix.stored(self.block));
        for trio in trios.chunks_exact(layout.trio_bytes()) {
            let (trits, scales) = GroupLayout::split_trio(trio);
            runs.add_trio(
                trits,
                scales,
                layout.group_cols / CELL_COLS,
                masks,
                &mut sums,
            );
        }
        for bytes in rest.chunks(layout.group_bytes()) {
            let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
            runs.add_group::<false>(codes, scales, &mut sums);
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn store<const N: usize, const SIGNS: bool>(&self, sums: &[HalfSums; N]) {
        for (row, sums) in (self.first_row..).zip(sums) {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { self.output.block(row, self.block) };
            let (first, second) = out.split_at_mut(BLOCK_ROWS / 2);
            let [a, b] = if SIGNS {
                interleave_fours(*sums)
            } else {
                *sums
            };
            store16(first, a);
            store16(second, b);
        }
    }
}

/// Reorders sums from "the first four rows of each eight, then the other rows" to rows 0–15 and
/// 16–31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn interleave_fours([a, b]: HalfSums) -> HalfSums {
    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
    let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    [
        _mm512_castpd_ps(_mm512_permutex2var_pd(a, first, b)),
        _mm512_castpd_ps(_mm512_permutex2var_pd(a, second, b)),
    ]
}

/// The remaining runs, of `R` cells each, of a tile of `N` rows.
struct RunsOfTile<'a, const N: usize, const R: usize> {
    values: &'a [i8],
    scales: &'a [[f32; N]],
    offsets: &'a [[Offset; N]],
}

impl<'a, const N: usize, const R: usize> RunsOfTile<'a, N, R> {
    /// Bytes of the activations of a run.
    const RUN_VALUES: usize = R * CELL_COLS * N;

    fn new(tile: &GroupTile<'a>) -> Self {
        Self {
            values: tile.values,
            scales: tile.scales.as_chunks().0,
            offsets: tile.offsets.as_chunks().0,
        }
    }

    /// Adds the next group, by the rule of `portable`, and skips its runs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add_group<const SIGNS: bool>(
        &mut self,
        codes: &[u8],
        scales: &[u8],
        sums: &mut [HalfSums; N],
    ) {
        let line_bytes = if SIGNS { LINE_BYTES / 2 } else { LINE_BYTES };
        let run_bytes = R * CELL_COLS / LINE_COLS * line_bytes;
        let scales = load_scales::<SIGNS>(scales);
        for half in 0..2 {
            let mut of_runs = [_mm512_setzero_ps(); N];
            for (run, codes) in codes.chunks(run_bytes).enumerate() {
                self.add::<SIGNS>(run, codes, half, &mut of_runs);
            }
            for (sums, of_runs) in sums.iter_mut().zip(of_runs) {
                sums[half] = fold(sums[half], of_runs, scales[half]);
            }
        }
        self.skip(codes.len().div_ceil(run_bytes));
    }

    /// Adds the next three groups, stored as trits, each of `group_runs` runs.
    ///
    /// The codes of 24 × 4 columns in a group of trits are three runs of eight dwords. Dword d is
    /// code d mod 3 of field d / 3. Each place in a field has its own table: one lookup instead of a
    /// shift and a mask.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn add_trio(
        &mut self,
        trits: &[Group],
        scales: &[u8],
        group_runs: usize,
        masks: &Masks,
        sums: &mut [HalfSums; N],
    ) {
        let tables = masks.codes;
        for half in 0..2 {
            let mut of_runs = [_mm512_setzero_ps(); N];
            let mut scales = scales.chunks_exact(SCALE_BYTES);
            for (first_run, trits) in (0..).step_by(3).zip(trits) {
                let fields = ternary::fields(trits, half, masks);
                // Written out, so that the eight fields stay in registers.
                macro_rules! add_run {
                    ($run:literal: $($dword:literal = $field:literal[$code:literal]),*) => {
                        let run = first_run + $run;
                        let mut acc = self.offsets(run);
                        let values = &self.values[run * Self::RUN_VALUES..][..Self::RUN_VALUES];
                        $(
                            let codes = _mm512_permutexvar_epi8(fields[$field], tables[$code]);
                            for (i, acc) in acc.iter_mut().enumerate() {
                                let q = broadcast(values, $dword * N + i);
                                *acc = _mm512_dpbusd_epi32(*acc, codes, q);
                            }
                        )*
                        self.fold_run(run, acc, &mut of_runs);
                        if (run + 1).is_multiple_of(group_runs) {
                            let scales = load_scales::<false>(scales.next().unwrap_or_default());
                            for (sums, of_runs) in sums.iter_mut().zip(&mut of_runs) {
                                sums[half] = fold(sums[half], *of_runs, scales[half]);
                                *of_runs = _mm512_setzero_ps();
                            }
                        }
                    };
                }
                add_run!(0: 0 = 0[0], 1 = 0[1], 2 = 0[2], 3 = 1[0], 4 = 1[1], 5 = 1[2], 6 = 2[0], 7 = 2[1]);
                add_run!(1: 0 = 2[2], 1 = 3[0], 2 = 3[1], 3 = 3[2], 4 = 4[0], 5 = 4[1], 6 = 4[2], 7 = 5[0]);
                add_run!(2: 0 = 5[1], 1 = 5[2], 2 = 6[0], 3 = 6[1], 4 = 6[2], 5 = 7[0], 6 = 7[1], 7 = 7[2]);
            }
        }
        self.skip(3 * trits.len());
    }

    /// Where the sums of run `run` begin.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn offsets(&self, run: usize) -> [__m512i; N] {
        self.offsets[run].map(|offset| _mm512_set1_epi32(offset.whole))
    }

    /// Adds the sums of run `run` by the rule of `portable::fold_run`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn fold_run(&self, run: usize, acc: [__m512i; N], of_runs: &mut [__m512; N]) {
        for ((of_runs, acc), scale) in of_runs.iter_mut().zip(acc).zip(self.scales[run]) {
            *of_runs = fold(*of_runs, _mm512_cvtepi32_ps(acc), _mm512_set1_ps(scale));
        }
    }

    /// Skips the first `num_runs` runs.
    #[inline(always)]
    fn skip(&mut self, num_runs: usize) {
        let values = (num_runs * Self::RUN_VALUES).min(self.values.len());
        self.values = &self.values[values..];
        self.scales = &self.scales[num_runs..];
        self.offsets = &self.offsets[num_runs..];
    }

    /// Adds run `run`, whose codes are in `codes`, to the sums of 16 rows.
    ///
    /// `Σ code · q − Σ q` is exact: a code of 2 bits is a weight + 1, and so is a sign as 0 or 2.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add<const SIGNS: bool>(
        &self,
        run: usize,
        codes: &[u8],
        half: usize,
        of_runs: &mut [__m512; N],
    ) {
        let line_bytes = if SIGNS { LINE_BYTES / 2 } else { LINE_BYTES };
        let mut acc = self.offsets(run);
        let values = &self.values[run * Self::RUN_VALUES..];
        for (line, values) in codes
            .chunks_exact(line_bytes)
            .zip(values.chunks_exact(LINE_COLS * N))
        {
            let fields = if SIGNS {
                sign_fields(line, half)
            } else {
                two_bit_fields(line, half)
            };
            for (s, field) in fields.into_iter().enumerate() {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_dpbusd_epi32(*acc, field, broadcast(values, s * N + i));
                }
            }
        }
        self.fold_run(run, acc, of_runs);
    }
}

/// The codes of 16 rows in 16 columns, four columns each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn two_bit_fields(line: &[u8], half: usize) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(3);
    let codes = load_half(line, half);
    [
        _mm512_and_si512(codes, mask),
        _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask),
        _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask),
        _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask),
    ]
}

/// The same for signs, as codes 0 and 2: `vpermd` reads only four bits of each index, here the four
/// sign bits of a row, and finds the four codes in a table of 16 dwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sign_fields(line: &[u8], half: usize) -> [__m512i; 4] {
    const SIGNS: [u32; 16] = {
        let mut signs = [0; 16];
        let mut at = 0;
        while at < 64 {
            signs[at / 4] |= (((at / 4) >> (at % 4) & 1) as u32 * 2) << (8 * (at % 4));
            at += 1;
        }
        signs
    };
    // SAFETY: 64 readable bytes; the load needs no alignment.
    let table = unsafe { _mm512_loadu_si512(SIGNS.as_ptr().cast()) };
    let mut fields = [_mm512_setzero_si512(); 4];
    for (fields, run) in fields
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(line.as_chunks::<BLOCK_ROWS>().0)
    {
        let bytes = &run.as_chunks::<16>().0[half];
        // SAFETY: 16 readable bytes; the load needs no alignment.
        let bits = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        *fields = [
            _mm512_permutexvar_epi32(bits, table),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(bits), table),
        ];
    }
    fields
}

/// `acc + sum · scale`, as `portable::fold_run` and `portable::fold_group` say.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn fold(acc: __m512, sum: __m512, scale: __m512) -> __m512 {
    _mm512_add_ps(acc, _mm512_mul_ps(sum, scale))
}

/// The scales of a group, in the order of [`HalfSums`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_scales<const SIGNS: bool>(scales: &[u8]) -> HalfSums {
    assert!(scales.len() == SCALE_BYTES);
    // SAFETY: 64 readable bytes; the load needs no alignment.
    let mut bits = unsafe { _mm512_loadu_si512(scales.as_ptr().cast()) };
    if SIGNS {
        bits = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bits);
    }
    [
        _mm512_cvtph_ps(_mm512_castsi512_si256(bits)),
        _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(bits)),
    ]
}
