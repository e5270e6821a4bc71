//! Qwen3.5's layers of linear attention: their numbers in `config.json`, and the order of their
//! heads.
//!
//! Where there are more value heads than key heads, transformers keeps the value heads of a key
//! head side by side (grouped), while the graph deals them out in turns (tiled): its value head `j`
//! uses key head `j mod key_heads`, as in GGUF files. [`Order`] finds what is stored where.

use std::collections::BTreeMap;

use bitnet_files::safetensors::StoredTensor;
use bitnet_kernels::{CONV_TAPS, DeltaShape, MAX_COLS, math};

use super::keys::Keys;
use crate::config::{Architecture, Config, LinearAttention};
use crate::error::{Error, Result};
use crate::source::{LayerSlot, LinearSlot, Projection, Slot};

/// The part of each head that is rotated, if the file does not state it.
const PARTIAL_ROTARY_FACTOR: f64 = 0.25;

/// The layers of linear attention of a hybrid model.
pub(super) fn linear_attention(keys: &Keys<'_>, num_layers: usize) -> Result<LinearAttention> {
    let size = |key: &str, default: usize| {
        let found = keys.optional_size(key, MAX_COLS)?;
        Ok::<_, Error>(found.unwrap_or(default))
    };
    // The defaults of transformers' `Qwen3_5TextConfig`.
    let shape = DeltaShape {
        key_heads: size("linear_num_key_heads", 16)?,
        value_heads: size("linear_num_value_heads", 32)?,
        head_dim: size("linear_key_head_dim", 128)?,
    };
    let wrong = |key: &str, found: usize, expected: String| {
        Err(keys.error(key, format!("{found}; {expected} is supported")))
    };
    let values = size("linear_value_head_dim", 128)?;
    if values != shape.head_dim {
        let expected = format!("{} as linear_key_head_dim", shape.head_dim);
        return wrong("linear_value_head_dim", values, expected);
    }
    let taps = size("linear_conv_kernel_dim", CONV_TAPS)?;
    if taps != CONV_TAPS {
        return wrong("linear_conv_kernel_dim", taps, CONV_TAPS.to_string());
    }
    if !shape.value_heads.is_multiple_of(shape.key_heads) {
        let expected = format!("a multiple of linear_num_key_heads, {},", shape.key_heads);
        return wrong("linear_num_value_heads", shape.value_heads, expected);
    }
    let heads = (2 * shape.key_heads).max(shape.value_heads);
    if heads
        .checked_mul(shape.head_dim)
        .is_none_or(|n| n > MAX_COLS)
    {
        let expected = format!("at most {MAX_COLS} numbers of all heads");
        return wrong("linear_key_head_dim", shape.head_dim, expected);
    }
    Ok(LinearAttention {
        shape,
        is_linear: is_linear(keys, num_layers)?,
    })
}

/// For each layer, whether it is linear attention: as `layer_types` lists them, else all but every
/// n-th one.
fn is_linear(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>> {
    const KEY: &str = "layer_types";
    let Some(value) = keys.get(KEY) else {
        let interval = keys.optional_size("full_attention_interval", num_layers.max(4))?;
        let interval = interval.unwrap_or(4);
        return Ok((1..=num_layers)
            .map(|layer| layer % interval != 0)
            .collect());
    };
    let kind = |value: &serde_json::Value| match value.as_str() {
        Some("linear_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let kinds = value.as_array().and_then(|kinds| {
        let kinds = kinds.iter().map(kind).collect::<Option<Vec<_>>>();
        kinds.filter(|kinds| kinds.len() == num_layers)
    });
    kinds.ok_or_else(|| {
        let problem =
            format!("no list of {num_layers} names, each linear_attention or full_attention");
        keys.error(KEY, problem)
    })
}

/// The number of elements of a head that are rotated by position.
pub(super) fn rotary_dim(keys: &Keys<'_>, head_dim: usize) -> Result<usize> {
    const KEY: &str = "partial_rotary_factor";
    let factor = keys.number(KEY)?.unwrap_or(PARTIAL_ROTARY_FACTOR);
    let rotary_dim = (head_dim as f64 * factor) as usize;
    if factor > 1.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        let problem = format!("{factor}, which is no even part of a head of {head_dim}");
        return Err(keys.error(KEY, problem));
    }
    Ok(rotary_dim)
}

/// Turns a stored value of a vector into the graph's: transformers keeps norms without their 1, and
/// the logarithm of the decay. form: whether the norms have it.
pub(super) fn change(config: &Config, form: Form, slot: Slot) -> fn(f32) -> f32 {
    use LayerSlot::{AttentionNorm, FfnNorm, KeyNorm, Linear, QueryNorm};
    if config.architecture != Architecture::Qwen35 {
        return |value| value;
    }
    match slot {
        Slot::Layer(_, Linear(LinearSlot::Decay)) => {
            |value| -(math::exp_f64(f64::from(value)) as f32)
        }
        Slot::OutputNorm | Slot::Layer(_, AttentionNorm | FfnNorm | QueryNorm | KeyNorm)
            if form == Form::Transformers =>
        {
            |value| value + 1.0
        }
        _ => |value| value,
    }
}

/// Who wrote a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// transformers: `conv1d` is `[channels, 1, taps]`, norms lack their 1.
    Transformers,
    /// mlx-lm: `conv1d` is `[channels, taps, 1]`, norms have it. mlx-lm, too, tells the two apart
    /// by these shapes.
    Mlx,
}

impl Form {
    pub(super) fn of(tensors: &BTreeMap<String, StoredTensor>) -> Self {
        let is_mlx = |(name, tensor): (&String, &StoredTensor)| {
            name.ends_with(".conv1d.weight") && tensor.shape.get(1..) == Some(&[CONV_TAPS, 1])
        };
        if tensors.iter().any(is_mlx) {
            Self::Mlx
        } else {
            Self::Transformers
        }
    }
}

/// The tensors of the text model, under the names of a model that only reads. Leaves out tensors
/// that see pictures (`model.visual`, `vision_tower`) or predict further tokens (`mtp`).
pub(super) fn text_tensors(
    tensors: BTreeMap<String, StoredTensor>,
) -> BTreeMap<String, StoredTensor> {
    const OTHERS: [&str; 4] = [
        "model.visual.",
        "vision_tower.",
        "mtp.",
        "language_model.mtp.",
    ];
    let is_text = |name: &str| !OTHERS.iter().any(|prefix| name.starts_with(prefix));
    let tensors = tensors.into_iter().filter(|(name, _)| is_text(name));
    tensors
        .map(|(name, tensor)| (text_name(name), tensor))
        .collect()
}

/// The name of a module or tensor in a model that only reads: transformers puts the text model
/// inside the model, mlx-lm beside what sees.
pub(super) fn text_name(name: String) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("model.{rest}");
    }
    match name.strip_prefix("language_model.") {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

/// Where a checkpoint keeps the rows and columns of a tensor with value heads.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// Rows before the rows of the value heads; they stay where they are.
    first: usize,
    /// Rows or columns of a value head.
    len: usize,
    /// The value heads of a key head.
    group: usize,
    key_heads: usize,
    by_columns: bool,
}

impl Order {
    /// The order of a slot's tensor; `None` if it is the graph's.
    pub(super) fn of(config: &Config, slot: Slot) -> Option<Self> {
        let shape = config.linear.as_ref()?.shape;
        let Slot::Layer(_, slot) = slot else {
            return None;
        };
        let keys = 2 * shape.key_heads * shape.head_dim;
        let (first, len) = match slot {
            LayerSlot::Weight(Projection::LinearQkv)
            | LayerSlot::Linear(LinearSlot::Convolution) => (keys, shape.head_dim),
            LayerSlot::Weight(Projection::LinearGate | Projection::LinearOutput) => {
                (0, shape.head_dim)
            }
            LayerSlot::Linear(
                LinearSlot::Time | LinearSlot::Strength | LinearSlot::Decay | LinearSlot::TimeBias,
            ) => (0, 1),
            _ => return None,
        };
        let group = shape.value_heads / shape.key_heads;
        (group > 1).then_some(Self {
            first,
            len,
            group,
            key_heads: shape.key_heads,
            by_columns: slot == LayerSlot::Weight(Projection::LinearOutput),
        })
    }

    /// Where a row of the graph, or a column, is stored.
    fn stored(self, index: usize) -> usize {
        let Some(index) = index.checked_sub(self.first) else {
            return index;
        };
        let (head, element) = (index / self.len, index % self.len);
        let (key_head, turn) = (head % self.key_heads, head / self.key_heads);
        self.first + (key_head * self.group + turn) * self.len + element
    }

    /// Reads a row in the order of the graph; `stored` reads rows as they are stored.
    pub(super) fn read_row(
        self,
        row: usize,
        out: &mut [f32],
        stored: &dyn Fn(usize, &mut [f32]) -> bitnet_quantization::Result<()>,
    ) -> bitnet_quantization::Result<()> {
        stored(self.stored_row(row), out)?;
        self.order_columns(out);
        Ok(())
    }

    /// Where a row is stored.
    fn stored_row(self, row: usize) -> usize {
        if self.by_columns {
            row
        } else {
            self.stored(row)
        }
    }

    /// Puts the columns of a stored row into the order of the graph.
    fn order_columns(self, row: &mut [f32]) {
        if self.by_columns {
            let stored = row.to_vec();
            for (index, value) in row.iter_mut().enumerate() {
                *value = stored[self.stored(index)];
            }
        }
    }

    /// Puts the stored rows of a small matrix of `cols` columns into the order of the graph.
    pub(super) fn order_rows(self, stored: &[f32], cols: usize) -> Vec<f32> {
        let rows = 0..stored.len() / cols;
        rows.flat_map(|row| &stored[self.stored_row(row) * cols..][..cols])
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_heads_are_dealt_out_to_the_key_heads_in_turns() {
        // Two key heads with three value heads each, of one row, behind one other row.
        let order = Order {
            first: 1,
            len: 1,
            group: 3,
            key_heads: 2,
            by_columns: false,
        };
        let rows: Vec<usize> = (0..7).map(|row| order.stored_row(row)).collect();
        assert_eq!(rows, [0, 1, 4, 2, 5, 3, 6]);
        let stored: Vec<f32> = (0..14).map(|i| i as f32).collect();
        let expected = [0, 1, 2, 3, 8, 9, 4, 5, 10, 11, 6, 7, 12, 13].map(|i| i as f32);
        assert_eq!(order.order_rows(&stored, 2), expected);
        let columns = Order {
            by_columns: true,
            first: 0,
            len: 2,
            ..order
        };
        let mut row: Vec<f32> = (0..12).map(|i| i as f32).collect();
        columns.order_columns(&mut row);
        let expected = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11].map(|i| i as f32);
        assert_eq!(row, expected);
        assert_eq!(columns.stored_row(5), 5);
    }
}
