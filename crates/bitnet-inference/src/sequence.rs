//! [`Sequence`]: one request on its way: its tokens, its blocks, the text they have become.

use std::sync::Arc;
use std::time::Instant;

use bitnet_kernels::math::{exp_f64, ln_f64};
use bitnet_models::KvCache;
use bitnet_tokenizers::{DecodeOptions, Detokenizer, TokenId, Tokenizer};

use crate::block_pool::BlockPool;
use crate::error::Result;
use crate::request::{
    Constraint, Event, Finish, FinishReason, Logprobs, Request, RequestId, Timings,
};
use crate::sampling::Sampler;
use crate::stop::{StopStrings, TokenSet};

/// What is generated goes on from the prompt, so a space at its beginning is meant.
const CONTINUES_A_TEXT: DecodeOptions = DecodeOptions {
    show_special: false,
    strip_space_prefix: false,
};

/// The longest and shortest run of tokens that a draft is looked up by.
const DRAFT_KEY: std::ops::RangeInclusive<usize> = 2..=4;

/// One request on its way.
pub(crate) struct Sequence {
    pub id: RequestId,
    /// The prompt, then what was sampled.
    pub tokens: Vec<TokenId>,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    pub blocks: Vec<u32>,
    /// Blocks whose content the pool knows.
    num_known: usize,
    /// It gave its blocks up once: what it computes again is not counted again.
    pub was_preempted: bool,
    cache_salt: Option<Arc<str>>,
    /// The most tokens it may come to.
    pub tokens_max: usize,
    limit: FinishReason,
    pub sampler: Sampler,
    pub logprobs: Option<usize>,
    /// The first token of the prompt whose log-probability is wanted and was not told yet, if there
    /// is one.
    untold: Option<usize>,
    pub constraint: Option<Box<dyn Constraint>>,
    stop_ids: TokenSet,
    stop_strings: StopStrings,
    /// `None` for a model without a tokenizer: its answers have no text.
    detokenizer: Option<Detokenizer>,
    pub timings: Timings,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    /// Tokens that may follow, to be checked in this step.
    pub draft: Vec<TokenId>,
}

impl Sequence {
    /// A request that has been checked, of at most `context` tokens.
    pub fn new(
        id: RequestId,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
        context: usize,
        vocab_size: usize,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<Self> {
        let prompt_tokens = request.prompt.len();
        let (tokens_max, limit) = match request.max_tokens {
            Some(n) => (prompt_tokens + n, FinishReason::Length),
            None => (context, FinishReason::Context),
        };
        // Room for the whole answer, so that no step has to make any.
        let mut tokens = request.prompt;
        tokens.reserve_exact(tokens_max - prompt_tokens);
        Ok(Self {
            id,
            tokens,
            computed: 0,
            blocks: Vec::with_capacity(tokens_max.div_ceil(KvCache::BLOCK)),
            num_known: 0,
            was_preempted: false,
            cache_salt: request.cache_salt,
            tokens_max,
            limit,
            sampler: Sampler::new(request.sampling, vocab_size)?,
            logprobs: request.logprobs,
            untold: (request.prompt_logprobs && request.logprobs.is_some() && prompt_tokens > 1)
                .then_some(1),
            constraint,
            stop_ids: TokenSet::new(&request.stop_ids),
            stop_strings: StopStrings::new(request.stop_strings)?,
            detokenizer: tokenizer.map(|tokenizer| Detokenizer::new(tokenizer, CONTINUES_A_TEXT)),
            timings: Timings {
                prompt_tokens,
                ..Timings::default()
            },
            submitted: Instant::now(),
            started: None,
            first_token: None,
            draft: Vec::new(),
        })
    }

    /// Tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its next step gives a token from one that was sampled.
    pub fn is_decoding(&self) -> bool {
        self.timings.generated_tokens > 0 && self.pending() == 1
    }

    /// Takes blocks for all its tokens, those known from before first; false, and none, if there
    /// are too few.
    pub fn admit(&mut self, pool: &mut BlockPool) -> bool {
        // The last token is always computed, since its logits are needed.
        let reusable = if self.tells_prompt() {
            &[]
        } else {
            &self.tokens[..self.tokens.len() - 1]
        };
        pool.take_known(self.cache_salt.as_ref(), reusable, &mut self.blocks);
        let known = self.blocks.len();
        if !pool.take(
            self.tokens.len().div_ceil(KvCache::BLOCK) - known,
            &mut self.blocks,
        ) {
            pool.give_back(&mut self.blocks);
            return false;
        }
        self.num_known = known;
        self.computed = known * KvCache::BLOCK;
        true
    }

    /// Takes over the next blocks as far as others have computed them since.
    pub fn take_over(&mut self, pool: &mut BlockPool) {
        while let Some(end) = self.next_reusable()
            && pool.take_over(
                self.cache_salt.as_ref(),
                &self.tokens,
                &mut self.blocks,
                self.num_known,
            )
        {
            self.num_known += 1;
            self.computed = end;
        }
    }

    /// Whether `other` is at the block that comes next here, too: it will be there to be taken
    /// over.
    pub fn can_wait_for(&self, other: &Self) -> bool {
        let Some(end) = self.next_reusable() else {
            return false;
        };
        let (known, next) = (self.num_known, end - KvCache::BLOCK..end);
        // Where it is one and the same block that comes before, so is all that comes before that.
        other.num_known == known
            && self.cache_salt == other.cache_salt
            && self.blocks[..known].last() == other.blocks[..known].last()
            && other.tokens.get(next.clone()) == Some(&self.tokens[next])
    }

    /// The end of the first block that is not known, if it need not be computed here: the last
    /// token always is, since its logits are needed.
    fn next_reusable(&self) -> Option<usize> {
        let end = (self.num_known + 1) * KvCache::BLOCK;
        (end < self.tokens.len() && !self.tells_prompt()).then_some(end)
    }

    /// Whether log-probabilities of its prompt are still to be told, for which all its rows are
    /// needed.
    pub fn tells_prompt(&self) -> bool {
        self.untold.is_some()
    }

    /// Log-probabilities of the prompt's tokens from the rows of those from `first` on.
    pub fn tell_prompt<'a>(
        &mut self,
        first: usize,
        rows: impl Iterator<Item = &'a [f32]>,
    ) -> Vec<Logprobs> {
        let mut told = Vec::new();
        for (position, logits) in (first + 1..self.timings.prompt_tokens).zip(rows) {
            // What comes before was told before the blocks were given up.
            if self.untold == Some(position) {
                told.push(logprobs(
                    logits,
                    self.tokens[position],
                    self.logprobs.unwrap_or(0),
                ));
                self.untold = Some(position + 1).filter(|next| *next < self.timings.prompt_tokens);
            }
        }
        told
    }

    /// Gives its blocks back; what it has computed has to be computed again, as far as it is not
    /// found in the pool then.
    pub fn give_up_blocks(&mut self, pool: &mut BlockPool) {
        pool.give_back(&mut self.blocks);
        (self.computed, self.num_known) = (0, 0);
        self.was_preempted = true;
    }

    /// `n` more tokens are in the cache.
    pub fn advance(&mut self, n: usize, pool: &mut BlockPool, step_start: Instant) {
        self.started.get_or_insert(step_start);
        self.computed += n;
        while (self.num_known + 1) * KvCache::BLOCK <= self.computed {
            pool.fill(
                self.cache_salt.as_ref(),
                &self.tokens,
                &mut self.blocks,
                self.num_known,
            );
            self.num_known += 1;
        }
    }

    /// Looks up what followed the last tokens when they came before (prompt lookup, Saxena 2023):
    /// at most `most` tokens, the longest match first, the latest among equals.
    pub fn find_draft(&mut self, most: usize) {
        self.draft.clear();
        // The token after the draft is sampled, too.
        let most = most.min(self.tokens_max.saturating_sub(self.tokens.len() + 1));
        if most == 0 {
            return;
        }
        let tokens = &self.tokens;
        for key in DRAFT_KEY.rev().filter(|key| tokens.len() > *key) {
            let (before, last) = tokens.split_at(tokens.len() - key);
            // A match may overlap the key itself, but must have something after it.
            let found = (0..before.len())
                .rev()
                .find(|&at| tokens[at..at + key] == *last);
            if let Some(at) = found {
                let after = &tokens[at + key..];
                self.draft
                    .extend_from_slice(&after[..most.min(after.len())]);
                return;
            }
        }
    }

    /// Takes the token that was sampled; true if that ends the sequence.
    pub fn push(
        &mut self,
        token: TokenId,
        logprobs: Option<Logprobs>,
        events: &mut Vec<Event>,
    ) -> bool {
        if let Some(Err(problem)) = self
            .constraint
            .as_mut()
            .map(|constraint| constraint.accept(token))
        {
            events.push(Event::Failed {
                id: self.id,
                problem,
            });
            return true;
        }
        self.tokens.push(token);
        self.timings.generated_tokens += 1;
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = *self.first_token.get_or_insert(now);
        self.timings.first_token = first - self.submitted;
        self.timings.prefill = first - started;
        self.timings.decode = now - first;

        let is_stop = self.stop_ids.contains(token);
        let (text, found) = match is_stop {
            true => (String::new(), false),
            false => self
                .stop_strings
                .push(self.detokenizer.as_mut().map_or("", |d| d.push(token))),
        };
        events.push(Event::Token {
            id: self.id,
            token,
            text,
            logprobs,
        });
        let reason = match () {
            () if is_stop || found => FinishReason::Stop,
            () if self.tokens.len() >= self.tokens_max => self.limit,
            () => return false,
        };
        let mut text = String::new();
        if !found {
            // What the detokenizer still holds may complete a stop string.
            let (shown, found) = self
                .stop_strings
                .push(self.detokenizer.as_mut().map_or("", Detokenizer::finish));
            text = shown;
            if !found {
                text.push_str(&self.stop_strings.finish());
            }
        }
        events.push(Event::Finished {
            id: self.id,
            text,
            finish: Finish {
                reason,
                timings: self.timings,
            },
        });
        true
    }
}

/// The log-probability of a token, and those of the `top` most probable ones, ties by lowest id.
pub(crate) fn logprobs(logits: &[f32], token: TokenId, top: usize) -> Logprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| exp_f64(f64::from(logit - largest)))
        .sum();
    let logprob = |logit: f32| (f64::from(logit - largest) - ln_f64(sum)) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let more_probable = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    if top < order.len() {
        order.select_nth_unstable_by(top, more_probable);
        order.truncate(top);
    }
    order.sort_unstable_by(more_probable);
    let top = order
        .into_iter()
        .map(|token| (TokenId(token), logprob(logits[token as usize])))
        .collect();
    Logprobs {
        token: logprob(logits[token.0 as usize]),
        top,
    }
}
