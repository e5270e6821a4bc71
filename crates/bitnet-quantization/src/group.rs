//! Formats with a scale for each group of columns: signs and trits; codes and scales are separate.
//!
//! ```text
//! Q1_0,   128 weights in 18 bytes:  d f16 | bits[16]            weight j is bit j%8 of byte j/8: 1 → +d, 0 → −d
//! Q2_0,    64 weights in 18 bytes:  d f16 | codes[16]           weight j is bits 2·(j%4) of byte j/4: (code − 1)·d
//! PQ2_0,  128 weights in 34 bytes:  d f16 | codes[32]           the same; also the older Q2_0 of Prism's files
//! PTQ1_0, 128 weights in 28 bytes:  qs[24] | qh[2] | d f16      five ternary digits a byte as in TQ1_0:
//!     qs[m],    m < 16  weights m + 16t       t < 5
//!     qs[16+m], m < 8   weights 80 + m + 8t   t < 5
//!     qh[m],    m < 2   weights 120 + m + 2t  t < 4
//! ```
//! Code 3 of the two-bit forms is +2d: files may use it, so a code is −1, 0, 1 or 2 here.

use std::ops::Range;

use half::f16;

use crate::error::{Error, Result, expect_fit, expect_len, expect_rows, num_weights};
use crate::tq::{self, decode_part, encode_part};

/// A format with a scale for each group of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupFormat {
    /// Signs, groups of 128, 1.125 bits per weight.
    Q1_0,
    /// Two bits, groups of 64, 2.25 bits per weight.
    Q2_0,
    /// Two bits, groups of 128, 2.125 bits per weight.
    PQ2_0,
    /// Trits, groups of 128, 1.75 bits per weight.
    PTQ1_0,
    /// Trits, groups of 256.
    TQ(tq::Kind),
}

impl GroupFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [
        Self::Q1_0,
        Self::Q2_0,
        Self::PQ2_0,
        Self::PTQ1_0,
        Self::TQ(tq::Kind::TQ1_0),
        Self::TQ(tq::Kind::TQ2_0),
    ];

    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q1_0 => "Q1_0",
            Self::Q2_0 => "Q2_0",
            Self::PQ2_0 => "PQ2_0",
            Self::PTQ1_0 => "PTQ1_0",
            Self::TQ(kind) => kind.name(),
        }
    }

    /// Columns of a group.
    pub fn group_len(self) -> usize {
        match self {
            Self::Q2_0 => 64,
            Self::Q1_0 | Self::PQ2_0 | Self::PTQ1_0 => 128,
            Self::TQ(_) => tq::BLOCK_LEN,
        }
    }

    /// Bytes of a group, its scale included.
    pub fn group_bytes(self) -> usize {
        match self {
            Self::Q1_0 | Self::Q2_0 => 18,
            Self::PQ2_0 => 34,
            Self::PTQ1_0 => 28,
            Self::TQ(kind) => kind.block_bytes(),
        }
    }

    /// The smallest and the largest code.
    pub fn codes(self) -> (i8, i8) {
        match self {
            Self::Q2_0 | Self::PQ2_0 => (-1, 2),
            Self::Q1_0 | Self::PTQ1_0 | Self::TQ(_) => (-1, 1),
        }
    }

    /// Bytes of a `[rows, cols]` tensor; `cols` must be a multiple of the group.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        let n = num_weights(self.name(), rows, cols)?;
        let rule = match self.group_len() {
            64 => "the number of columns must be a multiple of 64",
            128 => "the number of columns must be a multiple of 128",
            _ => "the number of columns must be a multiple of 256",
        };
        let fits = cols.is_multiple_of(self.group_len());
        expect_fit(self.name(), rows, cols, fits, rule)?;
        Ok(n / self.group_len() * self.group_bytes())
    }

    /// Unpacks `range` of the rows into codes and the scales of their groups. A weight is its code
    /// times the scale of its group.
    ///
    /// bytes: the whole tensor; codes: `[range.len(), cols]`; scales: `[range.len(), cols /
    /// group_len]`. A code 3 of TQ2_0 is an error, as is a scale that is not finite.
    pub fn unpack_rows(
        self,
        bytes: &[u8],
        rows: usize,
        cols: usize,
        range: Range<usize>,
        codes: &mut [i8],
        scales: &mut [f32],
    ) -> Result<()> {
        if let Self::TQ(kind) = self {
            return kind.unpack_rows(bytes, rows, cols, range, codes, scales);
        }
        let (name, len) = (self.name(), self.group_len());
        expect_len(name, "tensor", bytes.len(), self.size_bytes(rows, cols)?)?;
        expect_rows(name, &range, rows)?;
        expect_len(name, "output", codes.len(), range.len() * cols)?;
        expect_len(name, "scales", scales.len(), codes.len() / len)?;
        let first = range.start * (cols / len);
        let groups = bytes.chunks_exact(self.group_bytes()).skip(first);
        for (i, ((group, codes), scale)) in groups
            .zip(codes.chunks_exact_mut(len))
            .zip(scales)
            .enumerate()
        {
            *scale = self.decode(group, codes);
            if !scale.is_finite() {
                return Err(Error::NotFinite {
                    what: "scale of block",
                    index: first + i,
                    value: *scale,
                });
            }
        }
        Ok(())
    }

    /// The common scale of all groups; different scales are an error that names both.
    pub fn scale(self, bytes: &[u8], rows: usize, cols: usize) -> Result<f32> {
        if let Self::TQ(kind) = self {
            return tq::uniform_scale(kind.name(), &kind.scales(bytes, rows, cols)?);
        }
        let name = self.name();
        expect_len(name, "tensor", bytes.len(), self.size_bytes(rows, cols)?)?;
        let at = self.scale_at();
        let scale = |group: &[u8]| f16::from_le_bytes([group[at], group[at + 1]]).to_f32();
        let scales: Vec<f32> = bytes.chunks_exact(self.group_bytes()).map(scale).collect();
        tq::uniform_scale(name, &scales)
    }

    /// Where the scale of a group lies in its bytes.
    fn scale_at(self) -> usize {
        match self {
            Self::Q1_0 | Self::Q2_0 | Self::PQ2_0 => 0,
            Self::PTQ1_0 | Self::TQ(_) => self.group_bytes() - 2,
        }
    }

    /// Packs codes with a scale for each group, rounded to f16.
    ///
    /// codes: `[rows, cols]`, each in [`GroupFormat::codes`], in Q1_0 without 0; scales: `[rows,
    /// cols / group_len]`; out: `size_bytes(rows, cols)`.
    ///
    /// In Q1_0 a zero is an error unless its group's scale is 0, where every code means zero.
    pub fn pack(
        self,
        codes: &[i8],
        scales: &[f32],
        rows: usize,
        cols: usize,
        out: &mut [u8],
    ) -> Result<()> {
        if let Self::TQ(kind) = self {
            return kind.pack(codes, scales, rows, cols, out);
        }
        let (name, len) = (self.name(), self.group_len());
        expect_len(name, "output", out.len(), self.size_bytes(rows, cols)?)?;
        expect_len(name, "input", codes.len(), rows * cols)?;
        expect_len(name, "scales", scales.len(), codes.len() / len)?;
        let groups = out.chunks_exact_mut(self.group_bytes());
        for (i, ((group, codes), scale)) in
            groups.zip(codes.chunks_exact(len)).zip(scales).enumerate()
        {
            if let Some(at) = codes.iter().position(|code| !self.holds(*code, *scale)) {
                let at = i * len + at;
                return Err(Error::GroupCode {
                    format: name,
                    row: at / cols,
                    col: at % cols,
                    code: codes[at % len],
                });
            }
            self.encode(codes, tq::scale_to_f16(*scale, i)?, group);
        }
        Ok(())
    }

    fn holds(self, code: i8, scale: f32) -> bool {
        let (least, largest) = self.codes();
        (least..=largest).contains(&code) && (self != Self::Q1_0 || code != 0 || scale == 0.0)
    }

    /// Rounds weights to codes and packs them, as the reference quantizers do: Q1_0 takes the
    /// signs, and the mean magnitude of a group as its scale; the others take the largest magnitude
    /// as the scale and round half away from zero.
    ///
    /// weights: `[rows, cols]`; out: `size_bytes(rows, cols)`.
    pub fn quantize(self, weights: &[f32], rows: usize, cols: usize, out: &mut [u8]) -> Result<()> {
        let (name, len) = (self.name(), self.group_len());
        expect_len(name, "output", out.len(), self.size_bytes(rows, cols)?)?;
        expect_len(name, "input", weights.len(), rows * cols)?;
        if let Some(index) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(Error::NotFinite {
                what: "weight",
                index,
                value: weights[index],
            });
        }
        let mut codes = vec![0; len];
        let groups = out.chunks_exact_mut(self.group_bytes());
        for (group, weights) in groups.zip(weights.chunks_exact(len)) {
            let scale = match self {
                Self::Q1_0 => mean_and_signs(weights, &mut codes),
                _ => largest_and_codes(weights, &mut codes),
            };
            self.pack(&codes, &[scale], 1, len, group)?;
        }
        Ok(())
    }

    /// Turns whole groups into f32. bytes: `size_bytes(1, out.len())`.
    ///
    /// There are no checks: a scale that is not finite gives values that are not finite, and a code
    /// 3 gives 2d.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let mut codes = [0; tq::BLOCK_LEN];
        let codes = &mut codes[..self.group_len()];
        let groups = bytes.chunks_exact(self.group_bytes());
        for (group, out) in groups.zip(out.chunks_exact_mut(self.group_len())) {
            let scale = match self {
                Self::TQ(kind) => kind.decode(group, codes),
                _ => self.decode(group, codes),
            };
            for (x, code) in out.iter_mut().zip(&*codes) {
                *x = f32::from(*code) * scale;
            }
        }
    }

    /// The codes of a group, and its scale.
    fn decode(self, group: &[u8], codes: &mut [i8]) -> f32 {
        match self {
            Self::Q1_0 => {
                for (codes, byte) in codes.as_chunks_mut::<8>().0.iter_mut().zip(&group[2..]) {
                    for (bit, code) in codes.iter_mut().enumerate() {
                        *code = 2 * (byte >> bit & 1) as i8 - 1;
                    }
                }
            }
            Self::Q2_0 | Self::PQ2_0 => {
                for (codes, byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(&group[2..]) {
                    for (field, code) in codes.iter_mut().enumerate() {
                        *code = (byte >> (2 * field) & 3) as i8 - 1;
                    }
                }
            }
            Self::PTQ1_0 => {
                decode_part::<16>(&group[..16], &mut codes[..80]);
                decode_part::<8>(&group[16..24], &mut codes[80..120]);
                decode_part::<2>(&group[24..26], &mut codes[120..]);
            }
            Self::TQ(kind) => return kind.decode(group, codes),
        }
        let at = self.scale_at();
        f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
    }

    fn encode(self, codes: &[i8], scale: f16, group: &mut [u8]) {
        let at = self.scale_at();
        group[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        match self {
            Self::Q1_0 => {
                for (codes, byte) in codes.as_chunks::<8>().0.iter().zip(&mut group[2..]) {
                    let bit = |bit: usize| u8::from(codes[bit] >= 0) << bit;
                    *byte = (0..8).map(bit).fold(0, |byte, bit| byte | bit);
                }
            }
            Self::PTQ1_0 => {
                encode_part::<16>(&codes[..80], &mut group[..16]);
                encode_part::<8>(&codes[80..120], &mut group[16..24]);
                encode_part::<2>(&codes[120..], &mut group[24..26]);
            }
            _ => {
                for (codes, byte) in codes.as_chunks::<4>().0.iter().zip(&mut group[2..]) {
                    let field = |field: usize| ((codes[field] + 1) as u8) << (2 * field);
                    *byte = (0..4).map(field).fold(0, |byte, field| byte | field);
                }
            }
        }
    }
}

/// Fails at a code 3. Makes the codes of groups whose scale is 0 zero, so that all codes are the
/// ternary weights of a tensor with one scale. first: the row of the first code.
pub(crate) fn expect_trits(
    format: GroupFormat,
    first: usize,
    cols: usize,
    codes: &mut [i8],
    scales: &[f32],
) -> Result<()> {
    if let Some(at) = codes.iter().position(|code| *code > 1) {
        return Err(Error::Code {
            format: format.name(),
            row: first + at / cols,
            col: at % cols,
            code: 3,
        });
    }
    let groups = codes.chunks_exact_mut(format.group_len()).zip(scales);
    groups
        .filter(|(_, scale)| **scale == 0.0)
        .for_each(|(codes, _)| codes.fill(0));
    Ok(())
}

/// Converts a tensor to another format, code by code and scale by scale.
///
/// bytes, out: `size_bytes(rows, cols)` of `from` and `to`. Nothing is lost: a code that `to`
/// cannot hold is an error, and so are different scales within a longer group. A group of zeros
/// agrees with any scale.
pub fn repack(
    from: GroupFormat,
    to: GroupFormat,
    bytes: &[u8],
    rows: usize,
    cols: usize,
    out: &mut [u8],
) -> Result<()> {
    expect_len(to.name(), "output", out.len(), to.size_bytes(rows, cols)?)?;
    expect_len(
        from.name(),
        "tensor",
        bytes.len(),
        from.size_bytes(rows, cols)?,
    )?;
    let (mut codes, mut scales) = (vec![0; cols], vec![0.0; cols / from.group_len()]);
    let row_bytes = to.size_bytes(1, cols)?;
    for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
        from.unpack_rows(bytes, rows, cols, row..row + 1, &mut codes, &mut scales)?;
        let scales = regroup(from, to, row, &codes, &scales)?;
        to.pack(&codes, &scales, 1, cols, out)
            .map_err(|error| match error {
                Error::GroupCode {
                    format, col, code, ..
                } => Error::GroupCode {
                    format,
                    row,
                    col,
                    code,
                },
                Error::Weight {
                    format, col, value, ..
                } => Error::GroupCode {
                    format,
                    row,
                    col,
                    code: value,
                },
                other => other,
            })?;
    }
    Ok(())
}

/// The scales of a row for groups of another length.
fn regroup(
    from: GroupFormat,
    to: GroupFormat,
    row: usize,
    codes: &[i8],
    scales: &[f32],
) -> Result<Vec<f32>> {
    let (short, long) = (from.group_len(), to.group_len());
    if long <= short {
        return Ok((0..codes.len() / long)
            .map(|group| scales[group * long / short])
            .collect());
    }
    let ratio = long / short;
    let groups = scales.chunks_exact(ratio).zip(codes.chunks_exact(long));
    groups
        .enumerate()
        .map(|(group, (scales, codes))| {
            let mut counted = scales.iter().zip(codes.chunks_exact(short)).enumerate();
            let mut common = None;
            let differs = counted.find(|(_, (scale, codes))| {
                codes.iter().any(|code| *code != 0) && *common.get_or_insert(**scale) != **scale
            });
            match differs {
                None => Ok(common.unwrap_or(scales[0])),
                Some((index, (found, _))) => Err(Error::BlockScales {
                    format: to.name(),
                    block: row * (codes.len() / short) + group * ratio + index,
                    found: *found,
                    expected: common.unwrap_or_default(),
                }),
            }
        })
        .collect()
}

/// The mean magnitude, summed from first to last, and the signs; 0 counts as positive.
fn mean_and_signs(weights: &[f32], codes: &mut [i8]) -> f32 {
    for (code, weight) in codes.iter_mut().zip(weights) {
        *code = if *weight >= 0.0 { 1 } else { -1 };
    }
    weights.iter().fold(0.0, |sum, weight| sum + weight.abs()) / weights.len() as f32
}

/// The largest magnitude, and the weights divided by it, rounded half away from zero.
fn largest_and_codes(weights: &[f32], codes: &mut [i8]) -> f32 {
    let largest = weights
        .iter()
        .fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
    for (code, weight) in codes.iter_mut().zip(weights) {
        *code = (weight * inverse).round() as i8;
    }
    largest
}
