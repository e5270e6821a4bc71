//! [`LanguageModel`]: a model's weights, in the layout that the kernels stream, and how they come out of a file.

use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::{BLOCK_ROWS, Cpu, Norm, Packing, Part, ScreenTable, TernaryMatrix, math};
use bitnet_quantization::{i2_s, tl1, tl2};

use crate::config::Config;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::gguf::source::GgufSource;
use crate::huggingface::Checkpoint;
use crate::source::{LayerSlot, Projection, Slot, Source};
use crate::table::Table;

/// How to read what a model's files leave unsaid.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The arrangement of the codes in I2_S tensors, which no file states.
    pub i2_s_form: i2_s::Form,
    /// The tiles of TL1 tensors by shape (rows, cols), before those that the file states and those that are known.
    pub tl1_tiles: Vec<((usize, usize), tl1::Tile)>,
    /// The same for TL2 tensors.
    pub tl2_tiles: Vec<((usize, usize), tl2::Tile)>,
    /// How logits are computed.
    pub head: HeadMode,
    /// How ternary weights are packed; as the kernels in use like it best if not given.
    pub packing: Option<Packing>,
}

/// How the logits that sampling needs are computed; what is sampled does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadMode {
    /// All, in full.
    Full,
    /// Estimated from an 8-bit copy of the head; those that can matter then in full.
    Screened,
    /// Screened if the head is too large for a cache.
    #[default]
    Auto,
}

impl HeadMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Full, Self::Screened, Self::Auto];

    /// What `--head` calls it.
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

    /// The 8-bit copy of a head that it asks for.
    fn screen(self, head: &Table, cpu: &Cpu) -> Option<ScreenTable> {
        let is_large = head.rows() * head.row_bytes() >= SCREENED_BYTES;
        if self == Self::Full || self == Self::Auto && !is_large {
            return None;
        }
        let screen =
            ScreenTable::pack(cpu.set(), cpu.pool(), head.rows(), head.cols(), &|row, out| head.read_row(row, out));
        head.advise_done();
        Some(screen)
    }
}

/// From this size on a head is screened: it would have to come from memory for every token.
const SCREENED_BYTES: usize = 16 << 20;

/// A model, ready to run.
pub struct LanguageModel {
    pub(crate) config: Config,
    packing: Packing,
    /// `[vocab, hidden]`
    pub(crate) embedding: Table,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`
    pub(crate) output_norm: RmsNorm,
    /// `[vocab, hidden]`; the embedding again if the two are tied.
    pub(crate) head: Option<Table>,
    /// The head in 8 bits, where logits are estimated from it first.
    pub(crate) screen: Option<ScreenTable>,
    /// The angle a position turns each pair of a head by, `[head_dim / 2]`.
    pub(crate) rope_frequencies: Vec<f32>,
}

/// One transformer block.
pub(crate) struct Layer {
    /// `[hidden]`
    pub attention_norm: RmsNorm,
    /// Queries, keys and values: `[hidden] → [heads · head_dim], [kv_heads · head_dim] twice`
    pub qkv: Projections,
    /// `[heads · head_dim]`
    pub attention_output_norm: Option<RmsNorm>,
    /// `[heads · head_dim] → [hidden]`
    pub attention_output: TernaryMatrix,
    /// `[hidden]`
    pub ffn_norm: RmsNorm,
    /// `[hidden] → [ffn], [ffn]`
    pub gate_up: Projections,
    /// `[ffn]`
    pub ffn_down_norm: Option<RmsNorm>,
    /// `[ffn] → [hidden]`
    pub ffn_down: TernaryMatrix,
}

/// A root-mean-square norm.
pub(crate) struct RmsNorm {
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl RmsNorm {
    /// As the kernels take it.
    pub(crate) fn view(&self) -> Norm<'_> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}

/// Projections of one input. Their outputs lie one after the other, each padded to [`BLOCK_ROWS`].
pub(crate) enum Projections {
    /// All see the same quantized input: one pass.
    Stacked(TernaryMatrix),
    /// Each normalises the input once more, with weights of its own, and so quantizes it by itself.
    Normed(Vec<(RmsNorm, TernaryMatrix)>),
}

impl Projections {
    fn matrices(&self) -> impl Iterator<Item = &TernaryMatrix> {
        let (stacked, normed) = match self {
            Self::Stacked(matrix) => (Some(matrix), &[][..]),
            Self::Normed(matrices) => (None, &matrices[..]),
        };
        stacked.into_iter().chain(normed.iter().map(|(_, matrix)| matrix))
    }

    /// The length of an output row.
    pub(crate) fn output_len(&self) -> usize {
        self.matrices().map(TernaryMatrix::output_len).sum()
    }

    /// Where a projection's output lies in an output row.
    pub(crate) fn output_range(&self, index: usize) -> Range<usize> {
        match self {
            Self::Stacked(matrix) => matrix.output_range(index),
            Self::Normed(matrices) => {
                let start: usize = matrices[..index].iter().map(|(_, matrix)| matrix.output_len()).sum();
                debug_assert!(start.is_multiple_of(BLOCK_ROWS));
                start..start + matrices[index].1.parts()[0].rows
            }
        }
    }
}

impl LanguageModel {
    /// Loads the model of a GGUF file: checks every shape, then repacks the ternary weights on all threads of `cpu`.
    ///
    /// Embedding and head stay in the mapped file; the pages of the repacked tensors are given back to the system.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported, or the configuration is.
    pub fn from_gguf(gguf: &Arc<Gguf>, options: &LoadOptions, cpu: &Cpu) -> Result<Self> {
        Self::load(&GgufSource::new(gguf, options)?, options, cpu)
    }

    /// Loads the model of a Hugging Face directory, in the same way. Float weights are quantized as they are read.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions, cpu: &Cpu) -> Result<Self> {
        Self::load(checkpoint, options, cpu)
    }

    fn load(source: &dyn Source, options: &LoadOptions, cpu: &Cpu) -> Result<Self> {
        source.check_tensors()?;
        let config = source.config().clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let packing = options.packing.unwrap_or(cpu.set().packing);
        let loader = Loader { source, config: &config, packing, cpu };
        let head = source.has_head().then(|| source.table(Slot::Head, vocab, hidden)).transpose()?;
        let embedding = source.table(Slot::Embedding, vocab, hidden)?;
        Ok(Self {
            screen: options.head.screen(head.as_ref().unwrap_or(&embedding), cpu),
            embedding,
            head,
            output_norm: loader.norm(Slot::OutputNorm, hidden)?,
            rope_frequencies: loader.rope_frequencies()?,
            layers: (0..config.num_layers).map(|index| loader.layer(index)).collect::<Result<_>>()?,
            packing,
            config,
        })
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

    /// Whether logits are estimated from an 8-bit copy of the head first, and the bytes of that copy.
    #[must_use]
    pub fn screen_bytes(&self) -> Option<usize> {
        self.screen.as_ref().map(ScreenTable::num_bytes)
    }

    /// The table that tokens are looked up in.
    #[must_use]
    pub fn embedding(&self) -> &Table {
        &self.embedding
    }

    /// How ternary weights are packed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Bytes of the packed ternary weights, padding included: what a pass over the model reads of them.
    #[must_use]
    pub fn num_ternary_bytes(&self) -> usize {
        self.matrices().map(TernaryMatrix::num_bytes).sum()
    }

    /// Ternary weights, without padding.
    #[must_use]
    pub fn num_ternary_weights(&self) -> usize {
        self.matrices().map(TernaryMatrix::num_weights).sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &TernaryMatrix> {
        self.layers.iter().flat_map(|layer| {
            let stacks = layer.qkv.matrices().chain(layer.gate_up.matrices());
            stacks.chain([&layer.attention_output, &layer.ffn_down])
        })
    }
}

/// Takes a model out of its source.
struct Loader<'a> {
    source: &'a dyn Source,
    config: &'a Config,
    packing: Packing,
    cpu: &'a Cpu,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        let hidden = self.config.hidden_size;
        let norm = |slot| self.norm(Slot::Layer(index, slot), hidden);
        Ok(Layer {
            attention_norm: norm(LayerSlot::AttentionNorm)?,
            qkv: self.projections(index, &[Projection::Query, Projection::Key, Projection::Value])?,
            attention_output_norm: self.inner_norm(index, LayerSlot::AttentionSubNorm, Projection::AttentionOutput)?,
            attention_output: self.stack(index, &[Projection::AttentionOutput])?,
            ffn_norm: norm(LayerSlot::FfnNorm)?,
            gate_up: self.projections(index, &[Projection::Gate, Projection::Up])?,
            ffn_down_norm: self.inner_norm(index, LayerSlot::FfnSubNorm, Projection::Down)?,
            ffn_down: self.stack(index, &[Projection::Down])?,
        })
    }

    /// A norm with the model's epsilon, or the projection's own where it is one's input norm.
    fn norm(&self, slot: Slot, len: usize) -> Result<RmsNorm> {
        let eps = match slot {
            Slot::Layer(_, LayerSlot::InputNorm(_)) => self.config.input_norm_eps,
            _ => None,
        };
        Ok(RmsNorm { weight: self.source.vector(slot, len)?, eps: eps.unwrap_or(self.config.rms_norm_eps) })
    }

    /// The norm before an output projection: the graph's sub-norm or the projection's own. No graph has both.
    fn inner_norm(&self, index: usize, sub_norm: LayerSlot, projection: Projection) -> Result<Option<RmsNorm>> {
        let (_, len) = projection.shape(self.config);
        let slots = [sub_norm, LayerSlot::InputNorm(projection)];
        let slot = slots.into_iter().find(|slot| slot.is_used(self.config));
        slot.map(|slot| self.norm(Slot::Layer(index, slot), len)).transpose()
    }

    /// Projections of one input: stacked, unless each has a norm of its own.
    fn projections(&self, index: usize, projections: &[Projection]) -> Result<Projections> {
        if self.config.input_norm_eps.is_none() {
            return Ok(Projections::Stacked(self.stack(index, projections)?));
        }
        let normed = projections.iter().map(|&projection| {
            let (_, len) = projection.shape(self.config);
            let norm = self.norm(Slot::Layer(index, LayerSlot::InputNorm(projection)), len)?;
            Ok((norm, self.stack(index, &[projection])?))
        });
        Ok(Projections::Normed(normed.collect::<Result<_>>()?))
    }

    /// Ternary tensors of equal width, stacked and repacked.
    fn stack(&self, index: usize, projections: &[Projection]) -> Result<TernaryMatrix> {
        let tensor = |&projection: &Projection| {
            let (rows, cols) = projection.shape(self.config);
            self.source.projection(index, projection, rows, cols, self.cpu.pool())
        };
        let tensors = projections.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        tensors.iter().for_each(|tensor| tensor.data.advise_sequential());
        let parts: Vec<Part> = tensors.iter().map(|tensor| Part { rows: tensor.rows, scale: tensor.scale }).collect();
        let matrix =
            TernaryMatrix::pack(self.cpu.pool(), &parts, tensors[0].cols, self.packing, &|part, rows, codes| {
                tensors[part].unpack_rows(rows, codes)
            })?;
        tensors.iter().for_each(|tensor| tensor.data.advise_done());
        Ok(matrix)
    }

    /// `1 / theta^(2i / head_dim)` with the roundings to f32 that Hugging Face's implementation has, divided by the linear
    /// scaling factor and by the model's own factors where it has them.
    fn rope_frequencies(&self) -> Result<Vec<f32>> {
        let config = self.config;
        let head_dim = config.attention.head_dim;
        let factors = self.source.rope_factors()?.unwrap_or_else(|| vec![1.0; head_dim / 2]);
        let frequency = |(i, factor): (usize, &f32)| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            let power = math::pow_f64(f64::from(config.rope_theta), f64::from(exponent)) as f32;
            1.0 / power / factor / config.rope_scaling_factor
        };
        Ok(factors.iter().enumerate().map(frequency).collect())
    }
}
