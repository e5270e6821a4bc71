// The product of ternary_gemv.wgsl, with its layouts, for many rows of activations.
//
// A workgroup of 16 × 16 threads computes 64 rows of weights times 64 rows of activations; a thread
// computes 4 × 4 of them. Both operands of 64 columns lie in workgroup memory, so each byte is read
// from memory once for 64 products. Rows there are one word longer than their data, so that the
// threads of a group read different banks.

struct Params {
    steps: u32,
    rows: u32,      // of weights, in this piece
    first_row: u32, // of this piece
    out_stride: u32,
    num_x: u32,     // rows of activations
    tiles: u32,     // tiles of rows of weights
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x_scales: array<f32>;
@group(0) @binding(4) var<storage, read> x_sums: array<i32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const MASK: u32 = 0x03030303u;
var<workgroup> w_tile: array<u32, 320>;  // [64 rows, 4 words + 1]
var<workgroup> x_tile: array<u32, 1088>; // [64 rows, 16 words + 1]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.x + group.y * groups.x;
    let first_w = index % p.tiles * 64u;
    let first_x = index / p.tiles * 64u;
    let across = thread % 16u;
    let down = thread / 16u;
    let load_row = thread / 4u;
    let load_word = thread % 4u;
    var sums: array<vec4<i32>, 4>;
    for (var i = 0u; i < 4u; i += 1u) {
        sums[i] = vec4<i32>(0);
    }
    for (var k = 0u; k < p.steps; k += 1u) {
        var word = 0u;
        if first_w + load_row < p.rows {
            word = weights[(first_w + load_row) * p.steps + k][load_word];
        }
        w_tile[load_row * 5u + load_word] = word;
        var x = vec4<u32>(0u);
        if first_x + load_row < p.num_x {
            x = q[((first_x + load_row) * p.steps + k) * 4u + load_word];
        }
        let at = load_row * 17u + load_word * 4u;
        x_tile[at] = x.x;
        x_tile[at + 1u] = x.y;
        x_tile[at + 2u] = x.z;
        x_tile[at + 3u] = x.w;
        workgroupBarrier();
        for (var s = 0u; s < 16u; s += 1u) {
            let shift = 2u * (s % 4u);
            let b = vec4<u32>(
                x_tile[across * 17u + s],
                x_tile[(across + 16u) * 17u + s],
                x_tile[(across + 32u) * 17u + s],
                x_tile[(across + 48u) * 17u + s],
            );
            for (var i = 0u; i < 4u; i += 1u) {
                let a = (w_tile[(down + 16u * i) * 5u + s / 4u] >> shift) & MASK;
                sums[i] += vec4<i32>(
                    dot4I8Packed(a, b.x),
                    dot4I8Packed(a, b.y),
                    dot4I8Packed(a, b.z),
                    dot4I8Packed(a, b.w),
                );
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let row = first_w + down + 16u * i;
        for (var j = 0u; j < 4u; j += 1u) {
            let x = first_x + across + 16u * j;
            if row < p.rows && x < p.num_x {
                let sum = f32(sums[i][j] - x_sums[x]);
                out[x * p.out_stride + p.first_row + row]
                    = sum / x_scales[x] * scales[(p.first_row + row) / 32u];
            }
        }
    }
}
