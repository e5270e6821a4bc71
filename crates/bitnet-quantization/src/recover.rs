//! Finds codes and scales in floats that are codes times scales already: models whose weights have
//! a scale for each group of columns, written as floats or in formats with a scale and an offset.

use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_kernels::Pool;
use half::f16;

use crate::error::{Error, Result};
use crate::group::{GroupFormat, repack};
use crate::pieces::for_each_piece;

/// Writes a row of floats.
pub type ReadRow<'a> = dyn Fn(usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// Writes the codes of a row and the scales of its groups.
pub type ReadGroups<'a> = dyn Fn(usize, &mut [i8], &mut [f32]) -> Result<()> + Sync + 'a;

/// Packs weights that have one magnitude, its double and zeros in each group, without any loss:
/// `read_row(row, values)` writes a row of `cols` floats.
///
/// Groups of 128 are tried first, then of 64. The result is Q1_0 for signs, PQ2_0 for groups of 128
/// and Q2_0 for groups of 64, and its bytes. Memory: these bytes and a row for each thread.
///
/// # Errors
/// If the columns are not a multiple of 64, a group has other weights, or a scale is not an f16.
/// The error names the first group of 64, or of 128 where no shorter ones were tried.
pub fn recover(
    rows: usize,
    cols: usize,
    read_row: &ReadRow<'_>,
    pool: &Pool,
) -> Result<(GroupFormat, Vec<u8>)> {
    recover_by(rows, cols, read_row, pool, &split)
}

/// The same for weights −1, 0 and 1 times one scale a group that a quantizer for floats has stored.
/// Its rounding has changed them a little: in each group, magnitudes up to an eighth of the largest
/// were zeros, and the others, which then lie within 15 % of the largest, had one magnitude.
///
/// takes_largest: whether the scale is the largest magnitude, rounded to f16; otherwise it is their
/// mean. Formats whose codes reach further on one side of zero store one of the two signs exactly.
///
/// # Errors
/// If the columns are not a multiple of 64 or a group has other weights. The values that the error
/// names come from the first such group.
pub fn recover_near(
    rows: usize,
    cols: usize,
    read_row: &ReadRow<'_>,
    takes_largest: bool,
    pool: &Pool,
) -> Result<(GroupFormat, Vec<u8>)> {
    let split = |floats: &[f32], codes: &mut [i8]| split_near(floats, codes, takes_largest);
    recover_by(rows, cols, read_row, pool, &split)
}

/// Finds codes and scales by `split`.
fn recover_by(
    rows: usize,
    cols: usize,
    read_row: &ReadRow<'_>,
    pool: &Pool,
    split: &Split<'_>,
) -> Result<(GroupFormat, Vec<u8>)> {
    if cols.is_multiple_of(128) {
        let (are_signs, has_codes) = (AtomicBool::new(true), AtomicBool::new(false));
        let found = split_rows(
            GroupFormat::PQ2_0,
            rows,
            cols,
            read_row,
            pool,
            split,
            &|codes| {
                if codes.iter().any(|code| *code != 0) {
                    has_codes.store(true, Ordering::Relaxed);
                    if codes.iter().any(|code| !matches!(code, -1 | 1)) {
                        are_signs.store(false, Ordering::Relaxed);
                    }
                }
            },
        );
        if let Ok(bytes) = found {
            if !(are_signs.into_inner() && has_codes.into_inner()) {
                return Ok((GroupFormat::PQ2_0, bytes));
            }
            let mut signs = vec![0; GroupFormat::Q1_0.size_bytes(rows, cols)?];
            let (from, to) = (GroupFormat::PQ2_0, GroupFormat::Q1_0);
            repack(from, to, &bytes, rows, cols, &mut signs)?;
            return Ok((to, signs));
        }
    }
    let format = GroupFormat::Q2_0;
    Ok((
        format,
        split_rows(format, rows, cols, read_row, pool, split, &|_| ())?,
    ))
}

/// Packs rows whose codes and scales are known, on all threads: `read(row, codes, scales)` writes
/// `cols` codes and their groups' scales.
///
/// # Errors
/// If `read` fails, or the format cannot hold a code or a scale.
pub fn pack_rows(
    format: GroupFormat,
    rows: usize,
    cols: usize,
    read: &ReadGroups<'_>,
    pool: &Pool,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; format.size_bytes(rows, cols)?];
    let row_bytes = bytes.len() / rows;
    let pieces = bytes.chunks_exact_mut(row_bytes);
    for_each_piece(pool, rows * cols, pieces, |row, out| {
        let (mut codes, mut scales) = (vec![0; cols], vec![0.0; cols / format.group_len()]);
        read(row, &mut codes, &mut scales)?;
        format.pack(&codes, &scales, 1, cols, out)
    })?;
    Ok(bytes)
}

/// Packs rows of floats. seen: gets the codes of each group.
fn split_rows(
    format: GroupFormat,
    rows: usize,
    cols: usize,
    read_row: &ReadRow<'_>,
    pool: &Pool,
    split: &Split<'_>,
    seen: &(dyn Fn(&[i8]) + Sync),
) -> Result<Vec<u8>> {
    let len = format.group_len();
    let read = |row: usize, codes: &mut [i8], scales: &mut [f32]| {
        let mut floats = vec![0.0; cols];
        read_row(row, &mut floats)?;
        let groups = floats.chunks_exact(len).zip(codes.chunks_exact_mut(len));
        for (index, ((floats, codes), scale)) in groups.zip(scales).enumerate() {
            *scale = split(floats, codes).ok_or_else(|| not_grouped(row, index * len, floats))?;
            seen(codes);
        }
        Ok(())
    };
    pack_rows(format, rows, cols, &read, pool)
}

/// Writes the codes of a group and returns its scale; `None` if it has other weights.
type Split<'a> = dyn Fn(&[f32], &mut [i8]) -> Option<f32> + Sync + 'a;

/// The scale of a group, and its codes; `None` if it has other weights than codes times a scale
/// that is an f16. The scale of zeros is 0.
fn split(floats: &[f32], codes: &mut [i8]) -> Option<f32> {
    let least = least_magnitude(floats);
    let scale = if least.is_finite() { least } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(floats) {
        *code = match *x {
            0.0 => 0,
            x if x == scale => 1,
            x if x == -scale => -1,
            x if x == 2.0 * scale => 2,
            _ => return None,
        };
    }
    (f16::from_f32(scale).to_f32() == scale).then_some(scale)
}

/// The scale of a group whose weights a quantizer has changed a little, and its codes.
fn split_near(floats: &[f32], codes: &mut [i8], takes_largest: bool) -> Option<f32> {
    let largest = floats
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    let zero = largest / 8.0;
    let (mut sum, mut count) = (0.0f64, 0usize);
    for (code, x) in codes.iter_mut().zip(floats) {
        let magnitude = x.abs();
        *code = match *x {
            _ if magnitude <= zero => 0,
            _ if magnitude < 0.85 * largest => return None,
            x if x > 0.0 => 1,
            _ => -1,
        };
        if *code != 0 {
            (sum, count) = (sum + f64::from(magnitude), count + 1);
        }
    }
    let scale = match count {
        _ if takes_largest => largest,
        0 => 0.0,
        _ => (sum / count as f64) as f32,
    };
    Some(f16::from_f32(scale).to_f32()).filter(|scale| scale.is_finite())
}

/// The least magnitude above 0; infinite if there is none.
fn least_magnitude(floats: &[f32]) -> f32 {
    let magnitudes = floats.iter().map(|x| x.abs()).filter(|x| *x > 0.0);
    magnitudes.fold(f32::INFINITY, f32::min)
}

/// The error that shows why a group cannot be split.
#[cold]
fn not_grouped(row: usize, col: usize, floats: &[f32]) -> Error {
    let least = least_magnitude(floats);
    let other = floats
        .iter()
        .copied()
        .find(|x| ![0.0, least, -least, 2.0 * least].contains(x));
    match other {
        Some(other) => Error::NotGrouped {
            row,
            col,
            len: floats.len(),
            scale: least,
            other,
        },
        None => Error::ScaleNotF16 {
            row,
            col,
            value: least,
        },
    }
}
