//! Activations, batches and caches on the device.

use std::sync::Arc;

use bitnet_kernels::{AttentionShape, CACHE_BLOCK, Place};
use bitnet_models::backend::{RowPlan, Run};
use bitnet_models::{CacheShape, KvType, Result};

use crate::context::{Buffer, Context};
use crate::memory::Part;

/// Memory that grows to the largest size so far.
#[derive(Default)]
pub(crate) struct Store(Option<Buffer>);

impl Store {
    /// Makes room for `numbers` of four bytes; the contents are then unspecified. A size that is
    /// not possible is noted as the failure of the context.
    pub fn reserve(&mut self, context: &Arc<Context>, numbers: usize) {
        let bytes = (numbers * 4) as u64;
        if self
            .0
            .as_ref()
            .is_some_and(|buffer| buffer.bytes() >= bytes)
        {
            return;
        }
        self.0 = None;
        match context.buffer(Part::Workspace, "a buffer of activations", bytes) {
            Ok(buffer) => self.0 = Some(buffer),
            Err(error) => context.fail(error.to_string()),
        }
    }

    /// The memory, if there is any.
    pub fn get(&self) -> Option<&Buffer> {
        self.0.as_ref()
    }
}

/// Rows of f32, `[rows, cols]`.
#[derive(Default)]
pub struct GpuRows {
    store: Store,
    /// Where rows are gathered to before they replace the rows.
    spare: Store,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl GpuRows {
    /// Gives the buffer a shape; its contents are then unspecified.
    pub(crate) fn shape(&mut self, context: &Arc<Context>, rows: usize, cols: usize) {
        (self.rows, self.cols) = (rows, cols);
        self.store.reserve(context, rows * cols);
    }

    /// The memory of the rows.
    pub(crate) fn buffer(&self) -> Option<&Buffer> {
        self.store.get()
    }

    /// The rows, and memory of the same size.
    pub(crate) fn with_spare(&mut self, context: &Arc<Context>) -> [Option<&Buffer>; 2] {
        self.spare.reserve(context, self.rows * self.cols);
        [self.store.get(), self.spare.get()]
    }

    /// The spare memory, if there is any.
    pub(crate) fn spare(&self) -> Option<&Buffer> {
        self.spare.get()
    }

    /// Makes the spare memory the memory of the rows, of which there are now `rows`.
    pub(crate) fn take_spare(&mut self, rows: usize) {
        std::mem::swap(&mut self.store, &mut self.spare);
        self.rows = rows;
    }
}

/// Int8 rows with their scales, and the values that they were rounded from.
#[derive(Default)]
pub struct GpuInt8 {
    /// Four int8 in a word, `[rows, words]`.
    pub(crate) values: Store,
    /// One for each row or run.
    pub(crate) scales: Store,
    /// The sum of each row or run.
    pub(crate) sums: Store,
    pub(crate) rows: usize,
    pub(crate) words: usize,
    /// Gated or normalised values, before they are rounded.
    pub(crate) inner: GpuRows,
    /// The values after a further step.
    pub(crate) rotated: GpuRows,
}

impl GpuInt8 {
    /// Gives the buffers a shape: rows of `words` words and `runs` scales.
    pub(crate) fn shape(&mut self, context: &Arc<Context>, rows: usize, words: usize, runs: usize) {
        (self.rows, self.words) = (rows, words);
        self.values.reserve(context, rows * words);
        self.scales.reserve(context, rows * runs);
        self.sums.reserve(context, rows * runs);
    }
}

/// The rows of a pass: one buffer of the device that begins with the tokens, and where its other
/// parts begin, in numbers.
#[derive(Default)]
pub struct GpuBatch {
    plan: Store,
    words: Vec<u32>,
    /// The places of the rows on the host, for angles and counts.
    pub(crate) host_places: Vec<Place>,
    pub(crate) wanted_rows: Vec<usize>,
    pub(crate) host_runs: Vec<Run>,
    pub(crate) num_tokens: usize,
    /// `(position, first block)` of each row.
    pub(crate) places: usize,
    wanted_places: usize,
    pub(crate) blocks: usize,
    pub(crate) wanted: usize,
    /// `(first row, rows, position, slot)` of each sequence.
    pub(crate) runs: usize,
    /// The convolved channels of linear attention, `[rows, channels]`.
    pub(crate) convolved: GpuRows,
}

impl GpuBatch {
    /// Copies a plan to the device.
    pub(crate) fn fill(&mut self, context: &Arc<Context>, plan: &RowPlan) {
        let words = &mut self.words;
        words.clear();
        words.extend_from_slice(&plan.tokens);
        let place = |place: &Place| [place.position as u32, place.table as u32];
        self.places = words.len();
        words.extend(plan.places.iter().flat_map(place));
        self.wanted_places = words.len();
        words.extend(plan.wanted.iter().flat_map(|row| place(&plan.places[*row])));
        self.wanted = words.len();
        words.extend(plan.wanted.iter().map(|row| *row as u32));
        self.runs = words.len();
        words.extend(plan.runs.iter().flat_map(|run| {
            let (first, rows) = (run.rows.start as u32, run.rows.len() as u32);
            [first, rows, run.position as u32, run.state]
        }));
        self.blocks = words.len();
        words.extend_from_slice(&plan.blocks);
        self.num_tokens = plan.tokens.len();
        self.host_places.clone_from(&plan.places);
        self.wanted_rows.clone_from(&plan.wanted);
        self.host_runs.clone_from(&plan.runs);
        self.plan.reserve(context, words.len());
        if let Some(buffer) = self.plan.get() {
            context.write(buffer, 0, bytemuck::cast_slice(words));
        }
    }

    /// The plan on the device.
    pub(crate) fn buffer(&self) -> Option<&Buffer> {
        self.plan.get()
    }

    /// Goes on with the wanted rows only.
    pub(crate) fn keep_wanted(&mut self) {
        self.places = self.wanted_places;
        let kept = self.wanted_rows.iter().map(|row| self.host_places[*row]);
        self.host_places = kept.collect();
    }
}

/// Keys and values of past positions, one buffer a layer, and recurrent states.
pub struct GpuCache {
    pub(crate) kv_type: KvType,
    /// `[blocks][keys, then values][kv_heads][32 positions][head_dim]`
    pub(crate) layers: Vec<Buffer>,
    /// `[slots, state_len]`, in pieces of whole slots.
    pub(crate) states: Vec<Buffer>,
    /// Slots of a piece.
    pub(crate) piece_slots: usize,
    /// Numbers of a slot.
    pub(crate) state_len: usize,
}

/// Numbers of one block of one layer.
fn block_len(shape: AttentionShape) -> usize {
    2 * shape.kv_heads * CACHE_BLOCK * shape.head_dim
}

impl GpuCache {
    /// Makes a cache. All sizes are computed before the first buffer is made.
    pub(crate) fn new(context: &Arc<Context>, shape: &CacheShape) -> Result<Self> {
        let CacheShape {
            attention,
            num_layers,
            kv_type,
            num_blocks,
            state_len,
            num_states,
        } = *shape;
        if !attention.head_dim.is_multiple_of(2) {
            return Err(context.error(format!(
                "heads of {} numbers are not supported, only even numbers",
                attention.head_dim
            )));
        }
        let layer_bytes = (block_len(attention) * kv_type.size_bytes()) as u64 * num_blocks as u64;
        let slot_bytes = (state_len * 4) as u64;
        let total = layer_bytes * num_layers as u64 + slot_bytes * num_states as u64;
        let what = format!(
            "the key/value cache of {} positions with {num_states} recurrent states",
            num_blocks * CACHE_BLOCK
        );
        context.check_room(&what, total)?;
        let layers = (0..num_layers).map(|_| context.buffer(Part::Cache, &what, layer_bytes));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let most = context.binding_bytes_max().min(i32::MAX as u64);
        let piece_slots = (most / slot_bytes.max(1)).clamp(1, num_states.max(1) as u64) as usize;
        let mut states = Vec::new();
        if state_len > 0 {
            for first in (0..num_states).step_by(piece_slots) {
                let slots = piece_slots.min(num_states - first);
                let bytes = slot_bytes * slots as u64;
                states.push(context.buffer(Part::States, "recurrent states", bytes)?);
            }
        }
        Ok(Self {
            kv_type,
            layers,
            states,
            piece_slots,
            state_len,
        })
    }
}
