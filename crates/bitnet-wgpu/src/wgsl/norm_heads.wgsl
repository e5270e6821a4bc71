// Normalises heads in place: x[row][start + head · head_dim ..] for each row of `stride` numbers.
// One workgroup of 64 threads, the 64 virtual lanes, for a head of a row.
//
// mode 0: weight · (x / sqrt(mean(x²) + eps)), the norm of queries and keys.
// mode 1: x · (scale / sqrt(Σ x² + eps)), the length of queries and keys of linear attention.

struct Params {
    stride: u32,
    start: u32,
    heads: u32,
    head_dim: u32,
    eps: f32,
    scale: f32,
    mode: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.x + group.y * groups.x;
    let first = index / p.heads * p.stride + p.start + index % p.heads * p.head_dim;
    var sum = 0.0;
    for (var i = thread; i < p.head_dim; i += 64u) {
        let value = x[first + i];
        sum = sum + value * value;
    }
    lanes[thread] = sum;
    let squares = add_lanes(thread);
    if p.mode == 0u {
        let factor = 1.0 / sqrt(squares / f32(p.head_dim) + p.eps);
        for (var i = thread; i < p.head_dim; i += 64u) {
            x[first + i] = (x[first + i] * factor) * weight[i];
        }
    } else {
        let factor = p.scale / sqrt(squares + p.eps);
        for (var i = thread; i < p.head_dim; i += 64u) {
            x[first + i] = x[first + i] * factor;
        }
    }
}
