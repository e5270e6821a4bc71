//! The packed form of Hugging Face safetensors: uint8 `[rows / 4, cols]`, with the scale in a
//! separate tensor.
//!
//! ```text
//! packed row i, bits 2g and 2g+1 of each byte:  row g · rows/4 + i,  as code 0, 1, 2 for −1, 0, +1
//! ```

use std::ops::Range;

use bitnet_kernels::Pool;

use crate::codes::{expect_ternary, pack_runs, quantize_runs, unpack_field};
use crate::error::{Error, Result, expect_fit, expect_len, expect_rows, num_weights};
use crate::pieces::{PIECE_WEIGHTS, for_each_piece};
use crate::scaling::Rounding;

const FORMAT: &str = "packed uint8";

/// Bytes of a `[rows, cols]` matrix: two bits per weight.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    let n = num_weights(FORMAT, rows, cols)?;
    let rule = "the number of rows must be a multiple of 4";
    expect_fit(FORMAT, rows, cols, rows.is_multiple_of(4), rule)?;
    Ok(n / 4)
}

/// Unpacks `range` of the rows into weights −1, 0, 1.
///
/// bytes: the whole matrix, `size_bytes(rows, cols)`; out: `[range.len(), cols]`. Code 3 is an
/// error naming its place.
pub fn unpack_rows(
    bytes: &[u8],
    rows: usize,
    cols: usize,
    range: Range<usize>,
    out: &mut [i8],
) -> Result<()> {
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    expect_rows(FORMAT, &range, rows)?;
    expect_len(FORMAT, "output", out.len(), range.len() * cols)?;
    for (r, out) in range.zip(out.chunks_exact_mut(cols)) {
        let (shift, packed_row) = (2 * (r / (rows / 4)), r % (rows / 4));
        let codes = &bytes[packed_row * cols..(packed_row + 1) * cols];
        if unpack_field(codes, shift, out)
            && let Some(col) = out.iter().position(|&w| w == 2)
        {
            return Err(Error::Code {
                format: FORMAT,
                row: r,
                col,
                code: 3,
            });
        }
    }
    Ok(())
}

/// Packs weights −1, 0, 1. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub fn pack(weights: &[i8], rows: usize, cols: usize, out: &mut [u8]) -> Result<()> {
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "input", weights.len(), rows * cols)?;
    expect_ternary(FORMAT, cols, weights)?;
    pack_runs(quarters(weights), out);
    Ok(())
}

/// Rounds weights and packs them. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub(crate) fn quantize(
    weights: &[f32],
    rounding: Rounding,
    out: &mut [u8],
    pool: &Pool,
) -> Result<()> {
    const LEN: usize = PIECE_WEIGHTS / 4;
    let runs = quarters(weights);
    for_each_piece(pool, weights.len(), out.chunks_mut(LEN), |index, out| {
        let runs = runs.map(|run| &run[index * LEN..][..out.len()]);
        quantize_runs(runs, rounding.one, out);
        Ok(())
    })
}

/// The rows that share a packed row, the one in the top bits first.
fn quarters<T>(weights: &[T]) -> [&[T]; 4] {
    let len = weights.len() / 4;
    [3, 2, 1, 0].map(|quarter| &weights[quarter * len..][..len])
}
