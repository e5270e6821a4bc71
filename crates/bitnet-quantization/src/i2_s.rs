//! I2_S: two bits per weight, one f32 scale per tensor; the format of Microsoft's published models.
//!
//! Codes 0, 1, 2 stand for −1, 0, +1. All forms have the same size and keep the scale behind the
//! codes:
//!
//! ```text
//! Block128   128 weights in 32 bytes: byte b holds weights b, b+32, b+64, b+96, the first in the top bits
//! Block64     64 weights in 16 bytes: byte b holds weights b, b+16, b+32, b+48
//! Row4       rows r, r+1, r+2, r+3 in `cols` bytes: byte c holds column c of each, the first in the top bits
//!
//! codes: rows · cols / 4 bytes | scale: f32 | padding: 28 bytes
//! ```
//! No file states its form; [`likely_form`] distinguishes the forms by the dead neurons of a layer.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bitnet_kernels::Pool;

use crate::codes::{expect_ternary, pack_codes, pack_runs, quantize_runs, unpack_field};
use crate::error::{
    Error, Result, expect_fit, expect_len, expect_rows, num_weights, read_scale, write_scale,
};
use crate::pieces::{PIECE_WEIGHTS, for_each_piece};
use crate::scaling::{Rounding, round_ternary};
use crate::vectorized::vectorized;

const FORMAT: &str = "I2_S";

/// How the codes of an I2_S tensor are arranged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// Blocks of 128: every official download, and files quantized on x86.
    #[default]
    Block128,
    /// Blocks of 64: files quantized on ARM by releases since November 2025.
    Block64,
    /// Four rows together: x86 builds without activation parallelism.
    Row4,
}

impl Form {
    /// All forms, the usual one first.
    pub const ALL: [Self; 3] = [Self::Block128, Self::Block64, Self::Row4];

    /// Its name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block128 => "block128",
            Self::Block64 => "block64",
            Self::Row4 => "row4",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|form| form.name() == name);
        found.ok_or_else(|| {
            format!("unknown I2_S form {name:?}; there are block128, block64 and row4")
        })
    }
}

/// Bytes of a `[rows, cols]` tensor: two bits per weight, then the scale and its padding.
pub fn size_bytes(rows: usize, cols: usize) -> Result<usize> {
    let n = num_weights(FORMAT, rows, cols)?;
    let rule = "the number of weights must be a multiple of 4";
    expect_fit(FORMAT, rows, cols, n.is_multiple_of(4), rule)?;
    Ok(n / 4 + 32)
}

/// The scale of a `[rows, cols]` tensor, which multiplies its weights.
pub fn scale(bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
    let size = size_bytes(rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), size)?;
    read_scale(&bytes[size - 32..])
}

/// Unpacks `range` of the rows of a tensor into weights −1, 0, 1.
///
/// bytes: the whole tensor, `size_bytes(rows, cols)`; out: `[range.len(), cols]`. The code 3, which
/// no program writes, is an error naming its place.
pub fn unpack_rows(
    bytes: &[u8],
    form: Form,
    rows: usize,
    cols: usize,
    range: Range<usize>,
    out: &mut [i8],
) -> Result<()> {
    expect_shape(form, rows, cols)?;
    expect_len(FORMAT, "tensor", bytes.len(), size_bytes(rows, cols)?)?;
    expect_rows(FORMAT, &range, rows)?;
    expect_len(FORMAT, "output", out.len(), range.len() * cols)?;
    let codes = &bytes[..rows * cols / 4];
    let any_three = match form {
        Form::Block128 => unpack_blocks::<32>(codes, range.start * cols, out),
        Form::Block64 => unpack_blocks::<16>(codes, range.start * cols, out),
        Form::Row4 => unpack_row_groups(codes, cols, range.start, out),
    };
    if any_three && let Some(at) = out.iter().position(|&w| w == 2) {
        return Err(Error::Code {
            format: FORMAT,
            row: range.start + at / cols,
            col: at % cols,
            code: 3,
        });
    }
    Ok(())
}

/// Packs weights −1, 0, 1 and their scale.
///
/// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub fn pack(
    weights: &[i8],
    form: Form,
    rows: usize,
    cols: usize,
    scale: f32,
    out: &mut [u8],
) -> Result<()> {
    expect_shape(form, rows, cols)?;
    expect_len(FORMAT, "input", weights.len(), rows * cols)?;
    expect_len(FORMAT, "output", out.len(), size_bytes(rows, cols)?)?;
    expect_ternary(FORMAT, cols, weights)?;
    let (codes, tail) = out.split_at_mut(rows * cols / 4);
    match form {
        Form::Block128 => pack_blocks::<32>(weights, codes),
        Form::Block64 => pack_blocks::<16>(weights, codes),
        Form::Row4 => {
            for (group, bytes) in weights
                .chunks_exact(4 * cols)
                .zip(codes.chunks_exact_mut(cols))
            {
                pack_runs([0, 1, 2, 3].map(|r| &group[r * cols..][..cols]), bytes);
            }
        }
    }
    write_scale(tail, scale)
}

/// Rounds weights and packs them. weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
pub(crate) fn quantize(
    weights: &[f32],
    form: Form,
    rows: usize,
    cols: usize,
    rounding: Rounding,
    out: &mut [u8],
    pool: &Pool,
) -> Result<()> {
    expect_shape(form, rows, cols)?;
    let (codes, tail) = out.split_at_mut(rows * cols / 4);
    write_scale(tail, rounding.scale)?;
    let piece_len = if form == Form::Row4 {
        4 * cols
    } else {
        PIECE_WEIGHTS
    };
    let pieces = weights
        .chunks(piece_len)
        .zip(codes.chunks_mut(piece_len / 4));
    for_each_piece(pool, weights.len(), pieces, |_, (weights, codes)| {
        let one = rounding.one;
        match form {
            Form::Block128 => quantize_blocks::<32>(weights, one, codes),
            Form::Block64 => quantize_blocks::<16>(weights, one, codes),
            Form::Row4 => quantize_runs(
                [0, 1, 2, 3].map(|r| &weights[r * cols..][..cols]),
                one,
                codes,
            ),
        }
        Ok(())
    })
}

/// The form that explains a layer's dead neurons, if one clearly does.
///
/// A trained feed-forward layer has neurons whose gate row, up row and down column are all zero.
/// Rows are zero in blocks of 128 and of 64 alike, but the columns of `down` point at the same
/// neurons only when read in the right form.
///
/// gate, up: `[ffn_size, hidden_size]`, down: `[hidden_size, ffn_size]`. `None` when fewer than
/// eight neurons are dead or no form explains nine tenths of them, as in random models. Reads the
/// three tensors once for each form.
pub fn likely_form(
    gate: &[u8],
    up: &[u8],
    down: &[u8],
    hidden_size: usize,
    ffn_size: usize,
) -> Result<Option<Form>> {
    let mut best = (None, 0);
    for form in Form::ALL {
        let Ok(()) = expect_shape(form, ffn_size, hidden_size).and(expect_shape(
            form,
            hidden_size,
            ffn_size,
        )) else {
            continue;
        };
        let mut row = vec![0; hidden_size];
        let mut dead = vec![true; ffn_size];
        for tensor in [gate, up] {
            for (r, dead) in dead.iter_mut().enumerate() {
                unpack_rows(tensor, form, ffn_size, hidden_size, r..r + 1, &mut row)?;
                *dead &= row.iter().all(|&w| w == 0);
            }
        }
        let mut row = vec![0; ffn_size];
        let mut used = vec![0; ffn_size];
        for r in 0..hidden_size {
            unpack_rows(down, form, hidden_size, ffn_size, r..r + 1, &mut row)?;
            used.iter_mut().zip(&row).for_each(|(used, &w)| *used |= w);
        }
        let num_dead = dead.iter().filter(|&&dead| dead).count();
        let num_explained = dead
            .iter()
            .zip(&used)
            .filter(|&(&dead, &used)| dead && used == 0)
            .count();
        if num_explained >= 8 && num_explained * 10 >= num_dead * 9 && num_explained > best.1 {
            best = (Some(form), num_explained);
        }
    }
    Ok(best.0)
}

fn expect_shape(form: Form, rows: usize, cols: usize) -> Result<()> {
    let n = num_weights(FORMAT, rows, cols)?;
    let (fits, rule) = match form {
        Form::Block128 => (
            n.is_multiple_of(128),
            "the number of weights must be a multiple of 128",
        ),
        Form::Block64 => (
            n.is_multiple_of(64),
            "the number of weights must be a multiple of 64",
        ),
        Form::Row4 => (
            rows.is_multiple_of(4),
            "the number of rows must be a multiple of 4",
        ),
    };
    expect_fit(FORMAT, rows, cols, fits, rule)
}

vectorized! {
    /// Unpacks from weight `start` on until `out` is full, through blocks of `LEN` bytes. Returns
    /// whether there was a code 3, which gives a 2. Rows need not begin at a block's border.
    fn unpack_blocks<'a, const LEN: usize>(codes: &'a [u8], start: usize, out: &'a mut [i8]) -> bool {
        let (blocks, _) = codes.as_chunks::<LEN>();
        let mut blocks = blocks[start / (4 * LEN)..].iter();
        let mut threes = [0u8; LEN];
        let mut partial = |block: &[u8; LEN], skip: usize, out: &mut [i8]| {
            let mut whole = [[0; LEN]; 4];
            unpack_block(block, &mut whole, &mut [0; LEN]);
            out.copy_from_slice(&whole.as_flattened()[skip..skip + out.len()]);
            threes[0] |= u8::from(out.contains(&2));
        };
        let skip = start % (4 * LEN);
        let head_len = if skip == 0 { 0 } else { (4 * LEN - skip).min(out.len()) };
        let (head, rest) = out.split_at_mut(head_len);
        if let (false, Some(block)) = (head.is_empty(), blocks.as_slice().first()) {
            partial(block, skip, head);
            blocks.next();
        }
        let (body, tail) = rest.split_at_mut(rest.len() / (4 * LEN) * (4 * LEN));
        if let (false, Some(block)) = (tail.is_empty(), blocks.as_slice().get(body.len() / (4 * LEN))) {
            partial(block, 0, tail);
        }
        for (block, out) in blocks.zip(body.as_chunks_mut::<LEN>().0.as_chunks_mut::<4>().0) {
            unpack_block(block, out, &mut threes);
        }
        threes != [0; LEN]
    }
}

#[inline(always)]
fn unpack_block<const LEN: usize>(
    block: &[u8; LEN],
    out: &mut [[i8; LEN]; 4],
    threes: &mut [u8; LEN],
) {
    let [a, b, c, d] = out;
    for i in 0..LEN {
        let byte = block[i];
        a[i] = (byte >> 6) as i8 - 1;
        b[i] = (byte >> 4 & 3) as i8 - 1;
        c[i] = (byte >> 2 & 3) as i8 - 1;
        d[i] = (byte & 3) as i8 - 1;
        threes[i] |= byte & byte >> 1 & 0x55;
    }
}

fn unpack_row_groups(codes: &[u8], cols: usize, first_row: usize, out: &mut [i8]) -> bool {
    let mut any_three = false;
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        let (group, shift) = ((first_row + i) / 4, 6 - 2 * ((first_row + i) % 4));
        any_three |= unpack_field(&codes[group * cols..(group + 1) * cols], shift, row);
    }
    any_three
}

vectorized! {
    fn pack_blocks<'a, const LEN: usize>(weights: &'a [i8], codes: &'a mut [u8]) -> () {
        let groups = weights.as_chunks::<LEN>().0.as_chunks::<4>().0;
        for (group, block) in groups.iter().zip(codes.as_chunks_mut::<LEN>().0) {
            pack_block(group, block);
        }
    }
}

#[inline(always)]
fn pack_block<const LEN: usize>([a, b, c, d]: &[[i8; LEN]; 4], block: &mut [u8; LEN]) {
    for i in 0..LEN {
        block[i] = pack_codes([a[i], b[i], c[i], d[i]]);
    }
}

vectorized! {
    fn quantize_blocks<'a, const LEN: usize>(weights: &'a [f32], one: f32, codes: &'a mut [u8]) -> () {
        for (weights, block) in weights.chunks_exact(4 * LEN).zip(codes.as_chunks_mut::<LEN>().0) {
            let mut group = [[0; LEN]; 4];
            round_ternary(weights, one, group.as_flattened_mut());
            pack_block(&group, block);
        }
    }
}
