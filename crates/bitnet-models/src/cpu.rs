//! The CPU as a [`Backend`]: buffers are vectors, and [`bitnet_kernels::Cpu`] runs the operations.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ops::Range;

use bitnet_kernels::{
    Activations, AttentionScratch, Counters, Cpu, DeltaInput, DeltaScratch, DeltaWeights,
    Estimates, Kernel, KernelSet, LiveNeurons, Neurons, Norm, Place, Places, Pool, Qkv,
    ScreenScratch, ScreenTable, SparseScratch, StateRows, TernaryColumns, TernaryMatrix,
    TernaryRows, Unpack, UnpackGroups,
};

use bitnet_quantization::dense::Dense;

use crate::activity::FfnActivity;
use crate::backend::{
    Backend, DeltaLayer, DeltaRows, GroupStack, HeadColumns, MatrixFacts, NeuronColumns, RmsNorm,
    Rotary, RowPlan, Run, Stack, TableFacts, TableUses,
};
use crate::cache::{CacheShape, KvCache, KvType};
use crate::error::{Error, Result};
use crate::grouped::{GroupRows, GroupTable, GroupWeights};
use crate::kept::{Facts, Keeper, Packed};
use crate::model::LanguageModel;
use crate::options::{HeadMode, LoadOptions};
use crate::rotation::Rotation;
use crate::source::GroupTensor;
use crate::table::{Table, decode};

/// Minimum size of a head for screening, in bytes: such a head exceeds a processor's cache, so
/// every token would read it from memory.
const SCREENED_BYTES: usize = 16 << 20;

thread_local! {
    /// The hidden states of some rows, side by side. Kept, so that a decode step allocates nothing.
    static PICKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A row of a table as f32, kept for the same reason.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows of f32, `[rows, cols]`.
#[derive(Default)]
pub struct FloatRows {
    values: Vec<f32>,
    cols: usize,
}

impl FloatRows {
    /// Gives the buffer a shape; its contents are then unspecified. Allocates only to grow beyond
    /// the largest size so far.
    fn shape(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        self.cols = cols;
        self.values.resize(rows * cols, 0.0);
        &mut self.values
    }

    fn rows(&self) -> usize {
        self.values.len().checked_div(self.cols).unwrap_or(0)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }
}

/// Int8 rows, and the buffers of products with few active rows or columns.
#[derive(Default)]
pub struct Int8Rows {
    /// With one scale for each row.
    rows: Activations,
    /// With a scale for each run of inputs.
    groups: GroupRows,
    scratch: RefCell<SparseScratch>,
}

/// The rows of a pass.
#[derive(Default)]
pub struct CpuBatch {
    tokens: Vec<u32>,
    places: Vec<Place>,
    blocks: Vec<u32>,
    wanted: Vec<usize>,
    runs: Vec<Run>,
    scratch: AttentionScratch,
    delta_scratch: DeltaScratch,
}

impl CpuBatch {
    fn places(&self) -> Places<'_> {
        Places {
            rows: &self.places,
            blocks: &self.blocks,
        }
    }
}

/// Packed weights.
pub enum CpuMatrix {
    /// With one scale for each matrix.
    Ternary(TernaryWeights),
    /// With a scale for each group of columns.
    Grouped(GroupWeights),
}

impl CpuMatrix {
    /// The weights, if they have one scale for each matrix.
    pub(crate) fn ternary_mut(&mut self) -> Option<&mut TernaryWeights> {
        match self {
            Self::Ternary(weights) => Some(weights),
            Self::Grouped(_) => None,
        }
    }
}

/// Packed ternary weights, perhaps with a copy for steps that need only few of them.
pub struct TernaryWeights {
    pub(crate) weights: TernaryMatrix,
    /// See [`Stack::num_left_out`].
    num_left_out: usize,
    pub(crate) copy: Option<SparseCopy>,
}

/// A copy of weights for products of a single row that need only some of them, used while their
/// number is at most `active_max`.
pub(crate) struct SparseCopy {
    pub weights: SparseWeights,
    pub active_max: usize,
}

/// Weights whose rows or columns can be read one by one.
pub(crate) enum SparseWeights {
    /// The second part of a stack of gates and ups: a row is needed only if its gate, the output of
    /// the first part, is positive.
    GatedRows(TernaryRows),
    /// All weights: a column is needed only if its activation is not zero.
    Columns(TernaryColumns),
}

impl SparseWeights {
    fn num_bytes(&self) -> usize {
        match self {
            Self::GatedRows(rows) => rows.num_bytes(),
            Self::Columns(columns) => columns.num_bytes(),
        }
    }
}

/// A table with a row for each token.
pub enum CpuTable {
    /// Floats or blocks, read in place from the file.
    Stored(StoredTable),
    /// Codes with a scale for each group of columns.
    Grouped(GroupTable),
}

/// A table as the file stores it, with an 8-bit copy if logits are estimated.
pub struct StoredTable {
    rows: Table,
    screen: Option<ScreenTable>,
}

impl CpuTable {
    /// The rows, if they are read as stored in the file.
    #[must_use]
    pub fn rows(&self) -> Option<&Table> {
        match self {
            Self::Stored(table) => Some(&table.rows),
            Self::Grouped(_) => None,
        }
    }

    /// Number of rows: one for each token.
    fn vocab(&self) -> usize {
        match self {
            Self::Stored(table) => table.rows.rows(),
            Self::Grouped(table) => table.rows(),
        }
    }

    fn row_bytes(&self) -> usize {
        match self {
            Self::Stored(table) => table.rows.row_bytes(),
            Self::Grouped(table) => table.row_bytes(),
        }
    }

    /// Numbers in a row.
    fn cols(&self) -> usize {
        match self {
            Self::Stored(table) => table.rows.cols(),
            Self::Grouped(table) => table.cols(),
        }
    }

    /// The row of a token as f32.
    fn read_row(&self, set: &KernelSet, token: usize, out: &mut [f32]) {
        match self {
            Self::Stored(table) => table.rows.read_row(token, out),
            Self::Grouped(table) => table.read_row(set, token, out),
        }
    }

    /// `out[t] = table · x[t]`
    fn project(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Stored(table) => table.project(cpu, x, out),
            Self::Grouped(table) => table.project(cpu, x, out),
        }
    }
}

impl StoredTable {
    /// `out[t] = rows · x[t]`; x: `[n, cols]`, out: `[n, rows]`.
    fn project(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        let (table, cols, row_bytes) = (&self.rows, self.rows.cols(), self.rows.row_bytes());
        let rows = table.stored_rows();
        match table.format() {
            Dense::F16 => cpu.project_f16(rows, x, cols, out),
            format => cpu.project(row_bytes, rows, x, cols, out, &|row, values| {
                decode(format, row, values)
            }),
        }
    }

    /// `row · x` with the same bits as [`StoredTable::project`]; x: `[cols]`.
    fn dot(&self, cpu: &Cpu, token: u32, x: &[f32]) -> f32 {
        let (table, set) = (&self.rows, cpu.set());
        let bytes = table.stored_row(token as usize);
        let mut out = [0.0];
        if table.format() == Dense::F16 {
            set.matvec_f16(bytes, x, &mut out);
        } else {
            ROW.with_borrow_mut(|row| {
                row.resize(table.cols(), 0.0);
                decode(table.format(), bytes, row);
                set.matvec_f32(row, x, &mut out);
            });
        }
        out[0]
    }
}

impl Backend for Cpu {
    type Vector = Vec<f32>;
    type Matrix = CpuMatrix;
    type Table = CpuTable;
    type Rows = FloatRows;
    type Int8 = Int8Rows;
    type Batch = CpuBatch;
    type Estimated = ScreenScratch;
    type Cache = KvCache;

    fn pool(&self) -> &Pool {
        self.pool()
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn matrix(
        &self,
        stack: &Stack<'_>,
        options: &LoadOptions,
        unpack: &Unpack<'_, Error>,
    ) -> Result<CpuMatrix> {
        let packing = options.packing(stack.shape).unwrap_or(self.set().packing);
        let weights = TernaryMatrix::pack(self.pool(), stack.parts, stack.cols, packing, unpack)?;
        Ok(CpuMatrix::Ternary(TernaryWeights {
            weights,
            num_left_out: stack.num_left_out,
            copy: None,
        }))
    }

    fn group_matrix(
        &self,
        stack: &GroupStack<'_>,
        options: &LoadOptions,
        unpack: &UnpackGroups<'_, Error>,
    ) -> Result<CpuMatrix> {
        Ok(CpuMatrix::Grouped(GroupWeights::pack(
            self, stack, options, unpack,
        )?))
    }

    fn packed_matrix(matrix: &CpuMatrix) -> Option<Packed> {
        Some(match matrix {
            CpuMatrix::Ternary(matrix) => Packed::of_ternary(&matrix.weights, matrix.num_left_out),
            CpuMatrix::Grouped(weights) => weights.packed(),
        })
    }

    fn matrix_from(
        &self,
        packed: &Packed,
        rotation: Option<Rotation>,
        options: &LoadOptions,
    ) -> Option<CpuMatrix> {
        if let Some((weights, num_left_out)) = packed.ternary() {
            return Some(CpuMatrix::Ternary(TernaryWeights {
                weights,
                num_left_out,
                copy: None,
            }));
        }
        let weights = GroupWeights::new(packed.groups()?, rotation, options);
        Some(CpuMatrix::Grouped(weights))
    }

    fn group_table(
        &self,
        table: GroupTensor,
        uses: &TableUses,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<CpuTable> {
        Ok(CpuTable::Grouped(GroupTable::new(
            self, table, uses, options, keeper,
        )?))
    }

    fn table(
        &self,
        table: Table,
        gives_logits: bool,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<CpuTable> {
        let is_large = table.rows() * table.row_bytes() >= SCREENED_BYTES;
        let is_screened = match options.head {
            HeadMode::Full => false,
            HeadMode::Screened => gives_logits,
            HeadMode::Auto => gives_logits && is_large,
        };
        let screen = is_screened.then(|| screen(self, &table, keeper));
        Ok(CpuTable::Stored(StoredTable {
            rows: table,
            screen,
        }))
    }

    fn cache(&self, shape: &CacheShape) -> Result<KvCache> {
        KvCache::with_shape(shape)
    }

    fn state_bytes(cache: &KvCache) -> usize {
        cache.state_len() * size_of::<f32>()
    }

    fn copy_state(&self, cache: &mut KvCache, from: u32, to: u32) {
        cache.copy_state(from, to);
    }

    fn leaves_out_dead_neurons(&self) -> bool {
        true
    }

    fn finish(&self, model: &mut LanguageModel<Self>, keeper: &Keeper) -> Result<()> {
        model.make_sparse_copies(self, keeper)
    }

    fn matrix_facts(matrix: &CpuMatrix) -> MatrixFacts {
        match matrix {
            CpuMatrix::Ternary(matrix) => MatrixFacts {
                packing: matrix.weights.packing().name(),
                num_bytes: matrix.weights.num_bytes(),
                copy_bytes: matrix.copy.as_ref().map(|copy| copy.weights.num_bytes()),
            },
            CpuMatrix::Grouped(weights) => weights.facts(),
        }
    }

    fn table_facts(table: &CpuTable) -> TableFacts {
        match table {
            CpuTable::Stored(table) => TableFacts {
                format: table.rows.format().name(),
                screen_bytes: table.screen.as_ref().map(ScreenTable::num_bytes),
            },
            CpuTable::Grouped(table) => TableFacts {
                format: table.format_name(),
                screen_bytes: None,
            },
        }
    }

    fn begin(&self, plan: &RowPlan, batch: &mut CpuBatch) {
        batch.tokens.clone_from(&plan.tokens);
        batch.places.clone_from(&plan.places);
        batch.blocks.clone_from(&plan.blocks);
        batch.wanted.clone_from(&plan.wanted);
        batch.runs.clone_from(&plan.runs);
    }

    fn embed(&self, table: &CpuTable, batch: &CpuBatch, x: &mut FloatRows) {
        let (cols, row_bytes) = (table.cols(), table.row_bytes());
        let set = self.set();
        let read_row = |token: usize, out: &mut [f32]| table.read_row(set, token, out);
        let x = x.shape(batch.tokens.len(), cols);
        self.embed(&batch.tokens, cols, row_bytes, &read_row, x);
    }

    fn angles(&self, rotary: &Rotary<Self>, batch: &CpuBatch, angles: &mut FloatRows) {
        let angles = angles.shape(batch.places.len(), 2 * rotary.frequencies.len());
        self.angles(&batch.places, &rotary.frequencies, rotary.factor, angles);
    }

    fn read_row(&self, rows: &FloatRows, row: usize, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&rows.values[row * rows.cols..(row + 1) * rows.cols]);
    }

    fn rms_norm(&self, x: &FloatRows, norm: &RmsNorm<Self>, out: &mut FloatRows) {
        let out = out.shape(x.rows(), x.cols);
        self.rms_norm(&x.values, view(norm), out);
    }

    fn quantize(
        &self,
        x: &FloatRows,
        norm: Option<&RmsNorm<Self>>,
        matrix: &CpuMatrix,
        out: &mut Int8Rows,
    ) {
        match matrix {
            CpuMatrix::Ternary(_) => {
                self.quantize(&x.values, x.cols, x.cols, norm.map(view), &mut out.rows);
            }
            CpuMatrix::Grouped(weights) => {
                weights.round(self, &x.values, norm.map(view), &mut out.groups);
            }
        }
    }

    fn multiply(&self, matrix: &CpuMatrix, x: &Int8Rows, out: &mut FloatRows) {
        let matrix = match matrix {
            CpuMatrix::Ternary(matrix) => matrix,
            CpuMatrix::Grouped(weights) => {
                let out = out.shape(x.groups.rows(), weights.output_len());
                return weights.multiply(self, &x.groups, out);
            }
        };
        let rows = x.rows.rows();
        let out = out.shape(rows, matrix.weights.output_len());
        let mut kernel = matrix.weights.kernel(rows);
        match &matrix.copy {
            Some(copy) if rows == 1 => {
                if multiply_active(self, matrix, copy, x, out) {
                    kernel = Kernel::I2sGemv;
                }
            }
            _ => self.ternary_matmul(&matrix.weights, &x.rows, out),
        }
        self.counters().skip(kernel, rows * matrix.num_left_out);
    }

    fn put_columns(&self, part: &FloatRows, start: usize, cols: usize, out: &mut FloatRows) {
        let out = out.shape(part.rows(), cols);
        let rows = out.chunks_exact_mut(cols);
        for (out, part) in rows.zip(part.values.chunks_exact(part.cols)) {
            out[start..start + part.len()].copy_from_slice(part);
        }
    }

    fn add_to_columns(&self, x: &mut FloatRows, columns: &Range<usize>, values: &Vec<f32>) {
        self.add_to_columns(&mut x.values, x.cols, columns.clone(), values);
    }

    fn scale(&self, x: &mut FloatRows, factor: f32) {
        self.scale(&mut x.values, x.cols, factor);
    }

    fn normalize_heads(&self, x: &mut FloatRows, columns: &Range<usize>, norm: &RmsNorm<Self>) {
        self.normalize_heads(&mut x.values, x.cols, columns.clone(), view(norm));
    }

    fn rotate(&self, qkv: &mut FloatRows, heads: &HeadColumns, angles: &FloatRows) {
        let columns = [heads.queries.clone(), heads.keys.clone()];
        let head_dim = heads.shape.head_dim;
        self.rotate(
            &mut qkv.values,
            qkv.cols,
            &columns,
            &angles.values,
            head_dim,
        );
    }

    fn store_kv(
        &self,
        qkv: &FloatRows,
        heads: &HeadColumns,
        batch: &CpuBatch,
        cache: &mut KvCache,
        layer: usize,
    ) {
        let (shape, qkv, places) = (heads.shape, view_qkv(qkv, heads), batch.places());
        match cache.kv_type() {
            KvType::F16 => self.store_kv(shape, qkv, places, &mut cache.layer_f16(layer)),
            KvType::F32 => self.store_kv(shape, qkv, places, &mut cache.layer_f32(layer)),
        }
    }

    fn keep_wanted(&self, batch: &mut CpuBatch, buffers: &mut [&mut FloatRows]) {
        for (to, &from) in batch.wanted.iter().enumerate() {
            batch.places[to] = batch.places[from];
        }
        batch.places.truncate(batch.wanted.len());
        for FloatRows { values, cols } in buffers {
            for (to, from) in batch.wanted.iter().enumerate() {
                values.copy_within(from * *cols..(from + 1) * *cols, to * *cols);
            }
            values.truncate(batch.wanted.len() * *cols);
        }
    }

    fn attention(
        &self,
        qkv: &FloatRows,
        heads: &HeadColumns,
        batch: &mut CpuBatch,
        cache: &mut KvCache,
        layer: usize,
        out: &mut FloatRows,
    ) {
        let shape = heads.shape;
        let out = out.shape(batch.places.len(), shape.heads * shape.head_dim);
        let qkv = view_qkv(qkv, heads);
        let places = Places {
            rows: &batch.places,
            blocks: &batch.blocks,
        };
        let scratch = &mut batch.scratch;
        match cache.kv_type() {
            KvType::F16 => {
                self.attention(shape, qkv, places, &cache.layer_f16(layer), scratch, out)
            }
            KvType::F32 => {
                self.attention(shape, qkv, places, &cache.layer_f32(layer), scratch, out)
            }
        }
    }

    fn gate_and_quantize(
        &self,
        gate_up: &FloatRows,
        neurons: &NeuronColumns,
        norm: Option<&RmsNorm<Self>>,
        matrix: &CpuMatrix,
        out: &mut Int8Rows,
        seen: &mut FfnActivity,
    ) {
        if let CpuMatrix::Grouped(weights) = matrix {
            let rows = (&gate_up.values[..], gate_up.cols);
            let norm = norm.map(view);
            return weights.gate_and_round(self, rows, neurons, norm, &mut out.groups);
        }
        let live = neurons.live.as_deref().map(|positions| LiveNeurons {
            positions,
            num_neurons: neurons.num_neurons,
        });
        let columns = Neurons {
            gates: neurons.gates.clone(),
            ups: neurons.ups.clone(),
            live,
        };
        let zeros = self.gate_and_quantize(
            neurons.gate,
            &gate_up.values,
            gate_up.cols,
            &columns,
            norm.map(view),
            &mut out.rows,
        );
        seen.add(gate_up.rows() * neurons.num_live(), zeros);
    }

    fn gate(&self, x: &mut FloatRows, projected: &FloatRows, gates: &Range<usize>) {
        self.gate_rows(
            &mut x.values,
            &projected.values,
            projected.cols,
            gates.clone(),
        );
    }

    fn multiply_floats(&self, weights: &Vec<f32>, x: &FloatRows, out: &mut FloatRows) {
        let outputs = weights.len() / x.cols;
        let out = out.shape(x.rows(), outputs);
        self.multiply_floats(weights, &x.values, x.cols, out);
    }

    fn delta_net(
        &self,
        input: &DeltaRows<'_, Self>,
        layer: &DeltaLayer<Self>,
        batch: &mut CpuBatch,
        cache: &mut KvCache,
        out: &mut FloatRows,
    ) {
        let out = out.shape(input.projected.rows(), layer.shape.output_len());
        let (states, state_len) = cache.states_mut();
        let sequences: Vec<StateRows> = batch
            .runs
            .iter()
            .map(|run| StateRows {
                rows: run.rows.clone(),
                state: run.state as usize * state_len + layer.state_start,
            })
            .collect();
        for (run, sequence) in batch.runs.iter().zip(&sequences) {
            if run.position == 0 {
                states[sequence.state..sequence.state + layer.shape.state_len()].fill(0.0);
            }
        }
        let (decay, time_bias) = layer.decay_and_bias.split_at(layer.shape.value_heads);
        let weights = DeltaWeights {
            conv: &layer.conv,
            decay,
            time_bias,
            norm: view(&layer.norm),
        };
        let input = DeltaInput {
            projected: &input.projected.values,
            stride: input.projected.cols,
            qkv: input.qkv.clone(),
            gate: input.gate.clone(),
            times: &input.times.values,
        };
        let scratch = &mut batch.delta_scratch;
        self.delta_net(
            layer.shape,
            &weights,
            &input,
            &sequences,
            states,
            scratch,
            out,
        );
    }

    fn add(&self, x: &mut FloatRows, delta: &FloatRows) {
        self.add(&mut x.values, x.cols, &delta.values, delta.cols);
    }

    fn logits(&self, head: &CpuTable, hidden: &FloatRows, rows: &[usize], out: &mut Vec<f32>) {
        out.resize(rows.len() * head.vocab(), 0.0);
        let is_all = rows.len() == hidden.rows() && rows.is_sorted() && rows.first() == Some(&0);
        match rows {
            [] => {}
            [row] => head.project(self, hidden.row(*row), out),
            _ if is_all => head.project(self, &hidden.values, out),
            _ => PICKED.with_borrow_mut(|picked| {
                picked.clear();
                rows.iter()
                    .for_each(|row| picked.extend_from_slice(hidden.row(*row)));
                head.project(self, picked, out);
            }),
        }
    }

    fn estimate(&self, head: &CpuTable, hidden: &FloatRows, to: &mut ScreenScratch) -> bool {
        match head {
            CpuTable::Stored(StoredTable {
                screen: Some(screen),
                ..
            }) => self.screen(screen, &hidden.values, to),
            _ => false,
        }
    }

    fn estimates(estimated: &ScreenScratch, row: usize, vocab: usize) -> Estimates<'_> {
        estimated.estimates(row, vocab)
    }

    fn exact(
        &self,
        head: &CpuTable,
        hidden: &FloatRows,
        row: usize,
        tokens: &[u32],
        out: &mut Vec<f32>,
    ) {
        let hidden = hidden.row(row);
        out.clear();
        match head {
            CpuTable::Stored(table) => {
                out.extend(tokens.iter().map(|token| table.dot(self, *token, hidden)))
            }
            CpuTable::Grouped(table) => {
                let mut all = vec![0.0; table.rows()];
                table.project(self, hidden, &mut all);
                out.extend(tokens.iter().map(|token| all[*token as usize]));
            }
        }
    }

    fn count_exact(&self, head: &CpuTable, num_exact: usize, decided: bool) {
        let (vocab, hidden) = (head.vocab(), head.cols());
        let kernel = if decided {
            Kernel::LogitsProjection
        } else {
            Kernel::LogitsScreen
        };
        let counters = self.counters();
        counters.add(kernel, num_exact * hidden, num_exact * head.row_bytes());
        if decided {
            let num_left_out = vocab.saturating_sub(num_exact);
            counters.skip(Kernel::LogitsProjection, num_left_out * hidden);
        }
    }

    fn counters(&self) -> &Counters {
        self.counters()
    }
}

/// The 8-bit copy of a head.
fn screen(cpu: &Cpu, table: &Table, keeper: &Keeper) -> ScreenTable {
    let (rows, cols) = (table.rows(), table.cols());
    let restore = |packed: &Packed| match (&packed.facts, &packed.pieces[..]) {
        (Facts::Screen, [lines, bounds]) => {
            ScreenTable::from_packed(rows, cols, lines.clone(), bounds)
        }
        _ => None,
    };
    let make = || {
        let read_row = |row: usize, out: &mut [f32]| table.read_row(row, out);
        let screen = ScreenTable::pack(cpu.set(), cpu.pool(), rows, cols, &read_row);
        table.advise_done();
        Ok::<_, Infallible>(screen)
    };
    let packed = |screen: &ScreenTable| {
        let bounds = screen.bounds_bytes().into();
        Some(Packed::new(
            Facts::Screen,
            vec![screen.lines().clone(), bounds],
        ))
    };
    let Ok(screen) = keeper.find_or_make("head", restore, make, packed);
    screen
}

/// A norm in the form that the kernels take.
fn view(norm: &RmsNorm<Cpu>) -> Norm<'_> {
    Norm {
        weight: &norm.weight,
        eps: norm.eps,
    }
}

/// Queries, keys and values in the form that the kernels take.
fn view_qkv<'a>(qkv: &'a FloatRows, heads: &HeadColumns) -> Qkv<'a> {
    Qkv {
        data: &qkv.values,
        stride: qkv.cols,
        offsets: [heads.queries.start, heads.keys.start, heads.values.start],
    }
}

/// `out = W · x` for a single row. Reads only the weights that matter if they are few, otherwise
/// all. True if every product that can leave weights out did so.
fn multiply_active(
    cpu: &Cpu,
    matrix: &TernaryWeights,
    copy: &SparseCopy,
    x: &Int8Rows,
    out: &mut [f32],
) -> bool {
    let (weights, x, scratch) = (&matrix.weights, &x.rows, &mut *x.scratch.borrow_mut());
    match &copy.weights {
        SparseWeights::Columns(columns) => {
            let is_sparse = cpu.active_columns_matvec(columns, copy.active_max, x, scratch, out);
            if !is_sparse {
                cpu.ternary_matmul(weights, x, out);
            }
            is_sparse
        }
        SparseWeights::GatedRows(rows) => {
            cpu.ternary_matmul_part(weights, 0, x, out);
            let (gates, ups) = out.split_at_mut(weights.output_range(1).start);
            let gates = &gates[weights.output_range(0)];
            if !cpu.gated_rows_matvec(rows, gates, copy.active_max, x, scratch, ups) {
                cpu.ternary_matmul_part(weights, 1, x, out);
            }
            // The gates themselves always come from the packed weights.
            false
        }
    }
}
