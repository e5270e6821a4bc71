// out = act(gate) · up, the inner values of a feed-forward network. One thread a value.
// gate_up: [rows, stride]; out: [rows, cols]. mode 0: relu(gate)² · up; mode 1: silu(gate) · up;
// mode 2: gelu(gate) · up, where (1 + tanh(u)) / 2 = sigmoid(2u), u = √(2/π) · (x + 0.044715 x³).

struct Params {
    stride: u32,
    gate_start: u32,
    up_start: u32,
    cols: u32,
    total: u32, // values of all rows
    mode: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> gate_up: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

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
    let row = index / p.cols * p.stride + index % p.cols;
    let gate = gate_up[row + p.gate_start];
    let up = gate_up[row + p.up_start];
    if p.mode == 0u {
        let relu = select(0.0, gate, gate > 0.0);
        out[index] = (relu * relu) * up;
    } else if p.mode == 1u {
        out[index] = silu(gate) * up;
    } else {
        let doubled = rounded(1.5957692 * gate) * (1.0 + 0.044715 * rounded(gate * gate));
        out[index] = (gate / (1.0 + exp_f32(-doubled))) * up;
    }
}
