//! The one error of this crate: a matrix that does not fit its format, with the numbers.

/// A problem with packed weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The format cannot hold a matrix of this shape.
    #[error("{format} cannot hold a [{rows}, {cols}] matrix: {rule}")]
    Shape {
        /// The format's name.
        format: &'static str,
        /// Output rows.
        rows: usize,
        /// Input columns.
        cols: usize,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// A slice is not as long as its shape says.
    #[error("{format} {what} has {found} elements, expected {expected}")]
    Length {
        /// The format's name.
        format: &'static str,
        /// The name of the slice.
        what: &'static str,
        /// The expected number of elements.
        expected: usize,
        /// The number of elements that it has.
        found: usize,
    },
    /// A range of rows goes past the last row.
    #[error("rows {start} to {end} requested from a {format} matrix with {rows} rows")]
    Rows {
        /// The format's name.
        format: &'static str,
        /// First requested row.
        start: usize,
        /// One past the last requested row.
        end: usize,
        /// Number of rows.
        rows: usize,
    },
    /// Packed bits that do not stand for a ternary weight.
    #[error("{format} code at row {row}, column {col} is {code}, which is not a ternary weight")]
    Code {
        /// The format's name.
        format: &'static str,
        /// Its row.
        row: usize,
        /// Its column; the first one if a code stands for several weights.
        col: usize,
        /// The code as packed.
        code: u8,
    },
    /// A weight to pack is not −1, 0 or 1.
    #[error("weight at row {row}, column {col} is {value}; {format} packs -1, 0 and 1")]
    Weight {
        /// The format's name.
        format: &'static str,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// The weight.
        value: i8,
    },
    /// A code that a format with group scales cannot hold.
    #[error("code at row {row}, column {col} is {code}, which {format} cannot hold")]
    GroupCode {
        /// The format's name.
        format: &'static str,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// The code: a weight in units of its group's scale.
        code: i8,
    },
    /// A weight to quantize, or a scale, is infinite or not a number.
    #[error("{what} {index} is {value}, which is not finite")]
    NotFinite {
        /// The kind of number: a weight, a scale.
        what: &'static str,
        /// Its index in row-major order, or the index of its block.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A value that a format cannot hold: infinite, not a number, or too large for it.
    #[error("{format} cannot hold value {index}, which is {value}")]
    Value {
        /// The format's name.
        format: &'static str,
        /// Its index in the slice.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A scale by which weights cannot be divided.
    #[error("scale is {value}, expected a finite number above 0")]
    Scale {
        /// Its value.
        value: f32,
    },
    /// Floats of a group that are not codes times one scale.
    #[error(
        "the {len} weights from row {row}, column {col} on are not -1, 0, 1 or 2 times one scale: their least magnitude is {scale}, and one is {other}"
    )]
    NotGrouped {
        /// The group's row.
        row: usize,
        /// Its first column.
        col: usize,
        /// Its length.
        len: usize,
        /// The least magnitude above 0.
        scale: f32,
        /// A weight that does not fit it.
        other: f32,
    },
    /// The scale of a group of floats that f16 does not hold.
    #[error(
        "the weights from row {row}, column {col} on have the scale {value}, which is not an f16"
    )]
    ScaleNotF16 {
        /// The group's row.
        row: usize,
        /// Its first column.
        col: usize,
        /// The scale.
        value: f32,
    },
    /// The blocks of a tensor have scales that differ.
    #[error(
        "{format} block {block} has scale {found}, an earlier one {expected}; only one scale per tensor is supported (a converter that gets weights before they are rounded writes such blocks)"
    )]
    BlockScales {
        /// The format's name.
        format: &'static str,
        /// The first block that differs, counted in row-major order.
        block: usize,
        /// Its scale.
        found: f32,
        /// The scale of the blocks before it.
        expected: f32,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// `rows · cols`, or the error that names the shape.
pub(crate) fn num_weights(format: &'static str, rows: usize, cols: usize) -> Result<usize> {
    let rule = "rows and columns must be at least 1 and their product within memory";
    let n = rows.checked_mul(cols).unwrap_or(0);
    expect_fit(
        format,
        rows,
        cols,
        n > 0 && n <= isize::MAX as usize / 8,
        rule,
    )?;
    Ok(n)
}

/// Fails unless a shape fits a format's rule.
pub(crate) fn expect_fit(
    format: &'static str,
    rows: usize,
    cols: usize,
    fits: bool,
    rule: &'static str,
) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::Shape {
            format,
            rows,
            cols,
            rule,
        }),
    }
}

/// Fails unless a slice has the expected number of elements.
pub(crate) fn expect_len(
    format: &'static str,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Length {
            format,
            what,
            expected,
            found,
        })
    }
}

/// Fails unless `range` lies within `rows`.
pub(crate) fn expect_rows(
    format: &'static str,
    range: &std::ops::Range<usize>,
    rows: usize,
) -> Result<()> {
    if range.start <= range.end && range.end <= rows {
        Ok(())
    } else {
        Err(Error::Rows {
            format,
            start: range.start,
            end: range.end,
            rows,
        })
    }
}

/// The f32 scale at the start of a tensor's 32-byte tail.
pub(crate) fn read_scale(tail: &[u8]) -> Result<f32> {
    let value = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NotFinite {
            what: "scale",
            index: 0,
            value,
        })
    }
}

/// Writes the f32 scale at the start of a tensor's tail and zeros the rest.
pub(crate) fn write_scale(tail: &mut [u8], scale: f32) -> Result<()> {
    if !scale.is_finite() {
        return Err(Error::NotFinite {
            what: "scale",
            index: 0,
            value: scale,
        });
    }
    tail.fill(0);
    tail[..4].copy_from_slice(&scale.to_le_bytes());
    Ok(())
}
