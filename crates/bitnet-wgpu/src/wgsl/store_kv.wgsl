// Writes keys and values of each row to the cache of a layer. One thread a pair of elements.
//
// cache: [blocks][keys, then values][kv_heads][32 positions][head_dim], in pairs.
// plan: at `places`, (position, index of the sequence's first block in `blocks`) of each row; at
// `blocks`, the block tables.

struct Params {
    stride: u32,
    key_start: u32,
    value_start: u32,
    kv_heads: u32,
    pairs: u32,  // of a head
    places: u32,
    blocks: u32,
    total: u32,  // pairs of all rows and heads
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;

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
    let head = index / p.pairs % p.kv_heads;
    let row = index / p.pairs / p.kv_heads;
    let position = plan[p.places + 2u * row];
    let block = plan[p.blocks + plan[p.places + 2u * row + 1u] + position / 32u];
    let part = p.kv_heads * 32u * p.pairs;
    let at = block * 2u * part + (head * 32u + position % 32u) * p.pairs + pair;
    let origin = row * p.stride + head * 2u * p.pairs + 2u * pair;
    let key = origin + p.key_start;
    let value = origin + p.value_start;
    store_pair(at, vec2<f32>(qkv[key], qkv[key + 1u]));
    store_pair(at + part, vec2<f32>(qkv[value], qkv[value + 1u]));
}
