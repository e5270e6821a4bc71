// out[t][row] = (Σ code · q − Σ q) / s · scale for T rows of activations, T ≤ 8.
//
// weights: [rows, steps] of four words with 16 codes of 2 bits each, so 64 columns a step:
//     word c of step k: byte j, bits 2s..2s+1 = code of column 64 k + 16 c + 4 s + j, weight + 1
// Shifting a word by 2 s and masking with 0x03030303 leaves the codes of four adjacent columns in
// its bytes, which dot4I8Packed multiplies by four adjacent int8 at once. Sums are exact integers.
// q: [t, 4 · steps] of four words of four int8; x_scales: s; x_sums: Σ q; scales: one for each 32
// rows of weights.
//
// A workgroup has 8 rows of weights. How its threads share them and add their sums:
// ternary_rows_plain.wgsl, ternary_rows_subgroups.wgsl.

struct Params {
    steps: u32,
    rows: u32,      // of weights, in this piece
    first_row: u32, // of this piece
    out_stride: u32,
    first_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x_scales: array<f32>;
@group(0) @binding(4) var<storage, read> x_sums: array<i32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const MASK: u32 = 0x03030303u;

// Adds the products of step k of a row, for each row of activations.
fn add_step(row: u32, k: u32, sums: ptr<function, array<i32, T>>) {
    let codes = weights[row * p.steps + k];
    for (var t = 0u; t < T; t += 1u) {
        let x = ((p.first_x + t) * p.steps + k) * 4u;
        (*sums)[t] += dot16(codes.x, q[x]) + dot16(codes.y, q[x + 1u])
            + dot16(codes.z, q[x + 2u]) + dot16(codes.w, q[x + 3u]);
    }
}

// Writes the output of a row for row t of the activations.
fn write_output(row: u32, t: u32, sum: i32) {
    let x = p.first_x + t;
    let scale = scales[(p.first_row + row) / 32u];
    out[x * p.out_stride + p.first_row + row] = f32(sum - x_sums[x]) / x_scales[x] * scale;
}

// Σ code · q of 16 columns.
fn dot16(codes: u32, x: vec4<u32>) -> i32 {
    return dot4I8Packed(codes & MASK, x.x) + dot4I8Packed((codes >> 2u) & MASK, x.y)
        + dot4I8Packed((codes >> 4u) & MASK, x.z) + dot4I8Packed((codes >> 6u) & MASK, x.w);
}
