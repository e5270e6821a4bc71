// The rows of ternary_gemv.wgsl on any adapter: eight threads share a row of weights and read 128
// adjacent bytes a step; halves of the threads add their sums in workgroup memory.

var<workgroup> shares: array<i32, 64 * T>; // [T, 8 rows, 8 threads]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % 8u;
    let row = (group.x + group.y * groups.x) * 8u + thread / 8u;
    var sums: array<i32, T>;
    for (var t = 0u; t < T; t += 1u) {
        sums[t] = 0;
    }
    if row < p.rows {
        for (var k = lane; k < p.steps; k += 8u) {
            add_step(row, k, &sums);
        }
    }
    for (var t = 0u; t < T; t += 1u) {
        shares[64u * t + thread] = sums[t];
    }
    for (var half = 4u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            for (var t = 0u; t < T; t += 1u) {
                shares[64u * t + thread] += shares[64u * t + thread + half];
            }
        }
    }
    if lane == 0u && row < p.rows {
        for (var t = 0u; t < T; t += 1u) {
            write_output(row, t, shares[64u * t + thread]);
        }
    }
}
