//! Formats with a scale for each group: codes and scales survive packing and conversion between
//! formats, and floats are rounded as the reference quantizers do.

use bitnet_kernels::Pool;
use bitnet_quantization::GroupFormat::{self, PQ2_0, PTQ1_0, Q1_0, Q2_0, TQ};
use bitnet_quantization::group::repack;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{Error, Result, recover, recover_near};
use half::f16;

/// Random codes that a format can hold, and a scale for each group: some 0, some subnormal.
fn random(format: GroupFormat, rows: usize, cols: usize) -> (Vec<i8>, Vec<f32>) {
    let mut x = 12345u32;
    let mut next = |below: u32| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 16) % below
    };
    let (least, largest) = format.codes();
    let step = if format == Q1_0 { 2 } else { 1 };
    let num_codes = ((largest - least) / step + 1) as u32;
    let codes = (0..rows * cols)
        .map(|_| least + step * next(num_codes) as i8)
        .collect();
    let scale = |kind| match kind {
        0 => f16::ZERO,
        1 => f16::from_bits(3),
        kind => f16::from_bits(0x2800 + kind as u16),
    };
    let scales = (0..rows * cols / format.group_len())
        .map(|_| scale(next(1024) % 40).to_f32())
        .collect();
    (codes, scales)
}

fn packed(format: GroupFormat, codes: &[i8], scales: &[f32], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0xa5; format.size_bytes(rows, cols).unwrap()];
    format.pack(codes, scales, rows, cols, &mut out).unwrap();
    out
}

fn unpacked(
    format: GroupFormat,
    bytes: &[u8],
    (rows, cols): (usize, usize),
    range: std::ops::Range<usize>,
) -> Result<(Vec<i8>, Vec<f32>)> {
    let len = range.len() * cols;
    let (mut codes, mut scales) = (vec![9; len], vec![f32::NAN; len / format.group_len()]);
    format.unpack_rows(bytes, rows, cols, range, &mut codes, &mut scales)?;
    Ok((codes, scales))
}

fn quantized(format: GroupFormat, weights: &[f32]) -> Vec<u8> {
    let mut out = vec![0; format.size_bytes(1, weights.len()).unwrap()];
    format
        .quantize(weights, 1, weights.len(), &mut out)
        .unwrap();
    out
}

#[test]
fn codes_and_scales_unpack_as_they_were_packed() {
    let (rows, cols) = (3, 512);
    for format in GroupFormat::ALL {
        let (codes, scales) = random(format, rows, cols);
        let bytes = packed(format, &codes, &scales, rows, cols);
        let (found, found_scales) = unpacked(format, &bytes, (rows, cols), 1..3).unwrap();
        assert_eq!(found, codes[cols..], "{format:?}");
        assert_eq!(
            found_scales,
            scales[cols / format.group_len()..],
            "{format:?}"
        );
        assert_eq!(
            packed(format, &found, &found_scales, 2, cols),
            bytes[bytes.len() / 3..]
        );
    }
}

#[test]
fn the_bytes_follow_the_description() {
    let mut signs = [-1; 128];
    (signs[0], signs[9], signs[127]) = (1, 1, 1);
    let bytes = packed(Q1_0, &signs, &[1.0], 1, 128);
    assert_eq!(bytes[..4], [0x00, 0x3c, 0b0000_0001, 0b0000_0010]);
    assert_eq!(bytes[17], 0x80);

    let mut codes = [0; 128];
    (codes[0], codes[1], codes[2]) = (-1, 2, 1);
    assert_eq!(
        packed(Q2_0, &codes[..64], &[0.5], 1, 64)[..4],
        [0x00, 0x38, 0b01_10_11_00, 0x55]
    );
    let bytes = packed(PQ2_0, &codes, &[0.5], 1, 128);
    assert_eq!((bytes.len(), bytes[2]), (34, 0b01_10_11_00));

    // Digits 2, 1, 1, 1, 1 in the first byte: ceil((2·81 + 27 + 9 + 3 + 1) · 256 / 243).
    let mut trits = [0; 128];
    trits[0] = 1;
    let bytes = packed(PTQ1_0, &trits, &[0.5], 1, 128);
    assert_eq!((bytes[0], &bytes[26..]), (213, &[0x00, 0x38][..]));
    // Without the last digit: ceil((81 + 27 + 9 + 3) · 256 / 243).
    assert_eq!((bytes[24], bytes[25]), (127, 127));
}

#[test]
fn ternary_tensors_go_through_all_formats_without_loss() {
    let (rows, cols) = (2, 512);
    let trits = [Q2_0, PQ2_0, PTQ1_0, TQ(Kind::TQ1_0), TQ(Kind::TQ2_0)];
    // One scale for 256 columns fits all of them.
    let (codes, scales) = random(TQ(Kind::TQ2_0), rows, cols);
    let first = packed(TQ(Kind::TQ2_0), &codes, &scales, rows, cols);
    for from in trits {
        for to in trits {
            let step = |source, target: GroupFormat, bytes: &[u8]| {
                let mut out = vec![0; target.size_bytes(rows, cols).unwrap()];
                repack(source, target, bytes, rows, cols, &mut out).unwrap();
                out
            };
            let there = step(from, to, &step(TQ(Kind::TQ2_0), from, &first));
            assert_eq!(step(to, TQ(Kind::TQ2_0), &there), first, "{from:?} {to:?}");
        }
    }
}

#[test]
fn values_that_a_format_cannot_hold_are_named() {
    let (rows, cols) = (2, 128);
    let mut codes = vec![0; rows * cols];
    codes[cols + 70] = 1;
    let halves = [0.5, 0.5, 0.5, 0.25];
    let bytes = packed(Q2_0, &codes, &halves, rows, cols);
    let repacked = |to: GroupFormat, bytes: &[u8]| {
        let mut out = vec![0; to.size_bytes(rows, cols).unwrap()];
        repack(Q2_0, to, bytes, rows, cols, &mut out).map(|()| out)
    };
    // The group of zeros takes the scale of the other half.
    let out = repacked(PQ2_0, &bytes).unwrap();
    assert_eq!(
        unpacked(PQ2_0, &out, (rows, cols), 0..2).unwrap().1,
        [0.5, 0.25]
    );
    codes[cols] = -1;
    let bytes = packed(Q2_0, &codes, &halves, rows, cols);
    let differs = Error::BlockScales {
        format: "PTQ1_0",
        block: 3,
        found: 0.25,
        expected: 0.5,
    };
    assert_eq!(repacked(PTQ1_0, &bytes), Err(differs));

    codes[cols + 3] = 2;
    let bytes = packed(Q2_0, &codes, &[0.5; 4], rows, cols);
    let two = Error::GroupCode {
        format: "PTQ1_0",
        row: 1,
        col: 3,
        code: 2,
    };
    assert_eq!(repacked(PTQ1_0, &bytes), Err(two));
    let zero = Error::GroupCode {
        format: "Q1_0",
        row: 0,
        col: 0,
        code: 0,
    };
    assert_eq!(repacked(Q1_0, &bytes), Err(zero));

    let mut bytes = packed(Q2_0, &codes, &halves, rows, cols);
    bytes[18 * 2..18 * 2 + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let error = unpacked(Q2_0, &bytes, (rows, cols), 1..2).unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { index: 2, .. }),
        "{error}"
    );
    for format in GroupFormat::ALL {
        assert!(matches!(format.size_bytes(1, 32), Err(Error::Shape { .. })));
        assert!(matches!(
            format.size_bytes(usize::MAX / 128, 256),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            unpacked(format, &[0; 7], (1, 256), 0..1),
            Err(Error::Length { .. })
        ));
    }
}

#[test]
fn floats_are_rounded_as_the_reference_quantizers_round_them() {
    let weights: Vec<f32> = (0..128).map(|i| (i % 8) as f32 - 4.0).collect();
    let (signs, scale) = unpacked(Q1_0, &quantized(Q1_0, &weights), (1, 128), 0..1).unwrap();
    // The mean of 4, 3, 2, 1, 0, 1, 2, 3; zero counts as positive.
    assert_eq!(
        (signs[..8].to_vec(), scale[0]),
        (vec![-1, -1, -1, -1, 1, 1, 1, 1], 2.0)
    );
    for format in [Q2_0, PQ2_0, PTQ1_0] {
        let bytes = quantized(format, &weights);
        let (codes, scales) = unpacked(format, &bytes, (1, 128), 0..1).unwrap();
        // Divided by the largest, 4: −1, −0.75, −0.5 (which rounds away from zero), −0.25, 0, 0.25,
        // 0.5, 0.75.
        assert_eq!(
            (codes[..8].to_vec(), scales[0]),
            (vec![-1, -1, -1, 0, 0, 0, 1, 1], 4.0)
        );
    }
    let zeros = unpacked(PTQ1_0, &quantized(PTQ1_0, &[0.0; 128]), (1, 128), 0..1).unwrap();
    assert_eq!(zeros, (vec![0; 128], vec![0.0]));
    let mut out = [0; 18];
    assert!(Q2_0.quantize(&[f32::NAN; 64], 1, 64, &mut out).is_err());
    assert!(Q2_0.quantize(&[1e9; 64], 1, 64, &mut out).is_err());
}

/// Recovers rows of 256 weights.
fn recovered(weights: &[f32]) -> Result<(GroupFormat, Vec<u8>)> {
    let read_row = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&weights[row * 256..(row + 1) * 256]);
        Ok(())
    };
    recover(weights.len() / 256, 256, &read_row, &Pool::new(2))
}

#[test]
fn floats_that_are_codes_times_scales_come_back_exactly() {
    let (rows, cols) = (3, 256);
    for format in [Q1_0, Q2_0, PQ2_0] {
        let (codes, scales) = random(format, rows, cols);
        let len = format.group_len();
        let weights: Vec<f32> = (0..codes.len())
            .map(|i| f32::from(codes[i]) * scales[i / len])
            .collect();
        let (found, bytes) = recovered(&weights).unwrap();
        assert_eq!(found, format);
        let (codes, scales) = unpacked(found, &bytes, (rows, cols), 0..rows).unwrap();
        let again = (0..codes.len()).map(|i| f32::from(codes[i]) * scales[i / len]);
        assert!(again.eq(weights.iter().copied()), "{format:?}");
    }
}

#[test]
fn floats_of_other_values_are_refused_with_the_group() {
    let mut weights = vec![0.5f32; 512];
    weights[256 + 100] = 0.75;
    let error = recovered(&weights).err().unwrap().to_string();
    assert_eq!(
        error,
        "the 64 weights from row 1, column 64 on are not -1, 0, 1 or 2 times one scale: their \
         least magnitude is 0.5, and one is 0.75"
    );
    // −2 times a scale has no code; 2 times one has.
    weights[256 + 100] = -1.0;
    assert!(recovered(&weights).is_err());
    weights[256 + 100] = 1.0;
    assert_eq!(recovered(&weights).unwrap().0, PQ2_0);
    weights.fill(1.0 + f32::EPSILON);
    let error = recovered(&weights).err().unwrap().to_string();
    assert_eq!(
        error,
        "the weights from row 0, column 0 on have the scale 1.0000001, which is not an f16"
    );
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Expected hashes: of the bytes that `quantize_row_*_ref` in llama.cpp's ggml-quants.c (ggml
/// 0.25.3) writes for the same weights.
#[test]
fn floats_become_the_bytes_of_llama_cpps_quantizers() {
    let mut x = 7u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16::from_f32((x >> 8) as f32 / (1 << 24) as f32 - 0.5).to_f32()
    };
    let weights: Vec<f32> = std::iter::repeat_with(next).take(128 * 128).collect();
    for (format, expected) in [
        (Q1_0, 0x33dc_067c_c892_feb6),
        (Q2_0, 0x1f37_be94_cbfd_5a87),
        (TQ(Kind::TQ1_0), 0x26b4_35fa_b984_3d33),
        (TQ(Kind::TQ2_0), 0x287e_089b_1cff_88bf),
    ] {
        assert_eq!(hash(&quantized(format, &weights)), expected, "{format:?}");
    }
}

#[test]
fn weights_that_a_quantizer_has_changed_are_recovered_and_others_are_not() {
    let scales: Vec<f32> = (0..4).map(|group| 0.5 + group as f32).collect();
    let codes: Vec<i8> = (0..512).map(|i| (i * 7 % 3) as i8 - 1).collect();
    // One sign is stored exactly, the other as 15/16 of it; zeros become a little.
    let changed = |i: usize| match codes[i] {
        -1 => -scales[i / 128],
        1 => scales[i / 128] * 15.0 / 16.0,
        _ => scales[i / 128] / 16.0,
    };
    let mut weights: Vec<f32> = (0..512).map(changed).collect();
    let near = |weights: &[f32]| {
        let read_row = |row: usize, out: &mut [f32]| {
            out.copy_from_slice(&weights[row * 256..(row + 1) * 256]);
            Ok(())
        };
        recover_near(2, 256, &read_row, true, &Pool::new(2))
    };
    let (format, bytes) = near(&weights).unwrap();
    assert_eq!(format, PQ2_0);
    let (mut found, mut found_scales) = (vec![0; 512], vec![0.0; 4]);
    PQ2_0
        .unpack_rows(&bytes, 2, 256, 0..2, &mut found, &mut found_scales)
        .unwrap();
    assert_eq!((found, found_scales), (codes, scales.clone()));
    weights[300] = scales[2] / 2.0;
    assert!(near(&weights).is_err());
}
