//! The functions of a set for products with weights that have a scale for each group of columns.

use std::ops::Range;

use crate::layout::group_activations::GroupActivations;
use crate::sets::output::Output;
use crate::weights::groups::GroupBlocks;

/// `y = Σ_g (Σ_a float(Σ w · q) · d_a) · d_g` for some blocks and some rows of activations, by the
/// rule of [`crate::sets::portable::fold_run`] and [`crate::sets::portable::fold_group`]. The first
/// row is the first of a tile.
pub(crate) type GroupMultiply =
    unsafe fn(&GroupBlocks<'_>, Range<usize>, Range<usize>, &GroupActivations, &Output<'_>);

/// The products of an instruction set for each kind of codes.
#[derive(Clone, Copy)]
pub(crate) struct GroupKernels {
    /// [`crate::GroupCodes::Signs`]
    pub signs: GroupMultiply,
    /// [`crate::GroupCodes::Trits`]; without it, trits are spread to codes of 2 bits first.
    pub trits: Option<GroupMultiply>,
    /// [`crate::GroupCodes::TwoBits`]
    pub two_bits: GroupMultiply,
    /// Products of signs with up to four tiles; `Some` if the set has a faster way for many rows.
    pub wide_signs: Option<GroupMultiply>,
    /// The same for codes of 2 bits.
    pub wide_two_bits: Option<GroupMultiply>,
}
