//! [`Sequence`]: a request in progress: its tokens, its memory, its text.

use std::sync::Arc;
use std::time::Instant;

use bitnet_kernels::math::{exp_f64, ln_f64};
use bitnet_models::KvCache;
use bitnet_tokenizers::{DecodeOptions, Detokenizer, TokenId, Tokenizer};

use crate::backlog::Priority;
use crate::draft::{DraftedStep, Drafter, StepCosts};
use crate::error::Result;
use crate::memory::{Holding, Memory};
use crate::options::EngineOptions;
use crate::pooling::Pool;
use crate::request::{
    Constraint, Event, Finish, FinishReason, Logprobs, Request, RequestId, Timings,
};
use crate::sampling::Sampler;
use crate::stop::{StopStrings, TokenSet};

/// Generated text continues the prompt, so a space at its beginning counts.
const CONTINUES_A_TEXT: DecodeOptions = DecodeOptions {
    show_special: false,
    strip_space_prefix: false,
};

/// A request in progress.
pub(crate) struct Sequence {
    pub id: RequestId,
    /// The prompt, then the sampled tokens.
    pub tokens: Vec<TokenId>,
    /// Its part of the cache.
    pub held: Holding,
    /// Whether it gave up its memory: tokens that it computes again are not counted again.
    pub was_preempted: bool,
    /// Tokens before the last one that the next step computes again after a rejected draft.
    redo: usize,
    pub priority: Priority,
    /// Maximum number of tokens.
    pub tokens_max: usize,
    min_tokens: usize,
    limit: FinishReason,
    pub sampler: Sampler,
    pub logprobs: Option<usize>,
    /// The first token of the prompt whose requested log-probability is not reported yet.
    unreported: Option<usize>,
    /// The pooled hidden states of the prompt, if the request asks for them.
    pub pool: Option<Pool>,
    pub constraint: Option<Box<dyn Constraint>>,
    stop_ids: TokenSet,
    stop_strings: StopStrings,
    /// `None` for a model without a tokenizer: its answers have no text.
    detokenizer: Option<Detokenizer>,
    pub timings: Timings,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    /// The draft: tokens that may follow; this step checks them.
    pub draft: Vec<TokenId>,
    drafter: Drafter,
}

impl Sequence {
    /// A request that has been checked against `options`.
    pub fn new(
        id: RequestId,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
        options: &EngineOptions,
        vocab_size: usize,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<Self> {
        let prompt_tokens = request.prompt.len();
        let decode = DecodeOptions {
            show_special: request.show_special,
            ..CONTINUES_A_TEXT
        };
        let (tokens_max, limit) = match request.max_tokens {
            Some(n) => (prompt_tokens + n, FinishReason::Length),
            None => (options.context, FinishReason::Context),
        };
        // Room for the whole answer, so that no step allocates.
        let mut tokens = request.prompt;
        tokens.reserve_exact(tokens_max - prompt_tokens);
        let mut drafter = options.drafter(tokens_max);
        drafter.read(&tokens);
        Ok(Self {
            id,
            tokens,
            held: Holding::new(request.cache_salt, prompt_tokens, tokens_max),
            was_preempted: false,
            redo: 0,
            priority: request.priority,
            tokens_max,
            min_tokens: request.min_tokens,
            limit,
            sampler: Sampler::new(request.sampling, vocab_size)?,
            logprobs: request.logprobs,
            unreported: (request.prompt_logprobs
                && request.logprobs.is_some()
                && prompt_tokens > 1)
                .then_some(1),
            pool: request.pooling.map(Pool::new),
            constraint,
            stop_ids: TokenSet::new(&request.stop_ids),
            stop_strings: StopStrings::new(request.stop_strings)?,
            detokenizer: tokenizer.map(|tokenizer| Detokenizer::new(tokenizer, decode)),
            timings: Timings {
                prompt_tokens,
                ..Timings::default()
            },
            submitted: Instant::now(),
            started: None,
            first_token: None,
            draft: Vec::new(),
            drafter,
        })
    }

    /// Tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.held.computed
    }

    /// Whether its next step decodes: it computes the token after a sampled one.
    pub fn is_decoding(&self) -> bool {
        self.timings.generated_tokens > 0 && self.pending() == 1 + self.redo
    }

    /// Takes memory for all its tokens, known blocks first; takes none and returns false if there
    /// is too little.
    pub fn admit(&mut self, memory: &mut Memory) -> bool {
        let reusable = self.reusable();
        memory.admit(&mut self.held, &self.tokens, reusable)
    }

    /// Reuses the next blocks as far as other sequences have computed them since.
    pub fn take_over(&mut self, memory: &mut Memory) {
        let reusable = self.reusable();
        memory.take_over(&mut self.held, &self.tokens, reusable);
    }

    /// Whether `other` also computes the next block of this sequence, so that this sequence can
    /// soon reuse it.
    pub fn can_wait_for(&self, other: &Self) -> bool {
        let (known, theirs) = (self.held.num_known, &other.held);
        let next = known * KvCache::BLOCK..(known + 1) * KvCache::BLOCK;
        // If the block before matches, all earlier blocks match.
        next.end <= self.reusable()
            && theirs.num_known == known
            && self.held.salt == theirs.salt
            && self.held.blocks[..known].last() == theirs.blocks[..known].last()
            && other.tokens.get(next.clone()) == Some(&self.tokens[next])
    }

    /// Maximum number of tokens from known blocks: all but the last, whose logits are needed.
    fn reusable(&self) -> usize {
        if self.needs_all_rows() {
            0
        } else {
            self.tokens.len() - 1
        }
    }

    /// Number of pending tokens, at most `n`, to compute in one step.
    pub fn step_len(&self, n: usize) -> usize {
        Memory::step_len(&self.held, n.min(self.pending()))
    }

    /// Whether the rows of all tokens of its prompt are needed, not only the last one's.
    pub fn needs_all_rows(&self) -> bool {
        self.reports_prompt() || self.pool.as_ref().is_some_and(Pool::needs_all_rows)
    }

    /// Whether the last row of its prompt needs logits, or earlier rows.
    pub fn needs_logits(&self) -> bool {
        self.reports_prompt() || !self.is_full()
    }

    /// How many of the first logits of a row its next tokens are sampled from; `None` if they may
    /// need others.
    pub fn top_needed(&self) -> Option<usize> {
        let needs_others = self.logprobs.is_some()
            || self.reports_prompt()
            || self.constraint.is_some()
            || self.forbidden().is_some();
        self.sampler.top_needed().filter(|_| !needs_others)
    }

    /// Whether log-probabilities of its prompt are not reported yet; they need all its rows.
    pub fn reports_prompt(&self) -> bool {
        self.unreported.is_some()
    }

    /// Log-probabilities of the prompt's tokens, from the rows of the tokens from `first` on.
    pub fn report_prompt<'a>(
        &mut self,
        first: usize,
        rows: impl Iterator<Item = &'a [f32]>,
    ) -> Vec<Logprobs> {
        let mut reports = Vec::new();
        for (position, logits) in (first + 1..self.timings.prompt_tokens).zip(rows) {
            // The earlier log-probabilities were reported before the sequence gave up its blocks.
            if self.unreported == Some(position) {
                reports.push(logprobs(
                    logits,
                    self.tokens[position],
                    self.logprobs.unwrap_or(0),
                ));
                self.unreported =
                    Some(position + 1).filter(|next| *next < self.timings.prompt_tokens);
            }
        }
        reports
    }

    /// Gives back its memory. Later it computes its tokens again, except the ones in known blocks.
    pub fn give_up_memory(&mut self, memory: &mut Memory) {
        memory.give_back(&mut self.held);
        self.redo = 0;
        self.was_preempted = true;
    }

    /// `n` more tokens are in the cache.
    pub fn advance(&mut self, n: usize, memory: &mut Memory, step_start: Instant) {
        self.started.get_or_insert(step_start);
        self.redo = 0;
        memory.advance(&mut self.held, &self.tokens, n);
    }

    /// Ends the check of a draft that begins at `start`. If part of it was rejected, a model with a
    /// state computes the accepted tokens again.
    pub fn end_draft(&mut self, start: usize, memory: &mut Memory) {
        memory.end_draft(&mut self.held, start);
        self.redo = self.pending() - 1;
    }

    /// Takes its draft back after the check; the first `accepted` tokens were right.
    pub fn keep_draft(&mut self, draft: Vec<TokenId>, accepted: usize) {
        if !draft.is_empty() {
            self.drafter.checked(draft.len(), accepted);
        }
        self.draft = draft;
    }

    /// Finds a draft to check in this step, if there is memory for it.
    /// `others`, `other_rows`: other sequences in the step, and their rows.
    pub fn find_draft(
        &mut self,
        others: usize,
        other_rows: usize,
        costs: &StepCosts,
        memory: &mut Memory,
    ) {
        self.draft.clear();
        if self.redo > 0 {
            return;
        }
        // The token after the draft is sampled, too.
        let most = self.tokens_max.saturating_sub(self.tokens.len() + 1);
        let room = self.held.blocks.len() * KvCache::BLOCK - self.held.computed - 1;
        // A draft ends at a position where the state may be saved.
        let room = Memory::step_len(&self.held, 1 + most.min(room)) - 1;
        let step = DraftedStep {
            others,
            other_rows,
            recomputes: self.held.state.is_some(),
        };
        self.drafter
            .draft(&self.tokens, room, step, costs, &mut self.draft);
        if !self.draft.is_empty() && !memory.begin_draft(&mut self.held) {
            self.draft.clear();
        }
    }

    /// Whether the answer has no tokens: nothing is sampled after the prompt.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= self.tokens_max
    }

    /// Tokens that must not be sampled yet.
    pub fn forbidden(&self) -> Option<&TokenSet> {
        (self.timings.generated_tokens < self.min_tokens).then_some(&self.stop_ids)
    }

    /// Ends an answer without sampling.
    pub fn end_unsampled(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        self.timings.prefill = now - self.started.unwrap_or(now);
        events.push(Event::Finished {
            id: self.id,
            text: String::new(),
            finish: self.finish(self.limit),
        });
    }

    fn finish(&mut self, reason: FinishReason) -> Finish {
        Finish {
            reason,
            stop_string: self.stop_strings.found(),
            timings: self.timings,
            pooled: self.pool.take().map(Pool::finish),
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
        self.drafter.push(&self.tokens);
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
            false => {
                let text = self.detokenizer.as_mut().map_or("", |d| d.push(token));
                if self.timings.generated_tokens <= self.min_tokens {
                    (text.to_owned(), false)
                } else {
                    self.stop_strings.push(text)
                }
            }
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
            // The text that the detokenizer still holds may complete a stop string.
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
            finish: self.finish(reason),
        });
        true
    }
}

/// The log-probability of a token and the `top` most probable tokens, ties by lowest id.
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
