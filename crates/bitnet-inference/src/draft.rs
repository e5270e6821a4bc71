//! Drafts: tokens that may follow, guessed from earlier text, and how many of them are worth a
//! check.
//!
//! A step checks a draft together with the token before it. Each checked token costs a row of that
//! step, so a draft pays only if enough of it is right. [`Drafter`] learns that from the drafts of
//! its own sequence: it makes drafts longer while they are right, and pauses after those that are
//! mostly wrong. It looks at no clock, so the same request always makes the same drafts.

use std::ops::RangeInclusive;

use bitnet_tokenizers::TokenId;

/// The shortest and the longest run of tokens that is the key of a lookup.
const KEY: RangeInclusive<usize> = 2..=4;
/// The same for a drafter that adapts: runs of two tokens recur by chance too often.
const ADAPTIVE_KEY: RangeInclusive<usize> = 3..=6;
/// The length of the first draft of a drafter that adapts, and of the first one after a pause.
const FIRST_LEN: usize = 4;
/// The pauses in steps after drafts that were wrong, the first one and the longest one: the cost of
/// a wrong draft is spread over as many tokens.
const PAUSE: RangeInclusive<usize> = 4..=64;

/// Decides how long the next draft of a sequence may be.
#[derive(Clone, Debug)]
pub(crate) struct Drafter {
    /// The longest draft; 0 for none at all.
    len_max: usize,
    adapts: bool,
    /// The longest draft at present.
    len: usize,
    /// Steps until the next draft.
    pause: usize,
    /// The pause after the next draft that is mostly wrong.
    next_pause: usize,
}

impl Drafter {
    /// Drafts of at most `len_max` tokens; all of this length unless the drafter adapts.
    pub fn new(len_max: usize, adapts: bool) -> Self {
        Self {
            len_max,
            adapts,
            len: if adapts {
                len_max.min(FIRST_LEN)
            } else {
                len_max
            },
            pause: 0,
            next_pause: *PAUSE.start(),
        }
    }

    /// Maximum length of a draft in the step that begins.
    pub fn begin_step(&mut self) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.len
    }

    /// Learns from a draft of `drafted` tokens, the first `accepted` of which were right.
    pub fn checked(&mut self, drafted: usize, accepted: usize) {
        if !self.adapts || drafted == 0 {
            return;
        }
        if accepted == drafted {
            self.len = (2 * self.len.max(drafted)).min(self.len_max);
            self.next_pause = *PAUSE.start();
        } else if 2 * accepted >= drafted {
            self.len = accepted;
            self.next_pause = *PAUSE.start();
        } else {
            self.len = self.len_max.min(FIRST_LEN);
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(*PAUSE.end());
        }
    }

    /// Looks up the tokens that followed an earlier occurrence of the last tokens (prompt lookup,
    /// Saxena 2023), and adds at most `most` of them to `draft`: the longest match first, the
    /// latest among equals.
    pub fn look_up(&self, tokens: &[TokenId], most: usize, draft: &mut Vec<TokenId>) {
        let keys = if self.adapts { ADAPTIVE_KEY } else { KEY };
        for key in keys.rev().filter(|key| tokens.len() > *key) {
            let (before, last) = tokens.split_at(tokens.len() - key);
            // A match may overlap the key itself, but must have something after it.
            let found = (0..before.len())
                .rev()
                .find(|&at| tokens[at..at + key] == *last);
            if let Some(at) = found {
                repeat(&tokens[at + key..], most, draft);
                return;
            }
        }
    }
}

/// Adds `most` tokens to `draft`: the tokens after a match, and the same ones again if there are
/// fewer, since a text that repeats itself usually continues to repeat itself.
fn repeat(after: &[TokenId], most: usize, draft: &mut Vec<TokenId>) {
    draft.extend(after.iter().cycle().take(most));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(drafter: &Drafter, tokens: &[u32], most: usize) -> Vec<u32> {
        let tokens: Vec<TokenId> = tokens.iter().map(|&token| TokenId(token)).collect();
        let mut draft = Vec::new();
        drafter.look_up(&tokens, most, &mut draft);
        draft.iter().map(|token| token.0).collect()
    }

    #[test]
    fn a_draft_is_what_followed_the_longest_earlier_match() {
        let fixed = Drafter::new(8, false);
        // `2 3` occurs twice; the match of three tokens is the earlier one.
        let text = [1, 2, 3, 4, 5, 9, 2, 3, 6, 7, 1, 2, 3];
        assert_eq!(draft(&fixed, &text, 3), [4, 5, 9]);
        assert_eq!(draft(&fixed, &[1, 2, 3, 4], 3), [0; 0]);
        assert_eq!(draft(&fixed, &[5, 6, 7, 5, 6], 2), [7, 5]);
        let adaptive = Drafter::new(8, true);
        assert_eq!(draft(&adaptive, &[5, 6, 7, 5, 6], 2), [0; 0], "two tokens");
        assert_eq!(draft(&adaptive, &[4, 5, 6, 7, 4, 5, 6], 2), [7, 4]);
    }

    #[test]
    fn a_loop_is_drafted_on_and_on() {
        let fixed = Drafter::new(8, false);
        assert_eq!(draft(&fixed, &[1, 2, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(draft(&fixed, &[7, 7, 7, 7, 7, 7], 3), [7, 7, 7]);
    }

    #[test]
    fn right_drafts_grow_and_wrong_ones_pause() {
        let mut drafter = Drafter::new(16, true);
        let mut lens = Vec::new();
        for _ in 0..4 {
            let len = drafter.begin_step();
            lens.push(len);
            drafter.checked(len, len);
        }
        assert_eq!(lens, [4, 8, 16, 16]);
        drafter.checked(16, 10);
        assert_eq!(drafter.begin_step(), 10, "mostly right");
        let mut steps = 0;
        for _ in 0..100 {
            steps += 1;
            while drafter.begin_step() == 0 {
                steps += 1;
            }
            drafter.checked(4, 0);
        }
        // Pauses of 4, 8, 16, 32, then of 64 steps; the loop does not wait for the last one.
        assert_eq!(steps, 100 + 60 + 95 * 64);
    }

    #[test]
    fn a_drafter_that_does_not_adapt_keeps_its_length() {
        let mut drafter = Drafter::new(5, false);
        drafter.checked(5, 0);
        assert_eq!(drafter.begin_step(), 5);
        assert_eq!(Drafter::new(0, true).begin_step(), 0);
    }
}
