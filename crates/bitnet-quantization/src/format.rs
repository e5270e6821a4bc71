//! All ternary formats as one type, for loaders that handle any format.

use std::ops::Range;

use bitnet_kernels::Pool;

use crate::error::{Error, Result, expect_len, expect_rows};
use crate::group::{self, GroupFormat};
use crate::pieces::for_each_piece;
use crate::scaling::{Scaling, round_rows, scale_codes};
use crate::vectorized::vectorized;
use crate::{hf_packed, i2_s, iq_bn, q4_0, tl1, tl2, tq};

/// Number of weights to unpack before they are scaled: codes and floats together stay in the first
/// levels of cache.
const BATCH_WEIGHTS: usize = 1 << 14;
/// Number of rows that are fastest unpacked together: a group of TL2, and two groups of TL1.
const ROW_GROUP: usize = 32;

/// A ternary format, with the parameters that files do not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum TernaryFormat {
    /// Two bits per weight, one scale per tensor.
    I2_S(i2_s::Form),
    /// Tiles of pairs, one scale per tensor.
    TL1(tl1::Tile),
    /// Tiles of triples, one scale per tensor.
    TL2(tl2::Tile),
    /// Blocks of 256, each with a scale.
    TQ(tq::Kind),
    /// Blocks of 32, each with a scale.
    Q4_0,
    /// Rows with a scale each.
    IQ_BN(iq_bn::Kind),
    /// Signs or trits with a scale for each group; all scales must be the same.
    Group(GroupFormat),
    /// Two bits per weight; the scale is stored elsewhere.
    HfPacked,
}

impl TernaryFormat {
    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::I2_S(_) => "I2_S",
            Self::TL1(_) => "TL1",
            Self::TL2(_) => "TL2",
            Self::TQ(kind) => kind.name(),
            Self::Q4_0 => "Q4_0",
            Self::IQ_BN(kind) => kind.name(),
            Self::Group(format) => format.name(),
            Self::HfPacked => "packed uint8",
        }
    }

    /// Bytes of a packed `[rows, cols]` tensor, with its scale if the format includes it.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        match self {
            Self::I2_S(_) => i2_s::size_bytes(rows, cols),
            Self::TL1(_) => tl1::size_bytes(rows, cols),
            Self::TL2(_) => tl2::size_bytes(rows, cols),
            Self::TQ(kind) => kind.size_bytes(rows, cols),
            Self::Q4_0 => q4_0::size_bytes(rows, cols),
            Self::IQ_BN(kind) => kind.size_bytes(rows, cols),
            Self::Group(format) => format.size_bytes(rows, cols),
            Self::HfPacked => hf_packed::size_bytes(rows, cols),
        }
    }

    /// Unpacks `range` of the rows into weights −1, 0, 1. bytes: the whole tensor; out:
    /// `[range.len(), cols]`.
    pub fn unpack_rows(
        self,
        bytes: &[u8],
        rows: usize,
        cols: usize,
        range: Range<usize>,
        out: &mut [i8],
    ) -> Result<()> {
        match self {
            Self::I2_S(form) => i2_s::unpack_rows(bytes, form, rows, cols, range, out),
            Self::TL1(tile) => tl1::unpack_rows(bytes, tile, rows, cols, range, out),
            Self::TL2(tile) => tl2::unpack_rows(bytes, tile, rows, cols, range, out),
            Self::TQ(kind) => {
                let mut scales = vec![0.0; out.len() / tq::BLOCK_LEN];
                kind.unpack_rows(bytes, rows, cols, range, out, &mut scales)
            }
            Self::Q4_0 => q4_0::unpack_rows(bytes, rows, cols, range, out),
            Self::IQ_BN(kind) => kind.unpack_rows(bytes, rows, cols, range, out),
            Self::Group(format) => {
                let mut scales = vec![0.0; out.len() / format.group_len()];
                let first = range.start;
                format.unpack_rows(bytes, rows, cols, range, out, &mut scales)?;
                group::expect_trits(format, first, cols, out, &scales)
            }
            Self::HfPacked => hf_packed::unpack_rows(bytes, rows, cols, range, out),
        }
    }

    /// Packs weights −1, 0, 1 with one scale. HfPacked leaves the scale to the caller; TQ and Q4_0
    /// round it to f16.
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
        match self {
            Self::I2_S(form) => i2_s::pack(weights, form, rows, cols, scale, out),
            Self::TL1(tile) => tl1::pack(weights, tile, rows, cols, scale, out),
            Self::TL2(tile) => tl2::pack(weights, tile, rows, cols, scale, out),
            Self::TQ(_) if !scale.is_finite() => Err(Error::NotFinite {
                what: "scale",
                index: 0,
                value: scale,
            }),
            Self::TQ(kind) => {
                // llama.cpp's quantizer takes the largest magnitude of a block as its scale, which
                // is 0 if all weights are 0.
                let of_block = |block: &[i8]| {
                    if block.iter().all(|&w| w == 0) {
                        0.0
                    } else {
                        scale
                    }
                };
                let scales: Vec<f32> = weights.chunks(tq::BLOCK_LEN).map(of_block).collect();
                kind.pack(weights, &scales, rows, cols, out)
            }
            Self::Q4_0 => q4_0::pack(weights, rows, cols, scale, out),
            Self::IQ_BN(kind) => kind.pack(weights, rows, cols, scale, out),
            Self::Group(format) => {
                let scales = vec![scale; weights.len() / format.group_len()];
                format.pack(weights, &scales, rows, cols, out)
            }
            Self::HfPacked => hf_packed::pack(weights, rows, cols, out),
        }
    }

    /// Quantizes weights and packs them. Returns the scale, which the caller must store if the
    /// format does not include it.
    ///
    /// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`. In a format with a scale for each
    /// block, blocks get the tensor's scale, and blocks of zeros get 0. If a scale is an f16 (in
    /// TQ1_0 and TQ2_0; in Q4_0 an eighth of it is), it is rounded after the codes are computed: a
    /// scale that is too large is an error, a scale below 3e-8 becomes 0. Reads the weights twice.
    /// Threads share tensors of at least 524,288 weights, without an effect on the result.
    pub fn quantize(
        self,
        weights: &[f32],
        rows: usize,
        cols: usize,
        scaling: Scaling,
        out: &mut [u8],
        pool: &Pool,
    ) -> Result<f32> {
        expect_len(
            self.name(),
            "output",
            out.len(),
            self.size_bytes(rows, cols)?,
        )?;
        expect_len(self.name(), "input", weights.len(), rows * cols)?;
        let rounding = scaling.measure(weights, pool)?;
        match self {
            Self::I2_S(form) => i2_s::quantize(weights, form, rows, cols, rounding, out, pool),
            Self::TL1(tile) => tl1::quantize(weights, tile, rows, cols, rounding, out, pool),
            Self::TL2(tile) => tl2::quantize(weights, tile, rows, cols, rounding, out, pool),
            Self::TQ(kind) => kind.quantize(weights, rounding, out, pool),
            Self::Q4_0 => q4_0::quantize(weights, rounding, out, pool),
            Self::IQ_BN(kind) => {
                let mut codes = vec![0; weights.len()];
                round_rows(weights, rounding.one, &mut codes);
                kind.pack(&codes, rows, cols, rounding.scale, out)
            }
            Self::Group(format) => {
                let mut codes = vec![0; weights.len()];
                round_rows(weights, rounding.one, &mut codes);
                let scales = vec![rounding.scale; weights.len() / format.group_len()];
                format.pack(&codes, &scales, rows, cols, out)
            }
            Self::HfPacked => hf_packed::quantize(weights, rounding, out, pool),
        }?;
        Ok(rounding.scale)
    }

    /// Turns `range` of the rows into floats: weight times the scale inside the format times
    /// `scale`, which is 1 except for [`TernaryFormat::HfPacked`], whose scale is stored elsewhere.
    ///
    /// bytes: the whole tensor; out: `[range.len(), cols]`. Threads share the work from 524,288
    /// weights on.
    pub fn dequantize_rows(
        self,
        bytes: &[u8],
        scale: f32,
        (rows, cols): (usize, usize),
        range: Range<usize>,
        out: &mut [f32],
        pool: &Pool,
    ) -> Result<()> {
        expect_len(
            self.name(),
            "tensor",
            bytes.len(),
            self.size_bytes(rows, cols)?,
        )?;
        expect_rows(self.name(), &range, rows)?;
        expect_len(self.name(), "output", out.len(), range.len() * cols)?;
        let scale = scale
            * if let Self::TQ(_) = self {
                1.0
            } else {
                self.scale(bytes, rows, cols)?.unwrap_or(1.0)
            };
        if !scale.is_finite() {
            return Err(Error::NotFinite {
                what: "scale",
                index: 0,
                value: scale,
            });
        }
        let batch = (BATCH_WEIGHTS / cols).max(1).next_multiple_of(ROW_GROUP);
        // Each piece except the first begins at a border of the tiles' groups of rows.
        let head = (batch - range.start % batch).min(range.len());
        let (first, rest) = out.split_at_mut(head * cols);
        let pieces = std::iter::once(first).chain(rest.chunks_mut(batch * cols));
        for_each_piece(pool, range.len() * cols, pieces, |index, out| {
            let start = if index == 0 {
                range.start
            } else {
                range.start + head + (index - 1) * batch
            };
            let rows_here = start..start + out.len() / cols;
            let mut codes = vec![0; out.len()];
            if let Self::TQ(kind) = self {
                let mut scales = vec![0.0; out.len() / tq::BLOCK_LEN];
                kind.unpack_rows(bytes, rows, cols, rows_here, &mut codes, &mut scales)?;
                scales.iter_mut().for_each(|block| *block *= scale);
                scale_blocks(&codes, &scales, out);
            } else {
                self.unpack_rows(bytes, rows, cols, rows_here, &mut codes)?;
                scale_rows(&codes, scale, out);
            }
            Ok(())
        })
    }

    /// The scale that multiplies the weights of a whole tensor; `None` if it is stored elsewhere.
    ///
    /// TQ1_0, TQ2_0, Q4_0 and the group formats have a scale for each block. Blocks with different
    /// scales are an error: the tensor was not ternary with one scale before it was packed.
    pub fn scale(self, bytes: &[u8], rows: usize, cols: usize) -> Result<Option<f32>> {
        match self {
            Self::I2_S(_) => i2_s::scale(bytes, rows, cols).map(Some),
            Self::TL1(_) => tl1::scale(bytes, rows, cols).map(Some),
            Self::TL2(_) => tl2::scale(bytes, rows, cols).map(Some),
            Self::TQ(kind) => {
                tq::uniform_scale(kind.name(), &kind.scales(bytes, rows, cols)?).map(Some)
            }
            Self::Q4_0 => q4_0::scale(bytes, rows, cols).map(Some),
            Self::IQ_BN(kind) => kind.scale(bytes, rows, cols).map(Some),
            Self::Group(format) => format.scale(bytes, rows, cols).map(Some),
            Self::HfPacked => Ok(None),
        }
    }
}

vectorized! {
    /// [`scale_codes`], compiled for each instruction set.
    fn scale_rows<'a>(codes: &'a [i8], scale: f32, out: &'a mut [f32]) -> () {
        scale_codes(codes, scale, out);
    }
}

vectorized! {
    /// The same with a scale for each block of [`tq::BLOCK_LEN`].
    fn scale_blocks<'a>(codes: &'a [i8], scales: &'a [f32], out: &'a mut [f32]) -> () {
        let blocks = codes.as_chunks::<{ tq::BLOCK_LEN }>().0.iter().zip(out.as_chunks_mut::<{ tq::BLOCK_LEN }>().0);
        for ((codes, out), &scale) in blocks.zip(scales) {
            scale_codes(codes, scale, out);
        }
    }
}
