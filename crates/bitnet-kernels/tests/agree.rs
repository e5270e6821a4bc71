//! Every instruction set, number of threads and number of rows gives the bits of the scalar
//! reference on one thread.

use bitnet_kernels::{
    Activations, AttentionScratch, AttentionShape, CACHE_BLOCK, CacheElement, Cpu, Gate, Kernel,
    KernelSet, LayerCache, LiveNeurons, MAX_COLS, Neurons, Norm, Packing, Part, Place, Places,
    Pool, Qkv, SparseScratch, TernaryColumns, TernaryMatrix, TernaryRows,
};
use half::f16;

/// A small generator of test inputs (xorshift).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
    fn float(&mut self) -> f32 {
        (self.next() % 2_000_001) as f32 / 500_000.0 - 2.0
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

fn scalar() -> &'static KernelSet {
    KernelSet::by_name("scalar").expect("the scalar set is always there")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Runs `compute` with the scalar set on one thread, then with every set on 1, 2 and 3 threads; the
/// bits must be equal.
fn agree(what: &str, compute: impl Fn(&Cpu) -> Vec<f32>) {
    let expected = bits(&compute(&Cpu::new(scalar(), 1)));
    for set in KernelSet::available() {
        for threads in [1, 2, 3] {
            let found = bits(&compute(&Cpu::new(set, threads)));
            assert!(
                expected == found,
                "{what}: {} on {threads} threads differs from the reference",
                set.name
            );
        }
    }
}

fn pack(
    parts: &[Part],
    cols: usize,
    packing: Packing,
    weight: impl Fn(usize, usize, usize) -> i8 + Sync,
) -> TernaryMatrix {
    let unpack = |part: usize, rows: std::ops::Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
        for (row, codes) in rows.zip(codes.chunks_exact_mut(cols)) {
            for (col, code) in codes.iter_mut().enumerate() {
                *code = weight(part, row, col);
            }
        }
        Ok(())
    };
    TernaryMatrix::pack(&Pool::new(2), parts, cols, packing, &unpack).expect("unpack never fails")
}

/// `[rows of x, output_len]`
fn multiply(cpu: &Cpu, matrix: &TernaryMatrix, x: &[f32]) -> Vec<f32> {
    let activations = quantized(cpu, x, matrix.cols());
    let mut out = vec![f32::NAN; activations.rows() * matrix.output_len()];
    cpu.ternary_matmul(matrix, &activations, &mut out);
    out
}

/// One matrix in each packing: every packing must give the bits of the first one with the scalar
/// set.
fn agree_in_all_packings(what: &str, matrices: &[TernaryMatrix], x: &[f32]) {
    let expected = bits(&multiply(&Cpu::new(scalar(), 1), &matrices[0], x));
    for matrix in matrices {
        let what = format!("{what} in {} bits", matrix.packing().name());
        agree(&what, |cpu| multiply(cpu, matrix, x));
        assert!(
            expected == bits(&multiply(&Cpu::new(scalar(), 1), matrix, x)),
            "{what}"
        );
    }
}

fn pseudo_weight(part: usize, row: usize, col: usize) -> i8 {
    let mut rng = Rng(((part * 7919 + row) * 104_729 + col) as u64 * 0x9E37_79B9 + 12345);
    rng.next();
    rng.next();
    (rng.next() % 3) as i8 - 1
}

fn quantized(cpu: &Cpu, x: &[f32], cols: usize) -> Activations {
    let mut activations = Activations::new();
    cpu.quantize(x, cols, cols, None, &mut activations);
    activations
}

#[test]
fn ternary_products_equal_the_definition() {
    let parts = [
        Part {
            rows: 40,
            scale: 0.5,
        },
        Part {
            rows: 7,
            scale: 0.25,
        },
    ];
    for (cols, packing) in [1, 16, 96, 100, 256, 272]
        .into_iter()
        .flat_map(|cols| Packing::ALL.map(|p| (cols, p)))
    {
        let matrix = pack(&parts, cols, packing, pseudo_weight);
        for n in [1, 3, 8, 9] {
            let x = Rng(7 + n as u64).floats(n * cols);
            let cpu = Cpu::new(scalar(), 1);
            let activations = quantized(&cpu, &x, cols);
            let mut out = vec![f32::NAN; n * matrix.output_len()];
            cpu.ternary_matmul(&matrix, &activations, &mut out);
            for row in 0..n {
                let q = activations.row(row);
                for (index, part) in parts.iter().enumerate() {
                    let range = matrix.output_range(index);
                    let found = &out[row * matrix.output_len()..][range];
                    for (r, found) in found.iter().enumerate() {
                        let sum: i32 = (0..cols)
                            .map(|c| i32::from(pseudo_weight(index, r, c)) * i32::from(q[c]))
                            .sum();
                        let expected = sum as f32 / activations.scale(row) * part.scale;
                        assert_eq!(
                            found.to_bits(),
                            expected.to_bits(),
                            "row {row}, part {index}, output {r} of {cols} columns"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn ternary_products_agree() {
    let parts = [
        Part {
            rows: 96,
            scale: 0.7,
        },
        Part {
            rows: 33,
            scale: 1.3,
        },
    ];
    // Numbers of columns that fill no line, some lines, groups of six lines, and groups with lines
    // after them.
    for cols in [5, 64, 96, 128, 300, 480, 2560] {
        let matrices = Packing::ALL.map(|packing| pack(&parts, cols, packing, pseudo_weight));
        for n in (1..=17).chain([40]) {
            let x = Rng(n as u64 * 31 + cols as u64).floats(n * cols);
            agree_in_all_packings(&format!("{n} rows of {cols}"), &matrices, &x);
        }
    }
    let cols = 8640;
    let matrices = Packing::ALL.map(|packing| pack(&parts, cols, packing, pseudo_weight));
    for n in [1, 2, 4, 8, 11] {
        agree_in_all_packings(
            &format!("{n} rows of {cols}"),
            &matrices,
            &Rng(n as u64).floats(n * cols),
        );
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn ternary_products_of_any_shape_agree(
        part_rows in proptest::collection::vec(1usize..70, 1..4),
        cols in 1usize..700,
        n in 1usize..41,
        seed in 1u64..u64::MAX,
    ) {
        let parts: Vec<Part> = part_rows.iter().map(|&rows| Part { rows, scale: rows as f32 / 50.0 }).collect();
        let weight = |part, row, col| pseudo_weight(part, row, col ^ (seed as usize % 1024));
        let matrices = Packing::ALL.map(|packing| pack(&parts, cols, packing, weight));
        let x = Rng(seed).floats(n * cols);
        agree_in_all_packings(&format!("{n} rows of {cols}, {part_rows:?}"), &matrices, &x);
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    // Every weight is +1 or −1 and every activation ±127: the largest possible magnitudes, over
    // many lines.
    let cols = 16_384;
    for (weight, sign) in [(1, 1.0), (1, -1.0), (-1, 1.0)] {
        let matrices = Packing::ALL.map(|packing| {
            pack(
                &[Part {
                    rows: 32,
                    scale: 1.0,
                }],
                cols,
                packing,
                |_, _, _| weight,
            )
        });
        for n in [1, 2, 4, 8, 16] {
            let x = vec![sign; n * cols];
            let expected = f32::from(weight) * sign * cols as f32;
            let found = multiply(&Cpu::new(scalar(), 1), &matrices[0], &x);
            assert!(
                found.iter().all(|&y| (y - expected).abs() < 1.0),
                "{expected}"
            );
            agree_in_all_packings("extreme values", &matrices, &x);
        }
    }
}

/// Numbers of rows with which sets make tables of sums for prompts. Only sets of x86-64 do, and other
/// machines run these tests in an emulator, where large products take minutes.
const PROMPTS: Option<usize> = if cfg!(target_arch = "x86_64") {
    Some(61)
} else {
    None
};

#[test]
fn products_with_many_blocks_agree() {
    // There are enough blocks that threads prepare each tile once for all blocks; the columns are
    // whole groups with more columns after them.
    let parts = [
        Part {
            rows: 480,
            scale: 0.7,
        },
        Part {
            rows: 33,
            scale: 1.3,
        },
    ];
    for cols in [96, 300, 2560] {
        let pack =
            |packing, weight: fn(usize, usize, usize) -> i8| pack(&parts, cols, packing, weight);
        let random =
            [Packing::Two, Packing::FiveThirds].map(|packing| pack(packing, pseudo_weight));
        for n in (3..=9).chain([16, 21]).chain(PROMPTS) {
            let x = Rng(n as u64 * 37 + cols as u64).floats(n * cols);
            agree_in_all_packings(&format!("{n} rows of {cols}"), &random, &x);
        }
        let of_ones = [Packing::Two, Packing::FiveThirds]
            .map(|packing| pack(packing, |part, _, _| [1, -1][part]));
        let prompts = PROMPTS.into_iter().flat_map(|_| [(32, 1.0), (20, -1.0)]);
        for (n, sign) in [(4, 1.0), (8, -1.0), (9, 1.0)].into_iter().chain(prompts) {
            agree_in_all_packings("extreme values", &of_ones, &vec![sign; n * cols]);
        }
    }
}

#[test]
fn weights_outside_minus_one_to_one_are_refused() {
    for wrong in [2, -2, 3, 127, -128] {
        let result = std::panic::catch_unwind(|| {
            pack(
                &[Part {
                    rows: 3,
                    scale: 1.0,
                }],
                20,
                Packing::Two,
                |_, row, col| if (row, col) == (2, 19) { wrong } else { 1 },
            )
        });
        assert!(result.is_err(), "{wrong}");
    }
}

#[test]
fn parts_of_a_stack_equal_the_whole() {
    let cols = 300;
    for packing in [Packing::Two, Packing::FiveThirds] {
        let parts = [
            Part {
                rows: 70,
                scale: 0.1,
            },
            Part {
                rows: 300,
                scale: 0.3,
            },
        ];
        let matrix = pack(&parts, cols, packing, pseudo_weight);
        let outputs = |rows: usize| vec![0.0; rows * matrix.output_len()];
        for rows in [1, 2, 7, 9, 40] {
            let x = Rng(98).floats(rows * cols);
            for set in KernelSet::available() {
                let cpu = Cpu::new(set, 2);
                let activations = quantized(&cpu, &x, cols);
                let (mut whole, mut parts) = (outputs(rows), outputs(rows));
                cpu.ternary_matmul(&matrix, &activations, &mut whole);
                cpu.counters().reset();
                cpu.ternary_matmul_part(&matrix, 1, &activations, &mut parts);
                assert!(
                    parts
                        .chunks_exact(matrix.output_len())
                        .all(|row| row[..96].iter().all(|value| *value == 0.0))
                );
                cpu.ternary_matmul_part(&matrix, 0, &activations, &mut parts);
                assert_eq!(bits(&whole), bits(&parts), "{} {rows} rows", set.name);
                let kernel = if rows == 1 {
                    Kernel::I2sGemv
                } else {
                    Kernel::I2sGemm
                };
                let count = cpu.counters().get(kernel);
                assert_eq!(
                    (count.macs, count.bytes),
                    ((rows * 370 * cols) as u64, matrix.num_bytes() as u64)
                );
            }
        }
    }
}

#[test]
fn rows_of_a_batch_equal_single_rows() {
    let cols = 640;
    let matrix = pack(
        &[Part {
            rows: 64,
            scale: 0.1,
        }],
        cols,
        Packing::FiveThirds,
        pseudo_weight,
    );
    let x = Rng(99).floats(21 * cols);
    for set in KernelSet::available() {
        let cpu = Cpu::new(set, 2);
        let mut all = vec![0.0; 21 * 64];
        cpu.ternary_matmul(&matrix, &quantized(&cpu, &x, cols), &mut all);
        for row in 0..21 {
            let mut one = vec![0.0; 64];
            cpu.ternary_matmul(
                &matrix,
                &quantized(&cpu, &x[row * cols..(row + 1) * cols], cols),
                &mut one,
            );
            assert_eq!(
                bits(&one),
                bits(&all[row * 64..(row + 1) * 64]),
                "{} row {row}",
                set.name
            );
        }
    }
}

/// Activations with the given share of zeros; the others have any size.
fn thinned(rng: &mut Rng, cols: usize, zeros_of_100: u64) -> Vec<f32> {
    (0..cols)
        .map(|_| {
            if rng.next() % 100 < zeros_of_100 {
                0.0
            } else {
                rng.float()
            }
        })
        .collect()
}

#[test]
fn products_of_gated_rows_equal_the_dense_ones() {
    for (rows, cols) in [
        (1, 1),
        (40, 16),
        (33, 100),
        (70, 256),
        (200, 272),
        (131, 300),
        (300, 1024),
        (96, 2570),
    ] {
        let parts = [
            Part {
                rows: 35,
                scale: 0.5,
            },
            Part { rows, scale: 0.7 },
        ];
        let matrix = pack(&parts, cols, Packing::FiveThirds, pseudo_weight);
        let mut rng = Rng((rows * cols) as u64 + 3);
        let x = rng.floats(cols);
        for negatives in [0, 30, 70, 95, 100] {
            let mut gates: Vec<f32> = (0..rows)
                .map(|_| {
                    if rng.next() % 100 < negatives {
                        -1.5
                    } else {
                        rng.float().abs()
                    }
                })
                .collect();
            // Neither zeros nor NaN count as positive.
            for (gate, odd) in gates
                .iter_mut()
                .zip([-0.0, 0.0, f32::NAN, f32::NEG_INFINITY])
                .skip(1)
            {
                *gate = odd;
            }
            let active = gates.iter().filter(|gate| **gate > 0.0).count();
            agree(&format!("{active} of {rows} rows of {cols}"), |cpu| {
                let sparse = TernaryRows::new(cpu.pool(), &matrix, 1);
                let activations = quantized(cpu, &x, cols);
                let mut dense = vec![f32::NAN; matrix.output_len()];
                cpu.ternary_matmul(&matrix, &activations, &mut dense);
                let mut scratch = SparseScratch::default();
                let mut out = vec![f32::NAN; rows];
                if active > 0 {
                    assert!(!cpu.gated_rows_matvec(
                        &sparse,
                        &gates,
                        active - 1,
                        &activations,
                        &mut scratch,
                        &mut out
                    ));
                    assert!(
                        out.iter().all(|value| value.is_nan()),
                        "nothing is written when there are too many"
                    );
                }
                assert!(cpu.gated_rows_matvec(
                    &sparse,
                    &gates,
                    active,
                    &activations,
                    &mut scratch,
                    &mut out
                ));
                let expected: Vec<f32> = gates
                    .iter()
                    .zip(&dense[64..])
                    .map(|(gate, dense)| if *gate > 0.0 { *dense } else { 0.0 })
                    .collect();
                assert_eq!(
                    bits(&out),
                    bits(&expected),
                    "{} rows of {cols}",
                    cpu.set().name
                );
                out
            });
        }
    }
}

#[test]
fn products_that_could_overflow_use_the_dense_path() {
    let matrix = pack(
        &[Part {
            rows: 3,
            scale: 1e30,
        }],
        20,
        Packing::Two,
        |_, _, _| 1,
    );
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let sparse = TernaryRows::new(cpu.pool(), &matrix, 0);
    let run = |value: f32| {
        let activations = quantized(&cpu, &[value; 20], 20);
        cpu.gated_rows_matvec(
            &sparse,
            &[1.0, -1.0, 1.0],
            3,
            &activations,
            &mut SparseScratch::default(),
            &mut [0.0; 3],
        )
    };
    assert!(run(1.0) && run(1e6) && run(0.0));
    assert!(!run(1e8) && !run(f32::MAX) && !run(f32::INFINITY));
}

#[test]
fn products_of_active_columns_equal_the_dense_ones() {
    for (rows, cols) in [
        (1, 1),
        (33, 40),
        (250, 100),
        (256, 64),
        (257, 65),
        (300, 130),
        (520, 700),
        (70, 8640),
    ] {
        let matrix = pack(
            &[Part { rows, scale: 0.7 }],
            cols,
            Packing::FiveThirds,
            pseudo_weight,
        );
        let mut rng = Rng((rows * cols) as u64 + 4);
        for zeros in [0, 30, 70, 95, 100] {
            let x = thinned(&mut rng, cols, zeros);
            agree(
                &format!("{rows} rows of {cols} columns, {zeros} % zero"),
                |cpu| {
                    let sparse = TernaryColumns::new(cpu.pool(), &matrix);
                    let activations = quantized(cpu, &x, cols);
                    let active = activations.row(0).iter().filter(|q| **q != 0).count();
                    let mut dense = vec![f32::NAN; matrix.output_len()];
                    cpu.ternary_matmul(&matrix, &activations, &mut dense);
                    let mut scratch = SparseScratch::default();
                    let mut out = vec![f32::NAN; rows];
                    if active > 0 {
                        assert!(!cpu.active_columns_matvec(
                            &sparse,
                            active - 1,
                            &activations,
                            &mut scratch,
                            &mut out
                        ));
                    }
                    assert!(cpu.active_columns_matvec(
                        &sparse,
                        active,
                        &activations,
                        &mut scratch,
                        &mut out
                    ));
                    assert_eq!(
                        bits(&out),
                        bits(&dense[..rows]),
                        "{} columns of {rows}",
                        cpu.set().name
                    );
                    out
                },
            );
        }
    }
}

#[test]
fn the_largest_sums_of_active_runs_do_not_overflow() {
    for (weight, sign) in [(1, 1.0), (1, -1.0), (-1, 1.0)] {
        let compute = |cpu: &Cpu, rows: usize, cols: usize| {
            let matrix = pack(
                &[Part { rows, scale: 1.0 }],
                cols,
                Packing::Two,
                |_, _, _| weight,
            );
            let activations = quantized(cpu, &vec![sign; cols], cols);
            let mut out = vec![f32::NAN; 2 * rows];
            let (by_rows, by_columns) = out.split_at_mut(rows);
            let mut scratch = SparseScratch::default();
            let rows_matrix = TernaryRows::new(cpu.pool(), &matrix, 0);
            assert!(cpu.gated_rows_matvec(
                &rows_matrix,
                &vec![1.0; rows],
                rows,
                &activations,
                &mut scratch,
                by_rows
            ));
            let columns_matrix = TernaryColumns::new(cpu.pool(), &matrix);
            assert!(cpu.active_columns_matvec(
                &columns_matrix,
                cols,
                &activations,
                &mut scratch,
                by_columns
            ));
            let expected = f32::from(weight) * sign * cols as f32;
            assert!(
                out.iter()
                    .all(|&y| (y - expected).abs() < 1.0 + expected.abs() * 1e-6),
                "{expected}"
            );
            out
        };
        agree("extreme values", |cpu| compute(cpu, 3, MAX_COLS));
    }
}

#[test]
fn quantization_follows_the_definition() {
    let cpu = Cpu::new(KernelSet::detect(), 1);
    // 127 / 2 = 63.5 is exact, so 1 and −1 are ties, which go to the even neighbour.
    let x = [2.0, 1.0, -1.0, -2.0, 0.0];
    let activations = quantized(&cpu, &x, 5);
    assert_eq!(activations.row(0), [127, 64, -64, -127, 0]);
    assert_eq!(activations.scale(0).to_bits(), 63.5f32.to_bits());
    // The floor of 1e-5 keeps a row of zeros from dividing by zero.
    let zeros = quantized(&cpu, &[0.0; 4], 4);
    assert_eq!(zeros.scale(0).to_bits(), (127.0f32 / 1e-5f32).to_bits());
    assert_eq!(zeros.row(0), [0; 4]);
}

#[test]
fn norms_gates_and_quantization_agree() {
    for cols in [3, 16, 63, 64, 200, 1000, 2560] {
        let mut rng = Rng(cols as u64);
        let (x, weight) = (rng.floats(11 * 2 * cols), rng.floats(cols));
        let norm = Norm {
            weight: &weight,
            eps: 1e-5,
        };
        let flat = |a: &Activations| -> Vec<f32> {
            (0..a.rows())
                .flat_map(|r| a.row(r).into_iter().map(f32::from).chain([a.scale(r)]))
                .collect()
        };
        for norm in [None, Some(norm)] {
            agree(&format!("quantize {cols}"), |cpu| {
                let mut to = Activations::new();
                cpu.quantize(&x, 2 * cols, cols, norm, &mut to);
                flat(&to)
            });
            for gate in [Gate::Relu2, Gate::Silu, Gate::Gelu] {
                agree(&format!("{gate:?} {cols}"), |cpu| {
                    let mut to = Activations::new();
                    let neurons = Neurons {
                        gates: 0..cols,
                        ups: cols..2 * cols,
                        live: None,
                    };
                    cpu.gate_and_quantize(gate, &x, 2 * cols, &neurons, norm, &mut to);
                    flat(&to)
                });
            }
        }
        agree("rms_norm", |cpu| {
            let mut out = vec![0.0; cols];
            cpu.set().rms_norm(&x[..cols], &weight, 1e-6, &mut out);
            cpu.set().add(&mut out, &x[cols..2 * cols]);
            out
        });
    }
}

#[test]
fn skipped_neurons_count_as_zeros() {
    for (num_neurons, stride) in [(3, 2), (40, 3), (300, 7), (1000, 2)] {
        let positions: Vec<u32> = (1..num_neurons as u32).step_by(stride).collect();
        let (live, mut rng) = (positions.len(), Rng(num_neurons as u64));
        let rows = 9;
        let (few, weight) = (rng.floats(rows * 2 * live), rng.floats(num_neurons));
        let mut all = vec![0.0; rows * 2 * num_neurons];
        for (few, all) in few
            .chunks_exact(2 * live)
            .zip(all.chunks_exact_mut(2 * num_neurons))
        {
            for (index, position) in positions.iter().enumerate() {
                all[*position as usize] = few[index];
                all[num_neurons + *position as usize] = few[live + index];
            }
        }
        for (gate, norm) in [
            (Gate::Relu2, None),
            (Gate::Silu, None),
            (
                Gate::Relu2,
                Some(Norm {
                    weight: &weight,
                    eps: 1e-5,
                }),
            ),
        ] {
            agree(&format!("{gate:?}, {live} of {num_neurons}"), |cpu| {
                let (mut expected, mut found) = (Activations::new(), Activations::new());
                let neurons = Neurons {
                    gates: 0..num_neurons,
                    ups: num_neurons..2 * num_neurons,
                    live: None,
                };
                let zeros = cpu.gate_and_quantize(
                    gate,
                    &all,
                    2 * num_neurons,
                    &neurons,
                    norm,
                    &mut expected,
                );
                let neurons = Neurons {
                    gates: 0..live,
                    ups: live..2 * live,
                    live: Some(LiveNeurons {
                        positions: &positions,
                        num_neurons,
                    }),
                };
                let live_zeros =
                    cpu.gate_and_quantize(gate, &few, 2 * live, &neurons, norm, &mut found);
                assert_eq!(zeros.zeros - live_zeros.zeros, rows * (num_neurons - live));
                assert_eq!(
                    zeros.closed_gates - live_zeros.closed_gates,
                    rows * (num_neurons - live)
                );
                let mut out = Vec::new();
                for row in 0..rows {
                    let (all, live) = (expected.row(row), found.row(row));
                    assert!(
                        positions
                            .iter()
                            .zip(&live)
                            .all(|(position, q)| all[*position as usize] == *q)
                    );
                    assert_eq!(expected.scale(row).to_bits(), found.scale(row).to_bits());
                    out.extend(live.into_iter().map(f32::from).chain([found.scale(row)]));
                }
                out
            });
        }
    }
}

#[test]
fn rotations_agree_and_keep_lengths() {
    for half in [3, 32, 48, 50, 64] {
        let x = Rng(half as u64).floats(5 * 2 * half);
        let (cos, sin): (Vec<f32>, Vec<f32>) = (0..half)
            .map(|i| (i as f32 * 0.37).sin_cos())
            .map(|(s, c)| (c, s))
            .unzip();
        let rotate = |cpu: &Cpu| {
            let mut x = x.clone();
            cpu.set().rope_half_split(&mut x, &cos, &sin);
            x
        };
        agree("rope", rotate);
        let length = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
        let rotated = rotate(&Cpu::new(scalar(), 1));
        assert!((length(&rotated) / length(&x) - 1.0).abs() < 1e-5, "{half}");
    }
}

#[test]
fn projections_agree_for_one_row_and_for_many() {
    for cols in [1, 16, 65, 128, 300] {
        let rows = 77;
        let mut rng = Rng(cols as u64 + 5);
        let table: Vec<u8> = (0..rows * cols)
            .flat_map(|_| f16::from_f32(rng.float()).to_le_bytes())
            .collect();
        let x = rng.floats(5 * cols);
        let project = |cpu: &Cpu, x: &[f32]| {
            let mut out = vec![f32::NAN; x.len() / cols * rows];
            cpu.project_f16(&table, x, cols, &mut out);
            out
        };
        agree("projection", |cpu| project(cpu, &x));
        let cpu = Cpu::new(KernelSet::detect(), 2);
        let one_by_one: Vec<f32> = x
            .chunks_exact(cols)
            .flat_map(|x| project(&cpu, x))
            .collect();
        assert_eq!(
            bits(&one_by_one),
            bits(&project(&cpu, &x)),
            "{cols} columns"
        );
    }
}

#[test]
fn every_finite_f16_is_converted_exactly() {
    // Rows of 64 consecutive bit patterns; a one-hot vector picks one value from each.
    let finite = |bits: u16| {
        if f16::from_bits(bits).is_finite() {
            bits
        } else {
            0
        }
    };
    let table: Vec<u8> = (0..=u16::MAX)
        .flat_map(|bits| finite(bits).to_le_bytes())
        .collect();
    for set in KernelSet::available() {
        for position in 0..64 {
            let mut x = [0.0; 64];
            x[position] = 1.0;
            let mut out = vec![f32::NAN; 1024];
            set.matvec_f16(&table, &x, &mut out);
            for (row, found) in out.iter().enumerate() {
                let expected = f16::from_bits(finite((64 * row + position) as u16)).to_f32();
                assert!(
                    *found == expected,
                    "{}: {found} instead of {expected}",
                    set.name
                );
            }
        }
    }
}

/// Attention of the last `queries` of `context` positions, each computed from a cache whose blocks
/// lie in arbitrary order.
fn attend<T: CacheElement>(
    cpu: &Cpu,
    shape: AttentionShape,
    context: usize,
    queries: usize,
    seed: u64,
    spread: bool,
) -> Vec<f32> {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let stride = (heads + 2 * kv_heads) * head_dim;
    let data = Rng(seed).floats(context * stride);
    let qkv = Qkv {
        data: &data,
        stride,
        offsets: [0, heads * head_dim, (heads + kv_heads) * head_dim],
    };
    let num_blocks = context.div_ceil(CACHE_BLOCK);
    let blocks: Vec<u32> = (0..num_blocks as u32)
        .map(|b| {
            if spread {
                (b * 2 + 1) % (2 * num_blocks as u32 + 1)
            } else {
                b
            }
        })
        .collect();
    let size = 2 * num_blocks + 1;
    // Positions that were never written must not change the result, neither by their keys nor by
    // their values.
    let (key_len, pair_len) = (
        shape.key_block_len(),
        shape.key_block_len() + shape.value_block_len(),
    );
    // Use the second of three layers, at an offset in the buffer.
    let mut cached = vec![T::default(); 3 * size * pair_len + 7];
    for pair in cached[7..].chunks_exact_mut(pair_len) {
        cpu.set()
            .round(&vec![f32::NAN; key_len], &mut pair[..key_len]);
    }
    let mut cache = LayerCache {
        data: &mut cached,
        offset: 7 + pair_len,
        stride: 3 * pair_len,
    };
    let all: Vec<Place> = (0..context)
        .map(|position| Place { position, table: 0 })
        .collect();
    let places = |rows: std::ops::Range<usize>| Places {
        rows: &all[rows],
        blocks: &blocks,
    };
    cpu.store_kv(shape, qkv, places(0..context), &mut cache);
    let first = context - queries;
    let queries_only = Qkv {
        data: &data[first * stride..],
        ..qkv
    };
    let mut out = vec![f32::NAN; queries * heads * head_dim];
    cpu.attention(
        shape,
        queries_only,
        places(first..context),
        &cache,
        &mut AttentionScratch::default(),
        &mut out,
    );
    out
}

#[test]
fn attention_agrees_and_does_not_depend_on_chunks_or_blocks() {
    for (heads, kv_heads, head_dim) in [
        (4, 1, 64),
        (4, 2, 96),
        (3, 3, 100),
        (12, 4, 32),
        (5, 1, 16),
        (8, 1, 48),
        (17, 1, 20),
        (20, 5, 128),
    ] {
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim,
        };
        for (context, queries) in [
            (1, 1),
            (15, 3),
            (33, 33),
            (256, 3),
            (257, 20),
            (300, 70),
            (700, 1),
            (700, 3),
        ] {
            if context > 256 && heads > 12 && head_dim < 128 {
                continue;
            }
            let seed = (context * heads) as u64;
            agree(&format!("{shape:?} f32, context {context}"), |cpu| {
                attend::<f32>(cpu, shape, context, queries, seed, false)
            });
            agree(&format!("{shape:?} f16, context {context}"), |cpu| {
                attend::<f16>(cpu, shape, context, queries, seed, true)
            });
            let cpu = Cpu::new(KernelSet::detect(), 2);
            let many = attend::<f16>(&cpu, shape, context, queries, seed, true);
            let last = attend::<f16>(&cpu, shape, context, 1, seed, false);
            assert_eq!(
                bits(&many[many.len() - last.len()..]),
                bits(&last),
                "{shape:?}, context {context}"
            );
        }
    }
}

#[test]
fn attention_of_a_long_row_does_not_depend_on_the_number_of_threads() {
    // Some threads begin and end in the middle of a row, and some have no share at all.
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
    };
    for (context, queries) in [(1, 1), (2000, 1), (2000, 2), (1537, 3)] {
        let one = attend::<f16>(
            &Cpu::new(KernelSet::detect(), 1),
            shape,
            context,
            queries,
            5,
            true,
        );
        for threads in [2, 5, 7, 40] {
            let found = attend::<f16>(
                &Cpu::new(KernelSet::detect(), threads),
                shape,
                context,
                queries,
                5,
                true,
            );
            assert_eq!(
                bits(&one),
                bits(&found),
                "{threads} threads, {queries} rows of {context}"
            );
        }
    }
}

#[test]
fn rounding_to_f16_agrees() {
    let mut rng = Rng(3);
    let values: Vec<f32> = (0..100_003)
        .map(|i| match i {
            0..1000 => f32::from_bits(0x3300_0000 + i), // around half of the smallest f16
            1000..2000 => 65_504.0 + (i - 1000) as f32, // around the largest
            _ => {
                f32::from_bits(rng.next() as u32 & 0x7fff_ffff).clamp(-1e9, 1e9)
                    * if i % 2 == 0 { 1.0 } else { -1.0 }
            }
        })
        .filter(|value| !value.is_nan())
        .collect();
    let round = |set: &KernelSet| {
        let mut out = vec![f16::default(); values.len()];
        set.round(&values, &mut out);
        out.into_iter().map(f16::to_bits).collect::<Vec<_>>()
    };
    for set in KernelSet::available() {
        assert!(round(set) == round(scalar()), "{}", set.name);
    }
}

#[test]
fn attention_is_close_to_the_textbook_formula() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 100,
    };
    let (context, seed) = (600, 3);
    let found = attend::<f32>(
        &Cpu::new(KernelSet::detect(), 2),
        shape,
        context,
        1,
        seed,
        false,
    );
    let stride = 8 * 100;
    let data = Rng(seed).floats(context * stride);
    for head in 0..4 {
        let at = |position: usize, offset: usize, d: usize| {
            f64::from(data[position * stride + offset + d])
        };
        let score = |key: usize| {
            (0..100)
                .map(|d| at(context - 1, head * 100, d) * at(key, 400 + head / 2 * 100, d))
                .sum::<f64>()
                / 10.0
        };
        let max = (0..context).map(score).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = (0..context).map(|key| (score(key) - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..100 {
            let expected: f64 = (0..context)
                .map(|key| weights[key] * at(key, 600 + head / 2 * 100, d))
                .sum::<f64>()
                / sum;
            let got = f64::from(found[head * 100 + d]);
            assert!(
                (got - expected).abs() < 1e-5,
                "head {head}, dimension {d}: {got} and {expected}"
            );
        }
    }
}
