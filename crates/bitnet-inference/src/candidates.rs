//! The tokens that may be sampled, found from the logits or from estimates of them with bounds.
//!
//! An estimated logit lies between a lower and an upper bound. A token can be among the `k` most
//! probable only if its upper bound reaches the `k`-th largest lower bound. The exact logits of
//! these tokens are computed in rounds, each for a list of tokens, and all decisions use exact
//! logits. Where the bounds exclude too few tokens, or cannot decide, the answer is `None`: all
//! logits are then needed. So the sampled token never depends on whether logits were estimated.

use std::ops::Range;

use bitnet_kernels::Estimates;
use bitnet_tokenizers::TokenId;

use crate::random::Noise;
use crate::stop::TokenSet;

/// A token that may be sampled, with its logit; NaN until it is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// More probable first; the lower id first among equals. NaN counts as the least probable.
pub(crate) fn before(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let key = |c: &Candidate| {
        if c.logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            c.logit
        }
    };
    key(b)
        .partial_cmp(&key(a))
        .unwrap_or(std::cmp::Ordering::Equal)
        .then(a.token.cmp(&b.token))
}

/// Logits over the vocabulary, known or bounded.
pub(crate) trait Logits {
    /// Tokens of the vocabulary.
    fn len(&self) -> usize;
    /// The lower bound of a token's logit.
    fn lower(&self, token: usize) -> f32;
    /// The upper bound of a token's logit.
    fn upper(&self, token: usize) -> f32;
    /// The logits of some tokens: `out` becomes `[tokens]`.
    fn exact(&self, tokens: &[u32], out: &mut Vec<f32>);
    /// Maximum number of tokens whose exact logits may be computed; usize::MAX if all are known.
    fn exact_max(&self) -> usize;
    /// The largest lower bound and the largest upper bound of a run of tokens.
    fn largest_bounds(&self, run: Range<usize>) -> [f32; 2];
}

/// The largest of `combine(a, b)`, in eight lanes, so that the compiler can use vectors. NaN counts
/// as −∞.
fn largest(a: &[f32], b: &[f32], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = max(*lane, combine(*a, *b));
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| combine(*a, *b));
    lanes.into_iter().chain(rest).fold(f32::NEG_INFINITY, max)
}

/// All logits, `[vocab]`.
impl Logits for &[f32] {
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }
    fn lower(&self, token: usize) -> f32 {
        self[token]
    }
    fn upper(&self, token: usize) -> f32 {
        self[token]
    }
    fn exact(&self, tokens: &[u32], out: &mut Vec<f32>) {
        out.clear();
        out.extend(tokens.iter().map(|token| self[*token as usize]));
    }
    fn exact_max(&self) -> usize {
        usize::MAX
    }
    fn largest_bounds(&self, run: Range<usize>) -> [f32; 2] {
        let run = &self[run];
        [largest(run, run, |a, _| a); 2]
    }
}

/// Estimates, and a function that computes exact logits.
pub(crate) struct Estimated<'a> {
    pub estimates: Estimates<'a>,
    pub exact: &'a dyn Fn(&[u32], &mut Vec<f32>),
}

impl Logits for Estimated<'_> {
    fn len(&self) -> usize {
        self.estimates.values.len()
    }
    fn lower(&self, token: usize) -> f32 {
        self.estimates.values[token] - self.estimates.errors[token]
    }
    fn upper(&self, token: usize) -> f32 {
        self.estimates.values[token] + self.estimates.errors[token]
    }
    fn exact(&self, tokens: &[u32], out: &mut Vec<f32>) {
        (self.exact)(tokens, out);
    }
    fn exact_max(&self) -> usize {
        // A single row of the head costs about four times as much to read as a row in sequence.
        (self.len() / 16).max(256)
    }
    fn largest_bounds(&self, run: Range<usize>) -> [f32; 2] {
        let (values, errors) = (
            &self.estimates.values[run.clone()],
            &self.estimates.errors[run],
        );
        [
            largest(values, errors, |value, error| value - error),
            largest(values, errors, |value, error| value + error),
        ]
    }
}

/// A round of exact logits: the tokens asked for, and the answers. Keeps its buffers.
#[derive(Default)]
struct Round {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Round {
    /// Computes the logits of the items that do not have one yet.
    fn fill<T>(
        &mut self,
        logits: &impl Logits,
        items: &mut [T],
        candidate: impl Fn(&mut T) -> &mut Candidate,
    ) {
        self.tokens.clear();
        for item in items.iter_mut() {
            let candidate = candidate(item);
            if candidate.logit.is_nan() {
                self.tokens.push(candidate.token);
            }
        }
        if self.tokens.is_empty() {
            return;
        }
        logits.exact(&self.tokens, &mut self.logits);
        let missing = items.iter_mut().map(candidate);
        let missing = missing.filter(|candidate| candidate.logit.is_nan());
        for (candidate, logit) in missing.zip(&self.logits) {
            candidate.logit = *logit;
        }
    }
}

/// The tokens that may be chosen. Keeps its buffers.
#[derive(Default)]
pub(crate) struct Candidates {
    /// The tokens that the last search found.
    pub found: Vec<Candidate>,
    /// Tokens with changed logits, by ascending id; they compete with these logits.
    pub changed: Vec<Candidate>,
    /// Runs of tokens that may be chosen and were not changed.
    unchanged: Vec<Range<usize>>,
    largest: Vec<f32>,
    /// Tokens, with upper bounds of their scores.
    contenders: Vec<(Candidate, f64)>,
    round: Round,
}

impl Candidates {
    /// Computes the logits of the changed tokens, before the caller changes them.
    pub fn fill_changed(&mut self, logits: &impl Logits) {
        self.round.fill(logits, &mut self.changed, |c| c);
    }

    /// Sets the tokens that may be chosen: the whole vocabulary or the allowed tokens. `changed`
    /// must be in ascending order of ids.
    pub fn reset(&mut self, vocab: usize, allowed: Option<&TokenSet>) {
        if let Some(allowed) = allowed {
            self.changed.retain(|c| allowed.contains(TokenId(c.token)));
        }
        self.unchanged.clear();
        let mut start = 0;
        for end in self.changed.iter().map(|c| c.token as usize).chain([vocab]) {
            match allowed {
                None => self.unchanged.push(start..end),
                Some(allowed) => self.unchanged.extend(allowed.runs(start..end)),
            }
            start = end + 1;
        }
    }

    /// The lowest id that may be chosen.
    pub fn first(&self) -> u32 {
        let unchanged = self
            .unchanged
            .iter()
            .find(|run| !run.is_empty())
            .map(|run| run.start as u32);
        unchanged
            .into_iter()
            .chain(self.changed.first().map(|c| c.token))
            .min()
            .unwrap_or(0)
    }

    /// The `k`-th largest lower bound, or −∞ if there are fewer. An upper bound must reach it.
    fn threshold(&mut self, logits: &impl Logits, k: usize) -> f32 {
        let largest = &mut self.largest;
        largest.clear();
        let mut least = f32::NEG_INFINITY;
        let room = 4 * k + 64;
        let mut push = |logit: f32, least: &mut f32| {
            largest.push(logit);
            if largest.len() >= room {
                keep_largest(largest, k);
                *least = largest[k - 1];
            }
        };
        for c in &self.changed {
            if !c.logit.is_nan() {
                push(c.logit, &mut least);
            }
        }
        for run in &self.unchanged {
            for start in run.clone().step_by(CHUNK) {
                let chunk = start..run.end.min(start + CHUNK);
                if logits.largest_bounds(chunk.clone())[0] > least {
                    for lower in chunk.map(|token| logits.lower(token)) {
                        if lower > least {
                            push(lower, &mut least);
                        }
                    }
                }
            }
        }
        if self.largest.len() < k {
            return f32::NEG_INFINITY;
        }
        keep_largest(&mut self.largest, k);
        self.largest[k - 1]
    }

    /// Finds every token that may be among the `k` most probable, or whose logit may be within
    /// `margin` (negative) of the largest; returns a logit: every token with at least this logit
    /// was found. `found` is in no particular order.
    pub fn find(&mut self, logits: &impl Logits, k: usize, margin: f64) -> Option<f32> {
        let threshold = (f64::from(self.threshold(logits, k)) + margin) as f32;
        // The sum may have been rounded up.
        let threshold = if margin == 0.0 {
            threshold
        } else {
            threshold.next_down()
        };
        let found = &mut self.found;
        found.clear();
        found.extend(self.changed.iter().filter(|c| c.logit >= threshold));
        let most = logits.exact_max();
        for run in &self.unchanged {
            for start in run.clone().step_by(CHUNK) {
                let chunk = start..run.end.min(start + CHUNK);
                if logits.largest_bounds(chunk.clone())[1] < threshold {
                    continue;
                }
                let reaching = chunk.filter(|token| logits.upper(*token) >= threshold);
                found.extend(reaching.map(|token| Candidate {
                    token: token as u32,
                    logit: f32::NAN,
                }));
                if found.len() > most {
                    return None;
                }
            }
        }
        self.round.fill(logits, found, |c| c);
        Some(threshold)
    }

    /// The most probable token, the lowest id among equals; `None` if the bounds leave too many
    /// tokens.
    pub fn most_probable(&mut self, logits: &impl Logits) -> Option<u32> {
        self.find(logits, 1, 0.0)?;
        Some(
            self.found
                .iter()
                .min_by(|a, b| before(a, b))
                .map_or_else(|| self.first(), |c| c.token),
        )
    }

    /// The most probable tokens that together have at least the share `p` of the probability of
    /// all, in order.
    ///
    /// The total is the sum of `exp(logit − largest)`, as f32 each, in f64 by ascending id. With
    /// estimated logits only a lower and an upper bound of the total are known; while the two give
    /// different answers, it computes more logits in full.
    pub fn nucleus(&mut self, logits: &impl Logits, p: f32) -> Option<()> {
        let is_exact = logits.exact_max() == usize::MAX;
        let mut k = 64;
        loop {
            let certain = self.find(logits, k, 0.0)?;
            self.found.sort_unstable_by(before);
            let Some(largest) = self.found.first().map(|c| c.logit) else {
                return Some(());
            };
            let weight = |logit: f32| f64::from(bitnet_kernels::math::exp(logit - largest));
            let (mut least, mut most) = self.weights_between(logits, largest);
            if !is_exact {
                // Subtracting bounds this wide would leave only rounding errors.
                if most > 1e9 {
                    return None;
                }
                // Exact logits replace their bounds in the sum. The last factors cover the errors
                // of the exponential itself, up to a few units of f32 for arguments up to 88.
                for c in &self.found {
                    if self
                        .changed
                        .binary_search_by_key(&c.token, |c| c.token)
                        .is_err()
                    {
                        let token = c.token as usize;
                        least += weight(c.logit) - weight(logits.lower(token));
                        most += weight(c.logit) - weight(logits.upper(token));
                    }
                }
                least *= 1.0 - 3e-5;
                most *= 1.0 + 3e-5;
            }
            let mut sum = 0.0;
            let mut kept = None;
            for (index, c) in self.found.iter().enumerate() {
                if c.logit < certain {
                    break;
                }
                sum += weight(c.logit);
                if kept.is_none() && sum >= f64::from(p) * least {
                    kept = Some(index + 1);
                }
                if sum >= f64::from(p) * most {
                    if kept == Some(index + 1) {
                        self.found.truncate(index + 1);
                        return Some(());
                    }
                    break;
                }
            }
            if k >= logits.len() {
                // Rounding alone can keep the sum of all probabilities below the total.
                return is_exact.then_some(());
            }
            k *= 8;
        }
    }

    /// The lower and upper bound of the sum of `exp(logit − largest)`.
    fn weights_between(&self, logits: &impl Logits, largest: f32) -> (f64, f64) {
        let weight = |logit: f32| f64::from(bitnet_kernels::math::exp(logit - largest));
        let is_exact = logits.exact_max() == usize::MAX;
        let (mut least, mut most) = (0.0, 0.0);
        let mut changed = self.changed.iter().peekable();
        for run in &self.unchanged {
            while let Some(c) = changed.next_if(|c| (c.token as usize) < run.end) {
                least += weight(c.logit);
                most += weight(c.logit);
            }
            for token in run.clone() {
                least += weight(logits.lower(token));
                if !is_exact {
                    most += weight(logits.upper(token));
                }
            }
        }
        for c in changed {
            least += weight(c.logit);
            most += weight(c.logit);
        }
        (least, if is_exact { least } else { most })
    }

    /// The token with the largest `logit / temperature + noise`; the lowest id among equals.
    pub fn noisiest(
        &mut self,
        logits: &impl Logits,
        temperature: f64,
        noise: Noise,
    ) -> Option<u32> {
        // The token with the largest lower bound scores at least this with any noise.
        let mut best = f64::from(self.threshold(logits, 1)) / temperature + Noise::GUMBEL_MIN;
        let contenders = &mut self.contenders;
        contenders.clear();
        for c in &self.changed {
            let score = f64::from(c.logit) / temperature + noise.gumbel(c.token);
            if score >= best {
                best = score;
                contenders.push((*c, score));
            }
        }
        let inverse = 1.0 / temperature;
        let most = logits.exact_max();
        for run in &self.unchanged {
            for token in run.clone() {
                let upper = f64::from(logits.upper(token));
                // The bound of the noise costs a few instructions, the noise itself two logarithms.
                // The product differs from the quotient by far less than the added slack.
                let scaled = upper * inverse;
                if scaled + scaled.abs() * 1e-9 + noise.gumbel_at_most(token as u32) < best {
                    continue;
                }
                let gumbel = noise.gumbel(token as u32);
                // Division and addition are monotonic even with rounding.
                let upper = upper / temperature + gumbel;
                if upper >= best {
                    let lower = f64::from(logits.lower(token)) / temperature + gumbel;
                    if lower > best {
                        best = lower;
                    }
                    contenders.push((
                        Candidate {
                            token: token as u32,
                            logit: f32::NAN,
                        },
                        upper,
                    ));
                    if contenders.len() > most {
                        contenders.retain(|(_, upper)| *upper >= best);
                        if contenders.len() > most / 2 {
                            return None;
                        }
                    }
                }
            }
        }
        contenders.retain(|(_, upper)| *upper >= best);
        self.round.fill(logits, contenders, |(c, _)| c);
        let mut winner: Option<(f64, u32)> = None;
        for (c, _) in contenders.iter() {
            let token = c.token;
            let score = f64::from(c.logit) / temperature + noise.gumbel(token);
            if winner.is_none_or(|(top, id)| score > top || score == top && token < id)
                && !score.is_nan()
            {
                winner = Some((score, token));
            }
        }
        winner.map_or_else(|| self.most_probable(logits), |(_, token)| Some(token))
    }
}

/// Number of tokens to check at once: a chunk without candidates costs little.
const CHUNK: usize = 64;

fn max(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Keeps the `k` largest; the smallest of them is last. There must be at least `k`.
fn keep_largest(values: &mut Vec<f32>, k: usize) {
    values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    values.truncate(k);
}
