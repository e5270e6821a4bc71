//! The 8-bit copy of the head.
//!
//! Rows are taken 32 at a time, as in the packed matrices:
//!
//! ```text
//! line g of a block, 128 bytes:   dword r (0..32) = row r
//!     byte j (0..4) of the dword  =  integer + 128 of column 4 g + j
//! ```

use crate::layout::activations::TILE_ROWS;
use crate::layout::lines::{BLOCK_ROWS, LINE_COLS};

/// Columns in a line.
pub(crate) const SCREEN_LINE_COLS: usize = 4;

/// Integer sums of a block of rows with the planes of a tile.
pub(crate) type ScreenSums = [[i32; BLOCK_ROWS]; TILE_ROWS];

/// Packs `[BLOCK_ROWS, padded cols]` integers into the lines of one block, some lines at a time, so
/// that the written lines stay in the first-level cache until they are complete.
pub(crate) fn pack_block(integers: &[i8], padded: usize, block: &mut [u8]) {
    for (first, lines) in (0..padded)
        .step_by(LINE_COLS)
        .zip(block.chunks_exact_mut(LINE_COLS * BLOCK_ROWS))
    {
        for (lane, row) in integers.chunks_exact(padded).enumerate() {
            for (four, line) in row[first..first + LINE_COLS]
                .as_chunks::<SCREEN_LINE_COLS>()
                .0
                .iter()
                .zip(lines.as_chunks_mut::<{ SCREEN_LINE_COLS * BLOCK_ROWS }>().0)
            {
                line[4 * lane..4 * lane + 4]
                    .copy_from_slice(&four.map(|integer| integer as u8 ^ 0x80));
            }
        }
    }
}
