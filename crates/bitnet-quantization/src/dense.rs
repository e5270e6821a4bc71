//! The formats of embeddings, heads and norms: rows of floats or of blocks with a scale, to f32 and
//! back.
//!
//! ```text
//! Q8_0, 32 values in 34 bytes:    scale f16 | int8[32]
//! Q4_0, 32 values in 18 bytes:    scale f16 | byte j holds values j (low) and j+16 (high), minus 8
//! Q6_K, 256 values in 210 bytes:  low 4 bits [128] | high 2 bits [64] | int8 scale of each 16 values [16] | scale f16
//! ```

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::{Error, Result, expect_fit, expect_len, num_weights};
use crate::group::GroupFormat;
use crate::{kquants, q6_k};

/// The format of a row of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the field's own names")]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum Dense {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    /// Signs or trits with a scale for each group.
    Group(GroupFormat),
}

impl Dense {
    /// The format's name.
    pub fn name(self) -> &'static str {
        self.layout().0
    }

    /// Values in a block; 1 for plain floats.
    pub fn block_len(self) -> usize {
        self.layout().1
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().2
    }

    /// Name, values and bytes of a block.
    fn layout(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("F32", 1, 4),
            Self::F16 => ("F16", 1, 2),
            Self::BF16 => ("BF16", 1, 2),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q6_K => ("Q6_K", 256, 210),
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q2_K => ("Q2_K", 256, 84),
            Self::Q3_K => ("Q3_K", 256, 110),
            Self::Q4_K => ("Q4_K", 256, 144),
            Self::Q5_K => ("Q5_K", 256, 176),
            Self::IQ4_NL => ("IQ4_NL", 32, 18),
            Self::IQ4_XS => ("IQ4_XS", 256, 136),
            Self::MXFP4 => ("MXFP4", 32, 17),
            Self::Group(group) => (group.name(), group.group_len(), group.group_bytes()),
        }
    }

    /// Bytes of a `[rows, cols]` tensor; `cols` must be a multiple of the block.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        let n = num_weights(self.name(), rows, cols)?;
        let rule = "the number of columns must be a multiple of the block";
        expect_fit(
            self.name(),
            rows,
            cols,
            cols.is_multiple_of(self.block_len()),
            rule,
        )?;
        Ok(n / self.block_len() * self.block_bytes())
    }

    /// Turns one row, or any number of whole rows, into f32. bytes: `size_bytes(1, out.len())`.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        expect_len(
            self.name(),
            "row",
            bytes.len(),
            self.size_bytes(1, out.len())?,
        )?;
        match self {
            Self::F32 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => dequantize_f16(bytes, out),
            Self::BF16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = bf16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Q8_0 => each_block::<34, 32>(bytes, out, |block, out| {
                let d = f16_at(block, 0);
                for (x, &q) in out.iter_mut().zip(&block[2..]) {
                    *x = d * f32::from(q as i8);
                }
            }),
            Self::Q4_0 => each_block::<18, 32>(bytes, out, |block, out| {
                let d = f16_at(block, 0);
                let (low, high) = out.split_at_mut(16);
                for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
                    *low = d * f32::from((byte & 15) as i8 - 8);
                    *high = d * f32::from((byte >> 4) as i8 - 8);
                }
            }),
            Self::Q6_K => each_block::<210, 256>(bytes, out, dequantize_q6_k),
            Self::Q4_1 => each_block::<20, 32>(bytes, out, kquants::q4_1),
            Self::Q5_0 => each_block::<22, 32>(bytes, out, kquants::q5_0),
            Self::Q5_1 => each_block::<24, 32>(bytes, out, kquants::q5_1),
            Self::Q2_K => each_block::<84, 256>(bytes, out, kquants::q2_k),
            Self::Q3_K => each_block::<110, 256>(bytes, out, kquants::q3_k),
            Self::Q4_K => each_block::<144, 256>(bytes, out, kquants::q4_k),
            Self::Q5_K => each_block::<176, 256>(bytes, out, kquants::q5_k),
            Self::IQ4_NL => each_block::<18, 32>(bytes, out, kquants::iq4_nl),
            Self::IQ4_XS => each_block::<136, 256>(bytes, out, kquants::iq4_xs),
            Self::MXFP4 => each_block::<17, 32>(bytes, out, kquants::mxfp4),
            Self::Group(group) => group.dequantize(bytes, out),
        }
        Ok(())
    }
}

impl Dense {
    /// Stores one row, or any number of whole rows, as llama.cpp's quantizers do. bytes:
    /// `size_bytes(1, values.len())`.
    ///
    /// F32 is exact, F16 and BF16 round half to even. A value that is not finite, or that the
    /// format cannot hold, is an error naming its index. Formats that can only be read are an
    /// error, too; Q4_0 is written from ternary weights by [`crate::q4_0::pack`].
    pub fn quantize(self, values: &[f32], bytes: &mut [u8]) -> Result<()> {
        expect_len(
            self.name(),
            "row",
            bytes.len(),
            self.size_bytes(1, values.len())?,
        )?;
        let refuse = |index: usize| {
            Err(Error::Value {
                format: self.name(),
                index,
                value: values[index],
            })
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return refuse(index);
        }
        // The index of the first value of a block that is too large for the format.
        let too_large = match self {
            Self::F32 => {
                for (x, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    *b = x.to_le_bytes();
                }
                None
            }
            Self::F16 => quantize_f16(values, bytes),
            Self::BF16 => {
                let halves = values.iter().map(|x| bf16::from_f32(*x));
                store_halves(
                    halves.map(|half| (half.is_finite(), half.to_le_bytes())),
                    bytes,
                )
            }
            Self::Q8_0 => each_row_block::<34, 32>(values, bytes, quantize_q8_0),
            Self::Q6_K => each_row_block::<210, 256>(values, bytes, q6_k::quantize),
            _ => {
                let rule = "tables are read from this format, not written in it";
                return Err(Error::Shape {
                    format: self.name(),
                    rows: 1,
                    cols: values.len(),
                    rule,
                });
            }
        };
        match too_large {
            None => Ok(()),
            Some(first) => {
                let block = &values[first..first + self.block_len()];
                let largest =
                    (0..block.len()).max_by(|a, b| block[*a].abs().total_cmp(&block[*b].abs()));
                refuse(first + largest.unwrap_or(0))
            }
        }
    }
}

/// Stores halves; returns the index of the first value that is not finite.
fn store_halves(halves: impl Iterator<Item = (bool, [u8; 2])>, bytes: &mut [u8]) -> Option<usize> {
    let mut infinite = None;
    for (index, ((is_finite, half), b)) in halves.zip(bytes.as_chunks_mut::<2>().0).enumerate() {
        *b = half;
        if !is_finite && infinite.is_none() {
            infinite = Some(index);
        }
    }
    infinite
}

/// Works through small buffers, like [`dequantize_f16`].
fn quantize_f16(values: &[f32], bytes: &mut [u8]) -> Option<usize> {
    for (chunk, (values, bytes)) in values.chunks(64).zip(bytes.chunks_mut(128)).enumerate() {
        let mut halves = [f16::ZERO; 64];
        halves[..values.len()].convert_from_f32_slice(values);
        let halves = halves
            .iter()
            .map(|half| (half.is_finite(), half.to_le_bytes()));
        if let Some(index) = store_halves(halves, bytes) {
            return Some(chunk * 64 + index);
        }
    }
    None
}

/// Quantizes block by block; returns the index of the first value of a block that cannot be
/// quantized.
fn each_row_block<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    bytes: &mut [u8],
    quantize: impl Fn(&[f32; LEN], &mut [u8; BYTES]) -> Option<()>,
) -> Option<usize> {
    let mut blocks = values.as_chunks().0.iter().zip(bytes.as_chunks_mut().0);
    blocks
        .position(|(values, block)| quantize(values, block).is_none())
        .map(|block| block * LEN)
}

/// The largest magnitude becomes ±127; quants are rounded half away from zero. `None` if the scale
/// is too large for f16.
fn quantize_q8_0(values: &[f32; 32], block: &mut [u8; 34]) -> Option<()> {
    let largest = values
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let half = f16::from_f32(d);
    block[..2].copy_from_slice(&half.to_le_bytes());
    for (b, x) in block[2..].iter_mut().zip(values) {
        *b = (x * inverse).round() as i8 as u8;
    }
    half.is_finite().then_some(())
}

/// Converts through small buffers, so that the processor's own conversion is used if it has one.
fn dequantize_f16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        let mut halves = [f16::ZERO; 64];
        for (half, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*b);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
}

fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        dequantize(block, out);
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Each half of 128 values is four runs of 32: run r takes nibble r/2 of low byte 32·(r%2) + l and
/// bits 2r of high byte l.
fn dequantize_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..128 + 32 * half + 32];
        let scales = &block[192 + 8 * half..192 + 8 * half + 8];
        for (r, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = &low[32 * (r % 2)..32 * (r % 2) + 32];
            for (sixteen, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let scale = d * f32::from(scales[2 * r + sixteen] as i8);
                let low = &low[16 * sixteen..16 * sixteen + 16];
                let high = &high[16 * sixteen..16 * sixteen + 16];
                for l in 0..16 {
                    let q = low[l] >> (4 * (r / 2)) & 15 | (high[l] >> (2 * r) & 3) << 4;
                    out[l] = scale * f32::from(q as i8 - 32);
                }
            }
        }
    }
}
