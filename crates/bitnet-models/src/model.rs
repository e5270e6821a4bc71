//! [`LanguageModel`]: a model's weights, in the layout that the kernels stream, and how they come out of a file.

use std::collections::HashSet;
use std::sync::Arc;

use bitnet_kernels::{Norm, Part, Pool, TernaryMatrix, math};
use bitnet_quantization::i2_s;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorType, TensorView};
use crate::table::{Table, dense_format};

/// How to read a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// The arrangement of the codes in I2_S tensors, which no file states.
    pub i2_s_form: i2_s::Form,
}

/// A model, ready to run.
pub struct LanguageModel {
    pub(crate) config: Config,
    /// `[vocab, hidden]`
    pub(crate) embedding: Table,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`
    pub(crate) output_norm: Vec<f32>,
    /// `[vocab, hidden]`; the embedding again if the two are tied.
    pub(crate) head: Option<Table>,
    /// The angle a position turns each pair of a head by, `[head_dim / 2]`.
    pub(crate) rope_frequencies: Vec<f32>,
}

/// One transformer block.
pub(crate) struct Layer {
    /// `[hidden]`
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values: `[hidden] → [heads · head_dim], [kv_heads · head_dim] twice`
    pub qkv: TernaryMatrix,
    /// `[heads · head_dim]`
    pub attention_sub_norm: Option<Vec<f32>>,
    /// `[heads · head_dim] → [hidden]`
    pub attention_output: TernaryMatrix,
    /// `[hidden]`
    pub ffn_norm: Vec<f32>,
    /// `[hidden] → [ffn], [ffn]`
    pub gate_up: TernaryMatrix,
    /// `[ffn]`
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// `[ffn] → [hidden]`
    pub ffn_down: TernaryMatrix,
}

impl LanguageModel {
    /// Loads the model of a GGUF file: checks every shape, then repacks the ternary weights on all threads of `pool`.
    ///
    /// Embedding and head stay in the mapped file; the pages of the repacked tensors are given back to the system.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported, or the configuration is.
    pub fn from_gguf(gguf: &Arc<Gguf>, options: LoadOptions, pool: &Pool) -> Result<Self> {
        let config = Config::from_gguf(gguf)?;
        let mut loader = Loader { gguf, options, pool, config: &config, used: HashSet::new() };
        let hidden = config.hidden_size;
        let embedding = loader.table("token_embd.weight")?;
        let head = if gguf.tensor("output.weight").is_some() { Some(loader.table("output.weight")?) } else { None };
        let output_norm = loader.vector("output_norm.weight", hidden)?;
        let rope_frequencies = loader.rope_frequencies()?;
        loader.check_tensors()?;
        let layers = (0..config.num_layers).map(|index| loader.layer(index)).collect::<Result<_>>()?;
        Ok(Self { embedding, layers, output_norm, head, rope_frequencies, config })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the head is the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// The table that gives logits.
    #[must_use]
    pub fn head(&self) -> &Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The table that tokens are looked up in.
    #[must_use]
    pub fn embedding(&self) -> &Table {
        &self.embedding
    }

    /// Ternary weights, without padding.
    #[must_use]
    pub fn num_ternary_weights(&self) -> usize {
        self.matrices().map(TernaryMatrix::num_weights).sum()
    }

    /// Bytes of the repacked ternary weights: what a token reads of them.
    #[must_use]
    pub fn num_ternary_bytes(&self) -> usize {
        self.matrices().map(TernaryMatrix::num_bytes).sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &TernaryMatrix> {
        self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.ffn_down])
    }

    /// A norm with this model's epsilon.
    pub(crate) fn norm<'a>(&self, weight: &'a [f32]) -> Norm<'a> {
        Norm { weight, eps: self.config.rms_norm_eps }
    }
}

/// The tensors of a layer: name and whether only graphs with sub-norms have it.
const LAYER_TENSORS: [(&str, bool); 11] = [
    ("attn_norm", false),
    ("attn_q", false),
    ("attn_k", false),
    ("attn_v", false),
    ("attn_sub_norm", true),
    ("attn_output", false),
    ("ffn_norm", false),
    ("ffn_gate", false),
    ("ffn_up", false),
    ("ffn_sub_norm", true),
    ("ffn_down", false),
];

struct Loader<'a> {
    gguf: &'a Arc<Gguf>,
    options: LoadOptions,
    pool: &'a Pool,
    config: &'a Config,
    /// Tensors outside the layers that were read.
    used: HashSet<String>,
}

impl Loader<'_> {
    fn table(&mut self, name: &str) -> Result<Table> {
        self.used.insert(name.to_owned());
        Table::from_gguf(self.gguf, name, self.config.vocab_size, self.config.hidden_size)
    }

    /// The weights of a norm, `[len]`.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.used.insert(name.to_owned());
        let tensor = self.gguf.require_tensor(name)?;
        if (tensor.rows(), tensor.cols()) != (1, len) {
            return Err(Error::Shape { tensor: name.to_owned(), found: tensor.dims.to_vec(), expected: vec![len] });
        }
        let format = dense_format(tensor.dtype).ok_or_else(|| Error::TensorUse {
            tensor: name.to_owned(),
            found: tensor.dtype.name(),
            used_as: "a vector",
            supported: "F32, F16, BF16",
        })?;
        let mut values = vec![0.0f32; len];
        format.dequantize(tensor.data, &mut values).map_err(|source| Error::Tensor { tensor: name.to_owned(), source })?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::TensorValues {
                tensor: name.to_owned(),
                problem: format!("element {at} is {}", values[at]),
            }),
        }
    }

    /// `1 / theta^(2i / head_dim)` with the roundings to f32 that Hugging Face's implementation has, divided by the linear
    /// scaling factor and by the file's own factors where it has them.
    fn rope_frequencies(&mut self) -> Result<Vec<f32>> {
        let config = self.config;
        let half = config.attention.head_dim / 2;
        let factors = match self.gguf.tensor("rope_freqs.weight") {
            Some(_) => self.vector("rope_freqs.weight", half)?,
            None => vec![1.0; half],
        };
        let frequency = |(i, factor): (usize, &f32)| {
            let exponent = (2 * i) as f32 / config.attention.head_dim as f32;
            let power = math::pow_f64(f64::from(config.rope_theta), f64::from(exponent)) as f32;
            1.0 / power / factor / config.rope_scaling_factor
        };
        Ok(factors.iter().enumerate().map(frequency).collect())
    }

    /// Refuses a file with tensors that this graph would leave unused.
    fn check_tensors(&self) -> Result<()> {
        let config = self.config;
        let in_layer = |name: &str| {
            let (index, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            let known = LAYER_TENSORS.iter().any(|(part, sub_norm)| {
                rest.strip_suffix(".weight") == Some(part) && (!sub_norm || config.architecture.has_sub_norms())
            });
            (index.parse::<usize>().ok()? < config.num_layers && known).then_some(())
        };
        match self.gguf.tensors().find(|t| !self.used.contains(t.name) && in_layer(t.name).is_none()) {
            None => Ok(()),
            Some(tensor) => Err(Error::TensorUnknown {
                tensor: tensor.name.to_owned(),
                architecture: config.architecture_name.clone(),
                used: "token_embd, output, output_norm, rope_freqs and in each layer attn_norm, attn_q, attn_k, attn_v, \
                       attn_sub_norm, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_sub_norm, ffn_down (.weight)",
            }),
        }
    }

    fn layer(&mut self, index: usize) -> Result<Layer> {
        let config = self.config;
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let query = config.attention.heads * config.attention.head_dim;
        let key = config.attention.kv_heads * config.attention.head_dim;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let sub_norms = config.architecture.has_sub_norms();
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), hidden)?,
            qkv: self.matrix(&[(name("attn_q"), query), (name("attn_k"), key), (name("attn_v"), key)], hidden)?,
            attention_sub_norm: sub_norms.then(|| self.vector(&name("attn_sub_norm"), query)).transpose()?,
            attention_output: self.matrix(&[(name("attn_output"), hidden)], query)?,
            ffn_norm: self.vector(&name("ffn_norm"), hidden)?,
            gate_up: self.matrix(&[(name("ffn_gate"), ffn), (name("ffn_up"), ffn)], hidden)?,
            ffn_sub_norm: sub_norms.then(|| self.vector(&name("ffn_sub_norm"), ffn)).transpose()?,
            ffn_down: self.matrix(&[(name("ffn_down"), hidden)], ffn)?,
        })
    }

    /// Ternary tensors of equal width, stacked and repacked.
    fn matrix(&self, names: &[(String, usize)], cols: usize) -> Result<TernaryMatrix> {
        let tensors = names.iter().map(|(name, rows)| self.ternary(name, *rows, cols)).collect::<Result<Vec<_>>>()?;
        let parts = tensors
            .iter()
            .map(|tensor| {
                let scale = i2_s::scale(tensor.data, tensor.rows(), cols)
                    .map_err(|source| Error::Tensor { tensor: tensor.name.to_owned(), source })?;
                Ok(Part { rows: tensor.rows(), scale })
            })
            .collect::<Result<Vec<_>>>()?;
        let form = self.options.i2_s_form;
        let matrix = TernaryMatrix::pack(self.pool, &parts, cols, &|part, rows, codes| {
            let tensor = &tensors[part];
            i2_s::unpack_rows(tensor.data, form, tensor.rows(), cols, rows, codes)
                .map_err(|source| Error::Tensor { tensor: tensor.name.to_owned(), source })
        })?;
        tensors.iter().for_each(|tensor| self.gguf.advise_done(tensor.range()));
        Ok(matrix)
    }

    /// A ternary tensor of the given shape.
    fn ternary(&self, name: &str, rows: usize, cols: usize) -> Result<TensorView<'_>> {
        let tensor = self.gguf.require_tensor(name)?;
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            return Err(Error::Shape { tensor: name.to_owned(), found: tensor.dims.to_vec(), expected: vec![cols, rows] });
        }
        if tensor.dtype != TensorType::I2_S {
            return Err(Error::TensorUse {
                tensor: name.to_owned(),
                found: tensor.dtype.name(),
                used_as: "a projection",
                supported: "I2_S",
            });
        }
        Ok(tensor)
    }
}
