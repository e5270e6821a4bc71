//! [`LanguageModel`]: a model's weights on a backend, and how they come out of a file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{BLOCK_ROWS, Packing, Part, Unpack, math};
use bitnet_quantization::{i2_s, tl1, tl2};

use crate::backend::{Backend, HeadColumns, NeuronColumns, RmsNorm, Stack};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::huggingface::Checkpoint;
use crate::source::gguf::GgufSource;
use crate::source::{LayerSlot, Projection, Slot, Source, TernaryTensor};
use crate::sparsity::FfnSparsity;

/// How to read and hold a model: facts that its files leave out, and choices that change no result.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The arrangement of the codes in I2_S tensors, which no file states.
    pub i2_s_form: i2_s::Form,
    /// The tiles of TL1 tensors by shape (rows, cols), before those that the file states and those
    /// that are known.
    pub tl1_tiles: Vec<((usize, usize), tl1::Tile)>,
    /// The same for TL2 tensors.
    pub tl2_tiles: Vec<((usize, usize), tl2::Tile)>,
    /// How logits are computed.
    pub head: HeadMode,
    /// How ternary weights are packed; if not given, as suits the kernels in use best.
    pub packing: Option<Packing>,
    /// The same for matrices of one shape ([`matrix_shapes`]), before `packing`.
    pub packings: Vec<((usize, usize), Packing)>,
    /// Whether feed-forward networks skip weights that add nothing.
    pub ffn_sparsity: FfnSparsity,
}

impl LoadOptions {
    /// The layout asked for a matrix, by its shape in [`matrix_shapes`].
    pub(crate) fn packing(&self, shape: (usize, usize)) -> Option<Packing> {
        let of_shape = self.packings.iter().find(|(known, _)| *known == shape);
        of_shape.map(|(_, packing)| *packing).or(self.packing)
    }
}

/// How the logits that sampling needs are computed; the sampled tokens do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadMode {
    /// All, in full.
    Full,
    /// Estimated from an 8-bit copy of the head; then exactly for the tokens that can matter.
    Screened,
    /// Screened if the head is too large for a cache.
    #[default]
    Auto,
}

impl HeadMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Full, Self::Screened, Self::Auto];

    /// Its name for `--head`.
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
}

/// A model, ready to run.
pub struct LanguageModel<B: Backend> {
    pub(crate) config: Config,
    /// `[vocab, hidden]`
    pub(crate) embedding: B::Table,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) ffn_sparsity: FfnSparsity,
    /// `[hidden]`
    pub(crate) output_norm: RmsNorm<B>,
    /// `[vocab, hidden]`; the embedding again if the two are tied.
    head: Option<B::Table>,
    /// The angle by which one position rotates each pair of a head, `[head_dim / 2]`.
    pub(crate) rope_frequencies: B::Vector,
    /// How the source holds the ternary weights.
    quantization: String,
}

/// One transformer block.
pub(crate) struct Layer<B: Backend> {
    /// `[hidden]`
    pub attention_norm: RmsNorm<B>,
    /// Queries, keys and values: `[hidden] → [heads · head_dim], [kv_heads · head_dim] twice`
    pub qkv: Projections<B>,
    /// Where the output of `qkv` has them.
    pub heads: HeadColumns,
    /// `[heads · head_dim]`
    pub attention_output_norm: Option<RmsNorm<B>>,
    /// `[heads · head_dim] → [hidden]`
    pub attention_output: B::Matrix,
    /// `[hidden]`
    pub ffn_norm: RmsNorm<B>,
    /// `[hidden] → [ffn], [ffn]`
    pub gate_up: Projections<B>,
    /// Where the output of `gate_up` has them, and which neurons they are.
    pub neurons: NeuronColumns,
    /// `[ffn]`
    pub ffn_down_norm: Option<RmsNorm<B>>,
    /// `[ffn] → [hidden]`
    pub ffn_down: B::Matrix,
}

/// Projections of one input.
pub(crate) struct Projections<B: Backend> {
    /// The columns of each projection's output. Each begins at a multiple of [`BLOCK_ROWS`].
    pub columns: Vec<Range<usize>>,
    /// The length of an output row.
    pub output_len: usize,
    pub products: Products<B>,
}

/// How projections of one input are multiplied.
pub(crate) enum Products<B: Backend> {
    /// All take the same rounded input: one product.
    Stacked(B::Matrix),
    /// Each normalises the input once more, with weights of its own.
    Normed(Vec<(RmsNorm<B>, B::Matrix)>),
}

impl<B: Backend> Projections<B> {
    /// Projections with these numbers of rows.
    fn new(rows: impl Iterator<Item = usize>, products: Products<B>) -> Self {
        let (mut columns, mut output_len) = (Vec::new(), 0);
        for rows in rows {
            columns.push(output_len..output_len + rows);
            output_len += rows.next_multiple_of(BLOCK_ROWS);
        }
        Self {
            columns,
            output_len,
            products,
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        let (stacked, normed) = match &self.products {
            Products::Stacked(matrix) => (Some(matrix), &[][..]),
            Products::Normed(products) => (None, &products[..]),
        };
        stacked
            .into_iter()
            .chain(normed.iter().map(|(_, matrix)| matrix))
    }

    /// The matrix of all projections, if they are stacked.
    pub(crate) fn stacked(&self) -> Option<&B::Matrix> {
        match &self.products {
            Products::Stacked(matrix) => Some(matrix),
            Products::Normed(_) => None,
        }
    }
}

impl<B: Backend> LanguageModel<B> {
    /// Loads the model of a GGUF file: checks every shape, then packs the weights for `backend`.
    ///
    /// Embedding and head stay in the mapped file; the pages of the packed tensors are given back
    /// to the system.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported, or the
    /// configuration is.
    pub fn from_gguf(gguf: &Arc<Gguf>, options: &LoadOptions, backend: &B) -> Result<Self> {
        Self::load(&GgufSource::new(gguf, options)?, options, backend, true)
    }

    /// Loads the model of a Hugging Face directory, in the same way. Float weights are quantized as
    /// they are read.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        backend: &B,
    ) -> Result<Self> {
        Self::load(checkpoint, options, backend, true)
    }

    /// `drops_dead`: whether the backend may leave out neurons that are always zero, which changes
    /// nothing but the time.
    pub(crate) fn load(
        source: &dyn Source,
        options: &LoadOptions,
        backend: &B,
        drops_dead: bool,
    ) -> Result<Self> {
        source.check_tensors()?;
        let config = source.config().clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let loader = Loader {
            source,
            config: &config,
            options,
            backend,
            drops_dead: drops_dead && backend.leaves_out_dead_neurons(),
            formats: RefCell::default(),
        };
        let table = |slot, gives_logits| {
            let table = source.table(slot, vocab, hidden)?;
            Ok::<_, Error>(backend.table(table, gives_logits, options))
        };
        let head = source
            .has_head()
            .then(|| table(Slot::Head, true))
            .transpose()?;
        let mut model = Self {
            embedding: table(Slot::Embedding, head.is_none())?,
            head,
            output_norm: loader.norm(Slot::OutputNorm, hidden)?,
            rope_frequencies: backend.vector(loader.rope_frequencies()?),
            layers: (0..config.num_layers)
                .map(|index| loader.layer(index))
                .collect::<Result<_>>()?,
            ffn_sparsity: options.ffn_sparsity,
            quantization: loader
                .formats
                .take()
                .into_iter()
                .collect::<Vec<_>>()
                .join(" + "),
            config,
        };
        backend.finish(&mut model)?;
        Ok(model)
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
    pub fn head(&self) -> &B::Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// How logits are computed: in full or screened.
    #[must_use]
    pub fn head_mode(&self) -> HeadMode {
        if B::table_facts(self.head()).screen_bytes.is_some() {
            HeadMode::Screened
        } else {
            HeadMode::Full
        }
    }

    /// The table that tokens are looked up in.
    #[must_use]
    pub fn embedding(&self) -> &B::Table {
        &self.embedding
    }

    /// How the files held the ternary weights: `I2_S`, for instance; several formats joined by ` +
    /// `.
    #[must_use]
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// How ternary weights are packed: `1.67`; `1.67+tl2` where it is not the same for all.
    #[must_use]
    pub fn packing(&self) -> String {
        let names: BTreeSet<&str> = self
            .matrices()
            .map(|matrix| B::matrix_facts(matrix).packing)
            .collect();
        let mut names: Vec<&str> = names.into_iter().collect();
        // In the order in which all packings are listed.
        names.sort_by_key(|name| Packing::ALL.iter().position(|known| known.name() == *name));
        names.join("+")
    }

    /// Bytes of the packed ternary weights, padding included: a dense pass over the model reads
    /// them once.
    #[must_use]
    pub fn num_ternary_bytes(&self) -> usize {
        self.matrices()
            .map(|matrix| B::matrix_facts(matrix).num_bytes)
            .sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        self.layers.iter().flat_map(|layer| {
            let stacks = layer.qkv.matrices().chain(layer.gate_up.matrices());
            stacks.chain([&layer.attention_output, &layer.ffn_down])
        })
    }

    /// Ternary weights of the model, those of dead neurons included.
    #[must_use]
    pub fn num_ternary_weights(&self) -> usize {
        let shapes = Projection::ALL.map(|projection| projection.shape(&self.config));
        self.config.num_layers * shapes.iter().map(|(rows, cols)| rows * cols).sum::<usize>()
    }
}

/// Gate and up, down, and the positions of the neurons that they hold, if not all.
type FeedForward<B> = (Projections<B>, <B as Backend>::Matrix, Option<Vec<u32>>);

/// Projections with the same input: one product, unless each has an input norm of its own.
const QKV: [Projection; 3] = [Projection::Query, Projection::Key, Projection::Value];
const GATE_UP: [Projection; 2] = [Projection::Gate, Projection::Up];

/// The shapes (rows, cols) of the matrices of a layer, in the order in which a token meets them;
/// projections that are multiplied at once are one matrix.
#[must_use]
pub fn matrix_shapes(config: &Config) -> Vec<(usize, usize)> {
    let stacks: [&[Projection]; 4] = [
        &QKV,
        &[Projection::AttentionOutput],
        &GATE_UP,
        &[Projection::Down],
    ];
    let at_once = |stack: &[Projection]| {
        if config.input_norm_eps.is_some() {
            1
        } else {
            stack.len()
        }
    };
    let shape = |projections: &[Projection]| {
        let rows = projections
            .iter()
            .map(|projection| projection.shape(config).0)
            .sum();
        (rows, projections[0].shape(config).1)
    };
    stacks
        .iter()
        .flat_map(|stack| stack.chunks(at_once(stack)).map(shape))
        .collect()
}

/// Takes a model out of its source.
struct Loader<'a, B> {
    source: &'a dyn Source,
    config: &'a Config,
    options: &'a LoadOptions,
    backend: &'a B,
    drops_dead: bool,
    /// The formats of the ternary tensors read so far.
    formats: RefCell<BTreeSet<String>>,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, index: usize) -> Result<Layer<B>> {
        let hidden = self.config.hidden_size;
        let norm = |slot| self.norm(Slot::Layer(index, slot), hidden);
        let attention_norm = norm(LayerSlot::AttentionNorm)?;
        let qkv = self.projections(index, &QKV)?;
        let attention_output_norm = self.inner_norm(
            index,
            LayerSlot::AttentionSubNorm,
            Projection::AttentionOutput,
        )?;
        let attention_output = self.stack(index, &[Projection::AttentionOutput])?;
        let ffn_norm = norm(LayerSlot::FfnNorm)?;
        let (gate_up, ffn_down, live) = self.feed_forward(index)?;
        Ok(Layer {
            attention_norm,
            heads: HeadColumns {
                shape: self.config.attention,
                queries: qkv.columns[0].clone(),
                keys: qkv.columns[1].clone(),
                values: qkv.columns[2].clone(),
            },
            qkv,
            attention_output_norm,
            attention_output,
            ffn_norm,
            neurons: NeuronColumns {
                gate: self.config.architecture.gate(),
                gates: gate_up.columns[0].clone(),
                ups: gate_up.columns[1].clone(),
                num_neurons: self.config.ffn_size,
                live,
            },
            gate_up,
            ffn_down_norm: self.inner_norm(index, LayerSlot::FfnSubNorm, Projection::Down)?,
            ffn_down,
        })
    }

    /// A norm with the model's epsilon, or the projection's own where it is one's input norm.
    fn norm(&self, slot: Slot, len: usize) -> Result<RmsNorm<B>> {
        let eps = match slot {
            Slot::Layer(_, LayerSlot::InputNorm(_)) => self.config.input_norm_eps,
            _ => None,
        };
        Ok(RmsNorm {
            weight: self.backend.vector(self.source.vector(slot, len)?),
            eps: eps.unwrap_or(self.config.rms_norm_eps),
        })
    }

    /// The norm before an output projection: the graph's sub-norm or the projection's own. No graph
    /// has both.
    fn inner_norm(
        &self,
        index: usize,
        sub_norm: LayerSlot,
        projection: Projection,
    ) -> Result<Option<RmsNorm<B>>> {
        let (_, len) = projection.shape(self.config);
        let slots = [sub_norm, LayerSlot::InputNorm(projection)];
        let slot = slots.into_iter().find(|slot| slot.is_used(self.config));
        slot.map(|slot| self.norm(Slot::Layer(index, slot), len))
            .transpose()
    }

    /// Projections of one input: stacked, unless each has a norm of its own.
    fn projections(&self, index: usize, projections: &[Projection]) -> Result<Projections<B>> {
        let rows = projections
            .iter()
            .map(|projection| projection.shape(self.config).0);
        if self.config.input_norm_eps.is_none() {
            let products = Products::Stacked(self.stack(index, projections)?);
            return Ok(Projections::new(rows, products));
        }
        let normed = projections.iter().map(|&projection| {
            let (_, len) = projection.shape(self.config);
            let norm = self.norm(Slot::Layer(index, LayerSlot::InputNorm(projection)), len)?;
            Ok((norm, self.stack(index, &[projection])?))
        });
        let products = Products::Normed(normed.collect::<Result<_>>()?);
        Ok(Projections::new(rows, products))
    }

    /// Gate and up, down, and which neurons they have, if not all.
    ///
    /// A neuron whose row of gate or of up is all zero gives zero for any input: trained models
    /// have hundreds in some layers. Where they would fill a block, the rows of gate and up and the
    /// columns of down are those of the other neurons only.
    fn feed_forward(&self, index: usize) -> Result<FeedForward<B>> {
        if self.config.input_norm_eps.is_some() {
            let gate_up = self.projections(index, &GATE_UP)?;
            return Ok((gate_up, self.stack(index, &[Projection::Down])?, None));
        }
        let ffn = self.config.ffn_size;
        let gate_up = self.tensors(index, &GATE_UP)?;
        let down = self.tensors(index, &[Projection::Down])?;
        let is_dead: Vec<AtomicBool> = (0..ffn).map(|_| AtomicBool::new(false)).collect();
        let mut stack = self.gate_up(&gate_up, ffn, &|part, rows, codes| {
            gate_up[part].unpack_rows(rows.clone(), codes)?;
            for (row, codes) in rows.zip(codes.chunks_exact(self.config.hidden_size)) {
                if codes.iter().all(|code| *code == 0) {
                    is_dead[row].store(true, Ordering::Relaxed);
                }
            }
            Ok(())
        })?;
        let mut live: Vec<u32> = (0..ffn as u32)
            .filter(|row| !is_dead[*row as usize].load(Ordering::Relaxed))
            .collect();
        if live.is_empty() {
            live.push(0);
        }
        let has_block = self.drops_dead && ffn - live.len() >= BLOCK_ROWS;
        let live = has_block.then_some(live);
        if let Some(live) = &live {
            stack = self.gate_up(&gate_up, live.len(), &|part, rows, codes| {
                let codes = codes.chunks_exact_mut(self.config.hidden_size);
                for (row, codes) in live[rows].iter().zip(codes) {
                    let row = *row as usize;
                    gate_up[part].unpack_rows(row..row + 1, codes)?;
                }
                Ok(())
            })?;
        }
        let ffn_down = self.down(&down[0], live.as_deref())?;
        gate_up
            .iter()
            .chain(&down)
            .for_each(|tensor| tensor.data.advise_done());
        let rows = [live.as_ref().map_or(ffn, Vec::len); 2].into_iter();
        let gate_up = Projections::new(rows, Products::Stacked(stack));
        Ok((gate_up, ffn_down, live))
    }

    /// Gate and up of `num_live` neurons, stacked.
    fn gate_up(
        &self,
        tensors: &[TernaryTensor],
        num_live: usize,
        unpack: &Unpack<'_, Error>,
    ) -> Result<B::Matrix> {
        let (ffn, hidden) = (self.config.ffn_size, self.config.hidden_size);
        let part = |tensor: &TernaryTensor| Part {
            rows: num_live,
            scale: tensor.scale,
        };
        let stack = Stack {
            parts: &tensors.iter().map(part).collect::<Vec<_>>(),
            cols: hidden,
            shape: (2 * ffn, hidden),
            num_left_out: 2 * (ffn - num_live) * hidden,
        };
        self.backend.matrix(&stack, self.options, unpack)
    }

    /// The columns of down that belong to the live neurons, or all.
    fn down(&self, tensor: &TernaryTensor, live: Option<&[u32]>) -> Result<B::Matrix> {
        let (ffn, hidden) = (self.config.ffn_size, self.config.hidden_size);
        let cols = live.map_or(ffn, <[u32]>::len);
        let stack = Stack {
            parts: &[Part {
                rows: hidden,
                scale: tensor.scale,
            }],
            cols,
            shape: (hidden, ffn),
            num_left_out: (ffn - cols) * hidden,
        };
        self.backend
            .matrix(&stack, self.options, &|_, rows, codes| {
                let Some(live) = live else {
                    return tensor.unpack_rows(rows, codes);
                };
                let mut all = vec![0; rows.len() * ffn];
                tensor.unpack_rows(rows, &mut all)?;
                for (all, codes) in all.chunks_exact(ffn).zip(codes.chunks_exact_mut(cols)) {
                    codes
                        .iter_mut()
                        .zip(live)
                        .for_each(|(code, col)| *code = all[*col as usize]);
                }
                Ok(())
            })
    }

    /// The tensors of some projections of a layer, about to be read.
    fn tensors(&self, index: usize, projections: &[Projection]) -> Result<Vec<TernaryTensor>> {
        let tensor = |&projection: &Projection| {
            let (rows, cols) = projection.shape(self.config);
            self.source
                .projection(index, projection, rows, cols, self.backend.pool())
        };
        let tensors = projections.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        tensors
            .iter()
            .for_each(|tensor| tensor.data.advise_sequential());
        self.formats
            .borrow_mut()
            .extend(tensors.iter().map(|tensor| tensor.codes.name()));
        Ok(tensors)
    }

    /// Ternary tensors of equal width, stacked and packed.
    fn stack(&self, index: usize, projections: &[Projection]) -> Result<B::Matrix> {
        let tensors = self.tensors(index, projections)?;
        let parts: Vec<Part> = tensors
            .iter()
            .map(|tensor| Part {
                rows: tensor.rows,
                scale: tensor.scale,
            })
            .collect();
        let cols = tensors[0].cols;
        let stack = Stack {
            parts: &parts,
            cols,
            shape: (parts.iter().map(|part| part.rows).sum(), cols),
            num_left_out: 0,
        };
        let matrix = self
            .backend
            .matrix(&stack, self.options, &|part, rows, codes| {
                tensors[part].unpack_rows(rows, codes)
            })?;
        tensors.iter().for_each(|tensor| tensor.data.advise_done());
        Ok(matrix)
    }

    /// `1 / theta^(2i / head_dim)` with the roundings to f32 that Hugging Face's implementation
    /// has, divided by the linear scaling factor and by the model's own factors where it has them.
    fn rope_frequencies(&self) -> Result<Vec<f32>> {
        let config = self.config;
        let head_dim = config.attention.head_dim;
        let factors = self
            .source
            .rope_factors()?
            .unwrap_or_else(|| vec![1.0; head_dim / 2]);
        let frequency = |(i, factor): (usize, &f32)| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            let power = math::pow_f64(f64::from(config.rope_theta), f64::from(exponent)) as f32;
            1.0 / power / factor / config.rope_scaling_factor
        };
        Ok(factors.iter().enumerate().map(frequency).collect())
    }
}
