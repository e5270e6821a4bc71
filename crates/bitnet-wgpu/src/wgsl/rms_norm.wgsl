// out = weight · (x / sqrt(mean(x²) + eps)); x, out: [rows, cols]. One workgroup a row.
//
// The first 64 threads are the 64 virtual lanes of the sum of squares, so its order is the CPU's;
// all 256 write the row.

struct Params {
    cols: u32,
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first = (group.x + group.y * groups.x) * p.cols;
    if thread < 64u {
        var sum = 0.0;
        for (var i = thread; i < p.cols; i += 64u) {
            let value = x[first + i];
            sum = sum + value * value;
        }
        lanes[thread] = sum;
    }
    let mean = add_lanes(thread) / f32(p.cols);
    let factor = 1.0 / sqrt(mean + p.eps);
    for (var i = thread; i < p.cols; i += 256u) {
        out[first + i] = (x[first + i] * factor) * weight[i];
    }
}
