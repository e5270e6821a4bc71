//! The golden byte strings of the formats, and the generator of the weights behind them.

use sha2::{Digest, Sha256};

use crate::{hf_packed, i2_s, tl1};

/// Weights from the linear congruential generator of the format descriptions, seed 12345.
pub(crate) fn lcg_weights(len: usize) -> Vec<i8> {
    let mut x = 12345u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 16) % 3) as i8 - 1
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// SHA-256 in lower-case hex.
pub(crate) fn hex_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_generator_gives_the_golden_weights() {
    assert_eq!(
        lcg_weights(16),
        [1, 0, 0, 1, 1, 1, 1, 1, -1, 1, 0, 0, 0, -1, -1, -1]
    );
}

#[test]
fn i2_s_packs_to_the_golden_bytes() {
    let mut bytes = [0xff; 96];
    i2_s::pack(
        &lcg_weights(256),
        i2_s::Form::Block128,
        1,
        256,
        0.5,
        &mut bytes,
    )
    .unwrap();
    let codes = "8a664485a088a188089654566116251a2825a448069a2410890152592524266998a90a619006861058a995598a2460a2\
                 2006a40458155824048aa49a22109928";
    assert_eq!(hex(&bytes), format!("{codes}0000003f{}", "00".repeat(28)));
}

#[test]
fn tl1_packs_to_the_golden_bytes() {
    let tile = tl1::Tile {
        tile_rows: 64,
        block_cols: 64,
        inner_rows: 32,
    };
    let mut bytes = vec![0; 2048 + 32];
    tl1::pack(&lcg_weights(64 * 128), tile, 64, 128, 1.0, &mut bytes).unwrap();
    assert_eq!(hex(&bytes[..16]), "75812880353243675255372183286128");
    let expected = "afcbdbdef7620656242b4ecfdd57a2fb1f5b2da6e49a21071721f9ac3ef2985a";
    assert_eq!(hex_sha256(&bytes[..2048]), expected);
}

#[test]
fn packed_uint8_packs_to_the_golden_bytes() {
    let mut bytes = [0; 16];
    hf_packed::pack(&lcg_weights(64), 8, 8, &mut bytes).unwrap();
    assert_eq!(hex(&bytes), "82a18906224aa24208125555a190a094");
}
