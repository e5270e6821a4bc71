// The `k` first values of each segment of a row, in the sampler's order: the larger first, the lower
// id among equals, NaN last. One workgroup a segment.
//
// input: [rows, len], as the function `value` of another file reads it; out: [rows, segments, k]
// pairs of an id and the bits of a float. A segment with fewer values ends with pairs without an id.
// A row of logits takes two calls: one for its segments, and one for all their pairs as one segment.
//
// Each of 256 threads keeps the first value of its share. A turn finds the first of all in a tree of
// eight levels, and only the thread that had it searches its share again, for its next value.
//
// Floats are compared as integers: a driver may assume that floats are never NaN or infinite.

struct Params {
    rows: u32,
    len: u32,
    segment: u32, // values of a segment; the last one of a row may have fewer
    segments: u32, // segments of a row
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> out: array<vec2<u32>>;

const NO_ID: u32 = 0xffffffffu;

var<workgroup> first: array<vec2<u32>, 256>;

// Grows with the float of these bits: NaN is 0, and both zeros are equal. Below zero, the bits of a
// larger float are smaller.
fn rank(bits: u32) -> u32 {
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0u;
    }
    if (bits & 0x80000000u) == 0u || bits == 0x80000000u {
        return bits | 0x80000000u;
    }
    return ~bits;
}

// Whether `a` comes before `b`; both are pairs of an id and bits.
fn is_before(a: vec2<u32>, b: vec2<u32>) -> bool {
    let ranks = vec2<u32>(rank(a.y), rank(b.y));
    return ranks.x > ranks.y || (ranks.x == ranks.y && a.x < b.x);
}

// Of the values at start, start + 256, … before `end`: the first one, or the first one after `last`.
fn search(row: u32, start: u32, end: u32, last: vec2<u32>) -> vec2<u32> {
    var found = vec2<u32>(NO_ID, 0x7fc00000u); // NaN
    for (var i = start; i < end; i += 256u) {
        let candidate = value(row * p.len + i, i);
        if is_before(candidate, found) && (last.x == NO_ID || is_before(last, candidate)) {
            found = candidate;
        }
    }
    return found;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.x + group.y * groups.x;
    if index >= p.rows * p.segments {
        return;
    }
    let row = index / p.segments;
    let start = index % p.segments * p.segment;
    let end = min(start + p.segment, p.len);
    var mine = search(row, start + thread, end, vec2<u32>(NO_ID, 0u));
    for (var turn = 0u; turn < p.k; turn += 1u) {
        first[thread] = mine;
        workgroupBarrier();
        for (var gap = 128u; gap > 0u; gap /= 2u) {
            if thread < gap && is_before(first[thread + gap], first[thread]) {
                first[thread] = first[thread + gap];
            }
            workgroupBarrier();
        }
        let winner = first[0];
        if thread == 0u {
            out[index * p.k + turn] = winner;
        }
        if winner.x != NO_ID && winner.x == mine.x {
            mine = search(row, start + thread, end, mine);
        }
        // The next turn writes what the others read above.
        workgroupBarrier();
    }
}
