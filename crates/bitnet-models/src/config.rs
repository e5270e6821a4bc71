//! [`Config`]: the shape of a model and the differences between the published graphs.

mod gguf;

use std::ops::Range;

use bitnet_files::shown;
use bitnet_kernels::{AttentionShape, DeltaShape, Gate, MAX_COLS, MAX_HEAD_DIM, math};

use crate::error::{Error, Result};

/// The supported graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// BitNet b1.58 2B-4T: squared ReLU, a norm before each output projection, half-split rotation.
    BitnetB158,
    /// The 1bitLLM models: as above, with SiLU.
    Bitnet,
    /// Llama with ternary projections: SiLU, no extra norms.
    Llama,
    /// Qwen2: as Llama, with biases on queries, keys and values.
    Qwen2,
    /// Qwen3: as Llama, with a norm over each head of queries and keys.
    Qwen3,
    /// Qwen3.5: three of four layers are Gated DeltaNet, the others attention as in Qwen3 with a
    /// gate over its output and a rotation of a part of each head.
    Qwen35,
    /// MiniCPM: as Llama, with factors of the embedding, of what each block adds and of the logits.
    MiniCpm,
    /// Hunyuan dense: as Qwen3, with the norms of queries and keys after the rotation.
    HunyuanDense,
    /// Gemma 3: as Qwen3, with GELU, a factor of the embedding, and norms of what each block adds.
    Gemma3,
}

/// Where a file keeps the two elements of each pair that the rotary embedding rotates.
///
/// In the graph they are half a head apart; the loader reorders the rows of files that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + head_dim/2)`
    HalfSplit,
    /// `(2i, 2i + 1)`
    Interleaved,
}

impl Architecture {
    /// The names of each graph in `general.architecture`.
    const NAMES: [(&'static str, Self); 13] = [
        ("bitnet-b1.58", Self::BitnetB158),
        ("bitnet_b1_58", Self::BitnetB158),
        ("bitnet-25", Self::BitnetB158),
        ("bitnet25", Self::BitnetB158),
        ("bitnet158", Self::BitnetB158),
        ("bitnet", Self::Bitnet),
        ("llama", Self::Llama),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("qwen35", Self::Qwen35),
        ("minicpm", Self::MiniCpm),
        ("hunyuan-dense", Self::HunyuanDense),
        ("gemma3", Self::Gemma3),
    ];

    /// The graph with this name in a file.
    ///
    /// # Errors
    /// If there is none; the error lists the known names.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, architecture)| *architecture)
            .ok_or_else(|| Error::Architecture {
                found: shown(name),
                supported: Self::NAMES.map(|(name, _)| name).join(", "),
            })
    }

    /// The function of the gates in the feed-forward network.
    #[must_use]
    pub fn gate(self) -> Gate {
        match self {
            Self::BitnetB158 => Gate::Relu2,
            Self::Gemma3 => Gate::Gelu,
            _ => Gate::Silu,
        }
    }

    /// Whether the inputs of the attention's and the feed-forward network's output projections are
    /// normalised.
    #[must_use]
    pub fn has_sub_norms(self) -> bool {
        matches!(self, Self::BitnetB158 | Self::Bitnet)
    }

    /// Whether each head of queries and keys is normalised.
    #[must_use]
    pub fn has_head_norms(self) -> bool {
        matches!(
            self,
            Self::Qwen3 | Self::Qwen35 | Self::HunyuanDense | Self::Gemma3
        )
    }

    /// Whether what attention and the feed-forward network add to the residual stream is
    /// normalised first.
    #[must_use]
    pub fn has_post_norms(self) -> bool {
        self == Self::Gemma3
    }

    /// Whether files of this graph may have a norm of its own for the input of each projection, as
    /// the BitNet embedding models have.
    pub(crate) fn may_have_input_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether heads are normalised after they are rotated, not before.
    #[must_use]
    pub fn rotates_before_norms(self) -> bool {
        self == Self::HunyuanDense
    }

    /// Whether queries, keys and values have biases.
    #[must_use]
    pub fn has_biases(self) -> bool {
        self == Self::Qwen2
    }

    /// Whether models of this graph were trained with one scale for each matrix and for each row of
    /// inputs. If a group format holds the same scale throughout, such a model runs it as a ternary
    /// matrix.
    #[must_use]
    pub fn has_matrix_scales(self) -> bool {
        matches!(self, Self::BitnetB158 | Self::Bitnet | Self::Llama)
    }

    /// Whether rotary frequencies may be stretched by YaRN.
    pub(crate) fn has_yarn(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3 | Self::Qwen35)
    }

    /// Whether the output of attention is multiplied by the sigmoid of gates, which the query
    /// projection gives beside the queries.
    #[must_use]
    pub fn gates_attention(self) -> bool {
        self == Self::Qwen35
    }

    /// Where GGUF files of this architecture keep the pairs that the rotary embedding rotates.
    #[must_use]
    pub fn gguf_rope_pairs(self) -> RopePairs {
        match self {
            Self::Llama | Self::MiniCpm => RopePairs::Interleaved,
            _ => RopePairs::HalfSplit,
        }
    }

    /// The name that GGUF files are written with.
    #[must_use]
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet => "bitnet",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen35 => "qwen35",
            Self::MiniCpm => "minicpm",
            Self::HunyuanDense => "hunyuan-dense",
            Self::Gemma3 => "gemma3",
        }
    }
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The last token's.
    Last,
    /// The mean of all tokens'.
    Mean,
}

impl Pooling {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Last, Self::Mean, Self::First];

    /// Its name for `--pooling`; the first token's is `cls`, as in llama.cpp.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "cls",
            Self::Last => "last",
            Self::Mean => "mean",
        }
    }

    /// The way of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name)
    }
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The graph.
    pub architecture: Architecture,
    /// The name of the architecture in the file.
    pub architecture_name: String,
    /// The name of the model in the file, if there is one.
    pub name: Option<String>,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Length of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Blocks after them that predict further tokens, which the main pass leaves out.
    pub num_extra_layers: usize,
    /// Heads and their length.
    pub attention: AttentionShape,
    /// Inner length of the feed-forward network.
    pub ffn_size: usize,
    /// Length of the context that the model was trained for.
    pub context_length: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// The divisor of positions (linear scaling); 1 for none.
    pub rope_scaling_factor: f32,
    /// Where the file keeps the pairs that are rotated.
    pub rope_pairs: RopePairs,
    /// Epsilon of the projections' own input norms (`use_rms_norm`); `None` if they have none.
    pub input_norm_eps: Option<f32>,
    /// Elements of each head that are rotated by position, from the first on.
    pub rotary_dim: usize,
    /// How rotary frequencies are stretched for long contexts, if they are.
    pub yarn: Option<Yarn>,
    /// The layers of linear attention, in hybrid models.
    pub linear: Option<LinearAttention>,
    /// Factors outside the matrices.
    pub multipliers: Multipliers,
    /// How an embedding model pools; `None` for a model that gives logits only.
    pub pooling: Option<Pooling>,
}

/// Factors of a graph outside its matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// Multiplies rows of the embedding.
    pub embedding: f32,
    /// Multiplies what attention and the feed-forward network add to the residual stream.
    pub residual: f32,
    /// Divides the logits.
    pub logits: f32,
}

impl Default for Multipliers {
    /// 1: they change nothing.
    fn default() -> Self {
        Self {
            embedding: 1.0,
            residual: 1.0,
            logits: 1.0,
        }
    }
}

/// YaRN (Peng et al. 2023): high frequencies stay, low frequencies are divided by `factor`, and
/// frequencies in between are blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f32,
    /// Length of the context before stretching.
    pub original_context: f32,
    /// Weight of the change; 1 in all but unusual files.
    pub ext_factor: f32,
    /// Multiplies the cosines and sines beside YaRN's own factor.
    pub attn_factor: f32,
    /// Turns within the original context above which a frequency stays.
    pub beta_fast: f32,
    /// Turns below which it is divided by `factor`.
    pub beta_slow: f32,
}

impl Yarn {
    /// Returns the stretched frequencies, and the factor of cosines and sines.
    ///
    /// frequencies: `theta^(−2i/n)`, `[n / 2]`.
    pub(crate) fn stretch(&self, frequencies: Vec<f32>, theta: f32) -> (Vec<f32>, f32) {
        let n = 2.0 * frequencies.len() as f64;
        let theta = math::ln_f64(f64::from(theta));
        // The index of the pair that turns this many times within the original context.
        let pair = |turns: f32| {
            let wavelength =
                f64::from(self.original_context) / (2.0 * std::f64::consts::PI * f64::from(turns));
            n * math::ln_f64(wavelength) / (2.0 * theta)
        };
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(n - 1.0);
        let stretched = frequencies.into_iter().enumerate().map(|(i, frequency)| {
            let ramp = (i as f64 - low) / (high - low).max(0.001);
            let interpolated = ramp.clamp(0.0, 1.0) * f64::from(self.ext_factor)
                + (1.0 - f64::from(self.ext_factor));
            let frequency = f64::from(frequency);
            let slow = frequency / f64::from(self.factor);
            (frequency * (1.0 - interpolated) + slow * interpolated) as f32
        });
        let factor = 1.0 + 0.1 * math::ln_f64(f64::from(self.factor));
        let factor = (factor * f64::from(self.attn_factor)) as f32;
        (stretched.collect(), factor)
    }
}

/// Layers of Gated DeltaNet in a hybrid model.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearAttention {
    /// Heads of a layer.
    pub shape: DeltaShape,
    /// For each layer, whether it is linear attention.
    pub is_linear: Vec<bool>,
}

impl Config {
    /// The shape of a layer's linear attention; `None` for a layer of full attention.
    #[must_use]
    pub fn linear_layer(&self, layer: usize) -> Option<DeltaShape> {
        let linear = self.linear.as_ref()?;
        linear.is_linear[layer].then_some(linear.shape)
    }

    /// The indices of the blocks that predict further tokens.
    pub(crate) fn extra_layers(&self) -> Range<usize> {
        self.num_layers..self.num_layers + self.num_extra_layers
    }

    /// Layers that keep keys and values.
    #[must_use]
    pub fn num_attention_layers(&self) -> usize {
        (0..self.num_layers)
            .filter(|layer| self.linear_layer(*layer).is_none())
            .count()
    }

    /// Numbers in the recurrent state of a sequence, all layers together; 0 without linear layers.
    #[must_use]
    pub fn state_len(&self) -> usize {
        (0..self.num_layers)
            .filter_map(|layer| self.linear_layer(layer))
            .map(|shape| shape.state_len())
            .sum()
    }

    /// Checks the rules for configurations from any source.
    ///
    /// # Errors
    /// If a number is out of range or two contradict each other.
    pub fn checked(self) -> Result<Self> {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
        } = self.attention;
        let wrong = |key: &str, problem: String| {
            Err(Error::Config {
                key: key.to_owned(),
                problem,
            })
        };
        if !heads.is_multiple_of(kv_heads) {
            return wrong(
                "the number of heads",
                format!("{heads}, not a multiple of {kv_heads} key/value heads"),
            );
        }
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return wrong(
                "the head size",
                format!("{head_dim}; even sizes up to {MAX_HEAD_DIM} are supported"),
            );
        }
        for (key, size) in [
            ("heads times head size", heads * head_dim),
            ("vocab_size", self.vocab_size),
        ] {
            let max = if key == "vocab_size" {
                1 << 24
            } else {
                MAX_COLS
            };
            if size > max {
                return wrong(key, format!("{size}; at most {max} is supported"));
            }
        }
        for (key, value, max) in [
            ("the norms' epsilon", self.rms_norm_eps, 1.0),
            (
                "the projections' norms' epsilon",
                self.input_norm_eps.unwrap_or(1e-6),
                1.0,
            ),
            ("the rotary base", self.rope_theta, 1e12),
            ("the rotary scaling factor", self.rope_scaling_factor, 1e6),
            ("the embedding's factor", self.multipliers.embedding, 1e6),
            ("the residual factor", self.multipliers.residual, 1e6),
            ("the logits' divisor", self.multipliers.logits, 1e6),
        ] {
            if !(value.is_normal() && value > 0.0 && value <= max) {
                return wrong(
                    key,
                    format!("{value}, expected more than 0 and at most {max}"),
                );
            }
        }
        Ok(self)
    }
}
