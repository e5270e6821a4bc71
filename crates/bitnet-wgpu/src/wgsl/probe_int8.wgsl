// Multiplies int8 as fast as the device can: eight independent sums of dot4I8Packed in registers, so
// that no product waits for the one before. 32 products a round and thread.

struct Params {
    rounds: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var a = group.x * 64u + thread;
    var first = vec4<i32>(0);
    var second = vec4<i32>(0);
    for (var i = 0u; i < p.rounds; i += 1u) {
        let b = a ^ i;
        first += vec4<i32>(
            dot4I8Packed(a, b),
            dot4I8Packed(a + 1u, b),
            dot4I8Packed(a + 2u, b),
            dot4I8Packed(a + 3u, b),
        );
        second += vec4<i32>(
            dot4I8Packed(a + 4u, b),
            dot4I8Packed(a + 5u, b),
            dot4I8Packed(a + 6u, b),
            dot4I8Packed(a + 7u, b),
        );
        a += 8u;
    }
    let sum = first + second;
    out[thread] = sum.x + sum.y + sum.z + sum.w;
}
