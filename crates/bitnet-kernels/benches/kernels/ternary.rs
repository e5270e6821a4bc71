//! The ternary product: one row from every level of the memory hierarchy, then more rows, where products bound it.

use std::cell::LazyCell;

use bitnet_kernels::{Activations, Cpu, KernelSet, Packing, Part, TernaryMatrix};
use criterion::Criterion;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// Columns of all but the FFN's output projection.
const COLS: usize = 2560;
/// More bytes of matrices than any cache holds.
const MEMORY_BYTES: usize = 160 << 20;

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    let mut gemv = group(criterion, "ternary gemv");
    for (level, rows, cols, from_memory) in [
        ("L1, 32 x 1536", 32, 1536, false),
        ("L2, 1024 x 2560", 1024, COLS, false),
        ("L3, 13824 x 2560", 13_824, COLS, false),
        ("memory, 3840 x 2560", 3_840, COLS, true),
        ("memory, 13824 x 2560", 13_824, COLS, true),
        ("memory, 2560 x 6912", 2_560, 6_912, true),
        ("memory, 3200 x 8640", 3_200, 8_640, true),
    ] {
        for packing in Packing::ALL {
            let matrices = LazyCell::new(|| matrices(rows, cols, packing, from_memory));
            for machine in at_home(machines, packing) {
                machine.bench(&mut gemv, &format!("{level}, {}", how(packing)), || product(&matrices, 1));
            }
        }
    }
    gemv.finish();

    let mut gemm = group(criterion, "ternary gemm");
    for packing in Packing::ALL {
        let matrices = LazyCell::new(|| matrices(13_824, COLS, packing, true));
        for n in [2, 4, 8, 16, 32, 128, 512] {
            for machine in at_home(machines, packing) {
                let id = format!("{n} rows, 13824 x 2560, {}", how(packing));
                machine.bench(&mut gemm, &id, || product(&matrices, n));
            }
        }
    }
}

/// `1.67 bits`, `tl2`
fn how(packing: Packing) -> String {
    let unit = if is_looked_up(packing) { "" } else { " bits" };
    format!("{}{unit}", packing.name())
}

fn is_looked_up(packing: Packing) -> bool {
    matches!(packing, Packing::Tl1 | Packing::Tl2)
}

/// The machines whose kernels need not unpack such weights first.
fn at_home(machines: &[Machine], packing: Packing) -> impl Iterator<Item = &Machine> {
    let is_at_home = move |set: &KernelSet| packing == Packing::Two || is_looked_up(packing) || set.packing == packing;
    machines.iter().filter(move |machine| is_at_home(machine.cpu.set()))
}

/// Multiplies `n` rows by one matrix after the other.
fn product(matrices: &[TernaryMatrix], n: usize) -> (Work, impl FnMut(&Cpu)) {
    let (cols, mut next) = (matrices[0].cols(), 0);
    let bytes = if matrices.len() > 1 { matrices[0].num_bytes() } else { 0 };
    // What is looked up is not multiplied.
    let i8_macs = if is_looked_up(matrices[0].packing()) { 0 } else { n * matrices[0].num_weights() };
    let work = Work { bytes, i8_macs, f32_macs: 0 };
    let mut activations = Activations::new();
    let quantizer = Cpu::new(KernelSet::detect(), 1);
    quantizer.quantize(&Rng(9).floats(n * cols), cols, cols, None, &mut activations);
    let mut out = vec![0.0; n * matrices[0].output_len()];
    let run = move |cpu: &Cpu| {
        next = (next + 1) % matrices.len();
        cpu.ternary_matmul(&matrices[next], &activations, &mut out);
    };
    (work, run)
}

/// One matrix, or as many as it takes to find each gone from the caches when its turn comes again.
fn matrices(rows: usize, cols: usize, packing: Packing, from_memory: bool) -> Vec<TernaryMatrix> {
    let count = if from_memory { (4 * MEMORY_BYTES).div_ceil(rows * cols) } else { 1 };
    let pool = Cpu::new(KernelSet::detect(), 2);
    let unpack = |_: usize, rows: std::ops::Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
        let mut rng = Rng(rows.start as u64 + 1);
        codes.iter_mut().for_each(|code| *code = (rng.next() >> 60) as i8 % 3 - 1);
        Ok(())
    };
    let pack = |_| TernaryMatrix::pack(pool.pool(), &[Part { rows, scale: 1.0 }], cols, packing, &unpack);
    (0..count).map(|index| pack(index).expect("unpack never fails")).collect()
}
