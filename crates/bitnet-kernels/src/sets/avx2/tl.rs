//! Table lookup with `vpshufb`: 32 rows at a time, two shuffles for each pair or triple, and
//! `vpsignb` for the signs.

use std::arch::x86_64::*;

use crate::layout::lines::{BLOCK_ROWS, Line};
use crate::layout::lookup::{Cut, FIELDS, PAIRS, RADIX, TRIPLES, UNIT_COLS, Unit};
use crate::sets::lookup::{Lookup, LookupTable};

pub(crate) const LOOKUP: Lookup = Lookup {
    triple_tables: 1,
    make_tables,
    add,
    finish,
};

#[target_feature(enable = "avx2")]
fn make_tables(values: &[i16], cut: Cut, tables: &mut [LookupTable]) {
    let (triples, pairs) = values.split_at(cut.units * UNIT_COLS);
    let (triple_tables, pair_tables) = tables.split_at_mut(cut.units * FIELDS);
    let weights = TRIPLES.map(|weights| load_words(&weights));
    for (values, to) in triples.as_chunks().0.iter().zip(triple_tables) {
        store(table(values, &weights), to);
    }
    make_pair_tables(pairs, pair_tables);
}

/// The tables of pairs of values.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn make_pair_tables(values: &[i16], tables: &mut [LookupTable]) {
    let weights = PAIRS.map(|weights| load_words(&weights));
    for (values, to) in values.as_chunks().0.iter().zip(tables) {
        store(table(values, &weights), to);
    }
}

/// `Σ weight · value` for each index, split into 16 low bytes and 16 high bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn table<const N: usize>(values: &[i16; N], weights: &[__m256i; N]) -> __m256i {
    let mut products = _mm256_setzero_si256();
    for (value, weights) in values.iter().zip(weights) {
        products = _mm256_add_epi16(
            products,
            _mm256_sign_epi16(_mm256_set1_epi16(*value), *weights),
        );
    }
    // The quotient product / 31, rounded, is product · 1057 / 32,768, rounded: that is precise
    // enough, because no product lies halfway between two multiples.
    let high = _mm256_mulhrs_epi16(products, _mm256_set1_epi16(1057));
    let low = _mm256_sub_epi16(products, _mm256_mullo_epi16(high, _mm256_set1_epi16(RADIX)));
    // Packing works within 128-bit halves: low 0–7, high 0–7, low 8–15, high 8–15.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_words(words: &[i16; 16]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store(bytes: __m256i, to: &mut LookupTable) {
    // SAFETY: 32 writable bytes, aligned to 32.
    unsafe { _mm256_store_si256(to.0.as_mut_ptr().cast(), bytes) }
}

/// The sums of 32 rows: dword i of register r is row 4i + r.
type Sums = [__m256i; 4];

/// Adds `Σ w · q` of each row of a chunk.
#[target_feature(enable = "avx2")]
fn add(packed: &[u8], cut: Cut, tables: &[LookupTable], sums: &mut [i32; BLOCK_ROWS]) {
    let (units, lines) = cut.split(packed);
    let (unit_tables, line_tables) = tables.split_at(FIELDS * cut.units);
    add_to(sums, unit_sums(units, unit_tables));
    if !lines.is_empty() {
        add_to(sums, line_sums(lines, line_tables));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_to(sums: &mut [i32; BLOCK_ROWS], more: Sums) {
    for (sums, more) in sums.as_chunks_mut().0.iter_mut().zip(more) {
        let sum = _mm256_add_epi32(load_dwords(sums), more);
        // SAFETY: 32 writable bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_dwords(dwords: &[i32; 8]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(dwords.as_ptr().cast()) }
}

/// `sum / s · scale`, in that order.
#[target_feature(enable = "avx2")]
pub(crate) fn finish(sums: &[i32; BLOCK_ROWS], activation_scale: f32, scale: f32, out: &mut [f32]) {
    let [a, b, c, d] = [0, 1, 2, 3].map(|r| load_dwords(&sums.as_chunks().0[r]));
    // Each 128-bit half has its own rows: 0–3 and 16–19, 4–7 and 20–23, 8–11 and 24–27, 12–15 and
    // 28–31.
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    let quads = [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ];
    let rows = [
        _mm256_permute2x128_si256::<0x20>(quads[0], quads[1]),
        _mm256_permute2x128_si256::<0x20>(quads[2], quads[3]),
        _mm256_permute2x128_si256::<0x31>(quads[0], quads[1]),
        _mm256_permute2x128_si256::<0x31>(quads[2], quads[3]),
    ];
    for (rows, out) in rows.into_iter().zip(out.as_chunks_mut::<8>().0) {
        let quotient = _mm256_div_ps(_mm256_cvtepi32_ps(rows), _mm256_set1_ps(activation_scale));
        // SAFETY: 8 writable floats; the store needs no alignment.
        unsafe {
            _mm256_storeu_ps(
                out.as_mut_ptr(),
                _mm256_mul_ps(quotient, _mm256_set1_ps(scale)),
            )
        };
    }
}

/// The sums of 32 rows over units of triples.
#[inline]
#[target_feature(enable = "avx2")]
fn unit_sums(units: &[Unit], tables: &[LookupTable]) -> Sums {
    // The sums of ten units fit into 16 bits: 10 · 8 · 384 = 30,720 at most.
    const UNITS: usize = 10;
    let mask = _mm256_set1_epi8(0x0f);
    let one = _mm256_set1_epi8(1);
    let mut sums = [_mm256_setzero_si256(); 4];
    for (units, tables) in units
        .chunks(UNITS)
        .zip(tables.as_chunks::<FIELDS>().0.chunks(UNITS))
    {
        let mut words = [_mm256_setzero_si256(); 2];
        for (unit, tables) in units.iter().zip(tables) {
            prefetch(unit);
            let [runs @ .., signs] = unit.as_chunks().0 else {
                break;
            };
            // The sign of the current field is the highest bit of each byte; field 7 comes first.
            let mut signs = load(signs);
            let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            let mut field = |indices: __m256i, table: &LookupTable| {
                let indices = _mm256_and_si256(indices, mask);
                // Set the lowest bit, since `vpsignb` turns its operand to zero where the sign is
                // zero.
                let sign = _mm256_or_si256(signs, one);
                let (lows, highs) = broadcast(table);
                low = _mm256_add_epi8(
                    low,
                    _mm256_sign_epi8(_mm256_shuffle_epi8(lows, indices), sign),
                );
                high = _mm256_add_epi8(
                    high,
                    _mm256_sign_epi8(_mm256_shuffle_epi8(highs, indices), sign),
                );
                signs = _mm256_add_epi8(signs, signs);
            };
            for (run, [even, odd]) in runs.iter().zip(tables.as_chunks().0).rev() {
                let indices = load(run);
                field(_mm256_srli_epi16::<4>(indices), odd);
                field(indices, even);
            }
            widen_bytes(&mut words, low, high);
        }
        widen_words(&mut sums, words);
    }
    sums
}

/// The sums of 32 rows over lines of pairs.
///
/// Never inlined into a function with AVX-512: there the compiler would load the tables with
/// instructions that occupy the shuffle units, which costs a fifth of the speed.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(crate) fn line_sums(lines: &[Line], tables: &[LookupTable]) -> Sums {
    // The sums of fifteen lines fit into 16 bits: 15 · 8 · 256 = 30,720 at most.
    const LINES: usize = 15;
    let mask = _mm256_set1_epi8(0x0f);
    let mut sums = [_mm256_setzero_si256(); 4];
    for (lines, tables) in lines
        .chunks(LINES)
        .zip(tables.as_chunks::<FIELDS>().0.chunks(LINES))
    {
        let mut words = [_mm256_setzero_si256(); 2];
        for (line, tables) in lines.iter().zip(tables) {
            prefetch(line);
            let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            let mut field = |indices: __m256i, table: &LookupTable| {
                let indices = _mm256_and_si256(indices, mask);
                let (lows, highs) = broadcast(table);
                low = _mm256_add_epi8(low, _mm256_shuffle_epi8(lows, indices));
                high = _mm256_add_epi8(high, _mm256_shuffle_epi8(highs, indices));
            };
            for (run, [even, odd]) in line.as_chunks().0.iter().zip(tables.as_chunks().0) {
                let indices = load(run);
                field(indices, even);
                field(_mm256_srli_epi16::<4>(indices), odd);
            }
            widen_bytes(&mut words, low, high);
        }
        widen_words(&mut sums, words);
    }
    sums
}

/// How far ahead of the current position the codes are prefetched.
const PREFETCH_BYTES: usize = 2048;

/// Prefetches the codes [`PREFETCH_BYTES`] after a unit or line. The hardware prefetcher also
/// follows the reads of the tables and does not run far enough ahead of the codes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn prefetch(piece: &[u8]) {
    for start in (0..piece.len()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(piece.as_ptr().wrapping_add(PREFETCH_BYTES + start).cast());
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load(run: &[u8; BLOCK_ROWS]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(run.as_ptr().cast()) }
}

/// The low and the high bytes of a table, each in both halves of a register.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(table: &LookupTable) -> (__m256i, __m256i) {
    // SAFETY: 32 readable bytes, aligned to 32.
    let (low, high) = unsafe {
        (
            _mm_load_si128(table.0.as_ptr().cast()),
            _mm_load_si128(table.0.as_ptr().add(16).cast()),
        )
    };
    (
        _mm256_broadcastsi128_si256(low),
        _mm256_broadcastsi128_si256(high),
    )
}

/// Adds `RADIX · high + low` of 32 rows to their 16-bit sums: even rows, odd rows.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_bytes(words: &mut [__m256i; 2], low: __m256i, high: __m256i) {
    for (words, shift) in words.iter_mut().zip([0, 8]) {
        let low = _mm256_maddubs_epi16(_mm256_set1_epi16(1 << shift), low);
        let high = _mm256_maddubs_epi16(_mm256_set1_epi16(RADIX << shift), high);
        *words = _mm256_add_epi16(*words, _mm256_add_epi16(low, high));
    }
}

/// Adds the 16-bit sums to the 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_words(sums: &mut Sums, words: [__m256i; 2]) {
    for (i, sums) in sums.iter_mut().enumerate() {
        let which = _mm256_set1_epi32(if i < 2 { 1 } else { 1 << 16 });
        *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(words[i % 2], which));
    }
}
