//! Counting one dispatch. A decode step of a 2B-4T shape makes about 180 of them in 25 ms, so each
//! may take 139 ns for a thousandth of the time.

use std::hint::black_box;

use bitnet_kernels::{Counters, Kernel};
use criterion::Criterion;

use crate::group;

pub fn bench(criterion: &mut Criterion) {
    let counters = Counters::default();
    let mut group = group(criterion, "counters");
    group.bench_function("add", |bencher| {
        bencher.iter(|| {
            counters.add(
                black_box(Kernel::I2sGemv),
                black_box(6_553_600),
                black_box(1_638_400),
            )
        });
    });
}
