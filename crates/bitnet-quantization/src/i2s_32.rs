//! I2S-32: blocks of 32 weights of one row in ten bytes, two bits per weight and a scale per block.
//!
//! Codes are in two's complement: 0, 1, 2, 3 stand for 0, 1, −2, −1.
//!
//! ```text
//! block, 10 bytes:  byte i < 8 holds weights 4i … 4i+3, the first in the low bits | scale: f16
//! ```
//! If the length of a row is not a multiple of 32, zeros fill its last block.

use bitnet_kernels::Pool;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result, expect_len, num_weights};
use crate::pieces::{block_rows, for_each_piece};
use crate::scaling::{Scaling, max_bits, moved, not_finite, round_signed};
use crate::vectorized::vectorized;

const FORMAT: &str = "I2S-32";
/// Weights in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes in a block.
pub const BLOCK_BYTES: usize = 10;
/// Number of blocks whose scales are converted at once.
const BATCH: usize = 16;

/// Bytes of a `[rows, cols]` tensor.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    num_weights(FORMAT, rows, cols)?;
    Ok(num_weights(FORMAT, rows, cols.next_multiple_of(BLOCK_LEN))? / BLOCK_LEN * BLOCK_BYTES)
}

/// Quantizes weights, each block with its own scale.
///
/// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`. The measured scale decides the codes and
/// is then rounded to f16. A scale above 65504 is an error; a scale below 3e-8 becomes 0, and its
/// block becomes zeros.
pub fn quantize(
    weights: &[f32],
    rows: usize,
    cols: usize,
    scaling: Scaling,
    out: &mut [u8],
    pool: &Pool,
) -> Result<()> {
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "input", weights.len(), rows * cols)?;
    let (row_len, row_bytes) = block_rows(rows, cols, BLOCK_LEN, BLOCK_BYTES);
    let pieces = weights.chunks(row_len).zip(out.chunks_mut(row_bytes));
    for_each_piece(pool, weights.len(), pieces, |row, (weights, out)| {
        let quantized = quantize_row(weights, scaling, out);
        quantized.map_err(|error| match error {
            Error::NotFinite { what: "weight", .. } => moved(error, row * row_len),
            error => moved(error, row * (row_bytes / BLOCK_BYTES)),
        })
    })
}

/// Dequantizes a tensor. bytes: `size_bytes(rows, cols)`; out: `[rows, cols]`. A scale that is not
/// finite is an error.
pub fn dequantize(
    bytes: &[u8],
    rows: usize,
    cols: usize,
    out: &mut [f32],
    pool: &Pool,
) -> Result<()> {
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "output", out.len(), rows * cols)?;
    let (row_len, row_bytes) = block_rows(rows, cols, BLOCK_LEN, BLOCK_BYTES);
    let pieces = bytes.chunks(row_bytes).zip(out.chunks_mut(row_len));
    for_each_piece(pool, rows * cols, pieces, |row, (bytes, out)| {
        let dequantized = dequantize_row(bytes, out);
        dequantized.map_err(|error| moved(error, row * (row_bytes / BLOCK_BYTES)))
    })
}

vectorized! {
    fn quantize_row<'a>(weights: &'a [f32], scaling: Scaling, out: &'a mut [u8]) -> Result<()> {
        let (blocks, rest) = weights.as_chunks::<BLOCK_LEN>();
        let (whole, last) = out.as_chunks_mut::<BLOCK_BYTES>().0.split_at_mut(blocks.len());
        for (batch, (blocks, out)) in blocks.chunks(BATCH).zip(whole.chunks_mut(BATCH)).enumerate() {
            quantize_blocks(blocks, scaling, batch * BATCH, out)?;
        }
        let mut filled = [0.0; BLOCK_LEN];
        filled[..rest.len()].copy_from_slice(rest);
        quantize_blocks(&[filled][..last.len()], scaling, blocks.len(), last)
    }
}

/// Quantizes up to [`BATCH`] blocks. first: the index of the first block.
#[inline(always)]
fn quantize_blocks(
    blocks: &[[f32; BLOCK_LEN]],
    scaling: Scaling,
    first: usize,
    out: &mut [[u8; BLOCK_BYTES]],
) -> Result<()> {
    let mut scales = [0.0; BATCH];
    for (index, ((block, scale), out)) in blocks.iter().zip(&mut scales).zip(&mut *out).enumerate()
    {
        let max = f32::from_bits(max_bits(block));
        if !max.is_finite() {
            return Err(moved(not_finite(block), (first + index) * BLOCK_LEN));
        }
        let rounding = scaling.of_block(block, max)?;
        let mut codes = [0; BLOCK_LEN];
        round_signed(block, rounding, &mut codes);
        pack_codes(&codes, &mut out[..8]);
        *scale = rounding.scale;
    }
    let mut halves = [f16::ZERO; BATCH];
    halves.convert_from_f32_slice(&scales);
    for (index, (half, out)) in halves.iter().zip(out).enumerate() {
        if !half.is_finite() {
            return Err(Error::NotFinite {
                what: "scale of block",
                index: first + index,
                value: half.to_f32(),
            });
        }
        out[8..].copy_from_slice(&half.to_le_bytes());
    }
    Ok(())
}

vectorized! {
    fn dequantize_row<'a>(bytes: &'a [u8], out: &'a mut [f32]) -> Result<()> {
        let (whole, rest) = out.as_chunks_mut::<BLOCK_LEN>();
        let (blocks, last) = bytes.as_chunks::<BLOCK_BYTES>().0.split_at(whole.len());
        for (batch, (blocks, out)) in blocks.chunks(BATCH).zip(whole.chunks_mut(BATCH)).enumerate() {
            dequantize_blocks(blocks, batch * BATCH, out)?;
        }
        let mut filled = [[0.0; BLOCK_LEN]];
        dequantize_blocks(last, blocks.len(), &mut filled)?;
        rest.copy_from_slice(&filled[0][..rest.len()]);
        Ok(())
    }
}

/// Dequantizes up to [`BATCH`] blocks. first: the index of the first block.
#[inline(always)]
fn dequantize_blocks(
    blocks: &[[u8; BLOCK_BYTES]],
    first: usize,
    out: &mut [[f32; BLOCK_LEN]],
) -> Result<()> {
    let (mut halves, mut scales) = ([f16::ZERO; BATCH], [0.0; BATCH]);
    for (half, block) in halves.iter_mut().zip(blocks) {
        *half = f16::from_le_bytes([block[8], block[9]]);
    }
    halves.convert_to_f32_slice(&mut scales);
    if let Some(index) = scales.iter().position(|scale| !scale.is_finite()) {
        return Err(Error::NotFinite {
            what: "scale of block",
            index: first + index,
            value: scales[index],
        });
    }
    // Work in runs of a batch: the compiler unrolls loops as short as a block before it can
    // vectorise them.
    let (mut bytes, mut codes) = ([[0; 8]; BATCH], [0; BATCH * BLOCK_LEN]);
    for (bytes, block) in bytes.iter_mut().zip(blocks) {
        bytes.copy_from_slice(&block[..8]);
    }
    unpack_codes(bytes.as_flattened(), &mut codes);
    let scales = scales.map(|scale| [scale; BLOCK_LEN]);
    for ((x, &code), scale) in out
        .as_flattened_mut()
        .iter_mut()
        .zip(&codes)
        .zip(scales.as_flattened())
    {
        *x = f32::from(code) * scale;
    }
    Ok(())
}

/// Packs codes −2, −1, 0, 1, four in each byte, the first in the low bits. codes: four for each
/// byte of `out`.
#[inline(always)]
pub(crate) fn pack_codes(codes: &[i8], out: &mut [u8]) {
    for (byte, codes) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
        let fields = u32::from_le_bytes(codes.map(|code| code as u8)) & 0x0303_0303;
        // Moves field j, at bit 8j, to bit 24 + 2j. The other parts of the product stay below bit
        // 24 or overflow.
        *byte = (fields.wrapping_mul(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6) >> 24) as u8;
    }
}

/// The inverse of [`pack_codes`].
#[inline(always)]
pub(crate) fn unpack_codes(bytes: &[u8], out: &mut [i8]) {
    for (codes, &byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
        let byte = u32::from(byte);
        let fields = (byte | byte << 6 | byte << 12 | byte << 18) & 0x0303_0303;
        // If the upper bit of a field is set, the six bits above it are set, too: 2 · 126 = 0xfc.
        let signs = (fields & 0x0202_0202) * 126;
        *codes = (fields | signs).to_le_bytes().map(|code| code as i8);
    }
}
