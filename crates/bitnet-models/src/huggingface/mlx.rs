//! MLX's affine quantization: codes with a scale and an offset for each group of columns.
//!
//! ```text
//! X.weight  U32 [rows, cols · bits / 32]   code j of a row is the `bits` bits of word j·bits / 32 from bit
//!                                          j·bits mod 32 on: the first code is in the lowest bits
//! X.scales, X.biases  [rows, cols / group] a weight is code · scale + bias; a scale may be negative
//! ```
//! Weights of two signs, or −1, 0, 1 and 2 times one scale, are taken exactly; others are refused.

use std::collections::BTreeMap;

use bitnet_files::Extent;
use bitnet_kernels::{GroupCodes, Pool};
use bitnet_quantization::dense::Dense;
use bitnet_quantization::{GroupFormat, pack_rows, recover};
use half::f16;
use serde_json::Value;

use super::hybrid::text_name;

/// How a module is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Affine {
    pub bits: usize,
    /// Columns that share a scale.
    pub group: usize,
}

impl Affine {
    /// The parameters that hold every matrix of a format. MLX has no groups above 128 columns; a
    /// longer one becomes several.
    pub(crate) fn of(format: GroupFormat) -> Self {
        Self {
            bits: if format == GroupFormat::Q1_0 { 1 } else { 2 },
            group: format.group_len().min(128),
        }
    }

    /// What the codes are: signs in one bit, else −1 to 2.
    pub(crate) fn codes(self) -> GroupCodes {
        match self.bits {
            1 => GroupCodes::Signs,
            _ => GroupCodes::TwoBits,
        }
    }

    /// The parameters in an object; the problem if they are not supported.
    pub(super) fn from_json(value: &Value) -> Result<Self, String> {
        if let Some(mode) = value.get("mode").filter(|mode| *mode != "affine") {
            return Err(format!("mode is {mode}; \"affine\" is supported"));
        }
        let number = |key: &str, supported: &[u64]| {
            let found = value.get(key).unwrap_or(&Value::Null);
            found
                .as_u64()
                .filter(|number| supported.contains(number))
                .map(|number| number as usize)
                .ok_or_else(|| format!("{key} is {found}; {supported:?} are supported"))
        };
        Ok(Self {
            bits: number("bits", &[1, 2])?,
            group: number("group_size", &[64, 128])?,
        })
    }
}

/// `quantization` of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MlxQuantization {
    /// The parameters of modules that have none of their own, or why they cannot be read.
    pub all: Result<Affine, String>,
    /// Parameters of single modules, in the same way.
    pub modules: BTreeMap<String, Result<Affine, String>>,
}

impl MlxQuantization {
    /// Parameters that cannot be read are errors only of modules that have them.
    pub(super) fn from_json(value: &Value) -> Self {
        let modules = value.as_object().into_iter().flatten();
        let modules = modules.filter(|(_, value)| value.is_object());
        Self {
            all: Affine::from_json(value),
            modules: modules
                .map(|(name, value)| (text_name(name.clone()), Affine::from_json(value)))
                .collect(),
        }
    }

    /// The parameters of a module.
    pub(super) fn of(&self, module: &str) -> Result<Affine, String> {
        self.modules.get(module).unwrap_or(&self.all).clone()
    }
}

/// A quantized tensor as it lies in its files.
pub(super) struct AffineTensor {
    pub affine: Affine,
    pub cols: usize,
    /// Little-endian words, `[rows, cols · bits / 32]`.
    pub codes: Extent,
    /// `[rows, cols / group]`
    pub scales: Extent,
    /// `[rows, cols / group]`
    pub biases: Extent,
    /// How scales and biases are stored.
    pub format: Dense,
}

impl AffineTensor {
    /// Packs the tensor `[rows, cols]` without loss: code for code if each group reaches from −scale
    /// (of 1 bit: to scale), else what its weights are, which may have other codes for the same
    /// values.
    ///
    /// # Errors
    /// If a group has other weights than −1, 0, 1 and 2 times one f16.
    pub(super) fn pack(
        &self,
        rows: usize,
        pool: &Pool,
    ) -> bitnet_quantization::Result<(GroupFormat, Vec<u8>)> {
        let Some(format) = self.format_of_codes(rows)? else {
            return recover(rows, self.cols, &|row, out| self.read_row(row, out), pool);
        };
        let read = |row: usize, codes: &mut [i8], scales: &mut [f32]| {
            let stored = self.codes_of_row(row);
            match self.affine.codes() {
                GroupCodes::Signs => {
                    codes
                        .iter_mut()
                        .zip(stored)
                        .for_each(|(to, code)| *to = 2 * code - 1);
                }
                _ => codes
                    .iter_mut()
                    .zip(stored)
                    .for_each(|(to, code)| *to = code - 1),
            }
            let biases = self.numbers(&self.biases, row)?;
            scales
                .iter_mut()
                .zip(biases)
                .for_each(|(scale, bias)| *scale = -bias);
            Ok(())
        };
        let bytes = pack_rows(format, rows, self.cols, &read, pool)?;
        Ok((format, bytes))
    }

    /// The format that holds the codes as they are, if each group's offset is −d: with codes of two
    /// bits for d as the scale, with signs for 2d. d must be an f16.
    fn format_of_codes(&self, rows: usize) -> bitnet_quantization::Result<Option<GroupFormat>> {
        let steps = match self.affine.codes() {
            GroupCodes::Signs => 2.0,
            _ => 1.0,
        };
        for row in 0..rows {
            let (scales, biases) = (
                self.numbers(&self.scales, row)?,
                self.numbers(&self.biases, row)?,
            );
            let is_plain = |(scale, bias): (f32, f32)| {
                scale == -bias * steps && f16::from_f32(bias).to_f32() == bias
            };
            if !scales.into_iter().zip(biases).all(is_plain) {
                return Ok(None);
            }
        }
        Ok(Some(match self.affine.group {
            128 if self.are_signs(rows) => GroupFormat::Q1_0,
            128 => GroupFormat::PQ2_0,
            _ => GroupFormat::Q2_0,
        }))
    }

    /// Whether all codes mean −1 or 1: signs may be stored in two bits, too.
    fn are_signs(&self, rows: usize) -> bool {
        self.affine.bits == 1
            || (0..rows).all(|row| self.codes_of_row(row).all(|code| matches!(code, 0 | 2)))
    }

    /// Writes the weights of a row.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) -> bitnet_quantization::Result<()> {
        let group = self.affine.group;
        let (scales, biases) = (
            self.numbers(&self.scales, row)?,
            self.numbers(&self.biases, row)?,
        );
        for (col, (out, code)) in out.iter_mut().zip(self.codes_of_row(row)).enumerate() {
            *out = f32::from(code) * scales[col / group] + biases[col / group];
        }
        Ok(())
    }

    /// All weights, `[rows, cols]`.
    pub(super) fn rows(&self, rows: usize) -> bitnet_quantization::Result<Vec<f32>> {
        let mut values = vec![0.0; rows * self.cols];
        for (row, out) in values.chunks_exact_mut(self.cols).enumerate() {
            self.read_row(row, out)?;
        }
        Ok(values)
    }

    /// The scales or the offsets of a row.
    fn numbers(&self, bytes: &Extent, row: usize) -> bitnet_quantization::Result<Vec<f32>> {
        let mut values = vec![0.0; self.cols / self.affine.group];
        let row_bytes = self.format.size_bytes(1, values.len())?;
        let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
        self.format.dequantize(bytes, &mut values)?;
        Ok(values)
    }

    /// The codes of a row, from 0.
    fn codes_of_row(&self, row: usize) -> impl Iterator<Item = i8> {
        let bits = self.affine.bits;
        let row_bytes = self.cols * bits / 8;
        let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        // The first code of a word is in its lowest bits, and its lowest byte comes first.
        let of_byte = move |byte: &u8| {
            let byte = *byte;
            (0..8 / bits).map(move |at| (byte >> (bits * at) & ((1 << bits) - 1)) as i8)
        };
        codes.iter().flat_map(of_byte)
    }
}
