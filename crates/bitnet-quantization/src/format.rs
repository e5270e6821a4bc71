//! The ternary formats as one type: what a loader asks of a tensor whatever its format.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::{hf_packed, i2_s, q4_0, tl1, tl2, tq};

/// A ternary format with all that its files leave unsaid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum TernaryFormat {
    /// Two bits a weight, one scale a tensor.
    I2_S(i2_s::Form),
    /// Tiles of pairs, one scale a tensor.
    TL1(tl1::Tile),
    /// Tiles of triples, one scale a tensor.
    TL2(tl2::Tile),
    /// Blocks of 256 with a scale each.
    TQ(tq::Kind),
    /// Blocks of 32 with a scale each.
    Q4_0,
    /// Two bits a weight, the scale elsewhere.
    HfPacked,
}

impl TernaryFormat {
    /// Bytes of a packed `[rows, cols]` tensor, its scale included where it is inside.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        match self {
            Self::I2_S(_) => i2_s::size_bytes(rows, cols),
            Self::TL1(_) => tl1::size_bytes(rows, cols),
            Self::TL2(_) => tl2::size_bytes(rows, cols),
            Self::TQ(kind) => kind.size_bytes(rows, cols),
            Self::Q4_0 => q4_0::size_bytes(rows, cols),
            Self::HfPacked => hf_packed::size_bytes(rows, cols),
        }
    }

    /// Unpacks `range` of the rows into weights −1, 0, 1. bytes: the whole tensor; out: `[range.len(), cols]`.
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
            Self::HfPacked => hf_packed::unpack_rows(bytes, rows, cols, range, out),
        }
    }

    /// Packs weights −1, 0, 1 with one scale, which HfPacked leaves to the caller and TQ and Q4_0 round to f16.
    ///
    /// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
    pub fn pack(self, weights: &[i8], rows: usize, cols: usize, scale: f32, out: &mut [u8]) -> Result<()> {
        match self {
            Self::I2_S(form) => i2_s::pack(weights, form, rows, cols, scale, out),
            Self::TL1(tile) => tl1::pack(weights, tile, rows, cols, scale, out),
            Self::TL2(tile) => tl2::pack(weights, tile, rows, cols, scale, out),
            Self::TQ(_) if !scale.is_finite() => Err(Error::NotFinite { what: "scale", index: 0, value: scale }),
            Self::TQ(kind) => {
                // llama.cpp's quantizer takes the largest magnitude of a block for its scale: 0 where all weights are.
                let of_block = |block: &[i8]| if block.iter().all(|&w| w == 0) { 0.0 } else { scale };
                let scales: Vec<f32> = weights.chunks(tq::BLOCK_LEN).map(of_block).collect();
                kind.pack(weights, &scales, rows, cols, out)
            }
            Self::Q4_0 => q4_0::pack(weights, rows, cols, scale, out),
            Self::HfPacked => hf_packed::pack(weights, rows, cols, out),
        }
    }

    /// The scale that multiplies the weights of a whole tensor; `None` where the format keeps it elsewhere.
    ///
    /// TQ1_0, TQ2_0 and Q4_0 have a scale a block: blocks that disagree are an error, for then the tensor was not ternary
    /// with one scale before it was packed.
    pub fn scale(self, bytes: &[u8], rows: usize, cols: usize) -> Result<Option<f32>> {
        match self {
            Self::I2_S(_) => i2_s::scale(bytes, rows, cols).map(Some),
            Self::TL1(_) => tl1::scale(bytes, rows, cols).map(Some),
            Self::TL2(_) => tl2::scale(bytes, rows, cols).map(Some),
            Self::TQ(kind) => tq::uniform_scale(kind.name(), &kind.scales(bytes, rows, cols)?).map(Some),
            Self::Q4_0 => q4_0::scale(bytes, rows, cols).map(Some),
            Self::HfPacked => Ok(None),
        }
    }
}
