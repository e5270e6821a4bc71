//! How float weights become codes and a scale: the scale, and the smallest magnitude that becomes
//! ±1.
//!
//! Every quantizer comes down to thresholds, so all formats share one loop of comparisons, in which
//! no product is rounded.

use bitnet_kernels::Pool;

use crate::absmean;
use crate::error::{Error, Result};
use crate::pieces::{PIECE_WEIGHTS, for_each_piece};
use crate::vectorized::vectorized;

/// The source of a scale. It is measured over the weights that share it: the whole tensor, or a
/// block in I2S-32.
///
/// A weight that is not finite is an error. Denormal weights are not special. [`Scaling::AbsMean`]
/// turns magnitudes below 5e-6 to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// The quantizer of BitNet b1.58: `s = 1 / max(mean|w|, 1e-5)`, code `round(w · s)` with ties
    /// to even, limited to −1…1; the scale is `1 / s`.
    AbsMean,
    /// The scale is max|w|, and weights of at least half of it are ±1: exact for ternary weights
    /// times any scale. The scale of zeros is 0.
    AbsMax,
    /// A given scale, finite and above 0; each weight gets the nearest code, ties go to the even
    /// one. Formats with a code −2 use it.
    Given(f32),
}

/// A scale, and the magnitudes at which the codes change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rounding {
    pub scale: f32,
    /// The smallest magnitude that becomes ±1.
    pub one: f32,
    /// Weights of at most minus this become −2, if the format has that code.
    pub two: f32,
}

impl Scaling {
    /// Scale and thresholds of a tensor. The result does not depend on the number of threads.
    pub(crate) fn measure(self, weights: &[f32], pool: &Pool) -> Result<Rounding> {
        let mut sums = vec![0.0; weights.len().div_ceil(PIECE_WEIGHTS)];
        let pieces = weights.chunks(PIECE_WEIGHTS).zip(&mut sums);
        match self {
            Self::AbsMean => {
                for_each_piece(pool, weights.len(), pieces, |index, (weights, sum)| {
                    *sum = absmean::magnitude_sum(weights)
                        .map_err(|error| moved(error, index * PIECE_WEIGHTS))?;
                    Ok(())
                })?;
                Ok(Rounding::absmean(absmean::inverse_scale(
                    sums.iter().sum(),
                    weights.len(),
                )))
            }
            Self::AbsMax | Self::Given(_) => {
                for_each_piece(pool, weights.len(), pieces, |index, (weights, max)| {
                    *max = f64::from(
                        max_magnitude(weights)
                            .map_err(|error| moved(error, index * PIECE_WEIGHTS))?,
                    );
                    Ok(())
                })?;
                self.of_max(sums.iter().fold(0.0, |max: f64, &x| max.max(x)) as f32)
            }
        }
    }

    /// Scale and thresholds of a few weights that share a scale; max: their largest magnitude,
    /// which is finite.
    #[inline(always)]
    pub(crate) fn of_block(self, weights: &[f32; 32], max: f32) -> Result<Rounding> {
        match self {
            Self::AbsMean => {
                let sum = absmean::sum_of_magnitudes(weights);
                Ok(Rounding::absmean(absmean::inverse_scale(
                    sum,
                    weights.len(),
                )))
            }
            Self::AbsMax | Self::Given(_) => self.of_max(max),
        }
    }

    #[inline(always)]
    fn of_max(self, max: f32) -> Result<Rounding> {
        match self {
            // Half of the smallest positive float rounds to 0, which zeros would reach.
            Self::AbsMax if max > 0.0 => Ok(Rounding {
                scale: max,
                one: (max * 0.5).max(f32::from_bits(1)),
                two: f32::INFINITY,
            }),
            Self::Given(scale) if scale > 0.0 && scale.is_finite() => Ok(Rounding {
                scale,
                one: (scale * 0.5).next_up(),
                two: scale * 1.5,
            }),
            Self::Given(scale) => Err(Error::Scale { value: scale }),
            _ => Ok(Rounding {
                scale: 0.0,
                one: f32::INFINITY,
                two: f32::INFINITY,
            }),
        }
    }
}

impl Rounding {
    /// The thresholds of `round(w · s)`, computed in f32 and limited to −1…1.
    pub(crate) fn absmean(s: f32) -> Self {
        // The product grows with w. It exceeds a half once w exceeds the exact quotient by half a
        // unit in its last place; the rounded quotient is at most three floats below that.
        let mut bits = (0.5 / s).to_bits();
        for _ in 0..3 {
            bits += u32::from(f32::from_bits(bits) * s <= 0.5);
        }
        let one = f32::from_bits(bits);
        Self {
            scale: absmean::scale(s),
            one,
            two: f32::INFINITY,
        }
    }
}

/// The codes −1, 0, 1 of weights. out: as long as `weights`.
#[inline(always)]
pub(crate) fn round_ternary(weights: &[f32], one: f32, out: &mut [i8]) {
    for (code, &w) in out.iter_mut().zip(weights) {
        *code = i8::from(w >= one) - i8::from(w <= -one);
    }
}

vectorized! {
    /// [`round_ternary`] for many rows.
    pub(crate) fn round_rows<'a>(weights: &'a [f32], one: f32, out: &'a mut [i8]) -> () {
        round_ternary(weights, one, out);
    }
}

/// The codes −2, −1, 0, 1 of weights. out: as long as `weights`.
#[inline(always)]
pub(crate) fn round_signed(weights: &[f32], rounding: Rounding, out: &mut [i8]) {
    let Rounding { one, two, .. } = rounding;
    for (code, &w) in out.iter_mut().zip(weights) {
        *code = i8::from(w >= one) - i8::from(w <= -one) - i8::from(w <= -two);
    }
}

/// `code · scale`. out: as long as `codes`.
#[inline(always)]
pub(crate) fn scale_codes(codes: &[i8], scale: f32, out: &mut [f32]) {
    for (x, &code) in out.iter_mut().zip(codes) {
        *x = f32::from(code) * scale;
    }
}

/// The largest magnitude; a weight that is not finite is an error naming its index.
pub(crate) fn max_magnitude(weights: &[f32]) -> Result<f32> {
    let max = vectorized_max(weights);
    if max < f32::INFINITY.to_bits() {
        Ok(f32::from_bits(max))
    } else {
        Err(not_finite(weights))
    }
}

vectorized! {
    fn vectorized_max<'a>(weights: &'a [f32]) -> u32 {
        max_bits(weights)
    }
}

/// The largest bits without the sign: these order magnitudes, then infinity, then NaN.
#[inline(always)]
pub(crate) fn max_bits(weights: &[f32]) -> u32 {
    weights.iter().fold(0, |max, w| max.max(w.abs().to_bits()))
}

/// The error for the first weight that is infinite or NaN.
#[cold]
pub(crate) fn not_finite(weights: &[f32]) -> Error {
    let found = weights.iter().enumerate().find(|(_, w)| !w.is_finite());
    let (index, &value) = found.unwrap_or((0, &f32::NAN));
    Error::NotFinite {
        what: "weight",
        index,
        value,
    }
}

/// An error about a part of a tensor, as an error about the whole. first: where the part begins.
pub(crate) fn moved(error: Error, first: usize) -> Error {
    match error {
        Error::NotFinite { what, index, value } => Error::NotFinite {
            what,
            index: first + index,
            value,
        },
        other => other,
    }
}
