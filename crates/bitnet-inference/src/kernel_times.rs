//! [`time_kernels`]: times each ternary kernel on matrices of one shape, for `bitnet tune`.

use std::time::Instant;

use bitnet_kernels::math::median;
use bitnet_kernels::{Activations, Packing, Part, Pool, TernaryMatrix};

use crate::device::Device;
use crate::tuning::{TernaryKernel, TunedShape};

/// Number of weights that a round multiplies by for one shape: too many for a CPU cache, as in a
/// model.
const ROUND_WEIGHTS: usize = 256 << 20;
/// The rounds in which each kernel is timed; the median counts.
const ROUNDS: usize = 7;

/// Times each kernel in turn on `device` with one row of activations and matrices of `[rows,
/// cols]`. Uses enough matrices of the shape that none stays in a cache, but at most `num_layers`,
/// the number in the model.
#[must_use]
pub fn time_kernels(device: Device, rows: usize, cols: usize, num_layers: usize) -> TunedShape {
    let cpu = device.start();
    let count = ROUND_WEIGHTS.div_ceil(rows * cols).min(num_layers);
    let kernels = TernaryKernel::ALL;
    let matrices = kernels.map(|kernel| {
        let packing = kernel.packing(cpu.set().packing);
        (0..count)
            .map(|_| made_up_matrix(cpu.pool(), rows, cols, packing))
            .collect::<Vec<_>>()
    });
    let mut activations = Activations::new();
    let x: Vec<f32> = (0..cols)
        .map(|col| (col * 7919 % 255) as f32 - 127.0)
        .collect();
    cpu.quantize(&x, cols, cols, None, &mut activations);
    let mut out = vec![0.0; matrices[0][0].output_len()];
    let mut seconds = [(); 3].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        for (matrices, seconds) in matrices.iter().zip(&mut seconds) {
            let start = Instant::now();
            matrices
                .iter()
                .for_each(|matrix| cpu.ternary_matmul(matrix, &activations, &mut out));
            seconds.push(start.elapsed().as_secs_f64() / count as f64);
        }
    }
    let [i2s_us, tl1_us, tl2_us] =
        seconds.map(|mut seconds| 1e6 * median(&mut seconds).unwrap_or(f64::NAN));
    let times = [i2s_us, tl1_us, tl2_us];
    let fastest = (0..3)
        .min_by(|a, b| times[*a].total_cmp(&times[*b]))
        .map_or(TernaryKernel::I2s, |i| kernels[i]);
    TunedShape {
        rows,
        cols,
        fastest,
        i2s_us,
        tl1_us,
        tl2_us,
    }
}

/// A matrix of weights without a pattern.
fn made_up_matrix(pool: &Pool, rows: usize, cols: usize, packing: Packing) -> TernaryMatrix {
    let unpack = |_: usize,
                  rows: std::ops::Range<usize>,
                  codes: &mut [i8]|
     -> Result<(), std::convert::Infallible> {
        let mut state = rows.start as u64 + 1;
        for codes in codes.chunks_mut(16) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bits = state;
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(i, code)| *code = (bits >> (4 * i) & 15) as i8 % 3 - 1);
        }
        Ok(())
    };
    let Ok(matrix) =
        TernaryMatrix::pack(pool, &[Part { rows, scale: 1.0 }], cols, packing, &unpack);
    matrix
}
