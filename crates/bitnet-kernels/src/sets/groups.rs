//! The functions of a set for products with weights that have a scale for each group of columns.

use std::ops::Range;

use crate::layout::group_activations::GroupActivations;
use crate::sets::output::Output;
use crate::weights::groups::GroupMatrix;

/// `y = Σ_g (Σ_a float(Σ w · q) · d_a) · d_g` for some blocks of rows and all activation rows, by
/// the rule of [`crate::sets::portable::fold_run`] and [`crate::sets::portable::fold_group`].
pub(crate) type GroupMultiply =
    unsafe fn(&GroupMatrix, Range<usize>, &GroupActivations, &Output<'_>);

/// The products of an instruction set for each kind of codes.
#[derive(Clone, Copy)]
pub(crate) struct GroupKernels {
    /// [`crate::GroupCodes::Signs`]
    pub signs: GroupMultiply,
    /// [`crate::GroupCodes::TwoBits`]
    pub two_bits: GroupMultiply,
}
