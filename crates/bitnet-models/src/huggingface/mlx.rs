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
use bitnet_quantization::dense::Dense;
use serde_json::Value;

/// How a module is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    pub bits: usize,
    /// Columns that share a scale.
    pub group: usize,
}

impl Affine {
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
                .map(|(name, value)| (name.clone(), Affine::from_json(value)))
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
    /// Writes the weights of a row.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) -> bitnet_quantization::Result<()> {
        let Affine { bits, group } = self.affine;
        let groups = self.cols / group;
        let numbers = |bytes: &Extent| {
            let mut values = vec![0.0; groups];
            let row_bytes = self.format.size_bytes(1, groups)?;
            let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
            self.format.dequantize(bytes, &mut values)?;
            Ok(values)
        };
        let (scales, biases) = (numbers(&self.scales)?, numbers(&self.biases)?);
        let row_bytes = self.cols * bits / 8;
        let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        // The first code of a word is in its lowest bits, and its lowest byte comes first.
        let per_byte = 8 / bits;
        for (col, out) in out.iter_mut().enumerate() {
            let code = codes[col / per_byte] >> (bits * (col % per_byte)) & ((1 << bits) - 1);
            *out = f32::from(code) * scales[col / group] + biases[col / group];
        }
        Ok(())
    }
}
