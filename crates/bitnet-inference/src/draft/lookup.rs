//! [`Lookup`]: finds what followed the last tokens of a text earlier in it (prompt lookup, Saxena
//! 2023). Hash chains, as compressors have them: a new token costs a few comparisons, however long
//! the text is.

use bitnet_tokenizers::TokenId;

/// The shortest match: pairs of tokens are the keys of the chains.
const PAIR: usize = 2;
/// Maximum number of earlier pairs to compare with.
const CANDIDATES_MAX: usize = 16;
/// Matches are compared up to this length.
const COMPARED_MAX: usize = 32;
/// Maximum number of chains.
const CHAINS_MAX: usize = 1 << 14;

/// Follows an earlier occurrence of the end of a text. Positions are counts of tokens: position `p`
/// is behind the first `p` tokens, so `tokens[p]` followed there.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    /// The latest position behind a pair of tokens, by the pair's hash; 0 for none.
    latest: Vec<u32>,
    /// For each position, the next older one with the same hash; 0 for none.
    older: Vec<u32>,
    /// The position of the match; 0 for none.
    position: usize,
    /// Number of tokens before it that equal the end of the text.
    len: usize,
}

impl Lookup {
    /// An index for a text of at most `tokens_max` tokens. It allocates nothing later.
    pub fn new(tokens_max: usize) -> Self {
        let num_chains = tokens_max.clamp(1, CHAINS_MAX).next_power_of_two();
        Self {
            latest: vec![0; num_chains],
            older: vec![0; tokens_max + 1],
            position: 0,
            len: 0,
        }
    }

    /// The length of the present match; 0 for none.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The token that followed the match.
    pub fn next(&self, tokens: &[TokenId]) -> Option<TokenId> {
        (self.len > 0).then(|| tokens[self.position])
    }

    /// Takes the last of `tokens` into account. Keeps the present match while it continues, and
    /// looks for the longest one otherwise, the latest among equals.
    pub fn push(&mut self, tokens: &[TokenId]) {
        let (end, last) = (tokens.len(), tokens[tokens.len() - 1]);
        if self.next(tokens) == Some(last) {
            self.position += 1;
            self.len += 1;
        } else {
            (self.position, self.len) = (0, 0);
        }
        if end < PAIR {
            return;
        }
        let chain = self.chain(&tokens[end - PAIR..]);
        if self.len == 0 {
            self.find(tokens, self.latest[chain]);
        }
        self.older[end] = self.latest[chain];
        self.latest[chain] = u32::try_from(end).unwrap_or(0);
    }

    /// Adds the `most` tokens that followed the match to `draft`. Where the text ends it begins
    /// again at the match, because a text that repeats itself usually continues to.
    pub fn draft(&self, tokens: &[TokenId], most: usize, draft: &mut Vec<TokenId>) {
        if self.len > 0 {
            draft.extend(tokens[self.position..].iter().cycle().take(most));
        }
    }

    fn chain(&self, pair: &[TokenId]) -> usize {
        let key = u64::from(pair[0].0) << 32 | u64::from(pair[1].0);
        // Fibonacci hashing: the upper bits of the product depend on all bits of the key.
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.latest.len() - 1)
    }

    fn find(&mut self, tokens: &[TokenId], latest: u32) {
        let mut candidate = latest as usize;
        for _ in 0..CANDIDATES_MAX {
            if candidate == 0 {
                return;
            }
            let before = tokens[..candidate].iter().rev();
            let common = before.zip(tokens.iter().rev()).take(COMPARED_MAX);
            let len = common.take_while(|(a, b)| a == b).count();
            // Pairs with the same hash need not be equal.
            if len >= PAIR && len > self.len {
                (self.position, self.len) = (candidate, len);
            }
            candidate = self.older[candidate] as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a lookup in a text drafts, and the length of its match.
    fn draft(text: &[u32], most: usize) -> (Vec<u32>, usize) {
        let tokens: Vec<TokenId> = text.iter().map(|&token| TokenId(token)).collect();
        let mut lookup = Lookup::new(tokens.len());
        (1..=tokens.len()).for_each(|end| lookup.push(&tokens[..end]));
        let mut draft = Vec::new();
        lookup.draft(&tokens, most, &mut draft);
        (draft.iter().map(|token| token.0).collect(), lookup.len())
    }

    #[test]
    fn a_draft_is_what_followed_the_longest_earlier_match() {
        // `2 3` occurs twice; the match of three tokens is the earlier one.
        let text = [1, 2, 3, 4, 5, 9, 2, 3, 6, 7, 1, 2, 3];
        assert_eq!(draft(&text, 3), (vec![4, 5, 9], 3));
        assert_eq!(draft(&[1, 2, 3, 4], 3), (vec![], 0));
        assert_eq!(draft(&[5, 6, 7, 5, 6], 2), (vec![7, 5], 2));
        assert_eq!(draft(&[5, 6, 1, 5, 6, 2, 5, 6], 1), (vec![2], 2), "latest");
    }

    #[test]
    fn a_loop_is_drafted_on_and_on() {
        assert_eq!(draft(&[1, 2, 1, 2, 1, 2], 5), (vec![1, 2, 1, 2, 1], 4));
        assert_eq!(draft(&[7, 7, 7, 7, 7, 7], 3).0, [7, 7, 7]);
    }

    #[test]
    fn a_match_grows_with_each_right_token_and_ends_with_a_wrong_one() {
        let text = [1, 2, 3, 4, 5, 6, 8, 2, 3, 4, 5, 9];
        let lens: Vec<usize> = (8..=text.len())
            .map(|end| draft(&text[..end], 0).1)
            .collect();
        assert_eq!(lens, [0, 2, 3, 4, 0]);
    }

    #[test]
    fn every_match_is_found_in_a_text_with_more_pairs_than_chains() {
        let num_pairs = CHAINS_MAX as u32 + 5000;
        let text: Vec<u32> = (0..num_pairs).chain([100, 101, 102]).collect();
        assert_eq!(draft(&text, 2), (vec![103, 104], 3));
    }

    #[test]
    fn an_empty_text_has_no_match() {
        assert_eq!(draft(&[], 3), (vec![], 0));
        assert_eq!(draft(&[1], 3), (vec![], 0));
    }
}
