//! The forward pass, once, in the order of the paper: token ids to logits.
//!
//! ```text
//! x = embedding[token]
//! for each layer:
//!     q, k, v = BitLinear(rms_norm(x));  rotate q and k;  k, v to the cache
//!     x += BitLinear(sub_norm(attention(q, cache)))
//!     gate, up = BitLinear(rms_norm(x))
//!     x += BitLinear(sub_norm(act(gate) · up))
//! logits = head · rms_norm(x)
//! ```
//!
//! BitLinear quantizes its input rows to int8 and multiplies by ternary weights (BitNet b1.58, Ma
//! et al. 2024). Rows of several sequences go through together; no row's result depends on which
//! others are there.

use bitnet_kernels::{
    Activations, AttentionScratch, CacheElement, Cpu, Estimates, Kernel, LayerCache, LiveNeurons,
    Neurons, Place, Places, Qkv, ScreenScratch, SparseScratch, TernaryMatrix, TernaryRows, math,
};

use crate::cache::{KvCache, KvType};
use crate::model::{LanguageModel, Layer, Projections, RmsNorm};
use crate::sparsity::FfnActivity;

/// Which rows of a chunk logits are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the chunk only fills the cache.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// At least one; each below the size of the vocabulary.
    pub tokens: &'a [u32],
    /// Position of the first token; all positions before it are in the cache.
    pub position: usize,
    /// The sequence's blocks of the cache, enough for its last position.
    pub blocks: &'a [u32],
    /// Which logits to compute.
    pub logits: LogitRows,
}

/// The activations of one pass. Grows to the largest batch it meets, so a decode step allocates
/// nothing.
#[derive(Default)]
pub struct Workspace {
    /// Residual stream, `[rows, hidden]`.
    x: Vec<f32>,
    /// `[rows, qkv.output_len]`
    qkv: Vec<f32>,
    /// Attention output, `[rows, heads · head_dim]`.
    attention: Vec<f32>,
    /// What a projection adds to the residual stream, `[rows, output_len]`.
    delta: Vec<f32>,
    /// `[rows, gate_up.output_len]`
    gate_up: Vec<f32>,
    /// `[rows, hidden]`, normalised; in the end the hidden states `[logit rows, hidden]`
    normed: Vec<f32>,
    /// Hidden states picked out of these, `[picked rows, hidden]`.
    picked: Vec<f32>,
    /// `[rows asked for, vocab]`
    logits: Vec<f32>,
    screen: ScreenScratch,
    /// Cosines, then sines, of each row's angles, `[rows, head_dim]`.
    rotations: Vec<f32>,
    activations: Activations,
    attention_scratch: AttentionScratch,
    sparse_scratch: SparseScratch,
    /// Of each layer, since the start.
    ffn_activity: Vec<FfnActivity>,
    /// Tokens of all chunks, `[rows]`.
    tokens: Vec<u32>,
    /// `[rows]`
    places: Vec<Place>,
    /// Block tables of all chunks.
    blocks: Vec<u32>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl LanguageModel {
    /// Runs the chunks, which must be of different sequences, and returns the logits asked for:
    /// `[logit rows, vocab]`, in the order of the chunks. The cache then holds the keys and values
    /// of all tokens.
    ///
    /// # Panics
    /// If a token is outside the vocabulary, a chunk is empty, or a block table is too short.
    pub fn forward<'w>(
        &self,
        cpu: &Cpu,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        chunks: &[Chunk<'_>],
    ) -> &'w [f32] {
        let rows = self.hidden_states(cpu, workspace, cache, chunks.iter().copied());
        self.logits(cpu, workspace, 0..rows)
    }

    /// [`LanguageModel::forward`] without the head: returns for how many rows logits are wanted,
    /// which [`LanguageModel::logits`], [`LanguageModel::estimate`] and [`LanguageModel::logit`]
    /// then give.
    ///
    /// # Panics
    /// As [`LanguageModel::forward`].
    pub fn hidden_states<'a>(
        &self,
        cpu: &Cpu,
        workspace: &mut Workspace,
        cache: &mut KvCache,
        chunks: impl Iterator<Item = Chunk<'a>>,
    ) -> usize {
        workspace.place(chunks, self.config.vocab_size);
        match cache.kv_type() {
            KvType::F16 => self.forward_layers(cpu, workspace, cache, KvCache::layer_f16),
            KvType::F32 => self.forward_layers(cpu, workspace, cache, KvCache::layer_f32),
        }
        self.normalize(cpu, workspace);
        workspace.places.len()
    }

    /// All logits of some rows of the last pass, `[rows, vocab]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn logits<'w>(
        &self,
        cpu: &Cpu,
        w: &'w mut Workspace,
        rows: impl ExactSizeIterator<Item = usize>,
    ) -> &'w [f32] {
        let hidden = self.config.hidden_size;
        let logits = sized(&mut w.logits, rows.len() * self.config.vocab_size);
        w.picked.clear();
        for row in rows {
            w.picked
                .extend_from_slice(&w.normed[row * hidden..(row + 1) * hidden]);
        }
        if !w.picked.is_empty() {
            self.head().project(cpu, &w.picked, logits);
        }
        logits
    }

    /// All logits of one row of the last pass, `[vocab]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as the vocabulary.
    pub fn logits_of_row(&self, cpu: &Cpu, w: &Workspace, row: usize, out: &mut [f32]) {
        let hidden = self.config.hidden_size;
        self.head()
            .project(cpu, &w.normed[row * hidden..(row + 1) * hidden], out);
    }

    /// Estimates the logits of all rows of the last pass, which [`Workspace::estimates`] then
    /// gives. False if the model is not screened or nothing can be said: only all logits will do.
    pub fn estimate(&self, cpu: &Cpu, w: &mut Workspace) -> bool {
        let rows = w.places.len() * self.config.hidden_size;
        self.screen
            .as_ref()
            .is_some_and(|screen| cpu.screen(screen, &w.normed[..rows], &mut w.screen))
    }

    /// Counts the logits of one row that were computed one by one. If that decided the matter, the
    /// others of the vocabulary were left out; if not, they were a part of the screening that came
    /// to nothing.
    pub fn count_logits(&self, cpu: &Cpu, num_exact: usize, decided: bool) {
        let (hidden, head) = (self.config.hidden_size, self.head());
        let kernel = if decided {
            Kernel::LogitsProjection
        } else {
            Kernel::LogitsScreen
        };
        cpu.counters()
            .add(kernel, num_exact * hidden, num_exact * head.row_bytes());
        if decided {
            cpu.counters().skip(
                Kernel::LogitsProjection,
                (head.rows().saturating_sub(num_exact)) * hidden,
            );
        }
    }

    /// The logit of one token, computed in full, for a row of the last pass. Whoever asks counts
    /// it.
    ///
    /// # Panics
    /// If there is no such row or token.
    #[must_use]
    pub fn logit(&self, cpu: &Cpu, w: &Workspace, row: usize, token: u32) -> f32 {
        let hidden = self.config.hidden_size;
        self.head().dot(
            cpu.set(),
            token as usize,
            &w.normed[row * hidden..(row + 1) * hidden],
        )
    }

    /// Everything but the head. Leaves in `w.x` the rows whose logits are wanted.
    fn forward_layers<T: CacheElement>(
        &self,
        cpu: &Cpu,
        w: &mut Workspace,
        cache: &mut KvCache,
        layer_cache: for<'a> fn(&'a mut KvCache, usize) -> LayerCache<'a, T>,
    ) {
        self.embed(cpu, w);
        self.rotations(cpu, w);
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let mut cached = layer_cache(cache, index);
            self.project_qkv(cpu, w, layer, &mut cached);
            if index == last {
                // Nothing after the last layer's keys and values needs the rows without logits.
                w.keep_wanted(self.config.hidden_size, layer.qkv.output_len());
            }
            if !w.places.is_empty() {
                self.attend(cpu, w, layer, &cached);
                self.feed_forward(cpu, w, index);
            }
        }
    }

    fn embed(&self, cpu: &Cpu, w: &mut Workspace) {
        let rows = w.tokens.len();
        let hidden = self.config.hidden_size;
        cpu.counters().add(
            Kernel::EmbeddingLookup,
            0,
            rows * self.embedding.row_bytes(),
        );
        let (tokens, x) = (&w.tokens, sized(&mut w.x, rows * hidden));
        cpu.for_rows(x, hidden, &|row, x| {
            self.embedding.read_row(tokens[row] as usize, x)
        });
    }

    /// The angles of every row, the same for all layers: `position · frequency`, rounded to f32 as
    /// the reference does.
    fn rotations(&self, cpu: &Cpu, w: &mut Workspace) {
        let head_dim = self.config.attention.head_dim;
        let (places, rotations) = (
            &w.places,
            sized(&mut w.rotations, w.places.len() * head_dim),
        );
        cpu.for_rows(rotations, head_dim, &|row, rotations| {
            let (cos, sin) = rotations.split_at_mut(head_dim / 2);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.rope_frequencies) {
                (*sin, *cos) = math::sin_cos(places[row].position as f32 * frequency);
            }
        });
    }

    /// Queries, keys and values of each row; keys and values go to the cache.
    fn project_qkv<T: CacheElement>(
        &self,
        cpu: &Cpu,
        w: &mut Workspace,
        layer: &Layer,
        cache: &mut LayerCache<'_, T>,
    ) {
        let shape = self.config.attention;
        let stride = layer.qkv.output_len();
        let qkv = sized(&mut w.qkv, w.places.len() * stride);
        let buffers = (&mut w.activations, &mut w.normed, &mut w.delta);
        project(cpu, &w.x, &layer.attention_norm, &layer.qkv, buffers, qkv);

        let rotated = (shape.heads + shape.kv_heads) * shape.head_dim;
        cpu.counters()
            .add(Kernel::RopeApply, 2 * rotated * w.places.len(), 0);
        let (set, rotations) = (cpu.set(), &w.rotations);
        cpu.for_rows(qkv, stride, &|row, qkv| {
            let (cos, sin) = rotations[row * shape.head_dim..(row + 1) * shape.head_dim]
                .split_at(shape.head_dim / 2);
            set.rope_half_split(&mut qkv[layer.qkv.output_range(0)], cos, sin);
            set.rope_half_split(&mut qkv[layer.qkv.output_range(1)], cos, sin);
        });
        cpu.store_kv(shape, w.qkv_rows(layer), w.places(), cache);
    }

    /// `x += BitLinear(sub_norm(attention))`
    fn attend<T: CacheElement>(
        &self,
        cpu: &Cpu,
        w: &mut Workspace,
        layer: &Layer,
        cache: &LayerCache<'_, T>,
    ) {
        let shape = self.config.attention;
        let width = shape.heads * shape.head_dim;
        let rows = w.places.len();
        let qkv = Qkv {
            data: &w.qkv,
            stride: layer.qkv.output_len(),
            offsets: qkv_offsets(layer),
        };
        let places = Places {
            rows: &w.places,
            blocks: &w.blocks,
        };
        let attention = sized(&mut w.attention, rows * width);
        cpu.attention(
            shape,
            qkv,
            places,
            cache,
            &mut w.attention_scratch,
            attention,
        );

        let norm = layer.attention_output_norm.as_ref().map(RmsNorm::view);
        cpu.quantize(attention, width, width, norm, &mut w.activations);
        let stride = layer.attention_output.output_len();
        let delta = sized(&mut w.delta, rows * stride);
        cpu.ternary_matmul(&layer.attention_output, &w.activations, delta);
        self.add(cpu, &mut w.x, delta, stride);
    }

    /// `x += BitLinear(sub_norm(act(gate) · up))`
    ///
    /// A lone row leaves out the rows of `up` and the columns of `down` that add nothing, where
    /// there are copies to read the others from and they are few.
    fn feed_forward(&self, cpu: &Cpu, w: &mut Workspace, index: usize) {
        let layer = &self.layers[index];
        let rows = w.places.len();
        let stride = layer.gate_up.output_len();
        let gate_up = sized(&mut w.gate_up, rows * stride);
        match (&layer.gate_up, &layer.sparse.up) {
            (Projections::Stacked(matrix), Some(up)) if rows == 1 => {
                let buffers = (&mut w.activations, &mut w.sparse_scratch);
                self.project_gated(cpu, &w.x, &layer.ffn_norm, matrix, up, buffers, gate_up);
            }
            _ => {
                let buffers = (&mut w.activations, &mut w.normed, &mut w.delta);
                project(cpu, &w.x, &layer.ffn_norm, &layer.gate_up, buffers, gate_up);
            }
        }

        let (num_neurons, num_live) = (self.config.ffn_size, layer.num_live_neurons());
        let live = layer.live_neurons.as_ref().map(|positions| LiveNeurons {
            positions,
            num_neurons,
        });
        let neurons = Neurons {
            gates: layer.gate_up.output_range(0),
            ups: layer.gate_up.output_range(1),
            live,
        };
        let norm = layer.ffn_down_norm.as_ref().map(RmsNorm::view);
        let gate = self.config.architecture.gate();
        let zeros =
            cpu.gate_and_quantize(gate, gate_up, stride, &neurons, norm, &mut w.activations);
        w.ffn_activity
            .resize(self.layers.len(), FfnActivity::default());
        w.ffn_activity[index].add(rows * num_live, zeros);

        let stride = layer.ffn_down.output_len();
        let delta = sized(&mut w.delta, rows * stride);
        let is_sparse = rows == 1
            && layer.sparse.down.as_ref().is_some_and(|down| {
                let active_max = self.active_max(num_live);
                cpu.active_columns_matvec(
                    down,
                    active_max,
                    &w.activations,
                    &mut w.sparse_scratch,
                    delta,
                )
            });
        if !is_sparse {
            cpu.ternary_matmul(&layer.ffn_down, &w.activations, delta);
        }
        // The dense product has the rows of gate and up and the columns of down that dead neurons
        // would have.
        let dead_weights = 3 * (num_neurons - num_live) * self.config.hidden_size;
        let kernel = if is_sparse {
            Kernel::I2sGemv
        } else {
            layer.ffn_down.kernel(rows)
        };
        cpu.counters().skip(kernel, rows * dead_weights);
        self.add(cpu, &mut w.x, delta, stride);
    }

    /// `gates, ups = BitLinear(norm(x))` for one row, the ups only where the gate is positive,
    /// unless that is too often.
    #[expect(
        clippy::too_many_arguments,
        reason = "a product of two stacked matrices and the copy of one of them"
    )]
    fn project_gated(
        &self,
        cpu: &Cpu,
        x: &[f32],
        norm: &RmsNorm,
        gate_up: &TernaryMatrix,
        up: &TernaryRows,
        (activations, scratch): (&mut Activations, &mut SparseScratch),
        out: &mut [f32],
    ) {
        let hidden = norm.weight.len();
        cpu.quantize(x, hidden, hidden, Some(norm.view()), activations);
        cpu.ternary_matmul_part(gate_up, 0, activations, out);
        let (gates, ups) = out.split_at_mut(gate_up.output_range(1).start);
        let gates = &gates[gate_up.output_range(0)];
        let active_max = self.active_max(gates.len());
        if !cpu.gated_rows_matvec(up, gates, active_max, activations, scratch, ups) {
            cpu.ternary_matmul_part(gate_up, 1, activations, out);
        }
    }

    /// `x += delta`, whose rows are padded.
    fn add(&self, cpu: &Cpu, x: &mut [f32], delta: &[f32], stride: usize) {
        let hidden = self.config.hidden_size;
        let set = cpu.set();
        cpu.for_rows(x, hidden, &|row, x| {
            set.add(x, &delta[row * stride..row * stride + hidden])
        });
    }

    /// The last norm: hidden states of the rows whose logits are wanted.
    fn normalize(&self, cpu: &Cpu, w: &mut Workspace) {
        let hidden = self.config.hidden_size;
        let normed = sized(&mut w.normed, w.places.len() * hidden);
        let (set, x) = (cpu.set(), &w.x);
        cpu.for_rows(normed, hidden, &|row, normed| {
            let x = &x[row * hidden..(row + 1) * hidden];
            set.rms_norm(x, &self.output_norm.weight, self.output_norm.eps, normed);
        });
    }
}

impl Workspace {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What [`LanguageModel::logits`] gave last.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// What went through the feed-forward network of each layer since the start; empty if nothing
    /// did.
    #[must_use]
    pub fn ffn_activity(&self) -> &[FfnActivity] {
        &self.ffn_activity
    }

    /// What was estimated for a row of the last pass, over a vocabulary of `vocab`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn estimates(&self, row: usize, vocab: usize) -> Estimates<'_> {
        self.screen.estimates(row, vocab)
    }

    /// Lays the chunks out as rows.
    fn place<'a>(&mut self, chunks: impl Iterator<Item = Chunk<'a>>, vocab_size: usize) {
        self.tokens.clear();
        self.places.clear();
        self.blocks.clear();
        self.wanted.clear();
        for chunk in chunks {
            let end = chunk.position + chunk.tokens.len();
            assert!(!chunk.tokens.is_empty(), "an empty chunk");
            assert!(
                chunk.blocks.len() * KvCache::BLOCK >= end,
                "{} blocks for {end} positions",
                chunk.blocks.len()
            );
            let table = self.blocks.len();
            self.blocks.extend_from_slice(chunk.blocks);
            for (index, &token) in chunk.tokens.iter().enumerate() {
                assert!(
                    (token as usize) < vocab_size,
                    "token {token} of a vocabulary of {vocab_size}"
                );
                let is_last = index + 1 == chunk.tokens.len();
                if chunk.logits == LogitRows::All || chunk.logits == LogitRows::Last && is_last {
                    self.wanted.push(self.tokens.len());
                }
                self.tokens.push(token);
                self.places.push(Place {
                    position: chunk.position + index,
                    table,
                });
            }
        }
    }

    /// Moves the rows whose logits are wanted to the front and forgets the others.
    fn keep_wanted(&mut self, hidden: usize, qkv_stride: usize) {
        for (to, &from) in self.wanted.iter().enumerate() {
            self.x
                .copy_within(from * hidden..(from + 1) * hidden, to * hidden);
            self.qkv
                .copy_within(from * qkv_stride..(from + 1) * qkv_stride, to * qkv_stride);
            self.places[to] = self.places[from];
        }
        let rows = self.wanted.len();
        self.places.truncate(rows);
        self.x.truncate(rows * hidden);
        self.qkv.truncate(rows * qkv_stride);
    }

    fn places(&self) -> Places<'_> {
        Places {
            rows: &self.places,
            blocks: &self.blocks,
        }
    }

    fn qkv_rows(&self, layer: &Layer) -> Qkv<'_> {
        Qkv {
            data: &self.qkv,
            stride: layer.qkv.output_len(),
            offsets: qkv_offsets(layer),
        }
    }
}

/// `out = BitLinear(norm(x))` for projections of one input; x: `[rows, hidden]`, out: `[rows,
/// output_len]`.
///
/// Buffers: the quantized rows, and for projections with norms of their own the normalised rows and
/// one's output.
fn project(
    cpu: &Cpu,
    x: &[f32],
    norm: &RmsNorm,
    projections: &Projections,
    (activations, normed, delta): (&mut Activations, &mut Vec<f32>, &mut Vec<f32>),
    out: &mut [f32],
) {
    let hidden = norm.weight.len();
    let matrices = match projections {
        Projections::Stacked(matrix) => {
            cpu.quantize(x, hidden, hidden, Some(norm.view()), activations);
            return cpu.ternary_matmul(matrix, activations, out);
        }
        Projections::Normed(matrices) => matrices,
    };
    let (set, normed) = (cpu.set(), sized(normed, x.len()));
    cpu.for_rows(normed, hidden, &|row, normed| {
        set.rms_norm(
            &x[row * hidden..(row + 1) * hidden],
            &norm.weight,
            norm.eps,
            normed,
        );
    });
    let stride = projections.output_len();
    for (index, (norm, matrix)) in matrices.iter().enumerate() {
        cpu.quantize(normed, hidden, hidden, Some(norm.view()), activations);
        let part = sized(delta, x.len() / hidden * matrix.output_len());
        cpu.ternary_matmul(matrix, activations, part);
        let start = projections.output_range(index).start;
        for (row, part) in part.chunks_exact(matrix.output_len()).enumerate() {
            out[row * stride + start..][..part.len()].copy_from_slice(part);
        }
    }
}

fn qkv_offsets(layer: &Layer) -> [usize; 3] {
    std::array::from_fn(|part| layer.qkv.output_range(part).start)
}

/// The buffer at exactly this length; what it holds is unspecified. Allocates only to grow beyond
/// what it ever was.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
