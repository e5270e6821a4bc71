//! [`TernaryTensor`]: a ternary matrix, packed or as floats.

use std::ops::Range;

use bitnet_files::Extent;
use bitnet_kernels::Pool;
use bitnet_quantization::dense::Dense;
use bitnet_quantization::{TernaryFormat, absmean};

use super::heads::{half_split_row, interleaved_row};
use crate::error::{Error, Result};

/// A ternary matrix as it is in a file, `[rows, cols]`.
pub(crate) struct TernaryTensor {
    /// Its name in the file.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// The factor of the weights −1, 0, 1.
    pub scale: f32,
    pub codes: Codes,
    pub data: Extent,
    /// The head size, if the file keeps the two elements of a rotated pair side by side.
    /// [`TernaryTensor::unpack_rows`] gives the first half of a head, then the second.
    pub interleaved_heads: Option<usize>,
}

/// How a tensor's bytes become −1, 0, 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Codes {
    Packed(TernaryFormat),
    /// Floats that are already −1, 0 and 1.
    Units(Dense),
    /// Floats of one magnitude, which is the scale, and zeros, which may have magnitudes up to
    /// `zero`.
    Signs {
        format: Dense,
        zero: f32,
    },
    /// Floats to multiply by `s` and round.
    Absmean {
        format: Dense,
        s: f32,
    },
}

/// Which float weights are accepted, and how to make them ternary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatRule {
    /// Any weights: rounded by the absmean formula, as a model's own code does at every use.
    Absmean,
    /// Zeros and one magnitude, which is the scale: a ternary model written as floats.
    Ternary,
    /// The ternary rule if it holds, else the absmean rule.
    TernaryOrAbsmean,
}

/// Statistics of the magnitudes of a row of floats that exceed a limit.
#[derive(Clone, Copy, Default)]
struct RowFigures {
    sum: f64,
    count: usize,
    /// Infinite if no magnitude exceeds the limit.
    least: f32,
    largest: f32,
}

impl RowFigures {
    fn of(floats: &[f32], above: f32) -> bitnet_quantization::Result<Self> {
        let mut figures = Self {
            sum: 0.0,
            count: 0,
            least: f32::INFINITY,
            largest: 0.0,
        };
        let whole = absmean::magnitude_sum(floats)?;
        for magnitude in floats.iter().map(|x| x.abs()).filter(|x| *x > above) {
            figures.least = figures.least.min(magnitude);
            figures.largest = figures.largest.max(magnitude);
            figures.sum += f64::from(magnitude);
            figures.count += 1;
        }
        if above == 0.0 {
            figures.sum = whole; // in the order that the absmean formula is defined with
        }
        Ok(figures)
    }
}

/// The least and the largest of the magnitudes of all rows.
fn magnitudes(figures: &[RowFigures]) -> (f32, f32) {
    let least = figures.iter().map(|row| row.least);
    let largest = figures.iter().map(|row| row.largest);
    (
        least.fold(f32::INFINITY, f32::min),
        largest.fold(0.0, f32::max),
    )
}

impl Codes {
    /// Its name for messages.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Packed(format) => format.name().to_owned(),
            Self::Units(format) => format!("{} units", format.name()),
            Self::Signs { format, .. } => format!("{} signs", format.name()),
            Self::Absmean { format, .. } => format!("{} absmean", format.name()),
        }
    }
}

impl TernaryTensor {
    /// Unpacks `range` of the rows, in the order of the graph, into −1, 0, 1. out: `[range.len(),
    /// cols]`.
    pub(crate) fn unpack_rows(&self, range: Range<usize>, out: &mut [i8]) -> Result<()> {
        let Some(head_dim) = self.interleaved_heads else {
            return self.unpack_stored(range, out);
        };
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols)) {
            let stored = interleaved_row(row, head_dim);
            self.unpack_stored(stored..stored + 1, out)?;
        }
        Ok(())
    }

    /// The same in the order of files that keep the two elements of a rotated pair side by side, in
    /// heads of that size.
    pub(crate) fn unpack_interleaved(
        &self,
        range: Range<usize>,
        head_dim: usize,
        out: &mut [i8],
    ) -> Result<()> {
        if self.interleaved_heads == Some(head_dim) {
            return self.unpack_stored(range, out);
        }
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols)) {
            let row = half_split_row(row, head_dim);
            self.unpack_rows(row..row + 1, out)?;
        }
        Ok(())
    }

    /// The same in the order of the file.
    fn unpack_stored(&self, range: Range<usize>, out: &mut [i8]) -> Result<()> {
        let of_tensor = |source| Error::Tensor {
            tensor: self.name.clone(),
            source,
        };
        let format = match self.codes {
            Codes::Packed(format) => {
                return format
                    .unpack_rows(&self.data, self.rows, self.cols, range, out)
                    .map_err(of_tensor);
            }
            Codes::Units(format) | Codes::Signs { format, .. } | Codes::Absmean { format, .. } => {
                format
            }
        };
        let mut floats = vec![0.0; self.cols];
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols)) {
            self.read_floats(format, row, &mut floats)?;
            match self.codes {
                Codes::Absmean { s, .. } => absmean::round(&floats, s, out).map_err(of_tensor)?,
                Codes::Signs { zero, .. } => {
                    out.iter_mut()
                        .zip(&floats)
                        .for_each(|(w, x)| *w = i8::from(*x > zero) - i8::from(*x < -zero));
                }
                _ => self.take_units(row, &floats, out)?,
            }
        }
        Ok(())
    }

    fn read_floats(&self, format: Dense, row: usize, floats: &mut [f32]) -> Result<()> {
        let row_bytes = self.data.len() / self.rows;
        format
            .dequantize(&self.data[row * row_bytes..(row + 1) * row_bytes], floats)
            .map_err(|source| Error::Tensor {
                tensor: self.name.clone(),
                source,
            })
    }

    fn take_units(&self, row: usize, floats: &[f32], out: &mut [i8]) -> Result<()> {
        for (col, (x, w)) in floats.iter().zip(out).enumerate() {
            if !matches!(*x, -1.0 | 0.0 | 1.0) {
                let problem = format!(
                    "the weight at row {row}, column {col} is {x}, not -1, 0 or 1, and has a scale"
                );
                return Err(Error::TensorValues {
                    tensor: self.name.clone(),
                    problem,
                });
            }
            *w = *x as i8;
        }
        Ok(())
    }

    /// Decides the codes and the scale of float weights by one pass over the whole tensor.
    pub(crate) fn measure(&mut self, format: Dense, rule: FloatRule, pool: &Pool) -> Result<()> {
        let figures = self.row_figures(format, 0.0, pool)?;
        let (least, largest) = magnitudes(&figures);
        if rule != FloatRule::Absmean && least >= largest {
            (self.codes, self.scale) = (Codes::Signs { format, zero: 0.0 }, largest);
            return Ok(());
        }
        self.round(format, rule, &figures)
    }

    /// The same for weights that a quantizer for floats has stored. Its rounding has changed the
    /// three values of a ternary tensor a little: weights up to an eighth of the largest magnitude
    /// were zeros; the others, which then lie within 15 % of the largest, had one magnitude. Their
    /// mean or their largest is the scale.
    pub(crate) fn recover(&mut self, format: Dense, rule: FloatRule, pool: &Pool) -> Result<()> {
        let figures = self.row_figures(format, 0.0, pool)?;
        let (_, largest) = magnitudes(&figures);
        let zero = largest / 8.0;
        let above = self.row_figures(format, zero, pool)?;
        let (least, _) = magnitudes(&above);
        if rule == FloatRule::Absmean || least < 0.85 * largest {
            return self.round(format, rule, &figures);
        }
        let sum: f64 = above.iter().map(|row| row.sum).sum();
        let count: usize = above.iter().map(|row| row.count).sum();
        self.codes = Codes::Signs { format, zero };
        self.scale = match format {
            _ if stores_one_sign(format) => largest,
            _ if count == 0 => 0.0,
            _ => (sum / count as f64) as f32,
        };
        Ok(())
    }

    /// Rounds weights of several magnitudes by the absmean formula, if the rule allows it.
    fn round(&mut self, format: Dense, rule: FloatRule, figures: &[RowFigures]) -> Result<()> {
        if rule == FloatRule::Ternary {
            let (least, largest) = magnitudes(figures);
            let problem = format!(
                "its weights have magnitudes from {least} to {largest}, so they are not ternary; `bitnet quantize` rounds them"
            );
            return Err(Error::TensorValues {
                tensor: self.name.clone(),
                problem,
            });
        }
        let s = absmean::inverse_scale(
            figures.iter().map(|row| row.sum).sum(),
            self.rows * self.cols,
        );
        self.codes = Codes::Absmean { format, s };
        self.scale = absmean::scale(s);
        Ok(())
    }

    /// The figures of every row. above: magnitudes up to this are ignored.
    ///
    /// One thread computes a row, and the sums of the rows are added in order, so threads change
    /// nothing.
    fn row_figures(&self, format: Dense, above: f32, pool: &Pool) -> Result<Vec<RowFigures>> {
        let figures = std::sync::Mutex::new(Ok(vec![RowFigures::default(); self.rows]));
        pool.split(self.rows, 1, &|share| {
            let mut floats = vec![0.0; self.cols];
            for row in share {
                let found = self.read_floats(format, row, &mut floats).and_then(|()| {
                    RowFigures::of(&floats, above).map_err(|_| self.not_finite(row, &floats))
                });
                let mut figures = figures
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                match (&mut *figures, found) {
                    (Ok(figures), Ok(found)) => figures[row] = found,
                    (Ok(_), Err(error)) => *figures = Err(error),
                    (Err(_), _) => return,
                }
            }
        });
        figures
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn not_finite(&self, row: usize, floats: &[f32]) -> Error {
        let col = floats.iter().position(|x| !x.is_finite()).unwrap_or(0);
        let problem = format!("the weight at row {row}, column {col} is {}", floats[col]);
        Error::TensorValues {
            tensor: self.name.clone(),
            problem,
        }
    }
}

/// Whether a format's symmetric codes reach one step further below zero than above: its quantizer
/// stores one of the two signs exactly, and the other as 7/8 to 127/128 of it.
pub(super) fn stores_one_sign(format: Dense) -> bool {
    matches!(
        format,
        Dense::Q4_0 | Dense::Q5_0 | Dense::Q3_K | Dense::Q6_K
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLS: usize = 256;

    fn trits(rows: usize) -> Vec<i8> {
        let mut x = 12345u32;
        let next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((x >> 16) % 3) as i8 - 1
        };
        std::iter::repeat_with(next).take(rows * COLS).collect()
    }

    fn recovered(
        format: Dense,
        rows: usize,
        bytes: Vec<u8>,
        rule: FloatRule,
    ) -> Result<TernaryTensor> {
        let file = std::sync::Arc::new(bitnet_files::ModelBytes::Owned(bytes));
        let mut tensor = TernaryTensor {
            name: "t".into(),
            rows,
            cols: COLS,
            scale: 1.0,
            codes: Codes::Units(format),
            data: Extent::new(&file, 0, file.len()),
            interleaved_heads: None,
        };
        tensor.recover(format, rule, &Pool::new(2))?;
        Ok(tensor)
    }

    #[track_caller]
    fn assert_recovers(format: Dense, bytes: Vec<u8>, codes: &[i8], scale: f32, tolerance: f32) {
        let rows = codes.len() / COLS;
        let tensor = recovered(format, rows, bytes, FloatRule::Ternary).unwrap();
        let mut found = vec![9; codes.len()];
        tensor.unpack_rows(0..rows, &mut found).unwrap();
        assert!(found == codes, "{}", format.name());
        let error = (tensor.scale - scale).abs() / scale.max(f32::MIN_POSITIVE);
        assert!(
            error <= tolerance,
            "{}: {} for {scale}",
            format.name(),
            tensor.scale
        );
    }

    /// Nibbles of a block of 32 codes; `values` stand for −1, 0 and 1.
    fn nibbles(codes: &[i8], values: [u8; 3]) -> impl Iterator<Item = u8> {
        let value = move |code: i8| values[(code + 1) as usize];
        let (low, high) = codes.split_at(16);
        low.iter()
            .zip(high)
            .map(move |(low, high)| value(*low) | value(*high) << 4)
    }

    #[test]
    fn ternary_weights_are_recovered_after_a_quantizer_for_floats() {
        let (codes, scale) = (trits(4), 0.0398f32);
        let floats: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
        // Q6_K stores scale / 31 / 128, a subnormal f16: half a step of 2⁻²⁴ is 0.3 % of it.
        for (format, tolerance) in [(Dense::Q8_0, 1e-3), (Dense::Q6_K, 3e-3)] {
            let mut bytes = vec![0; format.size_bytes(4, COLS).unwrap()];
            format.quantize(&floats, &mut bytes).unwrap();
            assert_recovers(format, bytes, &codes, scale, tolerance);
        }
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        // There are fifteen steps from −s to s: zero falls between two codes and becomes s/15.
        let q4_1 = |codes: &[i8]| -> Vec<u8> {
            let head = [half(2.0 * scale / 15.0), half(-scale)].concat();
            head.into_iter().chain(nibbles(codes, [0, 8, 15])).collect()
        };
        let bytes = codes.chunks(32).flat_map(q4_1).collect();
        assert_recovers(Dense::Q4_1, bytes, &codes, scale, 1e-3);
        // The sign of the largest value has sixteen steps, the other has fifteen.
        let q5_0 = |codes: &[i8]| -> Vec<u8> {
            let fifth = |(i, code): (usize, &i8)| u32::from(*code >= 0) << i;
            let fifth = codes
                .iter()
                .enumerate()
                .map(fifth)
                .fold(0, |bits, bit| bits | bit);
            let head = [&half(scale / 16.0)[..], &fifth.to_le_bytes()].concat();
            head.into_iter().chain(nibbles(codes, [0, 0, 15])).collect()
        };
        let bytes = codes.chunks(32).flat_map(q5_0).collect();
        assert_recovers(Dense::Q5_0, bytes, &codes, scale, 1e-3);
        // Codes 0, 7 and 14, with a scale of s/7 and a minimum of s, each in 63 parts.
        let q4_k = |codes: &[i8]| -> Vec<u8> {
            let packed = [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ];
            let head = [&half(scale / 7.0 / 63.0)[..], &half(scale / 63.0), &packed].concat();
            let value = |code: i8| 7 * (code + 1) as u8;
            let pairs = codes.chunks(64).flat_map(|run| {
                (0..32)
                    .map(|i| value(run[i]) | value(run[32 + i]) << 4)
                    .collect::<Vec<_>>()
            });
            head.into_iter().chain(pairs).collect()
        };
        let bytes = codes.chunks(256).flat_map(q4_k).collect();
        assert_recovers(Dense::Q4_K, bytes, &codes, scale, 1e-3);
        assert_recovers(Dense::Q8_0, vec![0; 34 * 8], &[0; COLS], 0.0, 0.0);
    }

    #[test]
    fn weights_of_more_than_three_values_are_not_recovered() {
        let floats: Vec<f32> = (0..COLS).map(|i| (i % 5) as f32 - 2.0).collect();
        let mut bytes = vec![0; Dense::Q8_0.size_bytes(1, COLS).unwrap()];
        Dense::Q8_0.quantize(&floats, &mut bytes).unwrap();
        let error = recovered(Dense::Q8_0, 1, bytes.clone(), FloatRule::Ternary)
            .err()
            .expect("recovered");
        assert!(
            error
                .to_string()
                .contains("so they are not ternary; `bitnet quantize`"),
            "{error}"
        );
        let rounded = recovered(Dense::Q8_0, 1, bytes, FloatRule::TernaryOrAbsmean).unwrap();
        assert!(matches!(rounded.codes, Codes::Absmean { .. }));
    }
}
