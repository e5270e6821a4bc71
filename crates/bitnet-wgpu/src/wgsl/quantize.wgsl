// Rounds rows to int8 by their largest magnitude, normalised first if asked for:
// s = 127 / max(absmax, 1e-5), q = round_half_even(x · s). One workgroup a row.
//
// x: [rows, cols]; q: [rows, words] of four int8, zeros after the row's end; scales: s of each row;
// sums: Σ q of each row, which the ternary product subtracts because its codes are weights + 1.
//
// Adding 1.5 · 2^23 rounds half to even and leaves the integer in the low byte. No number gives
// −128, but the bits of a NaN can, so −127 is the least.

struct Params {
    cols: u32,
    words: u32,
    eps: f32,
    has_norm: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> q: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<i32>;

var<workgroup> maxima: array<f32, 256>;
var<workgroup> totals: array<i32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x + group.y * groups.x;
    let first = row * p.cols;
    var factor = 1.0;
    if p.has_norm != 0u {
        if thread < 64u {
            var sum = 0.0;
            for (var i = thread; i < p.cols; i += 64u) {
                let value = x[first + i];
                sum = sum + value * value;
            }
            lanes[thread] = sum;
        }
        factor = 1.0 / sqrt(add_lanes(thread) / f32(p.cols) + p.eps);
    }

    var largest = 0.0;
    for (var i = thread; i < p.cols; i += 256u) {
        let size = abs(value(first, i, factor));
        largest = select(largest, size, size > largest);
    }
    maxima[thread] = largest;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            let other = maxima[thread + half];
            maxima[thread] = select(maxima[thread], other, other > maxima[thread]);
        }
    }
    workgroupBarrier();
    let absmax = select(1e-5, maxima[0], maxima[0] > 1e-5);
    let scale = 127.0 / absmax;

    var total = 0;
    for (var word = thread; word < p.words; word += 256u) {
        var packed = 0u;
        for (var j = 0u; j < 4u; j += 1u) {
            let i = 4u * word + j;
            if i < p.cols {
                let bits = bitcast<i32>(value(first, i, factor) * scale + 12582912.0);
                let rounded = max((bits << 24u) >> 24u, -127);
                total += rounded;
                packed |= (u32(rounded) & 0xffu) << (8u * j);
            }
        }
        q[row * p.words + word] = packed;
    }
    totals[thread] = total;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            totals[thread] += totals[thread + half];
        }
    }
    if thread == 0u {
        scales[row] = scale;
        sums[row] = totals[0];
    }
}

fn value(first: u32, i: u32, factor: f32) -> f32 {
    let value = x[first + i];
    if p.has_norm == 0u {
        return value;
    }
    return (value * factor) * weight[i];
}
