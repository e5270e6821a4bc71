//! SentencePiece as in llama.cpp: merges the neighbours whose union has the highest score, and
//! encodes characters without a token as bytes.

use crate::bpe::{char_ranges, no_token_for, push_piece};
use crate::error::Result;
use crate::merge::Merger;
use crate::token::TokenId;
use crate::vocabulary::{NO_TOKEN, Vocabulary};

/// The scores of a vocabulary.
pub(crate) struct Spm {
    /// One for each token, inverted so that lower is better.
    priorities: Vec<u32>,
    unknown: Option<u32>,
}

impl Spm {
    /// Takes the scores in the order of the token ids.
    pub(crate) fn new(scores: &[f32], unknown: Option<u32>) -> Self {
        Self {
            priorities: scores.iter().map(|&score| priority(score)).collect(),
            unknown,
        }
    }

    /// Appends the tokens of a text whose spaces are plain spaces.
    pub(crate) fn encode_text(
        &self,
        vocabulary: &Vocabulary,
        text: &[u8],
        merger: &mut Merger,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        merger.clear();
        for (start, len) in char_ranges(text) {
            let id = vocabulary.id(&text[start..start + len]);
            merger.push(id.unwrap_or(NO_TOKEN), start, len);
        }
        merger.merge(|left, right| {
            let len = (left.len + right.len) as usize;
            if len > vocabulary.max_piece_len() {
                return None;
            }
            let id = vocabulary.id(&text[left.start as usize..][..len])?;
            Some((self.priorities[id as usize], id))
        });
        for symbol in merger.symbols() {
            let piece = &text[symbol.start as usize..][..symbol.len as usize];
            if !push_piece(vocabulary, symbol.id, piece, out) {
                out.push(TokenId(self.unknown.ok_or_else(|| no_token_for(piece))?));
            }
        }
        Ok(())
    }
}

/// A number that orders floats from the highest to the lowest; both zeros are one.
fn priority(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::priority;

    #[test]
    fn a_higher_score_merges_first() {
        let scores = [f32::INFINITY, 2.5, 0.0, -1.0, -1000.0, f32::NEG_INFINITY];
        assert!(
            scores
                .windows(2)
                .all(|pair| priority(pair[0]) < priority(pair[1]))
        );
        assert_eq!(priority(0.0), priority(-0.0));
    }
}
