//! Finds special tokens in a text: at each position the longest one, from left to right.

use crate::vocabulary::TokenKind;

/// A token that is found by its text before the text is split into words.
#[derive(Clone, Debug)]
pub(crate) struct SpecialToken {
    pub(crate) id: u32,
    pub(crate) text: Box<str>,
    pub(crate) kind: TokenKind,
    /// Whether the token absorbs the white space before it.
    pub(crate) strip_left: bool,
    /// Whether the token absorbs the white space after it.
    pub(crate) strip_right: bool,
    /// Whether the token does not match inside a word.
    pub(crate) single_word: bool,
    /// Whether to search for the token in normalized text, too.
    pub(crate) is_normalized: bool,
}

impl SpecialToken {
    /// Whether the token matches only where the caller allows special tokens.
    pub(crate) fn is_guarded(&self) -> bool {
        self.kind != TokenKind::UserDefined
    }
}

/// All special tokens of a vocabulary, sorted by their text: the tokens that share a prefix form a
/// range, which narrows with each byte.
pub(crate) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    first_bytes: Box<[bool; 256]>,
}

impl SpecialTokens {
    /// Takes the tokens in any order; empty texts are dropped, and of two tokens with the same text
    /// the higher id counts.
    pub(crate) fn new(mut tokens: Vec<SpecialToken>) -> Self {
        tokens.retain(|token| !token.text.is_empty());
        tokens.sort_by(|a, b| a.text.cmp(&b.text).then(b.id.cmp(&a.id)));
        tokens.dedup_by(|later, kept| later.text == kept.text);
        let mut first_bytes = Box::new([false; 256]);
        for token in &tokens {
            first_bytes[usize::from(token.text.as_bytes()[0])] = true;
        }
        Self {
            tokens,
            first_bytes,
        }
    }

    /// The token with this text.
    pub(crate) fn get(&self, text: &str) -> Option<&SpecialToken> {
        let index = self
            .tokens
            .binary_search_by(|token| (*token.text).cmp(text))
            .ok()?;
        Some(&self.tokens[index])
    }

    /// The first token at or after `start` for which `allowed(token, place)` is true, and the
    /// position of its first byte.
    pub(crate) fn find(
        &self,
        text: &str,
        start: usize,
        allowed: impl Fn(&SpecialToken, usize) -> bool,
    ) -> Option<(&SpecialToken, usize)> {
        let bytes = text.as_bytes();
        (start..bytes.len())
            .filter(|&place| self.first_bytes[usize::from(bytes[place])])
            .find_map(|place| {
                let mut longest = None;
                self.walk(&bytes[place..], |token| {
                    if allowed(token, place) {
                        longest = Some(token);
                    }
                });
                longest.map(|token| (token, place))
            })
    }

    /// Calls `found` for each token that `bytes` begins with, shortest first.
    fn walk<'a>(&'a self, bytes: &[u8], mut found: impl FnMut(&'a SpecialToken)) {
        let mut range = &self.tokens[..];
        for (depth, &byte) in bytes.iter().enumerate() {
            let byte_at = |token: &SpecialToken| token.text.as_bytes()[depth];
            // Tokens that end here sort first; they were reported when their last byte was read.
            let ended = range.partition_point(|token| token.text.len() == depth);
            range = &range[ended..];
            let from = range.partition_point(|token| byte_at(token) < byte);
            let to = range.partition_point(|token| byte_at(token) <= byte);
            range = &range[from..to];
            match range.first() {
                None => return,
                Some(token) if token.text.len() == depth + 1 => found(token),
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(texts: &[&str]) -> SpecialTokens {
        let token = |(id, text): (usize, &&str)| SpecialToken {
            id: id as u32,
            text: (*text).into(),
            kind: TokenKind::Control,
            strip_left: false,
            strip_right: false,
            single_word: false,
            is_normalized: false,
        };
        SpecialTokens::new(texts.iter().enumerate().map(token).collect())
    }

    fn found(texts: &[&str], text: &str) -> Option<(u32, usize)> {
        tokens(texts)
            .find(text, 0, |_, _| true)
            .map(|(token, place)| (token.id, place))
    }

    #[test]
    fn the_leftmost_then_longest_token_is_found() {
        assert_eq!(found(&["<a>", "<a>>", "<b>"], "x<a>>"), Some((1, 1)));
        assert_eq!(found(&["<a>", "<a>>", "<b>"], "x<b<a>"), Some((0, 3)));
        assert_eq!(found(&["<a>", ""], "x<a"), None);
    }
}
