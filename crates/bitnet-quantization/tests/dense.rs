//! The dequantizers of embeddings and heads, against the formulas written out value by value.

use bitnet_quantization::{Error, dense::Dense};
use half::{bf16, f16};

fn random_bytes(len: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Random blocks with finite scales at `scale_at`.
fn random_blocks(num: usize, block_bytes: usize, scale_at: usize) -> Vec<u8> {
    let mut bytes = random_bytes(num * block_bytes);
    for (i, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
        block[scale_at..scale_at + 2]
            .copy_from_slice(&f16::from_f32(0.01 * (i as f32 - 1.5)).to_le_bytes());
    }
    bytes
}

fn dequantized(format: Dense, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    format.dequantize(bytes, &mut out).unwrap();
    out
}

#[test]
fn plain_floats_are_exact() {
    // Every f16 and bf16 there is, through rows that end in the middle of any internal buffer.
    let all: Vec<u8> = (0..=u16::MAX)
        .take(65_533)
        .flat_map(u16::to_le_bytes)
        .collect();
    let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
    let halves = dequantized(Dense::F16, &all, 65_533);
    assert!(
        (0..=u16::MAX)
            .zip(halves)
            .all(|(bits, x)| same(x, f16::from_bits(bits).to_f32()))
    );
    let halves = dequantized(Dense::BF16, &all, 65_533);
    assert!(
        (0..=u16::MAX)
            .zip(halves)
            .all(|(bits, x)| same(x, bf16::from_bits(bits).to_f32()))
    );
    assert_eq!(
        dequantized(Dense::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], 2),
        [1.0, -2.0]
    );
}

#[test]
fn q8_0_and_q4_0_follow_their_formulas() {
    let bytes = random_blocks(5, 34, 0);
    for (i, x) in dequantized(Dense::Q8_0, &bytes, 160)
        .into_iter()
        .enumerate()
    {
        let block = &bytes[i / 32 * 34..];
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        assert_eq!(x, d * f32::from(block[2 + i % 32] as i8));
    }
    let bytes = random_blocks(5, 18, 0);
    for (i, x) in dequantized(Dense::Q4_0, &bytes, 160)
        .into_iter()
        .enumerate()
    {
        let (block, j) = (&bytes[i / 32 * 18..], i % 32);
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let nibble = block[2 + j % 16] >> (if j < 16 { 0 } else { 4 }) & 15;
        assert_eq!(x, d * (f32::from(nibble) - 8.0));
    }
}

#[test]
fn q6_k_follows_its_formula() {
    let bytes = random_blocks(5, 210, 208);
    for (i, x) in dequantized(Dense::Q6_K, &bytes, 5 * 256)
        .into_iter()
        .enumerate()
    {
        let (block, i) = (&bytes[i / 256 * 210..], i % 256);
        let (half, j) = (i / 128, i % 128);
        let low = block[64 * half + j % 64] >> (if j < 64 { 0 } else { 4 }) & 15;
        let high = block[128 + 32 * half + j % 32] >> (2 * (j / 32)) & 3;
        let scale = f32::from(block[192 + i / 16] as i8);
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        assert_eq!(
            x,
            d * scale * (f32::from(low | high << 4) - 32.0),
            "value {i}"
        );
    }
}

/// Numbers around 0, some blocks large, some all zero.
fn some_values(len: usize) -> Vec<f32> {
    let bytes = random_bytes(4 * len);
    let value = |(i, b): (usize, &[u8; 4])| {
        let sum: i32 = b.iter().map(|b| i32::from(*b) - 128).sum();
        sum as f32 * [0.001, 3.0, 0.0, 1e-4][i / 256 % 4]
    };
    bytes.as_chunks().0.iter().enumerate().map(value).collect()
}

fn quantized(format: Dense, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xa5; format.size_bytes(1, values.len()).unwrap()];
    format.quantize(values, &mut bytes).unwrap();
    bytes
}

#[test]
fn plain_floats_survive_and_round_half_to_even() {
    let values = some_values(4096 + 37);
    assert_eq!(
        dequantized(Dense::F32, &quantized(Dense::F32, &values), values.len()),
        values
    );
    let halves = dequantized(Dense::F16, &quantized(Dense::F16, &values), values.len());
    assert!(
        values
            .iter()
            .zip(halves)
            .all(|(x, half)| half == f16::from_f32(*x).to_f32())
    );
    let halves = dequantized(Dense::BF16, &quantized(Dense::BF16, &values), values.len());
    assert!(
        values
            .iter()
            .zip(halves)
            .all(|(x, half)| half == bf16::from_f32(*x).to_f32())
    );
}

#[test]
fn q8_0_errs_by_half_a_step_at_most() {
    let values = some_values(4096);
    let found = dequantized(Dense::Q8_0, &quantized(Dense::Q8_0, &values), values.len());
    for (x, found) in values.chunks(32).zip(found.chunks(32)) {
        let step = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
        // The scale itself is rounded to f16: a part in 2048 of up to 127 steps.
        assert!(
            x.iter()
                .zip(found)
                .all(|(x, found)| (x - found).abs() <= step * 0.57),
            "{x:?} {found:?}"
        );
    }
}

#[test]
fn q6_k_fits_better_than_rounding_by_the_largest_value() {
    let values = some_values(16 * 256);
    let found = dequantized(Dense::Q6_K, &quantized(Dense::Q6_K, &values), values.len());
    let (mut error, mut plain_error) = (0.0, 0.0);
    for (x, found) in values.chunks(16).zip(found.chunks(16)) {
        let step = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 32.0;
        assert!(
            x.iter()
                .zip(found)
                .all(|(x, found)| (x - found).abs() <= step * 1.3),
            "{x:?} {found:?}"
        );
        let plain = |x: f32| {
            if step == 0.0 {
                0.0
            } else {
                (x / step).round().clamp(-31.0, 31.0) * step
            }
        };
        let squares = |a: &[f32]| a.iter().map(|a| f64::from(a * a)).sum::<f64>();
        let scale = squares(x).max(1e-30);
        error += squares(&x.iter().zip(found).map(|(a, b)| a - b).collect::<Vec<_>>()) / scale;
        plain_error += squares(&x.iter().map(|a| a - plain(*a)).collect::<Vec<_>>()) / scale;
    }
    assert!(error < plain_error, "{error} {plain_error}");
    let zero = quantized(Dense::Q6_K, &[0.0; 256]);
    assert_eq!(zero, [0; 210]);
}

#[test]
fn values_beyond_a_format_are_refused_by_index() {
    for (format, bad) in [
        (Dense::F32, f32::NAN),
        (Dense::F16, 70_000.0),
        (Dense::BF16, f32::MAX),
        (Dense::Q8_0, 1e8),
        (Dense::Q6_K, 3e8),
        (Dense::Q6_K, -1e20),
        (Dense::Q6_K, f32::INFINITY),
    ] {
        let mut values = vec![0.25; 1024];
        values[700] = bad;
        let error = format
            .quantize(&values, &mut vec![0; format.size_bytes(1, 1024).unwrap()])
            .unwrap_err();
        assert!(matches!(error, Error::Value { index: 700, .. }), "{error}");
    }
    assert!(Dense::Q4_0.quantize(&[0.0; 32], &mut [0; 18]).is_err());
}

#[test]
fn sizes_are_checked() {
    assert_eq!(Dense::Q6_K.size_bytes(128_256, 2560), Ok(269_337_600));
    assert!(matches!(
        Dense::Q6_K.size_bytes(1, 128),
        Err(Error::Shape { .. })
    ));
    assert!(Dense::F32.size_bytes(usize::MAX / 2, 4).is_err());
    let error = Dense::Q8_0
        .dequantize(&[0; 33], &mut [0.0; 32])
        .unwrap_err();
    assert_eq!(error.to_string(), "Q8_0 row has 33 elements, expected 34");
}
