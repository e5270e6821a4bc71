//! The table lookup of an instruction set: how it builds tables and adds up products.

use crate::layout::lines::BLOCK_ROWS;
use crate::layout::lookup::Cut;

/// The products of one field, `RADIX · high + low` for each index: 16 low bytes, then 16 high
/// bytes.
///
/// A set with signed tables uses two of them for a triple: 32 low bytes, then 32 high bytes; the
/// sign is the fifth bit of the index.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(crate) struct LookupTable(pub [i8; 32]);

/// The table lookup of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Lookup {
    /// Tables for a triple: 1, or 2 if they are signed.
    pub triple_tables: usize,
    /// Makes the tables of the units and lines of a chunk for one row of activations, [`Cut::cols`]
    /// values.
    pub make_tables: unsafe fn(&[i16], Cut, &mut [LookupTable]),
    /// Adds `Σ w · q` of each of the 32 rows of a chunk to their sums, which lie in the set's own
    /// order, using the tables of one row of activations.
    pub add: unsafe fn(&[u8], Cut, &[LookupTable], &mut [i32; BLOCK_ROWS]),
    /// `sum / s · scale` of 32 rows, given the sums, s, the scale and the place for 32 outputs.
    pub finish: unsafe fn(&[i32; BLOCK_ROWS], f32, f32, &mut [f32]),
}

/// `sum / s · scale` of 32 rows, in that order: the body of [`Lookup::finish`] for sets whose sums
/// lie in the order of the rows.
#[inline(always)]
pub(crate) fn finish(sums: &[i32; BLOCK_ROWS], activation_scale: f32, scale: f32, out: &mut [f32]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = *sum as f32 / activation_scale * scale;
    }
}
