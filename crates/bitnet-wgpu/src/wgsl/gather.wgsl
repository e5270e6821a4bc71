// out[i] = x[wanted i], whole rows of `cols` numbers. One thread a number.
// plan: the wanted rows begin at `wanted`.

struct Params {
    cols: u32,
    wanted: u32,
    total: u32, // numbers of all wanted rows
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * 64u + thread;
    if index < p.total {
        out[index] = x[plan[p.wanted + index / p.cols] * p.cols + index % p.cols];
    }
}
