// Elementary functions and sums with one order: the WGSL of `math.rs` and `portable.rs` in
// bitnet-kernels. A driver that does not fuse a·b + c gives the CPU's bits.

// 0, but no compiler knows: `main` of a kernel that calls exp_f32 sets it to workgroup_id.z.
var<private> zero: u32;

// x itself. No compiler can move the operation that made it into the next one: Mesa computes
// (a·b + c) + 1 as a·b + (c + 1) (findings/mesa-moves-constants-in-wgsl-sums.sh).
fn rounded(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ zero);
}

// e^x within 2 ulp for −87.3 ≤ x ≤ 88; 0 below, e^88 above. WGSL's own exp differs between drivers.
//
// x · log2 e + 1.5 · 2^23 rounds to the nearest integer n and leaves it in the low bits, so n is
// read from the bits: a driver that simplifies (a + c) − c cannot change it.
fn exp_f32(x: f32) -> f32 {
    let low = select(88.0, x, x < 88.0);
    let c = select(-87.3, low, low > -87.3);
    let n = bitcast<i32>(c * 1.4426950408889634 + 12582912.0) - 0x4B400000;
    let k = f32(n);
    let r = rounded(c - rounded(k * 0.6933594)) - k * -2.1219444e-4;
    var p = 1.9875691e-4;
    p = p * r + 1.3981999e-3;
    p = p * r + 8.333452e-3;
    p = p * r + 4.1665796e-2;
    p = p * r + 0.16666666;
    p = p * r + 0.5;
    let y = rounded(rounded(p * (r * r)) + r) + 1.0;
    return select(y * bitcast<f32>(u32(n + 127) << 23u), 0.0, x < -87.3);
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp_f32(-x));
}

// Virtual lanes of a sum: element i is added to lane i % 64 in ascending order.
var<workgroup> lanes: array<f32, 64>;

// Adds the lanes by the one tree: quarters (a + b) + (c + d), then halves 16 → 8 → 4 → 2 → 1.
// All threads of a workgroup of at least 64 call it together, and all get the sum.
fn add_lanes(thread: u32) -> f32 {
    workgroupBarrier();
    if thread < 16u {
        lanes[thread] = (lanes[thread] + lanes[thread + 16u])
            + (lanes[thread + 32u] + lanes[thread + 48u]);
    }
    workgroupBarrier();
    if thread < 8u {
        lanes[thread] = lanes[thread] + lanes[thread + 8u];
    }
    workgroupBarrier();
    if thread < 4u {
        lanes[thread] = lanes[thread] + lanes[thread + 4u];
    }
    workgroupBarrier();
    if thread < 2u {
        lanes[thread] = lanes[thread] + lanes[thread + 2u];
    }
    workgroupBarrier();
    let sum = lanes[0] + lanes[1];
    workgroupBarrier();
    return sum;
}
