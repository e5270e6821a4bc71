//! [`Engine`]: runs requests on one model, step by step.
//!
//! A step plans which tokens to compute (`scheduler.rs`), runs them through the model together
//! (`runner.rs`), samples a token for each sequence whose tokens are all computed, and reports
//! events.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_kernels::Counters;
use bitnet_models::{FfnActivity, KvCache, LogitRows, ModelInfo};
use bitnet_tokenizers::{TokenId, Tokenizer};

use crate::counts::{EngineCounts, HeadUse, StateCounts};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::{Holding, Memory};
use crate::options::EngineOptions;
use crate::request::{Constraint, Event, Request, RequestId, Timings};
use crate::runner::{Model, Runner};
use crate::scheduler::Scheduler;
use crate::sequence::{Sequence, logprobs};
use crate::stop::TokenSet;

/// The problem of a request whose logits cannot be sampled from.
const NAN_LOGITS: &str = "the model's logits are not numbers (NaN): a tensor of the file is broken";

/// Runs requests on one model.
pub struct Engine {
    runner: Box<dyn Runner>,
    tokenizer: Option<Arc<Tokenizer>>,
    options: EngineOptions,
    scheduler: Scheduler,
    num_requests: u64,
    head_use: HeadUse,
    // The fields below belong to one step; they are kept so that a step allocates nothing.
    /// Tokens of all chunks, as the model takes them.
    step_tokens: Vec<u32>,
    /// Rows whose logits are all needed from the start.
    full_rows: Vec<usize>,
    /// Their logits, `[full rows, vocab]`.
    full_logits: Vec<f32>,
    /// Rows that are sampled from their first logits.
    top_rows: Vec<usize>,
    /// These logits with their tokens, `[top rows, k]`.
    top_logits: Vec<(u32, f32)>,
    /// All logits of one row that could not be sampled from estimates.
    row_logits: Vec<f32>,
    allowed: TokenSet,
    /// Indices of the sequences that have ended.
    ended: Vec<usize>,
}

impl Engine {
    /// An engine for a model on a device, with its own cache. Without a tokenizer, answers are
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
        let runner = model.runner(device, &options)?;
        Ok(Self::with_runner(runner, tokenizer, options))
    }

    /// An engine for a runner whose cache has [`EngineOptions::num_blocks`] blocks and, if the
    /// model has recurrent layers, [`EngineOptions::states`] states.
    #[must_use]
    pub fn with_runner(
        runner: Box<dyn Runner>,
        tokenizer: Option<Arc<Tokenizer>>,
        options: EngineOptions,
    ) -> Self {
        let num_states = if runner.state_bytes() > 0 {
            options.states.max(1)
        } else {
            0
        };
        let memory = Memory::new(options.num_blocks(), num_states);
        Self {
            scheduler: Scheduler::new(options, memory, runner.halfway()),
            runner,
            tokenizer,
            options,
            num_requests: 0,
            head_use: HeadUse::default(),
            step_tokens: Vec::new(),
            full_rows: Vec::new(),
            full_logits: Vec::new(),
            top_rows: Vec::new(),
            top_logits: Vec::new(),
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

    /// Counts how often estimated logits decided so far.
    #[must_use]
    pub fn head_use(&self) -> HeadUse {
        self.head_use
    }

    /// Why the answers since some step are worthless, such as a lost device; `None` as long as they
    /// are right. Check it after each step.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.runner.failure()
    }

    /// Counts of the feed-forward network of each layer so far; empty before the first step.
    #[must_use]
    pub fn ffn_activity(&self) -> &[FfnActivity] {
        self.runner.ffn_activity()
    }

    /// Counts of the engine's work so far.
    #[must_use]
    pub fn counts(&self) -> EngineCounts {
        self.scheduler.counts
    }

    /// The numbers of waiting and of running requests.
    #[must_use]
    pub fn num_requests(&self) -> (usize, usize) {
        (self.scheduler.waiting.len(), self.scheduler.running.len())
    }

    /// Blocks of the cache that no request holds, and blocks in all.
    #[must_use]
    pub fn free_blocks(&self) -> (usize, usize) {
        let blocks = &self.scheduler.memory.blocks;
        (blocks.num_available(), blocks.num_blocks())
    }

    /// The slots for recurrent states; all 0 for a model without recurrent layers.
    #[must_use]
    pub fn states(&self) -> StateCounts {
        let states = self.scheduler.memory.states.as_ref();
        states.map_or_else(StateCounts::default, |states| StateCounts {
            bytes: self.runner.state_bytes(),
            ..states.counts()
        })
    }

    /// Whether any request is waiting or running.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.scheduler.is_busy()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// If the prompt is empty, has tokens outside the vocabulary or does not fit into the context
    /// together with the tokens asked for, or a parameter is out of range.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.submit_constrained(request, None)
    }

    /// Queues a request whose tokens must satisfy a constraint.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_constrained(
        &mut self,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<RequestId> {
        self.check(&request)?;
        let id = RequestId(self.num_requests);
        let vocab_size = self.model().config.vocab_size;
        let sequence = Sequence::new(
            id,
            request,
            constraint,
            &self.options,
            vocab_size,
            self.tokenizer.clone(),
        )?;
        self.num_requests += 1;
        self.scheduler.waiting.push_back(sequence);
        Ok(id)
    }

    /// Checks a request as [`Engine::submit`] does, without queueing it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn check(&self, request: &Request) -> Result<()> {
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
        request.sampling.check(self.model().config.vocab_size)
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

    /// Cancels a request; its memory is free at once. Returns its timings so far; `None` if it has
    /// ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Timings> {
        self.scheduler.remove(id)
    }

    /// Runs one step and adds its events to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.scheduler.schedule();
        if self.scheduler.plan.is_empty() {
            return;
        }
        let decoding_rows = self.scheduler.decoding_rows();
        let now = Instant::now();
        self.forward();
        self.advance(now, now.elapsed(), events);
        if let Some(rows) = decoding_rows {
            let seconds = now.elapsed().as_secs_f32();
            self.scheduler.costs.measured(rows, seconds);
        }
    }

    /// Runs the planned tokens through the model.
    fn forward(&mut self) {
        let Self {
            runner,
            scheduler,
            step_tokens,
            ..
        } = self;
        let Scheduler {
            memory,
            running,
            plan,
            counts,
            ..
        } = scheduler;
        memory
            .copies()
            .for_each(|(from, to)| runner.copy_state(from, to));
        step_tokens.clear();
        for planned in &*plan {
            let sequence = &mut running[planned.index];
            let start = sequence.held.computed;
            let tokens = &sequence.tokens[start..start + planned.tokens];
            step_tokens.extend(tokens.iter().chain(&sequence.draft).map(|token| token.0));
            sequence.held.state_end = start + planned.tokens + sequence.draft.len();
        }
        counts.steps += 1;
        counts.computed_tokens += step_tokens.len() as u64;
        let mut rest = step_tokens.as_slice();
        let mut chunks = plan.iter().map(|planned| {
            let sequence = &running[planned.index];
            let (tokens, others) = rest.split_at(planned.tokens + sequence.draft.len());
            rest = others;
            let is_complete = sequence.pending() == planned.tokens;
            let logits = match (is_complete, sequence.draft.is_empty()) {
                _ if sequence.needs_all_rows() => LogitRows::All,
                (false, _) => LogitRows::None,
                (true, true) => LogitRows::Last,
                (true, false) => LogitRows::All,
            };
            sequence.held.chunk(tokens, logits)
        });
        runner.step(&mut chunks);
    }

    /// Samples for the sequences whose tokens are all computed, and removes those that have ended.
    fn advance(&mut self, step_start: Instant, forward: Duration, events: &mut Vec<Event>) {
        self.ended.clear();
        self.project();
        let mut row = 0;
        let plan = std::mem::take(&mut self.scheduler.plan);
        for planned in &plan {
            let Scheduler {
                memory, running, ..
            } = &mut self.scheduler;
            let sequence = &mut running[planned.index];
            let (start, is_complete) =
                (sequence.held.computed, sequence.pending() == planned.tokens);
            let all_rows = sequence.needs_all_rows();
            pool(&*self.runner, sequence, planned.tokens, row);
            let mut logprobs = Vec::new();
            if sequence.reports_prompt() {
                let vocab = self.runner.model().config.vocab_size;
                let place = self.full_rows.partition_point(|full| *full < row);
                let rows = self.full_logits[place * vocab..]
                    .chunks_exact(vocab)
                    .take(planned.tokens);
                logprobs = sequence.report_prompt(start, rows);
            }
            if all_rows {
                // The last row of a prompt is counted by the sampling below.
                row += planned.tokens - usize::from(is_complete);
            }
            sequence.advance(planned.tokens, memory, step_start);
            if sequence.timings.generated_tokens == 0 {
                sequence.timings.prefill_forward += forward;
                let (done, total) = (sequence.held.computed, sequence.tokens.len());
                events.push(Event::Prefill {
                    id: sequence.id,
                    done,
                    total,
                    logprobs,
                });
            } else {
                sequence.timings.decode_forward += forward;
            }
            if is_complete && self.scheduler.running[planned.index].is_full() {
                self.scheduler.running[planned.index].end_unsampled(events);
                self.ended.push(planned.index);
                row += 1;
            } else if is_complete {
                row += self.sample_all(planned.index, row, start, step_start, events);
            }
        }
        self.scheduler.plan = plan;
        self.ended.sort_unstable();
        while let Some(index) = self.ended.pop() {
            self.scheduler.end(index);
        }
    }

    /// Samples after a sequence's last token, then after each token of its draft as long as the
    /// draft is right. `start`: the first position of the step. Returns the number of rows.
    fn sample_all(
        &mut self,
        index: usize,
        row: usize,
        start: usize,
        step_start: Instant,
        events: &mut Vec<Event>,
    ) -> usize {
        let Scheduler {
            running, counts, ..
        } = &mut self.scheduler;
        let draft = std::mem::take(&mut running[index].draft);
        counts.drafts += u64::from(!draft.is_empty());
        counts.drafted_tokens += draft.len() as u64;
        running[index].timings.drafted_tokens += draft.len();
        let mut accepted = 0;
        for (place, guess) in draft.iter().map(Some).chain([None]).enumerate() {
            let token = self.sample(index, row + place, events);
            let Scheduler {
                running,
                counts,
                memory,
                ..
            } = &mut self.scheduler;
            match token {
                None => self.ended.push(index),
                Some(token) if Some(&token) == guess => {
                    counts.accepted_tokens += 1;
                    counts.accepted_by_place[place] += 1;
                    accepted += 1;
                    running[index].timings.accepted_tokens += 1;
                    running[index].advance(1, memory, step_start);
                    continue;
                }
                Some(_) => running[index].end_draft(start, memory),
            }
            break;
        }
        let num_rows = draft.len() + 1;
        self.scheduler.running[index].keep_draft(draft, accepted);
        num_rows
    }

    /// Finds the first logits of the step's rows if no row needs others. Otherwise estimates the
    /// logits of all rows, and computes all logits of the rows that need them.
    fn project(&mut self) {
        let Self {
            runner,
            scheduler,
            full_rows,
            full_logits,
            top_rows,
            top_logits,
            ..
        } = self;
        let Scheduler { running, plan, .. } = scheduler;
        full_rows.clear();
        top_rows.clear();
        let (mut num_rows, mut top_needed) = (0, Some(0));
        for planned in &*plan {
            let sequence = &running[planned.index];
            let rows = match sequence.pending() == planned.tokens {
                _ if sequence.needs_all_rows() => planned.tokens,
                true => sequence.draft.len() + 1,
                false => 0,
            };
            if sequence.needs_logits() {
                top_rows.extend(num_rows..num_rows + rows);
                top_needed = top_needed
                    .zip(sequence.top_needed())
                    .map(|(k, needed)| k.max(needed));
                if sequence.logprobs.is_some() {
                    full_rows.extend(num_rows..num_rows + rows);
                }
            }
            num_rows += rows;
        }
        if top_rows.is_empty() {
            return;
        }
        if let Some(k) = top_needed
            && runner.top_logits(top_rows, k, top_logits)
        {
            return;
        }
        let num_logit_rows = top_rows.len();
        top_rows.clear();
        if full_rows.len() < num_logit_rows && !runner.estimate() {
            full_rows.clear();
            full_rows.extend(0..num_rows);
        }
        if !full_rows.is_empty() {
            runner.logits(full_rows, full_logits);
        }
    }

    /// Samples a sequence's next token from a row of the step and appends it; `None` if that ends
    /// the sequence.
    fn sample(&mut self, index: usize, row: usize, events: &mut Vec<Event>) -> Option<TokenId> {
        let Self {
            runner,
            scheduler,
            full_rows,
            full_logits,
            top_rows,
            top_logits,
            row_logits,
            allowed,
            head_use,
            ..
        } = self;
        let vocab = runner.model().config.vocab_size;
        let sequence = &mut scheduler.running[index];
        let id = sequence.id;
        let failed = |problem| Event::Failed { id, problem };
        let is_restricted = match restrict(sequence, vocab, allowed) {
            Ok(is_restricted) => is_restricted,
            Err(problem) => {
                events.push(failed(problem));
                return None;
            }
        };
        let allowed = is_restricted.then_some(&*allowed);
        // A NaN makes everything that is computed after it NaN, so the request fails.
        let has_nan = Cell::new(false);
        let check = |logits: &[f32]| {
            has_nan.set(has_nan.get() || logits.iter().any(|logit| logit.is_nan()));
        };
        let (token, logprobs) = if let Some(top) = row_of(top_logits, top_rows, row) {
            let (token, logit) = sequence.sampler.sample_top(top, sequence.tokens.len());
            check(&[logit]);
            (token, None)
        } else if let Some(logits) = row_of(full_logits, full_rows, row) {
            let (token, logit) = sample_row(sequence, logits, allowed);
            check(&[logit]);
            let num_top = sequence.logprobs;
            (token, num_top.map(|top| logprobs(logits, token, top)))
        } else {
            let num_exact = Cell::new(0);
            let exact = |tokens: &[u32], logits: &mut Vec<f32>| {
                num_exact.set(num_exact.get() + tokens.len());
                runner.exact(row, tokens, logits);
                check(logits);
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
                let (token, logit) = sample_row(sequence, row_logits, allowed);
                check(&[logit]);
                token
            });
            (token, None)
        };
        if has_nan.get() {
            events.push(failed(NAN_LOGITS.to_owned()));
            return None;
        }
        (!sequence.push(token, logprobs, events)).then_some(token)
    }

    /// Runs `tokens` through the model and calls `use_rows` with the logits of the positions from
    /// `first` on, some rows at a time: the position of the first row, and the rows `[n, vocab]`. A
    /// few rows before `first` may be among them. Stops at the first error that `use_rows` returns.
    ///
    /// # Errors
    /// If tokens are outside the vocabulary or do not fit into the free blocks, or the device fails;
    /// or the error of `use_rows`.
    pub fn evaluate<E: From<Error>>(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        mut use_rows: impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_tokens(tokens)?;
        let (memory, mut held) = (&mut self.scheduler.memory, Holding::default());
        let num_blocks = tokens.len().div_ceil(KvCache::BLOCK);
        if !memory.take_blocks(num_blocks, &mut held) || !memory.take_state(&mut held, None) {
            memory.give_back(&mut held);
            let context = memory.blocks.num_available() * KvCache::BLOCK;
            return Err(Error::ContextLength {
                prompt: tokens.len(),
                generate: 0,
                context,
            }
            .into());
        }
        let runner = &mut self.runner;
        memory
            .copies()
            .for_each(|(from, to)| runner.copy_state(from, to));
        let mut result = Ok(());
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        for tokens in ids.chunks(self.options.prefill_chunk.max(1)) {
            let position = held.computed;
            let logits = if position + tokens.len() > first {
                LogitRows::All
            } else {
                LogitRows::None
            };
            let num_rows = runner.step(&mut std::iter::once(held.chunk(tokens, logits)));
            if num_rows > 0 {
                self.full_rows.clear();
                self.full_rows.extend(0..num_rows);
                runner.logits(&self.full_rows, &mut self.full_logits);
                result = match runner.failure() {
                    Some(problem) => Err(Error::DeviceFailed(problem).into()),
                    None => use_rows(position, &self.full_logits),
                };
            }
            if result.is_err() {
                break;
            }
            held.computed += tokens.len();
        }
        memory.give_back(&mut held);
        result
    }
}

/// The values of a row, if it is among `rows`, which ascend. `values`: `[rows, n]`.
fn row_of<'a, T>(values: &'a [T], rows: &[usize], row: usize) -> Option<&'a [T]> {
    let place = rows.binary_search(&row).ok()?;
    let n = values.len() / rows.len();
    values.get(place * n..(place + 1) * n)
}

/// The sequence's next token and its logit, given all logits of a row.
fn sample_row(
    sequence: &mut Sequence,
    logits: &[f32],
    allowed: Option<&TokenSet>,
) -> (TokenId, f32) {
    let token = sequence.sampler.sample(logits, &sequence.tokens, allowed);
    (token, logits[token.0 as usize])
}

/// Writes the tokens that the sequence may continue with to `allowed`. False if it may continue
/// with any token; `allowed` then has no meaning.
fn restrict(
    sequence: &mut Sequence,
    vocab: usize,
    allowed: &mut TokenSet,
) -> std::result::Result<bool, String> {
    let constraint = sequence.constraint.as_mut();
    let constraint = constraint.filter(|constraint| !constraint.is_free());
    let is_constrained = constraint.is_some();
    if let Some(constraint) = constraint {
        constraint.allowed(allowed)?;
    }
    let forbidden = sequence.forbidden();
    if let Some(forbidden) = forbidden {
        if !is_constrained {
            allowed.fill(vocab);
        }
        allowed.remove(forbidden);
    }
    Ok(is_constrained || forbidden.is_some())
}

/// Adds the hidden states of a step's tokens to the pool of a sequence, if it has one. `tokens`: the
/// sequence's tokens in this step; `row`: its first row.
fn pool(runner: &dyn Runner, sequence: &mut Sequence, tokens: usize, row: usize) {
    let (start, len) = (sequence.held.computed, sequence.timings.prompt_tokens);
    let Some(pool) = &mut sequence.pool else {
        return;
    };
    let mut state = Vec::new();
    for position in start..(start + tokens).min(len) {
        if pool.wants(position, len) {
            let row = if pool.needs_all_rows() {
                row + position - start
            } else {
                row
            };
            runner.hidden(row, &mut state);
            pool.add(&state);
        }
    }
}
