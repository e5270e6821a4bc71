//! Ternary products: by 16-bit sums with `smlal`, and with `sdot` where the CPU has it.

use std::arch::aarch64::*;
use std::ops::Range;

use super::vector::{LINE_REGISTERS, REGISTER_ROWS, broadcast, dot, load_registers, store4};
use crate::layout::activations::{Activations, Tile};
use crate::layout::lines::{LINE_COLS, Line};
use crate::sets::output::Output;
use crate::weights::matrix::{LineScratch, TernaryMatrix};

/// Defines `y = (Σ code·q − Σ q) / s · scale` for the given blocks of rows and tiles of activations.
///
/// A lone row goes to `$row_sums`; the rows of a tile to `$tile_sums`, in the first group of `$n`
/// rows by `$r` registers of weights that is not larger than the remaining rows.
macro_rules! ternary {
    ($name:ident: $features:literal, $row_sums:path, $tile_sums:ident [$($n:literal by $r:literal),*]) => {
        #[target_feature(enable = $features)]
        pub(crate) fn $name(matrix: &TernaryMatrix, blocks: Range<usize>, tiles: Range<usize>, activations: &Activations, output: &Output<'_>) {
            let mut scratch = LineScratch::take();
            for block in blocks {
                let scale = matrix.scale(block);
        let lines = scratch.unpack(matrix, block).unwrap_or_else(|| matrix.lines(block));
                for tile_index in tiles.clone() {
                    let tile = activations.tile(tile_index);
                    let first_row = activations.tile_rows(tile_index).start;
                    let store = |index: usize, register: usize, sums: &[int32x4_t]| {
                        // SAFETY: each block of outputs is computed by one thread.
                        let out = unsafe { output.block(first_row + index, block) };
                        for (out, sums) in out[REGISTER_ROWS * register..].as_chunks_mut().0.iter_mut().zip(sums) {
                            store4(out, finish(*sums, tile.sums[index], tile.scales[index], scale));
                        }
                    };
                    let rows = tile.scales.len();
                    if rows == 1 {
                        store(0, 0, &$row_sums(lines, &tile));
                        continue;
                    }
                    let mut first = 0;
                    $(
                        while rows - first >= $n {
                            for register in (0..LINE_REGISTERS).step_by($r) {
                                let sums = $tile_sums::<$n, $r>(lines, &tile, register, first);
                                for (i, sums) in sums.iter().enumerate() {
                                    store(first + i, register, sums);
                                }
                            }
                            first += $n;
                        }
                    )*
                }
            }
        }
    };
}

ternary!(ternary: "neon", row_sums, tile_sums [8 by 1, 4 by 2, 2 by 4, 1 by 8]);
ternary!(ternary_dotprod: "neon,dotprod", row_sums_dotprod, tile_sums_dotprod [8 by 2, 4 by 4, 2 by 8, 1 by 8]);

/// `(sum − Σ q) / s · scale`, in that order.
#[inline]
#[target_feature(enable = "neon")]
fn finish(sums: int32x4_t, activation_sum: i32, activation_scale: f32, scale: f32) -> float32x4_t {
    let sums = vcvtq_f32_s32(vsubq_s32(sums, vdupq_n_s32(activation_sum)));
    vmulq_f32(
        vdivq_f32(sums, vdupq_n_f32(activation_scale)),
        vdupq_n_f32(scale),
    )
}

/// The codes of field 0.
#[inline]
#[target_feature(enable = "neon")]
fn lowest<const R: usize>(packed: [uint8x16_t; R]) -> [uint8x16_t; R] {
    let mut codes = packed;
    for codes in &mut codes {
        *codes = vandq_u8(*codes, vdupq_n_u8(3));
    }
    codes
}

/// The codes of the field that begins at bit `SHIFT`.
#[inline]
#[target_feature(enable = "neon")]
fn shifted<const SHIFT: i32, const R: usize>(packed: [uint8x16_t; R]) -> [uint8x16_t; R] {
    let mut codes = packed;
    for codes in &mut codes {
        *codes = vshrq_n_u8::<SHIFT>(*codes);
    }
    lowest(codes)
}

/// Sixteen activations.
#[inline]
#[target_feature(enable = "neon")]
fn load_values(values: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_s8(values.as_ptr()) }
}

/// `Σ code · q` of 32 rows with one row of activations.
#[inline]
#[target_feature(enable = "neon")]
fn row_sums(lines: &[Line], tile: &Tile<'_>) -> [int32x4_t; LINE_REGISTERS] {
    let [sums] = tile_sums::<1, LINE_REGISTERS>(lines, tile, 0, 0);
    sums
}

/// `Σ code · q` of the `4 · R` rows of weights from `register` on with `N` rows of a tile from
/// `first` on.
///
/// A 16-bit lane takes four products of at most 3 · 128 a line, so sixteen lines give 24,576 at
/// most.
#[inline]
#[target_feature(enable = "neon")]
fn tile_sums<const N: usize, const R: usize>(
    lines: &[Line],
    tile: &Tile<'_>,
    register: usize,
    first: usize,
) -> [[int32x4_t; R]; N] {
    const LINES: usize = 16;
    let rows = tile.scales.len();
    let mut sums = [[[vdupq_n_s32(0); 2]; R]; N];
    let lines = lines.chunks(LINES);
    let values = tile.values.chunks(LINES * LINE_COLS * rows);
    for (lines, values) in lines.zip(values) {
        let mut acc = [[[vdupq_n_s16(0); 2]; R]; N];
        for (line, values) in lines.iter().zip(values.chunks_exact(LINE_COLS * rows)) {
            let packed = load_registers::<R>(line, register);
            macro_rules! field {
                ($s:literal, $codes:expr) => {
                    let codes: [uint8x16_t; R] = $codes;
                    let values = &values[4 * ($s * rows + first)..][..4 * N];
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let q = broadcast(values, i);
                        for (acc, codes) in acc.iter_mut().zip(codes) {
                            let codes = vreinterpretq_s8_u8(codes);
                            acc[0] = vmlal_s8(acc[0], vget_low_s8(codes), vget_low_s8(q));
                            acc[1] = vmlal_high_s8(acc[1], codes, q);
                        }
                    }
                };
            }
            field!(0, lowest(packed));
            field!(1, shifted::<2, R>(packed));
            field!(2, shifted::<4, R>(packed));
            field!(3, shifted::<6, R>(packed));
        }
        for (sum, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
            *sum = [vpadalq_s16(sum[0], acc[0]), vpadalq_s16(sum[1], acc[1])];
        }
    }
    sums.map(|sums| sums.map(|[low, high]| vpaddq_s32(low, high)))
}

/// `Σ code · q` of 32 rows with one row of activations: bound by memory, so the codes of the lower
/// three fields are masked without a shift. Fields 0 and 3 share an accumulator, fields 1 and 2
/// have their own, whose sums are multiples of 4 and 16. (Field 3 must be shifted: `sdot` would
/// read its upper bit as a sign.)
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn row_sums_dotprod(lines: &[Line], tile: &Tile<'_>) -> [int32x4_t; LINE_REGISTERS] {
    let masks = [vdupq_n_u8(0x03), vdupq_n_u8(0x0c), vdupq_n_u8(0x30)];
    let mut acc = [[vdupq_n_s32(0); 3]; LINE_REGISTERS];
    for (line, values) in lines.iter().zip(tile.values.as_chunks::<LINE_COLS>().0) {
        let q = load_values(values);
        for (packed, acc) in load_registers::<LINE_REGISTERS>(line, 0)
            .into_iter()
            .zip(&mut acc)
        {
            acc[0] = dot::<0>(acc[0], vandq_u8(packed, masks[0]), q);
            acc[1] = dot::<1>(acc[1], vandq_u8(packed, masks[1]), q);
            acc[2] = dot::<2>(acc[2], vandq_u8(packed, masks[2]), q);
            acc[0] = dot::<3>(acc[0], vshrq_n_u8::<6>(packed), q);
        }
    }
    let mut sums = [vdupq_n_s32(0); LINE_REGISTERS];
    for (sum, [one, four, sixteen]) in sums.iter_mut().zip(acc) {
        *sum = vaddq_s32(
            one,
            vaddq_s32(vshrq_n_s32::<2>(four), vshrq_n_s32::<4>(sixteen)),
        );
    }
    sums
}

/// `Σ code · q` of the `4 · R` rows of weights from `register` on with `N` rows of a tile from
/// `first` on.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn tile_sums_dotprod<const N: usize, const R: usize>(
    lines: &[Line],
    tile: &Tile<'_>,
    register: usize,
    first: usize,
) -> [[int32x4_t; R]; N] {
    let rows = tile.scales.len();
    let mut acc = [[vdupq_n_s32(0); R]; N];
    for (line, values) in lines.iter().zip(tile.values.chunks_exact(LINE_COLS * rows)) {
        let packed = load_registers::<R>(line, register);
        macro_rules! field {
            ($s:literal, $codes:expr) => {
                let codes: [uint8x16_t; R] = $codes;
                let values = &values[4 * ($s * rows + first)..][..4 * N];
                let (fours, rest) = acc.as_chunks_mut::<4>();
                let (values_of_fours, values_of_rest) = values.as_chunks::<16>();
                for (acc, values) in fours.iter_mut().zip(values_of_fours) {
                    let q = load_values(values);
                    let [a, b, c, d] = acc;
                    for r in 0..R {
                        a[r] = dot::<0>(a[r], codes[r], q);
                        b[r] = dot::<1>(b[r], codes[r], q);
                        c[r] = dot::<2>(c[r], codes[r], q);
                        d[r] = dot::<3>(d[r], codes[r], q);
                    }
                }
                for (i, acc) in rest.iter_mut().enumerate() {
                    let q = broadcast(values_of_rest, i);
                    for (acc, codes) in acc.iter_mut().zip(codes) {
                        *acc = dot::<0>(*acc, codes, q);
                    }
                }
            };
        }
        field!(0, lowest(packed));
        field!(1, shifted::<2, R>(packed));
        field!(2, shifted::<4, R>(packed));
        field!(3, shifted::<6, R>(packed));
    }
    acc
}
