//! The ternary codecs through their public interface: round trips, layouts of other programs, wrong
//! bytes and wrong shapes.

use bitnet_quantization::{Error, TernaryFormat, absmean, dense, i2_s, iq_bn, q4_0, tl1, tl2, tq};
use i2_s::Form;
use proptest::prelude::*;
use tq::Kind;

const TL1: tl1::Tile = tl1::Tile {
    tile_rows: 64,
    block_cols: 32,
    inner_rows: 32,
};
const TL2: tl2::Tile = tl2::Tile {
    tile_rows: 32,
    block_cols: 96,
};
const FORMATS: [TernaryFormat; 11] = [
    TernaryFormat::I2_S(Form::Block128),
    TernaryFormat::I2_S(Form::Block64),
    TernaryFormat::I2_S(Form::Row4),
    TernaryFormat::TL1(TL1),
    TernaryFormat::TL2(TL2),
    TernaryFormat::TQ(Kind::TQ1_0),
    TernaryFormat::TQ(Kind::TQ2_0),
    TernaryFormat::Q4_0,
    TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN),
    TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN),
    TernaryFormat::HfPacked,
];

fn pack(
    format: TernaryFormat,
    weights: &[i8],
    rows: usize,
    cols: usize,
    scale: f32,
) -> Result<Vec<u8>, Error> {
    let mut out = vec![0xa5; format.size_bytes(rows, cols)?];
    format.pack(weights, rows, cols, scale, &mut out)?;
    Ok(out)
}

fn random_weights(seed: u64, len: usize) -> Vec<i8> {
    let mut x = seed | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % 3) as i8 - 1
    };
    std::iter::repeat_with(next).take(len).collect()
}

proptest! {
    #[test]
    fn any_rows_of_a_packed_matrix_are_the_rows_that_were_packed(
        which in 0..FORMATS.len(),
        (row_blocks, col_blocks) in (1usize..4, 1usize..4),
        seed: u64,
        (first, last) in (0usize..193, 0usize..193),
    ) {
        // Multiples of every tile and block above, and 64 more columns in pairs for TL2.
        let (rows, cols) = (64 * row_blocks, 256 * col_blocks);
        let range = first.min(last).min(rows)..first.max(last).min(rows);
        let weights = random_weights(seed, rows * cols);
        let bytes = pack(FORMATS[which], &weights, rows, cols, 0.5).unwrap();
        let mut out = vec![9; range.len() * cols];
        FORMATS[which].unpack_rows(&bytes, rows, cols, range.clone(), &mut out).unwrap();
        prop_assert_eq!(&out, &weights[range.start * cols..range.end * cols]);
        let expected = (FORMATS[which] != TernaryFormat::HfPacked).then_some(0.5);
        prop_assert_eq!(FORMATS[which].scale(&bytes, rows, cols).unwrap(), expected);
    }

    #[test]
    fn i2_s_blocks_may_straddle_rows(form in 0usize..2, cols in 1usize..200, first in 0usize..64, seed: u64) {
        let (form, rows) = (Form::ALL[form], 128);
        let weights = random_weights(seed, rows * cols);
        let bytes = pack(TernaryFormat::I2_S(form), &weights, rows, cols, 1.0).unwrap();
        let range = first..first + 1 + first % 7;
        let mut out = vec![9; range.len() * cols];
        i2_s::unpack_rows(&bytes, form, rows, cols, range.clone(), &mut out).unwrap();
        prop_assert_eq!(&out, &weights[range.start * cols..range.end * cols]);
    }

    #[test]
    fn random_bytes_unpack_to_ternary_weights_or_to_an_error(which in 0..FORMATS.len(), seed: u64) {
        let (rows, cols) = (64, 256);
        let mut bytes = pack(FORMATS[which], &random_weights(seed, rows * cols), rows, cols, 1.0).unwrap();
        for i in 0..4 {
            let at = (seed >> (16 * i)) as usize % bytes.len();
            bytes[at] = bytes[at].wrapping_mul(7) ^ (seed >> (5 * i)) as u8;
        }
        let mut out = vec![9; rows * cols];
        if FORMATS[which].unpack_rows(&bytes, rows, cols, 0..rows, &mut out).is_ok() {
            prop_assert!(out.iter().all(|w| (-1..=1).contains(w)));
        }
        let _ = FORMATS[which].scale(&bytes, rows, cols);
    }

    #[test]
    fn ternary_weights_times_a_scale_quantize_exactly(seed: u64, scale in 1e-3f32..1e3) {
        // Two thirds of the weights are not zero, so the mean lies between half the scale and the
        // scale.
        let mut weights = random_weights(seed, 3000);
        weights[..2000].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 2 == 0 { 1 } else { -1 });
        let floats: Vec<f32> = weights.iter().map(|&w| f32::from(w) * scale).collect();
        let mut out = vec![9; weights.len()];
        let found = absmean::quantize(&floats, &mut out).unwrap();
        prop_assert_eq!(out, weights);
        prop_assert!(found <= scale * 1.000_001 && found >= scale * 0.5);
    }
}

#[test]
fn tiles_are_chosen_for_every_shape_that_can_have_one_and_packed_a_tile_at_a_time() {
    // Shapes of 2B-4T and Falcon3, narrow ones, and one whose rows are a prime times sixteen.
    let shapes = [
        (2560, 2560),
        (640, 2560),
        (6912, 256),
        (96, 6912),
        (3072, 320),
        (32, 256),
        (16 * 11, 272),
        (64, 100),
    ];
    for (rows, cols) in shapes {
        let weights = random_weights(7, rows * cols);
        let tl1 = tl1::Tile::choose(rows, cols).expect("a tile");
        let tl2 = tl2::Tile::choose(rows, cols);
        assert_eq!(
            tl2.is_some(),
            rows % 32 == 0 && cols % 32 == 0 && cols >= 256,
            "{rows} {cols}"
        );
        for format in [Some(TernaryFormat::TL1(tl1)), tl2.map(TernaryFormat::TL2)]
            .into_iter()
            .flatten()
        {
            let whole = pack(format, &weights, rows, cols, 0.25).unwrap();
            let mut parts = vec![0xa5; whole.len()];
            for first in (0..rows).step_by(48 * 2) {
                let range = first..rows.min(first + 48 * 2);
                let weights = &weights[range.start * cols..range.end * cols];
                match format {
                    TernaryFormat::TL1(tile) => {
                        tl1::pack_rows(weights, tile, rows, cols, range, 0.25, &mut parts)
                    }
                    TernaryFormat::TL2(tile) => {
                        tl2::pack_rows(weights, tile, rows, cols, range, 0.25, &mut parts)
                    }
                    _ => unreachable!("one of the two"),
                }
                .unwrap();
            }
            assert!(parts == whole, "{format:?} {rows} {cols}");
            let mut out = vec![9; rows * cols];
            format
                .unpack_rows(&whole, rows, cols, 0..rows, &mut out)
                .unwrap();
            assert!(out == weights, "{format:?} {rows} {cols}");
        }
    }
    assert_eq!(
        (
            tl1::Tile::choose(8, 256),
            tl1::Tile::choose(64, 30),
            tl1::Tile::choose(0, 64)
        ),
        (None, None, None)
    );
    assert_eq!(tl1::Tile::choose(3200, 8640), tl1::Tile::known(3200, 8640));
    // Tiles of the largest allowed size.
    let tl1 = |tile_rows, block_cols, inner_rows| {
        Some(tl1::Tile {
            tile_rows,
            block_cols,
            inner_rows,
        })
    };
    assert_eq!(tl1::Tile::choose(2560, 6912), tl1(256, 128, 32));
    assert_eq!(tl1::Tile::choose(16 * 11, 272), tl1(176, 16, 16));
    assert_eq!(
        tl2::Tile::choose(2560, 6912),
        Some(tl2::Tile {
            tile_rows: 256,
            block_cols: 96
        })
    );
    let odd = tl1::pack_rows(&[0; 8 * 64], TL1, 64, 64, 0..8, 1.0, &mut [0; 64 * 16 + 32]);
    assert!(matches!(odd, Err(Error::Shape { .. })));
}

#[test]
fn an_invalid_code_is_named_with_its_place() {
    let (rows, cols) = (64, 256);
    let place_among = |weight: i8, format: TernaryFormat, byte: usize, value: u8| {
        let mut bytes = pack(format, &vec![weight; rows * cols], rows, cols, 1.0).unwrap();
        bytes[byte] = value;
        let mut out = vec![0; 63 * cols];
        match format.unpack_rows(&bytes, rows, cols, 1..64, &mut out) {
            Err(Error::Code { row, col, code, .. }) => (row, col, code),
            other => panic!("{format:?}: {other:?}"),
        }
    };
    let place = |format, byte, value| place_among(0, format, byte, value);
    // Row 2, second block, byte 5: the third code is weight 5 + 64 of the block.
    assert_eq!(
        place(FORMATS[0], 2 * 64 + 32 + 5, 0b0101_1101),
        (2, 128 + 5 + 64, 3)
    );
    assert_eq!(
        place(FORMATS[1], 2 * 64 + 16 + 5, 0b0101_1101),
        (2, 64 + 5 + 32, 3)
    );
    assert_eq!(place(FORMATS[2], 256 + 9, 0b0111_0101), (5, 9, 3));
    // The second run of sixteen bytes: columns 4 to 7; byte 3 is row 3, the low nibble columns 6
    // and 7.
    assert_eq!(place(FORMATS[3], 16 + 3, 0x4f), (3, 6, 15));
    // The second run of 32 bytes: columns 6 to 11; byte 9 is row 17.
    assert_eq!(place(FORMATS[4], 32 + 9, 0xe0), (17, 6, 14));
    // The columns in pairs, from 192 on, come after the triples and their signs; the second run has
    // columns 196 to 199.
    assert_eq!(
        place(FORMATS[4], 64 * (192 / 6 + 192 / 24) + 32 + 9, 0x4f),
        (17, 198, 15)
    );
    // The same byte among weights that are all 1.
    assert_eq!(place_among(1, FORMATS[3], 16 + 3, 0x8b), (3, 6, 11));
    assert_eq!(place_among(1, FORMATS[4], 32 + 9, 0xed), (17, 6, 14));
    assert_eq!(place(FORMATS[6], 3 * 66 + 1, 0b0101_1101), (3, 33, 3));
    assert_eq!(
        place(TernaryFormat::HfPacked, 256 + 4, 0b0101_1101),
        (17, 4, 3)
    );
    // The invalid code is found at any place in its byte, with zeros beside it.
    for format in [
        FORMATS[0],
        FORMATS[1],
        FORMATS[2],
        FORMATS[6],
        TernaryFormat::HfPacked,
    ] {
        for shift in [0, 2, 4, 6] {
            assert_eq!(place(format, 300, 3 << shift).2, 3, "{format:?} {shift}");
        }
    }
}

#[test]
fn invalid_shapes_are_refused_with_the_numbers() {
    let huge = (18_436_137_873_095_478_032u64 as usize, 1_212_696_576);
    for format in FORMATS {
        assert!(
            matches!(format.size_bytes(huge.0, huge.1), Err(Error::Shape { .. })),
            "{format:?}"
        );
        assert!(
            format.size_bytes(0, 256).is_err()
                && format.unpack_rows(&[], 64, 256, 0..64, &mut []).is_err()
        );
        let bytes = pack(format, &vec![0; 64 * 256], 64, 256, 1.0).unwrap();
        assert!(matches!(
            format.unpack_rows(&bytes, 64, 256, 60..65, &mut vec![0; 5 * 256]),
            Err(Error::Rows {
                end: 65,
                rows: 64,
                ..
            })
        ));
        assert!(matches!(
            format.unpack_rows(&bytes, 64, 256, 0..1, &mut [0; 255]),
            Err(Error::Length {
                expected: 256,
                found: 255,
                ..
            })
        ));
        let mut weights = vec![0; 64 * 256];
        weights[3 * 256 + 7] = 2;
        assert!(matches!(
            pack(format, &weights, 64, 256, 1.0),
            Err(Error::Weight {
                row: 3,
                col: 7,
                value: 2,
                ..
            })
        ));
        weights[3 * 256 + 8] = 3;
        assert!(matches!(
            pack(format, &weights, 64, 256, 1.0),
            Err(Error::Weight {
                row: 3,
                col: 7,
                value: 2,
                ..
            })
        ));
        // The invalid code is also found far from the beginning, where weights are checked many at
        // a time.
        (
            weights[3 * 256 + 7],
            weights[3 * 256 + 8],
            weights[60 * 256 + 9],
        ) = (0, 0, -2);
        assert!(matches!(
            pack(format, &weights, 64, 256, 1.0),
            Err(Error::Weight {
                row: 60,
                col: 9,
                value: -2,
                ..
            })
        ));
        if format != TernaryFormat::HfPacked {
            assert!(pack(format, &vec![0; 64 * 256], 64, 256, f32::NAN).is_err());
        }
    }
    let error =
        i2_s::unpack_rows(&[0; 57], Form::Block128, 10, 10, 0..1, &mut [0; 10]).unwrap_err();
    let expected =
        "I2_S cannot hold a [10, 10] matrix: the number of weights must be a multiple of 128";
    assert_eq!(error.to_string(), expected);
    let tile = tl2::Tile {
        tile_rows: 64,
        block_cols: 96,
    };
    let error = tl2::unpack_rows(&[], tile, 96, 288, 0..1, &mut [0; 288]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("BM must be a multiple of 32 and divide the rows")
    );
}

#[test]
fn a_tile_that_breaks_one_rule_is_refused_with_that_rule() {
    let refusal = |format, rows, cols| match pack(format, &vec![0; rows * cols], rows, cols, 1.0) {
        Err(Error::Shape { rule, .. }) => rule,
        other => panic!("{format:?}: {other:?}"),
    };
    let tl1 = |tile_rows, block_cols, inner_rows| {
        TernaryFormat::TL1(tl1::Tile {
            tile_rows,
            block_cols,
            inner_rows,
        })
    };
    assert!(pack(tl1(32, 96, 32), &[0; 96 * 96], 96, 96, 1.0).is_ok());
    for (tile, rule) in [
        (tl1(96, 96, 8), "bm must be 16, 32 or 64"),
        (tl1(0, 96, 32), "bm must divide BM, and BM the rows"),
        (tl1(48, 96, 32), "bm must divide BM, and BM the rows"),
        (tl1(64, 96, 32), "bm must divide BM, and BM the rows"),
        (tl1(32, 0, 32), "256/bm must divide BK, and BK the columns"),
        (tl1(32, 12, 32), "256/bm must divide BK, and BK the columns"),
        (tl1(32, 64, 32), "256/bm must divide BK, and BK the columns"),
    ] {
        assert_eq!(refusal(tile, 96, 96), rule, "{tile:?}");
    }
    let tl2 = |tile_rows, block_cols| {
        TernaryFormat::TL2(tl2::Tile {
            tile_rows,
            block_cols,
        })
    };
    for (tile, rule) in [
        (
            tl2(0, 96),
            "BM must be a multiple of 32 and divide the rows",
        ),
        (
            tl2(48, 96),
            "BM must be a multiple of 32 and divide the rows",
        ),
        (
            tl2(64, 96),
            "BM must be a multiple of 32 and divide the rows",
        ),
        (tl2(32, 0), "BK must be a multiple of 24"),
        (tl2(32, 32), "BK must be a multiple of 24"),
        (
            tl2(32, 72),
            "the columns beyond the last whole block must be a multiple of 32",
        ),
    ] {
        assert_eq!(refusal(tile, 96, 256), rule, "{tile:?}");
    }
    // The maximum number of columns in pairs, and 32 more.
    let weights = random_weights(4, 32 * 976);
    let bytes = pack(tl2(32, 720), &weights, 32, 976, 1.0).unwrap();
    let mut out = vec![9; weights.len()];
    tl2(32, 720)
        .unpack_rows(&bytes, 32, 976, 0..32, &mut out)
        .unwrap();
    assert_eq!(out, weights);
    let rule = "the columns in pairs are more than the format reserves room for";
    assert_eq!(refusal(tl2(32, 720), 32, 1008), rule);
}

#[test]
fn rows_of_tiles_are_packed_in_whole_groups() {
    let weights = [0; 64 * 256];
    let of = |range: &std::ops::Range<usize>| &weights[..range.len() * 256];
    for range in [8..32, 0..24, 8..24] {
        let mut bytes = vec![0; tl1::size_bytes(64, 256).unwrap()];
        let error =
            tl1::pack_rows(of(&range), TL1, 64, 256, range.clone(), 1.0, &mut bytes).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    rule: "rows are packed in sixteens",
                    ..
                }
            ),
            "{range:?}: {error}"
        );
        let mut bytes = vec![0; tl2::size_bytes(64, 256).unwrap()];
        let error =
            tl2::pack_rows(of(&range), TL2, 64, 256, range.clone(), 1.0, &mut bytes).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    rule: "rows are packed in groups of 32",
                    ..
                }
            ),
            "{range:?}: {error}"
        );
    }
}

#[test]
fn a_tl2_tensor_has_room_for_256_columns_in_pairs_and_a_scale() {
    // 720 columns take 5 bits for three columns, 256 columns take 2 bits each, and 32 bytes follow.
    assert_eq!(
        tl2::size_bytes(32, 976),
        Ok(32 * 720 * 5 / 24 + 32 * 256 / 4 + 32)
    );
    // 213 bytes of triples and 2,048 of pairs are rounded up to 2,272.
    assert_eq!(tl2::size_bytes(32, 288), Ok(2272 + 32));
}

#[test]
fn the_tiles_of_the_published_models_hold_their_shapes() {
    for (rows, cols) in [
        (1536, 4096),
        (1536, 1536),
        (4096, 1536),
        (3200, 3200),
        (1024, 4096),
    ] {
        let weights = random_weights(7, rows * cols);
        for format in [
            TernaryFormat::TL1(tl1::Tile::known(rows, cols).unwrap()),
            TernaryFormat::TL2(tl2::Tile::known(rows, cols).unwrap()),
        ] {
            let bytes = pack(format, &weights, rows, cols, 1.0).unwrap();
            let mut out = vec![9; rows * cols];
            format
                .unpack_rows(&bytes, rows, cols, 0..rows, &mut out)
                .unwrap();
            assert!(out == weights, "{format:?} [{rows}, {cols}]");
        }
    }
}

#[test]
fn blocks_with_different_scales_have_no_common_scale() {
    let kind = Kind::TQ2_0;
    let mut bytes = vec![0; 66 * 4];
    let weights = random_weights(3, 1024);
    kind.pack(&weights, &[0.5, 0.0, 0.5, 0.5], 2, 512, &mut bytes)
        .unwrap();
    assert_eq!(
        TernaryFormat::TQ(kind).scale(&bytes, 2, 512).unwrap(),
        Some(0.5)
    );
    kind.pack(&weights, &[0.5, 0.0, 0.5, 0.25], 2, 512, &mut bytes)
        .unwrap();
    assert_eq!(
        TernaryFormat::TQ(kind)
            .scale(&bytes, 2, 512)
            .unwrap_err()
            .to_string(),
        "TQ2_0 block 3 has scale 0.25, an earlier one 0.5; only one scale per tensor is supported (a \
         converter that gets weights before they are rounded writes such blocks)"
    );
}

#[test]
fn a_scale_that_is_not_finite_is_named_with_its_block() {
    for kind in [Kind::TQ1_0, Kind::TQ2_0] {
        let mut bytes = pack(
            TernaryFormat::TQ(kind),
            &random_weights(3, 4 * 512),
            4,
            512,
            1.0,
        )
        .unwrap();
        // The second of the two blocks of the third row; its scale is in its last two bytes.
        let end = bytes.len() / 8 * 6;
        bytes[end - 2..end].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        let error = TernaryFormat::TQ(kind)
            .unpack_rows(&bytes, 4, 512, 1..4, &mut [0; 3 * 512])
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotFinite {
                    what: "scale of block",
                    index: 5,
                    ..
                }
            ),
            "{kind:?}: {error}"
        );
    }
}

#[test]
fn a_block_of_zeros_has_the_scale_that_llama_cpp_gives_it() {
    for kind in [Kind::TQ1_0, Kind::TQ2_0] {
        let format = TernaryFormat::TQ(kind);
        let mut weights = vec![1; 3 * 256];
        weights[256..512].fill(0);
        weights[512] = 0;
        let bytes = pack(format, &weights, 3, 256, 0.5).unwrap();
        assert_eq!(kind.scales(&bytes, 3, 256).unwrap(), [0.5, 0.0, 0.5]);
    }
}

#[test]
fn formats_have_their_names() {
    let names = [
        "I2_S",
        "I2_S",
        "I2_S",
        "TL1",
        "TL2",
        "TQ1_0",
        "TQ2_0",
        "Q4_0",
        "IQ1_BN",
        "IQ2_BN",
        "packed uint8",
    ];
    for (format, name) in FORMATS.into_iter().zip(names) {
        assert_eq!(format.name(), name);
        assert!(
            format
                .size_bytes(0, 256)
                .unwrap_err()
                .to_string()
                .starts_with(name),
            "{format:?}"
        );
    }
}

#[test]
fn q4_0_blocks_are_ternary_only_if_they_came_from_ternary_weights() {
    let weights = random_weights(8, 64);
    let mut bytes = vec![0; 36];
    q4_0::pack(&weights, 2, 32, 0.5, &mut bytes).unwrap();
    // Read as plain Q4_0, one sign is an eighth too small; the ternary reading corrects that.
    let mut plain = [0.0; 64];
    dense::Dense::Q4_0.dequantize(&bytes, &mut plain).unwrap();
    for (x, w) in plain.iter().zip(&weights) {
        let expected = 0.5 * f32::from(*w);
        assert!(*x == expected || *x == expected * 0.875, "{x} for {w}");
    }
    // The block d = s with weights −1, 0, +1, written directly.
    let mut direct = [0u8; 18];
    direct[..2].copy_from_slice(&half::f16::from_f32(0.25).to_le_bytes());
    direct[2..].fill(0x97);
    let mut out = [9; 32];
    q4_0::unpack_rows(&direct, 1, 32, 0..1, &mut out).unwrap();
    assert_eq!(
        (out[..16].to_vec(), out[16..].to_vec()),
        (vec![-1; 16], vec![1; 16])
    );
    assert_eq!(
        TernaryFormat::Q4_0.scale(&direct, 1, 32).unwrap(),
        Some(0.25)
    );
    direct[4] = 0x3f;
    let error = q4_0::unpack_rows(&direct, 1, 32, 0..1, &mut out).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Code {
                format: "Q4_0",
                row: 0,
                col: 0,
                code: 7
            }
        ),
        "{error}"
    );
    // The damage is in the second block of the third row; the first two rows are not read.
    let bytes = pack(TernaryFormat::Q4_0, &random_weights(9, 4 * 64), 4, 64, 1.0).unwrap();
    let unpack = |at: usize, value: [u8; 2]| {
        let mut broken = bytes.clone();
        broken[5 * 18 + at..5 * 18 + at + 2].copy_from_slice(&value);
        q4_0::unpack_rows(&broken, 4, 64, 1..4, &mut [0; 3 * 64]).unwrap_err()
    };
    let error = unpack(10, [0x33, 0x33]);
    assert!(
        matches!(
            error,
            Error::Code {
                row: 2,
                col: 40,
                code: 3,
                ..
            }
        ),
        "{error}"
    );
    let error = unpack(0, half::f16::NAN.to_le_bytes());
    assert!(
        matches!(
            error,
            Error::NotFinite {
                what: "scale of block",
                index: 5,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn dead_neurons_identify_the_form_of_a_layer() {
    let (hidden, ffn) = (256, 512);
    let (mut gate, mut up, mut down) = (
        random_weights(1, ffn * hidden),
        random_weights(2, ffn * hidden),
        random_weights(3, hidden * ffn),
    );
    let guess = |gate: &[i8], up: &[i8], down: &[i8], form| {
        let pack =
            |w: &[i8], rows, cols| pack(TernaryFormat::I2_S(form), w, rows, cols, 1.0).unwrap();
        let (gate, up, down) = (
            pack(gate, ffn, hidden),
            pack(up, ffn, hidden),
            pack(down, hidden, ffn),
        );
        i2_s::likely_form(&gate, &up, &down, hidden, ffn).unwrap()
    };
    assert_eq!(
        guess(&gate, &up, &down, Form::Block128),
        None,
        "no neuron is dead"
    );
    for neuron in (0..ffn).filter(|n| n * n % 7 == 2) {
        gate[neuron * hidden..(neuron + 1) * hidden].fill(0);
        up[neuron * hidden..(neuron + 1) * hidden].fill(0);
        (0..hidden).for_each(|row| down[row * ffn + neuron] = 0);
    }
    for form in Form::ALL {
        assert_eq!(guess(&gate, &up, &down, form), Some(form));
    }
    // Neurons that look dead although their outputs are used do not decide the form, if there are
    // many.
    let dead: Vec<usize> = (0..ffn).filter(|n| n * n % 7 == 2).collect();
    let (few, many) = (dead.len() / 10, dead.len() / 10 + 1);
    for (number, expected) in [(few, Some(Form::Block128)), (many, None)] {
        dead[..number]
            .iter()
            .for_each(|neuron| down[5 * ffn + neuron] = 1);
        assert_eq!(
            guess(&gate, &up, &down, Form::Block128),
            expected,
            "{number} of {}",
            dead.len()
        );
    }
    // Zeros look the same in all forms, so the result is the default form.
    let zeros = vec![0; ffn * hidden];
    assert_eq!(
        guess(&zeros, &zeros, &zeros, Form::Row4),
        Some(Form::Block128)
    );
}

#[test]
fn forms_have_their_names() {
    for (form, name) in Form::ALL.into_iter().zip(["block128", "block64", "row4"]) {
        assert_eq!((form.to_string().as_str(), name.parse()), (name, Ok(form)));
    }
    let error = "row5".parse::<Form>().unwrap_err();
    assert_eq!(
        error,
        "unknown I2_S form \"row5\"; there are block128, block64 and row4"
    );
}

#[test]
fn absmean_rounds_ties_to_even_and_refuses_non_finite_weights() {
    let mut out = [9; 6];
    // The mean is 1: ±0.5 become 0, the next floats beyond them ±1.
    let up = 0.5f32.next_up();
    let scale =
        absmean::quantize(&[0.5, -0.5, up, -up, 2.0, 2.0 - f32::EPSILON], &mut out).unwrap();
    assert_eq!((out, scale), ([0, 0, 1, -1, 1, 1], 1.0));
    assert_eq!(
        absmean::quantize(&[0.0; 6], &mut out).unwrap(),
        1.0 / (1.0 / 1e-5f32)
    );
    assert_eq!(out, [0; 6]);
    assert_eq!(absmean::absmean(&[f32::MAX; 40]).unwrap(), f32::MAX);
    assert_eq!(
        absmean::quantize(&[f32::MAX; 6], &mut out),
        Ok(f32::MAX),
        "1 / (1 / largest) is infinite"
    );
    let error = absmean::quantize(&[0.0, f32::NAN], &mut out[..2]).unwrap_err();
    assert_eq!(error.to_string(), "weight 1 is NaN, which is not finite");
    for s in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        assert!(
            matches!(
                absmean::round(&[1.0], s, &mut out[..1]),
                Err(Error::Scale { .. })
            ),
            "{s}"
        );
    }
}

#[test]
fn rows_of_iq_bn_have_the_bytes_that_ik_llama_cpp_writes() {
    let mut weights = vec![0; 64];
    (
        weights[0],
        weights[1],
        weights[15],
        weights[16],
        weights[31],
    ) = (1, -1, -1, 1, 1);
    let bytes = pack(
        TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN),
        &weights,
        1,
        64,
        0.25,
    )
    .unwrap();
    assert_eq!(bytes[..4], 0.25f32.to_le_bytes());
    // Byte j: weights j, 16 + j, 32 + j and 48 + j from the lowest bits on, each plus 1.
    assert_eq!(bytes[4..7], [0b01_01_10_10, 0b01_01_01_00, 0b01_01_01_01]);
    assert_eq!(bytes[19], 0b01_01_10_00);

    let bytes = pack(
        TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN),
        &weights,
        1,
        64,
        0.25,
    )
    .unwrap();
    assert_eq!((bytes.len(), &bytes[..2]), (15, &[0x00, 0x34][..]));
    // Digits 2, 0, 1, 1, 1 from the lowest on: ceil((2 + 9 + 27 + 81) · 256 / 243).
    assert_eq!(bytes[2], 126);
    // Digits of weights 15, 31, 47 and 63: 0, 2, 1, 1: ceil((6 + 9 + 27) · 256 / 243).
    assert_eq!(bytes[14], 45);
    let rows = [bytes.clone(), vec![0; 15]].concat();
    let kind = TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN);
    assert_eq!(kind.scale(&rows, 2, 64).unwrap(), Some(0.25));
    let mut out = vec![9; 64];
    kind.unpack_rows(&rows, 2, 64, 1..2, &mut out).unwrap();
    assert_eq!(out, [0; 64], "a row with scale 0 is zeros");
}
