//! Loads a [`LanguageModel`] from a source: checks every tensor, unpacks weights, and has the backend
//! pack them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{BLOCK_ROWS, CONV_TAPS, DeltaShape, GroupCodes, Part, Unpack, math};
use half::f16;

use crate::backend::{
    Backend, DeltaLayer, GroupStack, HeadColumns, NeuronColumns, RmsNorm, Rotary, Stack, TableUses,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::huggingface::Checkpoint;
use crate::kept::{Keeper, Packed};
use crate::model::{Attention, LanguageModel, Layer, Linear, Mixer, Products, Projections};
use crate::options::LoadOptions;
use crate::source::gguf::GgufSource;
use crate::source::{
    GATE_UP, GroupTensor, LINEAR_INPUT, LayerSlot, LinearSlot, Projection, QKV, Slot, Source,
    TernaryTensor,
};

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
        Self::from_gguf_with(gguf, options, backend, &Keeper::off())
    }

    /// The same, with packed weights that `keeper` has from an earlier load, or notes.
    ///
    /// # Errors
    /// As [`LanguageModel::from_gguf`].
    pub fn from_gguf_with(
        gguf: &Arc<Gguf>,
        options: &LoadOptions,
        backend: &B,
        keeper: &Keeper,
    ) -> Result<Self> {
        let source = GgufSource::new(gguf, options)?;
        Self::load(&source, options, backend, true, keeper)
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
        Self::from_checkpoint_with(checkpoint, options, backend, &Keeper::off())
    }

    /// The same, with packed weights that `keeper` has from an earlier load, or notes.
    ///
    /// # Errors
    /// As [`LanguageModel::from_checkpoint`].
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        backend: &B,
        keeper: &Keeper,
    ) -> Result<Self> {
        Self::load(checkpoint, options, backend, true, keeper)
    }

    /// `drops_dead`: whether the backend may leave out neurons that are always zero, which changes
    /// nothing but the time.
    pub(crate) fn load(
        source: &dyn Source,
        options: &LoadOptions,
        backend: &B,
        drops_dead: bool,
        keeper: &Keeper,
    ) -> Result<Self> {
        source.check_tensors()?;
        let config = source.config().clone();
        let loader = Loader {
            source,
            config: &config,
            options,
            backend,
            keeper,
            drops_dead: drops_dead && backend.leaves_out_dead_neurons(),
            formats: RefCell::default(),
        };
        let table = |slot, gives_logits| loader.table(slot, gives_logits);
        let head = source
            .has_head()
            .then(|| table(Slot::Head, true))
            .transpose()?;
        let mut model = Self {
            embedding: table(Slot::Embedding, head.is_none())?,
            head,
            output_norm: loader.output_norm()?,
            rotary: loader.rotary()?,
            layers: loader.layers()?,
            ffn_sparsity: options.ffn_sparsity,
            quantization: keeper.quantization(loader.format_names()),
            config,
        };
        backend.finish(&mut model, keeper)?;
        Ok(model)
    }
}

/// Gate and up; down; and the positions of the kept neurons, if not all are kept.
type FeedForward<B> = (Projections<B>, <B as Backend>::Matrix, Option<Vec<u32>>);

/// The name of the matrix of a layer that begins with a projection, for a keeper.
fn matrix_name(layer: usize, first: Projection) -> String {
    format!("layers.{layer}.{first:?}")
}

/// Fills rows of a part of a stack with group scales. Arguments: the part, the rows, the requested
/// codes and columns of a group, the codes and the scales to fill.
type UnpackParts<'a> = dyn Fn(usize, Range<usize>, (GroupCodes, usize), &mut [u8], &mut [f16]) -> Result<()>
    + Sync
    + 'a;

/// Reads a model from its source.
struct Loader<'a, B> {
    source: &'a dyn Source,
    config: &'a Config,
    options: &'a LoadOptions,
    backend: &'a B,
    /// Weights that an earlier load has packed, or that a later one will want.
    keeper: &'a Keeper,
    drops_dead: bool,
    /// The formats of the ternary tensors read so far.
    formats: RefCell<BTreeSet<String>>,
}

impl<B: Backend> Loader<'_, B> {
    fn layers(&self) -> Result<Vec<Layer<B>>> {
        let progress = &self.options.progress;
        progress.begin(self.config.num_layers);
        let layers = (0..self.config.num_layers).map(|index| {
            let layer = self.layer(index);
            progress.end_layer();
            layer
        });
        layers.collect()
    }

    /// The formats of the ternary tensors read so far.
    fn format_names(&self) -> String {
        let names = self.formats.take().into_iter();
        names.collect::<Vec<_>>().join(" + ")
    }

    /// The matrix that begins with a projection of a layer: from the keeper, or as `make` packs it.
    fn matrix(
        &self,
        index: usize,
        first: Projection,
        make: impl FnOnce() -> Result<B::Matrix>,
    ) -> Result<B::Matrix> {
        let restore = |packed: &Packed| {
            let (rows, cols) = first.shape(self.config);
            let slot = Slot::Layer(index, LayerSlot::Weight(first));
            // Whether the scales are equal is known, so packed weights are not read.
            let pool = self.backend.pool();
            let tensor = self.source.grouped(slot, rows, cols, true, pool).ok()?;
            let rotation = tensor.and_then(|tensor| tensor.rotation);
            self.backend.matrix_from(packed, rotation, self.options)
        };
        let name = matrix_name(index, first);
        self.keeper
            .find_or_make(&name, restore, make, B::packed_matrix)
    }

    fn layer(&self, index: usize) -> Result<Layer<B>> {
        let hidden = self.config.hidden_size;
        let norm = |slot| self.norm(Slot::Layer(index, slot), hidden);
        let attention_norm = norm(LayerSlot::AttentionNorm)?;
        let (mixer, output) = match self.config.linear_layer(index) {
            Some(shape) => (
                Mixer::Linear(self.linear(index, shape)?),
                Projection::LinearOutput,
            ),
            None => (
                Mixer::Attention(self.attention(index)?),
                Projection::AttentionOutput,
            ),
        };
        let mixer_output_norm = self.inner_norm(index, LayerSlot::AttentionSubNorm, output)?;
        let mixer_output = self.stack(index, &[output])?;
        let ffn_norm = norm(LayerSlot::FfnNorm)?;
        let post_norm = |slot: LayerSlot| {
            let is_used = slot.is_used(self.config, index);
            is_used.then(|| norm(slot)).transpose()
        };
        let (gate_up, ffn_down, live) = self.feed_forward(index)?;
        Ok(Layer {
            attention_norm,
            mixer,
            mixer_output,
            mixer_output_norm,
            mixer_post_norm: post_norm(LayerSlot::PostAttentionNorm)?,
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
            ffn_post_norm: post_norm(LayerSlot::PostFfnNorm)?,
        })
    }

    fn attention(&self, index: usize) -> Result<Attention<B>> {
        let shape = self.config.attention;
        let slot = |slot| Slot::Layer(index, slot);
        let (qkv, gates) = if self.config.architecture.gates_attention() {
            let qkv = self.gated_queries(index)?;
            let gates = qkv.columns[1].clone();
            (qkv, Some(gates))
        } else {
            (self.projections(index, &QKV)?, None)
        };
        let first = usize::from(gates.is_some());
        let head_norms = self.config.architecture.has_head_norms().then(|| {
            let norm = |name| self.norm(slot(name), shape.head_dim);
            Ok::<_, Error>([norm(LayerSlot::QueryNorm)?, norm(LayerSlot::KeyNorm)?])
        });
        Ok(Attention {
            heads: HeadColumns {
                shape,
                queries: qkv.columns[0].clone(),
                keys: qkv.columns[first + 1].clone(),
                values: qkv.columns[first + 2].clone(),
            },
            qkv,
            gates,
            biases: self.biases(index)?,
            head_norms: head_norms.transpose()?,
            rotates_first: self.config.architecture.rotates_before_norms(),
            cache_layer: (0..index)
                .filter(|layer| self.config.linear_layer(*layer).is_none())
                .count(),
        })
    }

    /// The biases of queries, keys and values, if the graph has them.
    fn biases(&self, index: usize) -> Result<Option<[B::Vector; 3]>> {
        if !self.config.architecture.has_biases() {
            return Ok(None);
        }
        let bias = |projection: Projection| {
            let slot = Slot::Layer(index, LayerSlot::Bias(projection));
            let values = self.source.vector(slot, projection.shape(self.config).0)?;
            self.backend.vector(values)
        };
        let [query, key, value] = QKV;
        Ok(Some([bias(query)?, bias(key)?, bias(value)?]))
    }

    /// Queries, gates, keys and values, from files in which heads of queries and heads of gates
    /// alternate in the query projection.
    fn gated_queries(&self, index: usize) -> Result<Projections<B>> {
        let shape = self.config.attention;
        let width = shape.heads * shape.head_dim;
        let key_rows = shape.kv_heads * shape.head_dim;
        let parts = [width, width, key_rows, key_rows];
        let pack = || self.pack_gated_queries(index, &parts, shape.head_dim);
        let matrix = self.matrix(index, Projection::Query, pack)?;
        Ok(Projections::new(
            parts.into_iter(),
            Products::Stacked(matrix),
        ))
    }

    fn pack_gated_queries(
        &self,
        index: usize,
        parts: &[usize],
        head_dim: usize,
    ) -> Result<B::Matrix> {
        let tensors = self
            .grouped(index, &QKV)?
            .ok_or_else(|| self.not_grouped(index))?;
        self.group_stack(&tensors, parts, &|part, rows, to, codes, scales| {
            if part > 1 {
                return tensors[part - 1].unpack_rows(rows, to.0, to.1, codes, scales);
            }
            let (cols, groups) = (tensors[0].cols, scales.len() / rows.len());
            let codes = codes.chunks_exact_mut(cols);
            for ((row, codes), scales) in rows.zip(codes).zip(scales.chunks_exact_mut(groups)) {
                let stored = row / head_dim * 2 * head_dim + part * head_dim + row % head_dim;
                tensors[0].unpack_rows(stored..stored + 1, to.0, to.1, codes, scales)?;
            }
            Ok(())
        })
    }

    fn linear(&self, index: usize, shape: DeltaShape) -> Result<Linear<B>> {
        let hidden = self.config.hidden_size;
        let slot = |slot| Slot::Layer(index, LayerSlot::Linear(slot));
        let vector = |name, len| self.source.vector(slot(name), len);
        let projections = self.projections(index, &LINEAR_INPUT)?;
        let (qkv, gate) = (
            projections.columns[0].clone(),
            projections.columns[1].clone(),
        );
        let Products::Stacked(projections) = projections.products else {
            unreachable!("no hybrid model has norms of its own for each projection")
        };
        let mut times = self
            .source
            .floats(slot(LinearSlot::Time), shape.value_heads, hidden)?;
        let strengths = slot(LinearSlot::Strength);
        times.extend(self.source.floats(strengths, shape.value_heads, hidden)?);
        let channels = shape.channels();
        let conv = self
            .source
            .floats(slot(LinearSlot::Convolution), channels, CONV_TAPS)?;
        // The file stores the taps of a channel side by side; the kernels need the channels side by
        // side.
        let conv = (0..CONV_TAPS * channels)
            .map(|i| conv[i % channels * CONV_TAPS + i / channels])
            .collect();
        let mut decay_and_bias = vector(LinearSlot::Decay, shape.value_heads)?;
        decay_and_bias.extend(vector(LinearSlot::TimeBias, shape.value_heads)?);
        let state_start = (0..index).filter_map(|layer| self.config.linear_layer(layer));
        let backend = self.backend;
        Ok(Linear {
            projections,
            qkv,
            gate,
            times: backend.vector(times)?,
            layer: DeltaLayer {
                shape,
                state_start: state_start.map(|shape| shape.state_len()).sum(),
                conv: backend.vector(conv)?,
                decay_and_bias: backend.vector(decay_and_bias)?,
                norm: self.norm(slot(LinearSlot::Norm), shape.head_dim)?,
            },
        })
    }

    /// The embedding or the head.
    fn table(&self, slot: Slot, gives_logits: bool) -> Result<B::Table> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let pool = self.backend.pool();
        let Some(table) = self.source.grouped(slot, vocab, hidden, false, pool)? else {
            let table = self.source.table(slot, vocab, hidden)?;
            let (options, keeper) = (self.options, self.keeper);
            return self.backend.table(table, gives_logits, options, keeper);
        };
        let rotations = self.source.rotations()?;
        let uses = TableUses {
            gives_logits,
            rows_rotation: match slot {
                Slot::Embedding => rotations.of_embedding(hidden),
                _ => None,
            },
            input_rotation: match slot {
                Slot::Embedding => rotations.of_tied_head(hidden),
                _ => table.rotation.clone(),
            },
        };
        self.backend
            .group_table(table, &uses, self.options, self.keeper)
    }

    /// The tensors of projections that have group scales and share an input, if all have.
    fn grouped(
        &self,
        index: usize,
        projections: &[Projection],
    ) -> Result<Option<Vec<GroupTensor>>> {
        let tensor = |projection: Projection, even_if_equal| {
            let (rows, cols) = projection.shape(self.config);
            let slot = Slot::Layer(index, LayerSlot::Weight(projection));
            let pool = self.backend.pool();
            self.source.grouped(slot, rows, cols, even_if_equal, pool)
        };
        let mut tensors = Vec::new();
        for projection in projections {
            tensors.push(tensor(*projection, false)?);
        }
        if tensors.iter().all(Option::is_none) {
            return Ok(None);
        }
        for (found, projection) in tensors.iter_mut().zip(projections) {
            if found.is_none() {
                *found = tensor(*projection, true)?;
            }
        }
        if tensors.iter().any(Option::is_none) {
            return Err(self.mixed(index, projections));
        }
        let tensors: Vec<GroupTensor> = tensors.into_iter().flatten().collect();
        if let Some(other) = tensors
            .iter()
            .find(|other| other.rotation != tensors[0].rotation)
        {
            let problem = format!(
                "rotated differently from {}, which takes the same input",
                tensors[0].name
            );
            return Err(Error::TensorValues {
                tensor: other.name.clone(),
                problem,
            });
        }
        tensors
            .iter()
            .for_each(|tensor| tensor.data.advise_sequential());
        let names = tensors.iter().map(|tensor| tensor.format.name().to_owned());
        self.formats.borrow_mut().extend(names);
        Ok(Some(tensors))
    }

    fn mixed(&self, index: usize, projections: &[Projection]) -> Error {
        Error::TensorValues {
            tensor: format!("blk.{index}, {projections:?}"),
            problem: "weights with group scales beside weights without; one kind for all projections of an input is supported".into(),
        }
    }

    fn not_grouped(&self, index: usize) -> Error {
        Error::TensorValues {
            tensor: format!("blk.{index}.attn_q.weight"),
            problem: format!(
                "no scales for groups of columns, which projections of the {} graph need",
                self.config.architecture_name
            ),
        }
    }

    /// Tensors with group scales as one matrix of `parts`; `unpack(part, rows, (codes, columns of a
    /// group), …)` fills rows of a part.
    fn group_stack(
        &self,
        tensors: &[GroupTensor],
        parts: &[usize],
        unpack: &UnpackParts<'_>,
    ) -> Result<B::Matrix> {
        let (codes, group_cols) = GroupTensor::common(tensors);
        let stack = GroupStack {
            parts,
            cols: tensors[0].cols,
            codes,
            group_cols,
            rotation: tensors[0].rotation.clone(),
        };
        let matrix =
            self.backend
                .group_matrix(&stack, self.options, &|part, rows, to, scales| {
                    unpack(part, rows, (codes, group_cols), to, scales)
                })?;
        tensors.iter().for_each(|tensor| tensor.data.advise_done());
        Ok(matrix)
    }

    /// A norm with the model's epsilon, or with the projection's own epsilon for its input norm.
    fn norm(&self, slot: Slot, len: usize) -> Result<RmsNorm<B>> {
        let eps = match slot {
            Slot::Layer(_, LayerSlot::InputNorm(_)) => self.config.input_norm_eps,
            _ => None,
        };
        Ok(RmsNorm {
            weight: self.backend.vector(self.source.vector(slot, len)?)?,
            eps: eps.unwrap_or(self.config.rms_norm_eps),
        })
    }

    /// The last norm. It also divides by the divisor of the logits, because the head is linear.
    fn output_norm(&self) -> Result<RmsNorm<B>> {
        let mut weight = self
            .source
            .vector(Slot::OutputNorm, self.config.hidden_size)?;
        let divisor = self.config.multipliers.logits;
        weight.iter_mut().for_each(|weight| *weight /= divisor);
        Ok(RmsNorm {
            weight: self.backend.vector(weight)?,
            eps: self.config.rms_norm_eps,
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
        let slot = slots
            .into_iter()
            .find(|slot| slot.is_used(self.config, index));
        slot.map(|slot| self.norm(Slot::Layer(index, slot), len))
            .transpose()
    }

    /// Projections of one input: stacked, unless each has its own norm.
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

    /// Gate and up, down, and the positions of their neurons, if not all are kept.
    ///
    /// A neuron whose row of gate or of up is all zero gives zero for any input: trained models
    /// have hundreds in some layers. If these neurons would fill a block, the loader leaves out
    /// their rows of gate and up and their columns of down.
    fn feed_forward(&self, index: usize) -> Result<FeedForward<B>> {
        let live_name = format!("layers.{index}.live");
        if let Some(live) = self.keeper.find(&live_name).and_then(Packed::live) {
            return self.restored_feed_forward(index, live);
        }
        if self.config.input_norm_eps.is_some() || self.keeper.is_kept() {
            let gate_up = self.projections(index, &GATE_UP)?;
            return Ok((gate_up, self.stack(index, &[Projection::Down])?, None));
        }
        let gate_up = self.grouped(index, &GATE_UP)?;
        let down = self.grouped(index, &[Projection::Down])?;
        if gate_up.is_some() || down.is_some() {
            let gate_up = Products::Stacked(self.stack_of(index, &GATE_UP, gate_up)?);
            let gate_up = Projections::new([self.config.ffn_size; 2].into_iter(), gate_up);
            let down = self.stack_of(index, &[Projection::Down], down)?;
            return Ok((gate_up, down, None));
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
        let keeper = self.keeper;
        keeper.note(&live_name, || Some(Packed::of_live(live.as_deref())));
        let note = |first: Projection, matrix| {
            let name = matrix_name(index, first);
            keeper.note(&name, || B::packed_matrix(matrix));
        };
        note(Projection::Gate, &stack);
        note(Projection::Down, &ffn_down);
        let rows = [live.as_ref().map_or(ffn, Vec::len); 2].into_iter();
        let gate_up = Projections::new(rows, Products::Stacked(stack));
        Ok((gate_up, ffn_down, live))
    }

    /// Gate, up and down of `live` neurons or of all, which an earlier load has packed.
    fn restored_feed_forward(
        &self,
        index: usize,
        live: Option<Vec<u32>>,
    ) -> Result<FeedForward<B>> {
        let ffn = self.config.ffn_size;
        let matrix = |first| self.matrix(index, first, || Err(self.not_kept(index, first)));
        let rows = [live.as_ref().map_or(ffn, Vec::len); 2].into_iter();
        let gate_up = Projections::new(rows, Products::Stacked(matrix(Projection::Gate)?));
        Ok((gate_up, matrix(Projection::Down)?, live))
    }

    fn not_kept(&self, index: usize, first: Projection) -> Error {
        Error::KeptWeights {
            name: matrix_name(index, first),
        }
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

    /// The tensors of some projections of a layer. Tells the system that they will be read next.
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

    /// Tensors of equal width, stacked and packed.
    fn stack(&self, index: usize, projections: &[Projection]) -> Result<B::Matrix> {
        let pack = || self.pack(index, projections, self.grouped(index, projections)?);
        self.matrix(index, projections[0], pack)
    }

    /// The same, from tensors that [`Loader::grouped`] has found.
    fn stack_of(
        &self,
        index: usize,
        projections: &[Projection],
        grouped: Option<Vec<GroupTensor>>,
    ) -> Result<B::Matrix> {
        let pack = || self.pack(index, projections, grouped);
        self.matrix(index, projections[0], pack)
    }

    fn pack(
        &self,
        index: usize,
        projections: &[Projection],
        grouped: Option<Vec<GroupTensor>>,
    ) -> Result<B::Matrix> {
        if let Some(tensors) = grouped {
            let parts: Vec<usize> = tensors.iter().map(|tensor| tensor.rows).collect();
            return self.group_stack(&tensors, &parts, &|part, rows, to, codes, scales| {
                tensors[part].unpack_rows(rows, to.0, to.1, codes, scales)
            });
        }
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

    fn rotary(&self) -> Result<Rotary<B>> {
        let frequencies = self.rope_frequencies()?;
        let (frequencies, factor) = match &self.config.yarn {
            None => (frequencies, 1.0),
            Some(yarn) => yarn.stretch(frequencies, self.config.rope_theta),
        };
        Ok(Rotary {
            frequencies: self.backend.vector(frequencies)?,
            factor,
        })
    }

    /// `1 / theta^(2i / rotary_dim)` rounded to f32 as in Hugging Face's implementation, and
    /// divided by the linear scaling factor and by the model's own factors, if it has any.
    fn rope_frequencies(&self) -> Result<Vec<f32>> {
        let config = self.config;
        let factors = self
            .source
            .rope_factors()?
            .map_or_else(|| vec![1.0; config.rotary_dim / 2], |found| found.divisors);
        let frequency = |(i, factor): (usize, &f32)| {
            let exponent = (2 * i) as f32 / config.rotary_dim as f32;
            let power = math::pow_f64(f64::from(config.rope_theta), f64::from(exponent)) as f32;
            1.0 / power / factor / config.rope_scaling_factor
        };
        Ok(factors.iter().enumerate().map(frequency).collect())
    }
}
