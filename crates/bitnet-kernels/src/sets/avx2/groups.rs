//! Products of codes of 2 bits with group scales, with `vpmaddubsw`.
//!
//! For up to a tile of rows of activations the kernel extracts the codes in registers. For more
//! rows it unpacks the codes of a group to bytes, a panel that stays in the first-level cache while
//! all rows are multiplied by it.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::group_prompt;
use super::signs::signs;
use super::vector::{broadcast, fields, fold, load_quarter, load_scales, store8};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::SCALE_BYTES;
use crate::layout::group_activations::{GroupActivations, GroupTile};
use crate::layout::lines::{LINE_COLS, Line};
use crate::sets::groups::GroupKernels;
use crate::sets::output::Output;
use crate::weights::groups::GroupBlocks;

pub(crate) const KERNELS: GroupKernels = GroupKernels {
    signs,
    trits: None,
    two_bits,
    wide_signs: Some(group_prompt::signs),
    wide_two_bits: Some(group_prompt::two_bits),
};

/// Registers for the sums of a block: 8 of its 32 rows in each.
const QUARTERS: usize = 4;
/// The most columns that share a scale.
const MAX_GROUP_COLS: usize = 128;
/// Bytes between the weights that are multiplied and those that are prefetched.
const PREFETCH_BYTES: usize = 4096;

/// The products of 32 rows with one row of activations.
type Products = [__m256; QUARTERS];
/// The codes of four columns, a byte for each of 32 rows and each column.
type UnpackedFour = [__m256i; QUARTERS];

thread_local! {
    /// The products of a block, one for each row of activations. Kept, so that a step allocates
    /// nothing.
    static PRODUCTS: Cell<Vec<Products>> = const { Cell::new(Vec::new()) };
}

/// See [`crate::sets::groups::GroupMultiply`].
#[target_feature(enable = "avx2,f16c")]
fn two_bits(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let Some(chunk) = matrix.layout().chunks().next() else {
        return;
    };
    let mut products = PRODUCTS.take();
    products.clear();
    products.resize(rows.len(), [_mm256_setzero_ps(); QUARTERS]);
    let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
    let group_bytes = matrix.layout().group_bytes();
    for block in blocks {
        let groups = matrix.chunk(block, &chunk).chunks(group_bytes);
        products.fill([_mm256_setzero_ps(); QUARTERS]);
        if tiles.len() == 1 {
            let tile = Rows::new(activations, tiles.start);
            add_few_rows(groups, &tile, &mut products);
        } else {
            add_many_rows(groups, tiles.clone(), activations, &mut products);
        }
        for (row, products) in rows.clone().zip(&products) {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { output.block(row, block) };
            for (out, products) in out.chunks_exact_mut(8).zip(products) {
                store8(out, *products);
            }
        }
    }
    PRODUCTS.set(products);
}

/// The rows of a tile.
struct Rows<'a> {
    tile: GroupTile<'a>,
    run_cols: usize,
}

impl<'a> Rows<'a> {
    fn new(activations: &'a GroupActivations, tile: usize) -> Self {
        Self {
            tile: activations.tile(tile),
            run_cols: activations.run_cols(),
        }
    }

    /// The values of a run of all rows, and of the runs after it.
    #[inline(always)]
    fn values(&self, run: usize) -> &'a [i8] {
        &self.tile.values[run * self.run_cols * self.tile.rows..]
    }

    /// Where the sums of a run begin, of `Q · 8` rows of weights and `N` rows from `first` on: its
    /// offsets in 16 bits, two words for each row of weights.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn offsets<const N: usize, const Q: usize>(
        &self,
        run: usize,
        first: usize,
    ) -> [[__m256i; Q]; N] {
        let offsets = &self.tile.offsets[run * self.tile.rows + first..][..N];
        let mut acc = [[_mm256_setzero_si256(); Q]; N];
        for (acc, offset) in acc.iter_mut().zip(offsets) {
            *acc = [_mm256_set1_epi32(offset.words); Q];
        }
        acc
    }

    /// Adds the exact sums of a run times its scale, by the rule of `portable::fold_run`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn fold_run<const N: usize, const Q: usize>(
        &self,
        run: usize,
        first: usize,
        sums: &[[__m256i; Q]; N],
        of_runs: &mut [[__m256; Q]; N],
    ) {
        let scales = &self.tile.scales[run * self.tile.rows + first..][..N];
        for ((of_runs, sums), scale) in of_runs.iter_mut().zip(sums).zip(scales) {
            let scale = _mm256_set1_ps(*scale);
            for (of_runs, sum) in of_runs.iter_mut().zip(sums) {
                let sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
                *of_runs = fold(*of_runs, _mm256_cvtepi32_ps(sum), scale);
            }
        }
    }
}

/// Adds the products of some quarters of a group to the products of the whole block, by the rule of
/// `portable::fold_group`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fold_groups<const N: usize, const Q: usize>(
    products: &mut [Products],
    of_runs: &[[__m256; Q]; N],
    first_quarter: usize,
    scales: &[u8],
) {
    for quarter in 0..Q {
        let place = first_quarter + quarter;
        let scales = load_scales(scales, place);
        for (products, of_runs) in products.iter_mut().zip(of_runs) {
            products[place] = fold(products[place], of_runs[quarter], scales);
        }
    }
}

/// `acc + Σ codes · q` in 16 bits, sums of two products.
///
/// A lane takes 2 products of at most 3 · 127 for each four columns, 24,384 in the 128 columns that
/// a run has at most, and an offset of at most 8128: together 32,512.
///
/// The order of these additions changes nothing, so the compiler would unroll a run and regroup
/// them to trees, which need more registers than there are: a quarter of the speed. Two
/// instructions that it cannot look into keep one sum in one register.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_products(mut acc: __m256i, codes: __m256i, q: __m256i) -> __m256i {
    // SAFETY: two instructions of AVX2 on registers.
    unsafe {
        std::arch::asm!(
            "vpmaddubsw {product}, {codes}, {q}",
            "vpaddw {acc}, {acc}, {product}",
            product = out(ymm_reg) _,
            codes = in(ymm_reg) codes,
            q = in(ymm_reg) q,
            acc = inout(ymm_reg) acc,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Adds the products of a block's groups with the rows of a tile, some rows at a time.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_few_rows<'a>(
    groups: impl Iterator<Item = &'a [u8]>,
    rows: &Rows<'_>,
    products: &mut [Products],
) {
    let mut run = 0;
    for bytes in groups {
        let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let lines: &[Line] = codes.as_chunks().0;
        if products.len() > 1 {
            prefetch(bytes);
        }
        let group = Group {
            lines,
            scales,
            rows,
            run,
        };
        match products.len() {
            1 => group.few_rows::<1, 4>(0, products),
            2 => group.few_rows::<2, 4>(0, products),
            3 => group.few_rows::<3, 2>(0, products),
            4 => group.few_rows::<4, 2>(0, products),
            5 => group.few_rows::<5, 2>(0, products),
            6 => {
                group.few_rows::<3, 2>(0, products);
                group.few_rows::<3, 2>(3, products);
            }
            7 => {
                group.few_rows::<4, 2>(0, products);
                group.few_rows::<3, 2>(4, products);
            }
            _ => {
                group.few_rows::<4, 2>(0, products);
                group.few_rows::<4, 2>(4, products);
            }
        }
        run += (lines.len() * LINE_COLS).div_ceil(rows.run_cols);
    }
}

/// Prefetches what follows the given bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch(bytes: &[u8]) {
    for cache_line in bytes.chunks_exact(64) {
        let ahead = cache_line.as_ptr().wrapping_add(PREFETCH_BYTES);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
    }
}

/// A group of a block, and rows to multiply it by.
struct Group<'a> {
    lines: &'a [Line],
    scales: &'a [u8],
    rows: &'a Rows<'a>,
    /// The group's first run.
    run: usize,
}

impl Group<'_> {
    /// Adds the products with `N` rows from `first` on, `Q` quarters of the lines at a time:
    /// `N · Q` sums must leave some of the 16 registers for codes and activations.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn few_rows<const N: usize, const Q: usize>(&self, first: usize, products: &mut [Products]) {
        let (rows, in_tile) = (self.rows, self.rows.tile.rows);
        let products = &mut products[first..first + N];
        for quarter in (0..QUARTERS).step_by(Q) {
            let mut of_runs = [[_mm256_setzero_ps(); Q]; N];
            let runs = self.lines.chunks(rows.run_cols / LINE_COLS);
            for (run, lines) in (self.run..).zip(runs) {
                let mut acc = rows.offsets::<N, Q>(run, first);
                let values = rows.values(run).chunks_exact(LINE_COLS * in_tile);
                for (line, values) in lines.iter().zip(values) {
                    let codes: [_; Q] =
                        std::array::from_fn(|i| fields(load_quarter(line, quarter + i)));
                    for s in 0..4 {
                        let values = &values[4 * (s * in_tile + first)..][..4 * N];
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let q = broadcast(values, i);
                            for (acc, codes) in acc.iter_mut().zip(&codes) {
                                *acc = add_products(*acc, codes[s], q);
                            }
                        }
                    }
                }
                rows.fold_run(run, first, &acc, &mut of_runs);
            }
            fold_groups(products, &of_runs, quarter, self.scales);
        }
    }
}

/// Adds the products of a block's groups with the rows of some tiles.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_many_rows<'a>(
    groups: impl Iterator<Item = &'a [u8]>,
    tiles: Range<usize>,
    activations: &GroupActivations,
    products: &mut [Products],
) {
    let mut panel = [[_mm256_setzero_si256(); QUARTERS]; MAX_GROUP_COLS / 4];
    let mut run = 0;
    for bytes in groups {
        prefetch(bytes);
        let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
        let lines: &[Line] = codes.as_chunks().0;
        for (line, fours) in lines.iter().zip(panel.as_chunks_mut::<4>().0) {
            for quarter in 0..QUARTERS {
                for (four, codes) in fours.iter_mut().zip(fields(load_quarter(line, quarter))) {
                    four[quarter] = codes;
                }
            }
        }
        let panel = &panel[..4 * lines.len()];
        for tile in tiles.clone() {
            let rows = Rows::new(activations, tile);
            let products = &mut products[(tile - tiles.start) * TILE_ROWS..][..rows.tile.rows];
            let mut first = 0;
            macro_rules! rows_at_once {
                ($n:literal) => {
                    while products.len() - first >= $n {
                        let products = &mut products[first..first + $n];
                        add_panel::<$n>(panel, scales, &rows, run, first, products);
                        first += $n;
                    }
                };
            }
            // The sums of two quarters and five rows take ten of the 16 registers.
            rows_at_once!(5);
            rows_at_once!(4);
            rows_at_once!(3);
            rows_at_once!(2);
            rows_at_once!(1);
        }
        run += (lines.len() * LINE_COLS).div_ceil(activations.run_cols());
    }
}

/// Adds the products of a group's panel, whose first run is `run`, with `N` rows of a tile from
/// `first` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_panel<const N: usize>(
    panel: &[UnpackedFour],
    scales: &[u8],
    rows: &Rows<'_>,
    run: usize,
    first: usize,
    products: &mut [Products],
) {
    for pair in [0, 2] {
        let mut of_runs = [[_mm256_setzero_ps(); 2]; N];
        for (run, fours) in (run..).zip(panel.chunks(rows.run_cols / 4)) {
            let mut acc = rows.offsets::<N, 2>(run, first);
            let values = rows.values(run).chunks_exact(4 * rows.tile.rows);
            for (four, values) in fours.iter().zip(values) {
                let values = &values[4 * first..4 * first + 4 * N];
                for (i, acc) in acc.iter_mut().enumerate() {
                    let q = broadcast(values, i);
                    *acc = [
                        add_products(acc[0], four[pair], q),
                        add_products(acc[1], four[pair + 1], q),
                    ];
                }
            }
            rows.fold_run(run, first, &acc, &mut of_runs);
        }
        fold_groups(products, &of_runs, pair, scales);
    }
}
