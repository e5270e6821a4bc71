// out = softmax(q · keys / √head_dim) · values over the positions of the row's sequence up to its
// own. One workgroup a row and query head; out: [rows, heads · head_dim].
//
// Keys are walked in segments of 256 at absolute positions 0, 256, …, as on the CPU: in a segment
// thread i computes the score of key i (one sum, ascending dimension), then the largest score, the
// weights exp(score − max) and their sum over 16 virtual lanes, then thread j the weighted sum of
// pair j of the values in ascending key. Each segment is merged into the earlier ones. So neither
// the batch nor blocks nor chunks change a bit.
//
// Layouts of cache and plan: store_kv.wgsl.

struct Params {
    stride: u32,
    query_start: u32,
    heads: u32,
    kv_heads: u32,
    pairs: u32, // of a head, at most 256
    places: u32,
    blocks: u32,
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> cache: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const SEGMENT: u32 = 256u;
var<workgroup> query: array<f32, 512>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> maxima: array<f32, 256>;
var<workgroup> sums: array<f32, 16>;
var<workgroup> bases: array<u32, 8>; // of the segment's blocks: where their keys of the head begin

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    zero = group.z;
    let index = group.x + group.y * groups.x;
    let row = index / p.heads;
    let head = index % p.heads;
    let kv_head = head / (p.heads / p.kv_heads);
    let num_keys = plan[p.places + 2u * row] + 1u;
    let table = p.blocks + plan[p.places + 2u * row + 1u];
    let part = p.kv_heads * 32u * p.pairs;
    for (var i = thread; i < 2u * p.pairs; i += 256u) {
        query[i] = qkv[row * p.stride + p.query_start + head * 2u * p.pairs + i];
    }
    var largest = 0.0;
    var total = 0.0;
    var acc = vec2<f32>(0.0);
    for (var first = 0u; first < num_keys; first += SEGMENT) {
        let keys = min(SEGMENT, num_keys - first);
        if thread < 8u && thread * 32u < keys {
            let block = plan[table + first / 32u + thread];
            bases[thread] = block * 2u * part + kv_head * 32u * p.pairs;
        }
        workgroupBarrier();
        var score = -3.4028235e38;
        if thread < keys {
            score = score_of(bases[thread / 32u] + thread % 32u * p.pairs) * p.scale;
        }
        let segment_max = largest_of(thread, score);
        if thread < keys {
            weights[thread] = exp_f32(score - segment_max);
        }
        let segment_sum = sum_of(thread, keys);
        var segment_acc = vec2<f32>(0.0);
        if thread < p.pairs {
            for (var key = 0u; key < keys; key += 1u) {
                let value = pair_at(bases[key / 32u] + part + key % 32u * p.pairs + thread);
                segment_acc = segment_acc + weights[key] * value;
            }
        }
        if first == 0u {
            largest = segment_max;
            total = segment_sum;
            acc = segment_acc;
        } else {
            let new_max = select(largest, segment_max, segment_max > largest);
            let old = exp_f32(largest - new_max);
            let later = exp_f32(segment_max - new_max);
            acc = acc * old + segment_acc * later;
            total = total * old + segment_sum * later;
            largest = new_max;
        }
        workgroupBarrier();
    }
    if thread < p.pairs {
        let at = (row * p.heads + head) * 2u * p.pairs + 2u * thread;
        out[at] = acc.x / total;
        out[at + 1u] = acc.y / total;
    }
}

// The product of the query and the key whose pairs begin at `at`.
fn score_of(at: u32) -> f32 {
    var score = 0.0;
    for (var i = 0u; i < p.pairs; i += 1u) {
        let key = pair_at(at + i);
        score = score + query[2u * i] * key.x;
        score = score + query[2u * i + 1u] * key.y;
    }
    return score;
}

// The largest score of all threads.
fn largest_of(thread: u32, score: f32) -> f32 {
    maxima[thread] = score;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            let other = maxima[thread + half];
            maxima[thread] = select(maxima[thread], other, other > maxima[thread]);
        }
    }
    workgroupBarrier();
    return maxima[0];
}

// The sum of the weights: key i in lane i % 16, then halves 16 → 8 → 4 → 2 → 1.
fn sum_of(thread: u32, keys: u32) -> f32 {
    workgroupBarrier();
    if thread < 16u {
        var sum = 0.0;
        for (var key = thread; key < keys; key += 16u) {
            sum = sum + weights[key];
        }
        sums[thread] = sum;
    }
    for (var half = 8u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] = sums[thread] + sums[thread + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}
