//! Runs: the rows or the columns of a matrix one by one, each a run of 64-byte lines.
//!
//! ```text
//! line b of a row:      byte 4 g + j (g 0..16, j 0..4), bits 2s..2s+1  =  weight + 1 of column 256 b + 16 g + 4 s + j
//!                       (the dwords that this row has in lines 16 b to 16 b + 15 of its block in a `TernaryMatrix`)
//! line b of a column:   byte 16 q + 4 t + i (q, t, i 0..4), bits 2s..2s+1  =  weight + 1 of row
//!                       256 b + 128 (t / 2) + 32 s + 16 (t % 2) + 4 q + i
//! ```
//!
//! The second is made so that interleaving the bytes of four columns and masking a field gives
//! sixteen rows in order.

use crate::layout::lines::{BLOCK_ROWS, LINE_COLS, Line};

/// Bytes in a line.
pub(crate) const RUN_LINE_BYTES: usize = 64;
/// Weights in a line.
pub(crate) const RUN_LINE_WEIGHTS: usize = 4 * RUN_LINE_BYTES;
/// Runs that a kernel takes at a time.
pub(crate) const RUNS_AT_ONCE: usize = 64;
/// Lines of a block of rows from which one line of each row is built.
pub(crate) const LINES_OF_RUN_LINE: usize = RUN_LINE_WEIGHTS / LINE_COLS;
/// Blocks of rows from which one line of a column is built.
pub(crate) const BLOCKS_OF_RUN_LINE: usize = RUN_LINE_WEIGHTS / BLOCK_ROWS;
/// Positions that a set may write past the last one that it reports.
pub(crate) const LIST_SLACK: usize = 8;

/// The row of a matrix, less `256 b`, whose weight is in a field of a byte of line `b` of a column.
pub(crate) fn row_in_column_line(byte: usize, field: usize) -> usize {
    let (q, t, i) = (byte / 16, byte / 4 % 4, byte % 4);
    128 * (t / 2) + 32 * field + 16 * (t % 2) + 4 * q + i
}

/// Copies each row of a block to a run: side by side, the dwords that the row has in the lines.
pub(crate) fn copy_rows(lines: &[Line], out: &mut [u8], run_bytes: usize) {
    for (index, lines) in lines.chunks(LINES_OF_RUN_LINE).enumerate() {
        for (row, run) in out.chunks_exact_mut(run_bytes).enumerate() {
            let run_line = &mut run[index * RUN_LINE_BYTES..(index + 1) * RUN_LINE_BYTES];
            for (dword, line) in run_line.as_chunks_mut::<4>().0.iter_mut().zip(lines) {
                dword.copy_from_slice(&line[4 * row..4 * row + 4]);
            }
        }
    }
}

/// Copies line `index` of the runs of 16 columns. Input: the lines of these columns in eight blocks
/// of rows; blocks past the end are missing. `out`: all lines of the 16 runs.
pub(crate) fn copy_columns(
    lines: &[Option<&Line>; BLOCKS_OF_RUN_LINE],
    out: &mut [[u8; RUN_LINE_BYTES]],
    run_lines: usize,
    index: usize,
) {
    for (half, lines) in lines.as_chunks::<4>().0.iter().enumerate() {
        // Byte j of `packed[field][r]` has in field s the weight of column 4 field + j in row r of
        // block s.
        let mut packed = [[0u32; BLOCK_ROWS]; 4];
        for (s, line) in lines.iter().enumerate() {
            for (r, dword) in line
                .map(|line| &line[..])
                .unwrap_or_default()
                .as_chunks::<4>()
                .0
                .iter()
                .enumerate()
            {
                let dword = u32::from_le_bytes(*dword);
                for (field, packed) in packed.iter_mut().enumerate() {
                    packed[r] |= (dword >> (2 * field) & 0x0303_0303) << (2 * s);
                }
            }
        }
        for (field, packed) in packed.iter().enumerate() {
            for (four, packed) in packed.as_chunks::<4>().0.iter().enumerate() {
                let rows = packed.map(u32::to_le_bytes);
                let byte = 16 * (four % 4) + 4 * (2 * half + four / 4);
                for j in 0..4 {
                    let line = &mut out[(4 * field + j) * run_lines + index];
                    line[byte..byte + 4]
                        .copy_from_slice(&[rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
                }
            }
        }
    }
}

/// The activations in the order of the fields of each line of a row: 64 for field 0, 64 for field
/// 1, …; zeros past the end.
pub(crate) fn arrange(
    activations: &[i8],
    run_lines: usize,
    values: &mut Vec<[i8; RUN_LINE_WEIGHTS]>,
) {
    values.clear();
    values.resize(run_lines, [0; RUN_LINE_WEIGHTS]);
    for (line, values) in activations.chunks(RUN_LINE_WEIGHTS).zip(values) {
        for (g, activations) in line.as_chunks::<LINE_COLS>().0.iter().enumerate() {
            for (s, four) in activations.as_chunks::<4>().0.iter().enumerate() {
                values[RUN_LINE_BYTES * s + 4 * g..][..4].copy_from_slice(four);
            }
        }
    }
}
