//! The ternary formats of ik_llama.cpp: a scale for each row, then blocks of 64 weights.
//!
//! ```text
//! IQ2_BN, a row: d f32 | blocks of 16 bytes    weight 16k + j of a block is bits 2k and 2k + 1 of byte j, minus 1
//! IQ1_BN, a row: d f16 | blocks of 13 bytes    weights 16k + 5i + j are the ternary digits of byte 3k + i, minus 1,
//!                                              weights 16k + 15 the digits of byte 12, the least significant first
//! ```
//! A byte of ternary digits is ceil(number · 256 / 243), as in TQ1_0.

use std::ops::Range;

use half::f16;

use crate::codes::expect_ternary;
use crate::error::{Error, Result, expect_fit, expect_len, expect_rows, num_weights};
use crate::tq::uniform_scale;

/// Weights of a block.
const BLOCK_LEN: usize = 64;
/// Weights whose digits lie together.
const RUN_LEN: usize = 16;

/// A format of ik_llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum Kind {
    /// 1.625 bits per weight.
    IQ1_BN,
    /// 2 bits per weight.
    IQ2_BN,
}

impl Kind {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::IQ1_BN, Self::IQ2_BN];

    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::IQ1_BN => "IQ1_BN",
            Self::IQ2_BN => "IQ2_BN",
        }
    }

    fn scale_bytes(self) -> usize {
        match self {
            Self::IQ1_BN => 2,
            Self::IQ2_BN => 4,
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Self::IQ1_BN => 13,
            Self::IQ2_BN => 16,
        }
    }

    fn row_bytes(self, cols: usize) -> usize {
        self.scale_bytes() + cols / BLOCK_LEN * self.block_bytes()
    }

    /// Bytes of a `[rows, cols]` tensor; `cols` must be a multiple of 64.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        num_weights(self.name(), rows, cols)?;
        let rule = "the number of columns must be a multiple of 64";
        expect_fit(
            self.name(),
            rows,
            cols,
            cols.is_multiple_of(BLOCK_LEN),
            rule,
        )?;
        Ok(rows * self.row_bytes(cols))
    }

    /// Unpacks `range` of the rows into weights −1, 0, 1; rows with scale 0 are zeros.
    ///
    /// bytes: the whole tensor; out: `[range.len(), cols]`. Code 3 is an error naming its place.
    pub fn unpack_rows(
        self,
        bytes: &[u8],
        rows: usize,
        cols: usize,
        range: Range<usize>,
        out: &mut [i8],
    ) -> Result<()> {
        let format = self.name();
        expect_len(format, "tensor", bytes.len(), self.size_bytes(rows, cols)?)?;
        expect_rows(format, &range, rows)?;
        expect_len(format, "output", out.len(), range.len() * cols)?;
        let stored = bytes.chunks_exact(self.row_bytes(cols)).skip(range.start);
        for (row, (stored, out)) in range.zip(stored.zip(out.chunks_exact_mut(cols))) {
            let blocks = stored[self.scale_bytes()..].chunks_exact(self.block_bytes());
            for (block, out) in blocks.zip(out.as_chunks_mut::<BLOCK_LEN>().0) {
                self.decode(block, out);
            }
            if let Some(col) = out.iter().position(|code| *code > 1) {
                return Err(Error::Code {
                    format,
                    row,
                    col,
                    code: 3,
                });
            }
            if self.row_scale(stored) == 0.0 {
                out.fill(0);
            }
        }
        Ok(())
    }

    /// The scale of all rows; scales that differ are an error with both. Rows of zeros agree with
    /// any.
    pub fn scale(self, bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
        expect_len(
            self.name(),
            "tensor",
            bytes.len(),
            self.size_bytes(rows, cols)?,
        )?;
        let rows = bytes.chunks_exact(self.row_bytes(cols));
        let scales: Vec<f32> = rows.map(|row| self.row_scale(row)).collect();
        uniform_scale(self.name(), &scales)
    }

    /// Packs weights −1, 0, 1 with one scale for all rows, which IQ1_BN rounds to f16. Rows of
    /// zeros get the scale 0.
    ///
    /// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
    pub fn pack(
        self,
        weights: &[i8],
        rows: usize,
        cols: usize,
        scale: f32,
        out: &mut [u8],
    ) -> Result<()> {
        let format = self.name();
        expect_len(format, "output", out.len(), self.size_bytes(rows, cols)?)?;
        expect_len(format, "input", weights.len(), rows * cols)?;
        expect_ternary(format, cols, weights)?;
        let short = f16::from_f32(scale);
        if !scale.is_finite() || self == Self::IQ1_BN && !short.is_finite() {
            return Err(Error::NotFinite {
                what: "scale",
                index: 0,
                value: scale,
            });
        }
        let out = out.chunks_exact_mut(self.row_bytes(cols));
        for (weights, out) in weights.chunks_exact(cols).zip(out) {
            let is_zero = weights.iter().all(|weight| *weight == 0);
            let (start, blocks) = out.split_at_mut(self.scale_bytes());
            match (is_zero, self) {
                (true, _) => start.fill(0),
                (false, Self::IQ1_BN) => start.copy_from_slice(&short.to_le_bytes()),
                (false, Self::IQ2_BN) => start.copy_from_slice(&scale.to_le_bytes()),
            }
            let blocks = blocks.chunks_exact_mut(self.block_bytes());
            for (weights, block) in weights.as_chunks::<BLOCK_LEN>().0.iter().zip(blocks) {
                self.encode(weights, block);
            }
        }
        Ok(())
    }

    fn row_scale(self, row: &[u8]) -> f32 {
        match self {
            Self::IQ1_BN => f16::from_le_bytes([row[0], row[1]]).to_f32(),
            Self::IQ2_BN => f32::from_le_bytes([row[0], row[1], row[2], row[3]]),
        }
    }

    fn decode(self, block: &[u8], out: &mut [i8; BLOCK_LEN]) {
        for (run, out) in out.as_chunks_mut::<RUN_LEN>().0.iter_mut().enumerate() {
            match self {
                Self::IQ2_BN => {
                    for (byte, weight) in block.iter().zip(out) {
                        *weight = (byte >> (2 * run) & 3) as i8 - 1;
                    }
                }
                Self::IQ1_BN => {
                    for (index, weight) in out[..15].iter_mut().enumerate() {
                        *weight = digit(block[3 * run + index / 5], index % 5);
                    }
                    out[15] = digit(block[12], run);
                }
            }
        }
    }

    fn encode(self, weights: &[i8; BLOCK_LEN], block: &mut [u8]) {
        block.fill(0);
        let runs = weights.as_chunks::<RUN_LEN>().0;
        match self {
            Self::IQ2_BN => {
                for (run, weights) in runs.iter().enumerate() {
                    for (byte, weight) in block.iter_mut().zip(weights) {
                        *byte |= ((weight + 1) as u8) << (2 * run);
                    }
                }
            }
            Self::IQ1_BN => {
                for (run, weights) in runs.iter().enumerate() {
                    for (byte, weights) in weights.as_chunks::<5>().0.iter().enumerate() {
                        block[3 * run + byte] = byte_of(weights.iter());
                    }
                }
                block[12] = byte_of(runs.iter().map(|run| &run[15]));
            }
        }
    }
}

/// Ternary digit `index` of a byte, the least significant first, minus 1.
fn digit(byte: u8, index: usize) -> i8 {
    const POWERS: [u8; 5] = [81, 27, 9, 3, 1];
    let rest = byte.wrapping_mul(POWERS[index]);
    i8::from(rest > 85) + i8::from(rest > 170) - 1
}

/// The byte of up to five digits, the least significant first.
fn byte_of<'a>(weights: impl DoubleEndedIterator<Item = &'a i8>) -> u8 {
    let number = weights
        .rev()
        .fold(0u32, |number, w| 3 * number + (w + 1) as u32);
    (number * 256).div_ceil(243) as u8
}
