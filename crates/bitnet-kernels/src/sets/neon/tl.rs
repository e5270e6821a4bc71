//! Table lookup with `tbl`: 16 rows at a time, two lookups for each pair or triple, and `mla` by ±1
//! for the signs.

use std::arch::aarch64::*;

use crate::layout::lines::BLOCK_ROWS;
use crate::layout::lookup::{Cut, FIELDS, PAIRS, RADIX, TRIPLES, UNIT_COLS};
use crate::sets::lookup::{self, Lookup, LookupTable};

pub(crate) const LOOKUP: Lookup = Lookup {
    triple_tables: 1,
    make_tables,
    add,
    finish,
};

/// Rows in a register of bytes.
const HALF: usize = BLOCK_ROWS / 2;
/// Number of units or lines whose sums fit into 16 bits: ten units give 10 · 8 · 384 = 30,720 at
/// most.
const PIECES: usize = 10;

#[target_feature(enable = "neon")]
fn make_tables(values: &[i16], cut: Cut, tables: &mut [LookupTable]) {
    let (triples, pairs) = values.split_at(cut.units * UNIT_COLS);
    let (triple_tables, pair_tables) = tables.split_at_mut(cut.units * FIELDS);
    fill(triples, &TRIPLES, triple_tables);
    fill(pairs, &PAIRS, pair_tables);
}

/// Fills a table for each `N` values: `Σ weight · value` for each index, split into two bytes.
#[inline]
#[target_feature(enable = "neon")]
fn fill<const N: usize>(values: &[i16], weights: &[[i16; 16]; N], tables: &mut [LookupTable]) {
    for (values, table) in values.as_chunks::<N>().0.iter().zip(tables) {
        for half in 0..2 {
            let mut products = vdupq_n_s16(0);
            for (value, weights) in values.iter().zip(weights) {
                products = vmlaq_n_s16(products, load_words(&weights.as_chunks().0[half]), *value);
            }
            // The quotient product / 31, rounded, is product · 33 / 1024, rounded: that is precise
            // enough, because no product lies halfway between two multiples.
            let high = vrshrq_n_s16::<10>(vmulq_n_s16(products, 33));
            let low = vmlsq_n_s16(products, high, RADIX);
            let bytes = table.0.as_chunks_mut::<8>().0;
            store(vmovn_s16(low), &mut bytes[half]);
            store(vmovn_s16(high), &mut bytes[2 + half]);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_words(words: &[i16; 8]) -> int16x8_t {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_s16(words.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(bytes: int8x8_t, to: &mut [i8; 8]) {
    // SAFETY: 8 writable bytes; the store needs no alignment.
    unsafe { vst1_s8(to.as_mut_ptr(), bytes) }
}

/// Adds `Σ w · q` of each row of a chunk.
#[target_feature(enable = "neon")]
fn add(packed: &[u8], cut: Cut, tables: &[LookupTable], sums: &mut [i32; BLOCK_ROWS]) {
    let (units, lines) = cut.split(packed);
    let (unit_tables, line_tables) = tables.as_chunks::<FIELDS>().0.split_at(cut.units);
    for (half, sums) in sums.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
        let mut dwords = [vdupq_n_s32(0); 4];
        for (units, tables) in units.chunks(PIECES).zip(unit_tables.chunks(PIECES)) {
            let mut words = [vdupq_n_s16(0); 2];
            for (unit, tables) in units.iter().zip(tables) {
                let halves = unit.as_chunks::<HALF>().0;
                // The sign of the current field is the highest bit of each byte; field 7 comes
                // first.
                let mut signs = vreinterpretq_s8_u8(load(&halves[8 + half]));
                let mut bytes = [vdupq_n_s8(0); 2];
                for run in (0..4).rev() {
                    let indices = load(&halves[2 * run + half]);
                    add_signed(
                        &mut bytes,
                        vshrq_n_u8::<4>(indices),
                        signs,
                        &tables[2 * run + 1],
                    );
                    signs = vshlq_n_s8::<1>(signs);
                    add_signed(
                        &mut bytes,
                        vandq_u8(indices, vdupq_n_u8(15)),
                        signs,
                        &tables[2 * run],
                    );
                    signs = vshlq_n_s8::<1>(signs);
                }
                widen_bytes(&mut words, bytes);
            }
            widen_words(&mut dwords, words);
        }
        for (lines, tables) in lines.chunks(PIECES).zip(line_tables.chunks(PIECES)) {
            let mut words = [vdupq_n_s16(0); 2];
            for (line, tables) in lines.iter().zip(tables) {
                let halves = line.as_chunks::<HALF>().0;
                let mut bytes = [vdupq_n_s8(0); 2];
                for run in 0..4 {
                    let indices = load(&halves[2 * run + half]);
                    add_plain(
                        &mut bytes,
                        vandq_u8(indices, vdupq_n_u8(15)),
                        &tables[2 * run],
                    );
                    add_plain(&mut bytes, vshrq_n_u8::<4>(indices), &tables[2 * run + 1]);
                }
                widen_bytes(&mut words, bytes);
            }
            widen_words(&mut dwords, words);
        }
        for (sums, dwords) in sums.as_chunks_mut::<4>().0.iter_mut().zip(dwords) {
            // SAFETY: 16 readable and writable bytes; neither access needs an alignment.
            unsafe {
                vst1q_s32(
                    sums.as_mut_ptr(),
                    vaddq_s32(vld1q_s32(sums.as_ptr()), dwords),
                )
            };
        }
    }
}

#[target_feature(enable = "neon")]
fn finish(sums: &[i32; BLOCK_ROWS], activation_scale: f32, scale: f32, out: &mut [f32]) {
    lookup::finish(sums, activation_scale, scale, out);
}

#[inline]
#[target_feature(enable = "neon")]
fn load(half: &[u8; HALF]) -> uint8x16_t {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_u8(half.as_ptr()) }
}

/// The low and the high bytes of a table.
#[inline]
#[target_feature(enable = "neon")]
fn load_table(table: &LookupTable) -> [int8x16_t; 2] {
    // SAFETY: 32 readable bytes; the loads need no alignment.
    unsafe {
        [
            vld1q_s8(table.0.as_ptr()),
            vld1q_s8(table.0.as_ptr().add(16)),
        ]
    }
}

/// Adds the table entries of the indices to the low and high bytes.
#[inline]
#[target_feature(enable = "neon")]
fn add_plain(bytes: &mut [int8x16_t; 2], indices: uint8x16_t, table: &LookupTable) {
    for (bytes, table) in bytes.iter_mut().zip(load_table(table)) {
        *bytes = vaddq_s8(*bytes, vqtbl1q_s8(table, indices));
    }
}

/// The same, but subtracts the entry where the highest bit of `signs` is set.
#[inline]
#[target_feature(enable = "neon")]
fn add_signed(
    bytes: &mut [int8x16_t; 2],
    indices: uint8x16_t,
    signs: int8x16_t,
    table: &LookupTable,
) {
    let sign = vorrq_s8(vshrq_n_s8::<7>(signs), vdupq_n_s8(1));
    for (bytes, table) in bytes.iter_mut().zip(load_table(table)) {
        *bytes = vmlaq_s8(*bytes, vqtbl1q_s8(table, indices), sign);
    }
}

/// Adds `RADIX · high + low` to the 16-bit sums of 16 rows.
#[inline]
#[target_feature(enable = "neon")]
fn widen_bytes(words: &mut [int16x8_t; 2], [low, high]: [int8x16_t; 2]) {
    let radix = vdupq_n_s8(RADIX as i8);
    words[0] = vmlal_s8(
        vaddw_s8(words[0], vget_low_s8(low)),
        vget_low_s8(high),
        vget_low_s8(radix),
    );
    words[1] = vmlal_high_s8(vaddw_high_s8(words[1], low), high, radix);
}

/// Adds the 16-bit sums to the 32-bit sums.
#[inline]
#[target_feature(enable = "neon")]
fn widen_words(dwords: &mut [int32x4_t; 4], words: [int16x8_t; 2]) {
    for (dwords, words) in dwords.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        dwords[0] = vaddw_s16(dwords[0], vget_low_s16(words));
        dwords[1] = vaddw_high_s16(dwords[1], words);
    }
}
