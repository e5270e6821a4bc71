// One causal convolution with SiLU for each channel of linear attention:
// out = silu(Σ taps[j] · input[t − 3 + j]), four taps. One thread a channel of a sequence, which
// walks the sequence's rows in order.
//
// states: [slots, state_len], whose first 3 · channels numbers of a layer are the inputs of the three
// tokens before, the oldest first. plan: at `runs`, (first row, rows, position, slot) of each
// sequence. A state at position 0 is zeros. projected: [rows, stride]; out: [rows, channels].

struct Params {
    channels: u32,
    stride: u32,
    start: u32,       // column of the first channel
    runs: u32,
    state_len: u32,   // of a slot
    state_start: u32, // of the layer in a slot
    first_slot: u32,  // of this piece of the states
    num_slots: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> projected: array<f32>;
@group(0) @binding(2) var<storage, read> taps: array<f32>; // [4, channels]
@group(0) @binding(3) var<storage, read_write> states: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    zero = group.z;
    let channel = group.x * 64u + thread;
    let run = p.runs + 4u * group.y;
    let slot = plan[run + 3u] - p.first_slot;
    if channel >= p.channels || plan[run + 3u] < p.first_slot || slot >= p.num_slots {
        return;
    }
    let at = slot * p.state_len + p.state_start + channel;
    var first = states[at];
    var second = states[at + p.channels];
    var third = states[at + 2u * p.channels];
    if plan[run + 2u] == 0u {
        first = 0.0;
        second = 0.0;
        third = 0.0;
    }
    let taps = vec4<f32>(
        taps[channel],
        taps[channel + p.channels],
        taps[channel + 2u * p.channels],
        taps[channel + 3u * p.channels],
    );
    for (var row = plan[run]; row < plan[run] + plan[run + 1u]; row += 1u) {
        let x = projected[row * p.stride + p.start + channel];
        let sum = ((taps.x * first + taps.y * second) + taps.z * third) + taps.w * x;
        first = second;
        second = third;
        third = x;
        out[row * p.channels + channel] = silu(sum);
    }
    states[at] = first;
    states[at + p.channels] = second;
    states[at + 2u * p.channels] = third;
}
