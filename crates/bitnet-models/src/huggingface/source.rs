//! A checkpoint as a [`Source`]: its tensor names, and weights packed, in units or in floats.

use std::f64::consts::TAU;

use bitnet_files::safetensors::{DType, StoredTensor};
use bitnet_files::{Error as FileError, shown};
use bitnet_kernels::{Pool, math};
use bitnet_quantization::dense::Dense;
use bitnet_quantization::{TernaryFormat, recover};

use super::config::{RopeScaling, WeightScale};
use super::hybrid::Order;
use super::mlx::AffineTensor;
use super::names::{LAYER_NAMES, name, names};
use super::{Checkpoint, hybrid};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::source::{
    Codes, FloatRule, GroupTensor, LayerSlot, LinearSlot, Projection, QKV, RopeFactors, Slot,
    Source, TernaryTensor, finite_values,
};
use crate::table::Table;

impl Checkpoint {
    /// Whether the logits come from a separate head.
    ///
    /// Where `tie_word_embeddings` is true, transformers 5 compares a stored head with the
    /// embedding: it uses the head if the two differ.
    fn has_own_head(&self) -> bool {
        let stored = |slot| self.tensor(slot).ok().map(|(_, tensor)| tensor);
        let Some(head) = stored(Slot::Head) else {
            return false;
        };
        self.quantization.tie_word_embeddings != Some(true)
            || stored(Slot::Embedding).is_some_and(|embedding| {
                head.dtype != embedding.dtype || *head.data != *embedding.data
            })
    }

    /// The slot that holds a table: with tied embeddings, a stored head also serves as the
    /// embedding.
    fn table_slot(&self, slot: Slot) -> Slot {
        let is_tied = self.quantization.tie_word_embeddings == Some(true);
        match slot {
            Slot::Embedding if is_tied && self.tensor(Slot::Embedding).is_err() => Slot::Head,
            slot => slot,
        }
    }

    /// The tensor of a slot, under the first of its names that exists.
    fn tensor(&self, slot: Slot) -> Result<(String, &StoredTensor)> {
        for name in names(slot) {
            if let Some(tensor) = self.tensors.get(&name) {
                return Ok((name, tensor));
            }
        }
        Err(FileError::TensorMissing { name: name(slot) }.into())
    }

    /// Fails unless the tensor of a slot exists.
    pub(super) fn expect_tensor(&self, slot: Slot) -> Result<()> {
        self.tensor(slot).map(|_| ())
    }

    /// The tensor of a slot, which must have that shape and hold floats.
    fn floats(
        &self,
        slot: Slot,
        shape: &[usize],
        used_as: &'static str,
    ) -> Result<(String, &StoredTensor, Dense)> {
        let (name, tensor) = self.tensor(slot)?;
        expect_shape(&name, tensor, shape)?;
        let Some(format) = dense(tensor.dtype) else {
            return Err(Error::TensorUse {
                tensor: name,
                found: tensor.dtype.name(),
                used_as,
                supported: "F32, F16 or BF16",
            });
        };
        Ok((name, tensor, format))
    }

    /// The number beside a projection's weights, if there is one.
    fn weight_scale(&self, weight: &str) -> Result<Option<f32>> {
        let name = format!("{weight}_scale");
        let Some(tensor) = self.tensors.get(&name) else {
            return Ok(None);
        };
        if tensor.shape.iter().product::<usize>() != 1 {
            return Err(Error::Shape {
                tensor: name,
                found: tensor.shape.clone(),
                expected: vec![1],
            });
        }
        let Some(format) = dense(tensor.dtype) else {
            let found = tensor.dtype.name();
            return Err(Error::TensorUse {
                tensor: name,
                found,
                used_as: "a scale",
                supported: "F32, F16 or BF16",
            });
        };
        let stored = finite_values(&name, format, &tensor.data, 1)?[0];
        let scale = match self.quantization.weight_scale {
            WeightScale::Multiplies => stored,
            WeightScale::Divides => 1.0 / stored,
        };
        if stored > 0.0 && scale.is_finite() {
            return Ok(Some(scale));
        }
        Err(Error::TensorValues {
            tensor: name,
            problem: format!("a scale of {stored} is not possible"),
        })
    }

    /// The rule for float weights without a scale. transformers rounds them at every use if
    /// `quantization_config` says that the model is BitNet's, otherwise it runs them as they are.
    fn float_rule(&self) -> FloatRule {
        match (self.quantization.is_stated, self.rounds_floats) {
            (true, _) => FloatRule::Absmean,
            (false, true) => FloatRule::TernaryOrAbsmean,
            (false, false) => FloatRule::Ternary,
        }
    }

    fn is_used(&self, name: &str) -> bool {
        let table = name
            .strip_prefix("model.embed_tokens.")
            .or_else(|| name.strip_prefix("lm_head."));
        if table.is_some_and(|suffix| suffix == "weight" || self.is_of_mlx(suffix))
            || name == "model.norm.weight"
        {
            return true;
        }
        let layer = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.'));
        let Some((index, rest)) = layer else {
            return false;
        };
        let Ok(index) = index.parse::<usize>() else {
            return false;
        };
        // The frequencies follow from the configuration; old files have a copy of them.
        index < self.config.num_layers
            && (rest == "self_attn.rotary_emb.inv_freq" || self.is_used_in_layer(index, rest))
    }

    /// Whether tensors with this suffix belong to MLX's codes.
    fn is_of_mlx(&self, suffix: &str) -> bool {
        self.quantization.mlx.is_some() && matches!(suffix, "scales" | "biases")
    }

    /// The tensor of a slot, `[rows, cols]`, if MLX's tools quantized it.
    pub(super) fn affine(
        &self,
        slot: Slot,
        rows: usize,
        cols: usize,
    ) -> Result<Option<AffineTensor>> {
        let (name, tensor) = self.tensor(self.table_slot(slot))?;
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let beside = |suffix: &str| {
            let name = format!("{module}.{suffix}");
            let tensor = self.tensors.get(&name);
            tensor.ok_or(FileError::TensorMissing { name })
        };
        let Some(mlx) = &self.quantization.mlx else {
            return Ok(None);
        };
        if beside("scales").is_err() && tensor.dtype != DType::U32 {
            return Ok(None);
        }
        let affine = mlx.of(module).map_err(|problem| Error::Config {
            key: format!("quantization of {}", shown(module)),
            problem: format!("not supported: {problem}"),
        })?;
        let wrong = |name: &str, tensor: &StoredTensor, supported| Error::TensorUse {
            tensor: name.to_owned(),
            found: tensor.dtype.name(),
            used_as: "a part of a quantized module",
            supported,
        };
        if tensor.dtype != DType::U32 {
            return Err(wrong(&name, tensor, "U32"));
        }
        expect_shape(&name, tensor, &[rows, cols * affine.bits / 32])?;
        let (scales, biases) = (beside("scales")?, beside("biases")?);
        let format = dense(scales.dtype).filter(|_| scales.dtype == biases.dtype);
        for (suffix, tensor) in [("scales", scales), ("biases", biases)] {
            expect_shape(
                &format!("{module}.{suffix}"),
                tensor,
                &[rows, cols / affine.group],
            )?;
        }
        Ok(Some(AffineTensor {
            affine,
            cols,
            codes: tensor.data.clone(),
            scales: scales.data.clone(),
            biases: biases.data.clone(),
            format: format.ok_or_else(|| {
                wrong(
                    &format!("{module}.biases"),
                    biases,
                    "of the type of the scales: F32, F16 or BF16",
                )
            })?,
        }))
    }

    /// Whether float weights can have scales for groups of columns: their model is none of
    /// BitNet's.
    fn may_have_group_scales(&self, name: &str, tensor: &StoredTensor) -> bool {
        dense(tensor.dtype).is_some()
            && !self.config.architecture.has_matrix_scales()
            && !self.quantization.is_stated
            && !self.tensors.contains_key(&format!("{name}_scale"))
    }

    fn is_used_in_layer(&self, layer: usize, name: &str) -> bool {
        if matches!(name, "linear_attn.A_log" | "linear_attn.dt_bias") {
            return self.config.linear_layer(layer).is_some();
        }
        LAYER_NAMES.iter().any(|(slot, module)| {
            let Some(suffix) = name.strip_prefix(module) else {
                return false;
            };
            match (slot, suffix) {
                (slot, ".weight") => slot.is_used(&self.config, layer),
                (LayerSlot::Weight(_), ".weight_scale") => true,
                (
                    LayerSlot::Weight(_)
                    | LayerSlot::Linear(LinearSlot::Time | LinearSlot::Strength),
                    suffix,
                ) if suffix
                    .strip_prefix('.')
                    .is_some_and(|suffix| self.is_of_mlx(suffix)) =>
                {
                    true
                }
                (LayerSlot::Weight(projection), ".bias") => {
                    LayerSlot::Bias(*projection).is_used(&self.config, layer)
                        && QKV.contains(projection)
                }
                (LayerSlot::Weight(projection), ".rms_norm.weight") => {
                    LayerSlot::InputNorm(*projection).is_used(&self.config, layer)
                }
                _ => false,
            }
        })
    }
}

impl Source for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn check_tensors(&self) -> Result<()> {
        if self.quantization.tie_word_embeddings == Some(false) && !self.has_head() {
            return Err(FileError::TensorMissing {
                name: "lm_head.weight (tie_word_embeddings is false)".into(),
            }
            .into());
        }
        match self.tensors.keys().find(|name| !self.is_used(name)) {
            None => Ok(()),
            Some(name) => Err(Error::TensorUnknown {
                tensor: shown(name),
                architecture: self.config.architecture_name.clone(),
                used: "model.embed_tokens, model.norm, lm_head and in each layer input_layernorm, \
                       post_attention_layernorm, self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj and, in BitNet \
                       graphs, self_attn.attn_sub_norm, mlp.ffn_sub_norm (.weight), in Qwen3 self_attn.{q,k}_norm, \
                       in Hunyuan self_attn.{query,key}_layernorm, \
                       in Qwen2 self_attn.{q,k,v}_proj.bias",
            }),
        }
    }

    fn rounds_floats(&self) -> bool {
        self.rounds_floats
    }

    fn has_head(&self) -> bool {
        *self.has_own_head.get_or_init(|| self.has_own_head())
    }

    fn vector(&self, slot: Slot, len: usize) -> Result<Vec<f32>> {
        let (name, tensor, format) = self.floats(slot, &[len], "a vector")?;
        let stored = finite_values(&name, format, &tensor.data, len)?;
        let mut values = match Order::of(&self.config, slot) {
            Some(order) => order.order_rows(&stored, 1),
            None => stored,
        };
        let form = hybrid::Form::of(&self.tensors);
        let change = hybrid::change(&self.config, form, slot);
        values.iter_mut().for_each(|value| *value = change(*value));
        Ok(values)
    }

    fn floats(&self, slot: Slot, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let stored = match self.affine(slot, rows, cols)? {
            Some(affine) => affine.rows(rows).map_err(|source| Error::Tensor {
                tensor: name(slot),
                source,
            })?,
            None => {
                let is_convolution = matches!(
                    slot,
                    Slot::Layer(_, LayerSlot::Linear(LinearSlot::Convolution))
                );
                let shape = match hybrid::Form::of(&self.tensors) {
                    hybrid::Form::Mlx if is_convolution => vec![rows, cols, 1],
                    hybrid::Form::Transformers if is_convolution => vec![rows, 1, cols],
                    _ => vec![rows, cols],
                };
                let (name, tensor, format) =
                    Self::floats(self, slot, &shape, "a matrix of floats")?;
                finite_values(&name, format, &tensor.data, rows * cols)?
            }
        };
        Ok(match Order::of(&self.config, slot) {
            Some(order) => order.order_rows(&stored, cols),
            None => stored,
        })
    }

    fn table(&self, slot: Slot, rows: usize, cols: usize) -> Result<Table> {
        let slot = self.table_slot(slot);
        let (name, tensor, format) = self.floats(slot, &[rows, cols], "an embedding or a head")?;
        Table::new(&name, tensor.data.clone(), format, rows, cols)
    }

    fn grouped(
        &self,
        slot: Slot,
        rows: usize,
        cols: usize,
        _even_if_equal: bool,
        pool: &Pool,
    ) -> Result<Option<GroupTensor>> {
        let slot = self.table_slot(slot);
        let (name, tensor) = self.tensor(slot)?;
        let of_tensor = |source| Error::Tensor {
            tensor: name.clone(),
            source,
        };
        let order = Order::of(&self.config, slot);
        if let Some(affine) = self.affine(slot, rows, cols)? {
            let packed = match order {
                None => affine.pack(rows, pool),
                Some(order) => {
                    let read_row = |row: usize, out: &mut [f32]| {
                        order.read_row(row, out, &|row, out| affine.read_row(row, out))
                    };
                    recover(rows, cols, &read_row, pool)
                }
            };
            let (format, bytes) = packed.map_err(of_tensor)?;
            return Ok(Some(GroupTensor::of_bytes(
                &name, format, bytes, rows, cols,
            )));
        }
        if !self.may_have_group_scales(&name, tensor) {
            return Ok(None);
        }
        let (_, tensor, format) = self.floats(slot, &[rows, cols], "weights")?;
        if let Some(order) = order {
            let row_bytes = tensor.data.len() / rows;
            let stored = |row: usize, out: &mut [f32]| {
                format.dequantize(&tensor.data[row * row_bytes..(row + 1) * row_bytes], out)
            };
            let read_row = |row: usize, out: &mut [f32]| order.read_row(row, out, &stored);
            let (format, bytes) = recover(rows, cols, &read_row, pool).map_err(of_tensor)?;
            return Ok(Some(GroupTensor::of_bytes(
                &name, format, bytes, rows, cols,
            )));
        }
        let floats = (format, &tensor.data);
        match (GroupTensor::recover(&name, floats, rows, cols, pool), slot) {
            (Ok(found), _) => Ok(Some(found)),
            (Err(source), Slot::Layer(layer, LayerSlot::Weight(projection))) => {
                // Weights with one scale, or to be rounded, run as ternary ones.
                match self.projection(layer, projection, rows, cols, pool) {
                    Ok(_) => Ok(None),
                    Err(_) => Err(of_tensor(source)),
                }
            }
            // Tables of other values stay floats.
            (Err(_), _) => Ok(None),
        }
    }

    fn projection(
        &self,
        layer: usize,
        projection: Projection,
        rows: usize,
        cols: usize,
        pool: &Pool,
    ) -> Result<TernaryTensor> {
        let (name, tensor) = self.tensor(Slot::Layer(layer, LayerSlot::Weight(projection)))?;
        let scale = self.weight_scale(&name)?;
        let wrong = |problem: &str| Error::TensorValues {
            tensor: name.clone(),
            problem: problem.to_owned(),
        };
        let packed = tensor.dtype == DType::U8;
        let codes = match (dense(tensor.dtype), packed, scale) {
            (_, true, Some(_)) if self.quantization.online => {
                return Err(wrong(
                    "packed weights, but quantization_mode is \"online\", which means float weights",
                ));
            }
            (_, true, Some(_)) => Codes::Packed(TernaryFormat::HfPacked),
            (_, true, None) => {
                return Err(wrong("packed weights without a weight_scale beside them"));
            }
            (Some(format), _, Some(_)) => Codes::Units(format),
            (Some(format), _, None) => Codes::Absmean { format, s: 1.0 },
            (None, ..) => {
                return Err(Error::TensorUse {
                    tensor: name,
                    found: tensor.dtype.name(),
                    used_as: "a projection",
                    supported: "packed U8, BF16, F16 or F32",
                });
            }
        };
        if packed && !rows.is_multiple_of(4) {
            return Err(wrong(&format!("{rows} rows cannot be packed in fours")));
        }
        expect_shape(&name, tensor, &[if packed { rows / 4 } else { rows }, cols])?;
        let mut ternary = TernaryTensor {
            name,
            rows,
            cols,
            scale: scale.unwrap_or(1.0),
            codes,
            data: tensor.data.clone(),
            interleaved_heads: None,
        };
        if let Codes::Absmean { format, .. } = codes {
            ternary.measure(format, self.float_rule(), pool)?;
        }
        Ok(ternary)
    }

    fn rope_factors(&self) -> Result<Option<RopeFactors>> {
        let (factor, low_freq_factor, high_freq_factor, original_context) =
            match &self.quantization.rope {
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                } => (
                    *factor,
                    *low_freq_factor,
                    *high_freq_factor,
                    *original_context,
                ),
                RopeScaling::Long { short, long } => {
                    let (divisors, long) = (short.clone(), Some(long.clone()));
                    return Ok(Some(RopeFactors { divisors, long }));
                }
                _ => return Ok(None),
            };
        let head_dim = self.config.attention.head_dim;
        let divisor = |i: usize| {
            let frequency = math::pow_f64(
                f64::from(self.config.rope_theta),
                -((2 * i) as f64) / head_dim as f64,
            );
            // The number of turns that the pair makes over the context that the model was first
            // trained for.
            let turns = original_context * frequency / TAU;
            if turns > high_freq_factor {
                1.0
            } else if turns < low_freq_factor {
                factor
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        let divisors = (0..head_dim / 2).map(|i| divisor(i) as f32).collect();
        let long = None;
        Ok(Some(RopeFactors { divisors, long }))
    }
}

fn expect_shape(name: &str, tensor: &StoredTensor, expected: &[usize]) -> Result<()> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(Error::Shape {
        tensor: name.to_owned(),
        found: tensor.shape.clone(),
        expected: expected.to_vec(),
    })
}

fn dense(dtype: DType) -> Option<Dense> {
    match dtype {
        DType::F32 => Some(Dense::F32),
        DType::F16 => Some(Dense::F16),
        DType::BF16 => Some(Dense::BF16),
        _ => None,
    }
}
