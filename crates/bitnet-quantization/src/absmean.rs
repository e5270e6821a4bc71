//! The absmean quantizer of BitNet b1.58: float weights to −1, 0, 1 and one scale.
//!
//! `s = 1 / max(mean|w|, 1e-5)` over the whole tensor, then each weight `round(w · s)` clamped to −1…1, ties to even.
//! [`quantize`] does it for weights in memory; a tensor that comes a row at a time goes through [`magnitude_sum`],
//! [`inverse_scale`] and [`round`], and gives the same.

use crate::error::{Error, Result, expect_len};

/// The mean below which the paper's formula stops dividing.
const MEAN_MIN: f32 = 1e-5;

/// Quantizes a whole tensor.
///
/// Returns the scale `1 / s`, which multiplies the quantized weights. weights, out: the same length. An infinite weight
/// or a NaN is an error naming its index.
pub fn quantize(weights: &[f32], out: &mut [i8]) -> Result<f32> {
    expect_len("absmean", "output", out.len(), weights.len())?;
    let s = inverse_scale(magnitude_sum(weights)?, weights.len());
    round(weights, s, out)?;
    Ok(1.0 / s)
}

/// The mean of the magnitudes, 0 for no weights.
pub fn absmean(weights: &[f32]) -> Result<f32> {
    Ok(mean(magnitude_sum(weights)?, weights.len()))
}

/// The sum of the magnitudes, in f64, which is exact to far below an f32's last bit.
///
/// An infinite weight or a NaN is an error naming its index.
pub fn magnitude_sum(weights: &[f32]) -> Result<f64> {
    // Sixteen running sums: the order is fixed, and the compiler keeps them in vector registers.
    let (chunks, rest) = weights.as_chunks::<16>();
    let mut lanes = [0.0f64; 16];
    for chunk in chunks {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(w.abs());
        }
    }
    for (lane, w) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(w.abs());
    }
    let sum: f64 = lanes.iter().sum();
    if !sum.is_finite() {
        let found = weights.iter().enumerate().find(|(_, w)| !w.is_finite());
        let (index, &value) = found.unwrap_or((0, &f32::NAN));
        return Err(Error::NotFinite { what: "weight", index, value });
    }
    Ok(sum)
}

/// `s` of a tensor of `num_weights` weights whose magnitudes sum to `magnitude_sum`.
#[must_use]
pub fn inverse_scale(magnitude_sum: f64, num_weights: usize) -> f32 {
    1.0 / mean(magnitude_sum, num_weights).max(MEAN_MIN)
}

/// Rounds weights, any part of a tensor, by the `s` of the whole. weights, out: the same length.
pub fn round(weights: &[f32], s: f32, out: &mut [i8]) -> Result<()> {
    expect_len("absmean", "output", out.len(), weights.len())?;
    for (q, w) in out.iter_mut().zip(weights) {
        // Rounding half to even to −1, 0 or 1 is two comparisons: ±0.5 itself goes to 0.
        let x = w * s;
        *q = i8::from(x > 0.5) - i8::from(x < -0.5);
    }
    Ok(())
}

/// The sum rounded to f32, then divided: what an f32 sum followed by a division gives when the sum loses nothing.
fn mean(sum: f64, num_weights: usize) -> f32 {
    let num_weights = num_weights.max(1);
    // Only weights near the end of f32's range have a sum beyond it; their mean is within.
    let mean = sum as f32 / num_weights as f32;
    if mean.is_finite() { mean } else { (sum / num_weights as f64) as f32 }
}
