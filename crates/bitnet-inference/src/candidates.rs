//! Which tokens are in the running: found from the logits, or from estimates of them with bounds.
//!
//! A logit that is only estimated lies between a lower and an upper bound. A token can be among the
//! `k` most probable only if its upper bound reaches the `k`-th largest lower bound; the logits of
//! those tokens are computed in full, and all decisions are made on full logits. Where bounds
//! exclude too few, or cannot decide, the answer is `None`: all logits are then needed. So what is
//! sampled never depends on whether logits were estimated.

use std::ops::Range;

use bitnet_kernels::Estimates;
use bitnet_tokenizers::TokenId;

use crate::random::Noise;
use crate::stop::TokenSet;

/// A token in the running, with its logit.
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
    /// The least that the logit can be.
    fn lower(&self, token: usize) -> f32;
    /// The most that the logit can be.
    fn upper(&self, token: usize) -> f32;
    /// The logit itself.
    fn exact(&self, token: usize) -> f32;
    /// The most tokens whose logits may be computed one by one.
    fn exact_max(&self) -> usize;
    /// The largest of the lower bounds, of the upper bounds of a run of tokens.
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
    fn exact(&self, token: usize) -> f32 {
        self[token]
    }
    fn exact_max(&self) -> usize {
        usize::MAX
    }
    fn largest_bounds(&self, run: Range<usize>) -> [f32; 2] {
        let run = &self[run];
        [largest(run, run, |a, _| a); 2]
    }
}

/// Estimates, and how a token's logit is computed in full.
pub(crate) struct Estimated<'a> {
    pub estimates: Estimates<'a>,
    pub exact: &'a dyn Fn(u32) -> f32,
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
    fn exact(&self, token: usize) -> f32 {
        (self.exact)(token as u32)
    }
    fn exact_max(&self) -> usize {
        // Rows one by one cost more than all in order long before they are all: about four times as
        // much each.
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

/// The tokens that may be chosen. Keeps its buffers.
#[derive(Default)]
pub(crate) struct Candidates {
    /// What was found.
    pub found: Vec<Candidate>,
    /// Tokens whose logits were changed, by ascending id: they are in the running with these.
    pub changed: Vec<Candidate>,
    /// Runs of tokens that may be chosen and were not changed.
    unchanged: Vec<Range<usize>>,
    largest: Vec<f32>,
    /// Tokens and the most that their scores can be.
    contenders: Vec<(Candidate, f64)>,
}

impl Candidates {
    /// Settles which tokens there are: all of the vocabulary, or those allowed. `changed` must be
    /// by ascending id.
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

    /// The `k`-th largest lower bound, or −∞ if there are fewer: what an upper bound must reach.
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
    /// `margin` (negative) of the largest; returns the logit from which on none is missing. `found`
    /// is in no particular order.
    pub fn find(&mut self, logits: &impl Logits, k: usize, margin: f64) -> Option<f32> {
        let threshold = (f64::from(self.threshold(logits, k)) + margin) as f32;
        // The sum was rounded, perhaps up.
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
        for c in found.iter_mut().filter(|c| c.logit.is_nan()) {
            c.logit = logits.exact(c.token as usize);
        }
        Some(threshold)
    }

    /// The most probable token, the lowest id among equals; `None` where bounds leave too many.
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
    /// The total is the sum of `exp(logit − largest)`, as f32 each, in f64 by ascending id. Where
    /// logits are estimated it is only known to lie between two numbers; where these give different
    /// answers, more logits are computed in full.
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
                // Bounds this wide would leave nothing but rounding errors when they are taken off
                // again.
                if most > 1e9 {
                    return None;
                }
                // What was found is known: it is taken out of the bounds and added as it is. The
                // functions' own errors, up to a few units of f32 of arguments up to 88, are
                // covered by the last factors.
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
                // Rounding alone can keep the sum of all below the total.
                return is_exact.then_some(());
            }
            k *= 8;
        }
    }

    /// Between which numbers the sum of `exp(logit − largest)` lies.
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
        // The token with the largest lower bound scores at least this, whatever its noise.
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
                // What the product is more or less than the quotient is far below what is added.
                let scaled = upper * inverse;
                if scaled + scaled.abs() * 1e-9 + noise.gumbel_at_most(token as u32) < best {
                    continue;
                }
                let gumbel = noise.gumbel(token as u32);
                // Division and sum are monotonic also when rounded.
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
        let mut winner: Option<(f64, u32)> = None;
        for (c, upper) in contenders.iter() {
            let token = c.token;
            let score = match c.logit.is_nan() {
                true => f64::from(logits.exact(token as usize)) / temperature + noise.gumbel(token),
                false => *upper,
            };
            if winner.is_none_or(|(top, id)| score > top || score == top && token < id)
                && !score.is_nan()
            {
                winner = Some((score, token));
            }
        }
        winner.map_or_else(|| self.most_probable(logits), |(_, token)| Some(token))
    }
}

/// Tokens looked at together: a chunk without any of interest costs little.
const CHUNK: usize = 64;

fn max(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The `k` largest, the least of them last; there must be as many.
fn keep_largest(values: &mut Vec<f32>, k: usize) {
    values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    values.truncate(k);
}
