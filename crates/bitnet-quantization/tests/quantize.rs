//! Floats to codes and back in every format: exact for ternary weights, the same on any number of
//! threads, and an error for invalid numbers or shapes.

use std::sync::LazyLock;

use bitnet_kernels::Pool;
use bitnet_quantization::{
    BlockForm, Error, Scaling, TernaryFormat, absmean, i2_s, i2s_32, iq_bn, qk256, tl1, tl2, tq,
};
use half::f16;
use i2_s::Form;
use proptest::prelude::*;
use tq::Kind;

const FORMATS: [TernaryFormat; 11] = [
    TernaryFormat::I2_S(Form::Block128),
    TernaryFormat::I2_S(Form::Block64),
    TernaryFormat::I2_S(Form::Row4),
    TernaryFormat::TL1(tl1::Tile {
        tile_rows: 64,
        block_cols: 32,
        inner_rows: 32,
    }),
    TernaryFormat::TL2(tl2::Tile {
        tile_rows: 32,
        block_cols: 96,
    }),
    TernaryFormat::TQ(Kind::TQ1_0),
    TernaryFormat::TQ(Kind::TQ2_0),
    TernaryFormat::Q4_0,
    TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN),
    TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN),
    TernaryFormat::HfPacked,
];

static ONE_THREAD: LazyLock<std::sync::Mutex<Pool>> =
    LazyLock::new(|| std::sync::Mutex::new(Pool::new(1)));

/// Random weights −1, 0, 1.
fn ternary(seed: u64, len: usize) -> Vec<i8> {
    numbers(seed, len)
        .into_iter()
        .map(|x| (x % 3) as i8 - 1)
        .collect()
}

/// Random weights from −1 to 1.
fn floats(seed: u64, len: usize) -> Vec<f32> {
    numbers(seed, len)
        .into_iter()
        .map(|x| (x % 2_000_001) as f32 / 1e6 - 1.0)
        .collect()
}

fn numbers(seed: u64, len: usize) -> Vec<u64> {
    let mut x = seed | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x >> 8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn scaled(weights: &[i8], scale: f32) -> Vec<f32> {
    weights.iter().map(|&w| f32::from(w) * scale).collect()
}

fn quantized(
    format: TernaryFormat,
    weights: &[f32],
    rows: usize,
    scaling: Scaling,
) -> Result<(Vec<u8>, f32), Error> {
    let cols = weights.len() / rows;
    let mut bytes = vec![0xa5; format.size_bytes(rows, cols)?];
    let pool = ONE_THREAD
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let scale = format.quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
    Ok((bytes, scale))
}

fn dequantized(
    format: TernaryFormat,
    bytes: &[u8],
    scale: f32,
    rows: usize,
    cols: usize,
) -> Result<Vec<f32>, Error> {
    let outer = if format == TernaryFormat::HfPacked {
        scale
    } else {
        1.0
    };
    let mut out = vec![f32::NAN; rows * cols];
    let pool = ONE_THREAD
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    format.dequantize_rows(bytes, outer, (rows, cols), 0..rows, &mut out, &pool)?;
    Ok(out)
}

/// Quantizes to I2S-32 and back.
fn through_i2s_32(weights: &[f32], rows: usize, scaling: Scaling) -> Result<Vec<f32>, Error> {
    let cols = weights.len() / rows;
    let mut bytes = vec![0xa5; i2s_32::size_bytes(rows, cols)?];
    let mut out = vec![f32::NAN; weights.len()];
    let pool = Pool::new(1);
    i2s_32::quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
    i2s_32::dequantize(&bytes, rows, cols, &mut out, &pool)?;
    Ok(out)
}

/// Quantizes to QK256 and back.
fn through_qk256(weights: &[f32], rows: usize, scaling: Scaling) -> Result<Vec<f32>, Error> {
    let cols = weights.len() / rows;
    let mut bytes = vec![0xa5; qk256::size_bytes(rows, cols)?];
    let mut out = vec![f32::NAN; weights.len()];
    let pool = Pool::new(1);
    let scale = qk256::quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
    qk256::dequantize(&bytes, scale, rows, cols, &mut out, &pool)?;
    Ok(out)
}

/// Scales whose eighth is an f16: every format can hold them.
fn scales() -> impl Strategy<Value = f32> {
    (1u16..2048, -10i32..10)
        .prop_map(|(mantissa, exponent)| f32::from(mantissa) * 2f32.powi(exponent - 10))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ternary_weights_times_a_scale_survive_exactly(
        which in 0..FORMATS.len(),
        (row_blocks, col_blocks) in (1usize..3, 1usize..4),
        scale in scales(),
        seed: u64,
    ) {
        let (rows, cols) = (64 * row_blocks, 256 * col_blocks);
        let weights = scaled(&ternary(seed, rows * cols), scale);
        for scaling in [Scaling::AbsMax, Scaling::Given(scale)] {
            let (bytes, found) = quantized(FORMATS[which], &weights, rows, scaling).unwrap();
            prop_assert_eq!(found, scale);
            prop_assert_eq!(&dequantized(FORMATS[which], &bytes, found, rows, cols).unwrap(), &weights);
            prop_assert_eq!(&through_i2s_32(&weights, rows, scaling).unwrap(), &weights);
            prop_assert_eq!(&through_qk256(&weights, rows, scaling).unwrap(), &weights);
        }
    }

    #[test]
    fn quantizing_is_rounding_then_packing(
        which in 0..FORMATS.len(),
        (row_blocks, col_blocks) in (1usize..3, 1usize..4),
        seed: u64,
    ) {
        let (rows, cols) = (64 * row_blocks, 256 * col_blocks);
        let weights = floats(seed, rows * cols);
        let mut codes = vec![9; weights.len()];
        let expected_scale = absmean::quantize(&weights, &mut codes).unwrap();
        let (bytes, scale) = quantized(FORMATS[which], &weights, rows, Scaling::AbsMean).unwrap();
        prop_assert_eq!(scale, expected_scale);
        let mut expected = vec![0x5a; bytes.len()];
        FORMATS[which].pack(&codes, rows, cols, scale, &mut expected).unwrap();
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn the_largest_weight_is_the_scale_and_no_error_exceeds_half_of_it(
        which in 0..FORMATS.len(),
        magnitude in 1e-3f32..1e3,
        seed: u64,
    ) {
        let (rows, cols) = (64, 256);
        let weights: Vec<f32> = floats(seed, rows * cols).iter().map(|w| w * magnitude).collect();
        let max = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let (bytes, scale) = quantized(FORMATS[which], &weights, rows, Scaling::AbsMax).unwrap();
        prop_assert_eq!(scale, max);
        let out = dequantized(FORMATS[which], &bytes, scale, rows, cols).unwrap();
        // The scale itself may have been rounded to an f16; an eighth of it may be close to the
        // smallest f16.
        let allowed = max * (0.5 + 1e-3);
        prop_assert!(weights.iter().zip(&out).all(|(w, x)| (w - x).abs() <= allowed));
        for out in [through_i2s_32(&weights, rows, Scaling::AbsMax), through_qk256(&weights, rows, Scaling::AbsMax)] {
            prop_assert!(weights.iter().zip(&out.unwrap()).all(|(w, x)| (w - x).abs() <= allowed));
        }
    }

    #[test]
    fn the_mean_bounds_the_scale(magnitude in 1e-7f32..1e3, seed: u64) {
        let weights: Vec<f32> = floats(seed, 64 * 256).iter().map(|w| w * magnitude).collect();
        let max = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let (_, scale) = quantized(FORMATS[0], &weights, 64, Scaling::AbsMean).unwrap();
        prop_assert!(scale >= 0.999_999e-5 && scale <= max.max(1.000_001e-5), "{} {}", scale, max);
    }

    #[test]
    fn a_threshold_is_where_the_product_rounds_up(bits in 1u32..0x7f00_0000, steps in -20i32..20) {
        // Any s, with weights around 0.5 / s, where the rounding changes.
        let s = f32::from_bits(bits);
        let near = (0.5 / s).min(f32::MAX).to_bits().saturating_add_signed(steps).min(f32::MAX.to_bits());
        let weights = [f32::from_bits(near), -f32::from_bits(near)];
        let mut out = [9; 2];
        absmean::round(&weights, s, &mut out).unwrap();
        let expected = weights.map(|w| i8::from(w * s > 0.5) - i8::from(w * s < -0.5));
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn rows_of_any_length_survive_the_block_formats(
        rows in 1usize..4,
        cols in 1usize..700,
        scale in scales(),
        seed: u64,
    ) {
        let weights = scaled(&ternary(seed, rows * cols), scale);
        prop_assert_eq!(&through_i2s_32(&weights, rows, Scaling::AbsMax).unwrap(), &weights);
        prop_assert_eq!(&through_qk256(&weights, rows, Scaling::Given(scale)).unwrap(), &weights);
    }

    #[test]
    fn the_smallest_block_form_is_the_smallest(rows in 1usize..200, cols in 1usize..3000) {
        let form = BlockForm::smallest(rows, cols).unwrap();
        let bytes = form.num_bytes(rows, cols).unwrap();
        for other in BlockForm::ALL {
            let more = other.num_bytes(rows, cols).unwrap();
            prop_assert!(bytes < more || bytes == more && form.block_len() >= other.block_len(), "{other:?}: {more}");
        }
    }

    #[test]
    fn the_estimated_memory_equals_the_size_after_quantizing(seed: u64, rows in 1usize..20, cols in 1usize..600) {
        let (weights, pool) = (floats(seed, rows * cols), Pool::new(1));
        for (form, outside) in [(BlockForm::I2S_32, 0), (BlockForm::QK256, size_of::<f32>())] {
            let inside = form.num_bytes(rows, cols).unwrap() - outside;
            for (len, fits) in [(inside - 1, false), (inside, true), (inside + 1, false)] {
                let mut out = vec![0; len];
                let result = match form {
                    BlockForm::I2S_32 => i2s_32::quantize(&weights, rows, cols, Scaling::AbsMean, &mut out, &pool),
                    BlockForm::QK256 => qk256::quantize(&weights, rows, cols, Scaling::AbsMean, &mut out, &pool).map(drop),
                };
                prop_assert_eq!(result.is_ok(), fits, "{:?}: {} bytes", form, len);
            }
        }
    }

    #[test]
    fn random_bytes_dequantize_to_numbers_or_to_an_error(which in 0..FORMATS.len(), seed: u64, flips in 0usize..6) {
        let (rows, cols) = (64, 256);
        let (mut bytes, _) = quantized(FORMATS[which], &floats(seed, rows * cols), rows, Scaling::AbsMean).unwrap();
        for (i, x) in numbers(seed, flips).into_iter().enumerate() {
            let at = if i % 2 == 0 { bytes.len() - 1 - x as usize % 32 } else { x as usize % bytes.len() };
            bytes[at] = (x >> 32) as u8;
        }
        if let Ok(out) = dequantized(FORMATS[which], &bytes, 1.0, rows, cols) {
            prop_assert!(out.iter().all(|x| x.is_finite()));
        }
        let mut out = vec![0.0; 37 * 32];
        let random: Vec<u8> = numbers(seed, 370).into_iter().map(|x| x as u8).collect();
        if i2s_32::dequantize(&random, 1, 37 * 32, &mut out, &Pool::new(1)).is_ok() {
            prop_assert!(out.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_named(which in 0..FORMATS.len(), at in 0usize..64 * 511, kind in 0usize..3) {
        let mut weights = floats(3, 64 * 512);
        weights[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
        for scaling in [Scaling::AbsMean, Scaling::AbsMax, Scaling::Given(0.5)] {
            for result in [
                quantized(FORMATS[which], &weights, 64, scaling).map(|_| ()),
                through_i2s_32(&weights, 64, scaling).map(|_| ()),
                through_i2s_32(&weights[..64 * 511], 64, scaling).map(|_| ()),
                through_qk256(&weights, 64, scaling).map(|_| ()),
            ] {
                let named = matches!(result, Err(Error::NotFinite { what: "weight", index, .. }) if index == at);
                prop_assert!(named, "{:?} {:?}", scaling, result);
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    // This size is large enough that threads share the work.
    let (rows, cols) = (512, 1024);
    let weights = floats(11, rows * cols);
    let mut broken = weights.clone();
    (broken[400_000], broken[500_000]) = (f32::NAN, f32::INFINITY);
    let pool = Pool::new(3);
    let mut out = vec![0.0; weights.len()];
    for format in FORMATS {
        for scaling in [Scaling::AbsMean, Scaling::AbsMax] {
            let (expected, scale) = quantized(format, &weights, rows, scaling).unwrap();
            let mut bytes = vec![0x5a; expected.len()];
            assert_eq!(
                format.quantize(&weights, rows, cols, scaling, &mut bytes, &pool),
                Ok(scale)
            );
            assert!(bytes == expected, "{format:?}");
            format
                .dequantize_rows(&bytes, 1.0, (rows, cols), 0..rows, &mut out, &pool)
                .unwrap();
            let one_thread = dequantized(format, &bytes, 1.0, rows, cols).unwrap();
            assert!(
                format == TernaryFormat::HfPacked || out == one_thread,
                "{format:?}"
            );
            let error = format
                .quantize(&broken, rows, cols, scaling, &mut bytes, &pool)
                .unwrap_err();
            assert!(
                matches!(error, Error::NotFinite { index: 400_000, .. }),
                "{error}"
            );
        }
    }
    for scaling in [Scaling::AbsMean, Scaling::AbsMax, Scaling::Given(0.5)] {
        let mut bytes = vec![0; i2s_32::size_bytes(rows, cols).unwrap()];
        i2s_32::quantize(&weights, rows, cols, scaling, &mut bytes, &pool).unwrap();
        i2s_32::dequantize(&bytes, rows, cols, &mut out, &pool).unwrap();
        assert!(out == through_i2s_32(&weights, rows, scaling).unwrap());
        let error = i2s_32::quantize(&broken, rows, cols, scaling, &mut bytes, &pool).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { index: 400_000, .. }),
            "{error}"
        );
        let mut bytes = vec![0; qk256::size_bytes(rows, cols).unwrap()];
        let scale = qk256::quantize(&weights, rows, cols, scaling, &mut bytes, &pool).unwrap();
        qk256::dequantize(&bytes, scale, rows, cols, &mut out, &pool).unwrap();
        assert!(out == through_qk256(&weights, rows, scaling).unwrap());
    }
}

#[test]
fn any_rows_can_be_dequantized_alone() {
    let (rows, cols) = (192, 256);
    let weights = scaled(&ternary(5, rows * cols), 0.5);
    for format in FORMATS {
        let (bytes, scale) = quantized(format, &weights, rows, Scaling::AbsMax).unwrap();
        // The expected weights are twice as large as before.
        let outer = if format == TernaryFormat::HfPacked {
            2.0 * scale
        } else {
            2.0
        };
        for range in [0..0, 0..1, 3..7, 31..97, 100..192, 191..192, 1..192] {
            let mut out = vec![f32::NAN; range.len() * cols];
            format
                .dequantize_rows(
                    &bytes,
                    outer,
                    (rows, cols),
                    range.clone(),
                    &mut out,
                    &Pool::new(1),
                )
                .unwrap();
            let mut rows = weights[range.start * cols..range.end * cols]
                .iter()
                .zip(out);
            assert!(
                rows.all(|(weight, out)| out == 2.0 * weight),
                "{format:?} {range:?}"
            );
        }
        let error = format.dequantize_rows(
            &bytes,
            1.0,
            (rows, cols),
            190..193,
            &mut [0.0; 768],
            &Pool::new(1),
        );
        assert!(
            matches!(error, Err(Error::Rows { end: 193, .. })),
            "{error:?}"
        );
    }
}

#[test]
fn the_block_formats_are_laid_out_as_described() {
    // Codes 0, 1, −2, −1 are stored as 0, 1, 2, 3, the first one in the low bits.
    let mut weights = [0.0; 32];
    weights[..8].copy_from_slice(&[0.0, 0.5, -1.0, -0.5, 0.5, -0.2, 0.3, -2.0]);
    let mut bytes = [0; 10];
    i2s_32::quantize(
        &weights,
        1,
        32,
        Scaling::Given(0.5),
        &mut bytes,
        &Pool::new(1),
    )
    .unwrap();
    assert_eq!(bytes[..3], [0b11_10_01_00, 0b10_01_00_01, 0]);
    assert_eq!(bytes[8..], f16::from_f32(0.5).to_le_bytes());
    let mut out = [9.0; 32];
    i2s_32::dequantize(&bytes, 1, 32, &mut out, &Pool::new(1)).unwrap();
    assert_eq!(out[..9], [0.0, 0.5, -1.0, -0.5, 0.5, 0.0, 0.5, -1.0, 0.0]);

    let mut bytes = [0; 128];
    let mut weights = [0.0; 300];
    (weights[6], weights[258]) = (-3.0, 3.0);
    assert_eq!(
        qk256::quantize(
            &weights,
            1,
            300,
            Scaling::Given(1.5),
            &mut bytes,
            &Pool::new(1)
        ),
        Ok(1.5)
    );
    let mut expected = [0; 128];
    (expected[1], expected[64]) = (0b10_0000, 0b01_0000);
    assert_eq!(bytes, expected);
    let mut out = [9.0; 300];
    qk256::dequantize(&bytes, 1.5, 1, 300, &mut out, &Pool::new(1)).unwrap();
    assert_eq!((out[6], out[258], out[0], out[299]), (-3.0, 1.5, 0.0, 0.0));
}

#[test]
fn every_block_has_its_own_scale() {
    let mut weights: Vec<f32> = [[0.25; 32], [0.0; 32], [-4.0; 32]].concat();
    weights[40] = f32::from_bits(1);
    let mut bytes = [0; 30];
    i2s_32::quantize(&weights, 1, 96, Scaling::AbsMax, &mut bytes, &Pool::new(1)).unwrap();
    let scale =
        |block: usize| f16::from_le_bytes([bytes[10 * block + 8], bytes[10 * block + 9]]).to_f32();
    // A scale below the range of f16 becomes 0, and so does its block.
    assert_eq!([scale(0), scale(1), scale(2)], [0.25, 0.0, 4.0]);
    i2s_32::quantize(&weights, 1, 96, Scaling::AbsMean, &mut bytes, &Pool::new(1)).unwrap();
    weights[95] = 1e5;
    let error =
        i2s_32::quantize(&weights, 1, 96, Scaling::AbsMax, &mut bytes, &Pool::new(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "scale of block 2 is inf, which is not finite"
    );
    bytes[18..20].copy_from_slice(&f16::NAN.to_le_bytes());
    let error = i2s_32::dequantize(&bytes, 1, 96, &mut [0.0; 96], &Pool::new(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "scale of block 1 is NaN, which is not finite"
    );
    // Each row has two blocks, and the second is not full. The values are in the second block of
    // the fourth row.
    let mut weights = [0.5; 6 * 40];
    let mut bytes = [0; 6 * 20];
    i2s_32::quantize(&weights, 6, 40, Scaling::AbsMax, &mut bytes, &Pool::new(1)).unwrap();
    weights[3 * 40 + 35] = 1e5;
    let error = i2s_32::quantize(
        &weights,
        6,
        40,
        Scaling::AbsMax,
        &mut [0; 120],
        &Pool::new(1),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "scale of block 7 is inf, which is not finite"
    );
    bytes[78..80].copy_from_slice(&f16::NAN.to_le_bytes());
    let error = i2s_32::dequantize(&bytes, 6, 40, &mut [0.0; 240], &Pool::new(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "scale of block 7 is NaN, which is not finite"
    );
}

#[test]
fn denormal_weights_are_quantized_like_others() {
    let smallest = f32::from_bits(1);
    let mut weights = vec![0.0; 128];
    (weights[3], weights[4], weights[5]) = (smallest, -smallest, 3.0 * smallest);
    let format = TernaryFormat::I2_S(Form::Block128);
    let back = |scaling| {
        let (bytes, scale) = quantized(format, &weights, 1, scaling).unwrap();
        let out = dequantized(format, &bytes, scale, 1, 128).unwrap();
        ([out[2], out[3], out[4], out[5]], scale)
    };
    assert_eq!(
        back(Scaling::Given(smallest)),
        ([0.0, smallest, -smallest, smallest], smallest)
    );
    assert_eq!(
        back(Scaling::AbsMax),
        ([0.0, 0.0, 0.0, 3.0 * smallest], 3.0 * smallest)
    );
    weights[5] = smallest;
    let (bytes, _) = quantized(format, &weights, 1, Scaling::AbsMax).unwrap();
    assert_eq!(dequantized(format, &bytes, 1.0, 1, 128).unwrap(), weights);
    // The formula never divides by less than 1e-5.
    let (bytes, scale) = quantized(format, &weights, 1, Scaling::AbsMean).unwrap();
    assert_eq!(scale, 1.0 / (1.0 / 1e-5f32));
    assert_eq!(
        dequantized(format, &bytes, 1.0, 1, 128).unwrap(),
        [0.0; 128]
    );
    // All zeros have the scale 0 under AbsMax.
    assert_eq!(
        quantized(format, &[0.0; 128], 1, Scaling::AbsMax).unwrap(),
        (vec![0x55; 32].into_iter().chain([0; 32]).collect(), 0.0)
    );
}

#[test]
fn ties_follow_the_rule_of_each_quantizer() {
    let weights = [1.0, 0.5, -0.5, 0.25, -1.0, 0.5f32.next_down(), 0.75, -0.75];
    let codes = |scaling| -> Vec<f32> { through_qk256(&weights, 1, scaling).unwrap() };
    assert_eq!(
        codes(Scaling::AbsMax),
        [1.0, 1.0, -1.0, 0.0, -1.0, 0.0, 1.0, -1.0]
    );
    assert_eq!(
        codes(Scaling::Given(1.0)),
        [1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, -1.0]
    );
    // −1.5 times the scale goes to the even code −2; there is no code below.
    assert_eq!(
        codes(Scaling::Given(0.5)),
        [0.5, 0.5, -0.5, 0.0, -1.0, 0.5, 0.5, -1.0]
    );
    assert_eq!(codes(Scaling::Given(0.125))[4..6], [-0.25, 0.125]);
}

#[test]
fn invalid_shapes_and_scales_are_refused() {
    let huge = (18_436_137_873_095_478_032u64 as usize, 1_212_696_576);
    let pool = Pool::new(1);
    for format in FORMATS {
        let refused = format.quantize(&[], huge.0, huge.1, Scaling::AbsMean, &mut [], &pool);
        assert!(
            matches!(refused, Err(Error::Shape { .. })),
            "{format:?}: {refused:?}"
        );
        let refused = format.dequantize_rows(&[], 1.0, huge, 0..1, &mut [], &pool);
        assert!(
            matches!(refused, Err(Error::Shape { .. })),
            "{format:?}: {refused:?}"
        );
        for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let refused = quantized(format, &[0.5; 64 * 256], 64, Scaling::Given(value));
            assert!(
                matches!(refused, Err(Error::Scale { .. })),
                "{format:?}: {refused:?}"
            );
        }
        let mut bytes = vec![0; format.size_bytes(64, 256).unwrap()];
        let refused = format.quantize(
            &[0.5; 64 * 256 - 1],
            64,
            256,
            Scaling::AbsMean,
            &mut bytes,
            &pool,
        );
        assert!(
            matches!(refused, Err(Error::Length { what: "input", .. })),
            "{format:?}: {refused:?}"
        );
        let refused = format.quantize(
            &[0.5; 64 * 256],
            64,
            256,
            Scaling::AbsMean,
            &mut bytes[1..],
            &pool,
        );
        assert!(
            matches!(refused, Err(Error::Length { what: "output", .. })),
            "{format:?}: {refused:?}"
        );
        let refused = format.dequantize_rows(
            &bytes,
            f32::NAN,
            (64, 256),
            0..64,
            &mut vec![0.0; 64 * 256],
            &pool,
        );
        assert!(
            matches!(refused, Err(Error::NotFinite { .. })),
            "{format:?}: {refused:?}"
        );
    }
    for size in [i2s_32::size_bytes, qk256::size_bytes] {
        assert!(matches!(size(huge.0, huge.1), Err(Error::Shape { .. })));
        assert!(matches!(size(usize::MAX / 64, 1), Err(Error::Shape { .. })));
        assert!(size(0, 32).is_err() && size(32, 0).is_err());
    }
    assert_eq!(
        (i2s_32::size_bytes(3, 33), qk256::size_bytes(3, 257)),
        (Ok(60), Ok(384))
    );
    let odd = quantized(FORMATS[0], &[0.5; 100], 10, Scaling::AbsMean).unwrap_err();
    assert_eq!(
        odd.to_string(),
        "I2_S cannot hold a [10, 10] matrix: the number of weights must be a multiple of 128"
    );
    let refused = qk256::dequantize(&[0; 64], f32::INFINITY, 1, 256, &mut [0.0; 256], &pool);
    assert!(matches!(
        refused,
        Err(Error::NotFinite { what: "scale", .. })
    ));
    assert!(qk256::dequantize(&[0; 63], 1.0, 1, 256, &mut [0.0; 256], &pool).is_err());
    assert!(i2s_32::dequantize(&[0; 10], 1, 32, &mut [0.0; 31], &pool).is_err());
    // A block scale may be in the range of f32 but not of f16.
    for format in &FORMATS[5..8] {
        let refused = quantized(*format, &vec![1e7; 64 * 256], 64, Scaling::AbsMax);
        assert!(
            matches!(refused, Err(Error::NotFinite { .. })),
            "{format:?}: {refused:?}"
        );
    }
}
