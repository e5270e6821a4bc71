//! The configuration in the metadata of a GGUF file.

use bitnet_files::gguf::{Gguf, Metadata};
use bitnet_files::{Error as FileError, shown};
use bitnet_kernels::{AttentionShape, CONV_TAPS, DeltaShape, MAX_COLS, MAX_HEAD_DIM};

use super::{Architecture, Config, LinearAttention, Multipliers, Pooling, Yarn};
use crate::error::{Error, Result};

/// The architecture of files that llama.cpp reads beside a language model (`mmproj-*.gguf`).
const VISION_PROJECTOR: &str = "clip";
/// A tensor that only files with a norm for the input of each projection have.
const INPUT_NORM: &str = "blk.0.attn_q_norm_in.weight";

impl Config {
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
}

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
            Some("longrope") if architecture == Architecture::MiniCpm => {
                self.check_longrope()?;
                Ok(1.0)
            }
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

    /// LongRoPE's factors for longer texts, and a factor of cosines and sines, are not supported.
    fn check_longrope(&self) -> Result<()> {
        let context = self.size("context_length", u32::MAX as usize)?;
        let key = "rope.scaling.original_context_length";
        let original = self.optional_size(key, u32::MAX as usize)?;
        if let Some(original) = original.filter(|original| *original < context) {
            let problem = format!(
                "{original}, below the context length {context}; longrope is supported up to the former only"
            );
            return Err(self.error(key, problem));
        }
        let key = "rope.scaling.attn_factor";
        match self.metadata.f32(&self.key(key))? {
            Some(factor) if factor != 1.0 => {
                Err(self.error(key, format!("{factor}; 1 is supported")))
            }
            _ => Ok(()),
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
