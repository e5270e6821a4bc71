//! Fork and join of an empty job: a token takes some hundreds of them.

use bitnet_kernels::Cpu;
use criterion::Criterion;

use crate::floor::{Machine, Work};
use crate::group;

pub fn bench(criterion: &mut Criterion, machines: &[Machine]) {
    let mut group = group(criterion, "pool");
    if let Some(machine) = machines
        .iter()
        .find(|machine| machine.cpu.pool().num_threads() > 1)
    {
        machine.bench(&mut group, "join", || {
            (Work::default(), |cpu: &Cpu| cpu.pool().run(&|_| {}))
        });
    }
}
