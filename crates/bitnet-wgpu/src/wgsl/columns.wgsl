// Changes some columns of rows by values of another buffer. One thread a value.
// x: [rows, stride], columns start..start + cols; y: rows of y_stride, from column y_start.
//
// mode 0: x = y       mode 1: x += y       mode 2: x = x / (1 + e^−y), a gate by the sigmoid of y
// A y_stride of 0 gives all rows the same values, such as biases.

struct Params {
    stride: u32,
    start: u32,
    cols: u32,
    y_stride: u32,
    y_start: u32,
    total: u32, // values of all rows
    mode: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    zero = group.z;
    let index = (group.x + group.y * groups.x) * 64u + thread;
    if index >= p.total {
        return;
    }
    let row = index / p.cols;
    let col = index % p.cols;
    let at = row * p.stride + p.start + col;
    let value = y[row * p.y_stride + p.y_start + col];
    switch p.mode {
        case 0u: { x[at] = value; }
        case 1u: { x[at] = x[at] + value; }
        default: { x[at] = x[at] / (1.0 + exp_f32(-value)); }
    }
}
