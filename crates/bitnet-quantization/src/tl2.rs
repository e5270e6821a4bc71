//! TL2: triples of weights as a 4-bit index and a sign bit, in tiles for table lookup on x86; one
//! f32 scale per tensor.
//!
//! The triple (a, b, c) is `v = 9a + 3b + c`, −13 to 13, stored as |v| and a sign. Columns beyond
//! the last whole block of BK, a multiple of 32, are stored in pairs as in TL1 (`3a + b + 4`).
//!
//! ```text
//! triples:  32 bytes hold six columns of 32 rows; high nibble: the first triple, low nibble: the second
//! signs:    sixteen u16 hold 24 columns of 32 rows; word r % 16, bit 15 − (2 · triple + r / 16)
//! pairs:    32 bytes hold four columns of 32 rows; high nibble: the first pair
//!   the byte of row r among 32 is (r/8 with 1 and 2 exchanged) · 8 + r % 8
//!
//! order, slowest first:  tile of rows (BM) · block of columns (BK; 32 for pairs) · 32 rows · columns
//!
//! triples | signs | pairs | zeros up to the reserved size | scale: f32 | padding: 28 bytes
//! ```
//! No file states the tile: it was chosen when the writing program was built.

use std::ops::Range;

use bitnet_kernels::Pool;

use crate::codes::expect_ternary;
use crate::error::{Error, Result, expect_len, expect_rows, num_weights, read_scale, write_scale};
use crate::pieces::for_each_piece;
use crate::scaling::{Rounding, round_rows};
use crate::tl1::{self, QUADS, pair_index};

const FORMAT: &str = "TL2";
/// Rows that share a run of 32 bytes.
const GROUP: usize = 32;
/// Columns that share sign words.
const TRIPLE_UNIT: usize = 24;
/// Columns of a block of pairs.
const PAIR_BLOCK: usize = 32;

/// The tile of a TL2 tensor; every tile handles 32 rows together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// BM: rows of a tile.
    pub tile_rows: usize,
    /// BK: columns of a block of triples.
    pub block_cols: usize,
}

const fn tile(tile_rows: usize, block_cols: usize) -> Tile {
    Tile {
        tile_rows,
        block_cols,
    }
}

/// The tiles of the published models by shape (rows, cols).
const KNOWN: [((usize, usize), Tile); 10] = [
    // Shapes of bitnet_b1_58-3B.
    ((3200, 8640), tile(160, 96)),
    ((3200, 3200), tile(320, 96)),
    ((8640, 3200), tile(320, 96)),
    // Shapes of bitnet_b1_58-large.
    ((1536, 4096), tile(256, 96)),
    ((1536, 1536), tile(128, 192)),
    ((4096, 1536), tile(256, 96)),
    // Shapes of Llama3-8B-1.58.
    ((14336, 4096), tile(256, 96)),
    ((4096, 14336), tile(128, 96)),
    ((1024, 4096), tile(256, 96)),
    ((4096, 4096), tile(128, 96)),
];

impl Tile {
    /// The tile of the published models with this shape.
    pub fn known(rows: usize, cols: usize) -> Option<Self> {
        KNOWN
            .iter()
            .find(|(shape, _)| *shape == (rows, cols))
            .map(|(_, tile)| *tile)
    }

    /// The tile for writing a matrix of this shape: the known one, else tiles of up to 256 rows and
    /// blocks of 96 columns, which leave the fewest columns in pairs. `None` if TL2 cannot hold the
    /// shape: rows and columns must be multiples of 32, the columns at least 256.
    pub fn choose(rows: usize, cols: usize) -> Option<Self> {
        Self::known(rows, cols).or_else(|| {
            let tile = Self {
                tile_rows: tl1::largest_divisor(rows, GROUP, 256)?,
                block_cols: 96,
            };
            let layout = Layout::new(tile, rows, cols).ok()?;
            layout.expect_room(rows).is_ok().then_some(tile)
        })
    }
}

/// Where the parts of one tensor are.
struct Layout {
    tile: Tile,
    cols: usize,
    /// Columns in triples; the rest is in pairs.
    triple_cols: usize,
    signs_start: usize,
    pairs_start: usize,
    pairs_end: usize,
}

impl Layout {
    fn new(tile: Tile, rows: usize, cols: usize) -> Result<Self> {
        num_weights(FORMAT, rows, cols)?;
        let refuse = |rule| {
            Err(Error::Shape {
                format: FORMAT,
                rows,
                cols,
                rule,
            })
        };
        let Tile {
            tile_rows,
            block_cols,
        } = tile;
        if tile_rows == 0 || !tile_rows.is_multiple_of(GROUP) || !rows.is_multiple_of(tile_rows) {
            return refuse("BM must be a multiple of 32 and divide the rows");
        }
        if block_cols == 0 || !block_cols.is_multiple_of(24) {
            return refuse("BK must be a multiple of 24");
        }
        let triple_cols = cols / block_cols * block_cols;
        if !(cols - triple_cols).is_multiple_of(PAIR_BLOCK) {
            return refuse("the columns beyond the last whole block must be a multiple of 32");
        }
        let signs_start = rows * triple_cols / 6;
        let pairs_start = signs_start + rows * triple_cols / 24;
        let pairs_end = pairs_start + rows * (cols - triple_cols) / 4;
        Ok(Self {
            tile,
            cols,
            triple_cols,
            signs_start,
            pairs_start,
            pairs_end,
        })
    }

    /// The size of the tensor; an error if the pairs do not fit into it.
    fn expect_room(&self, rows: usize) -> Result<usize> {
        let size = size_bytes(rows, self.cols)?;
        if self.pairs_end > size - 32 {
            let rule = "the columns in pairs are more than the format reserves room for";
            return Err(Error::Shape {
                format: FORMAT,
                rows,
                cols: self.cols,
                rule,
            });
        }
        Ok(size)
    }

    /// Calls `visit(byte, signs, col)` for each 24 columns of triples of a group of 32 rows: the
    /// position of their four runs of 32 bytes among the triples, the position of their sixteen
    /// words among the signs, and the first column.
    fn for_each_triple_unit(&self, group: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let Tile {
            tile_rows,
            block_cols,
        } = self.tile;
        let num_blocks = self.triple_cols / block_cols;
        let (tile, inner) = (group * GROUP / tile_rows, group * GROUP % tile_rows / GROUP);
        for block in 0..num_blocks {
            let start = (tile * num_blocks + block) * (tile_rows / GROUP) + inner;
            for i in 0..block_cols / TRIPLE_UNIT {
                let unit = start * (block_cols / TRIPLE_UNIT) + i;
                let col = block * block_cols + i * TRIPLE_UNIT;
                visit(unit * 4 * GROUP, unit * GROUP, col);
            }
        }
    }

    /// Calls `visit(byte, col)` for each run of 32 bytes of pairs of a group of 32 rows: its
    /// position among the pairs, and its first column.
    fn for_each_pair_run(&self, group: usize, mut visit: impl FnMut(usize, usize)) {
        let tile_rows = self.tile.tile_rows;
        let num_blocks = (self.cols - self.triple_cols) / PAIR_BLOCK;
        let (tile, inner) = (group * GROUP / tile_rows, group * GROUP % tile_rows / GROUP);
        for block in 0..num_blocks {
            let unit = (tile * num_blocks + block) * (tile_rows / GROUP) + inner;
            for i in 0..8 {
                let col = self.triple_cols + block * PAIR_BLOCK + i * 4;
                visit((unit * 8 + i) * GROUP, col);
            }
        }
    }

    /// The positions of the units and runs of a group of 32 rows, in the order of the columns.
    fn places(&self, group: usize) -> (Vec<(usize, usize)>, Vec<usize>) {
        let (mut units, mut runs) = (Vec::new(), Vec::new());
        self.for_each_triple_unit(group, |byte, signs, _| {
            units.push((byte, self.signs_start + signs))
        });
        self.for_each_pair_run(group, |byte, _| runs.push(self.pairs_start + byte));
        (units, runs)
    }

    /// The triples, signs and pairs of each tile of rows. out: the whole tensor.
    fn tiles<'a>(&self, rows: usize, out: &'a mut [u8]) -> Vec<[&'a mut [u8]; 3]> {
        let (codes, pairs) = out[..self.pairs_end].split_at_mut(self.pairs_start);
        let (triples, signs) = codes.split_at_mut(self.signs_start);
        let num_tiles = rows / self.tile.tile_rows;
        let mut sections =
            [triples, signs, pairs].map(|section| (section.len() / num_tiles, section));
        let next = || {
            sections
                .each_mut()
                .map(|(len, rest)| rest.split_off_mut(..*len).unwrap_or_default())
        };
        std::iter::repeat_with(next).take(num_tiles).collect()
    }

    /// Packs 32 rows. weights: `[32, cols]`; group: its index in the tile; sections: triples, signs
    /// and pairs of the tile.
    fn pack_group(
        &self,
        weights: &[i8],
        group: usize,
        [triples, signs, pairs]: &mut [&mut [u8]; 3],
    ) {
        let at = |r: usize, col: usize| &weights[r * self.cols + col..];
        self.for_each_triple_unit(group, |byte, sign, col| {
            signs[sign..sign + GROUP].fill(0);
            for r in 0..GROUP {
                let mut word = 0u16;
                for (i, w) in at(r, col)[..TRIPLE_UNIT]
                    .as_chunks::<6>()
                    .0
                    .iter()
                    .enumerate()
                {
                    let first = 9 * w[0] + 3 * w[1] + w[2];
                    let second = 9 * w[3] + 3 * w[4] + w[5];
                    triples[byte + i * GROUP + place(r)] =
                        first.unsigned_abs() << 4 | second.unsigned_abs();
                    word |= (u16::from(first < 0) << 2 | u16::from(second < 0)) << (13 - 4 * i);
                }
                let word = (word >> (r / 16)).to_le_bytes();
                signs[sign + 2 * (r % 16)] |= word[0];
                signs[sign + 2 * (r % 16) + 1] |= word[1];
            }
        });
        self.for_each_pair_run(group, |byte, col| {
            for r in 0..GROUP {
                let w = at(r, col);
                pairs[byte + place(r)] = pair_index(w[0], w[1]) << 4 | pair_index(w[2], w[3]);
            }
        });
    }
}

/// The byte of row `r` among 32: the second and the third eight rows are exchanged.
fn place(r: usize) -> usize {
    [0, 16, 8, 24][r / 8] + r % 8
}

/// The three weights of an index 0…13; indices from 16 on give the negatives. Indices 14 and 15
/// give weights 2 and 3.
static TRIPLES: [[i8; 3]; 32] = {
    let mut triples = [[0; 3]; 32];
    let mut i = 0;
    while i < 14 {
        // The digits of i + 13 in base three, each less one.
        let v = i as i8 + 13;
        let [a, b, c] = [v / 9 - 1, v / 3 % 3 - 1, v % 3 - 1];
        triples[i] = [a, b, c];
        triples[i + 16] = [-a, -b, -c];
        i += 1;
    }
    [triples[14], triples[15], triples[30], triples[31]] = [[2; 3], [3; 3], [2; 3], [3; 3]];
    triples
};

/// Bytes of a `[rows, cols]` tensor: the space for the three sections (as if 256 columns were in
/// pairs), rounded up to 32, then the scale and its padding.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    num_weights(FORMAT, rows, cols)?;
    let Some(triples) = cols.checked_sub(256) else {
        return Err(Error::Shape {
            format: FORMAT,
            rows,
            cols,
            rule: "at least 256 columns",
        });
    };
    let reserved = (triples * rows / 3 * 5 / 8) + (256 * rows / 2 * 4 / 8);
    Ok(reserved.next_multiple_of(32) + 32)
}

/// The scale of a `[rows, cols]` tensor, which multiplies its weights.
pub fn scale(bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
    let size = size_bytes(rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), size)?;
    read_scale(&bytes[size - 32..])
}

/// Unpacks `range` of the rows of a tensor into weights −1, 0, 1.
///
/// bytes: the whole tensor, `size_bytes(rows, cols)`; out: `[range.len(), cols]`. An index without
/// weights is an error naming its place.
pub fn unpack_rows(
    bytes: &[u8],
    tile: Tile,
    rows: usize,
    cols: usize,
    range: Range<usize>,
    out: &mut [i8],
) -> Result<()> {
    let layout = Layout::new(tile, rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), layout.expect_room(rows)?)?;
    expect_rows(FORMAT, &range, rows)?;
    expect_len(FORMAT, "output", out.len(), range.len() * cols)?;
    let (mut units, mut runs) = (Vec::new(), Vec::new());
    for (row, out) in range.zip(out.chunks_exact_mut(cols)) {
        if (units.is_empty() && runs.is_empty()) || row.is_multiple_of(GROUP) {
            (units, runs) = layout.places(row / GROUP);
        }
        let (triples, pairs) = out.split_at_mut(layout.triple_cols);
        unpack_triples(bytes, &units, row % GROUP, triples);
        for (quad, run) in pairs.as_chunks_mut::<4>().0.iter_mut().zip(&runs) {
            *quad = QUADS[usize::from(bytes[run + place(row % GROUP)])];
        }
        let wrong_pair = |(col, code)| (layout.triple_cols + col, code);
        if let Some((col, code)) =
            wrong_triple(triples).or_else(|| tl1::wrong_pair(pairs).map(wrong_pair))
        {
            return Err(Error::Code {
                format: FORMAT,
                row,
                col,
                code,
            });
        }
    }
    Ok(())
}

/// units: from [`Layout::places`]; r: the row among 32; out: its columns that are in triples.
fn unpack_triples(bytes: &[u8], units: &[(usize, usize)], r: usize, out: &mut [i8]) {
    for (out, &(byte, signs)) in out.as_chunks_mut::<TRIPLE_UNIT>().0.iter_mut().zip(units) {
        let word = signs + 2 * (r % 16);
        // The sign of triple t is now bit 15 − 2t.
        let word = u16::from_le_bytes([bytes[word], bytes[word + 1]]) << (r / 16);
        let runs = &bytes[byte..byte + 4 * GROUP];
        for (i, six) in out.as_chunks_mut::<6>().0.iter_mut().enumerate() {
            let indices = usize::from(runs[i * GROUP + place(r)]);
            let signs = usize::from(word >> (13 - 4 * i));
            let (first, second) = six.split_at_mut(3);
            first.copy_from_slice(&TRIPLES[indices >> 4 | signs << 2 & 16]);
            second.copy_from_slice(&TRIPLES[indices & 15 | signs << 4 & 16]);
        }
    }
}

/// The column and index of the first triple without weights.
fn wrong_triple(weights: &[i8]) -> Option<(usize, u8)> {
    if !weights.iter().fold(false, |wrong, &w| wrong | (w > 1)) {
        return None;
    }
    let col = weights.iter().position(|&w| w > 1)?;
    Some((col, weights[col] as u8 + 12))
}

/// Packs weights −1, 0, 1 and their scale. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub fn pack(
    weights: &[i8],
    tile: Tile,
    rows: usize,
    cols: usize,
    scale: f32,
    out: &mut [u8],
) -> Result<()> {
    pack_rows(weights, tile, rows, cols, 0..rows, scale, out)
}

/// Packs `range` of the rows, which begins and ends at multiples of 32, and the scale into a
/// tensor's bytes; other rows stay unchanged. weights: `[range.len(), cols]`; out: the whole
/// tensor, `size_bytes(rows, cols)`.
pub fn pack_rows(
    weights: &[i8],
    tile: Tile,
    rows: usize,
    cols: usize,
    range: Range<usize>,
    scale: f32,
    out: &mut [u8],
) -> Result<()> {
    let layout = Layout::new(tile, rows, cols)?;
    expect_len(FORMAT, "tensor", out.len(), layout.expect_room(rows)?)?;
    expect_rows(FORMAT, &range, rows)?;
    if !range.start.is_multiple_of(GROUP) || !range.end.is_multiple_of(GROUP) {
        return Err(Error::Shape {
            format: FORMAT,
            rows,
            cols,
            rule: "rows are packed in groups of 32",
        });
    }
    expect_len(FORMAT, "input", weights.len(), range.len() * cols)?;
    expect_ternary(FORMAT, cols, weights)?;
    let (body, tail) = out.split_at_mut(out.len() - 32);
    body[layout.pairs_end..].fill(0);
    let (mut tiles, groups) = (layout.tiles(rows, body), tile.tile_rows / GROUP);
    for (group, weights) in (range.start / GROUP..).zip(weights.chunks_exact(GROUP * cols)) {
        layout.pack_group(weights, group % groups, &mut tiles[group / groups]);
    }
    write_scale(tail, scale)
}

/// Rounds weights and packs them. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub(crate) fn quantize(
    weights: &[f32],
    tile: Tile,
    rows: usize,
    cols: usize,
    rounding: Rounding,
    out: &mut [u8],
    pool: &Pool,
) -> Result<()> {
    let layout = Layout::new(tile, rows, cols)?;
    expect_len(FORMAT, "tensor", out.len(), layout.expect_room(rows)?)?;
    let (body, tail) = out.split_at_mut(out.len() - 32);
    write_scale(tail, rounding.scale)?;
    body[layout.pairs_end..].fill(0);
    let tiles = weights
        .chunks_exact(tile.tile_rows * cols)
        .zip(layout.tiles(rows, body));
    for_each_piece(pool, weights.len(), tiles, |_, (weights, mut tile)| {
        let mut rounded = vec![0; GROUP * cols];
        for (group, weights) in weights.chunks_exact(GROUP * cols).enumerate() {
            round_rows(weights, rounding.one, &mut rounded);
            layout.pack_group(&rounded, group, &mut tile);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{hex_sha256, lcg_weights};

    #[test]
    fn the_sections_equal_the_golden_bytes() {
        let (layout, bytes) = packed(64, 192);
        let (triples, signs) = bytes.split_at(layout.signs_start);
        assert_eq!((triples.len(), signs.len()), (2048, 512));
        let expected = "a6b94433d972bb0a69097e3408844792c9756fb91caab68919c7a3a4fa6686d5";
        assert_eq!(hex_sha256(triples), expected);
        let expected = "38ec0c6136d2af77eb5820693bc57948b464f6fa25f27b2542079093022ba376";
        assert_eq!(hex_sha256(signs), expected);

        // The block is wider than the matrix, so all columns are in pairs.
        let (_, bytes) = packed(64, 64);
        assert_eq!(bytes.len(), 1024);
        let expected = "775e2ab3bfc94d98fd488f9ee6976d3d6ca51b2718c5dd9cba107bdc23858d1f";
        assert_eq!(hex_sha256(&bytes), expected);
    }

    /// The three sections of a matrix that may be too narrow for a tensor.
    fn packed(rows: usize, cols: usize) -> (Layout, Vec<u8>) {
        let layout = Layout::new(tile(32, 96), rows, cols).unwrap();
        let mut bytes = vec![0; layout.pairs_end];
        let weights = lcg_weights(rows * cols);
        for (weights, mut tile) in weights
            .chunks_exact(32 * cols)
            .zip(layout.tiles(rows, &mut bytes))
        {
            layout.pack_group(weights, 0, &mut tile);
        }
        (layout, bytes)
    }
}
