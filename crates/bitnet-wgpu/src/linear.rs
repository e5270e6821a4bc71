//! Linear attention with a recurrent state: Gated DeltaNet in three kernels.

use bitnet_models::backend::{DeltaLayer, DeltaRows};

use crate::buffers::{GpuBatch, GpuCache, GpuRows};
use crate::gpu::Gpu;
use crate::shaders::Shader;

/// The longest head: a workgroup has a thread for each of its numbers.
pub(crate) const LINEAR_HEAD_DIM_MAX: usize = 256;
/// Added to the sum of squares of a query or key of linear attention before the root.
const L2_EPS: f32 = 1e-6;

impl Gpu {
    /// Convolves the channels of all rows, and moves the states of the convolution on.
    pub(crate) fn convolve(
        &self,
        input: &DeltaRows<'_, Self>,
        layer: &DeltaLayer<Self>,
        batch: &GpuBatch,
        cache: &GpuCache,
    ) {
        let channels = layer.shape.channels();
        for (index, states) in cache.states.iter().enumerate() {
            let params = [
                channels,
                input.projected.cols,
                input.qkv.start,
                batch.runs,
                cache.state_len,
                layer.state_start,
                index * cache.piece_slots,
                cache.piece_slots,
            ];
            self.recorder.borrow_mut().call_in_grid(
                Shader::Convolve,
                &[
                    batch.buffer(),
                    input.projected.buffer(),
                    Some(&layer.conv.buffer),
                    Some(states),
                    batch.convolved.buffer(),
                ],
                &params.map(|n| n as u32),
                [channels.div_ceil(64), batch.host_runs.len()],
            );
        }
    }

    /// Scales queries to length `1/√head_dim` and keys to length 1.
    pub(crate) fn scale_queries_and_keys(&self, layer: &DeltaLayer<Self>, batch: &GpuBatch) {
        let dim = layer.shape.head_dim;
        let width = layer.shape.key_heads * dim;
        let query_scale = 1.0 / (dim as f32).sqrt();
        // The kernel has a binding for weights, which this mode does not read.
        let weight = Some(&layer.norm.weight.buffer);
        for (columns, scale) in [(0..width, query_scale), (width..2 * width, 1.0)] {
            self.norm_heads(&batch.convolved, &columns, dim, (weight, L2_EPS, scale, 1));
        }
    }

    /// Advances the states token by token, and writes normalised, gated outputs.
    pub(crate) fn advance(
        &self,
        input: &DeltaRows<'_, Self>,
        layer: &DeltaLayer<Self>,
        batch: &GpuBatch,
        cache: &GpuCache,
        out: &GpuRows,
    ) {
        let shape = layer.shape;
        for (index, states) in cache.states.iter().enumerate() {
            let sizes = [
                shape.key_heads,
                shape.value_heads,
                shape.head_dim,
                input.projected.cols,
                input.gate.start,
                batch.runs,
                cache.state_len,
                layer.state_start,
                index * cache.piece_slots,
                cache.piece_slots,
            ];
            let mut params = sizes.map(|n| n as u32).to_vec();
            params.push(layer.norm.eps.to_bits());
            self.recorder.borrow_mut().call_in_grid(
                Shader::DeltaRule(self.context.has_f64()),
                &[
                    batch.buffer(),
                    batch.convolved.buffer(),
                    input.projected.buffer(),
                    input.times.buffer(),
                    Some(&layer.decay_and_bias.buffer),
                    Some(&layer.norm.weight.buffer),
                    Some(states),
                    out.buffer(),
                ],
                &params,
                [shape.value_heads, batch.host_runs.len()],
            );
        }
    }
}
