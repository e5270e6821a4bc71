// The product of group_gemv.wgsl, with its layouts, for many rows of activations.
//
// A workgroup of 16 × 16 threads computes 64 rows of weights times 64 rows of activations; a thread
// computes 4 × 4 of them and adds its own groups in ascending order. The operands of 32 columns lie
// in workgroup memory; rows there are one word longer than their data, so that the threads of a
// group read different banks.

struct Params {
    words: u32,
    rows: u32,      // of weights, in this piece
    first_row: u32, // of this piece
    out_stride: u32,
    num_x: u32,
    group_cols: u32,
    num_groups: u32,
    run_cols: u32,
    x_words: u32,
    tiles: u32,     // tiles of rows of weights
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<u32>;
@group(0) @binding(3) var<storage, read> x_scales: array<f32>;
@group(0) @binding(4) var<storage, read> x_sums: array<i32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

var<workgroup> w_tile: array<u32, 192>; // [64 rows, BITS words + 1]
var<workgroup> x_tile: array<u32, 576>; // [64 rows, 8 words + 1]

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
    let runs = p.x_words * 4u / p.run_cols;
    var y: array<vec4<f32>, 4>;
    var of_runs: array<vec4<f32>, 4>;
    var sums: array<vec4<i32>, 4>;
    for (var i = 0u; i < 4u; i += 1u) {
        y[i] = vec4<f32>(0.0);
        of_runs[i] = vec4<f32>(0.0);
        sums[i] = vec4<i32>(0);
    }
    for (var cell = 0u; cell < p.x_words / 8u; cell += 1u) {
        let load_w = thread / BITS;
        if load_w < 64u {
            var word = 0u;
            if first_w + load_w < p.rows {
                word = weights[(first_w + load_w) * p.words + cell * BITS + thread % BITS];
            }
            w_tile[load_w * (BITS + 1u) + thread % BITS] = word;
        }
        for (var half = 0u; half < 2u; half += 1u) {
            let load_x = thread / 8u + 32u * half;
            var x = 0u;
            if first_x + load_x < p.num_x {
                x = q[(first_x + load_x) * p.x_words + cell * 8u + thread % 8u];
            }
            x_tile[load_x * 9u + thread % 8u] = x;
        }
        workgroupBarrier();
        for (var s = 0u; s < 8u; s += 1u) {
            let b = vec4<u32>(
                x_tile[across * 9u + s],
                x_tile[(across + 16u) * 9u + s],
                x_tile[(across + 32u) * 9u + s],
                x_tile[(across + 48u) * 9u + s],
            );
            for (var i = 0u; i < 4u; i += 1u) {
                let codes = w_tile[(down + 16u * i) * (BITS + 1u) + s * BITS / 8u];
                let a = (codes >> (BITS * s % 8u)) & MASK;
                sums[i] += vec4<i32>(
                    dot4I8Packed(a, b.x),
                    dot4I8Packed(a, b.y),
                    dot4I8Packed(a, b.z),
                    dot4I8Packed(a, b.w),
                );
            }
        }
        workgroupBarrier();
        let end = (cell + 1u) * 32u;
        if end % p.run_cols == 0u {
            let a = cell * 32u / p.run_cols;
            for (var j = 0u; j < 4u; j += 1u) {
                let x = min(first_x + across + 16u * j, p.num_x - 1u) * runs + a;
                for (var i = 0u; i < 4u; i += 1u) {
                    let product = f32(FACTOR * sums[i][j] - x_sums[x]) * x_scales[x];
                    of_runs[i][j] = of_runs[i][j] + product;
                    sums[i][j] = 0;
                }
            }
        }
        if end % p.group_cols == 0u {
            for (var i = 0u; i < 4u; i += 1u) {
                let row = min(first_w + down + 16u * i, p.rows - 1u);
                let product = of_runs[i] * scale_of(row, cell * 32u / p.group_cols);
                y[i] = y[i] + product;
                of_runs[i] = vec4<f32>(0.0);
            }
        }
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let row = first_w + down + 16u * i;
        for (var j = 0u; j < 4u; j += 1u) {
            let x = first_x + across + 16u * j;
            if row < p.rows && x < p.num_x {
                out[x * p.out_stride + p.first_row + row] = y[i][j];
            }
        }
    }
}

fn scale_of(row: u32, g: u32) -> f32 {
    let stride = (p.num_groups + 1u) / 2u;
    let pair = unpack2x16float(scales[row * stride + g / 2u]);
    return select(pair.x, pair.y, g % 2u == 1u);
}
