//! Stop conditions: a set of token ids with constant-time look-up, and strings that may span
//! tokens.

use std::ops::Range;

use bitnet_tokenizers::TokenId;

use crate::error::{Error, Result};

/// A set of token ids; a look-up costs one load and one shift.
#[derive(Clone, Debug, Default)]
pub struct TokenSet {
    bits: Vec<u64>,
}

impl TokenSet {
    /// The runs of consecutive ids of the set within a range.
    pub(crate) fn runs(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = self.next(at, range.end, true);
            at = self.next(start, range.end, false);
            (start < range.end).then_some(start..at)
        })
    }

    /// The first id from `at` on that is in the set, or that is not in it, as `is_member` says;
    /// `end` if there is none before `end`.
    fn next(&self, mut at: usize, end: usize, is_member: bool) -> usize {
        while at < end {
            let members = self.bits.get(at / 64).copied().unwrap_or(0);
            let wanted = if is_member { members } else { !members };
            let rest = wanted >> (at % 64);
            if rest != 0 {
                return end.min(at + rest.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }

    /// The set of the given ids.
    #[must_use]
    pub fn new(ids: &[TokenId]) -> Self {
        let mut set = Self::default();
        ids.iter().for_each(|id| set.insert(*id));
        set
    }

    /// Replaces the set by the ids whose bits are set, lowest bit first.
    pub fn assign(&mut self, words: &[u32]) {
        self.bits.clear();
        let halves =
            |pair: &[u32]| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
        self.bits.extend(words.chunks(2).map(halves));
    }

    /// Replaces the set by all ids below `len`.
    pub(crate) fn fill(&mut self, len: usize) {
        self.bits.clear();
        self.bits.resize(len / 64, u64::MAX);
        if !len.is_multiple_of(64) {
            self.bits.push((1 << (len % 64)) - 1);
        }
    }

    /// Replaces the set by one id.
    pub(crate) fn assign_one(&mut self, id: TokenId) {
        self.bits.clear();
        self.insert(id);
    }

    /// Adds an id.
    pub(crate) fn insert(&mut self, id: TokenId) {
        let word = id.0 as usize / 64;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (id.0 % 64);
    }

    /// Removes the ids of `others`, unless the set would be empty.
    pub(crate) fn remove(&mut self, others: &Self) {
        let left = |(word, other): (&u64, u64)| word & !other;
        let others = || others.bits.iter().copied().chain(std::iter::repeat(0));
        if self
            .bits
            .iter()
            .zip(others())
            .map(left)
            .all(|word| word == 0)
        {
            return;
        }
        for (word, other) in self.bits.iter_mut().zip(others()) {
            *word &= !other;
        }
    }

    /// Whether the id is in the set.
    #[must_use]
    pub fn contains(&self, id: TokenId) -> bool {
        self.bits
            .get(id.0 as usize / 64)
            .is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
    }
}

/// Maximum number of stop strings of one request.
const STOP_STRINGS_MAX: usize = 64;

/// Looks for stop strings in text that comes in pieces. Text that may be the beginning of one is
/// held back.
#[derive(Clone, Debug)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    pending: String,
    found: Option<usize>,
}

impl StopStrings {
    pub fn new(strings: Vec<String>) -> Result<Self> {
        if strings.len() > STOP_STRINGS_MAX {
            return Err(Error::StopString {
                index: STOP_STRINGS_MAX,
                problem: "at most 64 are possible",
            });
        }
        match strings.iter().position(String::is_empty) {
            Some(index) => Err(Error::StopString {
                index,
                problem: "it is empty",
            }),
            None => Ok(Self {
                strings,
                pending: String::new(),
                found: None,
            }),
        }
    }

    /// Adds text. Returns the text that is final, and whether a stop string directly follows it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.strings.is_empty() {
            return (text.to_owned(), false);
        }
        self.pending.push_str(text);
        let strings = self.strings.iter().enumerate();
        let found = strings.filter_map(|(index, stop)| Some((self.pending.find(stop)?, index)));
        if let Some((at, index)) = found.min() {
            self.found = Some(index);
            self.pending.truncate(at);
            return (std::mem::take(&mut self.pending), true);
        }
        let held = self
            .strings
            .iter()
            .map(|stop| overlap(&self.pending, stop))
            .max()
            .unwrap_or(0);
        let rest = self.pending.split_off(self.pending.len() - held);
        (std::mem::replace(&mut self.pending, rest), false)
    }

    /// The index of the stop string that was found.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// The held-back text, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}

/// The length of the longest suffix of `text` that is a prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&len| text.ends_with(&stop[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_the_members_of_a_range() {
        let ids = [0, 1, 5, 62, 63, 64, 65, 130, 191, 192];
        let set = TokenSet::new(&ids.map(TokenId));
        for (start, end) in [
            (0, 300),
            (0, 1),
            (1, 64),
            (2, 5),
            (63, 131),
            (192, 193),
            (193, 500),
            (7, 7),
        ] {
            let found: Vec<usize> = set.runs(start..end).flatten().collect();
            let expected: Vec<usize> = ids
                .iter()
                .map(|&id| id as usize)
                .filter(|id| (start..end).contains(id))
                .collect();
            assert_eq!(found, expected, "{start}..{end}");
        }
        assert_eq!(
            set.runs(0..300).collect::<Vec<_>>(),
            [0..2, 5..6, 62..66, 130..131, 191..193]
        );
    }

    #[test]
    fn a_stop_set_holds_exactly_its_ids() {
        let set = TokenSet::new(&[TokenId(0), TokenId(63), TokenId(64), TokenId(128_009)]);
        for id in [0, 63, 64, 128_009] {
            assert!(set.contains(TokenId(id)));
        }
        for id in [1, 62, 65, 128_008, u32::MAX] {
            assert!(!set.contains(TokenId(id)));
        }
    }

    proptest! {
        #[test]
        fn text_ends_before_the_first_stop_string_in_pieces_of_any_size(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..40, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| text.is_char_boundary(c) && c < text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut strings = StopStrings::new(stops.clone()).expect("no empty strings");
            let mut shown = String::new();
            let mut stopped = false;
            for pair in cuts.windows(2) {
                let (piece, found) = strings.push(&text[pair[0]..pair[1]]);
                shown.push_str(&piece);
                stopped = found;
                if found {
                    break;
                }
            }
            if !stopped {
                shown.push_str(&strings.finish());
            }
            // The stop string that is complete first ends the text; if several end there, the one
            // that begins first.
            let ends = |stop: &String| text.find(stop.as_str()).map(|at| at + stop.len());
            prop_assert_eq!(stopped, stops.iter().any(|s| text.contains(s.as_str())));
            if let Some(index) = strings.found() {
                prop_assert!(text[shown.len()..].starts_with(&stops[index]));
            }
            prop_assert_eq!(strings.found().is_some(), stopped);
            match stops.iter().filter_map(ends).min() {
                None => prop_assert_eq!(shown, text),
                Some(_) => prop_assert!(text.starts_with(&shown) && stops.iter().all(|s| !shown.contains(s.as_str()))),
            }
        }
    }
}
