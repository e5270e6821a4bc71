//! [`LanguageModel`]: a model's weights, in the layout that the kernels stream, and how they come
//! out of a file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{BLOCK_ROWS, Cpu, Norm, Packing, Part, ScreenTable, TernaryMatrix, math};
use bitnet_quantization::{i2_s, tl1, tl2};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::huggingface::Checkpoint;
use crate::source::gguf::GgufSource;
use crate::source::{LayerSlot, Projection, Slot, Source, TernaryTensor};
use crate::sparsity::{FfnSparsity, SparseCopies};
use crate::table::Table;

/// How to read what a model's files leave unsaid.
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
    /// How ternary weights are packed; as the kernels in use like it best if not given.
    pub packing: Option<Packing>,
    /// The same for matrices of one shape ([`matrix_shapes`]), before `packing`.
    pub packings: Vec<((usize, usize), Packing)>,
    /// Whether feed-forward networks leave out what adds nothing.
    pub ffn_sparsity: FfnSparsity,
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
        let screen = ScreenTable::pack(
            cpu.set(),
            cpu.pool(),
            head.rows(),
            head.cols(),
            &|row, out| head.read_row(row, out),
        );
        head.advise_done();
        Some(screen)
    }
}

/// From this size on a head is screened: it would have to come from memory for every token.
const SCREENED_BYTES: usize = 16 << 20;

/// A model, ready to run.
pub struct LanguageModel {
    pub(crate) config: Config,
    /// `[vocab, hidden]`
    pub(crate) embedding: Table,
    pub(crate) layers: Vec<Layer>,
    pub(crate) ffn_sparsity: FfnSparsity,
    /// `[hidden]`
    pub(crate) output_norm: RmsNorm,
    /// `[vocab, hidden]`; the embedding again if the two are tied.
    pub(crate) head: Option<Table>,
    /// The head in 8 bits, where logits are estimated from it first.
    pub(crate) screen: Option<ScreenTable>,
    /// The angle a position turns each pair of a head by, `[head_dim / 2]`.
    pub(crate) rope_frequencies: Vec<f32>,
    /// How the source holds the ternary weights.
    quantization: String,
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
    /// The neurons, ascending, that gate, up and down have rows and columns for, if not all: the
    /// others are always zero.
    pub live_neurons: Option<Vec<u32>>,
    pub sparse: SparseCopies,
}

/// A root-mean-square norm.
pub(crate) struct RmsNorm {
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl RmsNorm {
    /// As the kernels take it.
    pub(crate) fn view(&self) -> Norm<'_> {
        Norm {
            weight: &self.weight,
            eps: self.eps,
        }
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
        stacked
            .into_iter()
            .chain(normed.iter().map(|(_, matrix)| matrix))
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
                let start: usize = matrices[..index]
                    .iter()
                    .map(|(_, matrix)| matrix.output_len())
                    .sum();
                debug_assert!(start.is_multiple_of(BLOCK_ROWS));
                start..start + matrices[index].1.parts()[0].rows
            }
        }
    }
}

impl LanguageModel {
    /// Loads the model of a GGUF file: checks every shape, then repacks the ternary weights on all
    /// threads of `cpu`.
    ///
    /// Embedding and head stay in the mapped file; the pages of the repacked tensors are given back
    /// to the system.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported, or the
    /// configuration is.
    pub fn from_gguf(gguf: &Arc<Gguf>, options: &LoadOptions, cpu: &Cpu) -> Result<Self> {
        Self::load(&GgufSource::new(gguf, options)?, options, cpu, true)
    }

    /// Loads the model of a Hugging Face directory, in the same way. Float weights are quantized as
    /// they are read.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, misshapen or of a type that is not supported.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        cpu: &Cpu,
    ) -> Result<Self> {
        Self::load(checkpoint, options, cpu, true)
    }

    /// `drops_dead`: whether neurons that are always zero are left out, which changes nothing but
    /// the time.
    fn load(
        source: &dyn Source,
        options: &LoadOptions,
        cpu: &Cpu,
        drops_dead: bool,
    ) -> Result<Self> {
        source.check_tensors()?;
        let config = source.config().clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let loader = Loader {
            source,
            config: &config,
            options,
            cpu,
            drops_dead,
            formats: RefCell::default(),
        };
        let head = source
            .has_head()
            .then(|| source.table(Slot::Head, vocab, hidden))
            .transpose()?;
        let embedding = source.table(Slot::Embedding, vocab, hidden)?;
        let mut model = Self {
            screen: options
                .head
                .screen(head.as_ref().unwrap_or(&embedding), cpu),
            embedding,
            head,
            output_norm: loader.norm(Slot::OutputNorm, hidden)?,
            rope_frequencies: loader.rope_frequencies()?,
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
        model.make_sparse_copies(cpu)?;
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
    pub fn head(&self) -> &Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// How logits are computed: in full or screened.
    #[must_use]
    pub fn head_mode(&self) -> HeadMode {
        if self.screen.is_some() {
            HeadMode::Screened
        } else {
            HeadMode::Full
        }
    }

    /// Whether logits are estimated from an 8-bit copy of the head first, and the bytes of that
    /// copy.
    #[must_use]
    pub fn screen_bytes(&self) -> Option<usize> {
        self.screen.as_ref().map(ScreenTable::num_bytes)
    }

    /// The table that tokens are looked up in.
    #[must_use]
    pub fn embedding(&self) -> &Table {
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
        let is_used =
            |packing: &Packing| self.matrices().any(|matrix| matrix.packing() == *packing);
        Packing::ALL
            .into_iter()
            .filter(is_used)
            .map(Packing::name)
            .collect::<Vec<_>>()
            .join("+")
    }

    /// Bytes of the packed ternary weights, padding included: what a dense pass over the model
    /// reads of them.
    #[must_use]
    pub fn num_ternary_bytes(&self) -> usize {
        self.matrices().map(TernaryMatrix::num_bytes).sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &TernaryMatrix> {
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

/// What shares an input, and so is multiplied at once unless each has an input norm of its own.
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
struct Loader<'a> {
    source: &'a dyn Source,
    config: &'a Config,
    options: &'a LoadOptions,
    cpu: &'a Cpu,
    drops_dead: bool,
    /// The formats of the ternary tensors met so far.
    formats: RefCell<BTreeSet<String>>,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
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
        let (gate_up, ffn_down, live_neurons) = self.feed_forward(index)?;
        Ok(Layer {
            attention_norm,
            qkv,
            attention_output_norm,
            attention_output,
            ffn_norm,
            gate_up,
            ffn_down_norm: self.inner_norm(index, LayerSlot::FfnSubNorm, Projection::Down)?,
            ffn_down,
            live_neurons,
            sparse: SparseCopies::default(),
        })
    }

    /// A norm with the model's epsilon, or the projection's own where it is one's input norm.
    fn norm(&self, slot: Slot, len: usize) -> Result<RmsNorm> {
        let eps = match slot {
            Slot::Layer(_, LayerSlot::InputNorm(_)) => self.config.input_norm_eps,
            _ => None,
        };
        Ok(RmsNorm {
            weight: self.source.vector(slot, len)?,
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
    ) -> Result<Option<RmsNorm>> {
        let (_, len) = projection.shape(self.config);
        let slots = [sub_norm, LayerSlot::InputNorm(projection)];
        let slot = slots.into_iter().find(|slot| slot.is_used(self.config));
        slot.map(|slot| self.norm(Slot::Layer(index, slot), len))
            .transpose()
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

    /// Gate and up, down, and which neurons they have, if not all.
    ///
    /// A neuron whose row of gate or of up is all zero gives zero whatever comes in: trained models
    /// have hundreds in some layers. Where they would fill a block, the rows of gate and up and the
    /// columns of down are those of the others.
    fn feed_forward(&self, index: usize) -> Result<(Projections, TernaryMatrix, Option<Vec<u32>>)> {
        if self.config.input_norm_eps.is_some() {
            let gate_up = self.projections(index, &GATE_UP)?;
            return Ok((gate_up, self.stack(index, &[Projection::Down])?, None));
        }
        let (ffn, hidden) = (self.config.ffn_size, self.config.hidden_size);
        let gate_up = self.tensors(index, &GATE_UP)?;
        let down = self.tensors(index, &[Projection::Down])?;
        let is_dead: Vec<AtomicBool> = (0..ffn).map(|_| AtomicBool::new(false)).collect();
        let parts = |rows| {
            gate_up
                .iter()
                .map(|tensor| Part {
                    rows,
                    scale: tensor.scale,
                })
                .collect::<Vec<_>>()
        };
        let packing = self.packing(2 * ffn, hidden);
        let mut stack = TernaryMatrix::pack(
            self.cpu.pool(),
            &parts(ffn),
            hidden,
            packing,
            &|part, rows, codes| {
                gate_up[part].unpack_rows(rows.clone(), codes)?;
                for (row, codes) in rows.zip(codes.chunks_exact(hidden)) {
                    if codes.iter().all(|code| *code == 0) {
                        is_dead[row].store(true, Ordering::Relaxed);
                    }
                }
                Ok::<_, Error>(())
            },
        )?;
        let mut live: Vec<u32> = (0..ffn as u32)
            .filter(|row| !is_dead[*row as usize].load(Ordering::Relaxed))
            .collect();
        if live.is_empty() {
            live.push(0);
        }
        let has_block = self.drops_dead && ffn - live.len() >= BLOCK_ROWS;
        if has_block {
            stack = TernaryMatrix::pack(
                self.cpu.pool(),
                &parts(live.len()),
                hidden,
                packing,
                &|part, rows, codes| {
                    for (row, codes) in live[rows].iter().zip(codes.chunks_exact_mut(hidden)) {
                        let row = *row as usize;
                        gate_up[part].unpack_rows(row..row + 1, codes)?;
                    }
                    Ok::<_, Error>(())
                },
            )?;
        }
        let part = [Part {
            rows: hidden,
            scale: down[0].scale,
        }];
        let down_cols = if has_block { live.len() } else { ffn };
        let packing = self.packing(hidden, ffn);
        let down_stack = TernaryMatrix::pack(
            self.cpu.pool(),
            &part,
            down_cols,
            packing,
            &|_, rows, codes| {
                if !has_block {
                    return down[0].unpack_rows(rows, codes);
                }
                let mut all = vec![0; rows.len() * ffn];
                down[0].unpack_rows(rows, &mut all)?;
                for (all, codes) in all.chunks_exact(ffn).zip(codes.chunks_exact_mut(down_cols)) {
                    codes
                        .iter_mut()
                        .zip(&live)
                        .for_each(|(code, col)| *code = all[*col as usize]);
                }
                Ok(())
            },
        )?;
        gate_up
            .iter()
            .chain(&down)
            .for_each(|tensor| tensor.data.advise_done());
        Ok((
            Projections::Stacked(stack),
            down_stack,
            has_block.then_some(live),
        ))
    }

    /// How a matrix lies in memory, by its shape in [`matrix_shapes`].
    fn packing(&self, rows: usize, cols: usize) -> Packing {
        let of_shape = self
            .options
            .packings
            .iter()
            .find(|(shape, _)| *shape == (rows, cols));
        let packing = of_shape
            .map(|(_, packing)| *packing)
            .or(self.options.packing);
        packing.unwrap_or(self.cpu.set().packing)
    }

    /// The tensors of some projections of a layer, about to be read.
    fn tensors(&self, index: usize, projections: &[Projection]) -> Result<Vec<TernaryTensor>> {
        let tensor = |&projection: &Projection| {
            let (rows, cols) = projection.shape(self.config);
            self.source
                .projection(index, projection, rows, cols, self.cpu.pool())
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

    /// Ternary tensors of equal width, stacked and repacked.
    fn stack(&self, index: usize, projections: &[Projection]) -> Result<TernaryMatrix> {
        let tensors = self.tensors(index, projections)?;
        let parts: Vec<Part> = tensors
            .iter()
            .map(|tensor| Part {
                rows: tensor.rows,
                scale: tensor.scale,
            })
            .collect();
        let (rows, cols) = (parts.iter().map(|part| part.rows).sum(), tensors[0].cols);
        let packing = self.packing(rows, cols);
        let matrix = TernaryMatrix::pack(
            self.cpu.pool(),
            &parts,
            cols,
            packing,
            &|part, rows, codes| tensors[part].unpack_rows(rows, codes),
        )?;
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

#[cfg(test)]
mod tests {
    use bitnet_kernels::{Kernel, KernelSet};
    use bitnet_quantization::TernaryFormat;

    use super::*;
    use crate::config::Architecture;
    use crate::forward::{Chunk, LogitRows, Workspace};
    use crate::sparsity::FfnSparsity;
    use crate::synthetic::{Shape, SyntheticModel};
    use crate::{KvCache, KvType};

    /// Logits of 33 tokens, a chunk of 32 and one alone, and the multiply-accumulates executed and
    /// skipped.
    fn run(model: &LanguageModel, cpu: &Cpu) -> (Vec<u32>, u64, u64) {
        let config = model.config();
        let mut cache =
            KvCache::new(config.attention, config.num_layers, KvType::F16, 2).expect("memory");
        let mut workspace = Workspace::new();
        let tokens: Vec<u32> = (0..33).map(|i| i * 37 % 512).collect();
        cpu.counters().reset();
        let mut bits = Vec::new();
        for (tokens, position) in [(&tokens[..32], 0), (&tokens[32..], 32)] {
            let chunk = Chunk {
                tokens,
                position,
                blocks: &[1, 0],
                logits: LogitRows::All,
            };
            let logits = model.forward(cpu, &mut workspace, &mut cache, &[chunk]);
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
        }
        let counts = [Kernel::I2sGemm, Kernel::I2sGemv].map(|kernel| cpu.counters().get(kernel));
        (
            bits,
            counts.iter().map(|count| count.macs).sum(),
            counts.iter().map(|count| count.macs_skipped).sum(),
        )
    }

    #[test]
    fn dead_neurons_are_left_out_without_a_trace() {
        let folder = tempfile::tempdir().expect("a folder");
        for (architecture, ffn_size) in
            [(Architecture::BitnetB158, 416), (Architecture::Llama, 384)]
        {
            let shape = Shape {
                architecture,
                ffn_size,
                dead_neurons_percent: 40,
                ..Shape::default()
            };
            let path = folder.path().join(format!("{ffn_size}.gguf"));
            let format = |_, _| TernaryFormat::I2_S(i2_s::Form::Block128);
            SyntheticModel { shape, seed: 5 }
                .write_gguf(&path, &format)
                .expect("a file");
            let gguf = Arc::new(Gguf::open(&path).expect("it opens"));
            let load = |ffn_sparsity, drops_dead, cpu: &Cpu| {
                let options = LoadOptions {
                    ffn_sparsity,
                    ..LoadOptions::default()
                };
                let source = GgufSource::new(&gguf, &options).expect("a model");
                LanguageModel::load(&source, &options, cpu, drops_dead).expect("it loads")
            };
            let cpu = Cpu::new(KernelSet::detect(), 2);
            let whole = load(FfnSparsity::Off, false, &cpu);
            assert!(whole.ffn_layers().all(|layer| layer.num_dead_neurons == 0));
            let (expected, dense_macs, skipped) = run(&whole, &cpu);
            assert_eq!(skipped, 0);
            for set in KernelSet::available() {
                for (threads, ffn_sparsity) in [
                    (1, FfnSparsity::Off),
                    (2, FfnSparsity::On),
                    (3, FfnSparsity::On),
                ] {
                    let cpu = Cpu::new(set, threads);
                    let model = load(ffn_sparsity, true, &cpu);
                    for layer in model.ffn_layers() {
                        let dead = layer.num_dead_neurons * 100 / ffn_size;
                        assert!(
                            (30..50).contains(&dead),
                            "{dead} of a hundred neurons are dead"
                        );
                    }
                    assert_eq!(model.num_ternary_weights(), whole.num_ternary_weights());
                    let (found, macs, skipped) = run(&model, &cpu);
                    assert!(
                        found == expected,
                        "{architecture:?} {}, {ffn_sparsity:?} on {threads} threads",
                        set.name
                    );
                    assert_eq!(
                        macs + skipped,
                        dense_macs,
                        "executed and skipped products are the dense ones"
                    );
                }
            }
        }
    }
}
