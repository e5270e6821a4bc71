//! Ternary products of many rows: looks up three eighths of the products while `vpdpbusd` computes
//! the others.
//!
//! `vpdpbusd` computes 64 products per cycle and core on Zen 4: it runs on two of the four vector
//! ports, and a 512-bit instruction occupies a port for two cycles. `vpermw`, which looks up 32
//! words of 16 bits, can run on a port that `vpdpbusd` leaves free, and the addition of the result
//! on another. A field of 1.67 bits is an index without further decoding: one lookup gives the sum
//! of three products in each of 32 lanes. So each three columns of each row of activations have a
//! table of the 27 sums that their values can form. A table takes 64 bytes. A thread builds the
//! tables once for all blocks of a matrix that it multiplies, and reads them from the second-level
//! cache.
//!
//! Lanes are rows of weights. A line has a dword for each row, which is a lower and an upper word
//! for different columns. A register takes the lower words of rows 0–15 in its even lanes and the
//! lower words of rows 16–31 in its odd lanes; another register takes the upper words in the same
//! way.

use std::arch::{asm, x86_64::*};
use std::cell::RefCell;
use std::ops::Range;

use super::ternary::{
    GROUP_COLS, Masks, PREFETCH_BYTES, Sums, TilePlace, activation_sums, add_lines_shifted,
    add_products, field, prefetch, shifted_field,
};

use super::vector::{broadcast, load_half};
use crate::layout::activations::{Activations, Tile};
use crate::layout::lines::{LINE_COLS, Line};
use crate::layout::packing::Group;
use crate::sets::output::Output;
use crate::weights::matrix::TernaryMatrix;

/// Number of fields of a group that are looked up, from the first on.
const LOOKED_UP: usize = 3;
/// Tables of a row of activations for a group: one for each byte of a dword in these fields.
const GROUP_TABLES: usize = 4 * LOOKED_UP;
/// Number of groups whose looked-up sums fit into 16 bits: 7 · 12 · 3 · 128 = 32,256.
const RUN_GROUPS: usize = 7;

/// The sums `Σ (ti − 1) · qi` for each index t0 + 3 t1 + 9 t2 of three weights; the last five
/// entries are unused.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Table([i16; 32]);

thread_local! {
    /// The tables of a tile. Kept, so that a step allocates nothing.
    static TABLES: RefCell<Vec<Table>> = const { RefCell::new(Vec::new()) };
}

/// `y = Σ w · q / s · scale` for the given blocks of rows of a matrix of 1.67 bits and one tile of
/// activation rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(crate) fn ternary_tile(
    matrix: &TernaryMatrix,
    blocks: Range<usize>,
    tile: usize,
    activations: &Activations,
    output: &Output<'_>,
) {
    let place = TilePlace::new(tile, activations, output);
    macro_rules! rows {
        ($($n:literal),*) => {
            match place.tile.scales.len() {
                $($n => multiply::<$n>(matrix, blocks, &place),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    rows!(1, 2, 3, 4, 5, 6, 7, 8);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn multiply<const N: usize>(matrix: &TernaryMatrix, blocks: Range<usize>, place: &TilePlace<'_>) {
    if blocks.is_empty() {
        return;
    }
    let masks = Masks::new();
    TABLES.with_borrow_mut(|tables| {
        let groups = matrix.groups(blocks.start).0.len();
        if tables.len() < groups * GROUP_TABLES * N {
            tables.resize(groups * GROUP_TABLES * N, Table([0; 32]));
        }
        let tables = &mut tables[..groups * GROUP_TABLES * N];
        let looked_up = make_tables::<N>(place.tile.values, tables);
        for block in blocks {
            let sums = mixed::<N>(
                matrix.groups(block),
                &place.tile,
                tables,
                &looked_up,
                &masks,
            );
            place.store(block, matrix.scale(block), &sums);
        }
    });
}

/// The weight −1, 0 or 1 at each place of a field.
const fn weights(field: u8) -> [i8; 3] {
    [
        (field % 3) as i8 - 1,
        (field / 3 % 3) as i8 - 1,
        (field / 9) as i8 - 1,
    ]
}

/// For each index, signed factors of the four bytes q0 + 128, q1 + 128, q2 + 128 and 128: the first
/// pair for the first two bytes, the second for the other two. The two sums together are w0 q0 + w1
/// q1 + w2 q2.
const FACTORS: [[[i8; 2]; 32]; 2] = {
    let mut factors = [[[0; 2]; 32]; 2];
    let mut index = 0;
    while index < 27 {
        let [w0, w1, w2] = weights(index as u8);
        factors[0][index] = [w0, w1];
        factors[1][index] = [w2, -(w0 + w1 + w2)];
        index += 1;
    }
    factors
};

/// Fills the tables `[group, field and byte, row]` of a tile of `N` rows, and returns the sum of
/// each row's values in them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn make_tables<const N: usize>(values: &[i8], tables: &mut [Table]) -> [i32; N] {
    let factors = FACTORS.each_ref().map(|factors| load(factors));
    // From three dwords and a dword of zeros: for each j, byte j of two of them, twice.
    let pairs = _mm_setr_epi8(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
    let others = _mm_setr_epi8(8, 12, 8, 12, 9, 13, 9, 13, 10, 14, 10, 14, 11, 15, 11, 15);
    let mut sums = [_mm_setzero_si128(); N];
    for (values, tables) in values
        .chunks_exact(GROUP_COLS * N)
        .zip(tables.chunks_exact_mut(GROUP_TABLES * N))
    {
        let (dwords, _) = values.as_chunks::<4>();
        for (field, tables) in tables.chunks_exact_mut(4 * N).enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                let dword = |t: usize| {
                    i32::from_le_bytes(dwords[(3 * field + t) * N + row].map(i8::cast_unsigned))
                };
                let signed = _mm_setr_epi32(dword(0), dword(1), dword(2), 0);
                *sum = _mm_dpbusd_epi32(*sum, _mm_set1_epi8(1), signed);
                let bytes = _mm_xor_si128(signed, _mm_set1_epi8(i8::MIN));
                let in_each_lane = |places| _mm512_broadcast_i32x4(_mm_shuffle_epi8(bytes, places));
                let (pairs, others) = (in_each_lane(pairs), in_each_lane(others));
                macro_rules! table {
                    ($j:literal, $same:literal) => {
                        let first =
                            _mm512_maddubs_epi16(_mm512_shuffle_epi32::<$same>(pairs), factors[0]);
                        let second =
                            _mm512_maddubs_epi16(_mm512_shuffle_epi32::<$same>(others), factors[1]);
                        let table = &mut tables[$j * N + row].0;
                        // SAFETY: 64 writable bytes; the store needs no alignment.
                        unsafe {
                            _mm512_storeu_si512(
                                table.as_mut_ptr().cast(),
                                _mm512_add_epi16(first, second),
                            )
                        };
                    };
                }
                table!(0, 0x00);
                table!(1, 0x55);
                table!(2, 0xaa);
                table!(3, 0xff);
            }
        }
    }
    sums.map(|sum| {
        let pairs = _mm_add_epi32(sum, _mm_shuffle_epi32::<0x4e>(sum));
        _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<0xb1>(pairs)))
    })
}

/// Lanes of 16 bits with an even number.
const EVEN: u32 = 0x5555_5555;

/// For each index, twice, the weight + 1 at one place of a field.
const CODES: [[u8; 64]; 3] = {
    let mut codes = [[0; 64]; 3];
    let mut index = 0;
    while index < 64 {
        let weights = weights(index as u8 % 32);
        let mut i = 0;
        while i < 3 {
            codes[i][index] = (weights[i] + 1) as u8;
            i += 1;
        }
        index += 1;
    }
    codes
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn load<T>(from: &T) -> __m512i {
    const { assert!(size_of::<T>() == 64) };
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(std::ptr::from_ref(from).cast()) }
}

/// A barrier for the compiler: the computation of this register and all reads before it stay before
/// the code that follows. Without it the compiler moves lookups far ahead and runs out of registers
/// for their results.
macro_rules! in_this_order {
    ($register:expr) => {
        // SAFETY: no instruction.
        unsafe { asm!("/* {} */", inout(zmm_reg) $register, options(nostack, preserves_flags)) }
    };
}

/// `Σ w · q` of 32 rows with the `N` rows of a tile, of groups in 1.67 bits and lines of 2 bits
/// after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn mixed<const N: usize>(
    (groups, lines): (&[Group], &[Line]),
    tile: &Tile<'_>,
    tables: &[Table],
    looked_up: &[i32; N],
    masks: &Masks,
) -> [Sums; N] {
    let mut acc: [Sums; N] = [[_mm512_setzero_si512(); 2]; N];
    for ((acc, sum), looked_up) in acc
        .iter_mut()
        .zip(activation_sums::<N>(tile))
        .zip(looked_up)
    {
        *acc = [_mm512_set1_epi32(looked_up - sum); 2];
    }
    let (values, rest) = tile.values.split_at(groups.len() * GROUP_COLS * N);
    let runs = groups
        .chunks(RUN_GROUPS)
        .zip(values.chunks(RUN_GROUPS * GROUP_COLS * N));
    for ((groups, values), tables) in runs.zip(tables.chunks(RUN_GROUPS * GROUP_TABLES * N)) {
        // Sums of 16 bits: rows 0–15 in the even lanes, rows 16–31 in the odd ones.
        let mut found = [_mm512_setzero_si512(); N];
        let parts = groups.iter().zip(values.chunks_exact(GROUP_COLS * N));
        for ((group, values), tables) in parts.zip(tables.chunks_exact(GROUP_TABLES * N)) {
            for half_line in group.as_flattened().chunks_exact(64) {
                _mm_prefetch::<_MM_HINT_T1>(half_line.as_ptr().wrapping_add(PREFETCH_BYTES).cast());
            }
            let half = |line: usize, half: usize| load_half(&group[line], half);
            // The 16-bit words of a field: first those with bytes 0 and 1 of its dwords, then those
            // with bytes 2 and 3.
            let lower =
                |f| _mm512_mask_mov_epi16(_mm512_slli_epi32::<16>(half(f, 1)), EVEN, half(f, 0));
            let upper =
                |f| _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(half(f, 0)), !EVEN, half(f, 1));
            let second = |words| _mm512_srli_epi16::<8>(words);
            // Multiplies by place $t of field $f, and looks $words up in the tables in the same
            // loop.
            macro_rules! multiply {
                ($fields:ident, $f:literal, $t:literal $(, $words:expr, $table:literal)?) => {
                    let codes = $fields.map(|fields| _mm512_permutexvar_epi8(fields, load(&CODES[$t])));
                    $(let words = $words;)?
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let q = broadcast(values, (3 * $f + $t) * N + i);
                        acc[0] = _mm512_dpbusd_epi32(acc[0], codes[0], q);
                        acc[1] = _mm512_dpbusd_epi32(acc[1], codes[1], q);
                        $(
                            let sums = _mm512_permutexvar_epi16(words, load(&tables[$table * N + i]));
                            found[i] = _mm512_add_epi16(found[i], sums);
                            in_this_order!(found[i]);
                        )?
                        in_this_order!(acc[0]);
                        in_this_order!(acc[1]);
                    }
                };
            }
            let fields = [field::<3>(group, 0, masks), field::<3>(group, 1, masks)];
            let words = lower(0);
            multiply!(fields, 3, 0, words, 0);
            multiply!(fields, 3, 1, second(words), 1);
            let words = upper(0);
            multiply!(fields, 3, 2, words, 2);
            let fields = [field::<4>(group, 0, masks), field::<4>(group, 1, masks)];
            multiply!(fields, 4, 0, second(words), 3);
            let words = lower(1);
            multiply!(fields, 4, 1, words, 4);
            multiply!(fields, 4, 2, second(words), 5);
            let fields = [field::<5>(group, 0, masks), field::<5>(group, 1, masks)];
            let words = upper(1);
            multiply!(fields, 5, 0, words, 6);
            multiply!(fields, 5, 1, second(words), 7);
            let words = lower(2);
            multiply!(fields, 5, 2, words, 8);
            let fields = [field::<6>(group, 0, masks), field::<6>(group, 1, masks)];
            multiply!(fields, 6, 0, second(words), 9);
            let words = upper(2);
            multiply!(fields, 6, 1, words, 10);
            multiply!(fields, 6, 2, second(words), 11);
            let fields = [field::<7>(group, 0, masks), field::<7>(group, 1, masks)];
            multiply!(fields, 7, 0);
            multiply!(fields, 7, 1);
            multiply!(fields, 7, 2);
        }
        let low = _mm512_set1_epi32(1);
        let high = _mm512_set1_epi32(1 << 16);
        for (acc, found) in acc.iter_mut().zip(found) {
            acc[0] = _mm512_dpwssd_epi32(acc[0], found, low);
            acc[1] = _mm512_dpwssd_epi32(acc[1], found, high);
        }
    }
    add_lines_shifted!(acc, lines, rest, masks);
    acc
}
