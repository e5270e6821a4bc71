//! [`LoadOptions`]: how to read and hold a model.

use bitnet_kernels::Packing;
use bitnet_quantization::{i2_s, tl1, tl2};

use crate::progress::LoadProgress;

/// How to read and hold a model: facts that its files leave out, and choices that change no result.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The arrangement of the codes in I2_S tensors, which no file states.
    pub i2_s_form: i2_s::Form,
    /// The tiles of TL1 tensors by shape (rows, cols), with priority over the tiles in the file and
    /// the built-in tiles.
    pub tl1_tiles: Vec<((usize, usize), tl1::Tile)>,
    /// The same for TL2 tensors.
    pub tl2_tiles: Vec<((usize, usize), tl2::Tile)>,
    /// How logits are computed.
    pub head: HeadMode,
    /// How ternary weights are packed; `None` for the packing that suits the kernels best.
    pub packing: Option<Packing>,
    /// The same for matrices of one shape ([`matrix_shapes`](crate::matrix_shapes)), with priority
    /// over `packing`.
    pub packings: Vec<((usize, usize), Packing)>,
    /// Whether feed-forward networks skip weights that add nothing.
    pub ffn_sparsity: FfnSparsity,
    /// How inputs of matrices with group scales are rounded.
    pub group_inputs: InputRounding,
    /// Counts the layers while they are loaded.
    pub progress: LoadProgress,
}

impl LoadOptions {
    /// The requested layout of a matrix, by its shape in [`matrix_shapes`](crate::matrix_shapes).
    pub(crate) fn packing(&self, shape: (usize, usize)) -> Option<Packing> {
        let of_shape = self.packings.iter().find(|(known, _)| *known == shape);
        of_shape.map(|(_, packing)| *packing).or(self.packing)
    }
}

/// How the logits that sampling needs are computed; the sampled tokens do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadMode {
    /// All, in full.
    Full,
    /// Estimated from an 8-bit copy of the head; then exactly for the tokens that can matter.
    Screened,
    /// Screened if the head is too large for a cache.
    #[default]
    Auto,
}

impl HeadMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Full, Self::Screened, Self::Auto];

    /// Its name for `--head`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Screened => "screened",
            Self::Auto => "auto",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// Whether decode steps skip weights of the feed-forward networks that add nothing; the text does
/// not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FfnSparsity {
    /// Always; all layers have copies.
    On,
    /// Never; there are no copies.
    Off,
    /// Layers get copies if a short trial shows a gain; steps use them if they gain.
    #[default]
    Auto,
}

impl FfnSparsity {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::On, Self::Off, Self::Auto];

    /// Its name for `--ffn-sparsity`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Auto => "auto",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How the inputs of matrices with group scales are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRounding {
    /// To int8, with a scale for each run of this many inputs.
    Int8(usize),
    /// No rounding: products in f32, the slow reference.
    None,
}

impl InputRounding {
    /// All roundings.
    pub const ALL: [Self; 4] = [Self::Int8(32), Self::Int8(64), Self::Int8(128), Self::None];

    /// Its name in `--group-inputs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8(32) => "int8-32",
            Self::Int8(64) => "int8-64",
            Self::Int8(_) => "int8-128",
            Self::None => "f32",
        }
    }

    /// The rounding with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|rounding| rounding.name() == name)
    }
}

impl Default for InputRounding {
    /// Runs of 32: the only length whose results lie as close to unrounded inputs as llama.cpp's on
    /// every golden model.
    fn default() -> Self {
        Self::Int8(32)
    }
}
