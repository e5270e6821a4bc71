//! TQ1_0 and TQ2_0: llama.cpp's ternary blocks of 256 weights of one row, each with an f16 scale.
//!
//! ```text
//! TQ2_0, 66 bytes: codes[64], scale f16. Per half of 128, bits 2l and 2l+1 of byte m hold weight 32l + m.
//! TQ1_0, 54 bytes: qs[48], qh[4], scale f16. Five ternary digits a byte, the first the most significant:
//!     qs[m],    m < 32   weights m + 32t         t < 5
//!     qs[32+m], m < 16   weights 160 + m + 16t   t < 5
//!     qh[m],    m < 4    weights 240 + m + 4t    t < 4
//!   A byte is ceil(number · 256 / 243); digit t is the part above 256 of (byte · 3ᵗ mod 256) · 3.
//! ```

use std::ops::Range;

use bitnet_kernels::Pool;
use half::f16;

use crate::codes::{expect_ternary, pack_codes};
use crate::error::{Error, Result, expect_fit, expect_len, expect_rows, num_weights};
use crate::pieces::{PIECE_WEIGHTS, for_each_piece};
use crate::scaling::{Rounding, round_ternary};
use crate::vectorized::vectorized;

/// Weights in a block.
pub const BLOCK_LEN: usize = 256;

/// One of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 1.6875 bits per weight.
    TQ1_0,
    /// 2.0625 bits per weight.
    TQ2_0,
}

impl Kind {
    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::TQ1_0 => 54,
            Self::TQ2_0 => 66,
        }
    }

    /// Bytes of a `[rows, cols]` tensor; `cols` must be a multiple of 256.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        let n = num_weights(self.name(), rows, cols)?;
        let rule = "the number of columns must be a multiple of 256";
        expect_fit(
            self.name(),
            rows,
            cols,
            cols.is_multiple_of(BLOCK_LEN),
            rule,
        )?;
        Ok(n / BLOCK_LEN * self.block_bytes())
    }

    /// Unpacks `range` of the rows into weights −1, 0, 1 and the scales of their blocks.
    ///
    /// bytes: the whole tensor; out: `[range.len(), cols]`; scales: `[range.len(), cols / 256]`.
    pub fn unpack_rows(
        self,
        bytes: &[u8],
        rows: usize,
        cols: usize,
        range: Range<usize>,
        out: &mut [i8],
        scales: &mut [f32],
    ) -> Result<()> {
        let format = self.name();
        expect_len(format, "tensor", bytes.len(), self.size_bytes(rows, cols)?)?;
        expect_rows(format, &range, rows)?;
        expect_len(format, "output", out.len(), range.len() * cols)?;
        expect_len(format, "scales", scales.len(), out.len() / BLOCK_LEN)?;
        let first = range.start * (cols / BLOCK_LEN);
        let blocks = bytes.chunks_exact(self.block_bytes()).skip(first);
        let outs = out.as_chunks_mut::<BLOCK_LEN>().0;
        for (i, ((block, out), scale)) in blocks.zip(outs).zip(scales).enumerate() {
            let (codes, d) = block.split_at(self.block_bytes() - 2);
            *scale = f16::from_le_bytes([d[0], d[1]]).to_f32();
            if !scale.is_finite() {
                return Err(Error::NotFinite {
                    what: "scale of block",
                    index: first + i,
                    value: *scale,
                });
            }
            let any_three = match self {
                Self::TQ1_0 => {
                    decode_digits(codes, out);
                    false
                }
                Self::TQ2_0 => decode_bits(codes, out),
            };
            if any_three && let Some(at) = out.iter().position(|&w| w == 2) {
                let at = i * BLOCK_LEN + at;
                return Err(Error::Code {
                    format,
                    row: range.start + at / cols,
                    col: at % cols,
                    code: 3,
                });
            }
        }
        Ok(())
    }

    /// The codes of one block, with 2 for a code 3, and its scale; does not check them.
    pub(crate) fn decode(self, block: &[u8], codes: &mut [i8]) -> f32 {
        let (packed, d) = block.split_at(self.block_bytes() - 2);
        if let Some(codes) = codes.as_chunks_mut::<BLOCK_LEN>().0.first_mut() {
            match self {
                Self::TQ1_0 => decode_digits(packed, codes),
                Self::TQ2_0 => drop(decode_bits(packed, codes)),
            }
        }
        f16::from_le_bytes([d[0], d[1]]).to_f32()
    }

    /// The scales of all blocks of a tensor, `[rows, cols / 256]`.
    pub fn scales(self, bytes: &[u8], rows: usize, cols: usize) -> Result<Vec<f32>> {
        expect_len(
            self.name(),
            "tensor",
            bytes.len(),
            self.size_bytes(rows, cols)?,
        )?;
        let scale_at = self.block_bytes() - 2;
        let scale =
            |block: &[u8]| f16::from_le_bytes([block[scale_at], block[scale_at + 1]]).to_f32();
        Ok(bytes.chunks_exact(self.block_bytes()).map(scale).collect())
    }

    /// Packs weights −1, 0, 1 with a scale for each block, rounded to f16.
    ///
    /// weights: `[rows, cols]`; scales: `[rows, cols / 256]`; out: `size_bytes(rows, cols)`.
    pub fn pack(
        self,
        weights: &[i8],
        scales: &[f32],
        rows: usize,
        cols: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let format = self.name();
        expect_len(format, "output", out.len(), self.size_bytes(rows, cols)?)?;
        expect_len(format, "input", weights.len(), rows * cols)?;
        expect_len(format, "scales", scales.len(), weights.len() / BLOCK_LEN)?;
        expect_ternary(format, cols, weights)?;
        let blocks = out.chunks_exact_mut(self.block_bytes());
        for (index, ((block, weights), &scale)) in blocks
            .zip(weights.as_chunks::<BLOCK_LEN>().0)
            .zip(scales)
            .enumerate()
        {
            let d = scale_to_f16(scale, index)?;
            let (codes, tail) = block.split_at_mut(self.block_bytes() - 2);
            match self {
                Self::TQ1_0 => encode_digits(weights, codes),
                Self::TQ2_0 => encode_bits(weights, codes),
            }
            tail.copy_from_slice(&d.to_le_bytes());
        }
        Ok(())
    }

    /// Rounds weights and packs them, with the tensor's scale for every block except blocks of
    /// zeros.
    ///
    /// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
    pub(crate) fn quantize(
        self,
        weights: &[f32],
        rounding: Rounding,
        out: &mut [u8],
        pool: &Pool,
    ) -> Result<()> {
        let d = scale_to_f16(rounding.scale, 0)?.to_le_bytes();
        let bytes = PIECE_WEIGHTS / BLOCK_LEN * self.block_bytes();
        let pieces = weights.chunks(PIECE_WEIGHTS).zip(out.chunks_mut(bytes));
        for_each_piece(pool, weights.len(), pieces, |_, (weights, out)| {
            let one = rounding.one;
            match self {
                Self::TQ1_0 => quantize_blocks::<54>(weights, one, d, out),
                Self::TQ2_0 => quantize_blocks::<66>(weights, one, d, out),
            }
            Ok(())
        })
    }
}

pub(crate) fn scale_to_f16(scale: f32, block: usize) -> Result<f16> {
    let d = f16::from_f32(scale);
    if d.is_finite() {
        Ok(d)
    } else {
        Err(Error::NotFinite {
            what: "scale of block",
            index: block,
            value: d.to_f32(),
        })
    }
}

vectorized! {
    /// Rounds and packs blocks of `LEN` bytes: 54 for TQ1_0, 66 for TQ2_0.
    fn quantize_blocks<'a, const LEN: usize>(weights: &'a [f32], one: f32, d: [u8; 2], out: &'a mut [u8]) -> () {
        for (weights, block) in weights.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
            let mut codes = [0; BLOCK_LEN];
            round_ternary(weights, one, &mut codes);
            let (packed, scale) = block.split_at_mut(LEN - 2);
            if LEN == 54 {
                encode_digits(&codes, packed);
            } else {
                encode_bits(&codes, packed);
            }
            let any = codes.iter().fold(0, |any, code| any | code);
            scale.copy_from_slice(if any == 0 { &[0; 2] } else { &d });
        }
    }
}

/// The common scale of all blocks of a tensor, 0 if all are 0; different scales are an error that
/// names both.
///
/// The quantizer writes scale 0 for a block of zeros, so 0 is compatible with any scale.
pub fn uniform_scale(format: &'static str, scales: &[f32]) -> Result<f32> {
    let expected = scales
        .iter()
        .copied()
        .find(|&scale| scale != 0.0)
        .unwrap_or(0.0);
    match scales
        .iter()
        .position(|&scale| scale != 0.0 && scale != expected)
    {
        None => Ok(expected),
        Some(block) => Err(Error::BlockScales {
            format,
            block,
            found: scales[block],
            expected,
        }),
    }
}

#[inline(always)]
fn decode_digits(codes: &[u8], out: &mut [i8; BLOCK_LEN]) {
    decode_part::<32>(&codes[..32], &mut out[..160]);
    decode_part::<16>(&codes[32..48], &mut out[160..240]);
    decode_part::<4>(&codes[48..], &mut out[240..]);
}

#[inline(always)]
pub(crate) fn decode_part<const LEN: usize>(codes: &[u8], out: &mut [i8]) {
    let mut power = 1u8;
    for out in out.as_chunks_mut::<LEN>().0 {
        for (w, code) in out.iter_mut().zip(codes) {
            // The digit is (q · 3) >> 8: 0 up to 85, 1 up to 170, then 2.
            let q = code.wrapping_mul(power);
            *w = i8::from(q > 85) + i8::from(q > 170) - 1;
        }
        power = power.wrapping_mul(3);
    }
}

#[inline(always)]
fn encode_digits(weights: &[i8; BLOCK_LEN], codes: &mut [u8]) {
    encode_part::<32>(&weights[..160], &mut codes[..32]);
    encode_part::<16>(&weights[160..240], &mut codes[32..48]);
    encode_part::<4>(&weights[240..], &mut codes[48..]);
}

#[inline(always)]
pub(crate) fn encode_part<const LEN: usize>(weights: &[i8], codes: &mut [u8]) {
    let mut numbers = [0u16; LEN];
    let digits = weights.as_chunks::<LEN>().0;
    for weights in digits {
        for (number, w) in numbers.iter_mut().zip(weights) {
            *number = *number * 3 + (w + 1) as u16;
        }
    }
    // A part of four digits is read as five digits, the last of which is 0.
    let missing = if digits.len() == 4 { 3 } else { 1 };
    for (code, number) in codes.iter_mut().zip(numbers) {
        *code = (number * missing * 256).div_ceil(243) as u8;
    }
}

#[inline(always)]
fn decode_bits(codes: &[u8], out: &mut [i8; BLOCK_LEN]) -> bool {
    let mut threes = 0;
    for (codes, out) in codes
        .as_chunks::<32>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<128>().0)
    {
        for (l, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for m in 0..32 {
                out[m] = (codes[m] >> (2 * l) & 3) as i8 - 1;
                threes |= codes[m] & codes[m] >> 1 & 0x55;
            }
        }
    }
    threes != 0
}

#[inline(always)]
fn encode_bits(weights: &[i8; BLOCK_LEN], codes: &mut [u8]) {
    for (codes, weights) in codes
        .as_chunks_mut::<32>()
        .0
        .iter_mut()
        .zip(weights.as_chunks::<128>().0)
    {
        for m in 0..32 {
            codes[m] = pack_codes([96, 64, 32, 0].map(|l| weights[l + m]));
        }
    }
}
