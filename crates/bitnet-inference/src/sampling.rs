//! Logits to a token: bias, penalties, top-k, typical-p, top-p, min-p, temperature, in llama.cpp's
//! order.
//!
//! The draw is the largest `logit / temperature + Gumbel noise` among the remaining candidates,
//! which is a sample of their softmax. The noise depends on seed, position and token alone, so
//! neither the order of the candidates nor the removal of candidates below the winner changes the
//! result. Equal values go to the lowest id.

use bitnet_kernels::Estimates;
use bitnet_kernels::math::{exp_f64, ln_f64};
use bitnet_models::SamplingDefaults;
use bitnet_tokenizers::TokenId;
use serde::{Deserialize, Serialize};

use crate::bias_text;
use crate::candidates::{Candidate, Candidates, Estimated, Logits, before};
use crate::error::{Error, Result};
use crate::random::Noise;
use crate::stop::TokenSet;

/// The parameters that choose a token. The defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 takes the most probable token.
    pub temperature: f32,
    /// Keep only this number of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have at least this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most probable one's probability; 0 for all.
    pub min_p: f32,
    /// Only the tokens whose surprise is closest to the expected one, with at least this
    /// probability together; 1 for all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred in the last
    /// [`Self::penalty_window`]; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of each token that occurred there.
    pub presence_penalty: f32,
    /// Subtracted once for each time that the token occurred there.
    pub frequency_penalty: f32,
    /// Number of last tokens that the penalties consider.
    pub penalty_window: usize,
    /// Added to the logits of these tokens first.
    #[serde(with = "bias_text")]
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The seed of the random draws.
    pub seed: u64,
}

impl SamplingParams {
    /// The model's recommendations, and the defaults where it has none.
    #[must_use]
    pub fn recommended(model: &SamplingDefaults) -> Self {
        let default = Self::default();
        Self {
            temperature: model.temperature.unwrap_or(default.temperature),
            top_k: model.top_k.unwrap_or(default.top_k),
            top_p: model.top_p.unwrap_or(default.top_p),
            min_p: model.min_p.unwrap_or(default.min_p),
            repetition_penalty: model
                .repetition_penalty
                .unwrap_or(default.repetition_penalty),
            penalty_window: model.penalty_window.unwrap_or(default.penalty_window),
            ..default
        }
    }
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
    /// The first parameter that is out of range, with its value and the valid values.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let range = |name, value: f32, ok: bool, allowed| match ok {
            true => Ok(()),
            false => Err(Error::Sampling {
                name,
                value: f64::from(value),
                allowed,
            }),
        };
        let (t, r) = (self.temperature, self.repetition_penalty);
        range(
            "temperature",
            t,
            (0.0..=100.0).contains(&t),
            "from 0 to 100",
        )?;
        range(
            "top-p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "more than 0 and at most 1",
        )?;
        range(
            "min-p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "from 0 to 1",
        )?;
        range(
            "typical-p",
            self.typical_p,
            self.typical_p > 0.0 && self.typical_p <= 1.0,
            "more than 0 and at most 1",
        )?;
        range(
            "repetition penalty",
            r,
            r > 0.0 && r <= 100.0,
            "more than 0 and at most 100",
        )?;
        for (name, value) in [
            ("presence penalty", self.presence_penalty),
            ("frequency penalty", self.frequency_penalty),
        ] {
            range(
                name,
                value,
                (-100.0..=100.0).contains(&value),
                "from -100 to 100",
            )?;
        }
        for &(token, bias) in &self.logit_bias {
            if token.0 as usize >= vocab_size {
                return Err(Error::BiasRange {
                    token,
                    last: vocab_size - 1,
                });
            }
            range("logit bias", bias, !bias.is_nan(), "a number")?;
        }
        Ok(())
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// Samples with one set of parameters. Keeps its buffers, so a step allocates nothing.
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    candidates: Candidates,
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
        Ok(Self {
            params,
            vocab_size,
            candidates: Candidates::default(),
            probabilities: Vec::new(),
            recent: Vec::new(),
        })
    }

    /// How many of the first logits of a row, in order, decide on a token; `None` if others may
    /// matter, too.
    pub(crate) fn top_needed(&self) -> Option<usize> {
        let params = &self.params;
        let is_unchanged = params.logit_bias.is_empty() && !params.has_penalties();
        let k = match params.temperature == 0.0 {
            true => 1,
            false => params.top_k,
        };
        (is_unchanged && (1..self.vocab_size).contains(&k)).then_some(k)
    }

    /// The token at `position` with its logit, given the first logits of a row with their tokens: at
    /// least [`Sampler::top_needed`] of them, the larger first, the lower token first among equals,
    /// NaN last. It is the token that [`Sampler::sample`] takes from the whole row.
    ///
    /// # Panics
    /// If there are no logits.
    pub(crate) fn sample_top(&mut self, top: &[(u32, f32)], position: usize) -> (TokenId, f32) {
        let k = self.top_needed().unwrap_or(top.len());
        let numbers = top.iter().take(k).filter(|(_, logit)| !logit.is_nan());
        let found = &mut self.candidates.found;
        found.clear();
        found.extend(numbers.map(|&(token, logit)| Candidate { token, logit }));
        if k == 1 || found.is_empty() {
            return (TokenId(top[0].0), top[0].1);
        }
        self.keep_typical();
        self.keep_top_p();
        self.keep_min_p();
        let noise = Noise::new(self.params.seed, position as u64);
        let found = &self.candidates.found;
        let token = draw(found, f64::from(self.params.temperature), noise);
        let drawn = found.iter().find(|c| c.token == token);
        (TokenId(token), drawn.map_or(f32::NAN, |c| c.logit))
    }

    /// The token that follows `tokens`, given its logits over the vocabulary, `[vocab]`; one of
    /// `allowed` if that is given.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(
        &mut self,
        logits: &[f32],
        tokens: &[TokenId],
        allowed: Option<&TokenSet>,
    ) -> TokenId {
        assert!(!logits.is_empty(), "no logits to sample from");
        match self.choose(&logits, tokens, allowed) {
            Some(token) => token,
            None => unreachable!("all logits are known"),
        }
    }

    /// The same from estimates. `exact(tokens, logits)` computes the exact logits of a list of
    /// tokens, a few times at most: `logits` becomes `[tokens]`. `None` if the decision needs all
    /// logits.
    ///
    /// # Panics
    /// If there are no estimates.
    pub fn sample_estimated(
        &mut self,
        estimates: Estimates<'_>,
        exact: &dyn Fn(&[u32], &mut Vec<f32>),
        tokens: &[TokenId],
        allowed: Option<&TokenSet>,
    ) -> Option<TokenId> {
        assert!(!estimates.values.is_empty(), "no estimates to sample from");
        self.choose(&Estimated { estimates, exact }, tokens, allowed)
    }

    fn choose(
        &mut self,
        logits: &impl Logits,
        tokens: &[TokenId],
        allowed: Option<&TokenSet>,
    ) -> Option<TokenId> {
        self.change(logits, tokens)?;
        self.candidates.reset(logits.len(), allowed);
        let params = &self.params;
        let candidates = &mut self.candidates;
        if params.temperature == 0.0 || params.top_k == 1 {
            return candidates.most_probable(logits).map(TokenId);
        }
        let noise = Noise::new(params.seed, tokens.len() as u64);
        let temperature = f64::from(params.temperature);
        let top_k = if params.top_k == 0 {
            usize::MAX
        } else {
            params.top_k
        };
        let is_whole = top_k >= logits.len();
        if is_whole && params.top_p >= 1.0 && params.typical_p >= 1.0 && params.min_p <= 0.0 {
            return candidates.noisiest(logits, temperature, noise).map(TokenId);
        }
        match () {
            () if !is_whole => {
                candidates.find(logits, top_k, 0.0)?;
                candidates.found.sort_unstable_by(before);
                candidates.found.truncate(top_k);
                self.keep_typical();
                self.keep_top_p();
            }
            () if params.typical_p < 1.0 => {
                candidates.find(logits, usize::MAX / 8, 0.0)?;
                candidates.found.sort_unstable_by(before);
                self.keep_typical();
                self.keep_top_p();
            }
            () if params.top_p < 1.0 => candidates.nucleus(logits, params.top_p)?,
            () => {
                candidates.find(logits, 1, ln_f64(f64::from(params.min_p)))?;
                candidates.found.sort_unstable_by(before);
            }
        }
        if self.candidates.found.is_empty() {
            // All logits are NaN.
            return Some(TokenId(self.candidates.first()));
        }
        self.keep_min_p();
        Some(TokenId(draw(&self.candidates.found, temperature, noise)))
    }

    /// The logits that bias and penalties change, by ascending id; `None` if there are too many to
    /// compute them one by one.
    fn change(&mut self, logits: &impl Logits, tokens: &[TokenId]) -> Option<()> {
        let params = &self.params;
        let changed = &mut self.candidates.changed;
        changed.clear();
        self.recent.clear();
        if params.has_penalties() {
            let window = &tokens[tokens.len().saturating_sub(params.penalty_window)..];
            self.recent.extend(
                window
                    .iter()
                    .map(|token| token.0)
                    .filter(|&token| (token as usize) < logits.len()),
            );
            self.recent.sort_unstable();
        }
        let biased = params.logit_bias.iter().map(|(token, _)| token.0);
        changed.extend(
            biased
                .chain(self.recent.iter().copied())
                .map(|token| Candidate {
                    token,
                    logit: f32::NAN,
                }),
        );
        changed.sort_unstable_by_key(|c| c.token);
        changed.dedup_by_key(|c| c.token);
        if changed.len() > logits.exact_max() {
            return None;
        }
        self.candidates.fill_changed(logits);
        let changed = &mut self.candidates.changed;
        for &(token, bias) in &params.logit_bias {
            if let Ok(index) = changed.binary_search_by_key(&token.0, |c| c.token) {
                changed[index].logit += bias;
            }
        }
        for run in self.recent.chunk_by(|a, b| a == b) {
            let Ok(index) = changed.binary_search_by_key(&run[0], |c| c.token) else {
                continue;
            };
            let logit = &mut changed[index].logit;
            *logit = if *logit <= 0.0 {
                *logit * params.repetition_penalty
            } else {
                *logit / params.repetition_penalty
            };
            *logit -= params.frequency_penalty * run.len() as f32 + params.presence_penalty;
        }
        Some(())
    }

    /// Softmax of the candidates, which are in order, into `probabilities`.
    fn softmax(&mut self) {
        let max = f64::from(self.candidates.found[0].logit);
        self.probabilities.clear();
        self.probabilities.extend(
            self.candidates
                .found
                .iter()
                .map(|c| exp_f64(f64::from(c.logit) - max)),
        );
        let sum: f64 = self.probabilities.iter().sum();
        self.probabilities.iter_mut().for_each(|p| *p /= sum);
    }

    /// Locally typical sampling (Meister et al. 2022).
    fn keep_typical(&mut self) {
        if self.params.typical_p >= 1.0 || self.candidates.found.is_empty() {
            return;
        }
        self.softmax();
        let surprise = |p: f64| if p.is_normal() { -ln_f64(p) } else { 710.0 };
        let entropy: f64 = self.probabilities.iter().map(|&p| p * surprise(p)).sum();
        let mut order: Vec<usize> = (0..self.candidates.found.len()).collect();
        let distance = |&i: &usize| (surprise(self.probabilities[i]) - entropy).abs();
        order.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
        let kept = self.prefix_with(self.params.typical_p, order.iter().copied());
        order.truncate(kept);
        order.sort_unstable();
        self.candidates.found = order
            .into_iter()
            .map(|i| self.candidates.found[i])
            .collect();
    }

    /// Nucleus sampling (Holtzman et al. 2020).
    fn keep_top_p(&mut self) {
        if self.params.top_p >= 1.0 || self.candidates.found.is_empty() {
            return;
        }
        self.softmax();
        let kept = self.prefix_with(self.params.top_p, 0..self.candidates.found.len());
        self.candidates.found.truncate(kept);
    }

    fn keep_min_p(&mut self) {
        if self.params.min_p <= 0.0 {
            return;
        }
        let least =
            f64::from(self.candidates.found[0].logit) + ln_f64(f64::from(self.params.min_p));
        let kept = self
            .candidates
            .found
            .partition_point(|c| f64::from(c.logit) >= least);
        self.candidates.found.truncate(kept.max(1));
    }

    /// Number of candidates, taken in `order`, that together reach a probability; at least one.
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

/// The candidate with the largest `logit / temperature + noise`; the lowest id among equals.
fn draw(candidates: &[Candidate], temperature: f64, noise: Noise) -> u32 {
    let score = |c: &Candidate| f64::from(c.logit) / temperature + noise.gumbel(c.token);
    let scored = candidates
        .iter()
        .map(|c| (score(c), c.token))
        .filter(|(score, _)| !score.is_nan());
    let better = |a: (f64, u32), b: (f64, u32)| {
        if b.0 > a.0 || b.0 == a.0 && b.1 < a.1 {
            b
        } else {
            a
        }
    };
    scored
        .reduce(better)
        .map_or_else(|| candidates[0].token, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.0,
            ..SamplingParams::default()
        };
        change(&mut params);
        Sampler::new(params, 8).expect("valid parameters")
    }

    /// The tokens that come up in many draws from the logits of a falling geometric distribution.
    fn seen(mut sampler: Sampler) -> Vec<u32> {
        let logits: Vec<f32> = (0..8)
            .map(|i| -(i as f32) * std::f32::consts::LN_2)
            .collect();
        let mut seen = [false; 8];
        for seed in 0..3000 {
            sampler.params.seed = seed;
            seen[sampler.sample(&logits, &[TokenId(1), TokenId(1)], None).0 as usize] = true;
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
            counts[sampler.sample(&logits, &[], None).0 as usize] += 1;
        }
        let weights = logits.map(|l| (f64::from(l) / 0.7).exp());
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let (found, expected) = (f64::from(*count) / n as f64, weight / sum);
            assert!(
                (found - expected).abs() < 0.012,
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn each_cut_keeps_the_documented_tokens() {
        // The probabilities are 1/2, 1/4, 1/8, …; together 255/256.
        assert_eq!(seen(sampler(|p| p.top_k = 3)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.top_p = 0.76)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.min_p = 0.2)), [0, 1, 2]);
        assert_eq!(seen(sampler(|p| p.top_k = 1)), [0]);
        assert_eq!(seen(sampler(|p| p.temperature = 0.0)), [0]);
        // The entropy is 1.35 nats: token 1 (1.38 nats) is the most typical, then 0 or 2 (0.69 and
        // 2.08 nats).
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
            sampler.sample(&logits, &tokens, None).0
        };
        assert_eq!(greedy(&|_| (), &[0, 0]), 0);
        assert_eq!(greedy(&|p| p.logit_bias = vec![(TokenId(5), 9.0)], &[]), 5);
        assert_eq!(greedy(&|p| p.repetition_penalty = 2.0, &[0]), 1);
        assert_eq!(greedy(&|p| p.presence_penalty = 1.5, &[0, 0]), 1);
        assert_eq!(greedy(&|p| p.frequency_penalty = 0.6, &[0]), 0);
        assert_eq!(greedy(&|p| p.frequency_penalty = 0.6, &[0, 0]), 1);
        assert_eq!(
            greedy(
                &|p| (p.presence_penalty, p.penalty_window) = (1.5, 1),
                &[0, 7]
            ),
            0
        );
    }

    /// Every sampling method, with and without changed logits and a set of allowed tokens.
    fn all_kinds() -> Vec<SamplingParams> {
        let plain = SamplingParams {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.0,
            ..SamplingParams::default()
        };
        let kinds = [
            SamplingParams::default(),
            plain.clone(),
            SamplingParams {
                temperature: 0.0,
                ..plain.clone()
            },
            SamplingParams {
                temperature: 0.3,
                ..plain.clone()
            },
            SamplingParams {
                top_k: 5,
                ..plain.clone()
            },
            SamplingParams {
                top_k: 5,
                typical_p: 0.6,
                ..plain.clone()
            },
            SamplingParams {
                min_p: 0.2,
                ..plain.clone()
            },
            SamplingParams {
                top_p: 0.5,
                ..plain.clone()
            },
            SamplingParams {
                top_p: 0.99,
                min_p: 0.01,
                ..plain.clone()
            },
            SamplingParams {
                typical_p: 0.5,
                ..plain
            },
        ];
        let changed = |params: &SamplingParams| SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            logit_bias: vec![
                (TokenId(7), 2.0),
                (TokenId(900), f32::NEG_INFINITY),
                (TokenId(3), 1.0),
                (TokenId(7), 0.5),
            ],
            ..params.clone()
        };
        kinds
            .iter()
            .cloned()
            .chain(kinds.iter().map(changed))
            .collect()
    }

    #[test]
    fn the_first_logits_give_the_tokens_that_all_logits_give() {
        const VOCAB: usize = 1001;
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        let mut num_kinds = 0;
        for mut params in all_kinds() {
            for seed in 0..60u64 {
                params.seed = seed;
                let mut sampler = Sampler::new(params.clone(), VOCAB).expect("valid parameters");
                let Some(k) = sampler.top_needed() else { break };
                num_kinds += usize::from(seed == 0);
                let noise = Noise::new(seed, 1000);
                // In eighths, so that some are equal.
                let mut logits: Vec<f32> = (0..VOCAB as u32)
                    .map(|token| (noise.gumbel(token) as f32 * 8.0).round() / 8.0)
                    .collect();
                let num_special = [0, 7, VOCAB][seed as usize % 3];
                for index in 0..num_special {
                    logits[index * 37 % VOCAB] = special[(index + seed as usize) % special.len()];
                }
                let mut top: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
                let candidate = |&(token, logit): &(u32, f32)| Candidate { token, logit };
                top.sort_by(|a, b| {
                    let by_nan = a.1.is_nan().cmp(&b.1.is_nan());
                    by_nan.then_with(|| before(&candidate(a), &candidate(b)))
                });
                let tokens = [TokenId(1); 9];
                let expected = sampler.sample(&logits, &tokens, None);
                for count in [k, k + 20] {
                    let (token, logit) = sampler.sample_top(&top[..count], tokens.len());
                    assert_eq!(token, expected, "{params:?}");
                    assert_eq!(logit.to_bits(), logits[token.0 as usize].to_bits());
                }
            }
        }
        assert_eq!(
            num_kinds, 4,
            "the kinds with top-k or without a temperature"
        );
    }

    #[test]
    fn the_first_logits_suffice_only_for_unchanged_logits_that_top_k_cuts() {
        let needed = |change: &dyn Fn(&mut SamplingParams)| sampler(|p| change(p)).top_needed();
        assert_eq!(needed(&|p| p.temperature = 0.0), Some(1));
        assert_eq!(needed(&|p| p.top_k = 7), Some(7));
        assert_eq!(needed(&|p| p.top_k = 8), None, "all tokens");
        assert_eq!(needed(&|p| p.top_p = 0.5), None);
        let bias = vec![(TokenId(5), 9.0)];
        assert_eq!(
            needed(&|p| (p.temperature, p.logit_bias) = (0.0, bias.clone())),
            None
        );
        assert_eq!(needed(&|p| (p.top_k, p.presence_penalty) = (3, 0.5)), None);
    }

    #[test]
    fn estimates_give_the_tokens_that_all_logits_give() {
        const VOCAB: usize = 3001;
        let mut fell_back = Vec::new();
        for (kind, mut params) in all_kinds().into_iter().enumerate() {
            let mut undecided = 0;
            for seed in 0..60u64 {
                params.seed = seed;
                let mut sampler = Sampler::new(params.clone(), VOCAB).expect("valid parameters");
                let noise = Noise::new(seed, 1000);
                // Distributions from flat to peaked, some with ties; errors of every size, some
                // infinite.
                let spread = [0.3, 1.0, 3.0][seed as usize % 3];
                let random =
                    |token: usize, salt: u32| noise.gumbel(token as u32 + salt * 100_000) as f32;
                let logits: Vec<f32> = (0..VOCAB)
                    .map(|t| (random(t, 0) * spread * 8.0).round() / 8.0)
                    .collect();
                let infinite = |t: usize| t % 997 == 5 && seed % 4 == 0;
                let errors: Vec<f32> = (0..VOCAB)
                    .map(|t| {
                        if infinite(t) {
                            f32::INFINITY
                        } else {
                            0.01 + 0.02 * (t % 5) as f32
                        }
                    })
                    .collect();
                let off = |t: usize| {
                    (random(t, 1).sin() * 0.98) * if infinite(t) { 50.0 } else { errors[t] }
                };
                let values: Vec<f32> = (0..VOCAB).map(|t| logits[t] + off(t)).collect();
                let tokens: Vec<TokenId> = (0..40)
                    .map(|i| TokenId((i * i * 7 + seed as u32) % VOCAB as u32))
                    .collect();
                let some: Vec<TokenId> = (0..VOCAB as u32)
                    .filter(|t| t / 50 % 3 == 1)
                    .map(TokenId)
                    .collect();
                for allowed in [None, Some(TokenSet::new(&some))] {
                    let expected = sampler.sample(&logits, &tokens, allowed.as_ref());
                    let estimates = Estimates {
                        values: &values,
                        errors: &errors,
                    };
                    let exact = |tokens: &[u32], out: &mut Vec<f32>| {
                        out.clear();
                        out.extend(tokens.iter().map(|token| logits[*token as usize]));
                    };
                    match sampler.sample_estimated(estimates, &exact, &tokens, allowed.as_ref()) {
                        Some(found) => assert_eq!(found, expected, "{params:?}"),
                        None => undecided += 1,
                    }
                    if let Some(allowed) = &allowed {
                        assert!(
                            allowed.contains(expected),
                            "{expected} is not allowed: {params:?}"
                        );
                    }
                }
            }
            fell_back.push((kind, undecided));
        }
        // Each count is out of 120 choices. Pure temperature, greedy and top-k never need all
        // logits here; top-p does on flat distributions, and typical-p always does.
        for (kind, undecided) in fell_back {
            let most = match kind % 10 {
                0..=5 => 0,
                6 => 30,
                7 | 8 => 110,
                _ => 120,
            };
            assert!(
                undecided <= most,
                "kind {kind}: {undecided} of 120 undecided"
            );
        }
    }

    #[test]
    fn a_bias_on_too_many_tokens_computes_no_single_logits() {
        let (values, errors) = ([0.0f32; 3000], [0.1f32; 3000]);
        let num_exact = std::cell::Cell::new(0);
        let exact = |tokens: &[u32], out: &mut Vec<f32>| {
            num_exact.set(num_exact.get() + tokens.len());
            out.clear();
            out.extend(tokens.iter().map(|token| *token as f32));
        };
        for (num_biases, expected) in [(256, Some(TokenId(255))), (257, None)] {
            let logit_bias = (0..num_biases)
                .map(|token| (TokenId(token), 50.0))
                .collect();
            let params = SamplingParams {
                temperature: 0.0,
                logit_bias,
                ..SamplingParams::default()
            };
            let mut sampler = Sampler::new(params, 3000).expect("valid parameters");
            let estimates = Estimates {
                values: &values,
                errors: &errors,
            };
            assert_eq!(
                sampler.sample_estimated(estimates, &exact, &[], None),
                expected
            );
            assert_eq!(num_exact.replace(0) > 0, expected.is_some());
        }
    }

    #[test]
    fn nan_logits_still_give_a_token() {
        for params in all_kinds() {
            let params = SamplingParams {
                logit_bias: Vec::new(),
                ..params
            };
            let mut sampler = Sampler::new(params, 8).expect("valid parameters");
            for logits in [[f32::NAN; 8], [f32::NEG_INFINITY; 8], [f32::INFINITY; 8]] {
                assert!(sampler.sample(&logits, &[TokenId(1)], None).0 < 8);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(
            sampler(|p| p.temperature = 0.0)
                .sample(&[0.0, 1.0, 1.0], &[], None)
                .0,
            1
        );
        assert_eq!(
            sampler(|p| p.top_k = 1)
                .sample(&[f32::NAN, 1.0, 1.0], &[], None)
                .0,
            1
        );
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
