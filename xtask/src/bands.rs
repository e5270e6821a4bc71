//! Regression bands: up to 5 % is accepted, up to 10 % watched, up to 20 % investigated, above that
//! escalated. If two measurements of one program differ by more than a limit, that noise replaces
//! the limit.

use std::process::ExitCode;

/// What to do about a change, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    Accepted,
    Watch,
    Investigate,
    Escalate,
}

impl Band {
    /// The band of a figure that became worse by `change`, a share of its baseline (negative if it
    /// improved). `noise` is the share by which two measurements of one program differ. NaN is
    /// escalated.
    pub fn of(change: f64, noise: f64) -> Self {
        let within = |limit: f64| change <= limit.max(noise);
        match () {
            () if within(0.05) => Self::Accepted,
            () if within(0.10) => Self::Watch,
            () if within(0.20) => Self::Investigate,
            () => Self::Escalate,
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "ok",
            Self::Watch => "watch",
            Self::Investigate => "investigate",
            Self::Escalate => "escalate",
        }
    }

    /// The exit code of a comparison whose worst figure is in this band. 2 is reserved for wrong
    /// usage.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Accepted | Self::Watch => ExitCode::SUCCESS,
            Self::Investigate => ExitCode::from(10),
            Self::Escalate => ExitCode::from(20),
        }
    }
}

/// A figure of two runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub baseline: f64,
    pub current: f64,
}

impl Pair {
    /// The regression of a figure that should be small (a time, a size), as a share of the
    /// baseline.
    pub fn growth(self) -> f64 {
        (self.current - self.baseline) / self.baseline
    }

    /// The regression of a figure that should be large (a rate), as a share of the baseline.
    pub fn loss(self) -> f64 {
        (self.baseline - self.current) / self.baseline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_fall_into_their_bands() {
        for (change, band) in [
            (-0.5, Band::Accepted),
            (0.05, Band::Accepted),
            (0.051, Band::Watch),
            (0.10, Band::Watch),
            (0.101, Band::Investigate),
            (0.20, Band::Investigate),
            (0.201, Band::Escalate),
            (f64::INFINITY, Band::Escalate),
            (f64::NAN, Band::Escalate),
        ] {
            assert_eq!(Band::of(change, 0.0), band, "{change}");
        }
    }

    #[test]
    fn noise_widens_the_bands_that_it_exceeds() {
        assert_eq!(Band::of(0.12, 0.12), Band::Accepted);
        assert_eq!(Band::of(0.13, 0.12), Band::Investigate);
        assert_eq!(Band::of(0.25, 0.30), Band::Accepted);
        assert_eq!(Band::of(0.31, 0.30), Band::Escalate);
        assert_eq!(Band::of(0.06, 0.01), Band::Watch);
    }

    #[test]
    fn times_regress_upwards_and_rates_downwards() {
        let pair = Pair {
            baseline: 10.0,
            current: 12.0,
        };
        assert!((pair.growth() - 0.2).abs() < 1e-12 && (pair.loss() + 0.2).abs() < 1e-12);
    }
}
