//! I2S-32 and QK256, whose codes go down to −2: any bytes give numbers or an error, and floats
//! survive quantizing again.
#![no_main]

use bitnet_fuzz::{WEIGHTS_MAX, filled, floats, scaling, shape};
use bitnet_kernels::Pool;
use bitnet_quantization::{Scaling, i2s_32, qk256};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((rows, cols, switches, bytes)) = shape(input) else {
        return;
    };
    let (scaling, pool) = (scaling(switches, bytes), Pool::new(1));
    let (Ok(small), Ok(large)) = (
        i2s_32::size_bytes(rows, cols),
        qk256::size_bytes(rows, cols),
    ) else {
        assert!(i2s_32::quantize(&[], rows, cols, scaling, &mut [], &pool).is_err());
        assert!(qk256::quantize(&[], rows, cols, scaling, &mut [], &pool).is_err());
        return;
    };
    if rows * cols > WEIGHTS_MAX {
        return;
    }
    let mut out = vec![f32::NAN; rows * cols];
    if i2s_32::dequantize(&filled(bytes, small), rows, cols, &mut out, &pool).is_ok() {
        assert!(out.iter().all(|x| x.is_finite()));
    }
    qk256::dequantize(&filled(bytes, large), 0.5, rows, cols, &mut out, &pool)
        .expect("any codes are weights");
    assert!(out.iter().all(|x| [-1.0, -0.5, 0.0, 0.5].contains(x)));

    let weights = floats(bytes, rows * cols);
    let through_i2s_32 = |weights: &[f32], scaling| {
        let (mut bytes, mut out) = (vec![0xa5; small], vec![f32::NAN; weights.len()]);
        i2s_32::quantize(weights, rows, cols, scaling, &mut bytes, &pool).ok()?;
        i2s_32::dequantize(&bytes, rows, cols, &mut out, &pool).expect("quantized by us");
        Some(out)
    };
    let through_qk256 = |weights: &[f32], scaling| {
        let (mut bytes, mut out) = (vec![0xa5; large], vec![f32::NAN; weights.len()]);
        let scale = qk256::quantize(weights, rows, cols, scaling, &mut bytes, &pool).ok()?;
        qk256::dequantize(&bytes, scale, rows, cols, &mut out, &pool).expect("quantized by us");
        Some(out)
    };
    try_again(&weights, scaling, through_i2s_32);
    try_again(&weights, scaling, through_qk256);
});

fn try_again(
    weights: &[f32],
    scaling: Scaling,
    through: impl Fn(&[f32], Scaling) -> Option<Vec<f32>>,
) {
    let round_trip = through(weights, scaling);
    assert!(round_trip.is_none() || weights.iter().all(|w| w.is_finite()));
    // The code −2 occurs only with a given scale.
    if let Some(ternary) = round_trip.filter(|_| !matches!(scaling, Scaling::Given(_))) {
        assert!(through(&ternary, Scaling::AbsMax).as_ref() == Some(&ternary));
    }
}
