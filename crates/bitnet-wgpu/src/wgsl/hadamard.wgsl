// The normalised Walsh-Hadamard transform of blocks of values, H(s ⊙ x) or s ⊙ H(x).
// One workgroup a block of a row; x, out: [rows, cols]; signs: [cols].
//
// H[i][j] = (−1)^popcount(i & j) / √block. log2(block) passes of sums and differences in workgroup
// memory, strides ascending, then one multiplication by 1 / √block: the CPU's order.
//
// mode 0: signs first, for inputs of matrices whose weights are rotated. If value_heads > 0, heads
// of values in tiled order are put into grouped order before: head k + K · r becomes r + V/K · k.
// mode 1: signs last, for rows of a rotated embedding.

struct Params {
    cols: u32,
    block: u32,
    factor: f32,
    key_heads: u32,
    value_heads: u32,
    mode: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> signs: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> values: array<f32, BLOCK_MAX>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.x + group.y * groups.x;
    let blocks = p.cols / p.block;
    let row = index / blocks * p.cols;
    let first = index % blocks * p.block;
    for (var i = thread; i < p.block; i += 256u) {
        let value = x[row + source(first + i)];
        values[i] = select(value * signs[first + i], value, p.mode == 1u);
    }
    for (var stride = 1u; stride < p.block; stride *= 2u) {
        workgroupBarrier();
        for (var pair = thread; pair < p.block / 2u; pair += 256u) {
            let low = pair / stride * 2u * stride + pair % stride;
            let a = values[low];
            let b = values[low + stride];
            values[low] = a + b;
            values[low + stride] = a - b;
        }
    }
    workgroupBarrier();
    for (var i = thread; i < p.block; i += 256u) {
        let value = values[i] * p.factor;
        out[row + first + i] = select(value, value * signs[first + i], p.mode == 1u);
    }
}

// The column that becomes column `i` when heads are put into grouped order.
fn source(i: u32) -> u32 {
    if p.value_heads == 0u {
        return i;
    }
    let head_dim = p.cols / p.value_heads;
    let per_key = p.value_heads / p.key_heads;
    let head = i / head_dim;
    return (head / per_key + p.key_heads * (head % per_key)) * head_dim + i % head_dim;
}
