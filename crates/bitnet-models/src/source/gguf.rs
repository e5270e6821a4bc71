//! A GGUF file as a [`Source`]: tensor names, types, and parameters that files do not state.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitnet_kernels::Pool;
use bitnet_quantization::dense::Dense;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{TernaryFormat, iq_bn, tl1, tl2};

use crate::config::{Architecture, Config, RopePairs};
use crate::error::{Error, Result};
use crate::options::LoadOptions;
use crate::rotation::{Rotation, Rotations};
use crate::source::slots::slots;
use crate::source::{
    Codes, FloatRule, GroupTensor, LayerSlot, LinearSlot, Projection, RopeFactors, Slot, Source,
    TernaryTensor, finite_values,
};
use crate::table::Table;
use bitnet_files::gguf::{Gguf, Metadata, MetadataValue, TensorType, TensorView};

/// The names of a layer's tensors, between `blk.N.` and `.weight`.
const LAYER_NAMES: [(LayerSlot, &str); 29] = [
    (LayerSlot::AttentionNorm, "attn_norm"),
    (LayerSlot::Weight(Projection::Query), "attn_q"),
    (LayerSlot::Weight(Projection::Key), "attn_k"),
    (LayerSlot::Weight(Projection::Value), "attn_v"),
    (LayerSlot::AttentionSubNorm, "attn_sub_norm"),
    (
        LayerSlot::Weight(Projection::AttentionOutput),
        "attn_output",
    ),
    (LayerSlot::FfnNorm, "ffn_norm"),
    (LayerSlot::Weight(Projection::Gate), "ffn_gate"),
    (LayerSlot::Weight(Projection::Up), "ffn_up"),
    (LayerSlot::FfnSubNorm, "ffn_sub_norm"),
    (LayerSlot::Weight(Projection::Down), "ffn_down"),
    (LayerSlot::InputNorm(Projection::Query), "attn_q_norm_in"),
    (LayerSlot::InputNorm(Projection::Key), "attn_k_norm_in"),
    (LayerSlot::InputNorm(Projection::Value), "attn_v_norm_in"),
    (
        LayerSlot::InputNorm(Projection::AttentionOutput),
        "attn_output_norm_in",
    ),
    (LayerSlot::InputNorm(Projection::Gate), "ffn_gate_norm_in"),
    (LayerSlot::InputNorm(Projection::Up), "ffn_up_norm_in"),
    (LayerSlot::InputNorm(Projection::Down), "ffn_down_norm_in"),
    (LayerSlot::PostAttentionNorm, "post_attention_norm"),
    (LayerSlot::PostFfnNorm, "post_ffw_norm"),
    (LayerSlot::QueryNorm, "attn_q_norm"),
    (LayerSlot::KeyNorm, "attn_k_norm"),
    (LayerSlot::Weight(Projection::LinearQkv), "attn_qkv"),
    (LayerSlot::Weight(Projection::LinearGate), "attn_gate"),
    (LayerSlot::Weight(Projection::LinearOutput), "ssm_out"),
    (LayerSlot::Linear(LinearSlot::Convolution), "ssm_conv1d"),
    (LayerSlot::Linear(LinearSlot::Time), "ssm_alpha"),
    (LayerSlot::Linear(LinearSlot::Strength), "ssm_beta"),
    (LayerSlot::Linear(LinearSlot::Norm), "ssm_norm"),
];

/// The tensor with the divisors of rotary frequencies.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The tensors with the divisors of LongRoPE.
pub(crate) const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
pub(crate) const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";

/// The name of a tensor in files of this architecture; `None` if they have no name for the slot.
pub(crate) fn name(slot: Slot, architecture: Architecture) -> Option<String> {
    let is_input_norm = matches!(slot, Slot::Layer(_, LayerSlot::InputNorm(_)));
    if is_input_norm && !architecture.may_have_input_norms() {
        return None;
    }
    let part = |slot: LayerSlot| {
        let known = LAYER_NAMES.iter().find(|(known, _)| *known == slot);
        known.map(|(_, part)| *part)
    };
    let (index, part) = match slot {
        Slot::Embedding => return Some("token_embd.weight".to_owned()),
        Slot::OutputNorm => return Some("output_norm.weight".to_owned()),
        Slot::Head => return Some("output.weight".to_owned()),
        Slot::Layer(index, slot) => {
            let part = match slot {
                LayerSlot::FfnNorm if architecture == Architecture::Qwen35 => {
                    "post_attention_norm.weight".to_owned()
                }
                // One constant has a name without `.weight`; another is a bias without weights.
                LayerSlot::Linear(LinearSlot::Decay) => "ssm_a".to_owned(),
                LayerSlot::Linear(LinearSlot::TimeBias) => "ssm_dt.bias".to_owned(),
                LayerSlot::Bias(projection) => {
                    format!("{}.bias", part(LayerSlot::Weight(projection))?)
                }
                slot => format!("{}.weight", part(slot)?),
            };
            (index, part)
        }
    };
    Some(format!("blk.{index}.{part}"))
}

/// The metadata key of the tile of TL1 or TL2 tensors of a shape.
fn tile_key(format: &str, rows: usize, cols: usize) -> String {
    format!("bitnet.{format}.tile.{rows}x{cols}")
}

/// The metadata pair of a format's tile, if it has one.
pub(crate) fn tile_pair(
    format: TernaryFormat,
    rows: usize,
    cols: usize,
) -> Option<(String, MetadataValue)> {
    let (name, sizes) = match format {
        TernaryFormat::TL1(tile) => (
            "tl1",
            vec![tile.tile_rows, tile.block_cols, tile.inner_rows],
        ),
        TernaryFormat::TL2(tile) => ("tl2", vec![tile.tile_rows, tile.block_cols]),
        _ => return None,
    };
    let sizes = sizes
        .into_iter()
        .map(|size| i32::try_from(size).unwrap_or(i32::MAX))
        .collect();
    Some((tile_key(name, rows, cols), MetadataValue::I32s(sizes)))
}

/// A GGUF file, and options for facts that it does not state.
pub(crate) struct GgufSource<'a> {
    gguf: &'a Arc<Gguf>,
    options: &'a LoadOptions,
    floats: FloatRule,
    config: Config,
    rotations: Rotations,
}

impl<'a> GgufSource<'a> {
    pub(crate) fn new(gguf: &'a Arc<Gguf>, options: &'a LoadOptions) -> Result<Self> {
        Ok(Self {
            gguf,
            options,
            floats: FloatRule::Ternary,
            config: Config::from_gguf(gguf)?,
            rotations: Rotations::from_gguf(gguf)?,
        })
    }

    /// The name of a tensor in this file.
    fn name(&self, slot: Slot) -> Option<String> {
        name(slot, self.config.architecture)
    }

    /// The same, with another rule for float projections than [`FloatRule::Ternary`].
    pub(crate) fn with_floats(self, floats: FloatRule) -> Self {
        Self { floats, ..self }
    }

    /// The head size, if the file keeps the rotated pairs of a projection's output side by side.
    fn interleaved_heads(&self, projection: Projection) -> Option<usize> {
        let config = &self.config;
        let interleaved = projection.is_rotated() && config.rope_pairs == RopePairs::Interleaved;
        interleaved.then_some(config.attention.head_dim)
    }

    /// The same for the tensor of a slot.
    fn interleaved_rows(&self, slot: Slot) -> Option<usize> {
        match slot {
            Slot::Layer(_, LayerSlot::Weight(projection)) => self.interleaved_heads(projection),
            _ => None,
        }
    }

    /// How the input of a tensor is rotated, if it is.
    fn rotation_of(&self, tensor: &TensorView<'_>) -> Option<Rotation> {
        let linear = self.config.linear.as_ref().map(|linear| linear.shape);
        self.rotations.of_input(tensor.name, tensor.cols(), linear)
    }

    /// Weights with group scales that were written as floats, or in blocks by a quantizer for
    /// floats, if they are such weights. BitNet's graphs have none.
    fn recovered(
        &self,
        slot: Slot,
        tensor: &TensorView<'_>,
        pool: &Pool,
    ) -> Result<Option<GroupTensor>> {
        let is_q4_0 = tensor.dtype == TensorType::Q4_0;
        let format = float_like(tensor.dtype).or(is_q4_0.then_some(Dense::Q4_0));
        let (Some(format), false) = (format, self.config.architecture.has_matrix_scales()) else {
            return Ok(None);
        };
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let data = self.gguf.extent(tensor.range());
        let are_blocks = format.block_len() > 1;
        let is_ternary = |layer, projection| {
            let tensor = self.projection(layer, projection, rows, cols, pool);
            tensor.is_ok()
        };
        match slot {
            // Weights with one scale run as ternary ones, and tables stay as they are.
            Slot::Layer(layer, LayerSlot::Weight(projection))
                if are_blocks && is_ternary(layer, projection) =>
            {
                return Ok(None);
            }
            Slot::Embedding | Slot::Head if are_blocks => return Ok(None),
            _ => {}
        }
        match (
            GroupTensor::recover(tensor.name, (format, &data), rows, cols, pool),
            slot,
        ) {
            (Ok(found), _) => Ok(Some(GroupTensor {
                rotation: self.rotation_of(tensor),
                interleaved_heads: self.interleaved_rows(slot),
                ..found
            })),
            (Err(source), Slot::Layer(layer, LayerSlot::Weight(projection))) if !are_blocks => {
                // Weights with one scale, or to be rounded, run as ternary ones.
                match self.projection(layer, projection, rows, cols, pool) {
                    Ok(_) => Ok(None),
                    Err(_) => Err(Error::Tensor {
                        tensor: tensor.name.to_owned(),
                        source,
                    }),
                }
            }
            // Tables of other values stay floats; the ternary reading says why blocks do not run.
            (Err(_), _) => Ok(None),
        }
    }

    /// The metadata of the file.
    pub(crate) fn metadata(&self) -> &'a Metadata {
        self.gguf.metadata()
    }

    /// The tensor of a slot, which must have the given shape, contiguous dimension first.
    fn tensor(&self, slot: Slot, dims: &[usize]) -> Result<TensorView<'a>> {
        // Only input norms of other architectures have no name, and their files have no such norms.
        let name = self.name(slot).unwrap_or_else(|| format!("{slot:?}"));
        let tensor = self.gguf.require_tensor(&name)?;
        let expected = (dims[0], dims[1..].iter().product::<usize>());
        if (tensor.cols(), tensor.rows()) != expected {
            return Err(Error::Shape {
                tensor: name,
                found: tensor.dims.to_vec(),
                expected: dims.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// How the weights of a tensor are packed.
    fn ternary_format(&self, tensor: &TensorView<'_>) -> Result<TernaryFormat> {
        Ok(match tensor.dtype {
            TensorType::I2_S => TernaryFormat::I2_S(self.options.i2_s_form),
            TensorType::TL1 => TernaryFormat::TL1(self.tl1_tile(tensor)?),
            TensorType::TL2 => TernaryFormat::TL2(self.tl2_tile(tensor)?),
            TensorType::TQ1_0 => TernaryFormat::TQ(Kind::TQ1_0),
            TensorType::TQ2_0 => TernaryFormat::TQ(Kind::TQ2_0),
            TensorType::Q4_0 => TernaryFormat::Q4_0,
            TensorType::IQ1_BN => TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN),
            TensorType::IQ2_BN => TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN),
            other => {
                if let Some(format) = other.group() {
                    return Ok(TernaryFormat::Group(format));
                }
                return Err(Error::TensorUse {
                    tensor: tensor.name.to_owned(),
                    found: match other {
                        TensorType::I8_S => "I8_S, int8 with a scale, which is not ternary",
                        other => other.name(),
                    },
                    used_as: "a projection",
                    supported: "I2_S, TL1, TL2, TQ1_0, TQ2_0, IQ1_BN, IQ2_BN, Q1_0, Q2_0, PQ2_0, PTQ1_0 or, with ternary weights, \
                                F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4",
                });
            }
        })
    }

    fn tl1_tile(&self, tensor: &TensorView<'_>) -> Result<tl1::Tile> {
        let tile = |[tile_rows, block_cols, inner_rows]: [usize; 3]| tl1::Tile {
            tile_rows,
            block_cols,
            inner_rows,
        };
        self.tile(
            "tl1",
            tensor,
            &self.options.tl1_tiles,
            tile,
            tl1::Tile::known,
        )
    }

    fn tl2_tile(&self, tensor: &TensorView<'_>) -> Result<tl2::Tile> {
        let tile = |[tile_rows, block_cols]: [usize; 2]| tl2::Tile {
            tile_rows,
            block_cols,
        };
        self.tile(
            "tl2",
            tensor,
            &self.options.tl2_tiles,
            tile,
            tl2::Tile::known,
        )
    }

    /// The tile of a tensor: from the caller for its shape, else from the file, else of a published
    /// model.
    fn tile<const N: usize, T: Copy>(
        &self,
        format: &'static str,
        tensor: &TensorView<'_>,
        given: &[((usize, usize), T)],
        tile: impl Fn([usize; N]) -> T,
        known: impl Fn(usize, usize) -> Option<T>,
    ) -> Result<T> {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        if let Some((_, tile)) = given.iter().find(|(shape, _)| *shape == (rows, cols)) {
            return Ok(*tile);
        }
        let stated = self.tile_numbers(format, tensor)?.map(tile);
        stated
            .or_else(|| known(rows, cols))
            .ok_or_else(|| self.tile_unknown(format, tensor))
    }

    /// The tile in the file for a tensor's shape.
    fn tile_numbers<const N: usize>(
        &self,
        format: &str,
        tensor: &TensorView<'_>,
    ) -> Result<Option<[usize; N]>> {
        let key = tile_key(format, tensor.rows(), tensor.cols());
        let Some(numbers) = self.gguf.metadata().i32s(&key)? else {
            return Ok(None);
        };
        let numbers: Vec<i32> = numbers.take(N + 1).collect();
        let sizes: Vec<usize> = numbers
            .iter()
            .filter_map(|&number| usize::try_from(number).ok())
            .collect();
        match sizes.try_into() {
            Ok(sizes) => Ok(Some(sizes)),
            Err(_) => Err(Error::Config {
                key,
                problem: format!("{numbers:?}; {N} sizes are expected"),
            }),
        }
    }

    fn tile_unknown(&self, format: &'static str, tensor: &TensorView<'_>) -> Error {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let key = tile_key(format, rows, cols);
        Error::TileUnknown {
            tensor: tensor.name.to_owned(),
            format: tensor.dtype.name(),
            rows,
            cols,
            key,
        }
    }

    /// The factor of a projection outside its tensor, as files in llama.cpp's style have it.
    fn outer_scale(&self, weight: &str) -> Result<f32> {
        let name = scale_name(weight);
        let Some(tensor) = self.gguf.tensor(&name) else {
            return Ok(1.0);
        };
        if (tensor.cols(), tensor.rows()) != (1, 1) {
            return Err(Error::Shape {
                tensor: name,
                found: tensor.dims.to_vec(),
                expected: vec![1],
            });
        }
        Ok(finite_values(&name, dense(&tensor, "a scale")?, tensor.data, 1)?[0])
    }

    /// Whether the file says that its rotary factors are LongRoPE's.
    fn has_longrope(&self) -> bool {
        let key = format!("{}.rope.scaling.type", self.config.architecture_name);
        matches!(self.metadata().str(&key), Ok(Some("longrope")))
    }

    /// The divisors of rotary frequencies in a tensor, `[head_dim / 2]`.
    fn divisors(&self, tensor: &TensorView<'_>) -> Result<Vec<f32>> {
        let half = self.config.attention.head_dim / 2;
        if (tensor.cols(), tensor.rows()) != (half, 1) {
            return Err(Error::Shape {
                tensor: tensor.name.to_owned(),
                found: tensor.dims.to_vec(),
                expected: vec![half],
            });
        }
        let factors = finite_values(tensor.name, dense(tensor, "a vector")?, tensor.data, half)?;
        match factors.iter().position(|factor| *factor <= 0.0) {
            None => Ok(factors),
            Some(at) => Err(Error::TensorValues {
                tensor: tensor.name.to_owned(),
                problem: format!(
                    "element {at} is {}, a divisor of frequencies must be above 0",
                    factors[at]
                ),
            }),
        }
    }

    /// The names of all tensors that the main pass uses.
    fn used_names(&self) -> BTreeSet<String> {
        let factors = match self.has_longrope() {
            true => &[ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT][..],
            false => &[ROPE_FACTORS],
        };
        let mut names: BTreeSet<String> = factors.iter().map(|name| (*name).to_owned()).collect();
        for slot in slots(self) {
            let name = self.name(slot);
            if let (Slot::Layer(_, LayerSlot::Weight(_)), Some(weight)) = (slot, &name) {
                names.insert(scale_name(weight));
            }
            names.extend(name);
        }
        names
    }

    /// Whether a tensor is in a layer that predicts further tokens: such layers come after the
    /// main pass, which does not need them.
    fn is_after_main_pass(&self, name: &str) -> bool {
        let layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(index, _)| index.parse::<usize>().ok());
        layer.is_some_and(|layer| self.config.extra_layers().contains(&layer))
    }
}

impl Source for GgufSource<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn check_tensors(&self) -> Result<()> {
        let names = self.used_names();
        let is_known = |name: &str| names.contains(name) || self.is_after_main_pass(name);
        match self.gguf.tensors().find(|tensor| !is_known(tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(Error::TensorUnknown {
                tensor: tensor.name.to_owned(),
                architecture: self.config.architecture_name.clone(),
                used: used_tensors(self.config.architecture),
            }),
        }
    }

    fn rounds_floats(&self) -> bool {
        self.floats == FloatRule::TernaryOrAbsmean
    }

    fn has_head(&self) -> bool {
        let name = self.name(Slot::Head);
        name.is_some_and(|name| self.gguf.tensor(&name).is_some())
    }

    fn vector(&self, slot: Slot, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(slot, &[len])?;
        finite_values(tensor.name, dense(&tensor, "a vector")?, tensor.data, len)
    }

    fn floats(&self, slot: Slot, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(slot, &[cols, rows])?;
        let format = dense(&tensor, "a matrix of floats")?;
        finite_values(tensor.name, format, tensor.data, rows * cols)
    }

    fn rotations(&self) -> Result<Rotations> {
        Ok(self.rotations.clone())
    }

    fn grouped(
        &self,
        slot: Slot,
        rows: usize,
        cols: usize,
        even_if_equal: bool,
        pool: &Pool,
    ) -> Result<Option<GroupTensor>> {
        let tensor = self.tensor(slot, &[cols, rows])?;
        let Some(format) = tensor.dtype.group() else {
            return self.recovered(slot, &tensor, pool);
        };
        // Weights with a single scale run as ternary weights: these take fewer bits, and inputs
        // need only one scale for each row.
        let runs_as_ternary = || {
            let scale = TernaryFormat::Group(format).scale(tensor.data, rows, cols);
            !matches!(slot, Slot::Embedding | Slot::Head) && scale.is_ok()
        };
        if !even_if_equal && self.config.architecture.has_matrix_scales() && runs_as_ternary() {
            return Ok(None);
        }
        let outer_scale = self.outer_scale(tensor.name)?;
        if outer_scale != 1.0 {
            let problem = format!(
                "{outer_scale}; a factor other than 1 beside weights with group scales is not supported"
            );
            return Err(Error::TensorValues {
                tensor: scale_name(tensor.name),
                problem,
            });
        }
        Ok(Some(GroupTensor {
            name: tensor.name.to_owned(),
            rows,
            cols,
            format,
            data: self.gguf.extent(tensor.range()),
            rotation: self.rotation_of(&tensor),
            interleaved_heads: self.interleaved_rows(slot),
        }))
    }

    fn table(&self, slot: Slot, rows: usize, cols: usize) -> Result<Table> {
        let tensor = self.tensor(slot, &[cols, rows])?;
        let format = dense(&tensor, "an embedding or a head")?;
        Table::new(
            tensor.name,
            self.gguf.extent(tensor.range()),
            format,
            rows,
            cols,
        )
    }

    fn projection(
        &self,
        layer: usize,
        projection: Projection,
        rows: usize,
        cols: usize,
        pool: &Pool,
    ) -> Result<TernaryTensor> {
        let tensor = self.tensor(
            Slot::Layer(layer, LayerSlot::Weight(projection)),
            &[cols, rows],
        )?;
        let floats = float_like(tensor.dtype);
        let (codes, scale) = match floats {
            Some(format) => (Codes::Signs { format, zero: 0.0 }, 1.0), // until it is measured
            None => {
                let format = self.ternary_format(&tensor)?;
                let scale = format.scale(tensor.data, rows, cols);
                let of_tensor = |source| Error::Tensor {
                    tensor: tensor.name.to_owned(),
                    source,
                };
                (
                    Codes::Packed(format),
                    scale.map_err(of_tensor)?.unwrap_or(1.0),
                )
            }
        };
        let mut ternary = TernaryTensor {
            name: tensor.name.to_owned(),
            rows,
            cols,
            scale,
            codes,
            data: self.gguf.extent(tensor.range()),
            interleaved_heads: self.interleaved_heads(projection),
        };
        if let Some(format) = floats {
            match format.block_len() {
                1 => ternary.measure(format, self.floats, pool)?,
                _ => ternary.recover(format, self.floats, pool)?,
            }
        }
        ternary.scale *= self.outer_scale(tensor.name)?;
        if !ternary.scale.is_finite() {
            let problem = format!("its scale is {}", ternary.scale);
            return Err(Error::TensorValues {
                tensor: ternary.name,
                problem,
            });
        }
        Ok(ternary)
    }

    fn rope_factors(&self) -> Result<Option<RopeFactors>> {
        if self.has_longrope() {
            return Ok(Some(RopeFactors {
                divisors: self.divisors(&self.gguf.require_tensor(ROPE_FACTORS_SHORT)?)?,
                long: Some(self.divisors(&self.gguf.require_tensor(ROPE_FACTORS_LONG)?)?),
            }));
        }
        let stored = self.gguf.tensor(ROPE_FACTORS);
        let divisors = stored.map(|tensor| self.divisors(&tensor)).transpose()?;
        Ok(divisors.map(|divisors| RopeFactors {
            divisors,
            long: None,
        }))
    }
}

/// Checks that a file has every tensor of its graph, with a supported type and shape, and no
/// others. Reads no weights, so weights that contradict their type are not found.
///
/// # Errors
/// The error that loading the file would return.
pub fn check_gguf(gguf: &Arc<Gguf>, options: &LoadOptions) -> Result<()> {
    let source = GgufSource::new(gguf, options)?;
    source.check_tensors()?;
    let config = source.config();
    for slot in slots(&source) {
        match slot {
            Slot::Embedding | Slot::Head => {
                let dims = [config.hidden_size, config.vocab_size];
                dense(&source.tensor(slot, &dims)?, "an embedding or a head")?;
            }
            Slot::OutputNorm => {
                dense(&source.tensor(slot, &[config.hidden_size])?, "a vector")?;
            }
            Slot::Layer(_, layer_slot) => {
                let tensor = source.tensor(slot, &layer_slot.dims(config))?;
                match layer_slot {
                    LayerSlot::Weight(_) if float_like(tensor.dtype).is_none() => {
                        source.ternary_format(&tensor)?;
                    }
                    LayerSlot::Weight(_) => {}
                    _ => drop(dense(&tensor, "a vector")?),
                }
            }
        }
    }
    Ok(())
}

/// The tensors of a graph, for messages.
fn used_tensors(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::BitnetB158 | Architecture::Bitnet => {
            "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v, \
             attn_sub_norm, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_sub_norm, ffn_down (.weight)"
        }
        Architecture::Llama | Architecture::MiniCpm => {
            "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v, \
             attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down (.weight)"
        }
        Architecture::Qwen2 => {
            "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v \
             (.weight and .bias), attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down (.weight)"
        }
        Architecture::Gemma3 => {
            "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v, \
             attn_q_norm, attn_k_norm, attn_output, post_attention_norm, ffn_norm, ffn_gate, ffn_up, ffn_down, \
             post_ffw_norm, or all projections also with _norm_in (.weight)"
        }
        Architecture::Qwen3 | Architecture::HunyuanDense => {
            "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v, \
             attn_q_norm, attn_k_norm, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down (.weight)"
        }
        Architecture::Qwen35 => {
            "token_embd, output, output_norm and in each layer attn_norm, attn_q, attn_k, attn_v, attn_q_norm, \
             attn_k_norm, attn_output or attn_qkv, attn_gate, ssm_conv1d, ssm_alpha, ssm_beta, ssm_a, ssm_dt, \
             ssm_norm, ssm_out, then post_attention_norm, ffn_gate, ffn_up, ffn_down"
        }
    }
}

/// `blk.0.attn_q.scale` for `blk.0.attn_q.weight`.
fn scale_name(weight: &str) -> String {
    format!("{}.scale", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// The format of a tensor whose values are read as floats.
fn dense(tensor: &TensorView<'_>, used_as: &'static str) -> Result<Dense> {
    tensor.dtype.dense().ok_or_else(|| Error::TensorUse {
        tensor: tensor.name.to_owned(),
        found: tensor.dtype.name(),
        used_as,
        supported: TABLE_TYPES,
    })
}

/// The types that [`TensorType::dense`] reads.
const TABLE_TYPES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, \
     TQ1_0, TQ2_0, Q1_0, Q2_0, PQ2_0 or PTQ1_0";

/// The format of projections in floats, or written by a quantizer for floats. They run if they hold
/// three values.
fn float_like(dtype: TensorType) -> Option<Dense> {
    // Q4_0 stores ternary tensors exactly, so it has its own reader.
    let is_other = dtype.is_ternary() || dtype.group().is_some() || dtype == TensorType::Q4_0;
    dtype.dense().filter(|_| !is_other)
}
