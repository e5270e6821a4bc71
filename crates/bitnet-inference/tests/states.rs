//! A model with a toy recurrent layer: chunks, batches, preemption, drafts and shared beginnings
//! change no bit of an answer.
//!
//! The layer stands behind the attention of the first layer: a few numbers of each row are mixed
//! with a state that every token changes. So the keys and values of later layers depend on the
//! state, too.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_inference::{
    Device, Engine, EngineOptions, Event, ModelRunner, Request, RequestId, SamplingParams,
};
use bitnet_kernels::{Counters, Cpu, Estimates, KernelSet, Pool, Unpack};
use bitnet_models::backend::{
    HeadColumns, MatrixFacts, NeuronColumns, RmsNorm, RowPlan, Run, Stack, TableFacts,
};
use bitnet_models::{
    Backend, CacheShape, Error, FfnActivity, KvCache, LanguageModel, LoadOptions, Table,
};
use bitnet_tokenizers::TokenId;

/// Numbers of a row that the toy layer mixes with the state.
const STATE_LEN: usize = 8;

/// The CPU with a toy recurrent layer.
struct Toy(Cpu);

#[derive(Default)]
struct ToyBatch {
    batch: <Cpu as Backend>::Batch,
    runs: Vec<Run>,
}

impl Toy {
    fn new(threads: usize) -> Self {
        Self(Cpu::new(KernelSet::detect(), threads))
    }
}

/// A norm of the toy as one of the CPU.
fn norm(norm: &RmsNorm<Toy>) -> RmsNorm<Cpu> {
    RmsNorm {
        weight: norm.weight.clone(),
        eps: norm.eps,
    }
}

impl Backend for Toy {
    type Vector = Vec<f32>;
    type Matrix = <Cpu as Backend>::Matrix;
    type Table = <Cpu as Backend>::Table;
    type Rows = <Cpu as Backend>::Rows;
    type Int8 = <Cpu as Backend>::Int8;
    type Batch = ToyBatch;
    type Estimated = <Cpu as Backend>::Estimated;
    type Cache = KvCache;

    fn pool(&self) -> &Pool {
        self.0.pool()
    }

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn matrix(
        &self,
        stack: &Stack<'_>,
        options: &LoadOptions,
        unpack: &Unpack<'_, Error>,
    ) -> Result<Self::Matrix, Error> {
        self.0.matrix(stack, options, unpack)
    }

    fn table(&self, table: Table, gives_logits: bool, options: &LoadOptions) -> Self::Table {
        self.0.table(table, gives_logits, options)
    }

    fn cache(&self, shape: &CacheShape) -> Result<KvCache, Error> {
        self.0.cache(&CacheShape {
            state_len: STATE_LEN,
            ..*shape
        })
    }

    fn state_bytes(cache: &KvCache) -> usize {
        Cpu::state_bytes(cache)
    }

    fn copy_state(&self, cache: &mut KvCache, from: u32, to: u32) {
        self.0.copy_state(cache, from, to);
    }

    fn matrix_facts(matrix: &Self::Matrix) -> MatrixFacts {
        Cpu::matrix_facts(matrix)
    }

    fn table_facts(table: &Self::Table) -> TableFacts {
        Cpu::table_facts(table)
    }

    fn begin(&self, plan: &RowPlan, batch: &mut ToyBatch) {
        self.0.begin(plan, &mut batch.batch);
        batch.runs.clone_from(&plan.runs);
    }

    fn embed(&self, table: &Self::Table, batch: &ToyBatch, x: &mut Self::Rows) {
        Backend::embed(&self.0, table, &batch.batch, x);
    }

    fn angles(&self, frequencies: &Vec<f32>, batch: &ToyBatch, angles: &mut Self::Rows) {
        Backend::angles(&self.0, frequencies, &batch.batch, angles);
    }

    fn rms_norm(&self, x: &Self::Rows, by: &RmsNorm<Self>, out: &mut Self::Rows) {
        Backend::rms_norm(&self.0, x, &norm(by), out);
    }

    fn quantize(
        &self,
        x: &Self::Rows,
        by: Option<&RmsNorm<Self>>,
        matrix: &Self::Matrix,
        out: &mut Self::Int8,
    ) {
        Backend::quantize(&self.0, x, by.map(norm).as_ref(), matrix, out);
    }

    fn multiply(&self, matrix: &Self::Matrix, x: &Self::Int8, out: &mut Self::Rows) {
        self.0.multiply(matrix, x, out);
    }

    fn put_columns(&self, part: &Self::Rows, start: usize, cols: usize, out: &mut Self::Rows) {
        self.0.put_columns(part, start, cols, out);
    }

    fn rotate(&self, qkv: &mut Self::Rows, heads: &HeadColumns, angles: &Self::Rows) {
        Backend::rotate(&self.0, qkv, heads, angles);
    }

    fn store_kv(
        &self,
        qkv: &Self::Rows,
        heads: &HeadColumns,
        batch: &ToyBatch,
        cache: &mut KvCache,
        layer: usize,
    ) {
        Backend::store_kv(&self.0, qkv, heads, &batch.batch, cache, layer);
    }

    fn keep_wanted(&self, batch: &mut ToyBatch, buffers: &mut [&mut Self::Rows]) {
        self.0.keep_wanted(&mut batch.batch, buffers);
    }

    fn attention(
        &self,
        qkv: &Self::Rows,
        heads: &HeadColumns,
        batch: &mut ToyBatch,
        cache: &mut KvCache,
        layer: usize,
        out: &mut Self::Rows,
    ) {
        Backend::attention(&self.0, qkv, heads, &mut batch.batch, cache, layer, out);
        if layer > 0 {
            return;
        }
        for run in &batch.runs {
            let state = cache.state_mut(run.state);
            if run.position == 0 {
                state.fill(0.0);
            }
            for row in run.rows.clone() {
                let row = out.row_mut(row);
                for (x, s) in row.iter_mut().zip(&mut *state) {
                    *s = 0.75 * *s + *x;
                    *x += *s;
                }
            }
        }
    }

    fn gate_and_quantize(
        &self,
        gate_up: &Self::Rows,
        neurons: &NeuronColumns,
        by: Option<&RmsNorm<Self>>,
        matrix: &Self::Matrix,
        out: &mut Self::Int8,
        seen: &mut FfnActivity,
    ) {
        let by = by.map(norm);
        Backend::gate_and_quantize(&self.0, gate_up, neurons, by.as_ref(), matrix, out, seen);
    }

    fn add(&self, x: &mut Self::Rows, delta: &Self::Rows) {
        Backend::add(&self.0, x, delta);
    }

    fn logits(&self, head: &Self::Table, hidden: &Self::Rows, rows: &[usize], out: &mut Vec<f32>) {
        self.0.logits(head, hidden, rows, out);
    }

    fn estimate(&self, head: &Self::Table, hidden: &Self::Rows, to: &mut Self::Estimated) -> bool {
        self.0.estimate(head, hidden, to)
    }

    fn estimates(estimated: &Self::Estimated, row: usize, vocab: usize) -> Estimates<'_> {
        Cpu::estimates(estimated, row, vocab)
    }

    fn exact(
        &self,
        head: &Self::Table,
        hidden: &Self::Rows,
        row: usize,
        tokens: &[u32],
        out: &mut Vec<f32>,
    ) {
        self.0.exact(head, hidden, row, tokens, out);
    }

    fn count_exact(&self, head: &Self::Table, num_exact: usize, decided: bool) {
        self.0.count_exact(head, num_exact, decided);
    }

    fn counters(&self) -> &Counters {
        self.0.counters()
    }
}

fn engine(options: EngineOptions) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let gguf = Arc::new(Gguf::open(&path).expect("the golden file opens"));
    let model = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &Toy::new(1));
    let model = Arc::new(model.expect("the golden model loads"));
    let runner = ModelRunner::new(model, Toy::new(2), Device::cpu(2), &options);
    Engine::with_runner(
        Box::new(runner.expect("memory for the cache")),
        None,
        options,
    )
}

/// Options of an engine with room for everything.
fn roomy() -> EngineOptions {
    EngineOptions {
        context: 512,
        cache: 2048,
        prefill_chunk: 64,
        ..EngineOptions::default()
    }
}

fn request(prompt: &[u32], seed: u64, max_tokens: usize) -> Request {
    Request {
        prompt: prompt.iter().map(|&token| TokenId(token)).collect(),
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (seed + i * 7) % 256).collect()
}

/// Runs requests together; the tokens of each, and how many tokens of its prompt were cached.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<TokenId>, usize)> {
    let submit = |request: &Request| engine.submit(request.clone()).expect("a good request");
    let ids: Vec<RequestId> = requests.iter().map(submit).collect();
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    assert_eq!(engine.free_blocks().0, engine.free_blocks().1);
    let answer = |wanted: RequestId| {
        let (mut tokens, mut cached) = (Vec::new(), 0);
        for event in &events {
            match event {
                Event::Token { id, token, .. } if *id == wanted => tokens.push(*token),
                Event::Finished { id, finish, .. } if *id == wanted => {
                    cached = finish.timings.cached_tokens;
                }
                _ => {}
            }
        }
        (tokens, cached)
    };
    ids.into_iter().map(answer).collect()
}

/// The tokens of a request in an engine of its own.
fn alone(request: &Request) -> Vec<TokenId> {
    run(&mut engine(roomy()), std::slice::from_ref(request))
        .remove(0)
        .0
}

fn tokens(answers: &[(Vec<TokenId>, usize)]) -> Vec<Vec<TokenId>> {
    answers.iter().map(|(tokens, _)| tokens.clone()).collect()
}

#[test]
fn the_state_changes_the_answer() {
    let request = request(&prompt(1, 40), 1, 20);
    let mut plain = {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
        let device = Device::cpu(1);
        let loaded = bitnet_inference::load(&path, &LoadOptions::default(), device);
        let model = loaded.expect("the golden model loads").model;
        Engine::new(model, None, device, roomy()).expect("memory for the cache")
    };
    let (without, _) = run(&mut plain, std::slice::from_ref(&request)).remove(0);
    assert_ne!(alone(&request), without);
}

#[test]
fn chunks_and_batches_change_no_token_of_a_model_with_a_state() {
    let requests = [
        request(&prompt(1, 100), 1, 12),
        request(&prompt(2, 3), 2, 40),
        request(&prompt(3, 64), 3, 9),
        request(&prompt(4, 31), 4, 70),
    ];
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for prefill_chunk in [1, 7, 33, 128] {
        let options = EngineOptions {
            prefill_chunk,
            ..roomy()
        };
        let found = run(&mut engine(options), &requests);
        assert_eq!(tokens(&found), expected, "chunks of {prefill_chunk}");
    }
}

#[test]
fn a_preempted_sequence_with_a_state_gives_the_same_tokens() {
    let requests: Vec<Request> = (0..5)
        .map(|i| request(&prompt(10 + i, 4 + 9 * i), u64::from(i), 80))
        .collect();
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for saved_states_max in [0, 2, 16] {
        let mut engine = engine(EngineOptions {
            context: 128,
            cache: 192,
            saved_states_max,
            ..roomy()
        });
        assert_eq!(tokens(&run(&mut engine, &requests)), expected);
        assert!(engine.counts().preemptions > 0);
    }
}

#[test]
fn refused_drafts_restore_the_state() {
    let repetitive: Vec<u32> = (0..60).map(|i| 40 + i % 4).collect();
    let greedy = |request: Request| Request {
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        ..request
    };
    let requests = [
        request(&repetitive, 3, 60),
        greedy(request(&repetitive, 3, 90)),
        request(&prompt(7, 50), 1, 60),
    ];
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for draft_max in [1, 5, 16] {
        let options = EngineOptions {
            draft_max,
            ..roomy()
        };
        let mut engine = engine(options);
        for (request, expected) in requests.iter().zip(&expected) {
            let (found, _) = run(&mut engine, std::slice::from_ref(request)).remove(0);
            assert_eq!(found, *expected, "drafts of {draft_max}");
        }
        let counts = engine.counts();
        assert!(counts.accepted_tokens > 0, "{counts:?}");
        assert!(counts.accepted_tokens < counts.drafted_tokens, "{counts:?}");
    }
}

#[test]
fn a_longer_conversation_computes_at_most_one_block_again() {
    let mut engine = engine(roomy());
    let mut conversation = prompt(5, 75);
    let mut cached = Vec::new();
    for turn in 0..4 {
        let request = request(&conversation, turn, 30);
        let (answer, hit) = run(&mut engine, std::slice::from_ref(&request)).remove(0);
        assert_eq!(answer, alone(&request), "turn {turn}");
        cached.push((hit, conversation.len()));
        conversation.extend(answer.iter().map(|token| token.0));
        conversation.extend(prompt(6 + turn as u32, 11));
    }
    // Each turn finds the last block border of the one before: the answer's last token is never
    // computed.
    let computed: Vec<usize> = cached.iter().skip(1).map(|(hit, len)| len - hit).collect();
    assert!(computed.iter().all(|n| *n < 32 + 1 + 11), "{cached:?}");
}

#[test]
fn a_beginning_is_shared_where_requests_part_for_the_second_time() {
    let mut engine = engine(roomy());
    let beginning = prompt(5, 70);
    let ask = |engine: &mut Engine, end: u32| {
        let request = request(&[&beginning[..], &prompt(end, 40)].concat(), 1, 5);
        let (answer, cached) = run(engine, std::slice::from_ref(&request)).remove(0);
        assert_eq!(answer, alone(&request));
        cached
    };
    // The first saves its state at 96; the second finds its keys up to 64, but no state, and saves
    // one there.
    assert_eq!(ask(&mut engine, 100), 0);
    assert_eq!(ask(&mut engine, 101), 0);
    assert_eq!(ask(&mut engine, 102), 64);
    assert_eq!(ask(&mut engine, 103), 64);
    // The same prompt again: at its last border.
    assert_eq!(ask(&mut engine, 100), 96);
}

#[test]
fn prompts_with_a_common_beginning_compute_it_once() {
    let common = prompt(9, 150);
    let mut requests: Vec<Request> = (0..6).map(|seed| request(&common, seed, 6)).collect();
    requests.push(request(
        &[&common[..70], &prompt(50, 30)[..]].concat(),
        8,
        6,
    ));
    let expected: Vec<_> = requests.iter().map(alone).collect();
    for prefill_chunk in [128, 40, 7] {
        let mut engine = engine(EngineOptions {
            prefill_chunk,
            ..roomy()
        });
        let found = run(&mut engine, &requests);
        assert_eq!(tokens(&found), expected, "chunks of {prefill_chunk}");
        // All but the first take over the four whole blocks of the common beginning.
        assert!(
            found[1..6].iter().all(|(_, cached)| *cached == 128),
            "chunks of {prefill_chunk}: {:?}",
            found.iter().map(|(_, cached)| cached).collect::<Vec<_>>()
        );
    }
}

#[test]
fn evaluation_leaves_the_states_of_requests_alone() {
    let mut engine = engine(roomy());
    let request = request(&prompt(1, 40), 1, 20);
    let expected = alone(&request);
    let id = engine.submit(request).expect("a good request");
    let (mut events, mut rows) = (Vec::new(), Vec::new());
    let text: Vec<TokenId> = prompt(3, 90).into_iter().map(TokenId).collect();
    while engine.is_busy() {
        engine.step(&mut events);
        let mut logits = Vec::new();
        let evaluated = engine.evaluate::<bitnet_inference::Error>(&text, 0, |_, found| {
            logits.extend_from_slice(found);
            Ok(())
        });
        evaluated.expect("good tokens");
        rows.push(logits);
    }
    assert!(rows.windows(2).all(|pair| pair[0] == pair[1]));
    let found: Vec<TokenId> = events
        .iter()
        .filter_map(|event| match event {
            Event::Token { id: of, token, .. } if *of == id => Some(*token),
            _ => None,
        })
        .collect();
    assert_eq!(found, expected);
}
