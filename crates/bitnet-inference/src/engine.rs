//! [`Engine`]: sequences, step by step.
//!
//! A step runs the next tokens of every running sequence through the model together, so that
//! weights are read once: first one token for each sequence that is decoding, then prompts, in
//! chunks: long ones while nobody decodes, short ones otherwise, so that a long prompt does not
//! keep the others waiting. Half of a chunk is for the prompt that came first, the rest for those
//! with the fewest tokens left, so that a short prompt does not wait for a long one. Of prompts
//! that begin alike one computes the beginning, and the others wait and take it over, block by
//! block.
//!
//! A sequence starts when there are cache blocks for its prompt, and takes more as it grows. If
//! none is left, the sequence that came last gives its blocks up and computes them again later.
//! Neither that, nor what else runs, nor what was still in the cache, changes a bit of anybody's
//! answer: rows do not influence each other.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_kernels::Counters;
use bitnet_models::{Chunk, FfnActivity, KvCache, KvType, LogitRows, ModelInfo};
use bitnet_tokenizers::{TokenId, Tokenizer};

use crate::block_pool::BlockPool;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::request::{Constraint, Event, Finish, Request, RequestId, Timings};
use crate::runner::{Model, Runner};
use crate::sequence::{Sequence, logprobs};
use crate::stop::TokenSet;

/// The engine's bounds.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// The most positions that a sequence may have.
    pub context: usize,
    /// Positions that the key/value cache holds for all sequences together, at least `context`.
    pub cache: usize,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// The most tokens of prompts in a step in which nobody decodes.
    pub prefill_chunk: usize,
    /// The most tokens of prompts in a step in which others decode; fewer far into a prompt, where
    /// a token takes longer.
    pub mixed_chunk: usize,
    /// The most sequences that run at once.
    pub running_max: usize,
    /// The most tokens guessed ahead of each sequence from what it said before, and checked in the
    /// same step; 0 for none.
    pub draft_max: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            context: 4096,
            cache: 4096,
            kv_type: KvType::F16,
            prefill_chunk: 128,
            mixed_chunk: 8,
            running_max: 64,
            draft_max: 0,
        }
    }
}

impl EngineOptions {
    /// Blocks of the key/value cache.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.cache.max(self.context).div_ceil(KvCache::BLOCK)
    }
}

/// How often estimated logits decided which token came next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadUse {
    /// Tokens sampled from estimates, or tried to.
    pub screened: u64,
    /// Those of them for which all logits were needed after all.
    pub fell_back: u64,
    /// Logits computed in full, one by one.
    pub exact_logits: u64,
    /// Those of them that did not help: all logits were needed after all.
    pub wasted_logits: u64,
}

impl HeadUse {
    fn add(&mut self, num_exact: u64, decided: bool) {
        self.screened += 1;
        self.exact_logits += num_exact;
        if !decided {
            self.fell_back += 1;
            self.wasted_logits += num_exact;
        }
    }
}

/// What the engine did since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Steps that ran tokens through the model.
    pub steps: u64,
    /// Tokens run through the model, drafts counted in.
    pub computed_tokens: u64,
    /// Tokens of prompts of started requests.
    pub prompt_tokens: u64,
    /// Those of them that did not have to be computed.
    pub cached_tokens: u64,
    /// Sequences that had to give their blocks up.
    pub preemptions: u64,
    /// Drafts, each some tokens guessed ahead.
    pub drafts: u64,
    /// Tokens of them.
    pub drafted_tokens: u64,
    /// Those of them that came.
    pub accepted_tokens: u64,
    /// The same by their place in the draft.
    pub accepted_by_place: [u64; DRAFT_MAX],
}

/// The most tokens that are guessed ahead.
pub const DRAFT_MAX: usize = 16;
/// The most sequences decoding at once for which drafts are checked: with more, the rows pay as
/// they are.
const DRAFTING_MAX: usize = 2;

/// The part of a sequence that a step computes.
#[derive(Clone, Copy)]
struct Planned {
    /// Its place among the running ones.
    index: usize,
    /// Tokens taken, without its draft.
    tokens: usize,
}

/// Runs requests on one model.
pub struct Engine {
    runner: Box<dyn Runner>,
    tokenizer: Option<Arc<Tokenizer>>,
    options: EngineOptions,
    blocks: BlockPool,
    waiting: VecDeque<Sequence>,
    /// In the order of their arrival.
    running: Vec<Sequence>,
    /// The position at which attention takes as long as the ternary products of a token.
    halfway: usize,
    num_requests: u64,
    head_use: HeadUse,
    counts: EngineCounts,
    // What follows is of one step, and kept so that a step allocates nothing.
    plan: Vec<Planned>,
    /// Places of the sequences whose prompts are being computed, in the order in which they get
    /// their share of the step.
    prefilling: Vec<usize>,
    /// Ids of the tokens of one step, as the model takes them.
    step_tokens: Vec<u32>,
    /// Rows whose logits are all needed from the start.
    full_rows: Vec<usize>,
    /// Their logits, `[full rows, vocab]`.
    full_logits: Vec<f32>,
    /// All logits of one row, for which estimates did not do.
    row_logits: Vec<f32>,
    allowed: TokenSet,
    ended: Vec<usize>,
}

impl Engine {
    /// An engine for a model on a device, with a cache of its own. Without a tokenizer, answers are
    /// tokens only.
    ///
    /// # Errors
    /// If there is not enough memory for the cache.
    pub fn new(
        model: Arc<dyn Model>,
        tokenizer: Option<Arc<Tokenizer>>,
        device: Device,
        options: EngineOptions,
    ) -> Result<Self> {
        let num_blocks = options.num_blocks();
        let runner = model.runner(device, options.kv_type, num_blocks)?;
        Ok(Self::with_runner(runner, tokenizer, options))
    }

    /// An engine for a runner whose cache has [`EngineOptions::num_blocks`] blocks.
    #[must_use]
    pub fn with_runner(
        runner: Box<dyn Runner>,
        tokenizer: Option<Arc<Tokenizer>>,
        options: EngineOptions,
    ) -> Self {
        Self {
            halfway: runner.halfway(),
            runner,
            tokenizer,
            blocks: BlockPool::new(options.num_blocks()),
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_requests: 0,
            head_use: HeadUse::default(),
            counts: EngineCounts::default(),
            plan: Vec::new(),
            prefilling: Vec::new(),
            step_tokens: Vec::new(),
            full_rows: Vec::new(),
            full_logits: Vec::new(),
            row_logits: Vec::new(),
            allowed: TokenSet::default(),
            ended: Vec::new(),
        }
    }

    /// Facts about the model.
    #[must_use]
    pub fn model(&self) -> &ModelInfo {
        self.runner.model()
    }

    /// Where the model runs.
    #[must_use]
    pub fn device(&self) -> Device {
        self.runner.device()
    }

    /// The kernels that ran so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.runner.counters()
    }

    /// The engine's bounds.
    #[must_use]
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// How the screened head fared so far.
    #[must_use]
    pub fn head_use(&self) -> HeadUse {
        self.head_use
    }

    /// What went through the feed-forward network of each layer so far; empty if nothing did.
    #[must_use]
    pub fn ffn_activity(&self) -> &[FfnActivity] {
        self.runner.ffn_activity()
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> EngineCounts {
        self.counts
    }

    /// Requests that wait, and requests that run.
    #[must_use]
    pub fn num_requests(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Blocks of the cache that no request holds, and blocks in all.
    #[must_use]
    pub fn free_blocks(&self) -> (usize, usize) {
        (self.blocks.num_available(), self.blocks.num_blocks())
    }

    /// Whether any request is waiting or running.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Forgets what earlier requests left in the cache.
    pub fn clear_cache(&mut self) {
        self.blocks.forget();
    }

    /// Takes a request.
    ///
    /// # Errors
    /// If the prompt is empty, has tokens outside the vocabulary or does not fit into the context
    /// together with the tokens asked for, or a parameter is out of range.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.submit_constrained(request, None)
    }

    /// Takes a request whose tokens a constraint allows one by one.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_constrained(
        &mut self,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<RequestId> {
        self.check_tokens(&request.prompt)?;
        let (prompt, context) = (request.prompt.len(), self.options.context);
        let generate = request.max_tokens.unwrap_or(1);
        if prompt.saturating_add(generate) > context {
            return Err(Error::ContextLength {
                prompt,
                generate,
                context,
            });
        }
        let id = RequestId(self.num_requests);
        let vocab_size = self.model().config.vocab_size;
        let sequence = Sequence::new(
            id,
            request,
            constraint,
            context,
            vocab_size,
            self.tokenizer.clone(),
        )?;
        self.num_requests += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    fn check_tokens(&self, tokens: &[TokenId]) -> Result<()> {
        let vocab_size = self.model().config.vocab_size;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        match tokens
            .iter()
            .position(|token| token.0 as usize >= vocab_size)
        {
            Some(index) => Err(Error::TokenRange {
                index,
                token: tokens[index],
                last: vocab_size - 1,
            }),
            None => Ok(()),
        }
    }

    /// Forgets a request; its blocks are free at once. Returns what it took so far; `None` if it
    /// has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Timings> {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            return self.waiting.remove(index).map(|sequence| sequence.timings);
        }
        let index = self.running.iter().position(|sequence| sequence.id == id)?;
        let mut sequence = self.running.remove(index);
        sequence.give_up_blocks(&mut self.blocks);
        Some(sequence.timings)
    }

    /// Runs a request to its end, alone: the tokens sampled, and how it ended.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    ///
    /// # Panics
    /// If other requests are waiting or running: what they bring would be lost.
    pub fn complete(&mut self, request: Request) -> Result<(Vec<TokenId>, Finish)> {
        assert!(
            !self.is_busy(),
            "other requests: {:?} wait and run",
            self.num_requests()
        );
        self.submit(request)?;
        let (mut tokens, mut events) = (Vec::new(), Vec::new());
        loop {
            self.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Prefill { .. } => {}
                    Event::Token { token, .. } => tokens.push(token),
                    Event::Finished { finish, .. } => return Ok((tokens, finish)),
                    Event::Failed { problem, .. } => {
                        unreachable!("without a constraint: {problem}")
                    }
                }
            }
        }
    }

    /// Runs one step and adds what it brought to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.admit();
        self.schedule();
        if self.plan.is_empty() {
            return;
        }
        let now = Instant::now();
        self.forward();
        self.advance(now, now.elapsed(), events);
    }

    /// Starts waiting requests, in order, while there is room for them.
    fn admit(&mut self) {
        while self.running.len() < self.options.running_max.max(1) {
            let Some(sequence) = self.waiting.front_mut() else {
                return;
            };
            if !sequence.admit(&mut self.blocks) {
                return;
            }
            if !sequence.was_preempted {
                sequence.timings.cached_tokens = sequence.computed;
                self.counts.prompt_tokens += sequence.timings.prompt_tokens as u64;
                self.counts.cached_tokens += sequence.computed as u64;
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Decides which tokens the step computes, and sees to it that there are blocks for them.
    fn schedule(&mut self) {
        self.plan.clear();
        let num_decoding = self
            .running
            .iter()
            .filter(|sequence| sequence.is_decoding())
            .count();
        // Rows that are checked together with the first cost little as long as they are few.
        let draft_max = if num_decoding <= DRAFTING_MAX {
            self.options.draft_max.min(DRAFT_MAX)
        } else {
            0
        };
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            sequence.draft.clear();
            if sequence.is_decoding() {
                if sequence.computed == sequence.blocks.len() * KvCache::BLOCK && !self.grow(index)
                {
                    // It has given up its own blocks, and was the last.
                    break;
                }
                let sequence = &mut self.running[index];
                if draft_max > 0 && sequence.constraint.is_none() {
                    sequence.find_draft(draft_max);
                    let room = sequence.blocks.len() * KvCache::BLOCK - sequence.computed - 1;
                    sequence.draft.truncate(room);
                }
                self.plan.push(Planned { index, tokens: 1 });
            }
            index += 1;
        }
        self.schedule_prompts();
    }

    /// Shares out what the step has for prompts. While nobody decodes that is a number of tokens.
    /// Otherwise it is the time that so many tokens take at the beginning of a prompt, for which
    /// there are fewer further on.
    fn schedule_prompts(&mut self) {
        let Self {
            running,
            plan,
            prefilling,
            blocks,
            counts,
            ..
        } = self;
        let is_mixed = !plan.is_empty();
        let budget = if is_mixed {
            self.options.mixed_chunk
        } else {
            self.options.prefill_chunk
        }
        .max(1);
        // In parts of the time of a token at the beginning, each `1 / halfway` of it.
        let halfway = self.halfway;
        let mut time = budget * halfway;
        let cost = |sequence: &Sequence| halfway + if is_mixed { sequence.computed } else { 0 };
        let affordable =
            |time: usize, sequence: &Sequence| (time + cost(sequence) / 2) / cost(sequence);
        prefilling.clear();
        for (index, sequence) in running
            .iter_mut()
            .enumerate()
            .filter(|(_, sequence)| !sequence.is_decoding())
        {
            let before = sequence.computed;
            sequence.take_over(blocks);
            if !sequence.was_preempted {
                sequence.timings.cached_tokens += sequence.computed - before;
                counts.cached_tokens += (sequence.computed - before) as u64;
            }
            prefilling.push(index);
        }
        let Some((_, others)) = prefilling.split_first_mut() else {
            return;
        };
        others.sort_unstable_by_key(|&index| (running[index].pending(), index));
        let first = plan.len();
        for &index in &*prefilling {
            let sequence = &running[index];
            if plan[first..]
                .iter()
                .any(|planned| sequence.can_wait_for(&running[planned.index]))
            {
                continue;
            }
            let tokens = if plan.len() == first {
                // However far it is, it goes on.
                affordable(budget.div_ceil(2) * halfway, sequence).max(1)
            } else {
                affordable(time, sequence)
            };
            let tokens = sequence.pending().min(tokens);
            if tokens > 0 {
                plan.push(Planned { index, tokens });
                time = time.saturating_sub(tokens * cost(sequence));
            }
        }
        // What nobody else has use for.
        let Planned { index, tokens } = &mut plan[first];
        let sequence = &running[*index];
        *tokens += affordable(time, sequence).min(sequence.pending() - *tokens);
    }

    /// Takes one more block for a running sequence. While there is none, the sequence that came
    /// last gives up its own; false if that was this one.
    fn grow(&mut self, index: usize) -> bool {
        while !self.blocks.take(1, &mut self.running[index].blocks) {
            let Some(mut last) = self.running.pop() else {
                unreachable!("a running sequence")
            };
            last.give_up_blocks(&mut self.blocks);
            self.counts.preemptions += 1;
            self.waiting.push_front(last);
            if index == self.running.len() {
                return false;
            }
        }
        true
    }

    fn forward(&mut self) {
        let Self {
            runner,
            running,
            plan,
            step_tokens,
            counts,
            ..
        } = self;
        step_tokens.clear();
        for planned in &*plan {
            let sequence = &running[planned.index];
            let tokens = &sequence.tokens[sequence.computed..sequence.computed + planned.tokens];
            step_tokens.extend(tokens.iter().chain(&sequence.draft).map(|token| token.0));
        }
        counts.steps += 1;
        counts.computed_tokens += step_tokens.len() as u64;
        let mut rest = step_tokens.as_slice();
        let mut chunks = plan.iter().map(|planned| {
            let sequence = &running[planned.index];
            let (tokens, others) = rest.split_at(planned.tokens + sequence.draft.len());
            rest = others;
            let logits = match (
                sequence.pending() == planned.tokens,
                sequence.draft.is_empty(),
            ) {
                _ if sequence.tells_prompt() => LogitRows::All,
                (false, _) => LogitRows::None,
                (true, true) => LogitRows::Last,
                (true, false) => LogitRows::All,
            };
            Chunk {
                tokens,
                position: sequence.computed,
                blocks: &sequence.blocks,
                logits,
            }
        });
        runner.step(&mut chunks);
    }

    /// Samples for the sequences whose tokens are all computed, and ends what has come to its end.
    fn advance(&mut self, step_start: Instant, forward: Duration, events: &mut Vec<Event>) {
        self.ended.clear();
        self.project();
        let mut row = 0;
        let plan = std::mem::take(&mut self.plan);
        for planned in &plan {
            let sequence = &mut self.running[planned.index];
            let is_complete = sequence.pending() == planned.tokens;
            let mut logprobs = Vec::new();
            if sequence.tells_prompt() {
                let vocab = self.runner.model().config.vocab_size;
                let place = self.full_rows.partition_point(|full| *full < row);
                let rows = self.full_logits[place * vocab..]
                    .chunks_exact(vocab)
                    .take(planned.tokens);
                logprobs = sequence.tell_prompt(sequence.computed, rows);
                // The last row of a prompt is sampled from below.
                row += planned.tokens - usize::from(is_complete);
            }
            sequence.advance(planned.tokens, &mut self.blocks, step_start);
            if sequence.timings.generated_tokens == 0 {
                sequence.timings.prefill_forward += forward;
                let (done, total) = (sequence.computed, sequence.tokens.len());
                events.push(Event::Prefill {
                    id: sequence.id,
                    done,
                    total,
                    logprobs,
                });
            } else {
                sequence.timings.decode_forward += forward;
            }
            if !is_complete {
                continue;
            }
            let num_rows = sequence.draft.len() + 1;
            let draft = std::mem::take(&mut sequence.draft);
            self.counts.drafts += u64::from(!draft.is_empty());
            self.counts.drafted_tokens += draft.len() as u64;
            sequence.timings.drafted_tokens += draft.len();
            for (index, guess) in draft.iter().map(Some).chain([None]).enumerate() {
                match self.sample(planned.index, row + index, events) {
                    None => {
                        self.ended.push(planned.index);
                        break;
                    }
                    Some(token) if Some(&token) == guess => {
                        self.counts.accepted_tokens += 1;
                        self.counts.accepted_by_place[index] += 1;
                        self.running[planned.index].timings.accepted_tokens += 1;
                        self.running[planned.index].advance(1, &mut self.blocks, step_start);
                    }
                    Some(_) => break,
                }
            }
            self.running[planned.index].draft = draft;
            row += num_rows;
        }
        self.plan = plan;
        self.ended.sort_unstable();
        while let Some(index) = self.ended.pop() {
            let mut sequence = self.running.remove(index);
            sequence.give_up_blocks(&mut self.blocks);
        }
    }

    /// Estimates the logits of the step's rows, and computes in full those of rows for which that
    /// is asked or will not do.
    fn project(&mut self) {
        let Self {
            runner,
            running,
            plan,
            full_rows,
            full_logits,
            ..
        } = self;
        full_rows.clear();
        let mut num_rows = 0;
        for planned in &*plan {
            let sequence = &running[planned.index];
            let rows = match sequence.pending() == planned.tokens {
                _ if sequence.tells_prompt() => planned.tokens,
                true => sequence.draft.len() + 1,
                false => 0,
            };
            if sequence.logprobs.is_some() {
                full_rows.extend(num_rows..num_rows + rows);
            }
            num_rows += rows;
        }
        if full_rows.len() < num_rows && !runner.estimate() {
            full_rows.clear();
            full_rows.extend(0..num_rows);
        }
        if !full_rows.is_empty() {
            runner.logits(full_rows, full_logits);
        }
    }

    /// Samples the token that a row of the step gives a sequence, and takes it; `None` if that ends
    /// the sequence.
    fn sample(&mut self, index: usize, row: usize, events: &mut Vec<Event>) -> Option<TokenId> {
        let Self {
            runner,
            running,
            full_rows,
            full_logits,
            row_logits,
            allowed,
            head_use,
            ..
        } = self;
        let vocab = runner.model().config.vocab_size;
        let sequence = &mut running[index];
        let allowed = match &mut sequence.constraint {
            None => None,
            Some(constraint) => match constraint.allowed(allowed) {
                Ok(()) => Some(&*allowed),
                Err(problem) => {
                    events.push(Event::Failed {
                        id: sequence.id,
                        problem,
                    });
                    return None;
                }
            },
        };
        let (token, logprobs) = if let Ok(place) = full_rows.binary_search(&row) {
            let logits = &full_logits[place * vocab..(place + 1) * vocab];
            let token = sequence.sampler.sample(logits, &sequence.tokens, allowed);
            (
                token,
                sequence.logprobs.map(|top| logprobs(logits, token, top)),
            )
        } else {
            let num_exact = Cell::new(0);
            let exact = |tokens: &[u32], logits: &mut Vec<f32>| {
                num_exact.set(num_exact.get() + tokens.len());
                runner.exact(row, tokens, logits);
            };
            let token = sequence.sampler.sample_estimated(
                runner.estimates(row),
                &exact,
                &sequence.tokens,
                allowed,
            );
            runner.count_exact(num_exact.get(), token.is_some());
            head_use.add(num_exact.get() as u64, token.is_some());
            let token = token.unwrap_or_else(|| {
                runner.logits(&[row], row_logits);
                sequence
                    .sampler
                    .sample(row_logits, &sequence.tokens, allowed)
            });
            (token, None)
        };
        (!sequence.push(token, logprobs, events)).then_some(token)
    }

    /// Runs `tokens` through the model and gives the logits of the positions from `first` on to
    /// `use_rows`, some rows at a time: the position of the first row, and the rows `[n, vocab]`. A
    /// few rows before `first` may be among them. Stops at the first error that `use_rows` returns.
    ///
    /// # Errors
    /// If tokens are outside the vocabulary or do not fit into the free blocks; or what `use_rows`
    /// returned.
    pub fn evaluate<E: From<Error>>(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        mut use_rows: impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_tokens(tokens)?;
        let mut blocks = Vec::new();
        if !self
            .blocks
            .take(tokens.len().div_ceil(KvCache::BLOCK), &mut blocks)
        {
            let context = self.blocks.num_available() * KvCache::BLOCK;
            return Err(Error::ContextLength {
                prompt: tokens.len(),
                generate: 0,
                context,
            }
            .into());
        }
        let mut result = Ok(());
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        let mut position = 0;
        for tokens in ids.chunks(self.options.prefill_chunk.max(1)) {
            let logits = if position + tokens.len() > first {
                LogitRows::All
            } else {
                LogitRows::None
            };
            let chunk = Chunk {
                tokens,
                position,
                blocks: &blocks,
                logits,
            };
            let num_rows = self.runner.step(&mut std::iter::once(chunk));
            if num_rows > 0 {
                self.full_rows.clear();
                self.full_rows.extend(0..num_rows);
                self.runner.logits(&self.full_rows, &mut self.full_logits);
                result = use_rows(position, &self.full_logits);
            }
            if result.is_err() {
                break;
            }
            position += tokens.len();
        }
        self.blocks.give_back(&mut blocks);
        result
    }
}
