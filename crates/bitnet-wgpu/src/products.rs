//! Products of weights and activations: rounding and rotation of their inputs, one reading of the
//! weights for few rows, tiles for many.

use bitnet_models::backend::RmsNorm;

use crate::buffers::{GpuInt8, GpuRows, Store};
use crate::context::Buffer;
use crate::gpu::Gpu;
use crate::shaders::Shader;
use crate::weights::{GpuRotation, GroupWeights, TernaryWeights, code_bits};

/// Rows of activations from which on the tiled product is faster than one that reads the weights
/// once for at most eight rows.
const TILED_ROWS_MIN: usize = 9;

impl Gpu {
    pub(crate) fn quantize_ternary(
        &self,
        x: (Option<&Buffer>, usize),
        norm: Option<&RmsNorm<Self>>,
        weights: &TernaryWeights,
        out: [&Store; 3],
        rows: usize,
    ) {
        let (x, cols) = x;
        let words = 16 * weights.steps;
        let eps = norm.map_or(0.0, |norm| norm.eps);
        let norm_weight = norm.map_or(x, |norm| Some(&norm.weight.buffer));
        let [values, scales, sums] = out.map(Store::get);
        let params = [
            cols as u32,
            words as u32,
            eps.to_bits(),
            u32::from(norm.is_some()),
        ];
        self.call(
            Shader::Quantize,
            &[x, norm_weight, values, scales, sums],
            &params,
            rows,
        );
    }

    /// Rotates, if the weights are, and rounds rows of `out.inner`, or of `x` if given.
    pub(crate) fn round_groups(
        &self,
        x: Option<&GpuRows>,
        weights: &GroupWeights,
        out: &mut GpuInt8,
    ) {
        let rows = x.unwrap_or(&out.inner).rows;
        let runs = weights.cols / weights.run_cols;
        out.shape(&self.context, rows, weights.cols / 4, runs);
        if let Some(rotation) = &weights.rotation {
            let GpuInt8 { inner, rotated, .. } = out;
            rotated.shape(&self.context, rows, weights.cols);
            self.hadamard(x.unwrap_or(inner), rotation, 0, rotated.buffer());
        }
        let values = match (&weights.rotation, x) {
            (Some(_), _) => out.rotated.buffer(),
            (None, Some(x)) => x.buffer(),
            (None, None) => out.inner.buffer(),
        };
        let num_runs = rows * runs;
        let params = [weights.cols, weights.run_cols, weights.cols / 4, num_runs].map(|n| n as u32);
        let buffers = [values, out.values.get(), out.scales.get(), out.sums.get()];
        self.call_flat(Shader::QuantizeRuns, &buffers, &params, num_runs);
    }

    /// `mode` 0: `H(s ⊙ x)`; 1: `s ⊙ H(x)`.
    pub(crate) fn hadamard(
        &self,
        x: &GpuRows,
        rotation: &GpuRotation,
        mode: u32,
        out: Option<&Buffer>,
    ) {
        let (keys, values) = rotation.value_heads.unwrap_or((0, 0));
        let factor = 1.0 / (rotation.block_size as f32).sqrt();
        let params = [
            x.cols as u32,
            rotation.block_size as u32,
            factor.to_bits(),
            keys as u32,
            values as u32,
            mode,
        ];
        let groups = x.rows * (x.cols / rotation.block_size);
        let shader = Shader::Hadamard(rotation.block_max());
        self.call(
            shader,
            &[x.buffer(), Some(&rotation.signs), out],
            &params,
            groups,
        );
    }

    pub(crate) fn multiply_ternary(&self, weights: &TernaryWeights, x: &GpuInt8, out: &GpuRows) {
        let [values, scales, sums] = [&x.values, &x.scales, &x.sums].map(Store::get);
        let lanes = self.context.subgroup_lanes();
        // In shorter rows, lanes would have nothing to do.
        let has_subgroups = lanes.is_some_and(|lanes| weights.steps >= lanes);
        for piece in &weights.pieces {
            let buffers = [
                Some(&piece.weights),
                Some(&weights.scales),
                values,
                scales,
                sums,
                out.buffer(),
            ];
            let shape = [
                weights.steps,
                piece.rows,
                piece.first_row,
                weights.output_len,
            ];
            let [steps, rows, first_row, stride] = shape.map(|n| n as u32);
            if x.rows >= TILED_ROWS_MIN {
                let tiles = piece.rows.div_ceil(64);
                let params = [steps, rows, first_row, stride, x.rows as u32, tiles as u32];
                let groups = tiles * x.rows.div_ceil(64);
                self.call(Shader::TernaryGemm, &buffers, &params, groups);
                continue;
            }
            let mut first_x = 0;
            while first_x < x.rows {
                let at_once = [8, 4, 2, 1].into_iter().find(|n| *n <= x.rows - first_x);
                let at_once = at_once.unwrap_or(1);
                let params = [steps, rows, first_row, stride, first_x as u32];
                let shader = Shader::TernaryGemv(at_once as u32, has_subgroups);
                self.call(shader, &buffers, &params, piece.rows.div_ceil(8));
                first_x += at_once;
            }
        }
    }

    pub(crate) fn multiply_groups(
        &self,
        weights: &GroupWeights,
        x: &GpuInt8,
        out: Option<&Buffer>,
    ) {
        let bits = code_bits(weights.codes);
        let [values, scales, sums] = [&x.values, &x.scales, &x.sums].map(Store::get);
        for piece in &weights.pieces {
            let buffers = [
                Some(&piece.weights),
                piece.scales.as_ref(),
                values,
                scales,
                sums,
                out,
            ];
            let mut params = [
                weights.cols / 32 * bits,
                piece.rows,
                piece.first_row,
                weights.output_len,
                x.rows,
                weights.group_cols,
                weights.num_groups(),
                weights.run_cols,
                x.words,
            ]
            .map(|n| n as u32)
            .to_vec();
            if x.rows >= TILED_ROWS_MIN {
                let tiles = piece.rows.div_ceil(64);
                params.push(tiles as u32);
                let groups = tiles * x.rows.div_ceil(64);
                self.call(Shader::GroupGemm(bits as u32), &buffers, &params, groups);
            } else {
                let groups = piece.rows.div_ceil(8) * x.rows;
                self.call(Shader::GroupGemv(bits as u32), &buffers, &params, groups);
            }
        }
    }
}
