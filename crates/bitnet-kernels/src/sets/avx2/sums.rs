//! Tables of sums, for many rows of activations at once.
//!
//! `vpmaddubsw` and an addition multiply 32 weights by activations. With many rows of activations
//! there is a cheaper way: four ternary weights are one of 81 combinations, so four columns of
//! activations have only 81 signed sums. This file makes these sums for 32 rows of activations at
//! once, two registers for each, and a row of weights then adds two registers for each four
//! columns: one addition with an operand in memory for 64 products. A lane is a row of activations,
//! and the weights are addresses.
//!
//! The limit is the first-level cache. It gives two registers a cycle, so 128 products, and the
//! tables of 16 columns fill 21 of its 32 KB. So the kernels take a panel of 16 columns, make its
//! tables, go through all rows of weights with them, and keep one sum for each row of weights and
//! of activations in the second-level cache until the next panel.

use std::arch::x86_64::*;
use std::ops::Range;

use super::vector::load_quarter;
use crate::layout::activations::{TILE_ROWS, WIDE_ROWS};
use crate::layout::cells::{CELL_COLS, CELL_SIGN_RUNS, SignRun};
use crate::layout::lines::{BLOCK_ROWS, LINE_COLS, Line};

/// Sums of all rows of activations in 16 bits. Lane `4 t + i` of register v is row `8 t + 4 v + i`.
pub(super) type Sums = [__m256i; 2];

/// The indices of a row of weights into the tables of a panel: a byte for each four ternary
/// weights, a bit for each sign.
pub(super) type Indices = u32;

/// The tables of a panel.
///
/// Ternary weights: four tables of the sums `Σ (ti − 1) · qi` of four columns for each index t0 + 3
/// t1 + 9 t2 + 27 t3. Table j has columns j, 4 + j, 8 + j and 12 + j of a line, which are byte j of
/// a row's dword in that line.
///
/// Signs: six tables of the sums of six or five columns of a cell, in the order of the columns. Bit
/// i of an index is 1 where column i is added, 0 where it is subtracted.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct PanelTables([Sums; NUM_SUMS]);

/// The number of sums in a table for ternary weights.
const TERNARY_SUMS: usize = 81;
/// The sums of all tables for ternary weights; the last begins 256 sums before the end, so that
/// every byte is an index of a sum.
const NUM_SUMS: usize = 3 * TERNARY_SUMS + 256;

/// A table: where its index lies in [`Indices`], and its first sum.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
    first_sum: usize,
}

impl Field {
    const fn new(shift: u32, bits: u32, first_sum: usize) -> Self {
        assert!(first_sum + (1 << bits) <= NUM_SUMS);
        Self {
            shift,
            bits,
            first_sum,
        }
    }
}

const TERNARY_FIELDS: [Field; LINE_COLS / 4] = [
    Field::new(0, 8, 0),
    Field::new(8, 8, TERNARY_SUMS),
    Field::new(16, 8, 2 * TERNARY_SUMS),
    Field::new(24, 8, 3 * TERNARY_SUMS),
];

const SIGN_FIELDS: [Field; 6] = [
    Field::new(0, 6, 0),
    Field::new(6, 6, 64),
    Field::new(12, 5, 128),
    Field::new(17, 5, 160),
    Field::new(22, 5, 192),
    Field::new(27, 5, 224),
];

/// Columns in a panel: a line, or a cell of signs.
pub(super) const fn panel_cols(signs: bool) -> usize {
    if signs { CELL_COLS } else { LINE_COLS }
}

/// The row of activations in lane `lane` of register `register` of [`widened`] sums.
pub(super) const fn row_of(register: usize, lane: usize) -> usize {
    let word = 2 * lane + register % 2;
    8 * (word / 4) + 4 * (register / 2) + word % 4
}

/// The sums in 32 bits: the even lanes of each register, then its odd lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widened(sums: Sums) -> [__m256i; 4] {
    let even = |sums| _mm256_madd_epi16(sums, _mm256_set1_epi32(1));
    let odd = |sums| _mm256_srai_epi32::<16>(sums);
    [even(sums[0]), odd(sums[0]), even(sums[1]), odd(sums[1])]
}

/// Up to four tiles of activations: the values of each, `[padded cols / 4, rows, 4]`, and its rows.
type WideValues<'a> = [(&'a [i8], usize); WIDE_ROWS / TILE_ROWS];

/// The tiles of `rows`, which `tile` gives by their index; tiles after the last row are empty.
pub(super) fn wide_values<'a>(
    rows: &Range<usize>,
    tile: impl Fn(usize) -> (&'a [i8], usize),
) -> WideValues<'a> {
    std::array::from_fn(|index| {
        let first = rows.start + index * TILE_ROWS;
        if first >= rows.end {
            return (&[][..], 0);
        }
        tile(first / TILE_ROWS)
    })
}

impl PanelTables {
    #[target_feature(enable = "avx2,f16c")]
    pub fn new() -> Self {
        Self([[_mm256_setzero_si256(); 2]; NUM_SUMS])
    }

    /// Makes the tables of panel `panel` for ternary weights or signs. Columns past the end of the
    /// values count as zeros.
    #[target_feature(enable = "avx2,f16c")]
    pub fn fill<const SIGNS: bool>(&mut self, values: &WideValues<'_>, panel: usize) {
        let first = panel * panel_cols(SIGNS) / 4;
        if SIGNS {
            let columns: [[Sums; 4]; CELL_COLS / 4] =
                std::array::from_fn(|dword| four_columns(values, first + dword));
            for field in SIGN_FIELDS {
                let columns = &columns.as_flattened()[field.shift as usize..];
                let table = &mut self.0[field.first_sum..][..1 << field.bits];
                fill_signs(&columns[..field.bits as usize], table);
            }
        } else {
            let columns: [[Sums; 4]; LINE_COLS / 4] =
                std::array::from_fn(|dword| four_columns(values, first + dword));
            for (j, field) in TERNARY_FIELDS.into_iter().enumerate() {
                let table = &mut self.0[field.first_sum..][..TERNARY_SUMS];
                fill_ternary(columns.map(|columns| columns[j]), table);
            }
        }
    }

    /// `sums + Σ w · q` of a row of weights with the columns of the panel.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn add<const SIGNS: bool>(&self, mut sums: Sums, indices: Indices) -> Sums {
        let fields: &[Field] = if SIGNS { &SIGN_FIELDS } else { &TERNARY_FIELDS };
        for field in fields {
            let index = (indices >> field.shift) as usize & ((1 << field.bits) - 1);
            // SAFETY: `Field::new` checks that every index of this number of bits has a sum.
            let found = unsafe { self.0.get_unchecked(field.first_sum + index) };
            sums = add(sums, *found);
        }
        sums
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add(a: Sums, b: Sums) -> Sums {
    [_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn subtract(a: Sums, b: Sums) -> Sums {
    [_mm256_sub_epi16(a[0], b[0]), _mm256_sub_epi16(a[1], b[1])]
}

/// Columns `4 dword` to `4 dword + 3` of all rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_columns(values: &WideValues<'_>, dword: usize) -> [Sums; 4] {
    // Within each half: the four bytes of column 0, then of 1, 2 and 3.
    let by_column = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    ));
    let [a, b, c, d] =
        values.map(|(values, rows)| _mm256_shuffle_epi8(dwords(values, rows, dword), by_column));
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (high_ab, high_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        words(_mm256_unpacklo_epi64(ab, cd)),
        words(_mm256_unpackhi_epi64(ab, cd)),
        words(_mm256_unpacklo_epi64(high_ab, high_cd)),
        words(_mm256_unpackhi_epi64(high_ab, high_cd)),
    ]
}

/// Bytes as words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn words(bytes: __m256i) -> Sums {
    [
        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
        _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(bytes)),
    ]
}

/// Dword `dword` of each row of a tile, zeros for rows and columns that it does not have.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dwords(values: &[i8], rows: usize, dword: usize) -> __m256i {
    let mut all = [0i8; 4 * TILE_ROWS];
    let bytes = 4 * rows;
    if let Some(found) = values.get(bytes * dword..bytes * (dword + 1)) {
        all[..bytes].copy_from_slice(found);
    }
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(all.as_ptr().cast()) }
}

/// One half of the lanes after the other, since nine sums of each stay in registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fill_ternary(columns: [Sums; 4], table: &mut [Sums]) {
    let zero = _mm256_setzero_si256();
    for half in 0..2 {
        let [a, b, c, d] = columns.map(|column| {
            let column = column[half];
            [_mm256_sub_epi16(zero, column), zero, column]
        });
        let low: [__m256i; 9] = std::array::from_fn(|i| _mm256_add_epi16(a[i % 3], b[i / 3]));
        for (i, sums) in table.as_chunks_mut::<9>().0.iter_mut().enumerate() {
            let high = _mm256_add_epi16(c[i % 3], d[i / 3]);
            for (sum, low) in sums.iter_mut().zip(low) {
                sum[half] = _mm256_add_epi16(high, low);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fill_signs(columns: &[Sums], table: &mut [Sums]) {
    table[0] = [_mm256_setzero_si256(); 2];
    for column in columns {
        table[0] = subtract(table[0], *column);
    }
    for (bit, column) in columns.iter().enumerate() {
        let twice = add(*column, *column);
        let (without, with) = table.split_at_mut(1 << bit);
        for (with, without) in with.iter_mut().zip(without) {
            *with = add(*without, twice);
        }
    }
}

/// The indices of 32 rows for a line of codes 0, 1 and 2. A code 3 counts as 2.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn ternary_indices(line: &Line, indices: &mut [Indices; BLOCK_ROWS]) {
    for (quarter, indices) in indices.as_chunks_mut().0.iter_mut().enumerate() {
        store_indices(ternary_index(load_quarter(line, quarter)), indices);
    }
}

/// The indices of what [`ternary_indices`] leaves out: weight 1 where a code is 3, else 0.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn indices_of_threes(line: &Line, indices: &mut [Indices; BLOCK_ROWS]) {
    for (quarter, indices) in indices.as_chunks_mut().0.iter_mut().enumerate() {
        let threes = threes(load_quarter(line, quarter));
        let codes = _mm256_add_epi8(threes, _mm256_set1_epi8(0x55));
        store_indices(ternary_index(codes), indices);
    }
}

/// 1 in each field where its code is 3, else 0.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn threes(codes: __m256i) -> __m256i {
    let both = _mm256_and_si256(codes, _mm256_srli_epi16::<1>(codes));
    _mm256_and_si256(both, _mm256_set1_epi8(0x55))
}

/// Whether some code of a line is 3.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn has_threes(line: &Line) -> bool {
    let mut any = _mm256_setzero_si256();
    for quarter in 0..4 {
        any = _mm256_or_si256(any, threes(load_quarter(line, quarter)));
    }
    _mm256_testz_si256(any, any) == 0
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store_indices(rows: __m256i, indices: &mut [Indices; 8]) {
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(indices.as_mut_ptr().cast(), rows) };
}

/// t0 + 3 t1 + 9 t2 + 27 t3 of the four codes t0 + 4 t1 + 16 t2 + 64 t3 in each byte; at most 80
/// even where a code is 3.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn ternary_index(codes: __m256i) -> __m256i {
    let nibble = _mm256_set1_epi8(15);
    let low = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 6, 7, 8, 8,
    ));
    let high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 9, 18, 18, 27, 36, 45, 45, 54, 63, 72, 72, 54, 63, 72, 72,
    ));
    _mm256_add_epi8(
        _mm256_shuffle_epi8(low, _mm256_and_si256(codes, nibble)),
        _mm256_shuffle_epi8(
            high,
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble),
        ),
    )
}

/// The indices of 32 rows for a cell of signs.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn sign_indices(cell: &[SignRun; CELL_SIGN_RUNS], indices: &mut [Indices; BLOCK_ROWS]) {
    // SAFETY: 32 readable bytes; the loads need no alignment.
    let [a, b, c, d] = cell
        .each_ref()
        .map(|run| unsafe { _mm256_loadu_si256(run.as_ptr().cast()) });
    // The rows lie in such an order that interleaving the bytes of the runs, and then the words,
    // leaves eight rows in order in each register.
    let words = [
        [_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d)],
        [_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d)],
    ];
    let rows = words.map(|[first, second]| {
        [
            _mm256_unpacklo_epi16(first, second),
            _mm256_unpackhi_epi16(first, second),
        ]
    });
    for (rows, indices) in rows.as_flattened().iter().zip(indices.as_chunks_mut().0) {
        store_indices(*rows, indices);
    }
}

/// Register i gets lane i of each register.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    // Each step swaps one bit of the lane's number with one of the register's.
    let pairs: [__m256i; 8] = std::array::from_fn(|i| {
        let (a, b) = (rows[i & !1], rows[i | 1]);
        if i % 2 == 0 {
            _mm256_unpacklo_epi32(a, b)
        } else {
            _mm256_unpackhi_epi32(a, b)
        }
    });
    // pairs[2 k]: lanes 0, 1 of both rows; pairs[2 k + 1]: lanes 2, 3.
    let fours: [__m256i; 8] = std::array::from_fn(|i| {
        let (group, lane) = (i / 4 * 4, i % 4);
        let (a, b) = (pairs[group + lane / 2], pairs[group + 2 + lane / 2]);
        if lane % 2 == 0 {
            _mm256_unpacklo_epi64(a, b)
        } else {
            _mm256_unpackhi_epi64(a, b)
        }
    });
    std::array::from_fn(|i| {
        let (a, b) = (fours[i % 4], fours[i % 4 + 4]);
        if i < 4 {
            _mm256_permute2x128_si256::<0x20>(a, b)
        } else {
            _mm256_permute2x128_si256::<0x31>(a, b)
        }
    })
}

/// Calls `store(row, first, outputs)` for each row of activations in `0..rows` and each eight rows
/// of weights from `first` on. `sums` has a row of weights each, `[32 rows of weights, 4 registers
/// of 8 lanes]`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn for_outputs(
    sums: &[[__m256i; 4]; BLOCK_ROWS],
    rows: usize,
    mut store: impl FnMut(usize, usize, __m256i),
) {
    for (quarter, sums) in sums.as_chunks::<8>().0.iter().enumerate() {
        for register in 0..4 {
            let by_row = transpose(sums.map(|sums| sums[register]));
            for (lane, sums) in by_row.into_iter().enumerate() {
                let row = row_of(register, lane);
                if row < rows {
                    store(row, 8 * quarter, sums);
                }
            }
        }
    }
}
