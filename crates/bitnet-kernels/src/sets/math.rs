//! Elementary functions made of additions, multiplications and divisions only, so that every CPU
//! gives the same bits.
//!
//! The C library's `exp`, `sin` and `pow` differ between machines in the last bit, and one bit is
//! enough to flip the rounding of an int8 activation. IEEE 754 fixes `+ - * /` and `sqrt`;
//! everything here is built from those, and none of it uses a fused multiply-add.

/// `e^x` for one f32, within 2 units in the last place for −87.3 ≤ x ≤ 88.
///
/// Below −87.3 the result is 0 (no denormals); above 88 it is `e^88`; NaN gives an unspecified
/// value. Cody–Waite reduction by ln 2 in two parts, then a degree-6 polynomial (coefficients of
/// the Cephes library's `expf`). Written without branches so that a loop over it vectorises.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and then subtracting 1.5 · 2^23 rounds to the nearest integer, half to even, and
    // leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < 88.0 { x } else { 88.0 };
    let clamped = if clamped > -87.3 { clamped } else { -87.3 };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    let y = (p * (r * r) + r) + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    let scaled = y * f32::from_bits(exponent << 23);
    if x < -87.3 { 0.0 } else { scaled }
}

/// `e^x` for one f64, relative error below 1e-15 for |x| ≤ 700; 0 below −700 and `e^700` above.
#[must_use]
pub fn exp_f64(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52
    if x < -700.0 {
        return 0.0;
    }
    let x = if x < 700.0 { x } else { 700.0 };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    // Taylor series; |r| ≤ 0.347, so the first term left out is below 2e-18.
    let mut p = 1.0;
    for k in (1..=14).rev() {
        p = p * r / f64::from(k) + 1.0;
    }
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits())).wrapping_add(1023);
    p * f64::from_bits(exponent << 52)
}

/// Natural logarithm of a positive, normal f64, relative error below 1e-15 away from x = 1 and
/// absolute below 1e-16 near it.
///
/// # Panics
/// If `x` is not a positive normal number.
#[must_use]
pub fn ln_f64(x: f64) -> f64 {
    assert!(
        x.is_normal() && x > 0.0,
        "ln_f64 of {x}, which is not a positive normal number"
    );
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh((m − 1)/(m + 1)), |s| ≤ 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut p = 0.0;
    for k in (0..=12).rev() {
        p = p * s2 + 1.0 / f64::from(2 * k + 1);
    }
    let e = exponent as f64;
    e * 0.693_147_180_369_123_8 + (e * 1.908_214_929_270_587_7e-10 + 2.0 * s * p)
}

/// `base^exponent` for a positive base, through [`ln_f64`] and [`exp_f64`].
///
/// # Panics
/// If `base` is not a positive normal number.
#[must_use]
pub fn pow_f64(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln_f64(base))
}

/// `(sin x, cos x)` of an angle in radians, each correctly rounded to f32 in all but rare cases,
/// for |x| ≤ 1e7.
#[must_use]
pub fn sin_cos(x: f32) -> (f32, f32) {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUND;
    let n = shifted - ROUND;
    // π/2 in two parts; the first has 20 zero bits at its end, so n · HI is exact for n below a
    // million.
    let r = (x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_506_192e-11;
    let r2 = r * r;
    let mut s = 0.0;
    for k in (1..=7).rev() {
        s = (1.0 + s) * (-r2 / f64::from((2 * k) * (2 * k + 1)));
    }
    let sin = (r + r * s) as f32;
    let mut c = 0.0;
    for k in (1..=7).rev() {
        c = (1.0 + c) * (-r2 / f64::from((2 * k - 1) * (2 * k)));
    }
    let cos = (1.0 + c) as f32;
    match shifted.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output
/// bit.
#[inline]
#[must_use]
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The median, or the mean of the middle two of an even number of values; `None` without values.
/// Sorts `values`.
#[must_use]
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The 95 % confidence interval of the median, from order statistics, so valid for any
/// distribution. `None` without values. Sorts `values`.
#[must_use]
pub fn median_interval(values: &mut [f64]) -> Option<[f64; 2]> {
    values.sort_by(f64::total_cmp);
    let (n, middle) = (values.len(), values.len() / 2);
    let half_width = (0.98 * (n as f64).sqrt()).ceil() as usize;
    let last = n.checked_sub(1)?;
    let (low, high) = (middle.saturating_sub(half_width), middle + half_width);
    Some([values[low], values[high.min(last)]])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_interval_comes_from_order_statistics() {
        // Of 100 sorted values, the 41st and the 61st enclose the median with 95 % confidence
        // (binomial distribution).
        let mut values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(median_interval(&mut values), Some([40.0, 60.0]));
        assert_eq!(median_interval(&mut [3.0]), Some([3.0, 3.0]));
        assert_eq!(median_interval(&mut []), None);
    }

    #[test]
    fn mix64_gives_the_numbers_of_splitmix64() {
        // The first outputs for seed 0, from the authors' program.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        assert_eq!(mix64(GOLDEN), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix64(GOLDEN.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_middle_two() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 10.0]), Some(3.0));
    }

    use super::*;

    /// The distance between two f32 in units of the larger one's last place.
    fn ulps(a: f32, b: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * b.abs().max(f64::from(f32::MIN_POSITIVE));
        (f64::from(a) - b).abs() / unit
    }

    #[test]
    fn exp_is_within_two_ulps_of_the_true_value() {
        let mut x = -87.0f32;
        while x < 88.0 {
            assert!(
                ulps(exp(x), f64::from(x).exp()) <= 2.0,
                "exp({x}) = {}",
                exp(x)
            );
            x += 0.001_7;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn double_precision_functions_are_close_to_the_true_value() {
        for i in 1..4000 {
            let x = f64::from(i) * 0.13;
            assert!(
                (ln_f64(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0),
                "ln({x})"
            );
            let y = f64::from(i - 2000) * 0.2;
            assert!((exp_f64(y) / y.exp() - 1.0).abs() < 2e-15, "exp({y})");
            let p = pow_f64(500_000.0, x / 520.0);
            assert!(
                (p / 500_000f64.powf(x / 520.0) - 1.0).abs() < 1e-14,
                "pow {x}"
            );
        }
    }

    #[test]
    fn sine_and_cosine_are_rounded_correctly_at_every_position() {
        for i in 0..200_000 {
            let x = i as f32 * 0.731;
            let (s, c) = sin_cos(x);
            assert!(
                (f64::from(s) - f64::from(x).sin()).abs() < 6.1e-8,
                "sin({x})"
            );
            assert!(
                (f64::from(c) - f64::from(x).cos()).abs() < 6.1e-8,
                "cos({x})"
            );
        }
    }
}
