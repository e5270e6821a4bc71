//! The block formats of llama.cpp that this crate reads but does not write.
//!
//! ```text
//! Q4_1,   32 values in 20 bytes:   d f16 | m f16 | nibbles[16]                       value d·q + m
//! Q5_0,   32 values in 22 bytes:   d f16 | fifth bits[4] | nibbles[16]               value d·(q − 16)
//! Q5_1,   32 values in 24 bytes:   d f16 | m f16 | fifth bits[4] | nibbles[16]       value d·q + m
//! IQ4_NL, 32 values in 18 bytes:   d f16 | nibbles[16]                               value d·LEVELS[q]
//! MXFP4,  32 values in 17 bytes:   exponent u8 | nibbles[16]                         value 2^e·E2M1[q]
//! Q2_K,  256 values in 84 bytes:   scale and min of each 16 values, 4 bits each [16] | codes[64] | d f16 | dmin f16
//! Q3_K,  256 values in 110 bytes:  third bits[32] | codes[64] | 6-bit scale of each 16 values [12] | d f16
//! Q4_K,  256 values in 144 bytes:  d f16 | dmin f16 | 6-bit scale and min of each 32 values [12] | nibbles[128]
//! Q5_K,  256 values in 176 bytes:  d f16 | dmin f16 | 6-bit scale and min of each 32 values [12] | fifth bits[32] | nibbles[128]
//! IQ4_XS, 256 values in 136 bytes: d f16 | high scale bits u16 | low scale bits[4] | nibbles[128]
//! ```
//! In a run of 32 values nibble j (low half of byte j) is value j, and its high half value j + 16;
//! in Q4_K and Q5_K, in a run of 64, the high half of byte j is value j + 32. Two-bit codes as in
//! TQ2_0: in a half of 128 values bits 2s of byte j are value 32·s + j.
//!
//! The products are rounded in llama.cpp's order, so the values have the same bits.

use half::f16;

/// The levels of IQ4_NL and IQ4_XS.
const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Twice the values of the 4-bit floats of MXFP4.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibble of value `i` in a run of 32 values.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (4 * (i / 16)) & 15
}

/// The nibble of value `i` with its fifth bit.
fn five_bits(high: &[u8], nibbles: &[u8], i: usize) -> f32 {
    f32::from(nibble(nibbles, i) | (high[i / 8] >> (i % 8) & 1) << 4)
}

pub(crate) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&block[4..], i)) + m;
    }
}

pub(crate) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * (five_bits(&block[2..6], &block[6..], i) - 16.0);
    }
}

pub(crate) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * five_bits(&block[4..8], &block[8..], i) + m;
    }
}

pub(crate) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * level(nibble(&block[2..], i));
    }
}

pub(crate) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + run / 2] >> (4 * (run % 2)) & 15;
        let scale = low | ((high >> (2 * run) & 3) as u8) << 4;
        let d = d * f32::from(scale as i8 - 32);
        for (i, x) in out.iter_mut().enumerate() {
            *x = d * level(nibble(&block[8 + 16 * run..], i));
        }
    }
}

fn level(q: u8) -> f32 {
    f32::from(LEVELS[usize::from(q)])
}

pub(crate) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    // Half of 2^(e − 127): the two smallest are subnormal.
    let half = match u32::from(block[0]) {
        e @ 0..2 => f32::from_bits(0x0020_0000 << e),
        e => f32::from_bits((e - 1) << 23),
    };
    for (i, x) in out.iter_mut().enumerate() {
        *x = half * f32::from(E2M1_DOUBLED[usize::from(nibble(&block[1..], i))]);
    }
}

/// The two-bit code of value `i` of 256.
fn two_bits(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

pub(crate) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (run, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[run] & 15);
        let min = dmin * f32::from(block[run] >> 4);
        for (i, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(two_bits(&block[16..80], 16 * run + i)) - min;
        }
    }
}

pub(crate) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let scales = &block[96..108];
    for (run, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[run % 8] >> (4 * (run / 8)) & 15;
        let scale = low | (scales[8 + run % 4] >> (2 * (run / 4)) & 3) << 4;
        let scale = d * f32::from(scale as i8 - 32);
        for (i, x) in out.iter_mut().enumerate() {
            let i = 16 * run + i;
            let third = block[i % 32] >> (i / 32) & 1;
            let q = two_bits(&block[32..96], i) as i8 - 4 * (1 - third as i8);
            *x = scale * f32::from(q);
        }
    }
}

/// The 6-bit scale and min of run `run` of 32 values, packed into 12 bytes.
fn scale_and_min(packed: &[u8], run: usize) -> (u8, u8) {
    if run < 4 {
        return (packed[run] & 63, packed[run + 4] & 63);
    }
    let low = packed[run + 4];
    (
        low & 15 | packed[run - 4] >> 6 << 4,
        low >> 4 | packed[run] >> 6 << 4,
    )
}

pub(crate) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let nibbles = &block[16..];
    each_run_of_k(&block[..16], out, |run, i| {
        nibbles[32 * (run / 2) + i] >> (4 * (run % 2)) & 15
    });
}

pub(crate) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (fifth, nibbles) = (&block[16..48], &block[48..]);
    each_run_of_k(&block[..16], out, |run, i| {
        nibbles[32 * (run / 2) + i] >> (4 * (run % 2)) & 15 | (fifth[i] >> run & 1) << 4
    });
}

/// head: d, dmin and the packed scales; code: a function that gives the code of value i of a run.
fn each_run_of_k(head: &[u8], out: &mut [f32; 256], code: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (f16_at(head, 0), f16_at(head, 2));
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&head[4..], run);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (i, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(code(run, i)) - min;
        }
    }
}
