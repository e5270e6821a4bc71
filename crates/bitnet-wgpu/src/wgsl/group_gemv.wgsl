// y[t][row] = Σ_g (Σ_a float(Σ w · q) · d_a) · d_g for one row t of activations at a time: groups g
// of weights and runs a of activations in ascending order, integer sums exact.
//
// Codes have BITS = 2 (weights −1, 0, 1, 2) or 1 (weights −1, 1) bits; 32 columns are BITS words:
//     2 bits: word c, byte j, bits 2s..2s+1 = code of column 16 c + 4 s + j, weight + 1
//     1 bit:  byte j, bit s                 = 1 where the weight of column 4 s + j is positive
// so a shift and a mask leave the codes of four adjacent columns in the bytes of a word, for
// dot4I8Packed. With FACTOR = 1 or 2 the sum of weights · q is FACTOR · Σ code · q − Σ q.
// weights: [rows, words]; scales: d_g in f16, [rows, groups rounded up to even]; q: [t, x_words];
// x_scales, x_sums: d_a and Σ q, [t, runs].
//
// Threads compute the terms of groups in any order and put them into workgroup memory, rounded;
// then one thread a row adds them in ascending order. A workgroup has 8 rows of weights.

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
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<u32>;
@group(0) @binding(3) var<storage, read> x_scales: array<f32>;
@group(0) @binding(4) var<storage, read> x_sums: array<i32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const ROWS: u32 = 8u;
const BATCH: u32 = 32u; // groups whose terms are in workgroup memory at once
var<workgroup> terms: array<f32, 256>; // [ROWS, BATCH]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let blocks = (p.rows + ROWS - 1u) / ROWS;
    let index = group.x + group.y * groups.x;
    let first = index % blocks * ROWS;
    let x = index / blocks;
    var y = 0.0;
    for (var start = 0u; start < p.num_groups; start += BATCH) {
        for (var task = thread; task < ROWS * BATCH; task += 64u) {
            let row = first + task / BATCH;
            let g = start + task % BATCH;
            if row < p.rows && g < p.num_groups && x < p.num_x {
                terms[task] = of_group(row, g, x) * scale_of(row, g);
            }
        }
        workgroupBarrier();
        if thread < ROWS {
            for (var g = 0u; g < BATCH && start + g < p.num_groups; g += 1u) {
                y = y + terms[thread * BATCH + g];
            }
        }
        workgroupBarrier();
    }
    if thread < ROWS && first + thread < p.rows && x < p.num_x {
        out[x * p.out_stride + p.first_row + first + thread] = y;
    }
}

// Σ_a float(Σ w · q) · d_a over the runs of a group.
fn of_group(row: u32, g: u32, x: u32) -> f32 {
    let runs = p.x_words * 4u / p.run_cols;
    let first_run = g * p.group_cols / p.run_cols;
    var sum = 0.0;
    for (var a = first_run; a < first_run + p.group_cols / p.run_cols; a += 1u) {
        var dot = 0;
        for (var cell = a * p.run_cols / 32u; cell < (a + 1u) * p.run_cols / 32u; cell += 1u) {
            dot += of_cell(row * p.words + cell * BITS, x * p.x_words + cell * 8u);
        }
        let product = f32(FACTOR * dot - x_sums[x * runs + a]) * x_scales[x * runs + a];
        sum = sum + product;
    }
    return sum;
}

// Σ code · q of 32 columns.
fn of_cell(word: u32, x: u32) -> i32 {
    var dot = 0;
    for (var s = 0u; s < 8u; s += 1u) {
        let codes = weights[word + s * BITS / 8u];
        dot += dot4I8Packed((codes >> (BITS * s % 8u)) & MASK, q[x + s]);
    }
    return dot;
}

fn scale_of(row: u32, g: u32) -> f32 {
    let stride = (p.num_groups + 1u) / 2u;
    let pair = unpack2x16float(scales[row * stride + g / 2u]);
    return select(pair.x, pair.y, g % 2u == 1u);
}
