//! Table lookup: ternary weights kept as the indices of pairs (TL1) or triples (TL2), and products
//! that look them up.
//!
//! Two ternary weights have 9 combinations and three have 27, so two or three neighbouring
//! activations have only that many products. A kernel computes them once for each row of
//! activations, and a shuffle instruction looks them up for 32 rows of weights at a time. The
//! weights are never unpacked.
//!
//! ```text
//! pairs:    index of the weights (a, b):     3a + b + 4,     0 to 8
//! triples:  index of the weights (a, b, c):  |9a + 3b + c|,  0 to 13; and a sign, 1 if 9a + 3b + c < 0
//!
//! line of 16 columns, 128 bytes: four runs of 32 bytes; byte r of a run = row r of the block
//!     low nibble of byte r of run i = pair 2i (columns 4i, 4i + 1), high nibble = pair 2i + 1
//! unit of 24 columns, 160 bytes: four such runs of triples (columns 6i to 6i + 2, 6i + 3 to 6i + 5), then a run of signs
//!     bit f of byte r = the sign of triple f (columns 3f to 3f + 2)
//!
//! columns:  TL1 = lines;  TL2 = units, then lines for the columns beyond the last whole unit
//! chunk of a block of 32 rows:  up to 32 lines, or up to 16 units and, in the last chunk, the lines
//! matrix:   the first chunk of all blocks, the second chunk of all blocks, …
//! ```
//!
//! The codes equal those in the TL1 and TL2 file formats: 2 bits and 1⅔ bits per weight. Only the
//! order of the runs differs. Lines and units have eight fields (pairs or triples) each. The width
//! of a chunk is chosen so that the tables of its columns fit into the first-level cache and leave
//! room for the weights: the tables stay there while the thread reads one stream of weights.
//!
//! The tables are exact. A product has 9 bits and a sign, so it is stored as two signed bytes: its
//! rounded quotient by [`RADIX`] and the remainder. Kernels look the two up and add them
//! separately. A byte holds the sum of eight quotients or eight remainders, so sums are widened
//! once for each line or unit.

use std::ops::Range;

use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES, LINE_COLS, Line};

/// Columns of a unit of triples.
pub(crate) const UNIT_COLS: usize = 24;
/// Bytes of a unit.
pub(crate) const UNIT_BYTES: usize = BLOCK_ROWS * UNIT_COLS * 5 / 24;
/// Units in a chunk: their tables take 4 KiB, or 8 with signs.
const CHUNK_UNITS: usize = 16;
/// Lines in a chunk: their tables take 8 KiB.
const CHUNK_LINES: usize = 32;
/// The bytes of a unit.
pub(crate) type Unit = [u8; UNIT_BYTES];
/// Pairs in a line, triples in a unit.
pub(crate) const FIELDS: usize = 8;
/// The weight of the high byte of a table entry. It is odd, so rounding leaves |low| ≤ 15, and
/// eight low bytes add up to at most 120. Products are at most 3 · 128 = 384, so |high| ≤ 12, and
/// eight high bytes add up to at most 96.
pub(crate) const RADIX: i16 = 31;

/// How the columns of a block or chunk are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Units of triples, which come first.
    pub units: usize,
    /// Lines of pairs.
    pub lines: usize,
}

impl Cut {
    /// TL1: pairs only.
    pub fn pairs(cols: usize) -> Self {
        Self {
            units: 0,
            lines: cols.div_ceil(LINE_COLS),
        }
    }

    /// TL2: triples, and pairs for the rest.
    pub fn triples(cols: usize) -> Self {
        Self {
            units: cols / UNIT_COLS,
            lines: (cols % UNIT_COLS).div_ceil(LINE_COLS),
        }
    }

    /// Bytes of 32 rows.
    pub fn block_bytes(self) -> usize {
        self.units * UNIT_BYTES + self.lines * LINE_BYTES
    }

    /// Columns, including the padding of the last line.
    pub fn cols(self) -> usize {
        self.units * UNIT_COLS + self.lines * LINE_COLS
    }

    /// The chunks of a block.
    pub fn chunks(self) -> impl Iterator<Item = LookupChunk> {
        let mut rest = self;
        let mut next = LookupChunk {
            cut: Self { units: 0, lines: 0 },
            first_col: 0,
            first_byte: 0,
        };
        std::iter::from_fn(move || {
            next.first_col += next.cut.cols();
            next.first_byte += next.cut.block_bytes();
            next.cut.units = rest.units.min(CHUNK_UNITS);
            rest.units -= next.cut.units;
            // Only the last, incomplete unit leaves columns for lines.
            next.cut.lines = if rest.units == 0 {
                rest.lines.min(CHUNK_LINES)
            } else {
                0
            };
            rest.lines -= next.cut.lines;
            (next.cut.cols() > 0).then_some(next)
        })
    }

    /// The units and the lines of a chunk.
    #[inline(always)]
    pub fn split(self, packed: &[u8]) -> (&[Unit], &[Line]) {
        let (units, lines) = packed.split_at(self.units * UNIT_BYTES);
        (units.as_chunks().0, lines.as_chunks().0)
    }
}

/// A range of columns of every block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookupChunk {
    pub cut: Cut,
    pub first_col: usize,
    /// Bytes of one block in all chunks before this one.
    first_byte: usize,
}

impl LookupChunk {
    /// Where the chunk of a block lies in a matrix of `num_blocks` blocks.
    pub fn place(&self, block: usize, num_blocks: usize) -> Range<usize> {
        let len = self.cut.block_bytes();
        let start = self.first_byte * num_blocks + block * len;
        start..start + len
    }
}

/// Packs the columns of a chunk of `[BLOCK_ROWS, cols]` codes 0, 1, 2, a weight + 1.
pub(crate) fn pack_chunk(codes: &[i8], cols: usize, chunk: &LookupChunk, packed: &mut [u8]) {
    let LookupChunk { cut, first_col, .. } = *chunk;
    let (units, lines) = packed.split_at_mut(cut.units * UNIT_BYTES);
    for (row, codes) in codes.chunks_exact(cols).enumerate() {
        let codes = &codes[first_col..cols.min(first_col + cut.cols())];
        let (in_units, in_lines) = codes.split_at(cut.units * UNIT_COLS);
        for (codes, unit) in in_units
            .as_chunks()
            .0
            .iter()
            .zip(units.as_chunks_mut::<UNIT_BYTES>().0)
        {
            pack_unit_row(codes, &mut unit[row..]);
        }
        let (whole, rest) = in_lines.as_chunks::<LINE_COLS>();
        let mut lines = lines.as_chunks_mut::<LINE_BYTES>().0.iter_mut();
        for (codes, line) in whole.iter().zip(&mut lines) {
            pack_line_row(codes, &mut line[row..]);
        }
        for line in lines {
            // Columns past the end are zero weights.
            let mut codes = [1; LINE_COLS];
            codes[..rest.len()].copy_from_slice(rest);
            pack_line_row(&codes, &mut line[row..]);
        }
    }
}

/// Packs 24 codes of one row into every 32nd byte of `unit`.
#[inline(always)]
fn pack_unit_row(codes: &[i8; UNIT_COLS], unit: &mut [u8]) {
    // The value of three codes a, b, c is 9a + 3b + c + 13.
    let value = |field: usize| {
        (9 * codes[3 * field] + 3 * codes[3 * field + 1] + codes[3 * field + 2]) as u8
    };
    let values: [u8; FIELDS] = std::array::from_fn(value);
    for (run, pair) in values.as_chunks::<2>().0.iter().enumerate() {
        unit[run * BLOCK_ROWS] = pair[0].abs_diff(13) | pair[1].abs_diff(13) << 4;
    }
    let signs = values.iter().enumerate().fold(0, |signs, (field, value)| {
        signs | u8::from(*value < 13) << field
    });
    unit[4 * BLOCK_ROWS] = signs;
}

/// Packs 16 codes of one row into every 32nd byte of `line`.
#[inline(always)]
fn pack_line_row(codes: &[i8; LINE_COLS], line: &mut [u8]) {
    for (run, four) in codes.as_chunks::<4>().0.iter().enumerate() {
        // The value of two codes a, b is 3a + b + 4.
        line[run * BLOCK_ROWS] = ((3 * four[0] + four[1]) | ((3 * four[2] + four[3]) << 4)) as u8;
    }
}

/// Unpacks a chunk into the columns that it holds of `[BLOCK_ROWS, cols]` codes 0, 1, 2.
pub(crate) fn unpack_chunk(packed: &[u8], cols: usize, chunk: &LookupChunk, codes: &mut [i8]) {
    let LookupChunk { cut, first_col, .. } = *chunk;
    let (units, lines) = cut.split(packed);
    for (row, codes) in codes.chunks_exact_mut(cols).enumerate() {
        let codes = &mut codes[first_col..cols.min(first_col + cut.cols())];
        let (in_units, in_lines) = codes.split_at_mut(cut.units * UNIT_COLS);
        for (codes, unit) in in_units
            .as_chunks_mut::<UNIT_COLS>()
            .0
            .iter_mut()
            .zip(units)
        {
            for (field, codes) in codes.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                let index = (unit[field / 2 * BLOCK_ROWS + row] >> (4 * (field % 2)) & 15) as i8;
                let value = 13
                    + if unit[4 * BLOCK_ROWS + row] >> field & 1 == 1 {
                        -index
                    } else {
                        index
                    };
                *codes = [value / 9, value / 3 % 3, value % 3];
            }
        }
        for (codes, line) in in_lines.chunks_mut(LINE_COLS).zip(lines) {
            for (field, codes) in codes.chunks_mut(2).enumerate() {
                let index = (line[field / 2 * BLOCK_ROWS + row] >> (4 * (field % 2)) & 15) as i8;
                for (code, of_field) in codes.iter_mut().zip([index / 3, index % 3]) {
                    *code = of_field;
                }
            }
        }
    }
}

/// The weights of each index: `[weight of the field, index]`.
type Weights<const N: usize> = [[i16; 16]; N];

pub(crate) const PAIRS: Weights<2> = {
    let mut weights = [[0; 16]; 2];
    let mut index = 0;
    while index < 9 {
        weights[0][index] = index as i16 / 3 - 1;
        weights[1][index] = index as i16 % 3 - 1;
        index += 1;
    }
    weights
};

pub(crate) const TRIPLES: Weights<3> = {
    let mut weights = [[0; 16]; 3];
    let mut index = 0;
    while index < 14 {
        let value = index as i16 + 13;
        weights[0][index] = value / 9 - 1;
        weights[1][index] = value / 3 % 3 - 1;
        weights[2][index] = value % 3 - 1;
        index += 1;
    }
    weights
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stand_for_their_weights() {
        let pairs = (0..9).map(|index| 3 * PAIRS[0][index] + PAIRS[1][index] + 4);
        assert!(pairs.eq(0..9));
        let triples =
            (0..14).map(|index| 9 * TRIPLES[0][index] + 3 * TRIPLES[1][index] + TRIPLES[2][index]);
        assert!(triples.eq(0..14));
    }

    #[test]
    fn blocks_take_2_bits_per_weight_in_pairs_and_1_67_in_triples() {
        for cols in [48, 96, 2592, 6912, 8640] {
            assert_eq!(Cut::pairs(cols).block_bytes(), BLOCK_ROWS * cols / 4);
            assert_eq!(Cut::triples(cols).block_bytes(), BLOCK_ROWS * cols * 5 / 24);
        }
        // 106 units of 24 columns, and 16 columns in pairs.
        assert_eq!(
            Cut::triples(2560).block_bytes(),
            BLOCK_ROWS * (2544 * 5 / 24 + 16 / 4)
        );
        assert_eq!(Cut::triples(23), Cut { units: 0, lines: 2 });
    }
}
