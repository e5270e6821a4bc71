//! The absmean quantizer of BitNet b1.58: float weights to −1, 0, 1 and one scale.

use crate::error::{Error, Result, expect_len};

/// The mean below which the paper's formula stops dividing.
const MEAN_MIN: f32 = 1e-5;

/// Quantizes a whole tensor: `s = 1 / max(mean|w|, 1e-5)`, each weight `round(w · s)` clamped to −1…1, ties to even.
///
/// Returns the scale `1 / s`, which multiplies the quantized weights. weights, out: the same length. An infinite weight
/// or a NaN is an error naming its index.
pub fn quantize(weights: &[f32], out: &mut [i8]) -> Result<f32> {
    expect_len("absmean", "output", out.len(), weights.len())?;
    let s = 1.0 / absmean(weights)?.max(MEAN_MIN);
    for (q, w) in out.iter_mut().zip(weights) {
        // Rounding half to even to −1, 0 or 1 is two comparisons: ±0.5 itself goes to 0.
        let x = w * s;
        *q = i8::from(x > 0.5) - i8::from(x < -0.5);
    }
    Ok(1.0 / s)
}

/// The mean of the magnitudes, 0 for no weights.
///
/// Summed in f64, which is exact to far below an f32's last bit, then rounded to f32 before dividing: what an f32 sum
/// followed by a division gives when the sum loses nothing.
pub fn absmean(weights: &[f32]) -> Result<f32> {
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
    let num_weights = weights.len().max(1);
    // Only weights near the end of f32's range have a sum beyond it; their mean is within.
    let mean = sum as f32 / num_weights as f32;
    Ok(if mean.is_finite() { mean } else { (sum / num_weights as f64) as f32 })
}
