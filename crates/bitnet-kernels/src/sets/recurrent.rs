//! The recurrence of Gated DeltaNet (Yang et al. 2024), one token and one head at a time.
//!
//! The functions are plain Rust that [`KernelSet::run`] compiles for each instruction set. Every
//! sum has one order, so all sets give the same bits; and a token's result depends only on the
//! state after the token before it, so chunks and batches change nothing.

use crate::sets::compiled::Work;
use crate::sets::math;
use crate::sets::portable;
use crate::sets::table::KernelSet;

/// Taps of the causal convolution: the newest token and the three before it.
pub const CONV_TAPS: usize = 4;
/// Columns of a state whose sums a pass keeps in registers: four registers of 512 bits.
const COLUMN_LANES: usize = 64;
/// Added to the sum of squares of a query or key before the root.
const L2_EPS: f32 = 1e-6;

/// One token's convolution for a run of channels.
struct Convolve<'a> {
    /// `[3][channels]`: the inputs of the three tokens before, the oldest first.
    past: [&'a mut [f32]; CONV_TAPS - 1],
    /// `[channels]`
    x: &'a [f32],
    /// `[4][channels]`: the last tap meets the newest token.
    taps: [&'a [f32]; CONV_TAPS],
    /// `[channels]`
    out: &'a mut [f32],
}

impl Work for Convolve<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let n = self.out.len();
        let [first, second, third] = self.past;
        let (first, second, third) = (&mut first[..n], &mut second[..n], &mut third[..n]);
        let [w0, w1, w2, w3] = self.taps.map(|tap| &tap[..n]);
        let x = &self.x[..n];
        for i in 0..n {
            let sum = ((w0[i] * first[i] + w1[i] * second[i]) + w2[i] * third[i]) + w3[i] * x[i];
            first[i] = second[i];
            second[i] = third[i];
            third[i] = x[i];
            self.out[i] = sum / (1.0 + math::exp(-sum));
        }
    }
}

/// One head's step of the delta rule.
struct DeltaStep<'a> {
    /// `[head_dim keys][head_dim values]`
    state: &'a mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: f32,
    beta: f32,
    /// `[head_dim values]`
    out: &'a mut [f32],
}

impl DeltaStep<'_> {
    /// The step for the columns `first..first + WIDTH`, whose sums fit into registers.
    #[inline(always)]
    fn columns<const WIDTH: usize>(&mut self, first: usize) {
        let dim = self.v.len();
        let mut recalled = [0.0f32; WIDTH];
        for (row, k) in self.state.chunks_exact(dim).zip(self.k) {
            for (sum, s) in recalled.iter_mut().zip(&row[first..first + WIDTH]) {
                *sum += s * k;
            }
        }
        let mut update = [0.0f32; WIDTH];
        for ((update, recalled), v) in update
            .iter_mut()
            .zip(&recalled)
            .zip(&self.v[first..first + WIDTH])
        {
            *update = self.beta * (v - self.decay * recalled);
        }
        let mut read = [0.0f32; WIDTH];
        for ((row, k), q) in self.state.chunks_exact_mut(dim).zip(self.k).zip(self.q) {
            let row = &mut row[first..first + WIDTH];
            for ((s, update), read) in row.iter_mut().zip(&update).zip(&mut read) {
                let next = self.decay * *s + k * update;
                *s = next;
                *read += q * next;
            }
        }
        self.out[first..first + WIDTH].copy_from_slice(&read);
    }
}

impl Work for DeltaStep<'_> {
    type Output = ();
    #[inline(always)]
    fn run(mut self) {
        let dim = self.v.len();
        let mut first = 0;
        while first + COLUMN_LANES <= dim {
            self.columns::<COLUMN_LANES>(first);
            first += COLUMN_LANES;
        }
        while first + 8 <= dim {
            self.columns::<8>(first);
            first += 8;
        }
        while first < dim {
            self.columns::<1>(first);
            first += 1;
        }
    }
}

/// `out = rms_norm(out) · weight · silu(gate)` for one head.
struct GatedNorm<'a> {
    out: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
    gate: &'a [f32],
}

impl Work for GatedNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mean = portable::dot(self.out, self.out) / self.out.len() as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        for ((out, weight), gate) in self.out.iter_mut().zip(self.weight).zip(self.gate) {
            let silu = *gate / (1.0 + math::exp(-*gate));
            *out = ((*out * factor) * weight) * silu;
        }
    }
}

/// `x = x / √(Σ x² + 1e-6) · scale` for one head.
struct Normalize<'a> {
    x: &'a mut [f32],
    scale: f32,
}

impl Work for Normalize<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let factor = self.scale / (portable::dot(self.x, self.x) + L2_EPS).sqrt();
        for x in self.x {
            *x *= factor;
        }
    }
}

/// `out = x · sigmoid(gate)`
struct SigmoidMul<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
}

impl Work for SigmoidMul<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (x, gate) in self.x.iter_mut().zip(self.gate) {
            *x /= 1.0 + math::exp(-*gate);
        }
    }
}

impl KernelSet {
    /// One token of a causal convolution with SiLU: `out = silu(Σ taps[j] · input[t − 3 + j])`;
    /// `past` moves on by one token.
    ///
    /// # Panics
    /// If a slice is shorter than `out`.
    pub(crate) fn convolve(
        &self,
        past: [&mut [f32]; CONV_TAPS - 1],
        x: &[f32],
        taps: [&[f32]; CONV_TAPS],
        out: &mut [f32],
    ) {
        self.run(Convolve { past, x, taps, out });
    }

    /// Scales a query or key to length `scale`, up to the epsilon.
    pub(crate) fn l2_normalize(&self, x: &mut [f32], scale: f32) {
        self.run(Normalize { x, scale });
    }

    /// The delta rule for one token of one head:
    ///
    /// ```text
    /// u = beta (v − decay Sᵀk);   S = decay S + k uᵀ;   out = Sᵀq
    /// ```
    ///
    /// state: `[head_dim, head_dim]`, a row for each key element. Sums run over the key elements in
    /// ascending order.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[expect(
        clippy::too_many_arguments,
        reason = "the terms of one formula, each a plain slice or number"
    )]
    pub(crate) fn delta_step(
        &self,
        state: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        decay: f32,
        beta: f32,
        out: &mut [f32],
    ) {
        let dim = v.len();
        assert!(
            state.len() == dim * dim && q.len() == dim && k.len() == dim && out.len() == dim,
            "a state of {} for heads of {dim}",
            state.len()
        );
        self.run(DeltaStep {
            state,
            q,
            k,
            v,
            decay,
            beta,
            out,
        });
    }

    /// `out = rms_norm(out) · weight · silu(gate)`, all of one length.
    pub(crate) fn gated_norm(&self, out: &mut [f32], weight: &[f32], eps: f32, gate: &[f32]) {
        assert!(
            out.len() == weight.len() && out.len() == gate.len(),
            "a norm of {} for {} values",
            weight.len(),
            out.len()
        );
        self.run(GatedNorm {
            out,
            weight,
            eps,
            gate,
        });
    }

    /// `x = x · sigmoid(gate)`.
    pub(crate) fn sigmoid_mul(&self, x: &mut [f32], gate: &[f32]) {
        assert_eq!(x.len(), gate.len(), "values and gates");
        self.run(SigmoidMul { x, gate });
    }
}

/// `exp(a · softplus(x))`, by which a state decays: `a` is negative, softplus is `ln(1 + eˣ)`.
///
/// In f64: a state is multiplied by it once per token, so its error grows with the sequence.
pub(crate) fn decay(a: f32, x: f32) -> f32 {
    let x = f64::from(x);
    let softplus = if x > 40.0 {
        x
    } else {
        math::ln_f64(1.0 + math::exp_f64(x))
    };
    math::exp_f64(f64::from(a) * softplus) as f32
}

/// `1 / (1 + e⁻ˣ)`
pub(crate) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + math::exp_f64(-f64::from(x)))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761).rotate_left(13);
        (0..n as u32)
            .map(|i| (hash(i) % 2000) as f32 / 1000.0 - 1.0)
            .collect()
    }

    /// The formula in f64, as the paper states it.
    fn delta_step_f64(
        state: &mut [f64],
        [q, k, v]: [&[f32]; 3],
        decay: f32,
        beta: f32,
    ) -> Vec<f64> {
        let dim = v.len();
        state.iter_mut().for_each(|s| *s *= f64::from(decay));
        let recalled = |state: &[f64], x: &[f32], j: usize| -> f64 {
            (0..dim).map(|i| state[i * dim + j] * f64::from(x[i])).sum()
        };
        let update: Vec<f64> = (0..dim)
            .map(|j| f64::from(beta) * (f64::from(v[j]) - recalled(state, k, j)))
            .collect();
        for i in 0..dim {
            for j in 0..dim {
                state[i * dim + j] += f64::from(k[i]) * update[j];
            }
        }
        (0..dim).map(|j| recalled(state, q, j)).collect()
    }

    #[test]
    fn the_delta_rule_equals_the_formula_on_every_set() {
        for dim in [1, 7, 16, 64, 72, 128] {
            let mut exact = vec![0.0f64; dim * dim];
            let sets: Vec<_> = KernelSet::available().collect();
            let mut states = vec![vec![0.0f32; dim * dim]; sets.len()];
            for token in 0..5 {
                let (mut q, mut k) = (values(dim, token), values(dim, 77 + token));
                let v = values(dim, 911 + token);
                KernelSet::detect().l2_normalize(&mut q, 1.0 / (dim as f32).sqrt());
                KernelSet::detect().l2_normalize(&mut k, 1.0);
                let (decay, beta) = (0.9 - 0.1 * token as f32, 0.3 + 0.1 * token as f32);
                let expected = delta_step_f64(&mut exact, [&q, &k, &v], decay, beta);
                let mut outputs = Vec::new();
                for (set, state) in sets.iter().zip(&mut states) {
                    let mut out = vec![0.0; dim];
                    set.delta_step(state, &q, &k, &v, decay, beta, &mut out);
                    outputs.push(out);
                }
                for (out, expected) in outputs[0].iter().zip(expected) {
                    assert!(
                        (f64::from(*out) - expected).abs() < 1e-6,
                        "{out} {expected}"
                    );
                }
                assert!(outputs.iter().all(|out| *out == outputs[0]));
                assert!(states.iter().all(|state| *state == states[0]));
            }
        }
    }

    #[test]
    fn the_last_tap_of_a_convolution_multiplies_the_newest_token() {
        let n = 19;
        let taps: Vec<Vec<f32>> = (0..4).map(|tap| values(n, 5 + tap)).collect();
        let inputs: Vec<Vec<f32>> = (0..6).map(|token| values(n, 100 + token)).collect();
        for set in KernelSet::available() {
            let mut past = vec![vec![0.0f32; n]; 3];
            for (token, x) in inputs.iter().enumerate() {
                let mut out = vec![0.0; n];
                let [a, b, c] = &mut past[..] else {
                    unreachable!("three tokens")
                };
                let taps: [&[f32]; 4] = std::array::from_fn(|tap| &taps[tap][..]);
                set.convolve([a, b, c], x, taps, &mut out);
                for i in 0..n {
                    let sum: f64 = (0..4)
                        .filter(|tap| token + tap >= 3)
                        .map(|tap| f64::from(taps[tap][i]) * f64::from(inputs[token + tap - 3][i]))
                        .sum();
                    let expected = sum / (1.0 + (-sum).exp());
                    assert!((f64::from(out[i]) - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_decay_is_exp_of_a_times_softplus() {
        for (a, x) in [
            (-0.5f32, -30.0f32),
            (-1.0, -2.0),
            (-2.0, 0.0),
            (-0.01, 3.5),
            (-0.1, 25.0),
        ] {
            let softplus = (f64::from(x).exp()).ln_1p();
            let expected = (f64::from(a) * softplus).exp();
            assert!((f64::from(decay(a, x)) - expected).abs() < 1e-6, "{a} {x}");
        }
        assert!((sigmoid(0.3) - 0.574_442_5).abs() < 1e-6);
    }
}
