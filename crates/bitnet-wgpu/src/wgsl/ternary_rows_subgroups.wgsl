// The rows of ternary_gemv.wgsl on adapters with subgroups: a subgroup takes one row after the other,
// its lanes read adjacent 16 bytes, and one instruction adds their sums, without workgroup memory and
// barriers. Integer sums are exact, so the bits are the plain kernel's for any size of a subgroup.
//
// A subgroup need not be full, nor its lanes the threads in order, so the lanes are counted.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let lanes = subgroupAdd(1u);
    let lane = subgroupExclusiveAdd(1u);
    let first = (group.x + group.y * groups.x) * 8u;
    for (var i = subgroup; i < 8u; i += subgroups) {
        let row = first + i;
        var sums: array<i32, T>;
        for (var t = 0u; t < T; t += 1u) {
            sums[t] = 0;
        }
        // All lanes run the same number of rounds, so that they are together at the sum below.
        for (var k = 0u; k < p.steps; k += lanes) {
            if row < p.rows && k + lane < p.steps {
                add_step(row, k + lane, &sums);
            }
        }
        for (var t = 0u; t < T; t += 1u) {
            let sum = subgroupAdd(sums[t]);
            if lane == 0u && row < p.rows {
                write_output(row, t, sum);
            }
        }
    }
}
