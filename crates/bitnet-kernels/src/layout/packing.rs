//! [`Packing`]: how the weights of a matrix lie in memory.
//!
//! **2 bits.** A line is 128 bytes, the weights of 32 rows in 16 columns:
//!
//! ```text
//! dword r (0..32) = row r
//!     byte j (0..4) of the dword, bits 2s..2s+1 (s 0..4)  =  weight + 1 of column 16 g + 4 s + j of line g
//! ```
//!
//! **1.67 bits.** Three weights have 27 values, which fit into five bits; six lines of 2 bits
//! become five. A byte column of the six, 24 weights, is eight fields of three:
//!
//! ```text
//! F0 … F7 of dword r, byte j:   Ff  =  t0 + 3 t1 + 9 t2,   ti = weight + 1 of column 96 g + 4 (3 f + i) + j of group g
//!
//! bit          7      6      5    4  3  2  1  0
//! line 0       F5.2   F5.1   F5.0      F0
//! line 1       F7.3   F5.4   F5.3      F1
//! line 2       F6.2   F6.1   F6.0      F2
//! line 3       F7.4   F6.4   F6.3      F3
//! line 4       F7.2   F7.1   F7.0      F4
//! ```
//!
//! F0 to F4 sit in the low bits of their bytes, so they index a table of 64 bytes without any shift
//! or mask: `vpermb` reads six bits of each index, and a table that repeats its 32 entries ignores
//! the sixth. Each table entry is three codes of 2 bits, as in a line of 2 bits. Columns that do
//! not fill a group of 96 follow in lines of 2 bits.
//!
//! **TL1 and TL2** are for table lookup: `lookup.rs` draws them.

use crate::layout::lines::{LINE_BYTES, LINE_COLS, Line};
use crate::layout::lookup::Cut;

/// Lines of 2 bits in a group.
pub(crate) const GROUP_LINES: usize = 6;
/// Lines that a group of them takes with 1.67 bits.
const PACKED_LINES: usize = 5;

/// The lines of a group in 1.67 bits.
pub(crate) type Group = [Line; PACKED_LINES];

/// How weights lie in memory. It decides how products are computed, never their results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// 2: four weights in a byte.
    #[default]
    Two,
    /// 1.67: three weights in five bits. Reads a sixth less memory, computes more.
    FiveThirds,
    /// Pairs as indices of 4 bits, 2 bits per weight, looked up.
    Tl1,
    /// Triples as an index of 4 bits and a sign, 1.67 bits per weight, looked up.
    Tl2,
}

impl Packing {
    /// All packings.
    pub const ALL: [Self; 4] = [Self::Two, Self::FiveThirds, Self::Tl1, Self::Tl2];

    /// Its name for `--packing`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Two => "2",
            Self::FiveThirds => "1.67",
            Self::Tl1 => "tl1",
            Self::Tl2 => "tl2",
        }
    }

    /// The packing with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|packing| packing.name() == name)
    }

    /// Bytes of six lines of 2 bits; for packings without lookup.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn group_bytes(self) -> usize {
        let lines = match self {
            Self::FiveThirds => PACKED_LINES,
            _ => GROUP_LINES,
        };
        lines * LINE_BYTES
    }

    /// How the columns are split into pairs and triples; `None` for packings without lookup.
    pub(crate) fn cut(self, cols: usize) -> Option<Cut> {
        match self {
            Self::Two | Self::FiveThirds => None,
            Self::Tl1 => Some(Cut::pairs(cols)),
            Self::Tl2 => Some(Cut::triples(cols)),
        }
    }

    /// Bytes of a block, which is [`BLOCK_ROWS`](super::lines::BLOCK_ROWS) rows of `cols` columns.
    #[must_use]
    pub fn block_bytes(self, cols: usize) -> usize {
        match self {
            Self::Two => num_lines(cols) * LINE_BYTES,
            Self::FiveThirds => {
                let (groups, lines) = groups_and_lines(cols);
                (groups * PACKED_LINES + lines) * LINE_BYTES
            }
            Self::Tl1 => Cut::pairs(cols).block_bytes(),
            Self::Tl2 => Cut::triples(cols).block_bytes(),
        }
    }
}

/// Lines of 2 bits in a block of `cols` columns.
pub(crate) fn num_lines(cols: usize) -> usize {
    cols.div_ceil(LINE_COLS)
}

/// Groups of 1.67 bits, and lines of 2 bits after them, in a block of `cols` columns.
fn groups_and_lines(cols: usize) -> (usize, usize) {
    (num_lines(cols) / GROUP_LINES, num_lines(cols) % GROUP_LINES)
}

/// The groups of 1.67 bits and the lines of 2 bits after them.
#[inline(always)]
pub(crate) fn split(packed: &[u8], cols: usize) -> (&[Group], &[Line]) {
    let (groups, _) = groups_and_lines(cols);
    let (grouped, lines) = packed
        .as_chunks::<LINE_BYTES>()
        .0
        .split_at(groups * PACKED_LINES);
    (grouped.as_chunks().0, lines)
}

/// Turns the lines of a block, 2 bits per weight, into groups of 1.67 bits and the rest.
pub(crate) fn squeeze(plain: &[Line], packed: &mut [u8]) {
    let (groups, plain_rest) = plain.as_chunks::<GROUP_LINES>();
    let (grouped, packed_rest) = packed
        .as_chunks_mut::<LINE_BYTES>()
        .0
        .split_at_mut(groups.len() * PACKED_LINES);
    packed_rest.copy_from_slice(plain_rest);
    for (from, to) in groups.iter().zip(grouped.as_chunks_mut().0) {
        squeeze_group(from, to);
    }
}

/// Eight bytes at a time in a u64: portable, and the compiler vectorises it.
#[inline(always)]
pub(crate) fn squeeze_group(plain: &[Line; GROUP_LINES], packed: &mut Group) {
    for at in 0..LINE_BYTES / 8 {
        let line = |g: usize| load8(&plain[g], at);
        // A field holds three codes: c = t0 + 4 t1 + 16 t2.
        let fields = [
            line(0) & bytes(0x3f),
            high(line(0), 6) | low(line(1), 4) << 2,
            high(line(1), 4) | low(line(2), 2) << 4,
            high(line(2), 2),
            line(3) & bytes(0x3f),
            high(line(3), 6) | low(line(4), 4) << 2,
            high(line(4), 4) | low(line(5), 2) << 4,
            high(line(5), 2),
        ];
        let f = fields.map(|c| c - (c >> 2 & bytes(3)) - 7 * high(c, 4));
        store8(&mut packed[0], at, f[0] | low(f[5], 3) << 5);
        store8(
            &mut packed[1],
            at,
            f[1] | high(f[5], 3) << 5 | (f[7] >> 3 & bytes(1)) << 7,
        );
        store8(&mut packed[2], at, f[2] | low(f[6], 3) << 5);
        store8(
            &mut packed[3],
            at,
            f[3] | high(f[6], 3) << 5 | high(f[7], 4) << 7,
        );
        store8(&mut packed[4], at, f[4] | low(f[7], 3) << 5);
    }
}

/// Turns groups of 1.67 bits and the rest into the lines of a block, 2 bits per weight.
#[inline(always)]
pub(crate) fn spread((grouped, packed_rest): (&[Group], &[Line]), plain: &mut [Line]) {
    let (groups, plain_rest) = plain.as_chunks_mut::<GROUP_LINES>();
    plain_rest.copy_from_slice(packed_rest);
    for (from, to) in grouped.iter().zip(groups) {
        spread_group(from, to);
    }
}

/// Turns a group of 1.67 bits into its lines of 2 bits.
#[inline(always)]
pub(crate) fn spread_group(packed: &Group, plain: &mut [Line; GROUP_LINES]) {
    for at in 0..LINE_BYTES / 8 {
        let line = |z: usize| load8(&packed[z], at);
        let fields = [
            low(line(0), 5),
            low(line(1), 5),
            low(line(2), 5),
            low(line(3), 5),
            low(line(4), 5),
            high(line(0), 5) | (line(1) >> 5 & bytes(3)) << 3,
            high(line(2), 5) | (line(3) >> 5 & bytes(3)) << 3,
            high(line(4), 5) | high(line(1), 7) << 3 | high(line(3), 7) << 4,
        ];
        let c = fields.map(|field| {
            // Adding 128 − n sets the highest bit of each byte that is at least n.
            let at_least = |x: u64, n: u8| high(x + bytes(128 - n), 7);
            let t2 = at_least(field, 9) + at_least(field, 18);
            let rest = field - 9 * t2;
            field + at_least(rest, 3) + at_least(rest, 6) + 7 * t2
        });
        store8(&mut plain[0], at, c[0] | low(c[1], 2) << 6);
        store8(&mut plain[1], at, high(c[1], 2) | low(c[2], 4) << 4);
        store8(&mut plain[2], at, high(c[2], 4) | c[3] << 2);
        store8(&mut plain[3], at, c[4] | low(c[5], 2) << 6);
        store8(&mut plain[4], at, high(c[5], 2) | low(c[6], 4) << 4);
        store8(&mut plain[5], at, high(c[6], 4) | c[7] << 2);
    }
}

#[inline(always)]
fn load8(line: &Line, at: usize) -> u64 {
    u64::from_le_bytes(line.as_chunks().0[at])
}

#[inline(always)]
fn store8(line: &mut Line, at: usize, value: u64) {
    line.as_chunks_mut().0[at] = value.to_le_bytes();
}

/// The same byte eight times.
#[inline(always)]
const fn bytes(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The lowest `n` bits of each byte.
#[inline(always)]
fn low(x: u64, n: u32) -> u64 {
    x & bytes((1 << n) - 1)
}

/// Each byte without its lowest `n` bits, shifted down.
#[inline(always)]
fn high(x: u64, n: u32) -> u64 {
    x >> n & bytes(0xff >> n)
}

/// Packs `[BLOCK_ROWS, cols]` codes 0, 1, 2 into the lines of one block.
pub(crate) fn pack_block(codes: &[i8], cols: usize, block: &mut [Line]) {
    for (row, codes) in codes.chunks_exact(cols).enumerate() {
        let (whole, rest) = codes.as_chunks::<LINE_COLS>();
        for (line, cols) in whole.iter().enumerate() {
            pack_line_row(cols, &mut block[line][4 * row..4 * row + 4]);
        }
        if !rest.is_empty() {
            // Columns past the end are zero weights.
            let mut cols = [1i8; LINE_COLS];
            cols[..rest.len()].copy_from_slice(rest);
            pack_line_row(&cols, &mut block[whole.len()][4 * row..4 * row + 4]);
        }
    }
}

#[inline(always)]
pub(crate) fn pack_line_row(cols: &[i8; LINE_COLS], dword: &mut [u8]) {
    let field = |s: usize| u32::from_le_bytes(std::array::from_fn(|j| cols[4 * s + j] as u8));
    let packed = field(0) | field(1) << 2 | field(2) << 4 | field(3) << 6;
    dword.copy_from_slice(&packed.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squeezing_lines_and_expanding_them_gives_the_same_lines() {
        for cols in [16, 80, 96, 112, 300] {
            let lines = num_lines(cols);
            let mut state = 1u32;
            let mut code = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) as u8 % 3
            };
            let plain: Vec<Line> = (0..lines)
                .map(|_| {
                    [(); LINE_BYTES].map(|()| code() | code() << 2 | code() << 4 | code() << 6)
                })
                .collect();
            let mut packed = vec![0xff; Packing::FiveThirds.block_bytes(cols)];
            squeeze(&plain, &mut packed);
            let mut back = vec![[0xff; LINE_BYTES]; lines];
            spread(split(&packed, cols), &mut back);
            assert_eq!(plain, back, "{cols} columns");
        }
    }
}
