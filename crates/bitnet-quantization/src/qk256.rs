//! QK256: blocks of 256 weights of one row in 64 bytes, two bits per weight; the scale is stored
//! elsewhere.
//!
//! The codes of [`i2s_32`](crate::i2s_32), in two's complement: 0, 1, 2, 3 stand for 0, 1, −2, −1.
//!
//! ```text
//! block, 64 bytes:  byte i holds weights 4i … 4i+3, the first in the low bits
//! ```
//! If the length of a row is not a multiple of 256, zeros fill its last block.

use bitnet_kernels::Pool;

use crate::error::{Error, Result, expect_len, num_weights};
use crate::i2s_32::{pack_codes, unpack_codes};
use crate::pieces::{block_rows, for_each_piece};
use crate::scaling::{Rounding, Scaling, round_signed, scale_codes};
use crate::vectorized::vectorized;

const FORMAT: &str = "QK256";
/// Weights in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes in a block.
pub const BLOCK_BYTES: usize = 64;

/// Bytes of a `[rows, cols]` tensor.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    num_weights(FORMAT, rows, cols)?;
    Ok(num_weights(FORMAT, rows, cols.next_multiple_of(BLOCK_LEN))? / BLOCK_LEN * BLOCK_BYTES)
}

/// Quantizes weights and returns the scale of the tensor, which the caller must store.
///
/// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub fn quantize(
    weights: &[f32],
    rows: usize,
    cols: usize,
    scaling: Scaling,
    out: &mut [u8],
    pool: &Pool,
) -> Result<f32> {
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "input", weights.len(), rows * cols)?;
    let rounding = scaling.measure(weights, pool)?;
    let (row_len, row_bytes) = block_rows(rows, cols, BLOCK_LEN, BLOCK_BYTES);
    let pieces = weights.chunks(row_len).zip(out.chunks_mut(row_bytes));
    for_each_piece(pool, weights.len(), pieces, |_, (weights, out)| {
        quantize_row(weights, rounding, out);
        Ok(())
    })?;
    Ok(rounding.scale)
}

/// Dequantizes a tensor. bytes: `size_bytes(rows, cols)`; out: `[rows, cols]`.
pub fn dequantize(
    bytes: &[u8],
    scale: f32,
    rows: usize,
    cols: usize,
    out: &mut [f32],
    pool: &Pool,
) -> Result<()> {
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "output", out.len(), rows * cols)?;
    if !scale.is_finite() {
        return Err(Error::NotFinite {
            what: "scale",
            index: 0,
            value: scale,
        });
    }
    let (row_len, row_bytes) = block_rows(rows, cols, BLOCK_LEN, BLOCK_BYTES);
    let pieces = bytes.chunks(row_bytes).zip(out.chunks_mut(row_len));
    for_each_piece(pool, rows * cols, pieces, |_, (bytes, out)| {
        dequantize_row(bytes, scale, out);
        Ok(())
    })
}

vectorized! {
    fn quantize_row<'a>(weights: &'a [f32], rounding: Rounding, out: &'a mut [u8]) -> () {
        for (weights, out) in weights.chunks(BLOCK_LEN).zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
            let mut codes = [0; BLOCK_LEN];
            round_signed(weights, rounding, &mut codes);
            pack_codes(&codes, out);
        }
    }
}

vectorized! {
    fn dequantize_row<'a>(bytes: &'a [u8], scale: f32, out: &'a mut [f32]) -> () {
        for (block, out) in bytes.as_chunks::<BLOCK_BYTES>().0.iter().zip(out.chunks_mut(BLOCK_LEN)) {
            let mut codes = [0; BLOCK_LEN];
            unpack_codes(block, &mut codes);
            scale_codes(&codes, scale, out);
        }
    }
}
