//! [`BlockForm`]: chooses the block form that holds a matrix in the least memory, and computes its
//! size.
//!
//! Both have two bits per weight and pad the last block of each row. Short blocks waste less of a
//! row's end, long ones have no scales between them.

use crate::error::Result;
use crate::{i2s_32, qk256};

/// Bytes of the f32 scale that is stored outside a QK256 tensor.
const OUTER_SCALE_BYTES: usize = 4;

/// A form of blocks of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum BlockForm {
    /// Blocks of 32, each with a scale: [`i2s_32`].
    I2S_32,
    /// Blocks of 256 and one scale for all: [`qk256`].
    QK256,
}

impl BlockForm {
    /// Both forms.
    pub const ALL: [Self; 2] = [Self::I2S_32, Self::QK256];

    /// The form that holds a `[rows, cols]` matrix in fewer bytes; of two equal ones QK256, which
    /// is faster.
    ///
    /// The choice depends on memory alone. If the magnitudes of weights vary much within a row,
    /// only I2S-32 represents them well.
    ///
    /// ```
    /// use bitnet_quantization::BlockForm;
    ///
    /// let form = BlockForm::smallest(2560, 6912)?;
    /// assert_eq!((form, form.block_len(), form.num_bytes(2560, 6912)?), (BlockForm::QK256, 256, 4_423_684));
    /// assert_eq!(BlockForm::smallest(2560, 96)?, BlockForm::I2S_32);
    /// # Ok::<(), bitnet_quantization::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the matrix is too large for memory in every form.
    pub fn smallest(rows: usize, cols: usize) -> Result<Self> {
        match Self::ALL.map(|form| form.num_bytes(rows, cols)) {
            [Ok(of_32), Ok(of_256)] if of_256 <= of_32 => Ok(Self::QK256),
            [Ok(_), _] => Ok(Self::I2S_32),
            [Err(_), Ok(_)] => Ok(Self::QK256),
            [Err(error), Err(_)] => Err(error),
        }
    }

    /// Weights of a block.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::I2S_32 => i2s_32::BLOCK_LEN,
            Self::QK256 => qk256::BLOCK_LEN,
        }
    }

    /// Bytes of a `[rows, cols]` matrix with all its scales, including the ones stored outside.
    ///
    /// # Errors
    /// If the matrix is too large for memory.
    pub fn num_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        match self {
            Self::I2S_32 => i2s_32::size_bytes(rows, cols),
            // The codes take far fewer bytes than the number of weights, which was checked.
            Self::QK256 => Ok(qk256::size_bytes(rows, cols)? + OUTER_SCALE_BYTES),
        }
    }
}
