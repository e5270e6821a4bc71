//! Ternary products with `vpdpbusd`.
//!
//! Memory bounds the product of one row of activations. `vpdpbusd`, which runs on two of the four
//! vector ports, bounds the product of several rows; masks, shifts and table lookups run on the
//! other two ports. A field of codes is either masked without a shift (fewer instructions), and
//! then each position s needs its own accumulator whose sums are multiples of 4^s, or shifted down
//! first (fewer registers).

use std::arch::x86_64::*;
use std::ops::Range;

use super::vector::{broadcast, load_half, store16};
use crate::layout::activations::{Activations, Tile};
use crate::layout::lines::{LINE_COLS, Line};
use crate::layout::packing::{GROUP_LINES, Group, Packing};
use crate::sets::output::Output;
use crate::weights::matrix::{LineScratch, TernaryMatrix};

/// Columns in a group.
pub(super) const GROUP_COLS: usize = GROUP_LINES * LINE_COLS;

/// Prefetch distance of kernels that memory does not bound: between their slow reads the hardware
/// prefetcher does not run far enough ahead. A kernel that always waits for memory loses speed by
/// prefetching.
pub(super) const PREFETCH_BYTES: usize = 4096;

/// The codes of a field, twice: `vpermb` reads six bits of an index, and only five belong to the
/// field.
const TABLE: [u8; 64] = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = three_codes(i as u8 % 32);
        i += 1;
    }
    table
};

/// Number of tiles from which weights of 1.67 bits are unpacked once for all tiles. Unpacking takes
/// as long as half a tile's products and saves each tile little, since other ports bound the
/// products.
const SPREAD_TILES_MIN: usize = 4;

/// The sums of 32 rows of weights: rows 0–15 and 16–31.
pub(super) type Sums = [__m512i; 2];
/// The same, for each position of a field in its byte.
type MaskedSums = [[__m512i; 4]; 2];

/// Stores the products of a tile with all blocks of `$run`, using the function for the tile's
/// number of rows.
macro_rules! multiply {
    ($run:expr, $place:expr, $weights:expr, $masks:expr, $($n:literal: $sums:ident),* $(,)?) => {
        match $place.tile.scales.len() {
            $($n => {
                for block in $run {
                    let (weights, scale) = $weights(block);
                    $place.store(block, scale, &$sums::<$n>(weights, &$place.tile, $masks));
                }
            })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and tiles of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn ternary(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tiles: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    let masks = Masks::new();
    let mut scratch = LineScratch::take();
    for run in runs(blocks, &tiles, matrix.packing() == Packing::Two) {
        let lines = scratch.unpack(matrix, run.start);
        let lines = |block| lines.unwrap_or_else(|| matrix.lines(block));
        multiply_lines(matrix, run, &tiles, lines, activations, output, &masks);
    }
}

/// The same without unpacking 1.67 bits first: each tile extracts the codes from the groups as it
/// reads them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(crate) fn ternary_vbmi(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tiles: Range<usize>,
    activations: &Activations,
    output: &Output<'_>,
) {
    if matrix.packing() == Packing::Two {
        return ternary(matrix, blocks, tiles, activations, output);
    }
    let masks = Masks::new();
    if tiles.len() >= SPREAD_TILES_MIN {
        let mut scratch = LineScratch::take();
        let lines = scratch.lines(matrix.cols());
        for block in blocks {
            spread(matrix.groups(block), lines, &masks);
            multiply_lines(
                matrix,
                block..block + 1,
                &tiles,
                |_| &*lines,
                activations,
                output,
                &masks,
            );
        }
        return;
    }
    for run in runs(blocks, &tiles, true) {
        for place in places(tiles.clone(), activations, output) {
            let weights = |block| (matrix.groups(block), matrix.scale(block));
            multiply!(
                run.clone(), place, weights, &masks,
                1: grouped_masked, 2: grouped_masked, 3: grouped_masked, 4: grouped_shifted,
                5: grouped_shifted, 6: grouped_shifted, 7: grouped_shifted, 8: grouped_shifted,
            );
        }
    }
}

/// Multiplies some blocks, given as lines of 2 bits per weight, by all rows of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_lines<'a>(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tiles: &Range<usize>,
    lines: impl Fn(usize) -> &'a [Line],
    activations: &Activations,
    output: &Output<'_>,
    masks: &Masks,
) {
    for place in places(tiles.clone(), activations, output) {
        let weights = |block| (lines(block), matrix.scale(block));
        multiply!(
            blocks.clone(), place, weights, masks,
            1: masked, 2: masked, 3: shifted, 4: shifted, 5: shifted, 6: shifted, 7: shifted, 8: shifted,
        );
    }
}

/// Number of blocks that a tile is multiplied by before the next tile: all blocks for a single
/// tile, so that the loop never stops between blocks; else one block, which stays in the cache for
/// the next tile.
fn runs(
    blocks: Range<usize>,
    tiles: &Range<usize>,
    many: bool,
) -> impl Iterator<Item = Range<usize>> {
    let step = if many && tiles.len() == 1 {
        blocks.len().max(1)
    } else {
        1
    };
    let end = blocks.end;
    blocks
        .step_by(step)
        .map(move |first| first..end.min(first + step))
}

fn places<'a>(
    tiles: Range<usize>,
    activations: &'a Activations,
    output: &'a Output<'a>,
) -> impl Iterator<Item = TilePlace<'a>> {
    tiles.map(move |tile| TilePlace::new(tile, activations, output))
}

/// A tile and where to write its products.
pub(super) struct TilePlace<'a> {
    output: &'a Output<'a>,
    first_row: usize,
    pub(super) tile: Tile<'a>,
}

impl<'a> TilePlace<'a> {
    pub(super) fn new(tile: usize, activations: &'a Activations, output: &'a Output<'a>) -> Self {
        Self {
            output,
            first_row: activations.tile_rows(tile).start,
            tile: activations.tile(tile),
        }
    }

    /// Stores `sum / s · scale`, in that order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn store<const N: usize>(&self, block: usize, scale: f32, sums: &[Sums; N]) {
        for (index, (sums, activation_scale)) in sums.iter().zip(self.tile.scales).enumerate() {
            // SAFETY: each block of outputs is computed by one thread.
            let out = unsafe { self.output.block(self.first_row + index, block) };
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(16)) {
                let quotient =
                    _mm512_div_ps(_mm512_cvtepi32_ps(*sums), _mm512_set1_ps(*activation_scale));
                store16(out, _mm512_mul_ps(quotient, _mm512_set1_ps(scale)));
            }
        }
    }
}

/// `Σ q` of each row. An array, so that the compiler knows the length of loops over the rows.
#[inline]
pub(super) fn activation_sums<const N: usize>(tile: &Tile<'_>) -> [i32; N] {
    std::array::from_fn(|i| tile.sums[i])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn prefetch(lines: &[Line]) {
    for half_line in lines.as_flattened().chunks_exact(64) {
        _mm_prefetch::<_MM_HINT_T0>(half_line.as_ptr().wrapping_add(PREFETCH_BYTES).cast());
    }
}

/// The masks and constants of the kernels. They are hidden from the compiler: otherwise it reads
/// them from memory at each use, although the load ports are as busy as the compute ports.
#[derive(Clone, Copy)]
pub(super) struct Masks {
    /// Each field of a byte.
    fields: [__m512i; 4],
    low3: __m512i,
    low4: __m512i,
    /// The three codes of a field.
    table: __m512i,
    /// The first, the second and the third code of a field.
    pub(super) codes: [__m512i; 3],
}

impl Masks {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new() -> Self {
        // SAFETY: 64 readable bytes; the load needs no alignment.
        let table = unsafe { _mm512_loadu_si512(TABLE.as_ptr().cast()) };
        let code = _mm512_set1_epi8(3);
        std::hint::black_box(Self {
            fields: [0x03, 0x0c, 0x30, 0xc0u8 as i8].map(|mask| _mm512_set1_epi8(mask)),
            low3: _mm512_set1_epi8(0x07),
            low4: _mm512_set1_epi8(0x0f),
            table,
            codes: [
                _mm512_and_si512(table, code),
                _mm512_and_si512(_mm512_srli_epi16::<2>(table), code),
                _mm512_and_si512(_mm512_srli_epi16::<4>(table), code),
            ],
        })
    }
}

/// The field at position `S`, shifted down.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn shifted_field<const S: usize>(codes: __m512i, masks: &Masks) -> __m512i {
    let down = match S {
        0 => codes,
        1 => _mm512_srli_epi16::<2>(codes),
        2 => _mm512_srli_epi16::<4>(codes),
        _ => _mm512_srli_epi16::<6>(codes),
    };
    _mm512_and_si512(down, masks.fields[0])
}

/// The three codes in each byte of field `F` of half a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn field_codes<const F: usize>(group: &Group, half: usize, masks: &Masks) -> __m512i {
    _mm512_permutexvar_epi8(field::<F>(group, half, masks), masks.table)
}

/// All fields of half a group, as [`field`] gives them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn fields(group: &Group, half: usize, masks: &Masks) -> [__m512i; 8] {
    [
        field::<0>(group, half, masks),
        field::<1>(group, half, masks),
        field::<2>(group, half, masks),
        field::<3>(group, half, masks),
        field::<4>(group, half, masks),
        field::<5>(group, half, masks),
        field::<6>(group, half, masks),
        field::<7>(group, half, masks),
    ]
}

/// Field `F` of half a group, in the lowest five bits of each byte; the upper three bits are
/// unspecified.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn field<const F: usize>(group: &Group, half: usize, masks: &Masks) -> __m512i {
    let line = |i: usize| load_half(&group[i], half);
    // Take the bits of `mask` from `a` and the others from `b`.
    let select =
        |mask: __m512i, a: __m512i, b: __m512i| _mm512_ternarylogic_epi32::<0xca>(mask, a, b);
    match F {
        5 => select(
            masks.low3,
            _mm512_srli_epi16::<5>(line(0)),
            _mm512_srli_epi16::<2>(line(1)),
        ),
        6 => select(
            masks.low3,
            _mm512_srli_epi16::<5>(line(2)),
            _mm512_srli_epi16::<2>(line(3)),
        ),
        7 => {
            let high = select(
                masks.low4,
                _mm512_srli_epi16::<4>(line(1)),
                _mm512_srli_epi16::<3>(line(3)),
            );
            select(masks.low3, _mm512_srli_epi16::<5>(line(4)), high)
        }
        _ => line(F),
    }
}

/// Turns groups of 1.67 bits and the lines after them into lines of 2 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn spread((groups, rest): (&[Group], &[Line]), lines: &mut [Line], masks: &Masks) {
    let (spread, spread_rest) = lines.as_chunks_mut::<GROUP_LINES>();
    spread_rest.copy_from_slice(rest);
    for (group, lines) in groups.iter().zip(spread) {
        for half in 0..2 {
            let three = |field| _mm512_permutexvar_epi8(field, masks.table);
            let [a, b, c, d, e, f, g, h] = fields(group, half, masks).map(three);
            spread_fields([a, b, c, d], &mut lines[..3], half, masks);
            spread_fields([e, f, g, h], &mut lines[3..], half, masks);
        }
    }
}

/// Writes half of three lines of four codes, from four fields of three.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn spread_fields(three: [__m512i; 4], lines: &mut [Line], half: usize, masks: &Masks) {
    let [a, b, c, d] = three;
    // Take the bits of `mask` from `a` and the others from `b`. The mask excludes bits that a shift
    // moves into the next byte.
    let select =
        |mask: __m512i, a: __m512i, b: __m512i| _mm512_ternarylogic_epi32::<0xca>(mask, a, b);
    let fours = [
        select(masks.fields[3], _mm512_slli_epi16::<6>(b), a),
        select(
            masks.low4,
            _mm512_srli_epi16::<2>(b),
            _mm512_slli_epi16::<4>(c),
        ),
        select(
            masks.fields[0],
            _mm512_srli_epi16::<4>(c),
            _mm512_slli_epi16::<2>(d),
        ),
    ];
    for (line, four) in lines.iter_mut().zip(fours) {
        let bytes = &mut line[64 * half..64 * half + 64];
        // SAFETY: 64 writable bytes; the store needs no alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), four) };
    }
}

// These are macros, not functions, because the compiler might not inline a function, and a call
// that saves sixteen or more registers costs as much as the loop around it.

/// Adds the products of 32 rows with the `N` rows of a tile, of one field in two half lines,
/// `codes`: for row `i`, dword `$dword` of `$values` into `$acc[i][half]$at`.
macro_rules! add_products {
    ($acc:ident $([$at:literal])?, $codes:expr, $values:expr, $dword:expr) => {
        let codes: [__m512i; 2] = $codes;
        for (i, acc) in $acc.iter_mut().enumerate() {
            let q = broadcast($values, $dword * N + i);
            acc[0]$([$at])? = _mm512_dpbusd_epi32(acc[0]$([$at])?, codes[0], q);
            acc[1]$([$at])? = _mm512_dpbusd_epi32(acc[1]$([$at])?, codes[1], q);
        }
    };
}

/// Adds the products of lines of 2 bits to `[MaskedSums; N]`.
macro_rules! add_lines_masked {
    ($acc:ident, $lines:expr, $values:expr, $masks:expr) => {
        for (line, values) in $lines.iter().zip($values.chunks_exact(LINE_COLS * N)) {
            let halves = [load_half(line, 0), load_half(line, 1)];
            add_products!(
                $acc[0],
                halves.map(|h| _mm512_and_si512(h, $masks.fields[0])),
                values,
                0
            );
            add_products!(
                $acc[1],
                halves.map(|h| _mm512_and_si512(h, $masks.fields[1])),
                values,
                1
            );
            add_products!(
                $acc[2],
                halves.map(|h| _mm512_and_si512(h, $masks.fields[2])),
                values,
                2
            );
            add_products!(
                $acc[3],
                halves.map(|h| _mm512_and_si512(h, $masks.fields[3])),
                values,
                3
            );
        }
    };
}

/// Adds the products of lines of 2 bits to `[Sums; N]`.
macro_rules! add_lines_shifted {
    ($acc:ident, $lines:expr, $values:expr, $masks:expr) => {
        for (line, values) in $lines.iter().zip($values.chunks_exact(LINE_COLS * N)) {
            prefetch(std::slice::from_ref(line));
            let halves = [load_half(line, 0), load_half(line, 1)];
            add_products!(
                $acc,
                halves.map(|h| shifted_field::<0>(h, $masks)),
                values,
                0
            );
            add_products!(
                $acc,
                halves.map(|h| shifted_field::<1>(h, $masks)),
                values,
                1
            );
            add_products!(
                $acc,
                halves.map(|h| shifted_field::<2>(h, $masks)),
                values,
                2
            );
            add_products!(
                $acc,
                halves.map(|h| shifted_field::<3>(h, $masks)),
                values,
                3
            );
        }
    };
}

pub(super) use {add_lines_shifted, add_products};

/// `[Sums; N]` of `[MaskedSums; N]`: adds the sums of all positions and subtracts `Σ q`, since
/// codes are weights + 1.
macro_rules! unite {
    ($acc:ident, $tile:expr) => {{
        let mut sums: [Sums; N] = [[_mm512_setzero_si512(); 2]; N];
        for ((sums, acc), sum) in sums.iter_mut().zip($acc).zip(activation_sums::<N>($tile)) {
            for (sums, [a, b, c, d]) in sums.iter_mut().zip(acc) {
                let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
                let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
                *sums = _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(sum));
            }
        }
        sums
    }};
}

/// Calls `$field!(F)` for each field of a group.
macro_rules! for_fields {
    ($field:ident) => {
        $field!(0);
        $field!(1);
        $field!(2);
        $field!(3);
        $field!(4);
        $field!(5);
        $field!(6);
        $field!(7);
    };
}

/// `Σ w · q` of 32 rows with the `N` rows of a tile, for small `N`: masks fields without shifts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn masked<const N: usize>(lines: &[Line], tile: &Tile<'_>, masks: &Masks) -> [Sums; N] {
    let mut acc: [MaskedSums; N] = [[[_mm512_setzero_si512(); 4]; 2]; N];
    add_lines_masked!(acc, lines, tile.values, masks);
    unite!(acc, tile)
}

/// The same for large `N`: shifts each field down first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn shifted<const N: usize>(lines: &[Line], tile: &Tile<'_>, masks: &Masks) -> [Sums; N] {
    let mut acc: [Sums; N] = [[_mm512_setzero_si512(); 2]; N];
    for (acc, sum) in acc.iter_mut().zip(activation_sums::<N>(tile)) {
        *acc = [_mm512_set1_epi32(-sum); 2];
    }
    add_lines_shifted!(acc, lines, tile.values, masks);
    acc
}

/// The same for groups of 1.67 bits and the lines after them, for small `N`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn grouped_masked<const N: usize>(
    (groups, lines): (&[Group], &[Line]),
    tile: &Tile<'_>,
    masks: &Masks,
) -> [Sums; N] {
    let mut acc: [MaskedSums; N] = [[[_mm512_setzero_si512(); 4]; 2]; N];
    let (values, rest) = tile.values.split_at(groups.len() * GROUP_COLS * N);
    for (group, values) in groups.iter().zip(values.chunks_exact(GROUP_COLS * N)) {
        macro_rules! field {
            ($f:literal) => {
                let three = [
                    field_codes::<$f>(group, 0, masks),
                    field_codes::<$f>(group, 1, masks),
                ];
                add_products!(
                    acc[0],
                    three.map(|c| _mm512_and_si512(c, masks.fields[0])),
                    values,
                    3 * $f
                );
                add_products!(
                    acc[1],
                    three.map(|c| _mm512_and_si512(c, masks.fields[1])),
                    values,
                    (3 * $f + 1)
                );
                add_products!(
                    acc[2],
                    three.map(|c| _mm512_and_si512(c, masks.fields[2])),
                    values,
                    (3 * $f + 2)
                );
            };
        }
        for_fields!(field);
    }
    add_lines_masked!(acc, lines, rest, masks);
    unite!(acc, tile)
}

/// The same for large `N`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn grouped_shifted<const N: usize>(
    (groups, lines): (&[Group], &[Line]),
    tile: &Tile<'_>,
    masks: &Masks,
) -> [Sums; N] {
    let mut acc: [Sums; N] = [[_mm512_setzero_si512(); 2]; N];
    for (acc, sum) in acc.iter_mut().zip(activation_sums::<N>(tile)) {
        *acc = [_mm512_set1_epi32(-sum); 2];
    }
    let (values, rest) = tile.values.split_at(groups.len() * GROUP_COLS * N);
    for (group, values) in groups.iter().zip(values.chunks_exact(GROUP_COLS * N)) {
        prefetch(group);
        macro_rules! field {
            ($f:literal) => {
                let three = [
                    field_codes::<$f>(group, 0, masks),
                    field_codes::<$f>(group, 1, masks),
                ];
                add_products!(
                    acc,
                    three.map(|c| shifted_field::<0>(c, masks)),
                    values,
                    3 * $f
                );
                add_products!(
                    acc,
                    three.map(|c| shifted_field::<1>(c, masks)),
                    values,
                    (3 * $f + 1)
                );
                add_products!(
                    acc,
                    three.map(|c| shifted_field::<2>(c, masks)),
                    values,
                    (3 * $f + 2)
                );
            };
        }
        for_fields!(field);
    }
    add_lines_shifted!(acc, lines, rest, masks);
    acc
}

/// The three codes of a field, 2 bits each: t0 + 3 t1 + 9 t2 to t0 + 4 t1 + 16 t2.
const fn three_codes(field: u8) -> u8 {
    let t2 = (field >= 9) as u8 + (field >= 18) as u8;
    let rest = field.wrapping_sub(9 * t2);
    let t1 = (rest >= 3) as u8 + (rest >= 6) as u8;
    field + t1 + 7 * t2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_expands_to_three_codes() {
        for field in 0..27 {
            let [t0, t1, t2] = [field % 3, field / 3 % 3, field / 9];
            assert_eq!(three_codes(field), t0 | t1 << 2 | t2 << 4, "{field}");
        }
    }
}
