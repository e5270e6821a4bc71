// Reads a buffer once: each thread adds up 16 vectors that lie a grid apart, so that adjacent threads
// read adjacent memory. The sums are written, so that no driver leaves the reads out.

struct Params {
    vectors: u32, // of the buffer
    threads: u32, // of the grid
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * 64u + thread;
    var sum = vec4<u32>(0u);
    for (var i = index; i < p.vectors; i += p.threads) {
        sum += data[i];
    }
    out[index % 64u] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
