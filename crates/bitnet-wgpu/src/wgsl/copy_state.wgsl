// Copies one recurrent state over another in the same piece: states[target + i] = states[source + i].
// One thread a number. Copies between pieces need no kernel.

struct Params {
    source: u32,
    target_at: u32,
    total: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> states: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * 64u + thread;
    if index < p.total {
        states[p.target_at + index] = states[p.source + index];
    }
}
