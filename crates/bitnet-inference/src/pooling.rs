//! [`Pool`]: one vector from the hidden states of a prompt.

use bitnet_models::Pooling;

/// The hidden states of a prompt's tokens so far, pooled.
pub(crate) struct Pool {
    kind: Pooling,
    /// Sums or copies of hidden states, `[hidden]`; empty before the first one. In f64, so that the
    /// mean of a long text is as exact as that of a short one.
    values: Vec<f64>,
    /// Number of tokens whose states have been added. A sequence that gave up its memory computes
    /// some again.
    num_added: usize,
}

impl Pool {
    pub fn new(kind: Pooling) -> Self {
        Self {
            kind,
            values: Vec::new(),
            num_added: 0,
        }
    }

    /// Whether it needs the states of all tokens, not only the last one's.
    pub fn needs_all_rows(&self) -> bool {
        self.kind != Pooling::Last
    }

    /// Whether the state of the token at `position` of a prompt of `len` tokens is needed and was
    /// not added yet.
    pub fn wants(&self, position: usize, len: usize) -> bool {
        match self.kind {
            Pooling::First => position == 0 && self.num_added == 0,
            Pooling::Last => position + 1 == len && self.num_added == 0,
            Pooling::Mean => position == self.num_added && position < len,
        }
    }

    /// Adds the state of the next token that is wanted.
    pub fn add(&mut self, state: &[f32]) {
        self.values.resize(state.len(), 0.0);
        let pairs = self.values.iter_mut().zip(state);
        pairs.for_each(|(sum, value)| *sum += f64::from(*value));
        self.num_added += 1;
    }

    /// The pooled vector, `[hidden]`.
    pub fn finish(self) -> Vec<f32> {
        let num = self.num_added.max(1) as f64;
        self.values.iter().map(|sum| (sum / num) as f32).collect()
    }
}

/// Scales a vector to length 1; a vector of zeros stays as it is.
pub fn normalize(values: &mut [f32]) {
    let squares = values.iter().map(|value| f64::from(*value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    if length > 0.0 {
        values
            .iter_mut()
            .for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}
