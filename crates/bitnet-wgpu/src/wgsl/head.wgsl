// out[t][v] = table[v] · x[picked t] in f32, for the rows v in this piece of the table.
// `element` is in format_*.wgsl. x: [.., cols]; picked: the rows of x; out: [num_x, out_stride].
//
// A workgroup has 4 rows of the table with 64 threads each, which are the virtual lanes of the sum:
// element i goes to lane i % 64 in ascending order, then one tree, as in `portable.rs`. Each element
// of the table is decoded once for 4 rows of x.

struct Params {
    cols: u32,
    row_bytes: u32,
    first_row: u32, // of this piece
    rows: u32,      // of this piece
    groups: u32,    // scales of a row, for tables with group scales
    out_stride: u32,
    first_x: u32,
    num_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> picked: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = (group.x + group.y * groups.x) * 4u + thread / 64u;
    let lane = thread % 64u;
    var sum = vec4<f32>(0.0);
    if row < p.rows {
        let last = p.num_x - 1u;
        let x0 = picked[p.first_x] * p.cols;
        let x1 = picked[min(p.first_x + 1u, last)] * p.cols;
        let x2 = picked[min(p.first_x + 2u, last)] * p.cols;
        let x3 = picked[min(p.first_x + 3u, last)] * p.cols;
        for (var i = lane; i < p.cols; i += 64u) {
            let value = element(row, i);
            sum = sum + value * vec4<f32>(x[x0 + i], x[x1 + i], x[x2 + i], x[x3 + i]);
        }
    }
    sums[thread] = sum;
    workgroupBarrier();
    if lane < 16u {
        sums[thread] = (sums[thread] + sums[thread + 16u])
            + (sums[thread + 32u] + sums[thread + 48u]);
    }
    for (var half = 8u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[thread] = sums[thread] + sums[thread + half];
        }
    }
    workgroupBarrier();
    // The row's first lane has its four sums; four threads write one each.
    if lane < 4u && row < p.rows && p.first_x + lane < p.num_x {
        out[(p.first_x + lane) * p.out_stride + p.first_row + row] = sums[thread - lane][lane];
    }
}
