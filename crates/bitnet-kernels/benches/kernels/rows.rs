//! Operations on rows of activations between the products: norms, gates and quantization, all in
//! caches.

use bitnet_kernels::{Activations, Cpu, Gate, Neurons, Norm};
use criterion::Criterion;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// The residual stream and the inside of the feed-forward network of 2B-4T.
const HIDDEN: usize = 2560;
const FFN: usize = 6912;

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    let mut rows = group(criterion, "rows");
    for n in [1, 128] {
        for machine in machines {
            machine.bench(
                &mut rows,
                &format!("norm and quantize {n} x {HIDDEN}"),
                || quantize(n),
            );
            machine.bench(
                &mut rows,
                &format!("gate, norm and quantize {n} x {FFN}"),
                || gate_and_quantize(n),
            );
        }
    }
}

/// The least f32 products per value, each with an addition: the square and its sum, the factor, the
/// weight; for int8 the scale and the rounding.
const NORM_MACS: usize = 3;
const QUANTIZE_MACS: usize = 1;
/// `relu(gate)² · up`
const GATE_MACS: usize = 2;

fn quantize(n: usize) -> (Work, impl FnMut(&Cpu)) {
    let (x, weight, mut to) = (
        Rng(1).floats(n * HIDDEN),
        Rng(2).floats(HIDDEN),
        Activations::new(),
    );
    let work = Work {
        f32_macs: n * HIDDEN * (NORM_MACS + QUANTIZE_MACS),
        ..Work::default()
    };
    let run = move |cpu: &Cpu| {
        cpu.quantize(
            &x,
            HIDDEN,
            HIDDEN,
            Some(Norm {
                weight: &weight,
                eps: 1e-5,
            }),
            &mut to,
        );
    };
    (work, run)
}

fn gate_and_quantize(n: usize) -> (Work, impl FnMut(&Cpu)) {
    let (x, weight, mut to) = (
        Rng(1).floats(n * 2 * FFN),
        Rng(2).floats(FFN),
        Activations::new(),
    );
    let work = Work {
        f32_macs: n * FFN * (GATE_MACS + NORM_MACS + QUANTIZE_MACS),
        ..Work::default()
    };
    let neurons = Neurons {
        gates: 0..FFN,
        ups: FFN..2 * FFN,
        live: None,
    };
    let run = move |cpu: &Cpu| {
        let norm = Some(Norm {
            weight: &weight,
            eps: 1e-5,
        });
        cpu.gate_and_quantize(Gate::Relu2, &x, 2 * FFN, &neurons, norm, &mut to);
    };
    (work, run)
}
