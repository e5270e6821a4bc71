//! The absmean quantizer of BitNet b1.58: float weights to −1, 0, 1 and one scale.
//!
//! `s = 1 / max(mean|w|, 1e-5)` over the whole tensor, then each weight `round(w · s)` clamped to
//! −1…1, ties to even. [`quantize`] does it for weights in memory; for a tensor that arrives row by
//! row, [`magnitude_sum`], [`inverse_scale`] and [`round`] give the same result.

use crate::error::{Error, Result, expect_len};
use crate::scaling::{Rounding, not_finite, round_rows};
use crate::vectorized::vectorized;

/// Minimum mean that the formula divides by.
const MEAN_MIN: f32 = 1e-5;

/// Quantizes a whole tensor.
///
/// Returns the scale `1 / s`, which multiplies the quantized weights. weights, out: the same
/// length. An infinite weight or a NaN is an error naming its index.
pub fn quantize(weights: &[f32], out: &mut [i8]) -> Result<f32> {
    expect_len("absmean", "output", out.len(), weights.len())?;
    let s = inverse_scale(magnitude_sum(weights)?, weights.len());
    round(weights, s, out)?;
    Ok(scale(s))
}

/// The factor of codes: `1 / s`, which rounds to infinity if the mean is at the end of f32's range.
#[inline(always)]
#[must_use]
pub fn scale(s: f32) -> f32 {
    (1.0 / s).min(f32::MAX)
}

/// The mean of the magnitudes; 0 without weights.
pub fn absmean(weights: &[f32]) -> Result<f32> {
    Ok(mean(magnitude_sum(weights)?, weights.len()))
}

/// The sum of the magnitudes, in f64, whose error is far below the last bit of an f32.
///
/// An infinite weight or a NaN is an error naming its index.
pub fn magnitude_sum(weights: &[f32]) -> Result<f64> {
    let sum = vectorized_sum(weights);
    if sum.is_finite() {
        Ok(sum)
    } else {
        Err(not_finite(weights))
    }
}

vectorized! {
    fn vectorized_sum<'a>(weights: &'a [f32]) -> f64 {
        sum_of_magnitudes(weights)
    }
}

/// Thirty-two running sums: the order is fixed, and the compiler keeps them in vector registers.
#[inline(always)]
pub(crate) fn sum_of_magnitudes(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<32>();
    let mut lanes = [0.0f64; 32];
    for chunk in chunks {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(w.abs());
        }
    }
    for (lane, w) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(w.abs());
    }
    // A tree of additions, which do not wait for each other.
    let mut width = lanes.len() / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut()
            .zip(high)
            .for_each(|(low, high)| *low += *high);
        width /= 2;
    }
    lanes[0]
}

/// `s` of a tensor of `num_weights` weights whose magnitudes sum to `magnitude_sum`.
#[must_use]
pub fn inverse_scale(magnitude_sum: f64, num_weights: usize) -> f32 {
    1.0 / mean(magnitude_sum, num_weights).max(MEAN_MIN)
}

/// Rounds some weights of a tensor with the `s` of the whole tensor, which is above 0. weights,
/// out: the same length.
pub fn round(weights: &[f32], s: f32, out: &mut [i8]) -> Result<()> {
    expect_len("absmean", "output", out.len(), weights.len())?;
    if !(s > 0.0 && s.is_finite()) {
        return Err(Error::Scale { value: s });
    }
    round_rows(weights, Rounding::absmean(s).one, out);
    Ok(())
}

/// The sum rounded to f32, then divided: the same as an f32 sum followed by a division if the sum
/// is exact.
fn mean(sum: f64, num_weights: usize) -> f32 {
    let num_weights = num_weights.max(1);
    // Only weights near the end of f32's range have a sum beyond it; their mean is still within it.
    let mean = sum as f32 / num_weights as f32;
    if mean.is_finite() {
        mean
    } else {
        (sum / num_weights as f64) as f32
    }
}
