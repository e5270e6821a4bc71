//! The forward pass, once, in the order of the paper: token ids to logits.
//!
//! ```text
//! x = embedding[token]
//! for each layer:
//!     q, k, v = BitLinear(rms_norm(x));  rotate q and k;  k, v to the cache
//!     x += BitLinear(sub_norm(attention(q, cache)))       or, in layers of linear attention,
//!     x += BitLinear(delta_net(BitLinear(rms_norm(x)), state))
//!     gate, up = BitLinear(rms_norm(x))
//!     x += BitLinear(sub_norm(act(gate) · up))
//! logits = head · rms_norm(x)
//! ```
//!
//! BitLinear rounds its input rows to int8 and multiplies them by ternary weights (BitNet b1.58, Ma
//! et al. 2024). Rows of several sequences go through together; no row's result depends on the
//! other rows.
//!
//! The pass names operations and buffers; a [`Backend`] carries them out.

use bitnet_kernels::{Estimates, Place};

use crate::activity::FfnActivity;
use crate::backend::{Backend, DeltaRows, RmsNorm, RowPlan, Run};
use crate::cache::KvCache;
use crate::model::{Attention, LanguageModel, Layer, Linear, Mixer, Products, Projections};

/// The rows of a chunk that need logits.
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
    /// The slot of the sequence's recurrent state, which stands at `position`; any number for a
    /// model without recurrent layers. At position 0 the state is zeros, and the slot's contents
    /// are ignored.
    pub state: u32,
    /// Which logits to compute.
    pub logits: LogitRows,
}

/// The activations of one pass. Grows to the largest batch so far, so a decode step allocates
/// nothing.
pub struct Workspace<B: Backend> {
    plan: RowPlan,
    batch: B::Batch,
    /// Residual stream, `[rows, hidden]`.
    x: B::Rows,
    /// Cosines, then sines, of each row's angles, `[rows, head_dim]`.
    angles: B::Rows,
    /// Normalised input of projections that normalise it again, `[rows, hidden]`.
    normed: B::Rows,
    /// Rounded input of a product, `[rows, cols]`.
    int8: B::Int8,
    /// Output of one projection among several, or the term that a block adds to the residual
    /// stream.
    delta: B::Rows,
    /// Queries, keys, values and gates, `[rows, qkv.output_len]`.
    qkv: B::Rows,
    /// Times of the decay and strengths of linear attention, `[rows, 2 · value heads]`.
    times: B::Rows,
    /// Output of the mixer, `[rows, mixed]`.
    mixed: B::Rows,
    /// `[rows, gate_up.output_len]`
    gate_up: B::Rows,
    /// Hidden states of the rows whose logits are wanted, `[logit rows, hidden]`.
    hidden: B::Rows,
    estimated: B::Estimated,
    /// The logits that [`LanguageModel::forward`] returns.
    logits: Vec<f32>,
    /// Counts of each layer since the start.
    ffn_activity: Vec<FfnActivity>,
}

impl<B: Backend> LanguageModel<B> {
    /// Runs the chunks, which must be of different sequences, and returns the logits asked for:
    /// `[logit rows, vocab]`, in the order of the chunks. The cache then holds the keys and values
    /// of all tokens.
    ///
    /// # Panics
    /// If a token is outside the vocabulary, a chunk is empty, or a block table is too short.
    pub fn forward<'w>(
        &self,
        backend: &B,
        workspace: &'w mut Workspace<B>,
        cache: &mut B::Cache,
        chunks: &[Chunk<'_>],
    ) -> &'w [f32] {
        let rows = self.hidden_states(backend, workspace, cache, chunks.iter().copied());
        let rows: Vec<usize> = (0..rows).collect();
        backend.logits(self.head(), &workspace.hidden, &rows, &mut workspace.logits);
        &workspace.logits
    }

    /// [`LanguageModel::forward`] without the head: returns the number of rows whose logits are
    /// wanted, which [`LanguageModel::logits`], [`LanguageModel::estimate`] and
    /// [`LanguageModel::exact`] then compute.
    ///
    /// # Panics
    /// As [`LanguageModel::forward`].
    pub fn hidden_states<'a>(
        &self,
        b: &B,
        w: &mut Workspace<B>,
        cache: &mut B::Cache,
        chunks: impl Iterator<Item = Chunk<'a>>,
    ) -> usize {
        w.plan.lay_out(chunks, self.config.vocab_size);
        w.ffn_activity
            .resize(self.layers.len(), FfnActivity::default());
        b.begin(&w.plan, &mut w.batch);
        b.embed(&self.embedding, &w.batch, &mut w.x);
        scale(b, &mut w.x, self.config.multipliers.embedding);
        b.angles(&self.rotary, &w.batch, &mut w.angles);
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index == last;
            match &layer.mixer {
                Mixer::Attention(attention) => {
                    self.attend(b, w, layer, attention, cache, is_last);
                }
                Mixer::Linear(linear) => self.recur(b, w, layer, linear, cache, is_last),
            }
            if is_last && w.plan.wanted.is_empty() {
                return 0;
            }
            self.add_mixed(b, w, layer);
            self.add_feed_forward(b, w, layer, index);
        }
        b.rms_norm(&w.x, &self.output_norm, &mut w.hidden);
        w.plan.wanted.len()
    }

    /// `mixed = attention(q, cache)`, with `q, k, v = BitLinear(norm(x))`, q and k rotated, k and v
    /// stored in the cache first.
    fn attend(
        &self,
        b: &B,
        w: &mut Workspace<B>,
        layer: &Layer<B>,
        attention: &Attention<B>,
        cache: &mut B::Cache,
        is_last: bool,
    ) {
        let Attention {
            qkv,
            heads,
            gates,
            biases,
            head_norms,
            rotates_first,
            cache_layer,
        } = attention;
        let buffers = (&mut w.int8, &mut w.normed, &mut w.delta);
        project(b, &w.x, &layer.attention_norm, qkv, buffers, &mut w.qkv);
        if let Some([query, key, value]) = biases {
            b.add_to_columns(&mut w.qkv, &heads.queries, query);
            b.add_to_columns(&mut w.qkv, &heads.keys, key);
            b.add_to_columns(&mut w.qkv, &heads.values, value);
        }
        if *rotates_first {
            b.rotate(&mut w.qkv, heads, &w.angles);
        }
        if let Some([query_norm, key_norm]) = head_norms {
            b.normalize_heads(&mut w.qkv, &heads.queries, query_norm);
            b.normalize_heads(&mut w.qkv, &heads.keys, key_norm);
        }
        if !rotates_first {
            b.rotate(&mut w.qkv, heads, &w.angles);
        }
        b.store_kv(&w.qkv, heads, &w.batch, cache, *cache_layer);
        if is_last {
            // After the keys and values of the last layer, only the rows with logits matter.
            b.keep_wanted(&mut w.batch, &mut [&mut w.x, &mut w.qkv]);
            if w.plan.wanted.is_empty() {
                return;
            }
        }
        b.attention(
            &w.qkv,
            heads,
            &mut w.batch,
            cache,
            *cache_layer,
            &mut w.mixed,
        );
        if let Some(gates) = gates {
            b.gate(&mut w.mixed, &w.qkv, gates);
        }
    }

    /// `mixed = delta_net(BitLinear(norm(x)))`, advancing the state of each sequence.
    fn recur(
        &self,
        b: &B,
        w: &mut Workspace<B>,
        layer: &Layer<B>,
        linear: &Linear<B>,
        cache: &mut B::Cache,
        is_last: bool,
    ) {
        b.rms_norm(&w.x, &layer.attention_norm, &mut w.normed);
        b.multiply_floats(&linear.times, &w.normed, &mut w.times);
        b.quantize(&w.normed, None, &linear.projections, &mut w.int8);
        b.multiply(&linear.projections, &w.int8, &mut w.qkv);
        let input = DeltaRows {
            projected: &w.qkv,
            qkv: linear.qkv.clone(),
            gate: linear.gate.clone(),
            times: &w.times,
        };
        b.delta_net(&input, &linear.layer, &mut w.batch, cache, &mut w.mixed);
        if is_last {
            b.keep_wanted(&mut w.batch, &mut [&mut w.x, &mut w.mixed]);
        }
    }

    /// `x += BitLinear(sub_norm(mixed))`
    fn add_mixed(&self, b: &B, w: &mut Workspace<B>, layer: &Layer<B>) {
        let (norm, output) = (layer.mixer_output_norm.as_ref(), &layer.mixer_output);
        b.quantize(&w.mixed, norm, output, &mut w.int8);
        b.multiply(output, &w.int8, &mut w.delta);
        self.add_delta(b, w, layer.mixer_post_norm.as_ref());
    }

    /// `x += delta`, with its norm and factor if the graph has them.
    fn add_delta(&self, b: &B, w: &mut Workspace<B>, norm: Option<&RmsNorm<B>>) {
        if let Some(norm) = norm {
            let hidden = 0..self.config.hidden_size;
            b.normalize_heads(&mut w.delta, &hidden, norm);
        }
        scale(b, &mut w.delta, self.config.multipliers.residual);
        b.add(&mut w.x, &w.delta);
    }

    /// `x += BitLinear(sub_norm(act(gate) · up))`
    fn add_feed_forward(&self, b: &B, w: &mut Workspace<B>, layer: &Layer<B>, index: usize) {
        let buffers = (&mut w.int8, &mut w.normed, &mut w.delta);
        project(
            b,
            &w.x,
            &layer.ffn_norm,
            &layer.gate_up,
            buffers,
            &mut w.gate_up,
        );
        b.gate_and_quantize(
            &w.gate_up,
            &layer.neurons,
            layer.ffn_down_norm.as_ref(),
            &layer.ffn_down,
            &mut w.int8,
            &mut w.ffn_activity[index],
        );
        b.multiply(&layer.ffn_down, &w.int8, &mut w.delta);
        self.add_delta(b, w, layer.ffn_post_norm.as_ref());
    }

    /// The hidden state of a row of the last pass, after the last norm: `out` becomes `[hidden]`.
    /// If the graph divides its logits, the state is divided, too.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn hidden(&self, b: &B, w: &Workspace<B>, row: usize, out: &mut Vec<f32>) {
        b.read_row(&w.hidden, row, out);
    }

    /// All logits of some rows of the last pass: `out` becomes `[rows, vocab]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn logits(&self, b: &B, w: &Workspace<B>, rows: &[usize], out: &mut Vec<f32>) {
        b.logits(self.head(), &w.hidden, rows, out);
    }

    /// The first `k` logits of some rows of the last pass; see [`Backend::top_logits`].
    ///
    /// # Panics
    /// If there is no such row.
    pub fn top_logits(
        &self,
        b: &B,
        w: &Workspace<B>,
        rows: &[usize],
        k: usize,
        out: &mut Vec<(u32, f32)>,
    ) -> bool {
        b.top_logits(self.head(), &w.hidden, rows, k, out)
    }

    /// Estimates the logits of all rows of the last pass, which [`Workspace::estimates`] then
    /// returns. False if the model is not screened or no estimate is possible: only all logits will
    /// do.
    pub fn estimate(&self, b: &B, w: &mut Workspace<B>) -> bool {
        b.estimate(self.head(), &w.hidden, &mut w.estimated)
    }

    /// The logits of some tokens for one row of the last pass, in full: `out` becomes `[tokens]`.
    /// The caller counts them with [`LanguageModel::count_exact`].
    ///
    /// # Panics
    /// If there is no such row or token.
    pub fn exact(&self, b: &B, w: &Workspace<B>, row: usize, tokens: &[u32], out: &mut Vec<f32>) {
        b.exact(self.head(), &w.hidden, row, tokens, out);
    }

    /// Counts the logits of one row that [`LanguageModel::exact`] computed. `decided`: they were
    /// enough to choose a token, so the row's other logits were left out; otherwise they were
    /// wasted.
    pub fn count_exact(&self, b: &B, num_exact: usize, decided: bool) {
        b.count_exact(self.head(), num_exact, decided);
    }
}

/// `x *= factor`, if the graph has such a factor.
fn scale<B: Backend>(b: &B, x: &mut B::Rows, factor: f32) {
    if factor != 1.0 {
        b.scale(x, factor);
    }
}

/// `out = BitLinear(norm(x))` for projections of one input.
///
/// Buffers: the rounded rows; for projections with their own norms, also the normalised rows and
/// the output of one projection.
fn project<B: Backend>(
    b: &B,
    x: &B::Rows,
    norm: &RmsNorm<B>,
    projections: &Projections<B>,
    (int8, normed, part): (&mut B::Int8, &mut B::Rows, &mut B::Rows),
    out: &mut B::Rows,
) {
    match &projections.products {
        Products::Stacked(matrix) => {
            b.quantize(x, Some(norm), matrix, int8);
            b.multiply(matrix, int8, out);
        }
        Products::Normed(products) => {
            b.rms_norm(x, norm, normed);
            for ((norm, matrix), columns) in products.iter().zip(&projections.columns) {
                b.quantize(normed, Some(norm), matrix, int8);
                b.multiply(matrix, int8, part);
                b.put_columns(part, columns.start, projections.output_len, out);
            }
        }
    }
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Workspace<B> {
    /// An empty workspace.
    #[must_use]
    pub fn new() -> Self {
        Self {
            plan: RowPlan::default(),
            batch: B::Batch::default(),
            x: B::Rows::default(),
            angles: B::Rows::default(),
            normed: B::Rows::default(),
            int8: B::Int8::default(),
            delta: B::Rows::default(),
            qkv: B::Rows::default(),
            times: B::Rows::default(),
            mixed: B::Rows::default(),
            gate_up: B::Rows::default(),
            hidden: B::Rows::default(),
            estimated: B::Estimated::default(),
            logits: Vec::new(),
            ffn_activity: Vec::new(),
        }
    }

    /// Counts of the feed-forward network of each layer since the start; empty before the first
    /// pass.
    #[must_use]
    pub fn ffn_activity(&self) -> &[FfnActivity] {
        &self.ffn_activity
    }

    /// The estimated logits of a row of the last pass, over a vocabulary of `vocab`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn estimates(&self, row: usize, vocab: usize) -> Estimates<'_> {
        B::estimates(&self.estimated, row, vocab)
    }
}

impl RowPlan {
    /// Lays the chunks out as rows.
    fn lay_out<'a>(&mut self, chunks: impl Iterator<Item = Chunk<'a>>, vocab_size: usize) {
        self.tokens.clear();
        self.places.clear();
        self.blocks.clear();
        self.wanted.clear();
        self.runs.clear();
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
            self.runs.push(Run {
                rows: self.tokens.len()..self.tokens.len() + chunk.tokens.len(),
                position: chunk.position,
                state: chunk.state,
            });
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
}
