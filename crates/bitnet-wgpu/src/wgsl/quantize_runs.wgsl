// Rounds rows to int8 in runs of 32, 64 or 128 inputs: d = absmax / 127, q = round_half_even(x / d).
// A run of zeros has d = 0 and gives zeros. One thread a run.
//
// x: [rows, cols], cols a multiple of the run; q: [rows, words] of four int8; scales, sums: d and
// Σ q of each run, [rows, runs].

struct Params {
    cols: u32,
    run_cols: u32,
    words: u32,
    num_runs: u32, // of all rows
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<i32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let run = (group.x + group.y * groups.x) * 64u + thread;
    if run >= p.num_runs {
        return;
    }
    let runs = p.cols / p.run_cols;
    let first = run * p.run_cols;
    var absmax = 0.0;
    for (var i = 0u; i < p.run_cols; i += 1u) {
        let size = abs(x[first + i]);
        absmax = select(absmax, size, size > absmax);
    }
    let scale = absmax / 127.0;
    var total = 0;
    let word = run / runs * p.words + run % runs * (p.run_cols / 4u);
    for (var w = 0u; w < p.run_cols / 4u; w += 1u) {
        var packed = 0u;
        for (var j = 0u; j < 4u; j += 1u) {
            // The scale was rounded, and coarsely if it is subnormal, so x / scale can exceed 127.
            var value = 0.0;
            if scale > 0.0 {
                value = x[first + 4u * w + j] / scale;
            }
            value = select(value, 127.0, value > 127.0);
            value = select(value, -127.0, value < -127.0);
            // As in quantize.wgsl.
            let rounded = max((bitcast<i32>(value + 12582912.0) << 24u) >> 24u, -127);
            total += rounded;
            packed |= (u32(rounded) & 0xffu) << (8u * j);
        }
        q[word + w] = packed;
    }
    scales[run] = scale;
    sums[run] = total;
}
