//! Estimated logits never differ from the true logits by more than their bound, and every
//! instruction set gives the same estimates.

use bitnet_kernels::{Cpu, KernelSet, Pool, ScreenScratch, ScreenTable};
use proptest::prelude::*;

/// Estimates and bounds of `[rows, cols]` and hidden states `[n, cols]`, by each set on some
/// threads.
fn estimates(
    set: &'static KernelSet,
    threads: usize,
    table: &[f32],
    x: &[f32],
    cols: usize,
) -> Option<Vec<[f32; 2]>> {
    let rows = table.len() / cols;
    let cpu = Cpu::new(set, threads);
    let screen = ScreenTable::pack(set, &Pool::new(threads), rows, cols, &|row, out| {
        out.copy_from_slice(&table[row * cols..(row + 1) * cols]);
    });
    let mut scratch = ScreenScratch::default();
    cpu.screen(&screen, x, &mut scratch).then(|| {
        let states = (0..x.len() / cols).map(|index| scratch.estimates(index, rows));
        states
            .flat_map(|e| {
                e.values
                    .iter()
                    .zip(e.errors)
                    .map(|(v, e)| [*v, *e])
                    .collect::<Vec<_>>()
            })
            .collect()
    })
}

/// The logits as they are computed in full, `[n, rows]`.
fn logits(set: &KernelSet, table: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    let of_state = |x| {
        let mut out = vec![0.0; table.len() / cols];
        set.matvec_f32(table, x, &mut out);
        out
    };
    x.chunks_exact(cols).flat_map(of_state).collect()
}

fn check(table: &[f32], x: &[f32], cols: usize) {
    let scalar = KernelSet::by_name("scalar").expect("always there");
    let expected = estimates(scalar, 1, table, x, cols).expect("bounded");
    let truth = logits(scalar, table, x, cols);
    for (index, ([value, error], logit)) in expected.iter().zip(&truth).enumerate() {
        assert!(
            value + error >= *logit && value - error <= *logit,
            "logit {index}: {logit}, estimated {value} ± {error}"
        );
    }
    let bits = |all: &[[f32; 2]]| {
        all.as_flattened()
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    for set in KernelSet::available() {
        for threads in [1, 3] {
            let found = estimates(set, threads, table, x, cols).expect("bounded");
            assert!(
                bits(&found) == bits(&expected),
                "{} on {threads} threads differs from the reference",
                set.name
            );
        }
    }
}

/// A value of any magnitude that a row of a head may have, and some larger ones.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -1.0f32..1.0, 2 => -1e-3f32..1e-3, 1 => -60.0f32..60.0, 1 => Just(0.0), 1 => -1e-30f32..1e-30, 1 => -1e9f32..1e9]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn no_logit_is_outside_its_bound(
        cols in prop_oneof![1usize..40, 60usize..200, 250usize..600],
        rows in 1usize..70,
        states in 1usize..10,
        seed in proptest::collection::vec(value(), 4001),
    ) {
        let at = |index: usize| seed[index % seed.len()];
        let table: Vec<f32> = (0..rows * cols).map(at).collect();
        let x: Vec<f32> = (0..states * cols).map(|index| at(7 * index + 13)).collect();
        check(&table, &x, cols);
    }
}

#[test]
fn adversarial_rows_stay_inside_their_bounds() {
    let cols = 2560;
    let row = |f: &dyn Fn(usize) -> f32| (0..cols).map(f).collect::<Vec<f32>>();
    let sign = |i: usize| {
        if ((i * 2_654_435_761) >> 7) & 1 == 0 {
            1.0
        } else {
            -1.0
        }
    };
    // Cases: every value half a step off its integer; one outlier that takes all the precision;
    // cancelling halves; rounding in one direction; a single value; values whose squares underflow
    // to zero; zeros.
    let half_steps = row(&|i| {
        if i == 0 {
            127.0
        } else {
            sign(i) * ((i % 120) as f32 + 0.499_99)
        }
    });
    let table = [
        half_steps.clone(),
        row(&|i| if i == 77 { 1000.0 } else { sign(i) * 0.003 }),
        row(&|i| if i % 2 == 0 { 0.7 } else { -0.7 }),
        row(&|i| 0.1 + 1e-4 * i as f32),
        row(&|i| if i == 2559 { -3.5 } else { 0.0 }),
        row(&|i| sign(i) * 1e-25),
        row(&|_| 0.0),
        row(&|i| sign(i) * (1.0 + (i % 7) as f32 * f32::EPSILON)),
    ]
    .concat();
    let states = [
        half_steps.iter().map(|v| v * 0.01).collect(),
        row(&|i| if i == 5 { 300.0 } else { sign(i + 1) }),
        row(&|i| if i % 2 == 0 { 0.7 } else { 0.7 + 1e-7 }),
        row(&|_| 0.0),
        row(&|i| sign(i) * 1e-12),
    ]
    .concat();
    check(&table, &states, cols);
}

#[test]
fn logits_without_a_bound_are_reported_as_unbounded() {
    let set = KernelSet::detect();
    let table = [
        [1.0f32, 2.0],
        [f32::NAN, 1.0],
        [f32::INFINITY, 1.0],
        [1e20, -1e20],
    ]
    .concat();
    let found = estimates(set, 1, &table, &[1.0, 1.0], 2).expect("the hidden state is bounded");
    assert!(
        found[0][1] < 0.1 && found[1..].iter().all(|[_, error]| *error == f32::INFINITY),
        "{found:?}"
    );
    for hidden in [f32::NAN, f32::INFINITY, 1e30] {
        assert_eq!(estimates(set, 1, &table, &[hidden, 1.0], 2), None);
    }
}
