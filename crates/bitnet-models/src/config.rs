//! [`Config`]: the shape of a model and the differences between the published graphs.

use std::ops::Range;

use bitnet_files::gguf::{Gguf, Metadata};
use bitnet_files::{Error as FileError, shown};
use bitnet_kernels::{AttentionShape, CONV_TAPS, DeltaShape, Gate, MAX_COLS, MAX_HEAD_DIM, math};

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

/// The architecture of files that llama.cpp reads beside a language model (`mmproj-*.gguf`).
const VISION_PROJECTOR: &str = "clip";

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

    /// Reads the configuration in the metadata of a GGUF file.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type, out of range, or contradicts another.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        let architecture_name = metadata.require_str("general.architecture")?.to_owned();
        if architecture_name == VISION_PROJECTOR {
            return Err(Error::VisionProjector);
        }
        let architecture = Architecture::from_name(&architecture_name)?;
        let keys = Keys {
            metadata,
            architecture: &architecture_name,
        };
        let hidden_size = keys.size("embedding_length", MAX_COLS)?;
        let heads = keys.size("attention.head_count", 4096)?;
        let kv_heads = keys
            .optional_size("attention.head_count_kv", heads)?
            .unwrap_or(heads);
        let head_dim = keys.head_dim(hidden_size, heads)?;
        let rotary_dim = keys.rotary_dim(architecture, head_dim)?;
        keys.refuse_other_attention()?;
        let (num_layers, num_extra_layers) = keys.num_layers(gguf.tensors().len())?;
        let linear = match architecture {
            Architecture::Qwen35 => Some(keys.linear_attention(num_layers)?),
            _ => None,
        };
        let vocab_size = gguf.require_tensor("token_embd.weight")?.rows();
        keys.check_vocab_size(vocab_size)?;
        let rms_norm_eps = metadata.require_f32(&keys.key("attention.layer_norm_rms_epsilon"))?;
        let has_input_norms =
            architecture.may_have_input_norms() && gguf.tensor(INPUT_NORM).is_some();
        Self {
            architecture,
            name: metadata.str("general.name")?.map(str::to_owned),
            vocab_size,
            hidden_size,
            num_layers,
            num_extra_layers,
            attention: AttentionShape {
                heads,
                kv_heads,
                head_dim,
            },
            ffn_size: keys.size("feed_forward_length", MAX_COLS)?,
            context_length: keys.size("context_length", u32::MAX as usize)?,
            rms_norm_eps,
            rope_theta: metadata
                .f32(&keys.key("rope.freq_base"))?
                .unwrap_or(10_000.0),
            rope_scaling_factor: keys.rope_scaling_factor(architecture)?,
            rope_pairs: architecture.gguf_rope_pairs(),
            input_norm_eps: has_input_norms.then_some(rms_norm_eps),
            rotary_dim,
            yarn: keys.yarn()?,
            linear,
            multipliers: match architecture {
                Architecture::MiniCpm => keys.multipliers(num_layers, hidden_size)?,
                Architecture::Gemma3 => Multipliers {
                    embedding: (hidden_size as f32).sqrt(),
                    ..Multipliers::default()
                },
                _ => Multipliers::default(),
            },
            pooling: keys.pooling(has_input_norms)?,
            architecture_name,
        }
        .checked()
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

/// A tensor that only files with a norm for the input of each projection have.
const INPUT_NORM: &str = "blk.0.attn_q_norm_in.weight";

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    /// The length of a head: stated, or an equal part of the hidden size.
    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        let head_dim = match self.optional_size("attention.key_length", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem = format!("{heads} heads do not divide embedding_length {hidden_size}");
                return Err(self.error("attention.head_count", problem));
            }
        };
        if let Some(found) = self.metadata.u32(&self.key("attention.value_length"))?
            && found as usize != head_dim
        {
            let problem =
                format!("{found}, but a head has {head_dim}; unequal lengths are not supported");
            return Err(self.error("attention.value_length", problem));
        }
        Ok(head_dim)
    }

    /// The stated size of the vocabulary must be that of the embedding.
    fn check_vocab_size(&self, vocab_size: usize) -> Result<()> {
        if let Some(stated) = self.metadata.u32(&self.key("vocab_size"))?
            && stated as usize != vocab_size
        {
            return Err(self.error(
                "vocab_size",
                format!("{stated}, but token_embd.weight has {vocab_size} rows"),
            ));
        }
        Ok(())
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn error(&self, key: &str, problem: String) -> Error {
        Error::Config {
            key: self.key(key),
            problem,
        }
    }

    /// The divisor of positions. Without a type, a factor means linear scaling, and files older
    /// than the type have their own key for it, as in llama.cpp.
    fn rope_scaling_factor(&self, architecture: Architecture) -> Result<f32> {
        let factor = |key: &str| self.metadata.f32(&self.key(key));
        let linear = || -> Result<Option<f32>> {
            match factor("rope.scaling.factor")? {
                Some(found) => Ok(Some(found)),
                None => Ok(factor("rope.scale_linear")?),
            }
        };
        match self.metadata.str(&self.key("rope.scaling.type"))? {
            Some("none") => Ok(1.0),
            Some("yarn") if architecture.has_yarn() => Ok(1.0),
            // A value of 0 means no scaling.
            None => Ok(linear()?.filter(|found| *found != 0.0).unwrap_or(1.0)),
            Some("linear") => linear()?.ok_or_else(|| {
                FileError::MetadataMissing {
                    key: self.key("rope.scaling.factor"),
                }
                .into()
            }),
            Some(other) => {
                let problem = format!("{:?}; none and linear are supported", shown(other));
                Err(self.error("rope.scaling.type", problem))
            }
        }
    }

    /// The numbers of YaRN, where the file asks for it.
    fn yarn(&self) -> Result<Option<Yarn>> {
        let name = |key: &str| format!("rope.scaling.{key}");
        if self.metadata.str(&self.key(&name("type")))? != Some("yarn") {
            return Ok(None);
        }
        let checked = |key: &str, found: f32| {
            if found.is_normal() && found > 0.0 && found <= 1e9 {
                return Ok(found);
            }
            let problem = format!("{found}, expected more than 0 and at most 1e9");
            Err(self.error(&name(key), problem))
        };
        let number = |key: &str, default: f32| {
            let found = self.metadata.f32(&self.key(&name(key)))?;
            checked(key, found.unwrap_or(default))
        };
        let factor = self.metadata.require_f32(&self.key(&name("factor")))?;
        let original = self.size(&name("original_context_length"), u32::MAX as usize)?;
        Ok(Some(Yarn {
            factor: checked("factor", factor)?,
            original_context: original as f32,
            ext_factor: number("yarn_ext_factor", 1.0)?,
            attn_factor: number("yarn_attn_factor", 1.0)?,
            beta_fast: number("yarn_beta_fast", 32.0)?,
            beta_slow: number("yarn_beta_slow", 1.0)?,
        }))
    }

    /// The factors of MiniCPM. Older files lack the keys: they hold one of the first models, whose
    /// configuration has these numbers.
    fn multipliers(&self, num_layers: usize, hidden_size: usize) -> Result<Multipliers> {
        let number = |key: &str, default: f32| {
            Ok::<_, Error>(self.metadata.f32(&self.key(key))?.unwrap_or(default))
        };
        Ok(Multipliers {
            embedding: number("embedding_scale", 12.0)?,
            residual: number("residual_scale", 1.4 / (num_layers as f32).sqrt())?,
            logits: number("logit_scale", hidden_size as f32 / 256.0)?,
        })
    }

    /// How the model pools. The published files with norms of inputs say `mean`, which their
    /// converter writes where it finds no setting; their makers take the last token, so these files
    /// pool like that.
    fn pooling(&self, has_input_norms: bool) -> Result<Option<Pooling>> {
        let key = "pooling_type";
        match self.metadata.u32(&self.key(key))? {
            _ if has_input_norms => Ok(Some(Pooling::Last)),
            None | Some(0) => Ok(None),
            Some(1) => Ok(Some(Pooling::Mean)),
            Some(2) => Ok(Some(Pooling::First)),
            Some(3) => Ok(Some(Pooling::Last)),
            Some(other) => {
                let problem = format!("{other}; 0 (none) to 3 (last) are supported");
                Err(self.error(key, problem))
            }
        }
    }

    /// The number of rotated elements of a head: all, except in graphs that rotate a part.
    fn rotary_dim(&self, architecture: Architecture, head_dim: usize) -> Result<usize> {
        let key = "rope.dimension_count";
        let Some(found) = self.optional_size(key, MAX_HEAD_DIM)? else {
            return Ok(head_dim);
        };
        let is_possible = if architecture == Architecture::Qwen35 {
            found <= head_dim && found.is_multiple_of(2)
        } else {
            found == head_dim
        };
        if is_possible {
            return Ok(found);
        }
        let problem = format!("{found}, but a head has {head_dim}");
        Err(self.error(key, problem))
    }

    /// Layers of the main pass, and layers that predict further tokens: these come after them and
    /// count as blocks, too.
    fn num_layers(&self, max: usize) -> Result<(usize, usize)> {
        let blocks = self.size("block_count", max)?;
        let key = "nextn_predict_layers";
        let nextn = self.metadata.u32(&self.key(key))?.unwrap_or(0) as usize;
        if nextn >= blocks {
            return Err(self.error(key, format!("{nextn} of {blocks} blocks")));
        }
        Ok((blocks - nextn, nextn))
    }

    /// The layers of linear attention, and their heads.
    fn linear_attention(&self, num_layers: usize) -> Result<LinearAttention> {
        let size = |key: &str| self.size(key, MAX_COLS);
        let head_dim = size("ssm.state_size")?;
        let shape = DeltaShape {
            key_heads: size("ssm.group_count")?,
            value_heads: size("ssm.time_step_rank")?,
            head_dim,
        };
        let product = |heads: usize| heads.checked_mul(head_dim).filter(|n| *n <= MAX_COLS);
        let widths = (product(shape.value_heads), product(2 * shape.key_heads));
        let (Some(inner), Some(_)) = widths else {
            let problem = format!(
                "{head_dim}, for {shape:?}; at most {MAX_COLS} numbers per row are supported"
            );
            return Err(self.error("ssm.state_size", problem));
        };
        if size("ssm.inner_size")? != inner {
            let problem = format!(
                "{}, but {} heads of {head_dim} are {inner}",
                size("ssm.inner_size")?,
                shape.value_heads
            );
            return Err(self.error("ssm.inner_size", problem));
        }
        if !shape.value_heads.is_multiple_of(shape.key_heads) {
            let problem = format!(
                "{}, not a multiple of {} key heads",
                shape.value_heads, shape.key_heads
            );
            return Err(self.error("ssm.time_step_rank", problem));
        }
        let taps = size("ssm.conv_kernel")?;
        if taps != CONV_TAPS {
            return Err(self.error(
                "ssm.conv_kernel",
                format!("{taps}; {CONV_TAPS} is supported"),
            ));
        }
        Ok(LinearAttention {
            shape,
            is_linear: self.linear_layers(num_layers)?,
        })
    }

    /// The kinds of the layers: as listed, else every fourth is full attention, or every n-th if
    /// the file says so.
    fn linear_layers(&self, num_layers: usize) -> Result<Vec<bool>> {
        let key = "attention.recurrent_layers";
        if let Some(list) = self.metadata.get(&self.key(key)) {
            let kinds: Option<Vec<bool>> = list
                .as_array()
                .and_then(|list| list.iter().map(|kind| kind.as_bool()).collect());
            return match kinds {
                Some(kinds) if kinds.len() >= num_layers => Ok(kinds[..num_layers].to_vec()),
                Some(kinds) => {
                    let problem = format!("a list of {} for {num_layers} layers", kinds.len());
                    Err(self.error(key, problem))
                }
                None => Err(self.error(key, "not a list of true and false".into())),
            };
        }
        let interval = self
            .optional_size("full_attention_interval", 1 << 16)?
            .unwrap_or(4);
        Ok((0..num_layers)
            .map(|layer| !(layer + 1).is_multiple_of(interval))
            .collect())
    }

    /// Refuses keys that llama.cpp supports and no graph here does.
    fn refuse_other_attention(&self) -> Result<()> {
        if self.metadata.bool(&self.key("attention.causal"))? == Some(false) {
            let problem = "false; only models whose tokens see no later ones are supported";
            return Err(self.error("attention.causal", problem.into()));
        }
        if let Some(window) = self.metadata.u32(&self.key("attention.sliding_window"))?
            && window != 0
            && self.architecture == Architecture::Gemma3.gguf_name()
        {
            let problem = format!("{window}; attention to all earlier tokens is supported");
            return Err(self.error("attention.sliding_window", problem));
        }
        match self.metadata.f32(&self.key("rope.scaling.attn_factor"))? {
            Some(found) if found != 1.0 => {
                let problem = format!("{found}; 1 is supported");
                Err(self.error("rope.scaling.attn_factor", problem))
            }
            _ => Ok(()),
        }
    }

    /// A required size of at least 1.
    fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?
            .ok_or_else(|| FileError::MetadataMissing { key: self.key(key) }.into())
    }

    /// A size of at least 1, also as a list with the same size for every layer.
    fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let name = self.key(key);
        let found = match self.metadata.get(&name).and_then(|value| value.as_array()) {
            Some(_) => self.of_all_layers(key)?,
            None => self.metadata.u32(&name)?,
        };
        match found.map(|found| found as usize) {
            Some(found) if !(1..=max).contains(&found) => {
                Err(self.error(key, format!("{found}, expected 1 to {max}")))
            }
            found => Ok(found),
        }
    }

    /// The number that all entries of a list have.
    fn of_all_layers(&self, key: &str) -> Result<Option<u32>> {
        let name = self.key(key);
        let Some(mut list) = self.metadata.i32s(&name)? else {
            return Ok(None);
        };
        let Some(first) = list.next() else {
            return Err(self.error(key, "an empty list; a number is expected".into()));
        };
        if let Some(other) = list.find(|other| *other != first) {
            let problem =
                format!("a list with {first} and {other}; layers of one shape are supported");
            return Err(self.error(key, problem));
        }
        u32::try_from(first)
            .map(Some)
            .map_err(|_| self.error(key, format!("a list of {first}, expected sizes above 0")))
    }
}
