// The delta rule of Gated DeltaNet, token by token, for each value head of each sequence:
//
//     u = beta (v − decay Sᵀk);   S = decay S + k uᵀ;   out = rms_norm(Sᵀq) · weight · silu(gate)
//
// with decay = exp(a · softplus(time + bias)) and beta = sigmoid(strength). One workgroup a head of a
// sequence; thread j owns column j of S, and its sums run over the key elements in ascending order.
//
// states: as in convolve.wgsl, then S of each value head, [head_dim keys, head_dim values].
// qkv: [rows, channels], convolved, queries and keys scaled; projected: rows of `stride` with the
// gates; times: [rows, 2 · value_heads], times then strengths; constants: decay a, then time bias.
// out: [rows, value_heads · head_dim]. head_dim ≤ 256. decay_of and sigmoid: decay_*.wgsl.

struct Params {
    key_heads: u32,
    value_heads: u32,
    head_dim: u32,
    stride: u32,
    gate_start: u32,
    runs: u32,
    state_len: u32,
    state_start: u32,
    first_slot: u32,
    num_slots: u32,
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> projected: array<f32>;
@group(0) @binding(3) var<storage, read> times: array<f32>;
@group(0) @binding(4) var<storage, read> constants: array<f32>;
@group(0) @binding(5) var<storage, read> weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> states: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

var<workgroup> query: array<f32, 256>;
var<workgroup> key: array<f32, 256>;
var<workgroup> squares: array<f32, 256>;
var<workgroup> rates: array<f32, 2>; // decay and beta of the token

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    zero = group.z;
    let head = group.x;
    let run = p.runs + 4u * group.y;
    let slot = plan[run + 3u] - p.first_slot;
    if plan[run + 3u] < p.first_slot || slot >= p.num_slots {
        return;
    }
    let dim = p.head_dim;
    let channels = (2u * p.key_heads + p.value_heads) * dim;
    let state = slot * p.state_len + p.state_start + 3u * channels + head * dim * dim;
    let key_head = head % p.key_heads;
    if plan[run + 2u] == 0u && thread < dim {
        for (var i = 0u; i < dim; i += 1u) {
            states[state + i * dim + thread] = 0.0;
        }
    }
    for (var row = plan[run]; row < plan[run] + plan[run + 1u]; row += 1u) {
        let first = row * channels;
        if thread < dim {
            query[thread] = qkv[first + key_head * dim + thread];
            key[thread] = qkv[first + (p.key_heads + key_head) * dim + thread];
        }
        if thread == 0u {
            let time = times[row * 2u * p.value_heads + head] + constants[p.value_heads + head];
            rates[0] = decay_of(constants[head], time);
            rates[1] = sigmoid(times[(row * 2u + 1u) * p.value_heads + head]);
        }
        workgroupBarrier();
        let decay = rates[0];
        let beta = rates[1];
        var read = 0.0;
        if thread < dim {
            var recalled = 0.0;
            for (var i = 0u; i < dim; i += 1u) {
                recalled = recalled + states[state + i * dim + thread] * key[i];
            }
            let v = qkv[first + (2u * p.key_heads + head) * dim + thread];
            let update = beta * (v - decay * recalled);
            for (var i = 0u; i < dim; i += 1u) {
                let next = decay * states[state + i * dim + thread] + key[i] * update;
                states[state + i * dim + thread] = next;
                read = read + query[i] * next;
            }
            squares[thread] = read * read;
        }
        workgroupBarrier();
        if thread < 64u {
            var sum = 0.0;
            for (var i = thread; i < dim; i += 64u) {
                sum = sum + squares[i];
            }
            lanes[thread] = sum;
        }
        let factor = 1.0 / sqrt(add_lanes(thread) / f32(dim) + p.eps);
        if thread < dim {
            let gate = projected[row * p.stride + p.gate_start + head * dim + thread];
            out[(row * p.value_heads + head) * dim + thread]
                = ((read * factor) * weight[thread]) * silu(gate);
        }
    }
}
