//! [`Backend`]: the operations and memory that a device must offer to run a model.
//!
//! The forward pass (`forward.rs`) names operations and buffers only. A backend owns the memory
//! behind both: packed weights, tables, activations and the cache. Nothing in the pass reads a
//! buffer's contents, so a backend may queue its operations and run them later. It has to finish
//! them only in [`Backend::logits`], [`Backend::top_logits`], [`Backend::estimate`],
//! [`Backend::exact`] and [`Backend::read_row`], which return numbers to the host.
//!
//! `docs/determinism.md` lists the guarantees that a backend must give about the bits of its
//! results.

use std::ops::Range;

use bitnet_kernels::{
    AttentionShape, Counters, DeltaShape, Estimates, Gate, GroupCodes, Part, Place, Pool, Unpack,
    UnpackGroups,
};

use crate::activity::FfnActivity;
use crate::cache::CacheShape;
use crate::error::{Error, Result};
use crate::kept::{Keeper, Packed};
use crate::model::LanguageModel;
use crate::options::LoadOptions;
use crate::table::Table;

pub use crate::rotation::Rotation;
pub use crate::source::GroupTensor;

/// The memory and the operations of one kind of device.
///
/// Operations on rows compute each row from that row alone (attention: from its sequence alone), so
/// the rows of one batch never influence each other. An operation that writes a buffer of the type
/// [`Backend::Rows`] or [`Backend::Int8`] also sets its shape, and allocates only if the buffer was
/// never that large before.
pub trait Backend: Sized + Send + 'static {
    /// Constants, such as the weights of a norm.
    type Vector: Send + Sync;
    /// Ternary matrices of one input, stacked.
    type Matrix: Send + Sync;
    /// The embedding or the head, `[vocab, hidden]`.
    type Table: Send + Sync;
    /// Activations in f32, `[rows, cols]`.
    type Rows: Default + Send;
    /// Activations in int8 with their scales, `[rows, cols]`.
    type Int8: Default + Send;
    /// The tokens of a batch's rows and their places in their sequences.
    type Batch: Default + Send;
    /// Estimated logits with bounds on their errors.
    type Estimated: Default + Send;
    /// Keys and values of past positions, and recurrent states, of all layers.
    type Cache: Send;

    // Loading.

    /// Threads of the host, which read and check files.
    fn pool(&self) -> &Pool;

    /// Copies constants to the device.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;

    /// Packs a stack of ternary matrices.
    ///
    /// # Errors
    /// The first error of `unpack`.
    fn matrix(
        &self,
        stack: &Stack<'_>,
        options: &LoadOptions,
        unpack: &Unpack<'_, Error>,
    ) -> Result<Self::Matrix>;

    /// Packs a stack of matrices with a scale for each group of columns.
    ///
    /// # Errors
    /// The first error of `unpack`.
    fn group_matrix(
        &self,
        stack: &GroupStack<'_>,
        options: &LoadOptions,
        unpack: &UnpackGroups<'_, Error>,
    ) -> Result<Self::Matrix>;

    /// The bytes of a matrix for a cache file; `None` if the backend keeps nothing.
    fn packed_matrix(_matrix: &Self::Matrix) -> Option<Packed> {
        None
    }

    /// A matrix that was packed before, whose input is rotated by `rotation`. `None` if it is not
    /// from this backend or is no matrix.
    fn matrix_from(
        &self,
        _packed: &Packed,
        _rotation: Option<Rotation>,
        _options: &LoadOptions,
    ) -> Option<Self::Matrix> {
        None
    }

    /// Takes an embedding or a head with a scale for each group of columns. `keeper` may have its
    /// packed form.
    ///
    /// # Errors
    /// If its bytes contradict its format.
    fn group_table(
        &self,
        table: GroupTensor,
        uses: &TableUses,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Self::Table>;

    /// Takes the embedding or the head. `gives_logits`: the table is the head. `keeper` may have
    /// its packed form.
    ///
    /// # Errors
    /// If the backend does not support its format, or there is not enough memory.
    fn table(
        &self,
        table: Table,
        gives_logits: bool,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Self::Table>;

    /// Makes a cache.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn cache(&self, shape: &CacheShape) -> Result<Self::Cache>;

    /// Bytes of one sequence's recurrent state, all layers together; 0 without recurrent layers.
    fn state_bytes(cache: &Self::Cache) -> usize;

    /// Copies the recurrent state of all layers from one slot to another.
    ///
    /// # Panics
    /// If there is no such slot.
    fn copy_state(&self, cache: &mut Self::Cache, from: u32, to: u32);

    /// Whether the loader should leave out neurons that are always zero.
    fn leaves_out_dead_neurons(&self) -> bool {
        false
    }

    /// Called once after a model is loaded. The backend may change how it holds the weights.
    /// `keeper` may have the copies that an earlier call made.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn finish(&self, _model: &mut LanguageModel<Self>, _keeper: &Keeper) -> Result<()> {
        Ok(())
    }

    /// Describes how the backend holds a matrix.
    fn matrix_facts(matrix: &Self::Matrix) -> MatrixFacts;

    /// Describes how the backend holds a table.
    fn table_facts(table: &Self::Table) -> TableFacts;

    // The operations of the forward pass, in order.

    /// Begins a pass: copies the plan of its rows to the device.
    fn begin(&self, plan: &RowPlan, batch: &mut Self::Batch);

    /// `x = table[token]`
    fn embed(&self, table: &Self::Table, batch: &Self::Batch, x: &mut Self::Rows);

    /// Cosines and sines of `position · frequency` for each row, times the factor.
    fn angles(&self, rotary: &Rotary<Self>, batch: &Self::Batch, angles: &mut Self::Rows);

    /// `out = norm(x)`
    fn rms_norm(&self, x: &Self::Rows, norm: &RmsNorm<Self>, out: &mut Self::Rows);

    /// `out = int8(norm(x))`, rounded in the way that `matrix` takes its input.
    fn quantize(
        &self,
        x: &Self::Rows,
        norm: Option<&RmsNorm<Self>>,
        matrix: &Self::Matrix,
        out: &mut Self::Int8,
    );

    /// `out = matrix · x`. The output of each part of the stack begins at a multiple of
    /// [`bitnet_kernels::BLOCK_ROWS`].
    fn multiply(&self, matrix: &Self::Matrix, x: &Self::Int8, out: &mut Self::Rows);

    /// Copies `part` into the columns of `out` from `start` on; `out` then has `cols` columns.
    fn put_columns(&self, part: &Self::Rows, start: usize, cols: usize, out: &mut Self::Rows);

    /// `x[row][columns] += values` for each row.
    fn add_to_columns(&self, x: &mut Self::Rows, columns: &Range<usize>, values: &Self::Vector);

    /// `x *= factor`
    fn scale(&self, x: &mut Self::Rows, factor: f32);

    /// Normalises each head in some columns of `x` by itself.
    fn normalize_heads(&self, x: &mut Self::Rows, columns: &Range<usize>, norm: &RmsNorm<Self>);

    /// Rotates queries and keys by the angles of their rows: in each head the first elements, as
    /// many as there are angles for.
    fn rotate(&self, qkv: &mut Self::Rows, heads: &HeadColumns, angles: &Self::Rows);

    /// Writes the keys and values of each row to the cache of a layer, rounded to its type.
    fn store_kv(
        &self,
        qkv: &Self::Rows,
        heads: &HeadColumns,
        batch: &Self::Batch,
        cache: &mut Self::Cache,
        layer: usize,
    );

    /// Keeps only the rows that [`RowPlan::wanted`] lists, in the batch and in each of `buffers`.
    fn keep_wanted(&self, batch: &mut Self::Batch, buffers: &mut [&mut Self::Rows]);

    /// `out = softmax(q · keys / √head_dim) · values` over the positions of the row's sequence up
    /// to its own.
    fn attention(
        &self,
        qkv: &Self::Rows,
        heads: &HeadColumns,
        batch: &mut Self::Batch,
        cache: &mut Self::Cache,
        layer: usize,
        out: &mut Self::Rows,
    );

    /// `x = x · sigmoid(gates)`; the gates are columns of `projected`.
    fn gate(&self, x: &mut Self::Rows, projected: &Self::Rows, gates: &Range<usize>);

    /// `out = weights · x` in f32; weights: `[outputs, x's columns]`.
    fn multiply_floats(&self, weights: &Self::Vector, x: &Self::Rows, out: &mut Self::Rows);

    /// Gated DeltaNet: convolves queries, keys and values, advances the states of the batch's
    /// sequences in the order of their rows, and writes normalised, gated outputs.
    fn delta_net(
        &self,
        input: &DeltaRows<'_, Self>,
        layer: &DeltaLayer<Self>,
        batch: &mut Self::Batch,
        cache: &mut Self::Cache,
        out: &mut Self::Rows,
    );

    /// `out = int8(norm(act(gate) · up))`, rounded in the way that `matrix` takes its input. Adds
    /// to `seen` how many values were zero, if the backend counts them.
    fn gate_and_quantize(
        &self,
        gate_up: &Self::Rows,
        neurons: &NeuronColumns,
        norm: Option<&RmsNorm<Self>>,
        matrix: &Self::Matrix,
        out: &mut Self::Int8,
        seen: &mut FfnActivity,
    );

    /// `x += delta`; `delta` may have more columns than `x`, which do not count.
    fn add(&self, x: &mut Self::Rows, delta: &Self::Rows);

    /// Copies a row to the host: `out` becomes `[columns]`.
    fn read_row(&self, rows: &Self::Rows, row: usize, out: &mut Vec<f32>);

    // The head. Rows are the rows of `hidden`.

    /// All logits of some rows: `out` becomes `[rows, vocab]`.
    fn logits(&self, head: &Self::Table, hidden: &Self::Rows, rows: &[usize], out: &mut Vec<f32>);

    /// The first `k` logits of some rows, with their tokens: the larger first, the lower token first
    /// among equals, NaN last. `out` becomes `[rows, k]`, or `[rows, vocab]` if that is fewer. False
    /// if the backend does not choose among logits: only [`Backend::logits`] will do.
    fn top_logits(
        &self,
        _head: &Self::Table,
        _hidden: &Self::Rows,
        _rows: &[usize],
        _k: usize,
        _out: &mut Vec<(u32, f32)>,
    ) -> bool {
        false
    }

    /// Estimates all logits of all rows. False if the backend cannot: only
    /// [`Backend::logits`] will do.
    fn estimate(&self, head: &Self::Table, hidden: &Self::Rows, to: &mut Self::Estimated) -> bool;

    /// The estimates of one row.
    fn estimates(estimated: &Self::Estimated, row: usize, vocab: usize) -> Estimates<'_>;

    /// The logits of some tokens for one row, in full: `out` becomes `[tokens]`. Not counted until
    /// [`Backend::count_exact`].
    fn exact(
        &self,
        head: &Self::Table,
        hidden: &Self::Rows,
        row: usize,
        tokens: &[u32],
        out: &mut Vec<f32>,
    );

    /// Counts the logits that [`Backend::exact`] computed for a row. `decided`: they were enough to
    /// choose a token, so the row's other logits were left out; otherwise they were wasted.
    fn count_exact(&self, head: &Self::Table, num_exact: usize, decided: bool);

    /// The counts of all kernels so far.
    fn counters(&self) -> &Counters;

    /// Why results are worthless since some operation, such as a lost device; `None` as long as
    /// they are right. Check it before using results of [`Backend::logits`].
    fn failure(&self) -> Option<String> {
        None
    }
}

/// Ternary matrices of one input, as the loader requests them.
pub struct Stack<'a> {
    /// Their rows and scales.
    pub parts: &'a [Part],
    /// The length of the input.
    pub cols: usize,
    /// Rows and columns by which [`LoadOptions::packings`] knows the matrix.
    pub shape: (usize, usize),
    /// Weights of the model that these matrices leave out because they add nothing.
    pub num_left_out: usize,
}

/// Matrices of one input with scales for groups of columns, as the loader requests them.
pub struct GroupStack<'a> {
    /// The rows of each matrix.
    pub parts: &'a [usize],
    /// The length of the input.
    pub cols: usize,
    /// The set of their codes.
    pub codes: GroupCodes,
    /// Columns that share a scale.
    pub group_cols: usize,
    /// How the input is rotated before it is rounded, if it is.
    pub rotation: Option<Rotation>,
}

/// The uses of a table.
#[derive(Clone, Debug, Default)]
pub struct TableUses {
    /// Whether it is the head.
    pub gives_logits: bool,
    /// How the rows that are looked up are rotated back, if they are.
    pub rows_rotation: Option<Rotation>,
    /// How the input of the head is rotated, if it is.
    pub input_rotation: Option<Rotation>,
}

/// The rotary position embedding.
pub struct Rotary<B: Backend> {
    /// The angle by which a position turns each pair of a head, `[rotary_dim / 2]`.
    pub frequencies: B::Vector,
    /// The factor of cosines and sines.
    pub factor: f32,
}

/// The constants of a Gated DeltaNet layer.
pub struct DeltaLayer<B: Backend> {
    /// The heads.
    pub shape: DeltaShape,
    /// The offset of the layer's state in the states of a sequence, in numbers.
    pub state_start: usize,
    /// `[4 taps, channels]`; the last tap meets the newest token.
    pub conv: B::Vector,
    /// `[2, value heads]`: the logarithm of the decay for a unit of time, negative; then the bias
    /// that is added to the times of the decay.
    pub decay_and_bias: B::Vector,
    /// The norm of each head's output, `[head_dim]`.
    pub norm: RmsNorm<B>,
}

/// The inputs of a Gated DeltaNet layer.
pub struct DeltaRows<'a, B: Backend> {
    /// Rows of projections.
    pub projected: &'a B::Rows,
    /// The columns of queries, keys and values.
    pub qkv: Range<usize>,
    /// The columns of the output's gates.
    pub gate: Range<usize>,
    /// `[rows, 2 · value heads]`: times of the decay, then how strongly a token is written.
    pub times: &'a B::Rows,
}

/// A root-mean-square norm.
pub struct RmsNorm<B: Backend> {
    /// One for each column.
    pub weight: B::Vector,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// The columns of a row of projections that hold queries, keys and values.
#[derive(Clone, Debug)]
pub struct HeadColumns {
    /// The number of heads and their length.
    pub shape: AttentionShape,
    /// `heads · head_dim` columns.
    pub queries: Range<usize>,
    /// `kv_heads · head_dim` columns.
    pub keys: Range<usize>,
    /// `kv_heads · head_dim` columns.
    pub values: Range<usize>,
}

/// The columns of a row of projections that hold the inner values of a feed-forward network.
#[derive(Clone, Debug)]
pub struct NeuronColumns {
    /// The function of the gates.
    pub gate: Gate,
    /// The gates.
    pub gates: Range<usize>,
    /// The gated values.
    pub ups: Range<usize>,
    /// The neurons of the network, including dead neurons.
    pub num_neurons: usize,
    /// The positions, ascending, of the neurons that these columns hold, if not all.
    pub live: Option<Vec<u32>>,
}

impl NeuronColumns {
    /// Number of neurons that have columns.
    #[must_use]
    pub fn num_live(&self) -> usize {
        self.gates.len()
    }
}

/// The rows of a pass: consecutive tokens of one or more sequences.
#[derive(Default)]
pub struct RowPlan {
    /// One for each row.
    pub tokens: Vec<u32>,
    /// The position of each row and where [`RowPlan::blocks`] lists the blocks of its sequence.
    pub places: Vec<Place>,
    /// The block tables of all sequences.
    pub blocks: Vec<u32>,
    /// The rows that need logits, ascending.
    pub wanted: Vec<usize>,
    /// The rows of each sequence, which a recurrent layer walks in order.
    pub runs: Vec<Run>,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The rows.
    pub rows: Range<usize>,
    /// The position of the first row; a state at position 0 is zeros.
    pub position: usize,
    /// The slot of the sequence's state.
    pub state: u32,
}

/// How a backend holds a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixFacts {
    /// The name of the layout of the weights.
    pub packing: &'static str,
    /// Bytes that a dense product reads, padding included.
    pub num_bytes: usize,
    /// Bytes of the copy that steps with few active rows or columns read instead, if there is one.
    pub copy_bytes: Option<usize>,
}

/// How a backend holds a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// The name of the format of the rows.
    pub format: &'static str,
    /// Bytes of the 8-bit copy that logits are estimated from, if there is one.
    pub screen_bytes: Option<usize>,
}
