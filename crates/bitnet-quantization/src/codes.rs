//! Two-bit codes, four in each byte: 0, 1, 2 stand for −1, 0, +1.

use crate::error::{Error, Result};
use crate::scaling::round_ternary;
use crate::vectorized::vectorized;

/// Fails at the first weight that is not −1, 0 or 1.
pub(crate) fn expect_ternary(format: &'static str, cols: usize, weights: &[i8]) -> Result<()> {
    let is_wrong = |w: i8| w.wrapping_add(1) as u8 > 2;
    // Blocks without an invalid weight, which are nearly all, are checked at memory speed.
    for (i, block) in weights.chunks(4096).enumerate() {
        if !block.iter().fold(false, |wrong, &w| wrong | is_wrong(w)) {
            continue;
        }
        if let Some(at) = block.iter().position(|&w| is_wrong(w)) {
            let at = i * 4096 + at;
            return Err(Error::Weight {
                format,
                row: at / cols,
                col: at % cols,
                value: weights[at],
            });
        }
    }
    Ok(())
}

/// Four weights as two-bit codes 0, 1, 2, the first in the top bits.
#[inline(always)]
pub(crate) fn pack_codes(weights: [i8; 4]) -> u8 {
    let [a, b, c, d] = weights.map(|w| (w + 1) as u8);
    a << 6 | b << 4 | c << 2 | d
}

/// Packs four runs of weights together: byte i holds weight i of each, the first run's in the top
/// bits.
///
/// runs: each as long as `out`.
#[inline(always)]
pub(crate) fn pack_runs([a, b, c, d]: [&[i8]; 4], out: &mut [u8]) {
    for ((((byte, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *byte = pack_codes([a, b, c, d]);
    }
}

vectorized! {
    /// Rounds four runs of weights, then packs them like [`pack_runs`].
    pub(crate) fn quantize_runs<'a>(runs: [&'a [f32]; 4], one: f32, out: &'a mut [u8]) -> () {
        quantize_run_pieces(runs, one, out);
    }
}

#[inline(always)]
fn quantize_run_pieces(runs: [&[f32]; 4], one: f32, out: &mut [u8]) {
    const LEN: usize = 256;
    let mut codes = [[0; LEN]; 4];
    for (index, out) in out.chunks_mut(LEN).enumerate() {
        for (run, codes) in runs.iter().zip(&mut codes) {
            round_ternary(&run[index * LEN..][..out.len()], one, codes);
        }
        pack_runs(codes.each_ref().map(<[i8; LEN]>::as_slice), out);
    }
}

/// Unpacks one code of each byte, at bit `shift` (0, 2, 4 or 6), as weights. Returns whether there
/// was a code 3, which gives a 2.
pub(crate) fn unpack_field(bytes: &[u8], shift: usize, out: &mut [i8]) -> bool {
    match shift {
        0 => unpack_field_at::<0>(bytes, out),
        2 => unpack_field_at::<2>(bytes, out),
        4 => unpack_field_at::<4>(bytes, out),
        _ => unpack_field_at::<6>(bytes, out),
    }
}

/// A constant shift lets the compiler use whole vectors of bytes.
fn unpack_field_at<const SHIFT: usize>(bytes: &[u8], out: &mut [i8]) -> bool {
    let mut threes = 0;
    for (w, byte) in out.iter_mut().zip(bytes) {
        let code = byte >> SHIFT & 3;
        threes |= code & code >> 1;
        *w = code as i8 - 1;
    }
    threes != 0
}
