//! Products with group scales, in shapes of Qwen3 1.7B: one row from memory, then more rows, where
//! products bound it.

use std::cell::LazyCell;
use std::ops::Range;

use bitnet_kernels::{Cpu, GroupActivations, GroupCodes, GroupMatrix, KernelSet, Packing};
use criterion::Criterion;
use half::f16;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// The hidden size, and the columns of all but the FFN's output projection.
const HIDDEN: usize = 2048;
const FFN: usize = 6144;
/// Columns that share a scale in the published files.
const GROUP_COLS: usize = 128;
/// Inputs that share a scale: 32, so the rounding loses no more than 8-bit blocks of 32 do.
const RUN_COLS: usize = 32;
/// More bytes of matrices than any cache holds.
const MEMORY_BYTES: usize = 160 << 20;

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    for (codes, name) in [
        (GroupCodes::Signs, "signs"),
        (GroupCodes::Trits, "1.67 bits"),
        (GroupCodes::TwoBits, "2 bits"),
    ] {
        let machines: Vec<&Machine> = machines
            .iter()
            .filter(|machine| is_at_home(machine.cpu.set(), codes))
            .collect();
        let mut gemv = group(criterion, "group gemv");
        for (rows, cols) in [(2 * FFN, HIDDEN), (HIDDEN, FFN)] {
            let matrices = LazyCell::new(|| matrices(codes, rows, cols));
            for machine in &machines {
                let id = format!("memory, {rows} x {cols}, {name}");
                machine.bench(&mut gemv, &id, || product(&matrices, 1, RUN_COLS));
            }
        }
        gemv.finish();

        let mut gemm = group(criterion, "group gemm");
        let matrices = LazyCell::new(|| matrices(codes, 2 * FFN, HIDDEN));
        for (n, run_cols) in [
            (2, RUN_COLS),
            (4, RUN_COLS),
            (8, RUN_COLS),
            (16, RUN_COLS),
            (128, RUN_COLS),
            (128, 64),
            (128, 128),
        ] {
            for machine in &machines {
                let id = format!(
                    "{n} rows in runs of {run_cols}, {} x {HIDDEN}, {name}",
                    2 * FFN
                );
                machine.bench(&mut gemm, &id, || product(&matrices, n, run_cols));
            }
        }
        gemm.finish();
    }

    let machines = machines
        .iter()
        .filter(|machine| is_at_home(machine.cpu.set(), GroupCodes::Signs));
    let mut quantize = group(criterion, "group activations");
    for n in [1, 128] {
        for machine in machines.clone() {
            let id = format!("quantize {n} x {FFN} in runs of {RUN_COLS}");
            machine.bench(&mut quantize, &id, || activations(n));
        }
    }
}

/// Whether a set has kernels of its own for these codes: with VBMI, only for trits.
fn is_at_home(set: &KernelSet, codes: GroupCodes) -> bool {
    match codes {
        GroupCodes::Trits => set.name == "avx512-vbmi",
        GroupCodes::Signs | GroupCodes::TwoBits => set.packing == Packing::Two,
    }
}

/// A product with the next of the matrices.
fn product(
    matrices: &[GroupMatrix],
    n: usize,
    run_cols: usize,
) -> (Work, impl FnMut(&Cpu) + use<'_>) {
    let (cols, mut next) = (matrices[0].cols(), 0);
    let work = Work {
        bytes: matrices[0].num_bytes(),
        i8_macs: n * matrices[0].num_weights(),
        f32_macs: 0,
    };
    let mut activations = GroupActivations::new();
    Cpu::new(KernelSet::detect(), 1).quantize_groups(
        &Rng(9).floats(n * cols),
        cols,
        cols,
        run_cols,
        None,
        &mut activations,
    );
    let mut out = vec![0.0; n * matrices[0].output_len()];
    let run = move |cpu: &Cpu| {
        next = (next + 1) % matrices.len();
        cpu.group_matmul(&matrices[next], &activations, &mut out);
    };
    (work, run)
}

/// Rows quantized: for each value the magnitude, the division and the rounding.
fn activations(n: usize) -> (Work, impl FnMut(&Cpu)) {
    let (x, mut to) = (Rng(1).floats(n * FFN), GroupActivations::new());
    let work = Work {
        f32_macs: 3 * n * FFN,
        ..Work::default()
    };
    let run = move |cpu: &Cpu| cpu.quantize_groups(&x, FFN, FFN, RUN_COLS, None, &mut to);
    (work, run)
}

/// Enough matrices that each has left the caches before its next use.
fn matrices(codes: GroupCodes, rows: usize, cols: usize) -> Vec<GroupMatrix> {
    let pool = Cpu::new(KernelSet::detect(), 2);
    let unpack = |_: usize, rows: Range<usize>, to: &mut [u8], scales: &mut [f16]| {
        let mut rng = Rng(rows.start as u64 + 1);
        for to in to.chunks_mut(16) {
            let random = rng.next();
            for (index, to) in to.iter_mut().enumerate() {
                *to = (random >> (4 * index) & 15) as u8 % codes.num_codes();
            }
        }
        scales.fill(f16::from_f32(0.01));
        Ok::<(), ()>(())
    };
    let pack = || GroupMatrix::pack(pool.pool(), &[rows], cols, codes, GROUP_COLS, &unpack);
    let first = pack().expect("unpack never fails");
    let count = MEMORY_BYTES.div_ceil(first.num_bytes());
    let others = (1..count).map(|_| pack().expect("unpack never fails"));
    std::iter::once(first).chain(others).collect()
}
