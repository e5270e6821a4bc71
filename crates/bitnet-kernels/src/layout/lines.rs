//! The sizes of blocks and lines, which every layout of weights shares.

/// Rows in a block. The output of each part of a matrix is padded to a multiple of it.
pub const BLOCK_ROWS: usize = 32;

/// The most columns a matrix may have, so that no i32 accumulator can overflow: codes of the
/// highest field weigh 2 · 4^3 = 128, activations at most 128, and a fourth of the columns is in
/// that field: 2^17 / 4 · 2^14 = 2^29.
pub const MAX_COLS: usize = 1 << 17;

/// Columns in a line of 2 bits.
pub const LINE_COLS: usize = 16;
/// Bytes in a line.
pub(crate) const LINE_BYTES: usize = BLOCK_ROWS * LINE_COLS / 4;
/// The bytes of a line.
pub(crate) type Line = [u8; LINE_BYTES];
