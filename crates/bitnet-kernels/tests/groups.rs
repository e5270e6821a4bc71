//! Products with a scale for each group of columns equal their definition, and every instruction
//! set, number of threads and number of rows gives the bits of the scalar reference.

use std::ops::Range;

use bitnet_kernels::{
    Cpu, GroupActivations, GroupCodes, GroupMatrix, Kernel, KernelSet, Norm, Pool,
};
use half::f16;

/// A small generator of test inputs (xorshift).
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        let mut rng = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        rng.next();
        rng
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        let float = |_| (self.next() % 2_000_001) as f32 / 500_000.0 - 2.0;
        (0..n).map(float).collect()
    }
}

/// A matrix as its codes and scales, `[rows, cols]` and `[rows, groups]` for each part.
struct Plain {
    parts: Vec<usize>,
    cols: usize,
    codes: GroupCodes,
    group_cols: usize,
    /// All codes are below it.
    num_codes: u8,
}

impl Plain {
    fn new(parts: &[usize], cols: usize, codes: GroupCodes, group_cols: usize) -> Self {
        Self {
            parts: parts.to_vec(),
            cols,
            codes,
            group_cols,
            num_codes: codes.num_codes(),
        }
    }

    fn code(&self, part: usize, row: usize, col: usize) -> u8 {
        let seed = ((part * 7919 + row) * 104_729 + col) as u64;
        (Rng::new(seed + 1).next() % u64::from(self.num_codes)) as u8
    }

    /// Ordinary scales, with some that are zero, subnormal or negative.
    fn scale(&self, part: usize, row: usize, group: usize) -> f16 {
        match Rng::new(((part * 31 + row) * 57 + group) as u64 + 7).next() % 8 {
            0 => f16::ZERO,
            1 => f16::from_bits(1 + (row as u16 % 1023)),
            2 => -f16::from_f32(0.013),
            n => f16::from_f32(0.01 + n as f32 * 0.007 + row as f32 * 1e-4),
        }
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group_cols)
    }

    fn pack(&self) -> GroupMatrix {
        let unpack = |part: usize, rows: Range<usize>, codes: &mut [u8], scales: &mut [f16]| {
            let lines = codes
                .chunks_exact_mut(self.cols)
                .zip(scales.chunks_exact_mut(self.groups()));
            for (row, (codes, scales)) in rows.zip(lines) {
                for (col, code) in codes.iter_mut().enumerate() {
                    *code = self.code(part, row, col);
                }
                for (group, scale) in scales.iter_mut().enumerate() {
                    *scale = self.scale(part, row, group);
                }
            }
            Ok::<(), ()>(())
        };
        GroupMatrix::pack(
            &Pool::new(2),
            &self.parts,
            self.cols,
            self.codes,
            self.group_cols,
            &unpack,
        )
        .expect("unpack never fails")
    }
}

fn scalar() -> &'static KernelSet {
    KernelSet::by_name("scalar").expect("the scalar set is always there")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn quantized(cpu: &Cpu, x: &[f32], cols: usize, run_cols: usize) -> GroupActivations {
    let mut activations = GroupActivations::new();
    cpu.quantize_groups(x, cols, cols, run_cols, None, &mut activations);
    activations
}

/// `[rows of x, output_len]`
fn multiply(cpu: &Cpu, matrix: &GroupMatrix, x: &[f32], run_cols: usize) -> Vec<f32> {
    let activations = quantized(cpu, x, matrix.cols(), run_cols);
    let mut out = vec![f32::NAN; activations.rows() * matrix.output_len()];
    cpu.group_matmul(matrix, &activations, &mut out);
    out
}

#[track_caller]
fn agree(matrix: &GroupMatrix, x: &[f32], run_cols: usize) {
    let expected = bits(&multiply(&Cpu::new(scalar(), 1), matrix, x, run_cols));
    for set in KernelSet::available() {
        for threads in [1, 3] {
            let found = bits(&multiply(&Cpu::new(set, threads), matrix, x, run_cols));
            assert!(
                expected == found,
                "{} on {threads} threads: {} rows, {} columns in groups of {}, runs of {run_cols}, {:?}",
                set.name,
                x.len() / matrix.cols(),
                matrix.cols(),
                matrix.group_cols(),
                matrix.codes()
            );
        }
    }
}

/// Each length of a group with each length of a run that fits into it.
const GROUPS_AND_RUNS: [(usize, usize); 6] = [
    (32, 32),
    (64, 32),
    (64, 64),
    (128, 32),
    (128, 64),
    (128, 128),
];

/// Rounds halves to even; `f64::round` would round them away from zero.
fn round_half_even(x: f64) -> f64 {
    let floor = x.floor();
    match x - floor {
        d if d < 0.5 => floor,
        d if d > 0.5 => floor + 1.0,
        _ if floor % 2.0 == 0.0 => floor,
        _ => floor + 1.0,
    }
}

#[test]
fn activations_are_quantized_by_the_largest_of_each_run() {
    let cols = 200;
    let mut x = Rng::new(3).floats(2 * cols);
    x[64..128].fill(0.0);
    x[cols + 5] = 127.0;
    x[cols + 6] = 2.5;
    x[cols + 7] = -3.5;
    x[cols..cols + 5].fill(0.25);
    x[cols + 8..cols + 128].fill(0.5);
    for run_cols in [32, 64, 128] {
        for set in KernelSet::available() {
            let activations = quantized(&Cpu::new(set, 2), &x, cols, run_cols);
            assert_eq!(activations.num_runs(), cols.div_ceil(run_cols));
            for (row, x) in x.chunks_exact(cols).enumerate() {
                let (q, d) = (activations.row(row), activations.row_scales(row));
                for (run, x) in x.chunks(run_cols).enumerate() {
                    let absmax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    assert_eq!(d[run], absmax / 127.0);
                    for (q, x) in q[run * run_cols..].iter().zip(x) {
                        let expected = match absmax {
                            0.0 => 0.0,
                            _ => round_half_even(f64::from(x / d[run])),
                        };
                        assert_eq!(f64::from(*q), expected, "{x} / {}", d[run]);
                    }
                }
            }
        }
    }
}

#[test]
fn activations_of_any_size_are_quantized_alike() {
    let rows: [fn(usize) -> f32; 7] = [
        |i| f32::from_bits(i as u32 % 300),
        |i| {
            if i % 3 == 0 {
                f32::MIN_POSITIVE
            } else {
                -1e-41
            }
        },
        |i| if i == 40 { f32::INFINITY } else { i as f32 },
        |i| if i == 40 { f32::NAN } else { i as f32 - 90.0 },
        |_| f32::NAN,
        |i| if i % 2 == 0 { f32::MAX } else { -f32::MAX },
        |_| -0.0,
    ];
    let x: Vec<f32> = rows.iter().flat_map(|row| (0..190).map(row)).collect();
    let norm = Rng::new(4).floats(190);
    for run_cols in [32, 64, 128] {
        let of = |set| {
            let cpu = Cpu::new(set, 1);
            let (mut plain, mut normed) = (GroupActivations::new(), GroupActivations::new());
            cpu.quantize_groups(&x, 190, 190, run_cols, None, &mut plain);
            let norm = Norm {
                weight: &norm,
                eps: 1e-6,
            };
            cpu.quantize_groups(&x[..380], 190, 190, run_cols, Some(norm), &mut normed);
            let all = [(&plain, 7), (&normed, 2)];
            let values = all.map(|(a, n)| (0..n).map(|row| a.row(row)).collect::<Vec<_>>());
            let scales = all.map(|(a, n)| {
                (0..n)
                    .map(|row| bits(&a.row_scales(row)))
                    .collect::<Vec<_>>()
            });
            (values, scales)
        };
        for set in KernelSet::available() {
            assert_eq!(of(scalar()), of(set), "{}", set.name);
        }
    }
}

#[test]
fn products_equal_the_definition() {
    for codes in GroupCodes::ALL {
        for (cols, (group_cols, run_cols)) in [1, 40, 192, 320, 384]
            .into_iter()
            .flat_map(|cols| GROUPS_AND_RUNS.map(|lens| (cols, lens)))
        {
            let plain = Plain::new(&[40, 7], cols, codes, group_cols);
            let matrix = plain.pack();
            let cpu = Cpu::new(scalar(), 1);
            let x = Rng::new(cols as u64).floats(3 * cols);
            let activations = quantized(&cpu, &x, cols, run_cols);
            let found = multiply(&cpu, &matrix, &x, run_cols);
            for t in 0..3 {
                let (q, d) = (activations.row(t), activations.row_scales(t));
                for (part, rows) in plain.parts.iter().enumerate() {
                    let out = &found[t * matrix.output_len()..][matrix.output_range(part)];
                    assert_eq!(out.len(), *rows);
                    for (row, found) in out.iter().enumerate() {
                        let mut y = 0.0f32;
                        for group in 0..plain.groups() {
                            let end = cols.min((group + 1) * group_cols);
                            let mut of_runs = 0.0f32;
                            for start in (group * group_cols..end).step_by(run_cols) {
                                let sum: i32 = (start..end.min(start + run_cols))
                                    .map(|col| {
                                        let weight = codes.weight(plain.code(part, row, col));
                                        i32::from(weight) * i32::from(q[col])
                                    })
                                    .sum();
                                of_runs += sum as f32 * d[start / run_cols];
                            }
                            y += of_runs * plain.scale(part, row, group).to_f32();
                        }
                        assert_eq!(
                            found.to_bits(),
                            y.to_bits(),
                            "row {row} of part {part}, {cols} columns, groups of {group_cols}, runs of {run_cols}, {codes:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_agree() {
    for codes in GroupCodes::ALL {
        for (group_cols, run_cols) in GROUPS_AND_RUNS {
            // Numbers of columns that fill no cell, some cells, groups, and more than one chunk of
            // signs.
            for cols in [5, 64, 192, 448, 1100] {
                let matrix = Plain::new(&[33, 20], cols, codes, group_cols).pack();
                for n in (1..=9).chain([17]) {
                    let x = Rng::new((n * cols) as u64).floats(n * cols);
                    agree(&matrix, &x, run_cols);
                }
            }
        }
        // More rows than one round of tables, and more than one block.
        let matrix = Plain::new(&[200], 1280, codes, 128).pack();
        agree(&matrix, &Rng::new(9).floats(35 * 1280), 32);
        let matrix = Plain::new(&[64], 6144, codes, 128).pack();
        agree(&matrix, &Rng::new(10).floats(2 * 6144), 64);
    }
}

/// Rows of weights with which sets make tables of sums for prompts. Only sets of x86-64 do, and other
/// machines run these tests in an emulator, where large products take minutes.
const PROMPT_ROWS: usize = if cfg!(target_arch = "x86_64") {
    320
} else {
    64
};

#[test]
fn products_of_prompts_agree() {
    // There are enough blocks that sets make tables of sums for 32 rows at once: some rows,
    // all, and few rows after the last.
    for codes in GroupCodes::ALL {
        for (group_cols, run_cols) in GROUPS_AND_RUNS {
            for (cols, n) in [(5, 20), (192, 32), (448, 39)] {
                let mut plain = Plain::new(&[PROMPT_ROWS + 10, 40], cols, codes, group_cols);
                let x = Rng::new((n * cols) as u64).floats(n * cols);
                agree(&plain.pack(), &x, run_cols);
                // Ternary codes, which nearly all files have.
                plain.num_codes = 3.min(codes.num_codes());
                agree(&plain.pack(), &x, run_cols);
            }
        }
    }
}

#[test]
fn rare_codes_of_three_count_in_prompts() {
    let (cols, rows) = (256, 352);
    let unpack = |_, rows: Range<usize>, codes: &mut [u8], scales: &mut [f16]| {
        codes.fill(1);
        if rows.contains(&340) {
            codes[(340 - rows.start) * cols + 77] = 3;
        }
        scales.fill(f16::ONE);
        Ok::<(), ()>(())
    };
    let (pool, codes) = (Pool::new(2), GroupCodes::TwoBits);
    let matrix = GroupMatrix::pack(&pool, &[rows], cols, codes, 128, &unpack);
    let matrix = matrix.expect("unpack never fails");
    let x = vec![1.0; 32 * cols];
    for set in KernelSet::available() {
        let y = multiply(&Cpu::new(set, 1), &matrix, &x, 32);
        for y in y.chunks_exact(rows) {
            assert!((y[340] - 2.0).abs() < 1e-5, "{}: {}", set.name, y[340]);
            assert!(y.iter().enumerate().all(|(row, y)| row == 340 || *y == 0.0));
        }
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    for codes in GroupCodes::ALL {
        for (code, sign) in [(0, 1.0), (0, -1.0), (codes.num_codes() - 1, 1.0)] {
            for (group_cols, run_cols) in GROUPS_AND_RUNS {
                let cols = 1152;
                let unpack = |_, _, codes: &mut [u8], scales: &mut [f16]| {
                    codes.fill(code);
                    scales.fill(f16::ONE);
                    Ok::<(), ()>(())
                };
                let pool = Pool::new(2);
                let rows = [PROMPT_ROWS];
                let matrix = GroupMatrix::pack(&pool, &rows, cols, codes, group_cols, &unpack)
                    .expect("unpack never fails");
                for n in [1, 3, 13, 32] {
                    let x = vec![sign; n * cols];
                    let expected = f32::from(codes.weight(code)) * sign * cols as f32;
                    for y in multiply(&Cpu::new(scalar(), 1), &matrix, &x, run_cols) {
                        assert!((y - expected).abs() < 1.0, "{y} for {expected}");
                    }
                    agree(&matrix, &x, run_cols);
                }
            }
        }
    }
}

#[test]
fn runs_of_zeros_and_tiny_values_agree() {
    for codes in GroupCodes::ALL {
        let matrix = Plain::new(&[40], 320, codes, 64).pack();
        let mut x = Rng::new(5).floats(4 * 320);
        x[..64].fill(0.0);
        x[320..640].fill(0.0);
        x[640..].iter_mut().for_each(|x| *x *= 1e-41);
        for run_cols in [32, 64] {
            agree(&matrix, &x, run_cols);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
    #[test]
    fn products_of_any_shape_agree(
        parts in proptest::collection::vec(1usize..70, 1..4),
        cols in 1usize..1300,
        n in 1usize..20,
        lens in 0usize..6,
        signs: bool,
    ) {
        let (group_cols, run_cols) = GROUPS_AND_RUNS[lens];
        let matrix = Plain::new(&parts, cols, GroupCodes::ALL[usize::from(signs)], group_cols).pack();
        agree(&matrix, &Rng::new((n + cols) as u64).floats(n * cols), run_cols);
    }
}

#[test]
fn rows_of_a_batch_equal_single_rows() {
    let cols = 640;
    for codes in GroupCodes::ALL {
        let matrix = Plain::new(&[64], cols, codes, 128).pack();
        let x = Rng::new(99).floats(21 * cols);
        for set in KernelSet::available() {
            let cpu = Cpu::new(set, 2);
            let all = multiply(&cpu, &matrix, &x, 32);
            for (row, x) in x.chunks_exact(cols).enumerate() {
                let one = multiply(&cpu, &matrix, x, 32);
                assert_eq!(
                    bits(&one),
                    bits(&all[row * 64..(row + 1) * 64]),
                    "{}",
                    set.name
                );
            }
        }
    }
}

#[test]
fn a_row_is_read_as_its_codes_times_its_scales() {
    for codes in GroupCodes::ALL {
        for (cols, group_cols) in [(192, 64), (1408, 128), (100, 64)] {
            let plain = Plain::new(&[33, 415], cols, codes, group_cols);
            let matrix = plain.pack();
            for (part, row) in [(0, 0), (0, 32), (1, 0), (1, 414), (1, 100)] {
                let mut out = vec![f32::NAN; cols];
                matrix.read_row(part, row, &mut out);
                for (col, found) in out.iter().enumerate() {
                    let weight = f32::from(codes.weight(plain.code(part, row, col)));
                    let scale = plain.scale(part, row, col / group_cols).to_f32();
                    assert_eq!(found.to_bits(), (weight * scale).to_bits());
                }
            }
        }
    }
}

#[test]
fn logits_are_products_without_padding() {
    for codes in GroupCodes::ALL {
        for vocab in [415, 448, 20] {
            let matrix = Plain::new(&[vocab], 192, codes, 64).pack();
            let x = Rng::new(8).floats(3 * 192);
            for set in KernelSet::available() {
                let cpu = Cpu::new(set, 2);
                let padded = multiply(&cpu, &matrix, &x, 32);
                cpu.counters().reset();
                let mut logits = vec![f32::NAN; 3 * vocab];
                cpu.group_logits(&matrix, &quantized(&cpu, &x, 192, 32), &mut logits);
                for (logits, padded) in logits
                    .chunks_exact(vocab)
                    .zip(padded.chunks_exact(matrix.output_len()))
                {
                    assert_eq!(bits(logits), bits(&padded[..vocab]), "{}", set.name);
                }
                let count = cpu.counters().get(Kernel::LogitsProjection);
                assert_eq!(
                    (count.calls, count.macs, count.bytes),
                    (1, (3 * vocab * 192) as u64, matrix.num_bytes() as u64)
                );
            }
        }
    }
}

#[test]
fn products_are_counted_with_the_bytes_of_the_scales() {
    for (codes, of_one, of_several, bytes) in [
        (GroupCodes::Signs, Kernel::SignGemv, Kernel::SignGemm, 9),
        (
            GroupCodes::TwoBits,
            Kernel::TwoBitGemv,
            Kernel::TwoBitGemm,
            17,
        ),
    ] {
        let matrix = Plain::new(&[50, 40], 256, codes, 128).pack();
        let num_bytes = 128 * 256 / 64 * bytes;
        assert_eq!(
            (matrix.num_bytes(), matrix.num_weights()),
            (num_bytes, 90 * 256)
        );
        for (n, kernel) in [(1, of_one), (5, of_several)] {
            let cpu = Cpu::new(KernelSet::detect(), 2);
            multiply(&cpu, &matrix, &vec![1.0; n * 256], 64);
            let count = cpu.counters().get(kernel);
            assert_eq!(
                (count.calls, count.macs, count.bytes),
                (1, (n * 90 * 256) as u64, num_bytes as u64)
            );
        }
    }
}

#[test]
fn invalid_codes_are_refused() {
    for (codes, wrong) in [(GroupCodes::Signs, 2), (GroupCodes::TwoBits, 4)] {
        let unpack = |_, _, codes: &mut [u8], _: &mut [f16]| {
            codes[3] = wrong;
            Ok::<(), ()>(())
        };
        let pack = || GroupMatrix::pack(&Pool::new(1), &[3], 64, codes, 64, &unpack).map(|_| ());
        assert!(std::panic::catch_unwind(pack).is_err());
    }
    let fails = |_, _, _: &mut [u8], _: &mut [f16]| Err("the file ends");
    let packed = GroupMatrix::pack(&Pool::new(2), &[99], 64, GroupCodes::Signs, 64, &fails);
    assert_eq!(packed.map(|_| ()), Err("the file ends"));
}

#[test]
fn runs_longer_than_a_group_are_refused() {
    let matrix = Plain::new(&[32], 128, GroupCodes::TwoBits, 64).pack();
    let product = || multiply(&Cpu::new(scalar(), 1), &matrix, &[1.0; 128], 128);
    assert!(std::panic::catch_unwind(product).is_err());
}
