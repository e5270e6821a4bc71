//! [`Config`]: the shape of a model and the few things in which the published graphs differ.

use bitnet_files::gguf::{Gguf, Metadata};
use bitnet_files::{Error as FileError, shown};
use bitnet_kernels::{AttentionShape, Gate, MAX_COLS, MAX_HEAD_DIM};

use crate::error::{Error, Result};

/// The graphs that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// BitNet b1.58 2B-4T: squared ReLU, a norm before each output projection, half-split rotation.
    BitnetB158,
    /// The 1bitLLM models: as above, with SiLU.
    Bitnet,
    /// Llama with ternary projections: SiLU, no extra norms.
    Llama,
}

/// Where a file keeps the two elements of each pair that the rotary embedding rotates.
///
/// The graph has them half a head apart; the loader puts the rows of other files back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + head_dim/2)`
    HalfSplit,
    /// `(2i, 2i + 1)`
    Interleaved,
}

impl Architecture {
    /// The names in `general.architecture` that mean each graph.
    const NAMES: [(&'static str, Self); 7] = [
        ("bitnet-b1.58", Self::BitnetB158),
        ("bitnet_b1_58", Self::BitnetB158),
        ("bitnet-25", Self::BitnetB158),
        ("bitnet25", Self::BitnetB158),
        ("bitnet158", Self::BitnetB158),
        ("bitnet", Self::Bitnet),
        ("llama", Self::Llama),
    ];

    /// The graph that a file calls by this name.
    ///
    /// # Errors
    /// If there is none; the error lists those there are.
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

    /// What gates the feed-forward network.
    #[must_use]
    pub fn gate(self) -> Gate {
        match self {
            Self::BitnetB158 => Gate::Relu2,
            Self::Bitnet | Self::Llama => Gate::Silu,
        }
    }

    /// Whether the inputs of the attention's and the feed-forward network's output projections are
    /// normalised.
    #[must_use]
    pub fn has_sub_norms(self) -> bool {
        self != Self::Llama
    }

    /// Where GGUF files of this architecture keep the pairs that the rotary embedding rotates.
    #[must_use]
    pub fn gguf_rope_pairs(self) -> RopePairs {
        match self {
            Self::BitnetB158 | Self::Bitnet => RopePairs::HalfSplit,
            Self::Llama => RopePairs::Interleaved,
        }
    }

    /// The name that GGUF files are written with.
    #[must_use]
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet => "bitnet",
            Self::Llama => "llama",
        }
    }
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The graph.
    pub architecture: Architecture,
    /// What the file calls the architecture.
    pub architecture_name: String,
    /// What the file calls the model, if anything.
    pub name: Option<String>,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Length of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Heads and their length.
    pub attention: AttentionShape,
    /// Inner length of the feed-forward network.
    pub ffn_size: usize,
    /// Positions that the model was trained for.
    pub context_length: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// What positions are divided by (linear scaling); 1 for none.
    pub rope_scaling_factor: f32,
    /// Where the file keeps the pairs that are rotated.
    pub rope_pairs: RopePairs,
    /// Epsilon of the norms that each projection has of its own (`use_rms_norm`); `None` where
    /// projections have none.
    pub input_norm_eps: Option<f32>,
}

impl Config {
    /// Reads the configuration in the metadata of a GGUF file.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type, out of range, or contradicts another.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        let architecture_name = metadata.require_str("general.architecture")?.to_owned();
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
        let head_dim = match keys.optional_size("attention.key_length", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem = format!("{heads} heads do not divide embedding_length {hidden_size}");
                return Err(keys.error("attention.head_count", problem));
            }
        };
        for key in ["rope.dimension_count", "attention.value_length"] {
            if let Some(found) = metadata.u32(&keys.key(key))?
                && found as usize != head_dim
            {
                return Err(keys.error(
                    key,
                    format!(
                        "{found}, but a head has {head_dim}; partial rotation and unequal lengths are not supported"
                    ),
                ));
            }
        }
        keys.refuse_other_attention()?;
        let vocab_size = gguf.require_tensor("token_embd.weight")?.rows();
        if let Some(stated) = metadata.u32(&keys.key("vocab_size"))?
            && stated as usize != vocab_size
        {
            return Err(keys.error(
                "vocab_size",
                format!("{stated}, but token_embd.weight has {vocab_size} rows"),
            ));
        }
        Self {
            architecture,
            name: metadata.str("general.name")?.map(str::to_owned),
            vocab_size,
            hidden_size,
            num_layers: keys.size("block_count", gguf.tensors().len())?,
            attention: AttentionShape {
                heads,
                kv_heads,
                head_dim,
            },
            ffn_size: keys.size("feed_forward_length", MAX_COLS)?,
            context_length: keys.size("context_length", u32::MAX as usize)?,
            rms_norm_eps: metadata.require_f32(&keys.key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: metadata
                .f32(&keys.key("rope.freq_base"))?
                .unwrap_or(10_000.0),
            rope_scaling_factor: keys.rope_scaling_factor()?,
            rope_pairs: architecture.gguf_rope_pairs(),
            input_norm_eps: None,
            architecture_name,
        }
        .checked()
    }

    /// Checks what every source of a configuration must hold to.
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
                format!("{heads}, no multiple of {kv_heads} key/value heads"),
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
        ] {
            if !(value.is_normal() && value > 0.0 && value <= max) {
                return wrong(
                    key,
                    format!("{value}; more than 0 and at most {max} is possible"),
                );
            }
        }
        Ok(self)
    }
}

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn error(&self, key: &str, problem: String) -> Error {
        Error::Config {
            key: self.key(key),
            problem,
        }
    }

    /// What positions are divided by. Without a type, a factor means linear scaling, and files
    /// older than the type have their own key for it, as in llama.cpp.
    fn rope_scaling_factor(&self) -> Result<f32> {
        let factor = |key: &str| self.metadata.f32(&self.key(key));
        let linear = || -> Result<Option<f32>> {
            match factor("rope.scaling.factor")? {
                Some(found) => Ok(Some(found)),
                None => Ok(factor("rope.scale_linear")?),
            }
        };
        match self.metadata.str(&self.key("rope.scaling.type"))? {
            Some("none") => Ok(1.0),
            // 0 states that there is no scaling.
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

    /// Refuses keys that llama.cpp obeys and that no graph here has.
    fn refuse_other_attention(&self) -> Result<()> {
        if self.metadata.bool(&self.key("attention.causal"))? == Some(false) {
            let problem = "false; only models whose tokens see no later ones are supported";
            return Err(self.error("attention.causal", problem.into()));
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
                Err(self.error(key, format!("{found}; 1 to {max} is possible")))
            }
            found => Ok(found),
        }
    }

    /// The number that a list repeats.
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
        u32::try_from(first).map(Some).map_err(|_| {
            self.error(
                key,
                format!("a list of {first}; sizes above 0 are possible"),
            )
        })
    }
}
