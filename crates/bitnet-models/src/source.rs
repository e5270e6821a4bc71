//! [`Source`]: the tensors and configuration of a model, for loaders and converters, from files of
//! any kind.
//!
//! A [`Slot`] is a tensor's place in the graph; each source finds it by the names of its format. A
//! source checks each tensor against the requested shape.

pub(crate) mod gguf;
mod group_tensor;
mod heads;
pub(crate) mod slots;
mod ternary_tensor;

use bitnet_kernels::{CONV_TAPS, DeltaShape, Pool};
use bitnet_quantization::dense::Dense;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::rotation::Rotations;
use crate::table::Table;

pub use group_tensor::GroupTensor;
pub(crate) use heads::{half_split_row, interleaved_row};
pub(crate) use ternary_tensor::{Codes, FloatRule, TernaryTensor};

/// A model's configuration and tensors.
pub(crate) trait Source {
    /// The shape of the model.
    fn config(&self) -> &Config;

    /// Refuses a model with tensors that its graph would leave unused: leaving them out would
    /// change the result.
    fn check_tensors(&self) -> Result<()>;

    /// Whether float weights may be rounded although no field says that the model is a BitNet.
    fn rounds_floats(&self) -> bool;

    /// Whether the logits come from a separate table.
    fn has_head(&self) -> bool;

    /// A norm's weights, `[len]`.
    fn vector(&self, slot: Slot, len: usize) -> Result<Vec<f32>>;

    /// A small matrix that multiplies in f32, `[rows, cols]`.
    fn floats(&self, slot: Slot, rows: usize, cols: usize) -> Result<Vec<f32>> {
        debug_assert!(cols > 0);
        self.vector(slot, rows * cols)
    }

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

    /// A matrix that has a scale for each group of columns. `even_if_equal`: also returns a matrix
    /// whose scales are all equal, which could run as a ternary matrix with one scale. Float
    /// weights are read on all threads of `pool`.
    fn grouped(
        &self,
        slot: Slot,
        rows: usize,
        cols: usize,
        even_if_equal: bool,
        pool: &Pool,
    ) -> Result<Option<GroupTensor>>;

    /// Which inputs are rotated.
    fn rotations(&self) -> Result<Rotations> {
        Ok(Rotations::default())
    }

    /// The divisors of rotary frequencies, if the model has such factors.
    fn rope_factors(&self) -> Result<Option<RopeFactors>>;
}

/// Divisors of the rotary frequencies, one for each pair of a head: `[head_dim / 2]`.
pub(crate) struct RopeFactors {
    /// The divisors that are used.
    pub divisors: Vec<f32>,
    /// LongRoPE's divisors for texts beyond the context that the model was first trained for.
    /// Conversions keep them; models that would need them are refused.
    pub long: Option<Vec<f32>>,
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
    /// A slot in the layer with this index.
    Layer(usize, LayerSlot),
}

/// A tensor's place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerSlot {
    AttentionNorm,
    AttentionSubNorm,
    FfnNorm,
    FfnSubNorm,
    /// The norm of a projection's own input.
    InputNorm(Projection),
    /// The norm of what attention adds to the residual stream.
    PostAttentionNorm,
    /// The norm of what the feed-forward network adds to it.
    PostFfnNorm,
    /// The norm over each head of queries.
    QueryNorm,
    /// The norm over each head of keys.
    KeyNorm,
    Weight(Projection),
    /// The bias of a projection.
    Bias(Projection),
    Linear(LinearSlot),
}

/// The constants of a layer of linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearSlot {
    /// `[channels, 4 taps]`
    Convolution,
    /// `[value heads]`
    Decay,
    /// `[value heads]`
    TimeBias,
    /// `[value heads, hidden]`
    Time,
    /// `[value heads, hidden]`
    Strength,
    /// `[head_dim]`
    Norm,
}

impl LinearSlot {
    /// The dimensions of its tensor, the contiguous one first.
    fn dims(self, shape: DeltaShape, hidden_size: usize) -> Vec<usize> {
        match self {
            Self::Convolution => vec![CONV_TAPS, shape.channels()],
            Self::Time | Self::Strength => vec![hidden_size, shape.value_heads],
            Self::Decay | Self::TimeBias => vec![shape.value_heads],
            Self::Norm => vec![shape.head_dim],
        }
    }
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
    /// Queries, keys and values of linear attention.
    LinearQkv,
    /// The gates of its output.
    LinearGate,
    LinearOutput,
}

/// Projections with the same input: one product, unless each has its own input norm.
pub(crate) const QKV: [Projection; 3] = [Projection::Query, Projection::Key, Projection::Value];
pub(crate) const GATE_UP: [Projection; 2] = [Projection::Gate, Projection::Up];
pub(crate) const LINEAR_INPUT: [Projection; 2] = [Projection::LinearQkv, Projection::LinearGate];

impl Projection {
    /// The matrices of layers of full attention.
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
        let linear = config.linear.as_ref().map(|linear| linear.shape);
        let (channels, inner) =
            linear.map_or((0, 0), |shape| (shape.channels(), shape.output_len()));
        match self {
            // If the output is gated, heads of queries and heads of gates alternate.
            Self::Query if config.architecture.gates_attention() => (2 * query, hidden),
            Self::LinearQkv => (channels, hidden),
            Self::LinearGate => (inner, hidden),
            Self::LinearOutput => (hidden, inner),
            Self::Query => (query, hidden),
            Self::Key | Self::Value => (key, hidden),
            Self::AttentionOutput => (hidden, query),
            Self::Gate | Self::Up => (ffn, hidden),
            Self::Down => (hidden, ffn),
        }
    }

    /// The matrices of layers of linear attention.
    pub(crate) const OF_LINEAR: [Self; 6] = [
        Self::LinearQkv,
        Self::LinearGate,
        Self::LinearOutput,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Whether a layer of linear attention has it, or one of full attention.
    fn is_used(self, is_linear: bool) -> bool {
        if is_linear {
            Self::OF_LINEAR.contains(&self)
        } else {
            Self::ALL.contains(&self)
        }
    }

    /// Whether its output is rotated by position.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Query | Self::Key)
    }
}

impl LayerSlot {
    /// Whether a layer of this configuration has it.
    pub(crate) fn is_used(self, config: &Config, layer: usize) -> bool {
        let (architecture, is_linear) = (config.architecture, config.linear_layer(layer).is_some());
        match self {
            Self::AttentionSubNorm | Self::FfnSubNorm => architecture.has_sub_norms(),
            Self::InputNorm(_) => config.input_norm_eps.is_some(),
            Self::PostAttentionNorm | Self::PostFfnNorm => architecture.has_post_norms(),
            Self::QueryNorm | Self::KeyNorm => architecture.has_head_norms() && !is_linear,
            Self::Bias(_) => architecture.has_biases(),
            Self::Linear(_) => is_linear,
            Self::Weight(projection) => projection.is_used(is_linear),
            Self::AttentionNorm | Self::FfnNorm => true,
        }
    }

    /// The dimensions of its tensor, the contiguous one first.
    pub(crate) fn dims(self, config: &Config) -> Vec<usize> {
        let attention = config.attention;
        match self {
            Self::Weight(projection) => {
                let (rows, cols) = projection.shape(config);
                vec![cols, rows]
            }
            Self::Bias(projection) => vec![projection.shape(config).0],
            Self::InputNorm(projection) => vec![projection.shape(config).1],
            Self::AttentionSubNorm => vec![attention.heads * attention.head_dim],
            Self::FfnSubNorm => vec![config.ffn_size],
            Self::QueryNorm | Self::KeyNorm => vec![attention.head_dim],
            Self::AttentionNorm | Self::FfnNorm | Self::PostAttentionNorm | Self::PostFfnNorm => {
                vec![config.hidden_size]
            }
            Self::Linear(slot) => {
                let linear = config.linear.as_ref();
                linear.map_or_else(Vec::new, |linear| {
                    slot.dims(linear.shape, config.hidden_size)
                })
            }
        }
    }
}

/// The values of a tensor outside the projections, all finite.
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
