//! The promise of docs/determinism.md: the same logits, bit for bit, whatever threads, kernels, chunks and neighbours.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::gguf::Gguf;
use bitnet_models::{Chunk, KvCache, KvType, LanguageModel, LoadOptions, LogitRows, Workspace};

const THREADS: [usize; 3] = [1, 2, 3];
/// Tokens that the other sequences of a batch bring to each pass; the first stands before ours, the rest behind it.
const BATCHES: [&[usize]; 3] = [&[], &[3], &[1, 7]];

/// How a sequence is computed.
#[derive(Clone, Copy, Debug)]
struct Way {
    kernels: &'static str,
    threads: usize,
    chunk: usize,
    others: &'static [usize],
}

fn load(path: &str) -> LanguageModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    let gguf = Arc::new(Gguf::open(&path).expect("the file opens"));
    let cpu = Cpu::new(KernelSet::detect(), 2);
    LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &cpu).expect("the file loads")
}

/// A sequence on its way through the model.
struct Sequence {
    tokens: Vec<u32>,
    /// Tokens a pass.
    step: usize,
    blocks: Vec<u32>,
    done: usize,
    logits: LogitRows,
}

impl Sequence {
    fn next(&self) -> Option<Chunk<'_>> {
        let end = self.tokens.len().min(self.done + self.step);
        let tokens = &self.tokens[self.done..end];
        let chunk = Chunk { tokens, position: self.done, blocks: &self.blocks, logits: self.logits };
        (!tokens.is_empty()).then_some(chunk)
    }
}

/// A hash of the logits of every position of a sequence of `len` tokens.
fn logits_hash(model: &LanguageModel, kv_type: KvType, len: usize, way: Way) -> u64 {
    let set = KernelSet::by_name(way.kernels).expect("a set of this CPU");
    let cpu = Cpu::new(set, way.threads);
    let config = model.config();
    let vocab = config.vocab_size as u32;
    let mut num_blocks = 0;
    let mut sequence = |seed: u32, len: usize, step: usize, logits| {
        let count = len.div_ceil(KvCache::BLOCK) as u32;
        // Not in order: where blocks lie must not matter either.
        let blocks = (num_blocks..num_blocks + count).rev().collect();
        num_blocks += count;
        let tokens = (0..len as u32).map(|i| (seed + i * 37) % vocab).collect();
        Sequence { tokens, step, blocks, done: 0, logits }
    };
    let mut sequences = vec![sequence(5, len, way.chunk, LogitRows::All)];
    for (index, &step) in way.others.iter().enumerate() {
        let other = sequence(11 + index as u32, 40, step, LogitRows::Last);
        sequences.insert(if index == 0 { 0 } else { sequences.len() }, other);
    }
    let mut cache = KvCache::new(config.attention, config.num_layers, kv_type, num_blocks as usize).expect("memory");
    let (mut workspace, mut hasher) = (Workspace::new(), DefaultHasher::new());
    loop {
        let chunks: Vec<Chunk<'_>> = sequences.iter().filter_map(Sequence::next).collect();
        let Some(ours) = chunks.iter().position(|chunk| chunk.logits == LogitRows::All) else { break };
        let rows = chunks[ours].tokens.len();
        let logits = model.forward(&cpu, &mut workspace, &mut cache, &chunks);
        // Before ours there is one row of each other sequence.
        for logit in &logits[ours * config.vocab_size..(ours + rows) * config.vocab_size] {
            logit.to_bits().hash(&mut hasher);
        }
        for sequence in &mut sequences {
            sequence.done = sequence.tokens.len().min(sequence.done + sequence.step);
        }
    }
    hasher.finish()
}

/// Every combination of threads, kernel sets, batches and the given chunks, for each type of cache and length of prompt.
fn assert_one_hash(path: &str, lengths: &[usize], chunks: &[usize]) {
    let model = load(path);
    let sets: Vec<&'static str> = KernelSet::available().map(|set| set.name).collect();
    for kv_type in [KvType::F16, KvType::F32] {
        for &len in lengths {
            let mut expected = None;
            for &kernels in &sets {
                for threads in THREADS {
                    for &chunk in chunks {
                        for others in BATCHES {
                            let way = Way { kernels, threads, chunk, others };
                            let found = logits_hash(&model, kv_type, len, way);
                            let expected = *expected.get_or_insert(found);
                            assert_eq!(found, expected, "{path}, {kv_type:?}, {len} tokens: {way:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_golden_model_has_one_set_of_logits() {
    assert_one_hash("tests/data/golden/strict-b158/model-i2_s.gguf", &[1, 2, 19], &[1, 5, 64]);
}

#[test]
fn a_prompt_longer_than_a_segment_of_attention_has_one_set_of_logits() {
    assert_one_hash("tests/data/golden/strict-1bitllm/model-i2_s.gguf", &[259], &[64]);
}

#[test]
fn the_built_in_model_has_one_set_of_logits() {
    assert_one_hash("models/stories/stories.gguf", &[13], &[1, 8]);
}
