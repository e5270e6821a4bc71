//! Table lookup with `vpermb` (VBMI), which looks up the signed product of a triple in a table of
//! 32 entries, and `vpdpbusd`, which widens the sums. Registers of 256 bits: their 32 bytes are the
//! rows of a block, and all of them look into the same table.

use std::arch::x86_64::*;

use crate::layout::lines::BLOCK_ROWS;
use crate::layout::lookup::{Cut, FIELDS, RADIX, TRIPLES, UNIT_COLS};
use crate::sets::avx2::tl::{
    add_to, finish, line_sums, load, load_words, make_pair_tables, prefetch, store, table,
};
use crate::sets::lookup::{Lookup, LookupTable};

pub(crate) const LOOKUP: Lookup = Lookup {
    triple_tables: 2,
    make_tables,
    add,
    finish,
};

/// The tables of triples hold both signs, since a lookup by five bits costs the same as one by
/// four.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn make_tables(values: &[i16], cut: Cut, tables: &mut [LookupTable]) {
    let (triples, pairs) = values.split_at(cut.units * UNIT_COLS);
    let (triple_tables, pair_tables) = tables.split_at_mut(2 * FIELDS * cut.units);
    let weights = TRIPLES.map(|weights| load_words(&weights));
    for (values, [lows, highs]) in triples
        .as_chunks()
        .0
        .iter()
        .zip(triple_tables.as_chunks_mut().0)
    {
        let plus = table(values, &weights);
        let minus = _mm256_sub_epi8(_mm256_setzero_si256(), plus);
        store(_mm256_permute2x128_si256::<0x20>(plus, minus), lows);
        store(_mm256_permute2x128_si256::<0x31>(plus, minus), highs);
    }
    make_pair_tables(pairs, pair_tables);
}

/// Adds `Σ w · q` of each row of a chunk.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn add(packed: &[u8], cut: Cut, tables: &[LookupTable], sums: &mut [i32; BLOCK_ROWS]) {
    let (units, lines) = cut.split(packed);
    let (unit_tables, line_tables) = tables.split_at(2 * FIELDS * cut.units);
    let mask = _mm256_set1_epi8(0x0f);
    let mut unit_sums = [_mm256_setzero_si256(); 4];
    for (unit, tables) in units
        .iter()
        .zip(unit_tables.as_chunks::<{ 2 * FIELDS }>().0)
    {
        prefetch(unit);
        let [runs @ .., signs] = unit.as_chunks::<BLOCK_ROWS>().0 else {
            break;
        };
        let signs = load(signs);
        let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        // `signs` has the signs of the field in bit 4. `vpermb` reads five bits of each index and
        // ignores the others.
        let mut field = |field: usize, indices: __m256i, signs: __m256i| {
            let indices = _mm256_ternarylogic_epi32::<SELECT>(mask, indices, signs);
            low = _mm256_add_epi8(
                low,
                _mm256_permutexvar_epi8(indices, load_table(&tables[2 * field])),
            );
            high = _mm256_add_epi8(
                high,
                _mm256_permutexvar_epi8(indices, load_table(&tables[2 * field + 1])),
            );
        };
        macro_rules! run {
            ($i:literal, $even_signs:expr, $odd_signs:expr) => {
                let indices = load(&runs[$i]);
                field(2 * $i, indices, $even_signs);
                field(2 * $i + 1, _mm256_srli_epi16::<4>(indices), $odd_signs);
            };
        }
        run!(
            0,
            _mm256_slli_epi16::<4>(signs),
            _mm256_slli_epi16::<3>(signs)
        );
        run!(
            1,
            _mm256_slli_epi16::<2>(signs),
            _mm256_slli_epi16::<1>(signs)
        );
        run!(2, signs, _mm256_srli_epi16::<1>(signs));
        run!(
            3,
            _mm256_srli_epi16::<2>(signs),
            _mm256_srli_epi16::<3>(signs)
        );
        widen(&mut unit_sums, low, high);
    }
    add_to(sums, unit_sums);
    if !lines.is_empty() {
        add_to(sums, line_sums(lines, line_tables));
    }
}

/// Selects bits: where the first operand's bit is 1 the second operand's, else the third's.
const SELECT: i32 = 0xca;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn load_table(table: &LookupTable) -> __m256i {
    // SAFETY: 32 readable bytes, aligned to 32.
    unsafe { _mm256_load_si256(table.0.as_ptr().cast()) }
}

/// Adds `RADIX · high + low` of 32 rows to their sums, in the same order as AVX2's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn widen(sums: &mut [__m256i; 4], low: __m256i, high: __m256i) {
    for (i, sums) in sums.iter_mut().enumerate() {
        *sums = _mm256_dpbusd_epi32(*sums, _mm256_set1_epi32(1 << (8 * i)), low);
        *sums = _mm256_dpbusd_epi32(*sums, _mm256_set1_epi32(i32::from(RADIX) << (8 * i)), high);
    }
}
