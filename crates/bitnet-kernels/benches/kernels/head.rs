//! The head: all logits from f16, and estimates of all from 8 bits.

use bitnet_kernels::{Cpu, Huge, ScreenScratch, ScreenTable};
use criterion::Criterion;
use half::f16;

use crate::floor::{Machine, Work};
use crate::{Rng, group};

/// The vocabulary and width of 2B-4T.
const SHAPE: (usize, usize) = (128_256, 2560);

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    let mut head = group(criterion, "head");
    for machine in machines {
        machine.bench(&mut head, "f16, 1 row", project);
    }
    for rows in [1, 2, 4, 8, 16] {
        for machine in machines {
            machine.bench(&mut head, &format!("estimates, {rows} rows"), || {
                estimate(&machine.cpu, rows)
            });
        }
    }
}

fn project() -> (Work, impl FnMut(&Cpu)) {
    let (vocab, hidden) = SHAPE;
    let mut table: Huge<u8> = Huge::zeros(2 * vocab * hidden);
    let row: Vec<u8> = Rng(4)
        .floats(hidden)
        .into_iter()
        .flat_map(|x| f16::from_f32(x).to_le_bytes())
        .collect();
    table
        .chunks_exact_mut(2 * hidden)
        .for_each(|to| to.copy_from_slice(&row));
    let (x, mut out) = (Rng(5).floats(hidden), vec![0.0; vocab]);
    let work = Work {
        bytes: table.len(),
        i8_macs: 0,
        f32_macs: vocab * hidden,
    };
    (work, move |cpu: &Cpu| {
        cpu.project_f16(&table, &x, hidden, &mut out)
    })
}

fn estimate(cpu: &Cpu, rows: usize) -> (Work, impl FnMut(&Cpu)) {
    let (vocab, hidden) = SHAPE;
    let values = Rng(6).floats(hidden);
    let table = ScreenTable::pack(cpu.set(), cpu.pool(), vocab, hidden, &|row, to| {
        to.copy_from_slice(&values);
        to.rotate_left(row % hidden);
    });
    let (x, mut scratch) = (Rng(7).floats(rows * hidden), ScreenScratch::default());
    // Each hidden state has two planes of int8, or one of int16 at half the rate.
    let work = Work {
        bytes: table.num_bytes(),
        i8_macs: 2 * rows * vocab * hidden,
        f32_macs: 0,
    };
    let run = move |cpu: &Cpu| {
        assert!(
            cpu.screen(&table, &x, &mut scratch),
            "values that can be bounded"
        )
    };
    (work, run)
}
