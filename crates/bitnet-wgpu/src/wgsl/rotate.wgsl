// Rotates queries and keys by their row's angles (RoPE): of the first 2 · pairs elements of a head,
// i and i + pairs are a pair. x: [rows, stride]; angles: [rows, 2 · pairs], cosines first, made on
// the CPU. One thread a pair; heads of queries come first, then heads of keys.

struct Params {
    stride: u32,
    query_start: u32,
    num_queries: u32,
    key_start: u32,
    num_heads: u32, // of queries and of keys together
    head_dim: u32,
    pairs: u32,
    total: u32,     // pairs of all rows and heads
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> angles: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * 64u + thread;
    if index >= p.total {
        return;
    }
    let pair = index % p.pairs;
    let head = index / p.pairs % p.num_heads;
    let row = index / p.pairs / p.num_heads;
    var start = p.query_start + head * p.head_dim;
    if head >= p.num_queries {
        start = p.key_start + (head - p.num_queries) * p.head_dim;
    }
    let a = row * p.stride + start + pair;
    let b = a + p.pairs;
    let cosine = angles[row * 2u * p.pairs + pair];
    let sine = angles[row * 2u * p.pairs + p.pairs + pair];
    let first = x[a];
    let second = x[b];
    x[a] = first * cosine - second * sine;
    x[b] = second * cosine + first * sine;
}
