//! [`FfnActivity`]: how many inner values of a feed-forward network are zero.

use bitnet_kernels::InnerZeros;

/// Counts of the inner values of a layer's feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FfnActivity {
    /// Inner values, one for each row and neuron, without dead neurons.
    pub num_values: u64,
    /// Gates that were not positive.
    pub num_closed_gates: u64,
    /// Values that were zero as int8.
    pub num_zeros: u64,
}

impl FfnActivity {
    pub(crate) fn add(&mut self, num_values: usize, zeros: InnerZeros) {
        self.num_values += num_values as u64;
        self.num_closed_gates += zeros.closed_gates as u64;
        self.num_zeros += zeros.zeros as u64;
    }

    /// The share of gates that were not positive; `None` if there were none.
    #[must_use]
    pub fn closed_gates(&self) -> Option<f64> {
        (self.num_values > 0).then(|| self.num_closed_gates as f64 / self.num_values as f64)
    }

    /// The share of values that were zero as int8; `None` if there were none.
    #[must_use]
    pub fn zeros(&self) -> Option<f64> {
        (self.num_values > 0).then(|| self.num_zeros as f64 / self.num_values as f64)
    }
}

impl std::iter::Sum for FfnActivity {
    fn sum<I: Iterator<Item = Self>>(activities: I) -> Self {
        activities.fold(Self::default(), |sum, more| Self {
            num_values: sum.num_values + more.num_values,
            num_closed_gates: sum.num_closed_gates + more.num_closed_gates,
            num_zeros: sum.num_zeros + more.num_zeros,
        })
    }
}
