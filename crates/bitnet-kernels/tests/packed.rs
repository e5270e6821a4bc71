//! Weights that are made from packed bytes, as in a cache file, multiply like the weights that the
//! bytes come from.

use bitnet_kernels::{
    Activations, Cpu, GroupActivations, GroupCodes, GroupMatrix, KernelSet, Packing, Part, Pool,
    ScreenScratch, ScreenTable, SparseScratch, TernaryColumns, TernaryMatrix, TernaryRows,
};
use bytes::Bytes;
use half::f16;

const PARTS: [Part; 2] = [
    Part {
        rows: 40,
        scale: 0.5,
    },
    Part {
        rows: 70,
        scale: 3.0,
    },
];
const COLS: usize = 400;

fn matrix(parts: &[Part], packing: Packing) -> TernaryMatrix {
    let unpack = |part: usize, rows: std::ops::Range<usize>, codes: &mut [i8]| -> Result<(), ()> {
        for (row, codes) in rows.zip(codes.chunks_exact_mut(COLS)) {
            for (col, code) in codes.iter_mut().enumerate() {
                *code = ((part + row * 31 + col * 17) % 7 % 3) as i8 - 1;
            }
        }
        Ok(())
    };
    TernaryMatrix::pack(&Pool::new(2), parts, COLS, packing, &unpack).expect("unpack never fails")
}

/// Inputs, about half of them zero.
fn floats(cols: usize) -> Vec<f32> {
    (0..cols)
        .map(|i| (i * 37 % 101) as f32 - 50.0)
        .map(|x| x.max(0.0))
        .collect()
}

fn quantized(cpu: &Cpu) -> Activations {
    let mut activations = Activations::new();
    cpu.quantize(&floats(COLS), COLS, COLS, None, &mut activations);
    activations
}

/// A copy of the bytes elsewhere in memory.
fn copy(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// The bytes without the last one.
fn cut(bytes: &Bytes) -> Bytes {
    bytes.slice(..bytes.len() - 1)
}

fn cpu() -> Cpu {
    Cpu::new(KernelSet::detect(), 2)
}

#[test]
fn matrices_of_every_packing_can_be_made_from_their_bytes() {
    let cpu = cpu();
    for packing in Packing::ALL {
        let made = matrix(&PARTS, packing);
        let again = TernaryMatrix::from_packed(&PARTS, COLS, packing, copy(made.bytes()));
        let again = again.expect("the bytes fit");
        let product = |matrix: &TernaryMatrix| {
            let mut out = vec![0.0; matrix.output_len()];
            cpu.ternary_matmul(matrix, &quantized(&cpu), &mut out);
            out
        };
        assert_eq!(product(&made), product(&again), "{packing:?}");
        assert_eq!(made.output_range(1), again.output_range(1));
        assert!(
            TernaryMatrix::from_packed(&PARTS, COLS, packing, cut(made.bytes())).is_none(),
            "a byte is missing"
        );
        assert!(TernaryMatrix::from_packed(&PARTS, 0, packing, Bytes::new()).is_none());
    }
}

#[test]
fn rows_and_columns_can_be_made_from_their_bytes() {
    let cpu = cpu();
    let pool = Pool::new(2);
    let matrix = matrix(&PARTS[..1], Packing::Two);
    let (part, activations) = (PARTS[0], quantized(&cpu));
    let (rows, columns) = (
        TernaryRows::new(&pool, &matrix, 0),
        TernaryColumns::new(&pool, &matrix),
    );
    let of_rows = |rows: &TernaryRows| {
        let (mut scratch, mut out) = (SparseScratch::default(), vec![0.0; part.rows]);
        let gates = vec![1.0; part.rows];
        assert!(cpu.gated_rows_matvec(rows, &gates, 64, &activations, &mut scratch, &mut out));
        out
    };
    let of_columns = |columns: &TernaryColumns| {
        let (mut scratch, mut out) = (SparseScratch::default(), vec![0.0; matrix.output_len()]);
        assert!(cpu.active_columns_matvec(columns, COLS, &activations, &mut scratch, &mut out));
        out
    };
    let again = TernaryRows::from_packed(part, COLS, copy(rows.bytes())).expect("the bytes fit");
    assert_eq!(of_rows(&rows), of_rows(&again));
    assert!(TernaryRows::from_packed(part, COLS, cut(rows.bytes())).is_none());
    let again = TernaryColumns::from_packed(part, COLS, copy(columns.bytes()));
    assert_eq!(of_columns(&columns), of_columns(&again.expect("they fit")));
    assert!(TernaryColumns::from_packed(part, COLS, cut(columns.bytes())).is_none());
}

#[test]
fn matrices_with_group_scales_can_be_made_from_their_bytes() {
    let cpu = cpu();
    let parts = [40, 70];
    for (codes, group_cols) in [(GroupCodes::Signs, 128), (GroupCodes::TwoBits, 64)] {
        let unpack = |part: usize,
                      rows: std::ops::Range<usize>,
                      to: &mut [u8],
                      scales: &mut [f16]|
         -> Result<(), ()> {
            for (i, to) in to.iter_mut().enumerate() {
                *to = ((part + rows.start + i * 13) % 5 % usize::from(codes.num_codes())) as u8;
            }
            for (i, scale) in scales.iter_mut().enumerate() {
                *scale = f16::from_f32(1.0 + i as f32);
            }
            Ok(())
        };
        let made = GroupMatrix::pack(cpu.pool(), &parts, COLS, codes, group_cols, &unpack)
            .expect("unpack never fails");
        let from = |bytes| GroupMatrix::from_packed(&parts, COLS, codes, group_cols, bytes);
        let again = from(copy(made.bytes())).expect("the bytes fit");
        let mut activations = GroupActivations::default();
        cpu.quantize_groups(&floats(COLS), COLS, COLS, 32, None, &mut activations);
        let product = |matrix: &GroupMatrix| {
            let mut out = vec![0.0; matrix.output_len()];
            cpu.group_matmul(matrix, &activations, &mut out);
            out
        };
        assert_eq!(product(&made), product(&again), "{codes:?}");
        assert!(from(cut(made.bytes())).is_none());
        let groups_of_16 = GroupMatrix::from_packed(&parts, COLS, codes, 16, copy(made.bytes()));
        assert!(groups_of_16.is_none());
    }
}

#[test]
fn screened_heads_can_be_made_from_their_bytes() {
    let cpu = cpu();
    let rows = 77;
    let read_row = |row: usize, out: &mut [f32]| {
        for (col, out) in out.iter_mut().enumerate() {
            *out = ((row * 29 + col * 7) % 19) as f32 - 9.0;
        }
    };
    let made = ScreenTable::pack(cpu.set(), cpu.pool(), rows, COLS, &read_row);
    let bounds = made.bounds_bytes();
    let again = ScreenTable::from_packed(rows, COLS, copy(made.lines()), &bounds);
    let again = again.expect("the bytes fit");
    let estimates = |table: &ScreenTable| {
        let mut scratch = ScreenScratch::default();
        assert!(cpu.screen(table, &floats(COLS), &mut scratch));
        let found = scratch.estimates(0, rows);
        (found.values.to_vec(), found.errors.to_vec())
    };
    assert_eq!(estimates(&made), estimates(&again));
    assert!(ScreenTable::from_packed(rows, COLS, cut(made.lines()), &bounds).is_none());
    assert!(ScreenTable::from_packed(rows, COLS, copy(made.lines()), &bounds[1..]).is_none());
}
