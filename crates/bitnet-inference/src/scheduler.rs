//! [`Scheduler`]: decides which tokens of which sequences a step computes. Plain data: it knows
//! neither the model nor a clock; the engine tells it what steps take.
//!
//! A step takes the next tokens of every running sequence, so that weights are read once: first one
//! token of each sequence that is decoding, then prompts, in chunks: long ones while no sequence
//! decodes, short ones otherwise, so that a long prompt does not delay the others. Half of a chunk
//! is for the oldest prompt, the rest for the prompts with the fewest tokens left, so that a short
//! prompt does not wait for a long one. If prompts have the same prefix, one sequence computes it;
//! the others wait and reuse its blocks.
//!
//! A sequence starts when there is memory for its prompt, and takes more as it grows. If none is
//! left, the newest sequence gives up its memory and computes its tokens again later. Neither
//! preemption, nor other sequences, nor the contents of the cache change a bit of an answer: rows
//! do not influence each other.

use std::collections::VecDeque;

use bitnet_models::KvCache;

use crate::backlog::Priority;
use crate::counts::EngineCounts;
use crate::draft::StepCosts;
use crate::memory::Memory;
use crate::options::{DRAFTING_MAX, EngineOptions};
use crate::request::{RequestId, Timings};
use crate::sequence::Sequence;

/// The part of a sequence that a step computes.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    /// Its index among the running sequences.
    pub index: usize,
    /// Tokens to compute, without its draft.
    pub tokens: usize,
}

/// The sequences of an engine, and the plan of the next step.
pub(crate) struct Scheduler {
    options: EngineOptions,
    pub memory: Memory,
    pub waiting: VecDeque<Sequence>,
    /// In the order of their arrival.
    pub running: Vec<Sequence>,
    /// See [`crate::Runner::halfway`].
    halfway: usize,
    pub counts: EngineCounts,
    /// What steps take, as the engine measures it.
    pub costs: StepCosts,
    // The fields below belong to one step; they are kept so that a step allocates nothing.
    pub plan: Vec<Planned>,
    /// Indices of the sequences whose prompts are being computed, in the order in which they get
    /// their share of the step.
    prefilling: Vec<usize>,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(options: EngineOptions, memory: Memory, halfway: usize) -> Self {
        Self {
            options,
            memory,
            waiting: VecDeque::new(),
            running: Vec::new(),
            halfway,
            counts: EngineCounts::default(),
            costs: StepCosts::new(),
            plan: Vec::new(),
            prefilling: Vec::new(),
        }
    }

    /// Whether any sequence is waiting or running.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Removes a sequence; its memory is free at once. Returns its timings so far; `None` if there
    /// is no such sequence.
    pub fn remove(&mut self, id: RequestId) -> Option<Timings> {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            return self.waiting.remove(index).map(|sequence| sequence.timings);
        }
        let index = self.running.iter().position(|sequence| sequence.id == id)?;
        Some(self.end(index))
    }

    /// Removes a running sequence; its memory is free at once.
    pub fn end(&mut self, index: usize) -> Timings {
        let mut sequence = self.running.remove(index);
        sequence.give_up_memory(&mut self.memory);
        sequence.timings
    }

    /// Plans a step: starts waiting sequences, then decides which tokens the step computes and
    /// takes memory for them.
    pub fn schedule(&mut self) {
        self.admit();
        self.plan.clear();
        self.schedule_decoding();
        self.schedule_prompts();
    }

    /// Starts waiting sequences, in order, while there is room for them.
    fn admit(&mut self) {
        while self.running.len() < self.options.running_max.max(1) {
            let Some(sequence) = self.waiting.front_mut() else {
                return;
            };
            if !sequence.admit(&mut self.memory) {
                return;
            }
            let cached = sequence.held.computed;
            if !sequence.was_preempted {
                sequence.timings.cached_tokens = cached;
                self.counts.prompt_tokens += sequence.timings.prompt_tokens as u64;
                self.counts.cached_tokens += cached as u64;
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Plans the next token of each decoding sequence, with its draft.
    fn schedule_decoding(&mut self) {
        let num_decoding = self
            .running
            .iter()
            .filter(|sequence| sequence.is_decoding())
            .count();
        // Checking the rows of a draft with the first row costs little only while a step has few
        // rows.
        let has_drafts = self.options.draft_max > 0
            && num_decoding <= DRAFTING_MAX
            && !(self.options.draft_adapts && num_decoding < self.running.len());
        let (mut index, mut num_planned, mut num_rows) = (0, 0, 0);
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            sequence.draft.clear();
            if sequence.is_decoding() {
                let room = sequence.held.blocks.len() * KvCache::BLOCK;
                if sequence.tokens.len() > room && !self.grow(index) {
                    // The last running sequence has given up its own memory.
                    break;
                }
                let sequence = &mut self.running[index];
                if has_drafts {
                    let others = num_decoding - 1;
                    let other_rows = num_rows + (others - num_planned);
                    sequence.find_draft(others, other_rows, &self.costs, &mut self.memory);
                }
                let tokens = sequence.pending();
                num_planned += 1;
                num_rows += tokens + sequence.draft.len();
                self.plan.push(Planned { index, tokens });
            }
            index += 1;
        }
    }

    /// Rows of the planned step; `None` if it computes prompts.
    pub fn decoding_rows(&self) -> Option<usize> {
        let rows = |planned: &Planned| planned.tokens + self.running[planned.index].draft.len();
        self.prefilling
            .is_empty()
            .then(|| self.plan.iter().map(rows).sum())
    }

    /// Divides the prompts' part of the step. While no sequence decodes for a client that waits, the
    /// part is a number of tokens. Otherwise it is the time that this number of tokens takes at the
    /// beginning of a prompt; further on the same time is enough for fewer tokens.
    fn schedule_prompts(&mut self) {
        self.take_over();
        let Some((_, others)) = self.prefilling.split_first_mut() else {
            return;
        };
        let running = &self.running;
        others.sort_unstable_by_key(|&index| (running[index].pending(), index));
        let first = self.plan.len();
        let priority = |planned: &Planned| running[planned.index].priority;
        let is_mixed = self
            .plan
            .iter()
            .any(|p| priority(p) == Priority::Interactive);
        let budget = if is_mixed {
            self.options.mixed_chunk
        } else {
            self.options.prefill_chunk
        }
        .max(1);
        // Costs are in units of `1 / halfway` of the time that a token at position 0 takes.
        let halfway = self.halfway;
        let mut time = budget * halfway;
        let cost =
            |sequence: &Sequence| halfway + if is_mixed { sequence.held.computed } else { 0 };
        let affordable =
            |time: usize, sequence: &Sequence| (time + cost(sequence) / 2) / cost(sequence);
        for &index in &self.prefilling {
            let sequence = &running[index];
            let mut planned = self.plan[first..].iter();
            if planned.any(|planned| sequence.can_wait_for(&running[planned.index])) {
                continue;
            }
            let tokens = if self.plan.len() == first {
                // The first prompt always makes progress.
                affordable(budget.div_ceil(2) * halfway, sequence).max(1)
            } else {
                affordable(time, sequence)
            };
            let tokens = sequence.step_len(tokens);
            if tokens > 0 {
                self.plan.push(Planned { index, tokens });
                time = time.saturating_sub(tokens * cost(sequence));
            }
        }
        // The first prompt also gets the time that the others do not use.
        let Planned { index, tokens } = &mut self.plan[first];
        let sequence = &running[*index];
        *tokens = sequence.step_len(*tokens + affordable(time, sequence));
    }

    /// Lists the sequences whose prompts are being computed; each reuses the blocks that others
    /// have computed since.
    fn take_over(&mut self) {
        self.prefilling.clear();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.is_decoding() {
                continue;
            }
            let before = sequence.held.computed;
            sequence.take_over(&mut self.memory);
            if !sequence.was_preempted {
                let taken = sequence.held.computed.saturating_sub(before);
                sequence.timings.cached_tokens += taken;
                self.counts.cached_tokens += taken as u64;
            }
            self.prefilling.push(index);
        }
    }

    /// Takes one more block for a running sequence. While there is none, the newest sequence gives
    /// up its memory; false if that was this one.
    fn grow(&mut self, index: usize) -> bool {
        while !self.memory.take_blocks(1, &mut self.running[index].held) {
            let Some(mut last) = self.running.pop() else {
                unreachable!("a running sequence")
            };
            last.give_up_memory(&mut self.memory);
            self.counts.preemptions += 1;
            self.waiting.push_front(last);
            if index == self.running.len() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bitnet_tokenizers::TokenId;

    use super::*;
    use crate::request::Request;

    /// A scheduler with adaptive drafts, and a sequence in it that repeats itself and decodes.
    fn decoding() -> Scheduler {
        let options = EngineOptions {
            draft_max: 16,
            draft_adapts: true,
            ..EngineOptions::default()
        };
        let mut scheduler = Scheduler::new(options, Memory::new(64, 0), 1000);
        submit(&mut scheduler, 0, (0..60).map(|i| i % 4).collect());
        scheduler.schedule();
        let Scheduler {
            running, memory, ..
        } = &mut scheduler;
        running[0].advance(60, memory, Instant::now());
        assert!(!running[0].push(TokenId(0), None, &mut Vec::new()));
        scheduler
    }

    fn submit(scheduler: &mut Scheduler, id: u64, prompt: Vec<u32>) {
        let request = Request {
            prompt: prompt.into_iter().map(TokenId).collect(),
            max_tokens: Some(40),
            ..Request::default()
        };
        let sequence = Sequence::new(RequestId(id), request, None, &scheduler.options, 100, None);
        scheduler
            .waiting
            .push_back(sequence.expect("a good request"));
    }

    #[test]
    fn adaptive_drafts_wait_while_a_step_computes_prompts() {
        let mut scheduler = decoding();
        scheduler.schedule();
        let draft = scheduler.running[0].draft.clone();
        assert!(!draft.is_empty());
        assert_eq!(scheduler.decoding_rows(), Some(1 + draft.len()));
        submit(&mut scheduler, 1, (0..30).collect());
        scheduler.schedule();
        assert_eq!(scheduler.plan.len(), 2);
        assert!(scheduler.running[0].draft.is_empty());
        assert_eq!(scheduler.decoding_rows(), None);
    }

    #[test]
    fn a_draft_is_as_long_as_its_measured_cost_allows() {
        let mut scheduler = decoding();
        (0..20).for_each(|_| scheduler.costs.measured(1, 0.01));
        for rows in [2, 4, 8, 16] {
            // As long as a step for each token.
            (0..20).for_each(|_| scheduler.costs.measured(rows, 0.01 * rows as f32));
        }
        scheduler.schedule();
        assert!(scheduler.running[0].draft.is_empty());
    }
}
