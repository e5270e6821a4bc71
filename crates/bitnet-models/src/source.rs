//! [`Source`]: what a loader and a converter ask of a model, whatever files it comes in.
//!
//! A [`Slot`] is a tensor's place in the graph; each source knows it by the names of its own
//! format. Whatever a source gives has been checked against the shape asked for.

pub(crate) mod gguf;

use std::ops::Range;

use bitnet_kernels::Pool;
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::absmean;
use bitnet_quantization::dense::Dense;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::table::Table;
use bitnet_files::Extent;

/// A model's configuration and tensors.
pub(crate) trait Source {
    /// The shape of the model.
    fn config(&self) -> &Config;

    /// Refuses a model with tensors that its graph would leave unused: leaving them out would
    /// change the result.
    fn check_tensors(&self) -> Result<()>;

    /// Whether the logits come from a table of their own.
    fn has_head(&self) -> bool;

    /// A norm's weights, `[len]`.
    fn vector(&self, slot: Slot, len: usize) -> Result<Vec<f32>>;

    /// The embedding or the head, `[rows, cols]`.
    fn table(&self, slot: Slot, rows: usize, cols: usize) -> Result<Table>;

    /// The ternary weights of a layer's projection, `[rows, cols]`. Float weights are measured on
    /// all threads of `pool`.
    fn projection(
        &self,
        layer: usize,
        projection: Projection,
        rows: usize,
        cols: usize,
        pool: &Pool,
    ) -> Result<TernaryTensor>;

    /// What each rotary frequency is divided by, `[head_dim / 2]`, where the model has such
    /// factors.
    fn rope_factors(&self) -> Result<Option<Vec<f32>>>;
}

/// A tensor's place in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// `[vocab, hidden]`
    Embedding,
    /// `[hidden]`
    OutputNorm,
    /// `[vocab, hidden]`
    Head,
    /// In the layer of that index.
    Layer(usize, LayerSlot),
}

/// A tensor's place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerSlot {
    AttentionNorm,
    AttentionSubNorm,
    FfnNorm,
    FfnSubNorm,
    /// The norm that a projection has of its own, over its input.
    InputNorm(Projection),
    Weight(Projection),
}

/// The ternary matrices of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    Query,
    Key,
    Value,
    AttentionOutput,
    Gate,
    Up,
    Down,
}

impl Projection {
    pub(crate) const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Output rows and input columns.
    pub(crate) fn shape(self, config: &Config) -> (usize, usize) {
        let attention = config.attention;
        let (query, key) = (
            attention.heads * attention.head_dim,
            attention.kv_heads * attention.head_dim,
        );
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        match self {
            Self::Query => (query, hidden),
            Self::Key | Self::Value => (key, hidden),
            Self::AttentionOutput => (hidden, query),
            Self::Gate | Self::Up => (ffn, hidden),
            Self::Down => (hidden, ffn),
        }
    }

    /// Whether its output is rotated by position.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Query | Self::Key)
    }
}

impl LayerSlot {
    /// Whether the graph of this configuration has it.
    pub(crate) fn is_used(self, config: &Config) -> bool {
        match self {
            Self::AttentionSubNorm | Self::FfnSubNorm => config.architecture.has_sub_norms(),
            Self::InputNorm(_) => config.input_norm_eps.is_some(),
            Self::AttentionNorm | Self::FfnNorm | Self::Weight(_) => true,
        }
    }
}

/// A ternary matrix as it lies in a file, `[rows, cols]`.
pub(crate) struct TernaryTensor {
    /// What the file calls it.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// What multiplies the weights −1, 0, 1.
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
    /// Floats that are −1, 0 and 1 already.
    Units(Dense),
    /// Floats of one magnitude, the scale, and zeros.
    Signs(Dense),
    /// Floats to be multiplied by `s` and rounded.
    Absmean {
        format: Dense,
        s: f32,
    },
}

/// What float weights may be, and what is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatRule {
    /// Anything: rounded by the absmean formula, as a model's own code does at every use.
    Absmean,
    /// Zeros and one magnitude, which is the scale: a ternary model written as floats.
    Ternary,
    /// That, or else anything.
    TernaryOrAbsmean,
}

/// What is to be known of a row of floats.
#[derive(Clone, Copy, Default)]
struct RowFigures {
    /// Of the magnitudes.
    sum: f64,
    /// The least magnitude above 0; infinite if there is none.
    least: f32,
    largest: f32,
}

impl RowFigures {
    fn of(floats: &[f32]) -> bitnet_quantization::Result<Self> {
        let sum = absmean::magnitude_sum(floats)?;
        let (mut least, mut largest) = (f32::INFINITY, 0.0f32);
        for x in floats {
            let magnitude = x.abs();
            least = least.min(if magnitude > 0.0 {
                magnitude
            } else {
                f32::INFINITY
            });
            largest = largest.max(magnitude);
        }
        Ok(Self {
            sum,
            least,
            largest,
        })
    }
}

impl Codes {
    /// What people call it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Packed(format) => format.name().to_owned(),
            Self::Units(format) => format!("{} units", format.name()),
            Self::Signs(format) => format!("{} signs", format.name()),
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

    /// The same in the order of this file.
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
            Codes::Units(format) | Codes::Signs(format) | Codes::Absmean { format, .. } => format,
        };
        let mut floats = vec![0.0; self.cols];
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols)) {
            self.read_floats(format, row, &mut floats)?;
            match self.codes {
                Codes::Absmean { s, .. } => absmean::round(&floats, s, out).map_err(of_tensor)?,
                Codes::Signs(_) => {
                    out.iter_mut()
                        .zip(&floats)
                        .for_each(|(w, x)| *w = i8::from(*x > 0.0) - i8::from(*x < 0.0));
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

    /// Settles codes and scale of float weights by one look at the whole tensor.
    ///
    /// A row's figures are one thread's, and the rows' sums are added in order, so threads change
    /// nothing.
    pub(crate) fn measure(&mut self, format: Dense, rule: FloatRule, pool: &Pool) -> Result<()> {
        let figures = std::sync::Mutex::new(Ok(vec![RowFigures::default(); self.rows]));
        pool.split(self.rows, 1, &|share| {
            let mut floats = vec![0.0; self.cols];
            for row in share {
                let found = self.read_floats(format, row, &mut floats).and_then(|()| {
                    RowFigures::of(&floats).map_err(|_| self.not_finite(row, &floats))
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
        let figures = figures
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)?;
        let least = figures
            .iter()
            .map(|row| row.least)
            .fold(f32::INFINITY, f32::min);
        let largest = figures.iter().map(|row| row.largest).fold(0.0, f32::max);
        if rule != FloatRule::Absmean && least >= largest {
            (self.codes, self.scale) = (Codes::Signs(format), largest);
            return Ok(());
        }
        if rule == FloatRule::Ternary {
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

    fn not_finite(&self, row: usize, floats: &[f32]) -> Error {
        let col = floats.iter().position(|x| !x.is_finite()).unwrap_or(0);
        let problem = format!("the weight at row {row}, column {col} is {}", floats[col]);
        Error::TensorValues {
            tensor: self.name.clone(),
            problem,
        }
    }
}

/// Where a row of rotated heads lies when the two elements of a pair stand side by side: element
/// `i` of a head's first half at `2i`, of its second at `2i + 1`.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, element) = (row / head_dim, row % head_dim);
    head * head_dim + 2 * (element % (head_dim / 2)) + element / (head_dim / 2)
}

/// The inverse: which row of the graph lies at `stored`.
pub(crate) fn half_split_row(stored: usize, head_dim: usize) -> usize {
    let (head, element) = (stored / head_dim, stored % head_dim);
    head * head_dim + element % 2 * (head_dim / 2) + element / 2
}

/// The numbers of a tensor outside the projections, all finite.
pub(crate) fn finite_values(
    name: &str,
    format: Dense,
    bytes: &[u8],
    len: usize,
) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; len];
    format
        .dequantize(bytes, &mut values)
        .map_err(|source| Error::Tensor {
            tensor: name.to_owned(),
            source,
        })?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::TensorValues {
            tensor: name.to_owned(),
            problem: format!("element {at} is {}", values[at]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_heads_go_to_pairs_and_back() {
        let stored: Vec<usize> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!((0..192).all(|row| half_split_row(interleaved_row(row, 96), 96) == row));
    }
}
