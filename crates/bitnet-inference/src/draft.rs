//! Drafts: tokens that may follow, guessed from earlier text, and how many of them are worth a
//! check.
//!
//! A step checks a draft together with the token before it. Each checked token costs a row of that
//! step, so a draft pays only if enough of it is right. A [`Drafter`] with a fixed length does not
//! ask. One that adapts drafts only where it expects more tokens for the time:
//!
//! - How often a guess is right it learns from every token of its sequence, by the length of the
//!   match: also without a draft, the token that is sampled shows whether the guess was right. So
//!   text that does not repeat itself teaches it to draft nothing, at no cost.
//! - What a step costs, the engine measures ([`StepCosts`]).
//! - Both are estimates. A drafter therefore expects to lose, where it loses, no more time than it
//!   has won before, plus a small share of the time of its sequence.

mod costs;
mod lookup;

use bitnet_tokenizers::TokenId;

pub(crate) use costs::StepCosts;
use lookup::Lookup;

/// Maximum number of tokens to guess ahead.
pub const DRAFT_MAX: usize = 16;

/// The least expected gain of a draft: tokens per time, in those without drafts.
const GAIN_MIN: f32 = 1.15;
/// Time that a drafter may lose at the start, in steps with one row, and for each token more.
const CREDIT_FIRST: f32 = 1.0;
const CREDIT_PER_TOKEN: f32 = 0.01;
/// The most time that it keeps of what it has won.
const CREDIT_MAX: f32 = 16.0;

/// Decides the drafts of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Drafter {
    /// The longest draft; 0 for none at all.
    len_max: usize,
    adapts: bool,
    lookup: Lookup,
    chances: Chances,
    /// The time that drafts may lose, in steps with one row.
    credit: f32,
    /// The step of the last draft.
    step: DraftedStep,
    /// Tokens of the last draft and how many were right, until `credit` counts them.
    unpaid: Option<(usize, usize)>,
}

/// What a drafter must know about the step that a draft is for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DraftedStep {
    /// Other sequences in the step; each gets a token.
    pub others: usize,
    /// Their rows.
    pub other_rows: usize,
    /// Whether a refused draft makes the next step compute tokens again, as with a state.
    pub recomputes: bool,
}

impl DraftedStep {
    /// The cost of a step with `rows` rows of this sequence, in steps with one row of it.
    fn cost(self, rows: usize, costs: &StepCosts) -> f32 {
        costs.of(self.other_rows + rows) / costs.of(self.other_rows + 1)
    }

    /// The cost of recomputation after a draft of which only the first `accepted` tokens were right:
    /// the next step computes the token before the draft, these, and the one sampled after them.
    fn recomputation(self, accepted: usize, costs: &StepCosts) -> f32 {
        match self.recomputes {
            true => self.cost(accepted + 2, costs) - 1.0,
            false => 0.0,
        }
    }
}

impl Drafter {
    /// Drafts of at most `len_max` tokens in a text of at most `tokens_max` tokens; all of this
    /// length unless the drafter adapts.
    pub fn new(len_max: usize, adapts: bool, tokens_max: usize) -> Self {
        Self {
            len_max: len_max.min(DRAFT_MAX),
            adapts,
            lookup: Lookup::new(if len_max > 0 { tokens_max } else { 0 }),
            chances: Chances::new(),
            credit: CREDIT_FIRST,
            step: DraftedStep::default(),
            unpaid: None,
        }
    }

    /// Reads the prompt.
    pub fn read(&mut self, prompt: &[TokenId]) {
        if self.len_max > 0 {
            (1..=prompt.len()).for_each(|end| self.lookup.push(&prompt[..end]));
        }
    }

    /// Learns from the last of `tokens`, which was sampled.
    pub fn push(&mut self, tokens: &[TokenId]) {
        if self.len_max == 0 {
            return;
        }
        if let (Some(guess), Some(last)) = (self.lookup.next(tokens), tokens.last()) {
            self.chances.learn(self.lookup.len(), guess == *last);
        }
        self.lookup.push(tokens);
        self.credit = (self.credit + CREDIT_PER_TOKEN).min(CREDIT_MAX);
    }

    /// Adds a draft of at most `most` tokens after `tokens` to `draft`.
    pub fn draft(
        &mut self,
        tokens: &[TokenId],
        most: usize,
        step: DraftedStep,
        costs: &StepCosts,
        draft: &mut Vec<TokenId>,
    ) {
        self.pay(costs);
        self.step = step;
        let most = most.min(self.len_max);
        let len = match self.adapts {
            true => self.best_len(most, costs),
            false => most,
        };
        self.lookup.draft(tokens, len, draft);
    }

    /// Notes that the first `accepted` of the last draft's `drafted` tokens were right.
    pub fn checked(&mut self, drafted: usize, accepted: usize) {
        self.unpaid = Some((drafted, accepted));
    }

    /// Counts the time that the last draft won or lost, now that its step is measured.
    fn pay(&mut self, costs: &StepCosts) {
        let Some((drafted, accepted)) = self.unpaid.take() else {
            return;
        };
        let again = match accepted < drafted {
            true => self.step.recomputation(accepted, costs),
            false => 0.0,
        };
        let won = (1 + accepted) as f32 - self.step.cost(1 + drafted, costs) - again;
        self.credit = (self.credit + won).min(CREDIT_MAX);
    }

    /// The length of the draft, at most `most`, with the largest expected number of tokens for the
    /// time; 0 if none gains enough.
    fn best_len(&self, most: usize, costs: &StepCosts) -> usize {
        if self.lookup.len() == 0 {
            return 0;
        }
        let step = self.step;
        let without = 1.0 + step.others as f32;
        let (mut best, mut best_gain) = (0, GAIN_MIN);
        // The probability that all tokens so far are right, their expected number, and the expected
        // cost of recomputation.
        let (mut all_right, mut expected, mut again) = (1.0, 0.0, 0.0);
        for len in 1..=most {
            let right = self.chances.of(self.lookup.len() + len - 1);
            again += all_right * (1.0 - right) * step.recomputation(len - 1, costs);
            all_right *= right;
            expected += all_right;
            // Few lengths, so that the cost of each is measured often; kernels like full tiles.
            if !(len + 1).is_power_of_two() && len != most {
                continue;
            }
            let cost = step.cost(1 + len, costs);
            let gain = (without + expected) / without / (cost + again);
            if gain > best_gain && self.risk(len, costs) <= self.credit {
                (best, best_gain) = (len, gain);
            }
        }
        best
    }

    /// The expected loss of time of a draft with `len` tokens, without the cases where it saves time.
    fn risk(&self, len: usize, costs: &StepCosts) -> f32 {
        let step = self.step;
        let cost = costs.at_most(step.other_rows + 1 + len) / costs.of(step.other_rows + 1);
        let (mut all_right, mut risk) = (1.0, 0.0);
        for accepted in 0..len {
            let right = self.chances.of(self.lookup.len() + accepted);
            let lost = cost + step.recomputation(accepted, costs) - (1 + accepted) as f32;
            risk += all_right * (1.0 - right) * lost.max(0.0);
            all_right *= right;
        }
        risk
    }
}

/// How often guesses are right, by the length of their match: longer matches continue more often.
#[derive(Clone, Debug)]
struct Chances {
    /// Sums for matches of 2 and 3 tokens, 4 to 7, 8 to 15, 16 to 31, and more.
    sums: [Sum; 5],
}

/// Right guesses, and all; older ones count less.
#[derive(Clone, Copy, Debug)]
struct Sum {
    right: f32,
    all: f32,
}

impl Chances {
    /// What a guess counts more than the one after it.
    const FADE: f32 = 31.0 / 32.0;
    /// Number of guesses that the first chances count as.
    const FIRST_ALL: f32 = 4.0;
    /// The first chances.
    const FIRST: [f32; 5] = [0.3, 0.5, 0.7, 0.85, 0.95];

    fn new() -> Self {
        Self {
            sums: Self::FIRST.map(|chance| Sum {
                right: chance * Self::FIRST_ALL,
                all: Self::FIRST_ALL,
            }),
        }
    }

    fn place(match_len: usize) -> usize {
        (match_len.max(2).ilog2() as usize - 1).min(4)
    }

    /// The probability that the guess after a match is right.
    fn of(&self, match_len: usize) -> f32 {
        let Sum { right, all } = self.sums[Self::place(match_len)];
        right / all
    }

    fn learn(&mut self, match_len: usize, is_right: bool) {
        let sum = &mut self.sums[Self::place(match_len)];
        sum.right = Self::FADE * sum.right + f32::from(u8::from(is_right));
        sum.all = Self::FADE * sum.all + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens for the time, in those without drafts, of a model that writes `text` after its first
    /// `prompt` tokens with adaptive drafts, where a step takes the time that `cost` says for its
    /// rows. `recomputes`: as with a recurrent state.
    fn gain(text: &[u32], prompt: usize, recomputes: bool, cost: fn(usize) -> f32) -> f32 {
        let text: Vec<TokenId> = text.iter().map(|&token| TokenId(token)).collect();
        let (mut costs, mut drafter) = (StepCosts::new(), Drafter::new(16, true, text.len()));
        drafter.read(&text[..prompt]);
        let (mut end, mut time, mut redo) = (prompt, 0.0, 0);
        let step = DraftedStep {
            recomputes,
            ..DraftedStep::default()
        };
        let mut draft = Vec::new();
        while end < text.len() {
            draft.clear();
            if redo == 0 {
                let most = text.len() - end - 1;
                drafter.draft(&text[..end], most, step, &costs, &mut draft);
            }
            let right = draft.iter().zip(&text[end..]).take_while(|(a, b)| a == b);
            let accepted = right.count();
            let rows = 1 + redo + draft.len();
            for _ in 0..=accepted {
                end += 1;
                drafter.push(&text[..end]);
            }
            if !draft.is_empty() {
                drafter.checked(draft.len(), accepted);
            }
            redo = match recomputes && accepted < draft.len() {
                true => 1 + accepted,
                false => 0,
            };
            time += cost(rows);
            costs.measured(rows, cost(rows) * 0.01);
        }
        (text.len() - prompt) as f32 / time
    }

    /// A large model on a GPU, one on a CPU, and a small one in the CPU's caches.
    const COSTS: [fn(usize) -> f32; 3] = [
        |rows| 1.0 + 0.03 * (rows - 1) as f32,
        |rows| 1.0 + 0.35 * (rows - 1) as f32,
        |rows| rows as f32,
    ];

    /// Tokens below `vocab`, the small ones more often, as in texts.
    fn random(len: usize, vocab: u64, seed: u64) -> Vec<u32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        };
        let mut token = || {
            let below = 1 + next() % vocab;
            (next() % below) as u32
        };
        (0..len).map(|_| token()).collect()
    }

    #[test]
    fn text_that_does_not_repeat_itself_is_not_slowed_down() {
        for (cost, vocab) in COSTS.into_iter().flat_map(|cost| [(cost, 10), (cost, 300)]) {
            for (seed, recomputes) in [(1, false), (2, true)] {
                let gain = gain(&random(600, vocab, seed), 20, recomputes, cost);
                assert!(gain > 0.98, "{}: {vocab}", gain);
            }
        }
    }

    #[test]
    fn text_that_breaks_off_whenever_it_repeats_itself_is_hardly_slowed_down() {
        let known = random(200, 1000, 3);
        let mut text = known.clone();
        for part in 0..60 {
            text.extend(&known[part..part + 12]);
            text.extend([2000 + part as u32; 2]);
        }
        for cost in COSTS {
            for recomputes in [false, true] {
                let gain = gain(&text, 200, recomputes, cost);
                assert!(gain > 0.97, "{}", gain);
            }
        }
    }

    #[test]
    fn a_text_with_few_changes_is_written_much_faster() {
        let before = random(900, 1000, 4);
        let mut text = before.clone();
        for part in before.chunks(90) {
            text.extend([&part[..40], &[3000], &part[42..]].concat());
        }
        let gain = |cost, recomputes| gain(&text, 900, recomputes, cost);
        assert!(gain(COSTS[0], false) > 5.0 && gain(COSTS[0], true) > 4.0);
        assert!(gain(COSTS[1], false) > 1.9 && gain(COSTS[1], true) > 1.8);
        assert!(gain(COSTS[2], false) > 0.98 && gain(COSTS[2], true) > 0.98);
    }

    #[test]
    fn a_drafter_that_does_not_adapt_keeps_its_length() {
        let text: Vec<TokenId> = [7, 8, 7, 8].map(TokenId).to_vec();
        let mut draft = Vec::new();
        let mut drafter = Drafter::new(5, false, 10);
        drafter.read(&text);
        let (step, costs) = (DraftedStep::default(), StepCosts::new());
        drafter.draft(&text, 9, step, &costs, &mut draft);
        assert_eq!(draft, [7, 8, 7, 8, 7].map(TokenId));
        draft.clear();
        drafter.checked(5, 0);
        drafter.draft(&text, 3, step, &costs, &mut draft);
        assert_eq!(draft.len(), 3, "no room for more");
        draft.clear();
        let mut none = Drafter::new(0, true, 10);
        none.read(&text);
        none.push(&text);
        none.draft(&text, 9, step, &costs, &mut draft);
        assert!(draft.is_empty());
    }

    #[test]
    fn other_sequences_in_a_step_count() {
        let text: Vec<TokenId> = (0..40).map(|i| TokenId(i % 4)).collect();
        let len = |others, other_rows| {
            let mut costs = StepCosts::new();
            costs.measured(1, 1.0);
            (0..20).for_each(|_| costs.measured(4, 3.9));
            let mut drafter = Drafter::new(16, true, 100);
            drafter.read(&text);
            drafter.credit = CREDIT_MAX;
            let (mut draft, step) = (
                Vec::new(),
                DraftedStep {
                    others,
                    other_rows,
                    recomputes: false,
                },
            );
            drafter.draft(&text, 3, step, &costs, &mut draft);
            draft.len()
        };
        // A step with three guesses takes 3.9 times as long as one without, so one guess is better.
        // Beside 17 rows three guesses add little.
        assert_eq!((len(0, 0), len(1, 16)), (1, 3));
    }
}
