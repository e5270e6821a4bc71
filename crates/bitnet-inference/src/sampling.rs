//! Logits to a token: bias, penalties, top-k, typical-p, top-p, min-p, temperature, in llama.cpp's order.
//!
//! The draw is the largest `logit / temperature + Gumbel noise` among the candidates that are left, which is a sample of
//! their softmax. The noise depends on seed, position and token alone, so it matters neither in what order candidates
//! stand nor which ones were cut off below the winner. Equal values go to the lowest id.

use bitnet_kernels::math::{exp_f64, ln_f64};
use bitnet_tokenizers::TokenId;

use crate::error::{Error, Result};
use crate::random::Noise;

/// How a token is chosen. The defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 takes the most probable token.
    pub temperature: f32,
    /// Only so many of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have at least this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most probable one's probability; 0 for all.
    pub min_p: f32,
    /// Only the tokens whose surprise is closest to the expected one, with at least this probability together; 1 for all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred in the last [`Self::penalty_window`]; 1 is none.
    pub repetition_penalty: f32,
    /// Taken off the logit of each token that occurred there.
    pub presence_penalty: f32,
    /// Taken off as often as it occurred there.
    pub frequency_penalty: f32,
    /// Tokens that the penalties look back at.
    pub penalty_window: usize,
    /// Added to the logits of these tokens before all else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// What makes the draws differ.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every parameter.
    ///
    /// # Errors
    /// The first that is out of range, with its value and what it may be.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let range = |name, value: f32, ok: bool, allowed| match ok {
            true => Ok(()),
            false => Err(Error::Sampling { name, value: f64::from(value), allowed }),
        };
        let (t, r) = (self.temperature, self.repetition_penalty);
        range("temperature", t, (0.0..=100.0).contains(&t), "from 0 to 100")?;
        range("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1")?;
        range("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        range("typical-p", self.typical_p, self.typical_p > 0.0 && self.typical_p <= 1.0, "more than 0 and at most 1")?;
        range("repetition penalty", r, r > 0.0 && r <= 100.0, "more than 0 and at most 100")?;
        for (name, value) in
            [("presence penalty", self.presence_penalty), ("frequency penalty", self.frequency_penalty)]
        {
            range(name, value, (-100.0..=100.0).contains(&value), "from -100 to 100")?;
        }
        for &(token, bias) in &self.logit_bias {
            if token.0 as usize >= vocab_size {
                return Err(Error::BiasRange { token, last: vocab_size - 1 });
            }
            range("logit bias", bias, !bias.is_nan(), "a number")?;
        }
        Ok(())
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// A token still in the running.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
}

/// More probable first; the lower id first among equals. NaN counts as the least probable.
fn before(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let key = |c: &Candidate| if c.logit.is_nan() { f32::NEG_INFINITY } else { c.logit };
    key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Samples with one set of parameters. Keeps its buffers, so a step allocates nothing.
pub struct Sampler {
    params: SamplingParams,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    probabilities: Vec<f64>,
    recent: Vec<u32>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab_size`.
    ///
    /// # Errors
    /// A parameter out of range.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self> {
        params.check(vocab_size)?;
        Ok(Self { params, logits: Vec::new(), candidates: Vec::new(), probabilities: Vec::new(), recent: Vec::new() })
    }

    /// The token that follows `tokens`, given its logits over the vocabulary, `[vocab]`.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(&mut self, logits: &[f32], tokens: &[TokenId]) -> TokenId {
        assert!(!logits.is_empty(), "no logits to sample from");
        let adjusted = !self.params.logit_bias.is_empty() || self.params.has_penalties();
        let mut buffer = std::mem::take(&mut self.logits);
        if adjusted {
            buffer.clear();
            buffer.extend_from_slice(logits);
            self.adjust(&mut buffer, tokens);
        }
        let token = self.choose(if adjusted { &buffer } else { logits }, tokens.len() as u64);
        self.logits = buffer;
        TokenId(token)
    }

    /// Bias and penalties.
    fn adjust(&mut self, logits: &mut [f32], tokens: &[TokenId]) {
        let params = &self.params;
        for &(token, bias) in &params.logit_bias {
            logits[token.0 as usize] += bias;
        }
        if !params.has_penalties() {
            return;
        }
        self.recent.clear();
        self.recent.extend(tokens[tokens.len().saturating_sub(params.penalty_window)..].iter().map(|token| token.0));
        self.recent.sort_unstable();
        for run in self.recent.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(run[0] as usize) else { continue };
            *logit =
                if *logit <= 0.0 { *logit * params.repetition_penalty } else { *logit / params.repetition_penalty };
            *logit -= params.frequency_penalty * run.len() as f32 + params.presence_penalty;
        }
    }

    fn choose(&mut self, logits: &[f32], position: u64) -> u32 {
        let params = &self.params;
        if params.temperature == 0.0 || params.top_k == 1 {
            return argmax(logits);
        }
        let noise = Noise::new(params.seed, position);
        let temperature = f64::from(params.temperature);
        if params.top_k == 0 && params.top_p >= 1.0 && params.typical_p >= 1.0 && params.min_p <= 0.0 {
            let all = logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit });
            return draw(all, temperature, noise);
        }
        self.most_probable(logits);
        self.keep_typical();
        self.keep_top_p();
        self.keep_min_p();
        draw(self.candidates.iter().copied(), temperature, noise)
    }

    /// The `top_k` most probable tokens, in order.
    fn most_probable(&mut self, logits: &[f32]) {
        let k = if self.params.top_k == 0 { logits.len() } else { self.params.top_k.min(logits.len()) };
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }));
        if k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, before);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(before);
    }

    /// Softmax of the candidates, which are in order, into `probabilities`.
    fn softmax(&mut self) {
        let max = f64::from(self.candidates[0].logit);
        self.probabilities.clear();
        self.probabilities.extend(self.candidates.iter().map(|c| exp_f64(f64::from(c.logit) - max)));
        let sum: f64 = self.probabilities.iter().sum();
        self.probabilities.iter_mut().for_each(|p| *p /= sum);
    }

    /// Locally typical sampling (Meister et al. 2022).
    fn keep_typical(&mut self) {
        if self.params.typical_p >= 1.0 {
            return;
        }
        self.softmax();
        let surprise = |p: f64| if p.is_normal() { -ln_f64(p) } else { 710.0 };
        let entropy: f64 = self.probabilities.iter().map(|&p| p * surprise(p)).sum();
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        let distance = |&i: &usize| (surprise(self.probabilities[i]) - entropy).abs();
        order.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
        let kept = self.prefix_with(self.params.typical_p, order.iter().copied());
        order.truncate(kept);
        order.sort_unstable();
        self.candidates = order.into_iter().map(|i| self.candidates[i]).collect();
    }

    /// Nucleus sampling (Holtzman et al. 2020).
    fn keep_top_p(&mut self) {
        if self.params.top_p >= 1.0 {
            return;
        }
        self.softmax();
        let kept = self.prefix_with(self.params.top_p, 0..self.candidates.len());
        self.candidates.truncate(kept);
    }

    fn keep_min_p(&mut self) {
        if self.params.min_p <= 0.0 {
            return;
        }
        let least = f64::from(self.candidates[0].logit) + ln_f64(f64::from(self.params.min_p));
        let kept = self.candidates.partition_point(|c| f64::from(c.logit) >= least);
        self.candidates.truncate(kept.max(1));
    }

    /// How many candidates, taken in `order`, it takes to reach a probability; at least one.
    fn prefix_with(&self, probability: f32, order: impl Iterator<Item = usize>) -> usize {
        let mut sum = 0.0;
        let mut kept = 0;
        for index in order {
            sum += self.probabilities[index];
            kept += 1;
            if sum >= f64::from(probability) {
                break;
            }
        }
        kept.max(1)
    }
}

/// The lowest id among the largest logits.
fn argmax(logits: &[f32]) -> u32 {
    let all = logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit });
    all.reduce(|best, next| if next.logit > best.logit || best.logit.is_nan() { next } else { best })
        .map_or(0, |c| c.token)
}

/// The candidate with the largest `logit / temperature + noise`; the lowest id among equals.
fn draw(candidates: impl Iterator<Item = Candidate>, temperature: f64, noise: Noise) -> u32 {
    let mut best: Option<(f64, u32)> = None;
    for candidate in candidates {
        let score = f64::from(candidate.logit) / temperature + noise.gumbel(candidate.token);
        let wins = best.is_none_or(|(top, token)| score > top || score == top && candidate.token < token);
        if wins && !score.is_nan() || best.is_none() {
            best = Some((if score.is_nan() { f64::NEG_INFINITY } else { score }, candidate.token));
        }
    }
    best.map_or(0, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
        let mut params =
            SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..SamplingParams::default() };
        change(&mut params);
        Sampler::new(params, 8).expect("valid parameters")
    }

    /// The tokens that come up in many draws from the logits of a falling geometric distribution.
    fn seen(mut sampler: Sampler) -> Vec<u32> {
        let logits: Vec<f32> = (0..8).map(|i| -(i as f32) * std::f32::consts::LN_2).collect();
        let mut seen = [false; 8];
        for seed in 0..3000 {
            sampler.params.seed = seed;
            seen[sampler.sample(&logits, &[TokenId(1), TokenId(1)]).0 as usize] = true;
        }
        (0..8).filter(|&i| seen[i as usize]).collect()
    }

    #[test]
    fn draws_have_the_frequencies_of_the_softmax() {
        let mut sampler = sampler(|p| p.temperature = 0.7);
        let logits = [1.0f32, 0.2, -0.5, 2.0, f32::NEG_INFINITY];
        let n = 40_000;
        let mut counts = [0u32; 5];
        for seed in 0..n {
            sampler.params.seed = seed;
            counts[sampler.sample(&logits, &[]).0 as usize] += 1;
        }
        let weights = logits.map(|l| (f64::from(l) / 0.7).exp());
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let (found, expected) = (f64::from(*count) / n as f64, weight / sum);
            assert!((found - expected).abs() < 0.012, "{found} instead of {expected}");
        }
    }

    #[test]
    fn each_cut_keeps_what_it_says() {
        // Probabilities 1/2, 1/4, 1/8, … (of 255/256 in all).
        assert_eq!(seen(sampler(|p| p.top_k = 3)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.top_p = 0.76)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.min_p = 0.2)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.top_k = 1)), [0]);
        assert_eq!(seen(sampler(|p| p.temperature = 0.0)), [0]);
        // The entropy is 1.35 nats: token 1 (1.38 nats) is the most typical, then 0 or 2 (0.69 and 2.08 nats).
        assert_eq!(seen(sampler(|p| p.typical_p = 0.2)), [1]);
    }

    #[test]
    fn bias_and_penalties_move_the_most_probable_token() {
        let logits = [3.0f32, 2.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0];
        let greedy = |change: &dyn Fn(&mut SamplingParams), tokens: &[u32]| {
            let mut sampler = sampler(|p| {
                p.temperature = 0.0;
                change(p);
            });
            let tokens: Vec<TokenId> = tokens.iter().map(|&t| TokenId(t)).collect();
            sampler.sample(&logits, &tokens).0
        };
        assert_eq!(greedy(&|_| (), &[0, 0]), 0);
        assert_eq!(greedy(&|p| p.logit_bias = vec![(TokenId(5), 9.0)], &[]), 5);
        assert_eq!(greedy(&|p| p.repetition_penalty = 2.0, &[0]), 1);
        assert_eq!(greedy(&|p| p.presence_penalty = 1.5, &[0, 0]), 1);
        assert_eq!(greedy(&|p| p.frequency_penalty = 0.6, &[0]), 0);
        assert_eq!(greedy(&|p| p.frequency_penalty = 0.6, &[0, 0]), 1);
        assert_eq!(greedy(&|p| (p.presence_penalty, p.penalty_window) = (1.5, 1), &[0, 7]), 0);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(sampler(|p| p.temperature = 0.0).sample(&[0.0, 1.0, 1.0], &[]).0, 1);
        assert_eq!(sampler(|p| p.top_k = 1).sample(&[f32::NAN, 1.0, 1.0], &[]).0, 1);
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for change in [
            (|p| p.temperature = -1.0) as fn(&mut SamplingParams),
            |p| p.temperature = f32::NAN,
            |p| p.top_p = 0.0,
            |p| p.min_p = 1.5,
            |p| p.typical_p = -0.1,
            |p| p.repetition_penalty = 0.0,
            |p| p.frequency_penalty = f32::INFINITY,
            |p| p.logit_bias = vec![(TokenId(8), 0.0)],
        ] {
            let mut params = SamplingParams::default();
            change(&mut params);
            assert!(Sampler::new(params.clone(), 8).is_err(), "{params:?}");
        }
    }
}
