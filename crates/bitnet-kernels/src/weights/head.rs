//! [`ScreenTable`]: an 8-bit copy of the head.

use bytes::Bytes;

use crate::layout::lines::{BLOCK_ROWS, LINE_COLS, MAX_COLS};

/// The head in 8 bits, with the numbers that bound the error of an estimated logit.
pub struct ScreenTable {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) lines: Bytes,
    pub(crate) bounds: Vec<BlockBounds>,
}

/// The numbers for the estimates of a block: three for each row.
#[derive(Clone)]
pub(crate) struct BlockBounds {
    /// The factor of the row's integers.
    pub(crate) scale: [f32; BLOCK_ROWS],
    /// At least `‖e − scale · integers‖`; infinite for a row whose logit cannot be bounded.
    pub(crate) residual: [f32; BLOCK_ROWS],
    /// At least `‖e‖` and `‖scale · integers‖`.
    pub(crate) norm: [f32; BLOCK_ROWS],
}

impl BlockBounds {
    fn from_le_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let numbers = bytes.as_chunks::<4>().0;
        let [scale, residual, norm] = std::array::from_fn(|field| {
            std::array::from_fn(|lane| f32::from_le_bytes(numbers[field * BLOCK_ROWS + lane]))
        });
        Self {
            scale,
            residual,
            norm,
        }
    }
}

impl ScreenTable {
    pub(crate) fn block_bytes(cols: usize) -> usize {
        cols.next_multiple_of(LINE_COLS) * BLOCK_ROWS
    }

    /// A copy that was packed before, of a table of `[rows, cols]`: [`Self::lines`] and
    /// [`Self::bounds_bytes`]. `None` if the number of bytes is wrong.
    #[must_use]
    pub fn from_packed(rows: usize, cols: usize, lines: Bytes, bounds: &[u8]) -> Option<Self> {
        if !(1..=MAX_COLS).contains(&cols) {
            return None;
        }
        let num_blocks = rows.div_ceil(BLOCK_ROWS);
        if num_blocks.checked_mul(Self::block_bytes(cols)) != Some(lines.len()) {
            return None;
        }
        let (bounds, rest) = bounds.as_chunks::<{ size_of::<BlockBounds>() }>();
        (bounds.len() == num_blocks && rest.is_empty()).then(|| Self {
            rows,
            cols,
            lines,
            bounds: bounds.iter().map(BlockBounds::from_le_bytes).collect(),
        })
    }

    /// The integers, for [`Self::from_packed`].
    #[must_use]
    pub fn lines(&self) -> &Bytes {
        &self.lines
    }

    /// The numbers that bound errors, for [`Self::from_packed`]: little endian.
    #[must_use]
    pub fn bounds_bytes(&self) -> Vec<u8> {
        let bounds = self.bounds.iter();
        let numbers = bounds.flat_map(|block| [block.scale, block.residual, block.norm]);
        numbers.flatten().flat_map(f32::to_le_bytes).collect()
    }

    /// Rows of the table.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes in memory: the integers and three numbers for each row. One pass reads them all.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.lines.len() + size_of_val(self.bounds.as_slice())
    }
}
