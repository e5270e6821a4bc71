//! Quantizes values to Q6_K blocks, with the same bytes as llama.cpp's quantizer.
//!
//! Each run of 16 values has its own scale. Rounding by the largest magnitude alone is not best, so
//! the quantizer tries nineteen scales near it and keeps the one with the smallest squared error,
//! weighted by the square of each value.

use half::f16;

/// A run with smaller magnitudes counts as zero.
const MAGNITUDE_MIN: f32 = 1e-15;
/// A value above this is too large for any scale, and the sums would exceed f32.
const MAGNITUDE_MAX: f32 = 1e9;
/// Values in a run.
const RUN: usize = 16;
/// Quants have six bits: −32 to 31.
const QUANT_MAX: f32 = 32.0;
/// The scales to try, as shifts of [`QUANT_MAX`] in tenths: first no shift, then the others
/// ascending.
const SHIFTS: [i8; 19] = [
    0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
];

/// Quantizes one block. `None` if a value is too large for the f16 scale; values must be finite.
pub(crate) fn quantize(values: &[f32; 256], block: &mut [u8; 210]) -> Option<()> {
    if values.iter().any(|x| x.abs() > MAGNITUDE_MAX) {
        return None;
    }
    let (runs, _) = values.as_chunks::<RUN>();
    let mut scales = [0.0f32; 16];
    let mut quants = [[0i8; RUN]; 16];
    let mut largest = 0.0f32;
    for ((run, scale), quants) in runs.iter().zip(&mut scales).zip(&mut quants) {
        (*scale, *quants) = best_scale(run);
        if scale.abs() > largest.abs() {
            largest = *scale;
        }
    }
    block.fill(0);
    if largest.abs() < MAGNITUDE_MIN {
        return Some(());
    }
    let inverse = -128.0 / largest;
    let d = f16::from_f32(1.0 / inverse);
    if !d.is_finite() {
        return None;
    }
    for ((index, run), quants) in runs.iter().enumerate().zip(&mut quants) {
        let scale = round(inverse * scales[index]).min(127.0) as i8;
        block[192 + index] = scale as u8;
        let step = d.to_f32() * f32::from(scale);
        if step != 0.0 {
            *quants = run.map(|x| round(x / step).clamp(-QUANT_MAX, QUANT_MAX - 1.0) as i8);
        }
    }
    for (half, quants) in quants
        .as_flattened()
        .as_chunks::<128>()
        .0
        .iter()
        .enumerate()
    {
        for l in 0..32 {
            let [a, b, c, d] = [0, 32, 64, 96].map(|run| (quants[l + run] + 32) as u8);
            block[64 * half + l] = a & 15 | (c & 15) << 4;
            block[64 * half + 32 + l] = b & 15 | (d & 15) << 4;
            block[128 + 32 * half + l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
    block[208..].copy_from_slice(&d.to_le_bytes());
    Some(())
}

/// The best scale of a run, and the quants with it.
fn best_scale(run: &[f32; RUN]) -> (f32, [i8; RUN]) {
    let mut largest = 0.0f32;
    for x in run {
        if x.abs() > largest.abs() {
            largest = *x;
        }
    }
    if largest.abs() < MAGNITUDE_MIN {
        // With a scale of 0 any codes would do; llama.cpp writes these.
        return (0.0, [-QUANT_MAX as i8; RUN]);
    }
    let inverses = SHIFTS.map(|shift| -(QUANT_MAX + 0.1 * f32::from(shift)) / largest);
    // Each candidate sums over the values in their order; the candidates lie side by side in
    // registers.
    let (mut products, mut squares) = ([0.0f32; SHIFTS.len()], [0.0f32; SHIFTS.len()]);
    for &x in run {
        let weight = x * x;
        for ((inverse, product), square) in inverses.iter().zip(&mut products).zip(&mut squares) {
            let quant = round(inverse * x).clamp(-QUANT_MAX, QUANT_MAX - 1.0);
            *product += weight * x * quant;
            *square += weight * quant * quant;
        }
    }
    let fit = |at: usize| {
        if squares[at] > 0.0 {
            products[at] / squares[at]
        } else {
            0.0
        }
    };
    let (mut best, mut best_gain) = (0, fit(0) * products[0]);
    for at in 1..SHIFTS.len() {
        if squares[at] > 0.0 && products[at] * products[at] > best_gain * squares[at] {
            (best, best_gain) = (at, fit(at) * products[at]);
        }
    }
    (
        fit(best),
        run.map(|x| round(inverses[best] * x).clamp(-QUANT_MAX, QUANT_MAX - 1.0) as i8),
    )
}

/// Rounds half to even, for magnitudes below 2²²; unlike the library's function it takes one
/// addition and one subtraction.
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::hex_sha256;

    #[test]
    fn blocks_equal_llama_cpps_blocks() {
        // Runs of every magnitude from 2⁻¹¹ to 2¹¹, and some of zeros.
        let mut state = 88_172_645_463_325_252_u64;
        let values = (0..256 * 256).map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let run = i / 16;
            let size = if run % 29 == 5 {
                0.0
            } else {
                2f32.powi(run * 7 % 23 - 11)
            };
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
        });
        let values: Vec<f32> = values.collect();
        let mut bytes = vec![0; 256 * 210];
        for (values, block) in values.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
            quantize(values, block).expect("values of a size");
        }
        // The result of `quantize_row_q6_K_ref` in bitnet.cpp's llama.cpp, compiled with
        // `-ffp-contract=off`: fused multiplications and additions round a few values differently.
        let expected = "e3d37b67a4fe97f818b76bd667a00c8c0bd6186e947fbc872ddc84c8cd290e18";
        assert_eq!(hex_sha256(&bytes), expected);
    }

    #[test]
    fn the_first_of_the_largest_runs_sets_the_scale() {
        let mut values = [0.0; 256];
        (values[16], values[32]) = (1.0, -1.0);
        let mut block = [0; 210];
        quantize(&values, &mut block).expect("values of a size");
        assert_eq!(
            [block[192], block[193], block[194]].map(|scale| scale as i8),
            [0, -128, 127]
        );
        // The same holds in a run: 1 is −32 times a negative scale, which is −128 times d.
        (values[16], values[17], values[32]) = (1.0, -1.0, 0.0);
        quantize(&values, &mut block).expect("values of a size");
        assert!(f16::from_le_bytes([block[208], block[209]]) > f16::ZERO);
    }
}
