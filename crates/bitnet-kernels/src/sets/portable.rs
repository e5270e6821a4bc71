//! The float arithmetic, once, in plain Rust: its order *is* the definition, and every instruction
//! set compiles it.
//!
//! Each function is inlined into a function of the instruction set that may use its registers; the
//! compiler then vectorises these loops, which it may do only without changing a bit, since no
//! operation may be reassociated or fused. Where it does so badly, a set has its own version with
//! intrinsics, and the tests compare the two.
//!
//! Sums run over [`SUM_LANES`] virtual lanes: element `i` is added to lane `i % 64` in ascending
//! order, and the lanes are added by one tree: first quarters `(a + b) + (c + d)` to 16, then
//! halves 16 → 8 → 4 → 2 → 1. That is four 512-bit registers, or eight of 256 bits, or sixteen of
//! 128; the bits are the same in each case.

use crate::sets::math;

/// Virtual lanes of a sum.
pub(crate) const SUM_LANES: usize = 64;

/// The four quarters of the lanes.
pub(crate) type Lanes = [[f32; 16]; 4];

/// Adds up the lanes by the one tree.
#[inline(always)]
pub(crate) fn reduce(lanes: &Lanes) -> f32 {
    let v: [f32; 16] =
        std::array::from_fn(|i| (lanes[0][i] + lanes[1][i]) + (lanes[2][i] + lanes[3][i]));
    halve(v, |a, b| a + b)
}

/// Joins 16 lanes by halves: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
fn halve(v: [f32; 16], join: impl Fn(f32, f32) -> f32) -> f32 {
    let v: [f32; 8] = std::array::from_fn(|i| join(v[i], v[i + 8]));
    let v: [f32; 4] = std::array::from_fn(|i| join(v[i], v[i + 4]));
    join(join(v[0], v[2]), join(v[1], v[3]))
}

/// `Σ a[i] · b[i]` over the lanes.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes: Lanes = [[0.0; 16]; 4];
    let (a_chunks, a_rest) = a.as_chunks::<SUM_LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<SUM_LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (quarter, lanes) in lanes.iter_mut().enumerate() {
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane += a[16 * quarter + i] * b[16 * quarter + i];
            }
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i / 16][i % 16] += a * b;
    }
    reduce(&lanes)
}

/// `out = weight · (x / sqrt(mean(x²) + eps))`, the root mean square normalisation (Zhang &
/// Sennrich 2019).
#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = dot(x, x) / x.len() as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = (*x * factor) * weight;
    }
}

/// Quantizes a row to int8 (BitNet b1.58, absmax): `s = 127 / max(absmax, 1e-5)`, `q =
/// round_half_even(x · s)`.
///
/// `out` may be longer than `x`; the rest becomes zero. Returns `s` and `Σ q`.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], out: &mut [i8]) -> (f32, i32) {
    // The largest magnitude does not depend on the order, so any number of lanes gives the same
    // result.
    let mut lanes = [0.0f32; 64];
    let (chunks, rest) = x.as_chunks::<64>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = x.abs();
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        let x = x.abs();
        *lane = if x > *lane { x } else { *lane };
    }
    let absmax = lanes
        .iter()
        .fold(1e-5f32, |max, lane| if *lane > max { *lane } else { max });
    let scale = 127.0 / absmax;
    let mut sum = 0i32;
    let (used, padding) = out.split_at_mut(x.len());
    for (out, x) in used.iter_mut().zip(x) {
        // Adding 1.5 · 2^23 rounds to an integer, half to even, and leaves it in the low bits. No
        // number gives −128, but the bits of a NaN can, and the 16-bit sums of products are safe
        // only up to 127.
        let q = ((x * scale + 12_582_912.0).to_bits() as i8).max(-127);
        *out = q;
        sum += i32::from(q);
    }
    padding.fill(0);
    (scale, sum)
}

/// Quantizes a row to int8 in runs of `run_cols`, the last of which may be shorter: for each run `d
/// = absmax / 127`, `q = round_half_even(x / d)`.
///
/// A run of zeros has d = 0 and gives zeros. q: as long as x; scales: d of each run; sums: `Σ q` of
/// each run.
#[inline(always)]
pub(crate) fn quantize_runs(
    x: &[f32],
    run_cols: usize,
    q: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let runs = x.chunks(run_cols).zip(q.chunks_mut(run_cols));
    for ((x, q), (scale, sum)) in runs.zip(scales.iter_mut().zip(sums)) {
        let mut lanes = [0.0f32; 32];
        let (chunks, rest) = x.as_chunks::<32>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = x.abs();
                *lane = if x > *lane { x } else { *lane };
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            let x = x.abs();
            *lane = if x > *lane { x } else { *lane };
        }
        let absmax = lanes
            .iter()
            .fold(0.0f32, |max, lane| if *lane > max { *lane } else { max });
        *scale = absmax / 127.0;
        // A scale of 0 must give zeros. Dividing by infinity does; dividing by 0 would give NaN.
        let divisor = if *scale > 0.0 { *scale } else { f32::INFINITY };
        *sum = 0;
        for (q, x) in q.iter_mut().zip(x) {
            // The scale was rounded, and coarsely if it is subnormal, so x / scale can exceed 127.
            let x = x / divisor;
            let x = if x > 127.0 { 127.0 } else { x };
            let x = if x < -127.0 { -127.0 } else { x };
            // As in `quantize`.
            *q = ((x + 12_582_912.0).to_bits() as i8).max(-127);
            *sum += i32::from(*q);
        }
    }
}

/// The inner half of the one rule for products with group scales: adds the exact integer sum of a
/// run of activations, times its scale, to the earlier runs in the same group of weights.
///
/// `y = Σ_g (Σ_a float(sum_a) · d_a) · d_g`: groups g of weights and runs a of activations within
/// them in ascending order, all in f32, each product rounded before it is added. Every set does
/// these operations for each output, however it combines rows, blocks and threads.
#[inline(always)]
pub(crate) fn fold_run(of_runs: f32, sum: i32, scale: f32) -> f32 {
    of_runs + sum as f32 * scale
}

/// The outer half of the rule: adds a group of weights to the output.
#[inline(always)]
pub(crate) fn fold_group(y: f32, of_runs: f32, scale: f32) -> f32 {
    y + of_runs * scale
}

/// `[Σ (x − scale · q)², Σ x², Σ (scale · q)²]` over the lanes; `q` may be longer than `x`.
#[inline(always)]
pub(crate) fn residual_squares(x: &[f32], q: &[i8], scale: f32) -> [f32; 3] {
    let mut residuals: Lanes = [[0.0; 16]; 4];
    let (mut values, mut images) = (residuals, residuals);
    let (x_chunks, x_rest) = x.as_chunks::<SUM_LANES>();
    let (q_chunks, q_rest) = q[..x.len()].as_chunks::<SUM_LANES>();
    for (x, q) in x_chunks.iter().zip(q_chunks) {
        for quarter in 0..4 {
            for i in 0..16 {
                let x = x[16 * quarter + i];
                let image = scale * f32::from(q[16 * quarter + i]);
                let residual = x - image;
                residuals[quarter][i] += residual * residual;
                values[quarter][i] += x * x;
                images[quarter][i] += image * image;
            }
        }
    }
    for (i, (x, q)) in x_rest.iter().zip(q_rest).enumerate() {
        let image = scale * f32::from(*q);
        let residual = x - image;
        residuals[i / 16][i % 16] += residual * residual;
        values[i / 16][i % 16] += x * x;
        images[i / 16][i % 16] += image * image;
    }
    [reduce(&residuals), reduce(&values), reduce(&images)]
}

/// `out = relu(gate)² · up`, the activation of BitNet b1.58 2B-4T.
#[inline(always)]
pub(crate) fn relu2_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let relu = if *gate > 0.0 { *gate } else { 0.0 };
        *out = (relu * relu) * up;
    }
}

/// `out = gate · sigmoid(gate) · up`, the activation of Llama and the 1bitLLM models.
#[inline(always)]
pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = (*gate / (1.0 + math::exp(-*gate))) * up;
    }
}

/// `out = gelu(gate) · up` with `gelu(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, the
/// activation of Gemma.
///
/// `(1 + tanh(u)) / 2` is `sigmoid(2u)`, so that one exponential is enough.
#[inline(always)]
pub(crate) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    // 2√(2/π)
    const FACTOR: f32 = 1.595_769_2;
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let doubled = (FACTOR * *gate) * (1.0 + 0.044_715 * (*gate * *gate));
        *out = (*gate / (1.0 + math::exp(-doubled))) * up;
    }
}

/// `x += y`.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Rotates the pairs `(i, i + D/2)` of one head, `cos` and `sin` being `[D/2]` (RoPE, half-split as
/// in GPT-NeoX).
#[inline(always)]
pub(crate) fn rope_half_split(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * cos - y * sin;
        *b = y * cos + x * sin;
    }
}

/// Turns the products of one query with the keys of one segment into weights: `exp(product · scale
/// − max)`; returns `(max, Σ weights)`.
///
/// The sum runs over 16 lanes, key `i` in lane `i % 16`, and the halving tree.
#[inline(always)]
pub(crate) fn softmax_segment(scores: &mut [f32], scale: f32) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = scores.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, s) in lanes.iter_mut().zip(chunk) {
            *s *= scale;
            *lane = if *s > *lane { *s } else { *lane };
        }
    }
    for (lane, s) in lanes.iter_mut().zip(rest) {
        *s *= scale;
        *lane = if *s > *lane { *s } else { *lane };
    }
    let max = halve(lanes, |a, b| if b > a { b } else { a });
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = scores.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, s) in lanes.iter_mut().zip(chunk) {
            *s = math::exp(*s - max);
            *lane += *s;
        }
    }
    for (lane, s) in lanes.iter_mut().zip(rest) {
        *s = math::exp(*s - max);
        *lane += *s;
    }
    (max, halve(lanes, |a, b| a + b))
}

/// Adds the partial result of a later segment to the result of the earlier segments: `max`, `sum`
/// and `acc` of one head.
#[inline(always)]
pub(crate) fn merge_segment(
    max: &mut f32,
    sum: &mut f32,
    acc: &mut [f32],
    later_max: f32,
    later_sum: f32,
    later_acc: &[f32],
) {
    let new_max = if later_max > *max { later_max } else { *max };
    let (old, new) = (math::exp(*max - new_max), math::exp(later_max - new_max));
    for (acc, later) in acc.iter_mut().zip(later_acc) {
        *acc = *acc * old + later * new;
    }
    *sum = *sum * old + later_sum * new;
    *max = new_max;
}
