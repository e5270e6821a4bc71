//! TL1: pairs of weights as 4-bit indices, in tiles for table lookup on ARM; one f32 scale per
//! tensor.
//!
//! The index of the pair (a, b) is `3a + b + 4`, 0 to 8. Sixteen bytes hold four columns of sixteen
//! rows:
//!
//! ```text
//! byte r of sixteen:  row r;  high nibble: columns 4i, 4i+1;  low nibble: columns 4i+2, 4i+3
//!
//! order of the sixteens, slowest first:
//!   tile of rows (BM) · block of columns (BK) · rows of bm in the tile · columns of 256/bm · 16 rows · 4 columns
//!
//! indices: rows · cols / 4 bytes | scale: f32 | padding: 28 bytes
//! ```
//! No file states the tile: it was chosen when the writing program was built.

use std::ops::Range;

use bitnet_kernels::Pool;

use crate::codes::expect_ternary;
use crate::error::{
    Error, Result, expect_fit, expect_len, expect_rows, num_weights, read_scale, write_scale,
};
use crate::pieces::for_each_piece;
use crate::scaling::{Rounding, round_rows};

const FORMAT: &str = "TL1";
/// Rows that share a run of sixteen bytes.
const GROUP: usize = 16;

/// The tile of a TL1 tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// BM: rows of a tile.
    pub tile_rows: usize,
    /// BK: columns of a block.
    pub block_cols: usize,
    /// bm: rows handled together, 16, 32 or 64; 256/bm columns go with them.
    pub inner_rows: usize,
}

const fn tile(tile_rows: usize, block_cols: usize, inner_rows: usize) -> Tile {
    Tile {
        tile_rows,
        block_cols,
        inner_rows,
    }
}

/// The tiles of the published models by shape (rows, cols).
const KNOWN: [((usize, usize), Tile); 10] = [
    // Shapes of bitnet_b1_58-3B.
    ((3200, 8640), tile(160, 64, 32)),
    ((3200, 3200), tile(320, 128, 64)),
    ((8640, 3200), tile(320, 64, 32)),
    // Shapes of bitnet_b1_58-large.
    ((1536, 4096), tile(256, 128, 32)),
    ((1536, 1536), tile(128, 64, 64)),
    ((4096, 1536), tile(256, 128, 32)),
    // Shapes of Llama3-8B-1.58.
    ((14336, 4096), tile(256, 128, 32)),
    ((4096, 14336), tile(128, 64, 64)),
    ((1024, 4096), tile(256, 128, 32)),
    ((4096, 4096), tile(128, 64, 64)),
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
    /// blocks of up to 128 columns that divide it. `None` if TL1 cannot hold the shape: rows and
    /// columns must be multiples of 32 and 8, of 64 and 4, or both of 16.
    pub fn choose(rows: usize, cols: usize) -> Option<Self> {
        Self::known(rows, cols).or_else(|| {
            [32, 64, 16].into_iter().find_map(|inner_rows| {
                let tile_rows = largest_divisor(rows, inner_rows, 256)?;
                let block_cols = largest_divisor(cols, 256 / inner_rows, 128)?;
                Some(Self {
                    tile_rows,
                    block_cols,
                    inner_rows,
                })
            })
        })
    }

    /// Fails unless the tile divides a `[rows, cols]` matrix.
    fn expect_divides(self, rows: usize, cols: usize) -> Result<()> {
        let Self {
            tile_rows,
            block_cols,
            inner_rows,
        } = self;
        let rule = if !matches!(inner_rows, 16 | 32 | 64) {
            "bm must be 16, 32 or 64"
        } else if tile_rows == 0
            || !tile_rows.is_multiple_of(inner_rows)
            || !rows.is_multiple_of(tile_rows)
        {
            "bm must divide BM, and BM the rows"
        } else if block_cols == 0
            || !block_cols.is_multiple_of(256 / inner_rows)
            || !cols.is_multiple_of(block_cols)
        {
            "256/bm must divide BK, and BK the columns"
        } else {
            return Ok(());
        };
        Err(Error::Shape {
            format: FORMAT,
            rows,
            cols,
            rule,
        })
    }

    /// Calls `visit(byte, col)` for each run of sixteen bytes of a group of sixteen rows: the
    /// position of the run, and its first of four columns.
    fn for_each_run(self, cols: usize, group: usize, mut visit: impl FnMut(usize, usize)) {
        let Self {
            tile_rows,
            block_cols,
            inner_rows,
        } = self;
        let inner_cols = 256 / inner_rows;
        let row = group * GROUP;
        let (tile, in_tile) = (row / tile_rows, row % tile_rows);
        let (inner, in_inner) = (in_tile / inner_rows, in_tile % inner_rows);
        // inner_rows · inner_cols = 256 weights are 64 bytes.
        let inner_bytes = 64;
        let run_bytes = inner_cols / 4 * GROUP;
        for block in 0..cols / block_cols {
            let block_start = (tile * (cols / block_cols) + block) * (tile_rows * block_cols / 4);
            let inner_start = block_start + inner * (block_cols / inner_cols) * inner_bytes;
            for i in 0..block_cols / inner_cols {
                let start = inner_start + i * inner_bytes + in_inner / GROUP * run_bytes;
                for q in 0..inner_cols / 4 {
                    visit(
                        start + q * GROUP,
                        block * block_cols + i * inner_cols + q * 4,
                    );
                }
            }
        }
    }

    /// Packs sixteen rows. weights: `[16, cols]`; group: its index in the tile; codes: the tile's
    /// codes.
    fn pack_group(self, weights: &[i8], cols: usize, group: usize, codes: &mut [u8]) {
        self.for_each_run(cols, group, |byte, col| {
            for (i, b) in codes[byte..byte + GROUP].iter_mut().enumerate() {
                let quad = &weights[i * cols + col..i * cols + col + 4];
                *b = pair_index(quad[0], quad[1]) << 4 | pair_index(quad[2], quad[3]);
            }
        });
    }
}

/// The largest divisor of `n` that is a multiple of `unit` and at most `max`.
pub(crate) fn largest_divisor(n: usize, unit: usize, max: usize) -> Option<usize> {
    (1..=max / unit)
        .rev()
        .map(|times| times * unit)
        .find(|divisor| n > 0 && n.is_multiple_of(*divisor))
}

/// Bytes of a `[rows, cols]` tensor: two bits per weight, then the scale and its padding.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    let n = num_weights(FORMAT, rows, cols)?;
    let rule = "the number of weights must be a multiple of 4";
    expect_fit(FORMAT, rows, cols, n.is_multiple_of(4), rule)?;
    Ok(n / 4 + 32)
}

/// The scale of a `[rows, cols]` tensor, which multiplies its weights.
pub fn scale(bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
    let size = size_bytes(rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), size)?;
    read_scale(&bytes[size - 32..])
}

/// Unpacks `range` of the rows of a tensor into weights −1, 0, 1.
///
/// bytes: the whole tensor, `size_bytes(rows, cols)`; out: `[range.len(), cols]`. Fastest if the
/// range begins and ends at multiples of sixteen. An index above 8 is an error naming its place.
pub fn unpack_rows(
    bytes: &[u8],
    tile: Tile,
    rows: usize,
    cols: usize,
    range: Range<usize>,
    out: &mut [i8],
) -> Result<()> {
    tile.expect_divides(rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    expect_rows(FORMAT, &range, rows)?;
    expect_len(FORMAT, "output", out.len(), range.len() * cols)?;
    let mut runs = Vec::with_capacity(cols / 4);
    for (row, out) in range.clone().zip(out.chunks_exact_mut(cols)) {
        if runs.is_empty() || row.is_multiple_of(GROUP) {
            runs.clear();
            tile.for_each_run(cols, row / GROUP, |byte, _| runs.push(byte));
        }
        // Work row by row: the row's sixteenth of the runs stays in cache, and the output is
        // contiguous.
        for (quad, run) in out.as_chunks_mut::<4>().0.iter_mut().zip(&runs) {
            *quad = QUADS[usize::from(bytes[run + row % GROUP])];
        }
        if let Some((col, code)) = wrong_pair(out) {
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

/// Packs `range` of the rows, which begins and ends at multiples of sixteen, and the scale into a
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
    tile.expect_divides(rows, cols)?;
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_rows(FORMAT, &range, rows)?;
    if !range.start.is_multiple_of(GROUP) || !range.end.is_multiple_of(GROUP) {
        return Err(Error::Shape {
            format: FORMAT,
            rows,
            cols,
            rule: "rows are packed in sixteens",
        });
    }
    expect_len(FORMAT, "input", weights.len(), range.len() * cols)?;
    expect_ternary(FORMAT, cols, weights)?;
    let (codes, tail) = out.split_at_mut(rows * cols / 4);
    let mut tiles: Vec<_> = codes.chunks_exact_mut(tile.tile_rows * cols / 4).collect();
    let groups = tile.tile_rows / GROUP;
    for (group, weights) in (range.start / GROUP..).zip(weights.chunks_exact(GROUP * cols)) {
        tile.pack_group(weights, cols, group % groups, tiles[group / groups]);
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
    tile.expect_divides(rows, cols)?;
    let (codes, tail) = out.split_at_mut(rows * cols / 4);
    write_scale(tail, rounding.scale)?;
    let tiles = weights
        .chunks_exact(tile.tile_rows * cols)
        .zip(codes.chunks_exact_mut(tile.tile_rows * cols / 4));
    for_each_piece(pool, weights.len(), tiles, |_, (weights, codes)| {
        let mut rounded = vec![0; GROUP * cols];
        for (group, weights) in weights.chunks_exact(GROUP * cols).enumerate() {
            round_rows(weights, rounding.one, &mut rounded);
            tile.pack_group(&rounded, cols, group, codes);
        }
        Ok(())
    })
}

/// The index of a pair of weights.
pub(crate) fn pair_index(a: i8, b: i8) -> u8 {
    (3 * a + b + 4) as u8
}

/// The four weights of a byte: the pair of its high nibble, then the pair of its low nibble. For an
/// index above 8, the first weight of the pair is above 1.
pub(crate) static QUADS: [[i8; 4]; 256] = {
    let mut quads = [[0; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (high, low) = (byte as u8 >> 4, byte as u8 & 15);
        quads[byte] = [
            high as i8 / 3 - 1,
            high as i8 % 3 - 1,
            low as i8 / 3 - 1,
            low as i8 % 3 - 1,
        ];
        byte += 1;
    }
    quads
};

/// The column and index of the first pair for which [`QUADS`] has no weights.
pub(crate) fn wrong_pair(weights: &[i8]) -> Option<(usize, u8)> {
    if !weights.iter().fold(false, |wrong, &w| wrong | (w > 1)) {
        return None;
    }
    let col = weights.iter().position(|&w| w > 1)?;
    Some((col, pair_index(weights[col], weights[col + 1])))
}
