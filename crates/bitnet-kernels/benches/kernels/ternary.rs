//! The ternary product: one row from every level of the memory hierarchy, then more rows, which are
//! bound by products.

use std::cell::LazyCell;
use std::rc::Rc;
use std::time::Duration;

use bitnet_kernels::{Activations, Cpu, KernelSet, Packing, Part, ReadProbe, TernaryMatrix};
use criterion::Criterion;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// Columns of all matrices except the FFN's output projection.
const COLS: usize = 2560;
/// Bytes of matrices: more than any cache has.
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
            for machine in
                at_home(machines, packing).filter(|machine| has_own_gemv(machine.cpu.set()))
            {
                machine.bench(&mut gemv, &format!("{level}, {}", how(packing)), || {
                    product(&matrices, 1)
                });
            }
        }
    }
    gemv.finish();

    let mut gemm = group(criterion, "ternary gemm");
    for packing in Packing::ALL {
        let matrices = LazyCell::new(|| matrices(13_824, COLS, packing, true));
        for n in [2, 4, 8, 16, 32, 128] {
            for machine in at_home(machines, packing) {
                let id = format!("{n} rows, 13824 x 2560, {}", how(packing));
                machine.bench(&mut gemm, &id, || product(&matrices, n));
            }
        }
    }
}

/// A row quantized and multiplied by a matrix in the second-level cache, by every set on one
/// thread. Values and alignment of the row should make no difference. With the sample count of a
/// baseline.
pub fn patterns(criterion: &mut Criterion, read: &Rc<ReadProbe>) {
    const ROWS: usize = 1024;
    let mut group = criterion.benchmark_group("ternary patterns");
    group
        .sample_size(100)
        .warm_up_time(Duration::from_secs(3))
        .measurement_time(Duration::from_secs(2));
    for set in KernelSet::available().filter(|set| has_own_gemv(set)) {
        let machine = Machine::new(set, 1, Rc::clone(read));
        for (pattern, weight, value) in PATTERNS {
            let pool = Cpu::new(set, 1);
            let unpack =
                |_: usize, rows: std::ops::Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
                    let first = rows.start * COLS;
                    codes
                        .iter_mut()
                        .enumerate()
                        .for_each(|(index, code)| *code = weight(mixed(first + index)));
                    Ok(())
                };
            let matrix = TernaryMatrix::pack(
                pool.pool(),
                &[Part {
                    rows: ROWS,
                    scale: 1.0,
                }],
                COLS,
                set.packing,
                &unpack,
            );
            let matrix = matrix.expect("unpack never fails");
            // One cache line of floats more than needed, so that the start can be aligned.
            let x: Vec<f32> = (0..COLS + 16).map(value).collect();
            let aligned = x.as_ptr().align_offset(64);
            for (how, start) in [("aligned", aligned), ("4 bytes further", aligned + 1)] {
                let (x, matrix) = (&x[start..start + COLS], &matrix);
                machine.bench(&mut group, &format!("{pattern}, {how}"), || {
                    let (mut activations, mut out) =
                        (Activations::new(), vec![0.0; matrix.output_len()]);
                    let run = move |cpu: &Cpu| {
                        cpu.quantize(x, COLS, COLS, None, &mut activations);
                        cpu.ternary_matmul(matrix, &activations, &mut out);
                    };
                    (
                        Work {
                            i8_macs: ROWS * COLS,
                            ..Work::default()
                        },
                        run,
                    )
                });
            }
        }
    }
}

/// A kind of input: its name, a function that gives a weight from a position and a pseudorandom
/// number, and one that gives an activation from its position.
type Pattern = (&'static str, fn((usize, u64)) -> i8, fn(usize) -> f32);
const PATTERNS: [Pattern; 4] = [
    (
        "random",
        |(_, random)| (random % 3) as i8 - 1,
        |at| mixed(at).1 as f32 / (1u64 << 44) as f32 - 0.5,
    ),
    (
        "sparse",
        |(_, random)| [0, 0, 0, 0, 0, 0, 0, 0, 1, -1][(random % 10) as usize],
        |at| (at % 10 == 0).into(),
    ),
    ("sequential", |(at, _)| (at % 3) as i8 - 1, |at| at as f32),
    (
        "sine",
        |(_, random)| (random % 3) as i8 - 1,
        |at| (at as f32 * 0.01).sin(),
    ),
];

/// A position, and a pseudorandom number for it.
fn mixed(at: usize) -> (usize, u64) {
    let mut rng = Rng(at as u64 + 1);
    rng.next();
    rng.next();
    (at, rng.next() >> 20)
}

/// `1.67 bits`, `tl2`
fn how(packing: Packing) -> String {
    let unit = if is_looked_up(packing) { "" } else { " bits" };
    format!("{}{unit}", packing.name())
}

fn is_looked_up(packing: Packing) -> bool {
    matches!(packing, Packing::Tl1 | Packing::Tl2)
}

/// The machines whose kernels use such weights without unpacking them first.
fn at_home(machines: &[Machine], packing: Packing) -> impl Iterator<Item = &Machine> {
    let is_at_home = move |set: &KernelSet| {
        packing == Packing::Two || is_looked_up(packing) || set.packing == packing
    };
    machines
        .iter()
        .filter(move |machine| is_at_home(machine.cpu.set()))
}

/// Whether a set has its own kernel for one row.
fn has_own_gemv(set: &KernelSet) -> bool {
    set.name != "avx512-zen"
}

/// Multiplies `n` rows by one matrix after the other.
fn product(matrices: &[TernaryMatrix], n: usize) -> (Work, impl FnMut(&Cpu)) {
    let (cols, mut next) = (matrices[0].cols(), 0);
    let bytes = if matrices.len() > 1 {
        matrices[0].num_bytes()
    } else {
        0
    };
    // A set that looks products up does not multiply.
    let i8_macs = if is_looked_up(matrices[0].packing()) {
        0
    } else {
        n * matrices[0].num_weights()
    };
    let work = Work {
        bytes,
        i8_macs,
        f32_macs: 0,
    };
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

/// One matrix, or enough matrices that each has left the caches before it is used again.
fn matrices(rows: usize, cols: usize, packing: Packing, from_memory: bool) -> Vec<TernaryMatrix> {
    let count = if from_memory {
        (4 * MEMORY_BYTES).div_ceil(rows * cols)
    } else {
        1
    };
    let pool = Cpu::new(KernelSet::detect(), 2);
    let unpack = |_: usize, rows: std::ops::Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
        let mut rng = Rng(rows.start as u64 + 1);
        for codes in codes.chunks_mut(16) {
            let random = rng.next();
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(index, code)| *code = (random >> (4 * index) & 15) as i8 % 3 - 1);
        }
        Ok(())
    };
    let pack = |_| {
        TernaryMatrix::pack(
            pool.pool(),
            &[Part { rows, scale: 1.0 }],
            cols,
            packing,
            &unpack,
        )
    };
    (0..count)
        .map(|index| pack(index).expect("unpack never fails"))
        .collect()
}
