//! [`StepCosts`]: how long a step with several rows takes, in steps with one row.
//!
//! The engine measures its own steps, because the ratio depends on the model, the machine and its
//! other work: with a large model eight rows may take twice the time of one, with a model in the
//! CPU's caches eight times. Times decide how many tokens are drafted and nothing else: drafts
//! change no token of an answer.

use super::DRAFT_MAX;
use crate::options::DRAFTING_MAX;

/// Maximum number of rows of a step with drafts.
const ROWS_MAX: usize = DRAFTING_MAX * (1 + DRAFT_MAX);
/// The expected cost of each row after the first, before a step with this number of rows
/// was measured.
const ROW_COST: f32 = 0.2;
/// The share of the way from a cost to the expected one that a step with one row goes: a cost that
/// was high once, and so is never measured again, is tried again after some hundred tokens.
const FORGET: f32 = 1.0 / 1024.0;

/// The costs of steps by their number of rows; one row costs 1.
#[derive(Clone, Debug)]
pub(crate) struct StepCosts {
    /// Seconds of a step with one row; `None` before the first.
    one_row: Option<f32>,
    of_rows: [f32; ROWS_MAX + 1],
    /// Whether a step with this number of rows was measured.
    is_measured: [bool; ROWS_MAX + 1],
}

impl StepCosts {
    pub fn new() -> Self {
        Self {
            one_row: None,
            of_rows: std::array::from_fn(expected),
            is_measured: [false; ROWS_MAX + 1],
        }
    }

    /// The cost of a step with `rows` rows.
    pub fn of(&self, rows: usize) -> f32 {
        self.of_rows[rows.min(ROWS_MAX)]
    }

    /// The same; for a number of rows that was never measured at least a step for each row.
    pub fn at_most(&self, rows: usize) -> f32 {
        let rows = rows.min(ROWS_MAX);
        match self.is_measured[rows] {
            true => self.of_rows[rows],
            false => self.of_rows[rows].max(rows as f32),
        }
    }

    /// Learns from a step that only decoded.
    pub fn measured(&mut self, rows: usize, seconds: f32) {
        match rows {
            1 => self.measured_one_row(seconds),
            2..=ROWS_MAX => self.measured_rows(rows, seconds),
            _ => {}
        }
    }

    /// Follows slow steps less than fast ones: other programs delay steps, and nothing speeds them
    /// up.
    fn measured_one_row(&mut self, seconds: f32) {
        let one_row = self.one_row.get_or_insert(seconds);
        let share = if seconds < *one_row { 0.25 } else { 0.0625 };
        *one_row += share * (seconds - *one_row);
        for (rows, cost) in self.of_rows.iter_mut().enumerate().skip(2) {
            *cost += FORGET * (expected(rows) - *cost);
        }
    }

    fn measured_rows(&mut self, rows: usize, seconds: f32) {
        let Some(one_row) = self.one_row.filter(|seconds| *seconds > 0.0) else {
            return;
        };
        let seen = (seconds / one_row).max(1.0);
        let before = self.of_rows[rows];
        // A step may have been interrupted, so it counts as at most twice the known cost, and the
        // first one as at most a step for each row.
        let cost = match std::mem::replace(&mut self.is_measured[rows], true) {
            true => 0.5 * (before + seen.min(2.0 * before)),
            false => seen.min(rows as f32),
        };
        self.of_rows[rows] = cost;
        // More rows take no less time, fewer rows no more.
        let (fewer, more) = self.of_rows.split_at_mut(rows);
        fewer.iter_mut().for_each(|other| *other = other.min(cost));
        more.iter_mut().for_each(|other| *other = other.max(cost));
    }
}

fn expected(rows: usize) -> f32 {
    1.0 + ROW_COST * rows.saturating_sub(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(a: f32, b: f32) -> bool {
        (a - b).abs() < 0.05 * b
    }

    #[test]
    fn costs_follow_the_steps() {
        let mut costs = StepCosts::new();
        assert!(is_near(costs.of(1), 1.0) && is_near(costs.of(8), 2.4));
        assert!(is_near(costs.at_most(8), 8.0));
        costs.measured(8, 1.0);
        assert!(is_near(costs.of(8), 2.4), "the time of one row is unknown");
        for _ in 0..20 {
            costs.measured(1, 0.010);
            costs.measured(8, 0.060);
        }
        assert!(is_near(costs.of(8), 6.0) && costs.at_most(8) == costs.of(8));
        assert!(costs.of(16) >= costs.of(8) && costs.of(4) <= costs.of(8));
        for _ in 0..20 {
            costs.measured(8, 0.015);
        }
        assert!(is_near(costs.of(8), 1.5) && costs.of(4) <= costs.of(8));
    }

    #[test]
    fn one_slow_step_changes_little() {
        let mut costs = StepCosts::new();
        (0..50).for_each(|_| costs.measured(1, 0.010));
        costs.measured(1, 10.0);
        (0..50).for_each(|_| costs.measured(1, 0.010));
        costs.measured(4, 0.012);
        costs.measured(4, 10.0);
        assert!(costs.of(4) < 2.0, "{}", costs.of(4));
    }

    #[test]
    fn a_cost_that_was_high_is_forgotten() {
        let mut costs = StepCosts::new();
        costs.measured(1, 0.010);
        (0..20).for_each(|_| costs.measured(8, 0.100));
        assert!(is_near(costs.of(8), 10.0));
        (0..5000).for_each(|_| costs.measured(1, 0.010));
        assert!(is_near(costs.of(8), 2.4), "{}", costs.of(8));
    }

    #[test]
    fn steps_of_any_size_are_accepted() {
        let mut costs = StepCosts::new();
        for rows in [0, 1, 2, ROWS_MAX, ROWS_MAX + 1, 1000] {
            costs.measured(rows, 0.0);
            costs.measured(rows, f32::MAX);
            assert!(costs.of(rows).is_finite());
        }
    }
}
