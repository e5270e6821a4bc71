//! [`Engine`]: sequences, step by step.
//!
//! A step takes the next tokens of each running sequence (a chunk of its prompt, or the token sampled last), at most
//! [`EngineOptions::prefill_chunk`] in all, runs them through the model together, and samples for each sequence whose
//! last token was among them. Blocks for a sequence's whole length are set aside when it starts, so none can run out
//! half way; requests wait in order until there are enough.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_kernels::Cpu;
use bitnet_models::{Chunk, KvCache, KvType, LanguageModel, LogitRows, Workspace};
use bitnet_tokenizers::{DecodeOptions, Detokenizer, TokenId, Tokenizer};

use crate::block_pool::BlockPool;
use crate::error::{Error, Result};
use crate::sampling::{Sampler, SamplingParams};
use crate::stop::{StopStrings, TokenSet};

/// What is generated goes on from the prompt, so a space at its beginning is meant.
const CONTINUES_A_TEXT: DecodeOptions = DecodeOptions { show_special: false, strip_space_prefix: false };

/// The engine's bounds.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Positions the key/value cache holds, for all sequences together; also the most that one may have.
    pub context: usize,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// The most tokens of one step.
    pub prefill_chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { context: 4096, kv_type: KvType::F16, prefill_chunk: 128 }
    }
}

/// Tokens to continue, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The most tokens to generate; `None` for as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not part of its text.
    pub stop_ids: Vec<TokenId>,
    /// Strings that end the answer; they are not part of its text.
    pub stop_strings: Vec<String>,
}

/// A request's name within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// The limit of tokens asked for.
    Length,
    /// The context is full.
    Context,
}

impl FinishReason {
    /// The name that OpenAI's API uses, which knows only one limit of length.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length | Self::Context => "length",
        }
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were still in the cache.
    pub cached_tokens: usize,
    /// Tokens sampled, the stop token included.
    pub generated_tokens: usize,
    /// From the first step to the first sampled token.
    pub prefill: Duration,
    /// From the first sampled token to the last.
    pub decode: Duration,
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What it took.
    pub timings: Timings,
}

/// What a step brought.
#[derive(Clone, Debug)]
pub enum Event {
    /// So many tokens of a prompt have been computed.
    Prefill {
        /// Whose.
        id: RequestId,
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token was sampled.
    Token {
        /// Whose.
        id: RequestId,
        /// The token.
        token: TokenId,
        /// The text that is certain now: whole characters, none that may belong to a stop string.
        text: String,
    },
    /// An answer has ended.
    Finished {
        /// Whose.
        id: RequestId,
        /// Text that had been held back.
        text: String,
        /// Why it ended, and what it took.
        finish: Finish,
    },
}

/// One request on its way.
struct Sequence {
    id: RequestId,
    /// The prompt, then what was sampled.
    tokens: Vec<TokenId>,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    blocks: Vec<u32>,
    /// The most tokens it may come to.
    tokens_max: usize,
    limit: FinishReason,
    sampler: Sampler,
    stop_ids: TokenSet,
    stop_strings: StopStrings,
    /// `None` for a model without a tokenizer: its answers have no text.
    detokenizer: Option<Detokenizer>,
    timings: Timings,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// Runs requests on one model.
pub struct Engine {
    model: Arc<LanguageModel>,
    tokenizer: Option<Arc<Tokenizer>>,
    cpu: Cpu,
    options: EngineOptions,
    cache: KvCache,
    blocks: BlockPool,
    workspace: Workspace,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// The last sequence to finish: a prompt that begins like it, the next turn of a chat, starts from its blocks.
    finished: Option<(Vec<TokenId>, Vec<u32>)>,
    num_requests: u64,
    /// Ids of the tokens of one step, as the model takes them.
    step_tokens: Vec<u32>,
    /// Which running sequences get a token in this step, and the tokens.
    complete: Vec<usize>,
    sampled: Vec<TokenId>,
    /// Those of them, by their place there, for which all logits are needed.
    undecided: Vec<usize>,
    head_use: HeadUse,
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

impl Engine {
    /// An engine with its cache. Without a tokenizer, answers are tokens only.
    ///
    /// # Errors
    /// If there is no memory for the cache.
    pub fn new(
        model: Arc<LanguageModel>,
        tokenizer: Option<Arc<Tokenizer>>,
        cpu: Cpu,
        options: EngineOptions,
    ) -> Result<Self> {
        let config = model.config();
        let num_blocks = options.context.div_ceil(KvCache::BLOCK);
        let cache = KvCache::new(config.attention, config.num_layers, options.kv_type, num_blocks)?;
        Ok(Self {
            model,
            tokenizer,
            cpu,
            options,
            cache,
            blocks: BlockPool::new(num_blocks),
            workspace: Workspace::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            finished: None,
            num_requests: 0,
            step_tokens: Vec::new(),
            complete: Vec::new(),
            sampled: Vec::new(),
            undecided: Vec::new(),
            head_use: HeadUse::default(),
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// Kernels, threads and counters.
    #[must_use]
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// How the screened head fared so far.
    #[must_use]
    pub fn head_use(&self) -> HeadUse {
        self.head_use
    }

    /// The engine's bounds.
    #[must_use]
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Blocks of the cache that no request holds, and blocks in all.
    #[must_use]
    pub fn free_blocks(&self) -> (usize, usize) {
        let kept = self.finished.as_ref().map_or(0, |(_, blocks)| blocks.len());
        (self.blocks.num_free() + kept, self.blocks.num_blocks())
    }

    /// Whether any request is waiting or running.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Takes a request.
    ///
    /// # Errors
    /// If the prompt is empty, has tokens outside the vocabulary or does not fit into the context together with the
    /// tokens asked for, or a parameter is out of range.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let vocab_size = self.model.config().vocab_size;
        let prompt = request.prompt.len();
        self.check_tokens(&request.prompt)?;
        let context = self.options.context;
        let generate = request.max_tokens.unwrap_or(1);
        if prompt.saturating_add(generate) > context {
            return Err(Error::ContextLength { prompt, generate, context });
        }
        let sampler = Sampler::new(request.sampling, vocab_size)?;
        let stop_strings = StopStrings::new(request.stop_strings)?;
        let id = RequestId(self.num_requests);
        self.num_requests += 1;
        let (tokens_max, limit) = match request.max_tokens {
            Some(n) => (prompt + n, FinishReason::Length),
            None => (context, FinishReason::Context),
        };
        self.waiting.push_back(Sequence {
            id,
            tokens: request.prompt,
            computed: 0,
            blocks: Vec::new(),
            tokens_max,
            limit,
            sampler,
            stop_ids: TokenSet::new(&request.stop_ids),
            stop_strings,
            detokenizer: self.tokenizer.clone().map(|tokenizer| Detokenizer::new(tokenizer, CONTINUES_A_TEXT)),
            timings: Timings { prompt_tokens: prompt, ..Timings::default() },
            started: None,
            first_token: None,
        });
        Ok(id)
    }

    fn check_tokens(&self, tokens: &[TokenId]) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        match tokens.iter().position(|token| token.0 as usize >= vocab_size) {
            Some(index) => Err(Error::TokenRange { index, token: tokens[index], last: vocab_size - 1 }),
            None => Ok(()),
        }
    }

    /// Forgets a request; its blocks are free at once. Returns what it took so far; `None` if it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Timings> {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            return self.waiting.remove(index).map(|sequence| sequence.timings);
        }
        let index = self.running.iter().position(|sequence| sequence.id == id)?;
        let sequence = self.running.remove(index);
        let timings = sequence.timings;
        self.retain(sequence);
        Some(timings)
    }

    /// Runs one step and adds what it brought to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.admit();
        if self.running.is_empty() {
            return;
        }
        let now = Instant::now();
        let lengths = self.schedule();
        self.forward(&lengths);
        self.advance(&lengths, now, events);
    }

    /// Starts waiting requests, in order, while there are blocks for them.
    fn admit(&mut self) {
        while let Some(mut sequence) = self.waiting.pop_front() {
            let needed = sequence.tokens_max.div_ceil(KvCache::BLOCK);
            if let Some((tokens, mut blocks)) = self.finished.take() {
                // The last prompt token is always computed, since its logits are needed.
                let limit = sequence.tokens.len() - 1;
                let common = tokens.iter().zip(&sequence.tokens[..limit]).take_while(|(a, b)| a == b).count();
                if common > 0 {
                    let mut rest = blocks.split_off(blocks.len().min(needed));
                    self.blocks.give_back(&mut rest);
                    sequence.blocks = blocks;
                    sequence.computed = common;
                    sequence.timings.cached_tokens = common;
                } else {
                    self.blocks.give_back(&mut blocks);
                }
            }
            let missing = needed - sequence.blocks.len();
            if self.blocks.take(missing, &mut sequence.blocks) {
                self.running.push(sequence);
            } else {
                let (computed, blocks) = (sequence.computed, std::mem::take(&mut sequence.blocks));
                if computed > 0 {
                    self.finished = Some((sequence.tokens[..computed].to_vec(), blocks));
                    sequence.computed = 0;
                    sequence.timings.cached_tokens = 0;
                }
                self.waiting.push_front(sequence);
                return;
            }
        }
    }

    /// How many tokens of each running sequence the next step takes.
    fn schedule(&self) -> Vec<usize> {
        let mut budget = self.options.prefill_chunk.max(1);
        let take = |sequence: &Sequence| {
            let n = (sequence.tokens.len() - sequence.computed).min(budget);
            budget -= n;
            n
        };
        self.running.iter().map(take).collect()
    }

    fn forward(&mut self, lengths: &[usize]) {
        self.step_tokens.clear();
        for (sequence, &n) in self.running.iter().zip(lengths) {
            let tokens = &sequence.tokens[sequence.computed..sequence.computed + n];
            self.step_tokens.extend(tokens.iter().map(|token| token.0));
        }
        let mut tokens = self.step_tokens.as_slice();
        let chunk = |(sequence, &n): (_, &usize)| {
            let sequence: &Sequence = sequence;
            let (these, rest) = tokens.split_at(n);
            tokens = rest;
            let is_last = sequence.computed + n == sequence.tokens.len();
            let logits = if is_last { LogitRows::Last } else { LogitRows::None };
            Chunk { tokens: these, position: sequence.computed, blocks: &sequence.blocks, logits }
        };
        let chunks: Vec<Chunk<'_>> = self.running.iter().zip(lengths).filter(|(_, n)| **n > 0).map(chunk).collect();
        self.model.hidden_states(&self.cpu, &mut self.workspace, &mut self.cache, &chunks);
    }

    /// Samples for the sequences whose tokens are all computed, and ends what has come to its end.
    fn advance(&mut self, lengths: &[usize], step_start: Instant, events: &mut Vec<Event>) {
        self.complete.clear();
        for (index, (sequence, &n)) in self.running.iter_mut().zip(lengths).enumerate() {
            if n == 0 {
                continue;
            }
            sequence.started.get_or_insert(step_start);
            sequence.computed += n;
            if sequence.timings.generated_tokens == 0 {
                let (done, total) = (sequence.computed, sequence.tokens.len());
                events.push(Event::Prefill { id: sequence.id, done, total });
            }
            if sequence.computed == sequence.tokens.len() {
                self.complete.push(index);
            }
        }
        self.sample();
        let mut ended = Vec::new();
        for (&index, &token) in self.complete.iter().zip(&self.sampled) {
            if self.running[index].push(token, events) {
                ended.push(index);
            }
        }
        for index in ended.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.retain(sequence);
        }
    }

    /// The next token of each complete sequence, into `sampled`: from estimated logits where they decide it, else from all.
    fn sample(&mut self) {
        let (model, cpu, vocab) = (&*self.model, &self.cpu, self.model.config().vocab_size);
        self.sampled.clear();
        self.undecided.clear();
        let is_estimated = !self.complete.is_empty() && model.estimate(cpu, &mut self.workspace);
        for (row, &index) in self.complete.iter().enumerate() {
            let sequence = &mut self.running[index];
            let mut token = None;
            if is_estimated {
                let num_exact = Cell::new(0);
                let exact = |token| {
                    num_exact.set(num_exact.get() + 1);
                    model.logit(cpu, &self.workspace, row, token)
                };
                let estimates = self.workspace.estimates(row, vocab);
                token = sequence.sampler.sample_estimated(estimates, &exact, &sequence.tokens, None);
                model.count_logits(cpu, num_exact.get(), token.is_some());
                self.head_use.add(num_exact.get() as u64, token.is_some());
            }
            if token.is_none() {
                self.undecided.push(row);
            }
            self.sampled.push(token.unwrap_or(TokenId(0)));
        }
        let logits = model.logits(cpu, &mut self.workspace, self.undecided.iter().copied());
        for (&row, logits) in self.undecided.iter().zip(logits.chunks_exact(vocab)) {
            let sequence = &mut self.running[self.complete[row]];
            self.sampled[row] = sequence.sampler.sample(logits, &sequence.tokens, None);
        }
    }

    /// Keeps the blocks of a sequence that has ended for a prompt that begins like it.
    fn retain(&mut self, sequence: Sequence) {
        if let Some((_, mut blocks)) = self.finished.take() {
            self.blocks.give_back(&mut blocks);
        }
        let mut tokens = sequence.tokens;
        tokens.truncate(sequence.computed);
        self.finished = Some((tokens, sequence.blocks));
    }

    /// Runs `tokens` through the model and gives the logits of every position to `use_rows`, some rows at a time:
    /// the position of the first row, and the rows `[n, vocab]`. Stops at the first error that `use_rows` returns.
    ///
    /// # Errors
    /// If tokens are outside the vocabulary or do not fit into the free blocks; or what `use_rows` returned.
    pub fn evaluate<E: From<Error>>(
        &mut self,
        tokens: &[TokenId],
        mut use_rows: impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_tokens(tokens)?;
        if let Some((_, mut blocks)) = self.finished.take() {
            self.blocks.give_back(&mut blocks);
        }
        let mut blocks = Vec::new();
        if !self.blocks.take(tokens.len().div_ceil(KvCache::BLOCK), &mut blocks) {
            let context = self.blocks.num_free() * KvCache::BLOCK;
            return Err(Error::ContextLength { prompt: tokens.len(), generate: 0, context }.into());
        }
        let mut result = Ok(());
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        let mut position = 0;
        for tokens in ids.chunks(self.options.prefill_chunk.max(1)) {
            let chunk = Chunk { tokens, position, blocks: &blocks, logits: LogitRows::All };
            let rows = self.model.forward(&self.cpu, &mut self.workspace, &mut self.cache, &[chunk]);
            result = use_rows(position, rows);
            if result.is_err() {
                break;
            }
            position += tokens.len();
        }
        self.blocks.give_back(&mut blocks);
        result
    }
}

impl Sequence {
    /// Takes the token that was sampled; true if that ends the sequence.
    fn push(&mut self, token: TokenId, events: &mut Vec<Event>) -> bool {
        self.tokens.push(token);
        self.timings.generated_tokens += 1;
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = *self.first_token.get_or_insert(now);
        self.timings.prefill = first - started;
        self.timings.decode = now - first;

        let is_stop = self.stop_ids.contains(token);
        let (text, found) = match is_stop {
            true => (String::new(), false),
            false => self.stop_strings.push(self.detokenizer.as_mut().map_or("", |d| d.push(token))),
        };
        events.push(Event::Token { id: self.id, token, text });
        let reason = match () {
            () if is_stop || found => FinishReason::Stop,
            () if self.tokens.len() >= self.tokens_max => self.limit,
            () => return false,
        };
        let mut text = String::new();
        if !found {
            // What the detokenizer still holds may complete a stop string.
            let (shown, found) = self.stop_strings.push(self.detokenizer.as_mut().map_or("", Detokenizer::finish));
            text = shown;
            if !found {
                text.push_str(&self.stop_strings.finish());
            }
        }
        events.push(Event::Finished { id: self.id, text, finish: Finish { reason, timings: self.timings } });
        true
    }
}
