//! The operations of the forward pass on a device, each a kernel or a few.

use std::ops::Range;

use bitnet_kernels::{Counters, Estimates, Gate, Kernel, Place, Pool, Unpack, UnpackGroups, math};
use bitnet_models::backend::{
    Backend, DeltaLayer, DeltaRows, GroupStack, GroupTensor, HeadColumns, MatrixFacts,
    NeuronColumns, RmsNorm, Rotary, RowPlan, Stack, TableFacts, TableUses,
};
use bitnet_models::{CacheShape, Error, FfnActivity, Keeper, LoadOptions, Result, Table};

use crate::buffers::{GpuBatch, GpuCache, GpuInt8, GpuRows};
use crate::gpu::{Gpu, GpuVector};
use crate::head::{LOGITS_BYTES, TOP_MAX};
use crate::memory::Part;
use crate::shaders::{RowFormat, Shader, is_f32};
use crate::table::{GpuTable, Kind, StoredRows};
use crate::weights::{GpuMatrix, GroupWeights, TernaryWeights, code_bits};

impl Backend for Gpu {
    type Vector = GpuVector;
    type Matrix = GpuMatrix;
    type Table = GpuTable;
    type Rows = GpuRows;
    type Int8 = GpuInt8;
    type Batch = GpuBatch;
    type Estimated = ();
    type Cache = GpuCache;

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn vector(&self, values: Vec<f32>) -> Result<GpuVector> {
        let buffer =
            self.context
                .upload(Part::Weights, "constants", bytemuck::cast_slice(&values))?;
        Ok(GpuVector { values, buffer })
    }

    fn matrix(
        &self,
        stack: &Stack<'_>,
        _: &LoadOptions,
        unpack: &Unpack<'_, Error>,
    ) -> Result<GpuMatrix> {
        let weights = TernaryWeights::pack(&self.context, &self.pool, stack, unpack)?;
        Ok(GpuMatrix::Ternary(weights))
    }

    fn group_matrix(
        &self,
        stack: &GroupStack<'_>,
        options: &LoadOptions,
        unpack: &UnpackGroups<'_, Error>,
    ) -> Result<GpuMatrix> {
        let weights = GroupWeights::pack(
            &self.context,
            &self.pool,
            Part::Weights,
            stack,
            options,
            unpack,
        )?;
        Ok(GpuMatrix::Grouped(weights))
    }

    fn group_table(
        &self,
        table: GroupTensor,
        uses: &TableUses,
        options: &LoadOptions,
        _: &Keeper,
    ) -> Result<GpuTable> {
        GpuTable::grouped(&self.context, &self.pool, &table, uses, options)
    }

    fn table(
        &self,
        table: Table,
        _gives_logits: bool,
        _: &LoadOptions,
        _: &Keeper,
    ) -> Result<GpuTable> {
        GpuTable::stored(&self.context, &table)
    }

    fn cache(&self, shape: &CacheShape) -> Result<GpuCache> {
        GpuCache::new(&self.context, shape)
    }

    fn state_bytes(cache: &GpuCache) -> usize {
        cache.state_len * size_of::<f32>()
    }

    fn copy_state(&self, cache: &mut GpuCache, from: u32, to: u32) {
        let place = |slot: u32| {
            let slot = slot as usize;
            (
                slot / cache.piece_slots,
                slot % cache.piece_slots * cache.state_len,
            )
        };
        let ((from_piece, from), (to_piece, to)) = (place(from), place(to));
        let (source, target) = (&cache.states[from_piece], &cache.states[to_piece]);
        if from_piece == to_piece {
            let params = [from, to, cache.state_len].map(|n| n as u32);
            self.call_flat(Shader::CopyState, &[Some(source)], &params, cache.state_len);
        } else {
            let [from, to, bytes] = [from, to, cache.state_len].map(|n| (4 * n) as u64);
            self.recorder
                .borrow_mut()
                .copy((source, from), (target, to), bytes);
        }
    }

    fn matrix_facts(matrix: &GpuMatrix) -> MatrixFacts {
        let (packing, num_bytes) = match matrix {
            GpuMatrix::Ternary(weights) => ("2", weights.num_bytes),
            GpuMatrix::Grouped(weights) => (weights.codes.name(), weights.num_bytes),
        };
        MatrixFacts {
            packing,
            num_bytes,
            copy_bytes: None,
        }
    }

    fn table_facts(table: &GpuTable) -> TableFacts {
        TableFacts {
            format: table.format_name,
            screen_bytes: None,
        }
    }

    fn begin(&self, plan: &RowPlan, batch: &mut GpuBatch) {
        // Kernels of an earlier pass must read the earlier plan.
        self.recorder.borrow_mut().submit();
        batch.fill(&self.context, plan);
    }

    fn embed(&self, table: &GpuTable, batch: &GpuBatch, x: &mut GpuRows) {
        x.shape(&self.context, batch.num_tokens, table.cols);
        let bytes = batch.num_tokens * table.row_bytes();
        self.counters.add(Kernel::EmbeddingLookup, 0, bytes);
        let (format, row_bytes, pieces, groups, rotation) = match &table.kind {
            Kind::Stored(stored) => (stored.format, stored.row_bytes, &stored.pieces, 0, None),
            Kind::Grouped {
                weights,
                rows_rotation,
            } => {
                let words = weights.cols / 32 * code_bits(weights.codes);
                let format = StoredRows::of_groups(weights);
                let groups = weights.num_groups();
                (
                    format,
                    4 * words,
                    &weights.pieces,
                    groups,
                    rows_rotation.as_ref(),
                )
            }
        };
        for piece in pieces {
            let params = [table.cols, row_bytes, piece.first_row, piece.rows, groups];
            let scales = piece.scales.as_ref().or(Some(&piece.weights));
            let buffers = [Some(&piece.weights), scales, batch.buffer(), x.buffer()];
            let params = params.map(|n| n as u32);
            self.call(Shader::Embed(format), &buffers, &params, batch.num_tokens);
        }
        if let Some(rotation) = rotation {
            let rows = x.rows;
            x.with_spare(&self.context);
            self.hadamard(x, rotation, 1, x.spare());
            x.take_spare(rows);
        }
    }

    fn angles(&self, rotary: &Rotary<Self>, batch: &GpuBatch, angles: &mut GpuRows) {
        let frequencies = &rotary.frequencies.values;
        let pairs = frequencies.len();
        angles.shape(&self.context, batch.host_places.len(), 2 * pairs);
        let mut values = vec![0.0f32; batch.host_places.len() * 2 * pairs];
        for (row, place) in values.chunks_exact_mut(2 * pairs).zip(&batch.host_places) {
            let position = place.position as f32;
            let (cos, sin) = row.split_at_mut(pairs);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (s, c) = math::sin_cos(position * frequency);
                (*sin, *cos) = (s * rotary.factor, c * rotary.factor);
            }
        }
        if let Some(buffer) = angles.buffer() {
            self.context.write(buffer, 0, bytemuck::cast_slice(&values));
        }
    }

    fn rms_norm(&self, x: &GpuRows, norm: &RmsNorm<Self>, out: &mut GpuRows) {
        out.shape(&self.context, x.rows, x.cols);
        let params = [x.cols as u32, norm.eps.to_bits()];
        let buffers = [x.buffer(), Some(&norm.weight.buffer), out.buffer()];
        self.call(Shader::RmsNorm, &buffers, &params, x.rows);
    }

    fn quantize(
        &self,
        x: &GpuRows,
        norm: Option<&RmsNorm<Self>>,
        matrix: &GpuMatrix,
        out: &mut GpuInt8,
    ) {
        match (matrix, norm) {
            (GpuMatrix::Ternary(weights), _) => {
                out.shape(&self.context, x.rows, 16 * weights.steps, 1);
                let to = [&out.values, &out.scales, &out.sums];
                self.quantize_ternary((x.buffer(), x.cols), norm, weights, to, x.rows);
            }
            (GpuMatrix::Grouped(weights), Some(norm)) => {
                self.rms_norm(x, norm, &mut out.inner);
                self.round_groups(None, weights, out);
            }
            (GpuMatrix::Grouped(weights), None) => self.round_groups(Some(x), weights, out),
        }
    }

    fn multiply(&self, matrix: &GpuMatrix, x: &GpuInt8, out: &mut GpuRows) {
        let kernel = |one, many| if x.rows == 1 { one } else { many };
        let (kernel, macs, bytes) = match matrix {
            GpuMatrix::Ternary(weights) => {
                out.shape(&self.context, x.rows, weights.output_len);
                self.multiply_ternary(weights, x, out);
                let kernel = kernel(Kernel::I2sGemv, Kernel::I2sGemm);
                (kernel, weights.num_weights, weights.num_bytes)
            }
            GpuMatrix::Grouped(weights) => {
                out.shape(&self.context, x.rows, weights.output_len);
                self.multiply_groups(weights, x, out.buffer());
                let kernel = match code_bits(weights.codes) {
                    1 => kernel(Kernel::SignGemv, Kernel::SignGemm),
                    _ => kernel(Kernel::TwoBitGemv, Kernel::TwoBitGemm),
                };
                (kernel, weights.num_weights, weights.num_bytes)
            }
        };
        self.counters.add(kernel, x.rows * macs, bytes);
    }

    fn put_columns(&self, part: &GpuRows, start: usize, cols: usize, out: &mut GpuRows) {
        out.shape(&self.context, part.rows, cols);
        let columns = start..start + part.cols;
        self.change_columns(out, &columns, (part.buffer(), part.cols, 0), 0);
    }

    fn add_to_columns(&self, x: &mut GpuRows, columns: &Range<usize>, values: &GpuVector) {
        self.change_columns(x, columns, (Some(&values.buffer), 0, 0), 1);
    }

    fn scale(&self, x: &mut GpuRows, factor: f32) {
        let total = x.rows * x.cols;
        let params = [total as u32, factor.to_bits()];
        self.call_flat(Shader::Scale, &[x.buffer()], &params, total);
    }

    fn normalize_heads(&self, x: &mut GpuRows, columns: &Range<usize>, norm: &RmsNorm<Self>) {
        let head_dim = norm.weight.values.len();
        let norm = (Some(&norm.weight.buffer), norm.eps, 1.0, 0);
        self.norm_heads(x, columns, head_dim, norm);
    }

    fn rotate(&self, qkv: &mut GpuRows, heads: &HeadColumns, angles: &GpuRows) {
        let (pairs, head_dim) = (angles.cols / 2, heads.shape.head_dim);
        let num_queries = heads.queries.len() / head_dim;
        let num_heads = num_queries + heads.keys.len() / head_dim;
        let total = qkv.rows * num_heads * pairs;
        self.counters
            .add(Kernel::RopeApply, 4 * num_heads * pairs * qkv.rows, 0);
        let params = [
            qkv.cols,
            heads.queries.start,
            num_queries,
            heads.keys.start,
            num_heads,
            head_dim,
            pairs,
            total,
        ];
        let buffers = [angles.buffer(), qkv.buffer()];
        self.call_flat(Shader::Rotate, &buffers, &params.map(|n| n as u32), total);
    }

    fn store_kv(
        &self,
        qkv: &GpuRows,
        heads: &HeadColumns,
        batch: &GpuBatch,
        cache: &mut GpuCache,
        layer: usize,
    ) {
        let (kv_heads, pairs) = (heads.shape.kv_heads, heads.shape.head_dim / 2);
        let total = qkv.rows * kv_heads * pairs;
        let params = [
            qkv.cols,
            heads.keys.start,
            heads.values.start,
            kv_heads,
            pairs,
            batch.places,
            batch.blocks,
            total,
        ];
        let buffers = [batch.buffer(), qkv.buffer(), Some(&cache.layers[layer])];
        let shader = Shader::StoreKv(is_f32(cache.kv_type));
        self.call_flat(shader, &buffers, &params.map(|n| n as u32), total);
    }

    fn keep_wanted(&self, batch: &mut GpuBatch, buffers: &mut [&mut GpuRows]) {
        let count = batch.wanted_rows.len();
        if count < batch.num_tokens {
            for rows in buffers.iter_mut() {
                let (cols, total) = (rows.cols, count * rows.cols);
                let [source, target] = rows.with_spare(&self.context);
                let params = [cols, batch.wanted, total].map(|n| n as u32);
                let buffers = [batch.buffer(), source, target];
                self.call_flat(Shader::Gather, &buffers, &params, total);
                rows.take_spare(count);
            }
        }
        batch.keep_wanted();
    }

    fn attention(
        &self,
        qkv: &GpuRows,
        heads: &HeadColumns,
        batch: &mut GpuBatch,
        cache: &mut GpuCache,
        layer: usize,
        out: &mut GpuRows,
    ) {
        let shape = heads.shape;
        let rows = batch.host_places.len();
        out.shape(&self.context, rows, shape.heads * shape.head_dim);
        let element_bytes = cache.kv_type.size_bytes();
        self.counters.add(
            Kernel::AttentionReal,
            2 * keys_seen(&batch.host_places) * shape.heads * shape.head_dim,
            2 * keys_read(&batch.host_places) * shape.kv_heads * shape.head_dim * element_bytes,
        );
        let params = [
            qkv.cols as u32,
            heads.queries.start as u32,
            shape.heads as u32,
            shape.kv_heads as u32,
            shape.head_dim as u32 / 2,
            batch.places as u32,
            batch.blocks as u32,
            shape.scale().to_bits(),
        ];
        let cache_layer = Some(&cache.layers[layer]);
        let buffers = [batch.buffer(), qkv.buffer(), cache_layer, out.buffer()];
        let shader = Shader::Attention(is_f32(cache.kv_type));
        self.call(shader, &buffers, &params, rows * shape.heads);
    }

    fn gate(&self, x: &mut GpuRows, projected: &GpuRows, gates: &Range<usize>) {
        let columns = 0..x.cols;
        self.change_columns(
            x,
            &columns,
            (projected.buffer(), projected.cols, gates.start),
            2,
        );
    }

    fn multiply_floats(&self, weights: &GpuVector, x: &GpuRows, out: &mut GpuRows) {
        let outputs = weights.values.len() / x.cols;
        out.shape(&self.context, x.rows, outputs);
        let macs = x.rows * weights.values.len();
        self.counters
            .add(Kernel::FloatGemm, macs, size_of_val(&weights.values[..]));
        let every = self.every_row(x.rows);
        for first in (0..x.rows).step_by(4) {
            let params = [x.cols, 4 * x.cols, 0, outputs, 0, outputs, first, x.rows];
            let table = Some(&weights.buffer);
            self.call(
                Shader::Head(RowFormat::F32),
                &[table, table, x.buffer(), every.as_deref(), out.buffer()],
                &params.map(|n| n as u32),
                outputs.div_ceil(4),
            );
        }
    }

    fn delta_net(
        &self,
        input: &DeltaRows<'_, Self>,
        layer: &DeltaLayer<Self>,
        batch: &mut GpuBatch,
        cache: &mut GpuCache,
        out: &mut GpuRows,
    ) {
        let shape = layer.shape;
        let rows = input.projected.rows;
        out.shape(&self.context, rows, shape.output_len());
        batch.convolved.shape(&self.context, rows, shape.channels());
        let dim = shape.head_dim;
        let macs = shape.value_heads * 3 * dim * dim + layer.conv.values.len();
        let bytes = batch.host_runs.len() * shape.state_len() * size_of::<f32>();
        self.counters.add(Kernel::DeltaNet, rows * macs, bytes);
        self.convolve(input, layer, batch, cache);
        self.scale_queries_and_keys(layer, batch);
        self.advance(input, layer, batch, cache, out);
    }

    fn gate_and_quantize(
        &self,
        gate_up: &GpuRows,
        neurons: &NeuronColumns,
        norm: Option<&RmsNorm<Self>>,
        matrix: &GpuMatrix,
        out: &mut GpuInt8,
        _: &mut FfnActivity,
    ) {
        let (rows, cols) = (gate_up.rows, neurons.gates.len());
        out.inner.shape(&self.context, rows, cols);
        let mode = match neurons.gate {
            Gate::Relu2 => 0,
            Gate::Silu => 1,
            Gate::Gelu => 2,
        };
        let total = rows * cols;
        let params = [
            gate_up.cols,
            neurons.gates.start,
            neurons.ups.start,
            cols,
            total,
            mode,
        ];
        let params = params.map(|n| n as u32);
        self.call_flat(
            Shader::GateUp,
            &[gate_up.buffer(), out.inner.buffer()],
            &params,
            total,
        );
        match matrix {
            GpuMatrix::Ternary(weights) => {
                out.shape(&self.context, rows, 16 * weights.steps, 1);
                let to = [&out.values, &out.scales, &out.sums];
                self.quantize_ternary((out.inner.buffer(), cols), norm, weights, to, rows);
            }
            GpuMatrix::Grouped(weights) => {
                if let Some(norm) = norm {
                    let [inner, spare] = out.inner.with_spare(&self.context);
                    let params = [cols as u32, norm.eps.to_bits()];
                    let buffers = [inner, Some(&norm.weight.buffer), spare];
                    self.call(Shader::RmsNorm, &buffers, &params, rows);
                    out.inner.take_spare(rows);
                }
                self.round_groups(None, weights, out);
            }
        }
    }

    fn add(&self, x: &mut GpuRows, delta: &GpuRows) {
        let columns = 0..x.cols;
        self.change_columns(x, &columns, (delta.buffer(), delta.cols, 0), 1);
    }

    fn read_row(&self, rows: &GpuRows, row: usize, out: &mut Vec<f32>) {
        out.resize(rows.cols, 0.0);
        self.read_row_back(rows, row, out);
    }

    fn logits(&self, head: &GpuTable, hidden: &GpuRows, rows: &[usize], out: &mut Vec<f32>) {
        out.resize(rows.len() * head.rows, 0.0);
        let at_once = (LOGITS_BYTES / (4 * head.rows)).max(1);
        let parts = out.chunks_mut(at_once * head.rows);
        for (rows, out) in rows.chunks(at_once).zip(parts) {
            self.read_logits(head, hidden, rows, out);
        }
    }

    /// For the first [`TOP_MAX`] logits at most.
    fn top_logits(
        &self,
        head: &GpuTable,
        hidden: &GpuRows,
        rows: &[usize],
        k: usize,
        out: &mut Vec<(u32, f32)>,
    ) -> bool {
        if k > TOP_MAX {
            return false;
        }
        let k = k.min(head.rows);
        let at_once = (LOGITS_BYTES / (4 * head.rows)).max(1);
        let mut pairs = vec![[0; 2]; rows.len() * k];
        for (rows, pairs) in rows.chunks(at_once).zip(pairs.chunks_mut(at_once * k)) {
            self.read_top(head, hidden, rows, k, pairs);
        }
        out.clear();
        out.extend(
            pairs
                .iter()
                .map(|[token, bits]| (*token, f32::from_bits(*bits))),
        );
        true
    }

    /// Never: the device reads its whole head faster than the host could choose rows of it.
    fn estimate(&self, _: &GpuTable, _: &GpuRows, (): &mut ()) -> bool {
        false
    }

    fn estimates((): &(), _: usize, _: usize) -> Estimates<'_> {
        Estimates {
            values: &[],
            errors: &[],
        }
    }

    fn exact(
        &self,
        head: &GpuTable,
        hidden: &GpuRows,
        row: usize,
        tokens: &[u32],
        out: &mut Vec<f32>,
    ) {
        let mut all = Vec::new();
        self.logits(head, hidden, &[row], &mut all);
        out.clear();
        out.extend(tokens.iter().map(|token| all[*token as usize]));
    }

    /// [`Backend::exact`] computes and counts all logits.
    fn count_exact(&self, _: &GpuTable, _: usize, _: bool) {}

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn failure(&self) -> Option<String> {
        let problem = self.context.failure()?;
        Some(self.context.error(problem).to_string())
    }
}

/// Keys of all rows together.
fn keys_seen(places: &[Place]) -> usize {
    places.iter().map(|place| place.position + 1).sum()
}

/// The same, but counts keys that consecutive rows of a sequence share once.
fn keys_read(places: &[Place]) -> usize {
    let follows = |a: &Place, b: &Place| a.table == b.table && a.position + 1 == b.position;
    let ends_run = |index: usize| {
        let next = places.get(index + 1);
        next.is_none_or(|next| !follows(&places[index], next))
    };
    let last = (0..places.len()).filter(|index| ends_run(*index));
    last.map(|index| places[index].position + 1).sum()
}
