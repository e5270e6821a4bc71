//! The dequantizers of embeddings and heads equal the formulas written out value by value, and
//! other programs' values.

use bitnet_quantization::GroupFormat::{PQ2_0, PTQ1_0, Q1_0, Q2_0, TQ};
use bitnet_quantization::dense::Dense::{self, Group};
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{Error, GroupFormat};
use half::{bf16, f16};
use sha2::{Digest, Sha256};

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
    // Every f16 and bf16 value, in rows that end in the middle of any internal buffer.
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
        // The scale itself is rounded to f16, so up to 127 steps are off by up to one part in 2048.
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
fn values_too_large_for_a_format_are_refused_with_their_index() {
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

/// Format, positions of its f16 fields, and SHA-256 of the f32 values of five blocks of
/// [`lcg_blocks`], from the Python package gguf 0.19 (`quants.dequantize`), and for the group
/// formats from a numpy program written from their description.
const REFERENCE: [(Dense, &[usize], &str); 18] = [
    (
        Dense::Q8_0,
        &[0],
        "4f2a5fe4d57be86f628bf985c09d79c81f78a11210192c47126ee67b8aa2bc77",
    ),
    (
        Dense::Q6_K,
        &[208],
        "ebe2e41682d51eecb10ebddf809b2180216cd93474ff0981645dfd12177fe794",
    ),
    (
        Dense::Q4_1,
        &[0, 2],
        "f829c0797c22849f20662f9fcc2fc4be22b947423598d8b909cb43c6a0b46632",
    ),
    (
        Dense::Q5_0,
        &[0],
        "ffcfcc416d16895e4b9089b8c03c4617e9476fb31e53bb01cab0225151511bb1",
    ),
    (
        Dense::Q5_1,
        &[0, 2],
        "5b74c28cb77da0c2132ccdfecd4d54c79e78f3aa31fbc8dbec88f656f2eff7f9",
    ),
    (
        Dense::Q2_K,
        &[80, 82],
        "60b8fa16874507d5160b77fe3029bf74f343ae171834f3b7dd43e2d6be5b948a",
    ),
    (
        Dense::Q3_K,
        &[108],
        "eb96a6395e421cc6695d50ea563c3567f60abfdd7db5e043fe6cbb7f5f0e8266",
    ),
    (
        Dense::Q4_K,
        &[0, 2],
        "6f45fdc87571811b869155d4c38753528d0a0e20ed9191bdd3293b1e2e0ef824",
    ),
    (
        Dense::Q5_K,
        &[0, 2],
        "d3bf834c649311869b2d888147f2b2440e7b22bba90708cf93b975a0c30816b7",
    ),
    (
        Dense::IQ4_NL,
        &[0],
        "e59f793e8074c85e5af7d3d9b66883cd3a8955c0ccbd145215194d7b76fe40d9",
    ),
    (
        Dense::IQ4_XS,
        &[0],
        "be8c4b25afae53fbc97428425ec6ae0d6f7dcdd639e52e4a1ee5698e22566959",
    ),
    (
        Dense::MXFP4,
        &[],
        "9e4da26b34455168e6707be8b23597fa8b8d8b3f7e8f803e0f01369a0849a28a",
    ),
    (
        Dense::Group(TQ(Kind::TQ1_0)),
        &[52],
        "c4707141d2f89ceb23940f784eb5eddfb3ff7cebc83fbd131e4e6b7d245b48a3",
    ),
    (
        Dense::Group(TQ(Kind::TQ2_0)),
        &[64],
        "27ef19491ab9e7b5d94f98d8dc574b0cef025b1992b07552c93aba763992e75f",
    ),
    (
        Dense::Group(Q1_0),
        &[0],
        "a8ce6c06e86792ce9655ebe034b65c534f471aab43d0d3f6cbc5eabef9335ea4",
    ),
    (
        Dense::Group(Q2_0),
        &[0],
        "41baf1a7e2f5c7d9fb85eee33f36ce1b295d1fab443e97c31745591b591c5b3b",
    ),
    (
        Dense::Group(PQ2_0),
        &[0],
        "9b435393941df748b61232946cdd4235c883093cc2d2b861c520d3795c81dc55",
    ),
    (
        Dense::Group(PTQ1_0),
        &[26],
        "feef5584f5ce4984faf93606d4b367f9689d69178f6cb65fda731e8258995ca8",
    ),
];

/// Five blocks from the generator of the format descriptions, with f16 fields of ordinary
/// magnitude.
fn lcg_blocks(block_bytes: usize, f16_at: &[usize]) -> Vec<u8> {
    let mut x = 12345u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(5 * block_bytes).collect();
    for block in bytes.chunks_exact_mut(block_bytes) {
        for at in f16_at {
            block[at + 1] = block[at + 1] & 0x83 | 0x28;
        }
        if f16_at.is_empty() {
            block[0] &= 0x7f; // an exponent
        }
    }
    bytes
}

#[test]
fn every_format_gives_the_references_values() {
    for (format, f16_at, expected) in REFERENCE {
        let bytes = lcg_blocks(format.block_bytes(), f16_at);
        let values = dequantized(format, &bytes, 5 * format.block_len());
        // Compare −0 as 0.
        let values: Vec<u8> = values
            .iter()
            .flat_map(|x| (x + 0.0).to_le_bytes())
            .collect();
        let found: String = Sha256::digest(&values)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(found, expected, "{}", format.name());
    }
}

#[test]
fn formats_that_are_only_read_refuse_to_be_written() {
    let only_read = REFERENCE
        .into_iter()
        .filter(|(format, ..)| !matches!(format, Dense::Q8_0 | Dense::Q6_K));
    for (format, ..) in only_read {
        let values = vec![0.5; format.block_len()];
        let error = format
            .quantize(&values, &mut vec![0; format.block_bytes()])
            .unwrap_err();
        assert!(error.to_string().contains("not written in it"), "{error}");
    }
}

#[test]
fn group_formats_name_themselves_in_both_lists() {
    for format in GroupFormat::ALL {
        assert!(
            REFERENCE.iter().any(|(dense, ..)| *dense == Group(format)),
            "{format:?}"
        );
    }
}
