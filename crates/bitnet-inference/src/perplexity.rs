//! Measures how well a model predicts a text: the negative log-likelihood of its tokens.

use std::ops::Range;

use bitnet_kernels::math::{exp, ln_f64};
use bitnet_tokenizers::TokenId;

use crate::engine::Engine;
use crate::error::Result;

/// A number of predicted tokens, and their negative log-likelihood.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// The number of tokens.
    pub tokens: usize,
    /// The sum of −ln p over the tokens.
    pub nats: f64,
}

impl Likelihood {
    /// `e^(nats / tokens)`; NaN without tokens.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Adds the tokens of another text.
    pub fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.nats += other.nats;
    }
}

/// The windows over a text of `len` tokens, each with the number of its first tokens that only give
/// context. A text that fits into `context` is one window; windows over a longer text move by half
/// of `context`. Every token except the first is counted once.
pub fn windows(len: usize, context: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    let stride = (context / 2).max(1);
    let later = (1..)
        .map(move |i| i * stride)
        .take_while(move |start| start + context - stride < len);
    let first = (0..len.min(context), 1);
    std::iter::once(first)
        .chain(later.map(move |start| (start..len.min(start + context), context - stride)))
}

/// The chunks of llama.cpp's perplexity: all that fit one after the other, with `context` tokens
/// each. The tokens after the middle one count, so that half a chunk precedes each of them.
///
/// Returns each chunk with the number of its first tokens that do not count.
pub fn chunks(len: usize, context: usize) -> impl ExactSizeIterator<Item = (Range<usize>, usize)> {
    (0..len / context).map(move |i| (i * context..(i + 1) * context, context / 2 + 1))
}

/// The windows of llama.cpp's strided perplexity: `context + stride / 2` tokens each, at distances
/// of `stride`. The last `stride` tokens of each count, so that no token counts twice.
///
/// Returns each window with the number of its first tokens that do not count.
///
/// # Panics
/// If `stride` is 0, or not shorter than the windows.
pub fn strides(
    len: usize,
    context: usize,
    stride: usize,
) -> impl ExactSizeIterator<Item = (Range<usize>, usize)> {
    let window = context + stride / 2;
    assert!(
        stride > 0 && stride < window,
        "windows of {window} tokens that move by {stride}"
    );
    let count = len.saturating_sub(window).div_ceil(stride);
    (0..count).map(move |i| (i * stride..i * stride + window, window - stride))
}

impl Engine {
    /// The likelihood of every token of a text after the first one (usually BOS), in windows of
    /// `context` tokens.
    ///
    /// # Errors
    /// If a token is outside the vocabulary or `context` is more than the engine's.
    pub fn likelihood(&mut self, tokens: &[TokenId], context: usize) -> Result<Likelihood> {
        let mut total = Likelihood::default();
        for (window, skip) in windows(tokens.len(), context) {
            total.add(self.likelihood_of_window(&tokens[window], skip)?);
        }
        Ok(total)
    }

    /// The likelihood of the tokens from `skip` on, each given all tokens before it.
    ///
    /// # Errors
    /// If a token is outside the vocabulary or there are more than the engine's context.
    pub fn likelihood_of_window(&mut self, tokens: &[TokenId], skip: usize) -> Result<Likelihood> {
        let vocab_size = self.model().config.vocab_size;
        let mut total = Likelihood::default();
        self.evaluate(tokens, skip.saturating_sub(1), |first, rows| {
            for (index, row) in rows.chunks_exact(vocab_size).enumerate() {
                // The logits of a position predict the next token.
                let next = first + index + 1;
                if next >= skip.max(1) && next < tokens.len() {
                    total.tokens += 1;
                    total.nats += surprise(row, tokens[next]);
                }
            }
            Ok(())
        })
        .map(|()| total)
    }
}

/// `−ln softmax(logits)[token]`
fn surprise(logits: &[f32], token: TokenId) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(exp(logit - max))).sum();
    ln_f64(sum) - f64::from(logits[token.0 as usize] - max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_every_token_except_the_first_once() {
        for context in [2, 3, 4, 7, 8] {
            for len in 1..40 {
                let mut counted = vec![0; len];
                for (window, skip) in windows(len, context) {
                    assert!(
                        window.len() <= context && window.end <= len,
                        "{window:?} of {len}"
                    );
                    counted[window][skip..].iter_mut().for_each(|n| *n += 1);
                }
                assert!(
                    counted[0] == 0 && counted[1..].iter().all(|n| *n == 1),
                    "{len} tokens, context {context}: {counted:?}"
                );
            }
        }
    }

    #[test]
    fn chunks_and_strides_equal_llama_cpps() {
        let chunks: Vec<_> = chunks(25, 8).collect();
        assert_eq!(chunks, [(0..8, 5), (8..16, 5), (16..24, 5)]);
        assert_eq!(super::chunks(7, 8).len(), 0);
        for (len, context, stride) in [
            (25usize, 8, 4),
            (26, 8, 4),
            (100, 16, 5),
            (11, 8, 4),
            (10, 8, 4),
        ] {
            let windows: Vec<_> = strides(len, context, stride).collect();
            let size = context + stride / 2;
            assert_eq!(
                windows.len(),
                (len + stride - 1).saturating_sub(size) / stride,
                "{len} {context} {stride}"
            );
            for (i, (window, skip)) in windows.iter().enumerate() {
                assert_eq!((window.start, window.end), (i * stride, i * stride + size));
                assert!(window.end <= len && window.len() - skip == stride);
            }
        }
    }

    #[test]
    fn surprise_is_the_negative_log_of_the_softmax() {
        let logits = [1.0f32, -2.0, 0.5];
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (token, logit) in (0..).zip(logits) {
            assert!(
                (surprise(&logits, TokenId(token)) - (sum.ln() - f64::from(logit))).abs() < 1e-6
            );
        }
    }
}
