//! Randomness without state: one number for each (seed, position, token), which is the same on
//! every machine and in every batch.

use bitnet_kernels::math::{ln_f64, mix64};

/// The increment of splitmix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The noise for one position of one request.
#[derive(Clone, Copy)]
pub(crate) struct Noise {
    base: u64,
}

impl Noise {
    /// A lower bound of the noise: −ln(−ln 2⁻⁵³) = −3.604.
    pub const GUMBEL_MIN: f64 = -3.61;

    pub fn new(seed: u64, position: u64) -> Self {
        Self {
            base: mix64(
                mix64(seed.wrapping_add(GOLDEN)).wrapping_add(position.wrapping_mul(GOLDEN)),
            ),
        }
    }

    /// 64 random bits for `token`.
    fn bits(self, token: u32) -> u64 {
        mix64(
            self.base
                .wrapping_add((u64::from(token) + 1).wrapping_mul(GOLDEN)),
        )
    }

    /// A number from the standard Gumbel distribution for `token`, between −3.6 and 36.8.
    ///
    /// The token with the largest `logit + gumbel` is a sample of softmax(logits) (the Gumbel-max
    /// trick).
    pub fn gumbel(self, token: u32) -> f64 {
        let bits = self.bits(token);
        // The interval (0, 1) has 2^52 equal parts; this is the middle of one of them, so never 0
        // or 1.
        let uniform = ((bits >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64);
        -ln_f64(-ln_f64(uniform))
    }

    /// At least [`Noise::gumbel`], at most 0.7 more where that is large, and computed without a
    /// logarithm.
    ///
    /// As −ln u ≥ 1 − u, the noise is at most −ln(1 − u), and 1 − u has as many leading zeros as
    /// the inverted bits.
    pub fn gumbel_at_most(self, token: u32) -> f64 {
        let zeros = (!self.bits(token)).leading_zeros();
        f64::from(zeros + 1) * (std::f64::consts::LN_2 + 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gumbel_noise_has_the_right_mean_and_variance() {
        let n = 200_000u32;
        let values: Vec<f64> = (0..n)
            .map(|i| Noise::new(7, u64::from(i / 100)).gumbel(i % 100))
            .collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_216).abs() < 0.01, "mean {mean}");
        assert!((variance - 1.644_934).abs() < 0.02, "variance {variance}");
    }

    #[test]
    fn the_quick_bound_is_never_below_the_noise() {
        let worst = (0..300_000).map(|token| {
            let noise = Noise::new(3, 4);
            let (gumbel, bound) = (noise.gumbel(token), noise.gumbel_at_most(token));
            assert!(gumbel <= bound, "token {token}: {gumbel} above {bound}");
            assert!(gumbel > Noise::GUMBEL_MIN);
            if gumbel > 3.0 { bound - gumbel } else { 0.0 }
        });
        assert!(worst.fold(0.0, f64::max) < 0.75);
    }

    #[test]
    fn every_argument_changes_the_number() {
        let a = Noise::new(1, 2).gumbel(3);
        assert!(
            a != Noise::new(2, 2).gumbel(3)
                && a != Noise::new(1, 3).gumbel(3)
                && a != Noise::new(1, 2).gumbel(4)
        );
    }
}
