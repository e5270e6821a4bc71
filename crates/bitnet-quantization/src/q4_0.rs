//! Q4_0 with ternary weights: blocks of 32 weights of one row, as llama.cpp's quantizer writes a
//! ternary model.
//!
//! ```text
//! block, 18 bytes:  scale d as f16 | byte j holds weights j (low) and j+16 (high), plus 8
//! ```
//! The quantizer takes d so that the first weight of the largest magnitude becomes −8, so ternary
//! weights ±s become −8d and, clamped, +7d, with s = 8·|d|. As plain Q4_0 the two signs would have
//! different magnitudes; this reader restores ±s. A writer that takes d = s itself stores −1, 0,
//! +1, which can be read, too. All other values were not ternary and are an error.

use std::ops::Range;

use half::f16;

use bitnet_kernels::Pool;

use crate::codes::expect_ternary;
use crate::dense::Dense;
use crate::error::{Error, Result, expect_len, expect_rows};
use crate::pieces::{PIECE_WEIGHTS, for_each_piece};
use crate::scaling::{Rounding, round_rows};
use crate::tq;

const FORMAT: &str = "Q4_0";
const BLOCK_LEN: usize = 32;
const BLOCK_BYTES: usize = 18;

/// Bytes of a `[rows, cols]` tensor; `cols` must be a multiple of 32.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    Dense::Q4_0.size_bytes(rows, cols)
}

/// The scale of all blocks, which multiplies the weights; blocks that differ are an error that
/// names both scales.
pub fn scale(bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    let magnitudes: Vec<f32> = bytes
        .as_chunks::<BLOCK_BYTES>()
        .0
        .iter()
        .map(magnitude)
        .collect();
    tq::uniform_scale(FORMAT, &magnitudes)
}

/// Unpacks `range` of the rows into weights −1, 0, 1. bytes: the whole tensor; out: `[range.len(),
/// cols]`.
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
    let first = range.start * (cols / BLOCK_LEN);
    let blocks = &bytes.as_chunks::<BLOCK_BYTES>().0[first..];
    for (index, (block, out)) in blocks
        .iter()
        .zip(out.as_chunks_mut::<BLOCK_LEN>().0)
        .enumerate()
    {
        let d = scale_of(block);
        if !d.is_finite() {
            return Err(Error::NotFinite {
                what: "scale of block",
                index: first + index,
                value: d,
            });
        }
        for (i, w) in out.iter_mut().enumerate() {
            *w = code(block, i) as i8 - 8;
        }
        let unit = unit(block);
        if let Some(i) = out
            .iter()
            .position(|w| !matches!((unit, w), (_, 0) | (1, -1 | 1) | (8, -8 | 7)))
        {
            let at = index * BLOCK_LEN + i;
            return Err(Error::Code {
                format: FORMAT,
                row: range.start + at / cols,
                col: at % cols,
                code: code(block, i),
            });
        }
        let sign = if d == 0.0 { 0 } else { d.signum() as i8 };
        out.iter_mut().for_each(|w| *w = w.signum() * sign);
    }
    Ok(())
}

/// Packs weights −1, 0, 1 as llama.cpp's quantizer packs weights of ±`scale`; an eighth of the
/// scale is rounded to f16.
///
/// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub fn pack(weights: &[i8], rows: usize, cols: usize, scale: f32, out: &mut [u8]) -> Result<()> {
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_len(FORMAT, "input", weights.len(), rows * cols)?;
    expect_ternary(FORMAT, cols, weights)?;
    pack_blocks(weights, scale, out)
}

/// Rounds weights and packs them. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub(crate) fn quantize(
    weights: &[f32],
    rounding: Rounding,
    out: &mut [u8],
    pool: &Pool,
) -> Result<()> {
    let pieces = weights
        .chunks(PIECE_WEIGHTS)
        .zip(out.chunks_mut(PIECE_WEIGHTS / BLOCK_LEN * BLOCK_BYTES));
    for_each_piece(pool, weights.len(), pieces, |_, (weights, out)| {
        let mut rounded = vec![0; weights.len()];
        round_rows(weights, rounding.one, &mut rounded);
        pack_blocks(&rounded, rounding.scale, out)
    })
}

fn pack_blocks(weights: &[i8], scale: f32, out: &mut [u8]) -> Result<()> {
    for (weights, block) in weights
        .as_chunks::<BLOCK_LEN>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<BLOCK_BYTES>().0)
    {
        let first = weights.iter().copied().find(|&w| w != 0).unwrap_or(0);
        let d = f16::from_f32(f32::from(first) * scale / -8.0);
        if !d.is_finite() {
            return Err(Error::NotFinite {
                what: "scale",
                index: 0,
                value: scale,
            });
        }
        block[..2].copy_from_slice(&d.to_le_bytes());
        let code = |w: i8| match w * first {
            0 => 8,
            1 => 0,
            _ => 15,
        };
        for (j, byte) in block[2..].iter_mut().enumerate() {
            *byte = code(weights[j]) | code(weights[j + 16]) << 4;
        }
    }
    Ok(())
}

fn scale_of(block: &[u8; BLOCK_BYTES]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// The four bits of weight `i`.
fn code(block: &[u8; BLOCK_BYTES], i: usize) -> u8 {
    block[2 + i % 16] >> (4 * (i / 16)) & 15
}

/// The magnitude of the block's largest weight in units of d: 8 as llama.cpp writes it, 1 if no
/// weight exceeds 1.
fn unit(block: &[u8; BLOCK_BYTES]) -> i8 {
    if (0..BLOCK_LEN).all(|i| (7..=9).contains(&code(block, i))) {
        1
    } else {
        8
    }
}

/// The scale of a block's ternary weights; 0 if all are zero.
fn magnitude(block: &[u8; BLOCK_BYTES]) -> f32 {
    if (0..BLOCK_LEN).all(|i| code(block, i) == 8) {
        return 0.0;
    }
    scale_of(block).abs() * f32::from(unit(block))
}
