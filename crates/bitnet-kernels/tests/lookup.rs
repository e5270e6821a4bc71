//! Products by table lookup are the exact integer sums, in every instruction set, for every shape.

use std::ops::Range;

use bitnet_kernels::{
    Activations, BLOCK_ROWS, Cpu, Kernel, KernelSet, Packing, Part, Pool, TernaryMatrix,
};

const PACKINGS: [Packing; 2] = [Packing::Tl1, Packing::Tl2];

/// A weight for each row and column.
fn weight(row: usize, col: usize) -> i8 {
    let mut x = ((row * 104_729 + col + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^= x >> 29;
    ((x.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) % 3) as i8 - 1
}

fn pack(
    packing: Packing,
    rows: usize,
    cols: usize,
    weight: &(dyn Fn(usize, usize) -> i8 + Sync),
) -> TernaryMatrix {
    let unpack = |_: usize, rows: Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
        for (row, codes) in rows.zip(codes.chunks_exact_mut(cols)) {
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(col, code)| *code = weight(row, col));
        }
        Ok(())
    };
    let parts = [Part { rows, scale: 1.0 }];
    TernaryMatrix::pack(&Pool::new(2), &parts, cols, packing, &unpack).expect("unpack never fails")
}

/// Rows of whole numbers whose largest magnitude is 127, so that quantization leaves them as they
/// are.
fn activations(rows: usize, cols: usize, value: impl Fn(usize, usize) -> i32) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| {
            if i % cols == 0 {
                127.0
            } else {
                value(i / cols, i % cols) as f32
            }
        })
        .collect()
}

/// Multiplies with every set, by one thread and by three, and compares with sums of integers.
fn assert_exact(
    what: &str,
    rows: usize,
    cols: usize,
    weight: &(dyn Fn(usize, usize) -> i8 + Sync),
    x: &[f32],
) {
    let expected: Vec<f32> = x
        .chunks_exact(cols)
        .flat_map(|x| {
            (0..rows).map(move |row| {
                x.iter()
                    .enumerate()
                    .map(|(col, x)| i32::from(weight(row, col)) * *x as i32)
                    .sum::<i32>() as f32
            })
        })
        .collect();
    for packing in PACKINGS {
        let matrix = pack(packing, rows, cols, weight);
        for set in KernelSet::available() {
            for threads in [1, 3] {
                let cpu = Cpu::new(set, threads);
                let mut activations = Activations::new();
                cpu.quantize(x, cols, cols, None, &mut activations);
                let mut out = vec![f32::NAN; x.len() / cols * matrix.output_len()];
                cpu.ternary_matmul(&matrix, &activations, &mut out);
                let found: Vec<f32> = out
                    .chunks_exact(matrix.output_len())
                    .flat_map(|out| &out[matrix.output_range(0)])
                    .copied()
                    .collect();
                assert!(
                    found == expected,
                    "{what}: {packing:?} with {} on {threads} threads",
                    set.name
                );
            }
        }
    }
}

#[test]
fn every_shape_gives_the_exact_sums() {
    // Widths around the ends of lines (16 columns) and units (24), and the widths of published
    // models.
    for cols in [
        1, 2, 3, 15, 16, 17, 23, 24, 25, 40, 41, 47, 48, 64, 95, 96, 100, 272, 2560, 6912, 8640,
    ] {
        for rows in [1, 33, 100] {
            for n in [1, 2, 9] {
                let x = activations(n, cols, |row, col| {
                    (row * 31 + col * 7919) as i32 % 255 - 127
                });
                assert_exact(
                    &format!("{n} rows by {rows} x {cols}"),
                    rows,
                    cols,
                    &weight,
                    &x,
                );
            }
        }
    }
}

#[test]
fn many_rows_and_long_rows_give_the_exact_sums() {
    let x = activations(40, 8640, |row, col| {
        (row * 131 + col * 7919) as i32 % 255 - 127
    });
    assert_exact("40 rows", 64, 8640, &weight, &x);
}

#[test]
fn the_largest_sums_do_not_overflow() {
    for cols in [48, 2560, 8640, 16_384] {
        for weight in [1, -1] {
            for sign in [1, -1] {
                let x = activations(2, cols, |_, _| 127 * sign);
                assert_exact("extreme values", 32, cols, &move |_, _| weight, &x);
                // Weights and values have the same signs everywhere, and every sign pattern of
                // three occurs.
                let x = activations(
                    2,
                    cols,
                    |_, col| if col % 5 < 2 { 127 * sign } else { -127 * sign },
                );
                let weight = move |row: usize, col: usize| {
                    if (col % 5 < 2) == row.is_multiple_of(2) {
                        weight
                    } else {
                        -weight
                    }
                };
                assert_exact("extreme values", 32, cols, &weight, &x);
            }
        }
    }
}

#[test]
fn eight_additions_of_every_table_product_are_exact() {
    // Triples of activations whose sums run from -381 to 381, the same in all eight fields of a
    // unit and beyond.
    let rows = 9;
    let weight = |row: usize, _| [1, -1][row % 2];
    for sum in -381i32..=381 {
        let value = |col: usize| {
            let first = sum.clamp(-127, 127);
            let second = (sum - first).clamp(-127, 127);
            [first, second, sum - first - second][col % 3]
        };
        let x = activations(1, 72, |_, col| value(col));
        assert_exact(&format!("products {sum}"), rows, 72, &weight, &x);
    }
}

#[test]
fn counters_give_the_bytes_of_the_codes() {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let count = |packing: Packing, rows: usize, kernel: Kernel| {
        let matrix = pack(packing, 64, 2592, &weight);
        let mut activations = Activations::new();
        cpu.quantize(&vec![1.0; rows * 2592], 2592, 2592, None, &mut activations);
        cpu.counters().reset();
        cpu.ternary_matmul(&matrix, &activations, &mut vec![0.0; rows * 64]);
        assert_eq!(
            cpu.counters().get(Kernel::I2sGemv).calls + cpu.counters().get(Kernel::I2sGemm).calls,
            0
        );
        let count = cpu.counters().get(kernel);
        assert_eq!((count.calls, count.macs), (1, (rows * 64 * 2592) as u64));
        count.bytes as usize
    };
    assert_eq!(64 % BLOCK_ROWS, 0);
    assert_eq!(count(Packing::Tl1, 1, Kernel::Tl1Gemv), 64 * 2592 / 4);
    assert_eq!(count(Packing::Tl1, 5, Kernel::Tl1Gemm), 64 * 2592 / 4);
    assert_eq!(count(Packing::Tl2, 1, Kernel::Tl2Gemv), 64 * 2592 * 5 / 24);
    assert_eq!(count(Packing::Tl2, 5, Kernel::Tl2Gemm), 64 * 2592 * 5 / 24);
}
