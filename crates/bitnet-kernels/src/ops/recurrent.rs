//! Linear attention with a recurrent state: [`Cpu::delta_net`].
//!
//! A sequence's state in one layer has a fixed size that does not depend on the sequence's length:
//!
//! ```text
//! [3 tokens][channels]                      inputs of the convolution, the oldest token first
//! [value heads][head_dim keys][head_dim values]   the memory of each head
//! ```

use std::ops::Range;

use crate::ops::cpu::{Cpu, Norm};
use crate::sets::recurrent::{CONV_TAPS, decay, sigmoid};
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;

/// Channels that a thread convolves at once.
const CHANNEL_UNIT: usize = 64;

/// The shape of a Gated DeltaNet layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple of `key_heads`. Value head `j` uses key head `j mod key_heads`.
    pub value_heads: usize,
    /// Length of every head.
    pub head_dim: usize,
}

impl DeltaShape {
    /// Channels of the convolution: queries, keys and values.
    #[must_use]
    pub fn channels(&self) -> usize {
        (2 * self.key_heads + self.value_heads) * self.head_dim
    }

    /// Values that a layer gives for each row.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.value_heads * self.head_dim
    }

    /// Numbers in the convolution's part of a state.
    #[must_use]
    fn conv_len(&self) -> usize {
        (CONV_TAPS - 1) * self.channels()
    }

    /// Numbers in the state of one sequence and layer.
    #[must_use]
    pub fn state_len(&self) -> usize {
        self.conv_len() + self.value_heads * self.head_dim * self.head_dim
    }
}

/// The constants of a Gated DeltaNet layer.
#[derive(Clone, Copy)]
pub struct DeltaWeights<'a> {
    /// `[4 taps, channels]`; the last tap meets the newest token.
    pub conv: &'a [f32],
    /// The logarithm of the decay for each value head and unit of time, negative.
    pub decay: &'a [f32],
    /// Added to the time of each value head.
    pub time_bias: &'a [f32],
    /// The norm of each head's output, `[head_dim]`.
    pub norm: Norm<'a>,
}

/// The inputs of a Gated DeltaNet layer, all for the same rows.
#[derive(Clone)]
pub struct DeltaInput<'a> {
    /// Rows of `stride` numbers, which hold `qkv` and `gate`.
    pub projected: &'a [f32],
    /// The length of a row.
    pub stride: usize,
    /// Columns of queries, keys and values before the convolution.
    pub qkv: Range<usize>,
    /// Columns of the gates of the output.
    pub gate: Range<usize>,
    /// `[rows, 2 · value heads]`: times of the decay before bias and softplus, then the strengths
    /// with which a token is written, before the sigmoid.
    pub times: &'a [f32],
}

/// Consecutive rows of one sequence and where its state begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRows {
    /// The rows, in the order of their positions.
    pub rows: Range<usize>,
    /// The first number of the state of this layer.
    pub state: usize,
}

/// Buffers of [`Cpu::delta_net`] between its steps.
#[derive(Default)]
pub struct DeltaScratch {
    /// `[rows, channels]`: queries, keys and values after the convolution.
    convolved: Vec<f32>,
}

impl Cpu {
    /// Gated DeltaNet: convolves queries, keys and values, advances each sequence's state token by
    /// token, and writes normalised, gated outputs, `[rows, value heads · head_dim]`.
    ///
    /// No sum crosses a token or a head, and each state advances in the order of its rows, so
    /// neither chunks nor threads nor other sequences change a bit.
    ///
    /// # Panics
    /// If the shapes do not fit, or two sequences share a part of `states`.
    #[expect(
        clippy::too_many_arguments,
        reason = "shape, constants, inputs, states, memory and output are six different owners'"
    )]
    pub fn delta_net(
        &self,
        shape: DeltaShape,
        weights: &DeltaWeights<'_>,
        input: &DeltaInput<'_>,
        sequences: &[StateRows],
        states: &mut [f32],
        scratch: &mut DeltaScratch,
        out: &mut [f32],
    ) {
        let rows = input.projected.len() / input.stride;
        check(shape, weights, input, sequences, states.len());
        assert_eq!(
            out.len(),
            rows * shape.output_len(),
            "outputs of {rows} rows"
        );
        let macs =
            shape.value_heads * 3 * shape.head_dim * shape.head_dim + CONV_TAPS * shape.channels();
        let bytes = sequences.len() * shape.state_len() * size_of::<f32>();
        self.counters().add(Kernel::DeltaNet, rows * macs, bytes);
        scratch.convolved.resize(rows * shape.channels(), 0.0);
        self.convolve(
            shape,
            weights,
            input,
            sequences,
            states,
            &mut scratch.convolved,
        );
        self.normalize_keys(shape, &mut scratch.convolved);
        self.advance(
            shape,
            weights,
            input,
            sequences,
            states,
            &scratch.convolved,
            out,
        );
    }

    /// Convolves the channels, which the threads share.
    fn convolve(
        &self,
        shape: DeltaShape,
        weights: &DeltaWeights<'_>,
        input: &DeltaInput<'_>,
        sequences: &[StateRows],
        states: &mut [f32],
        convolved: &mut [f32],
    ) {
        let (set, channels) = (self.set(), shape.channels());
        let (states, convolved) = (Disjoint::new(states), Disjoint::new(convolved));
        self.pool().deal(channels, CHANNEL_UNIT, &|share| {
            let taps: [&[f32]; CONV_TAPS] =
                std::array::from_fn(|tap| &weights.conv[tap * channels..][share.clone()]);
            for StateRows { rows, state } in sequences {
                for row in rows.clone() {
                    let x = &input.projected[row * input.stride..][input.qkv.clone()];
                    let past = [0, 1, 2].map(|token| {
                        let first = state + token * channels;
                        first + share.start..first + share.end
                    });
                    // SAFETY: each channel is in one thread's share, and sequences do not overlap.
                    let past = past.map(|past| unsafe { states.slice(past) });
                    let first = row * channels;
                    // SAFETY: as above.
                    let out = unsafe { convolved.slice(first + share.start..first + share.end) };
                    set.convolve(past, &x[share.clone()], taps, out);
                }
            }
        });
    }

    /// Scales queries to length `1/√head_dim` and keys to length 1.
    fn normalize_keys(&self, shape: DeltaShape, convolved: &mut [f32]) {
        let (set, dim) = (self.set(), shape.head_dim);
        let width = shape.key_heads * dim;
        self.for_rows(convolved, shape.channels(), &|_, row| {
            let (queries, rest) = row.split_at_mut(width);
            for query in queries.chunks_exact_mut(dim) {
                set.l2_normalize(query, 1.0 / (dim as f32).sqrt());
            }
            for key in rest[..width].chunks_exact_mut(dim) {
                set.l2_normalize(key, 1.0);
            }
        });
    }

    /// Advances the states; the threads share sequences and value heads.
    #[expect(
        clippy::too_many_arguments,
        reason = "as delta_net, which it is a part of"
    )]
    fn advance(
        &self,
        shape: DeltaShape,
        weights: &DeltaWeights<'_>,
        input: &DeltaInput<'_>,
        sequences: &[StateRows],
        states: &mut [f32],
        convolved: &[f32],
        out: &mut [f32],
    ) {
        let (set, dim, heads) = (self.set(), shape.head_dim, shape.value_heads);
        let (states, out) = (Disjoint::new(states), Disjoint::new(out));
        self.pool().deal(sequences.len() * heads, 1, &|share| {
            for (sequence, head) in share.map(|index| (index / heads, index % heads)) {
                let StateRows { rows, state } = &sequences[sequence];
                let first = state + shape.conv_len() + head * dim * dim;
                // SAFETY: each head of each sequence is in one thread's share.
                let state = unsafe { states.slice(first..first + dim * dim) };
                let key = head % shape.key_heads;
                for row in rows.clone() {
                    let qkv = &convolved[row * shape.channels()..][..shape.channels()];
                    let part = |head: usize| &qkv[head * dim..(head + 1) * dim];
                    let times = &input.times[row * 2 * heads..(row + 1) * 2 * heads];
                    let (alpha, beta) = (times[head], times[heads + head]);
                    let start = row * shape.output_len() + head * dim;
                    // SAFETY: as above.
                    let out = unsafe { out.slice(start..start + dim) };
                    set.delta_step(
                        state,
                        part(key),
                        part(shape.key_heads + key),
                        part(2 * shape.key_heads + head),
                        decay(weights.decay[head], alpha + weights.time_bias[head]),
                        sigmoid(beta),
                        out,
                    );
                    let gate = &input.projected[row * input.stride..][input.gate.clone()];
                    let gate = &gate[head * dim..(head + 1) * dim];
                    set.gated_norm(out, weights.norm.weight, weights.norm.eps, gate);
                }
            }
        });
    }

    /// `x · sigmoid(gate)`: the columns `gate` of `gates`, `[rows, stride]`, gate the rows of `x`,
    /// `[rows, gate.len()]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn gate_rows(&self, x: &mut [f32], gates: &[f32], stride: usize, gate: Range<usize>) {
        let set = self.set();
        assert_eq!(x.len() / gate.len(), gates.len() / stride, "rows to gate");
        self.for_rows(x, gate.len(), &|row, x| {
            set.sigmoid_mul(x, &gates[row * stride..][gate.clone()]);
        });
    }
}

/// Checks that all lengths fit together and that the states do not overlap.
fn check(
    shape: DeltaShape,
    weights: &DeltaWeights<'_>,
    input: &DeltaInput<'_>,
    sequences: &[StateRows],
    num_states: usize,
) {
    let (channels, heads) = (shape.channels(), shape.value_heads);
    let rows = input.projected.len() / input.stride;
    assert!(
        heads.is_multiple_of(shape.key_heads)
            && weights.conv.len() == CONV_TAPS * channels
            && weights.decay.len() == heads
            && weights.time_bias.len() == heads
            && weights.norm.weight.len() == shape.head_dim,
        "constants of {shape:?}"
    );
    assert!(
        input.qkv.len() == channels
            && input.gate.len() == shape.output_len()
            && input.times.len() == rows * 2 * heads,
        "inputs of {shape:?} for {rows} rows"
    );
    for (index, one) in sequences.iter().enumerate() {
        assert!(
            one.rows.end <= rows && one.state + shape.state_len() <= num_states,
            "{one:?} of {rows} rows and {num_states} numbers of state"
        );
        let apart = |other: &StateRows| one.state.abs_diff(other.state) >= shape.state_len();
        assert!(
            sequences[..index].iter().all(apart),
            "{one:?} shares its state"
        );
    }
}
