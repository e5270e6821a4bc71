//! The guarantee of docs/determinism.md: the same logits, bit for bit, with any threads, kernels,
//! chunks and other sequences.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_kernels::{Cpu, KernelSet, Packing};
use bitnet_models::{
    Chunk, FfnSparsity, KvCache, KvType, LanguageModel, LoadOptions, LogitRows, Workspace,
};

use crate::golden;

const THREADS: [usize; 3] = [1, 2, 3];
/// Number of tokens that each other sequence of a batch adds to each pass; the first sequence comes
/// before ours, the others after it.
const BATCHES: [&[usize]; 3] = [&[], &[3], &[1, 7]];

/// The settings of one computation.
#[derive(Clone, Copy, Debug)]
struct Way {
    kernels: &'static str,
    threads: usize,
    chunk: usize,
    others: &'static [usize],
}

fn load(path: &Path, packing: Packing, ffn_sparsity: FfnSparsity) -> LanguageModel<Cpu> {
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let options = LoadOptions {
        packing: Some(packing),
        ffn_sparsity,
        ..LoadOptions::default()
    };
    LanguageModel::from_gguf(&gguf, &options, &cpu).expect("the file loads")
}

/// The progress of a sequence through the model.
struct Sequence {
    tokens: Vec<u32>,
    /// Tokens per pass.
    step: usize,
    blocks: Vec<u32>,
    done: usize,
    logits: LogitRows,
}

impl Sequence {
    fn next(&self) -> Option<Chunk<'_>> {
        let end = self.tokens.len().min(self.done + self.step);
        let tokens = &self.tokens[self.done..end];
        let chunk = Chunk {
            tokens,
            position: self.done,
            blocks: &self.blocks,
            state: 0,
            logits: self.logits,
        };
        (!tokens.is_empty()).then_some(chunk)
    }
}

/// A hash of the logits of every position of a sequence of `len` tokens.
fn logits_hash(model: &LanguageModel<Cpu>, kv_type: KvType, len: usize, way: Way) -> u64 {
    let set = KernelSet::by_name(way.kernels).expect("a set of this CPU");
    let cpu = Cpu::new(set, way.threads);
    let config = model.config();
    let vocab = config.vocab_size as u32;
    let mut num_blocks = 0;
    let mut sequence = |seed: u32, len: usize, step: usize, logits| {
        let count = len.div_ceil(KvCache::BLOCK) as u32;
        // The blocks are not in order, because their order must not matter either.
        let blocks = (num_blocks..num_blocks + count).rev().collect();
        num_blocks += count;
        let tokens = (0..len as u32).map(|i| (seed + i * 37) % vocab).collect();
        Sequence {
            tokens,
            step,
            blocks,
            done: 0,
            logits,
        }
    };
    let mut sequences = vec![sequence(5, len, way.chunk, LogitRows::All)];
    for (index, &step) in way.others.iter().enumerate() {
        let other = sequence(11 + index as u32, 40, step, LogitRows::Last);
        sequences.insert(if index == 0 { 0 } else { sequences.len() }, other);
    }
    let mut cache = KvCache::new(
        config.attention,
        config.num_layers,
        kv_type,
        num_blocks as usize,
    )
    .expect("memory");
    let (mut workspace, mut hasher) = (Workspace::new(), DefaultHasher::new());
    loop {
        let chunks: Vec<Chunk<'_>> = sequences.iter().filter_map(Sequence::next).collect();
        let Some(ours) = chunks
            .iter()
            .position(|chunk| chunk.logits == LogitRows::All)
        else {
            break;
        };
        let rows = chunks[ours].tokens.len();
        let logits = model.forward(&cpu, &mut workspace, &mut cache, &chunks);
        // The rows of the other sequences, one each, come before ours.
        for logit in &logits[ours * config.vocab_size..(ours + rows) * config.vocab_size] {
            logit.to_bits().hash(&mut hasher);
        }
        for sequence in &mut sequences {
            sequence.done = sequence.tokens.len().min(sequence.done + sequence.step);
        }
    }
    hasher.finish()
}

/// How the batches are combined with the other settings.
#[derive(Clone, Copy, PartialEq)]
enum Batches {
    /// Each batch in every combination.
    All,
    /// One batch in each combination, in turn: each kernel set, thread count and chunk meets every
    /// batch.
    InTurns,
}

/// Checks every combination of threads, kernel sets, batches and the given chunks, for each type of
/// cache and length of prompt; then every set and chunk again with the given packings, with and
/// without skipping zeros.
fn assert_one_hash(
    path: &Path,
    packings: &[Packing],
    batches: Batches,
    lengths: &[usize],
    chunks: &[usize],
) {
    let model = load(path, Packing::default(), FfnSparsity::Off);
    let ways = |threads: &[usize]| {
        let mut ways = Vec::new();
        for (i, set) in KernelSet::available().enumerate() {
            for &threads in threads {
                for (j, &chunk) in chunks.iter().enumerate() {
                    let turn = (i + threads + j) % BATCHES.len();
                    let chosen = if batches == Batches::All {
                        &BATCHES[..]
                    } else {
                        &BATCHES[turn..][..1]
                    };
                    ways.extend(chosen.iter().map(|&others| Way {
                        kernels: set.name,
                        threads,
                        chunk,
                        others,
                    }));
                }
            }
        }
        ways
    };
    let mut plans = vec![(model, ways(&THREADS))];
    for &packing in packings {
        for ffn_sparsity in [FfnSparsity::Off, FfnSparsity::On] {
            let model = load(path, packing, ffn_sparsity);
            let packed = model.num_ternary_bytes() < plans[0].0.num_ternary_bytes();
            assert_eq!(
                packed,
                matches!(packing, Packing::FiveThirds | Packing::Tl2)
            );
            plans.push((model, ways(&[2])));
        }
    }
    for kv_type in [KvType::F16, KvType::F32] {
        for &len in lengths {
            let mut expected = None;
            for (model, ways) in &plans {
                for &way in ways {
                    let found = logits_hash(model, kv_type, len, way);
                    let expected = *expected.get_or_insert(found);
                    let (packing, sparsity) = (model.packing(), model.ffn_sparsity().name());
                    let what = format!("packing {packing}, zeros left out: {sparsity}, {way:?}");
                    assert_eq!(
                        found,
                        expected,
                        "{}, {kv_type:?}, {len} tokens: {what}",
                        path.display()
                    );
                }
            }
        }
    }
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

#[test]
fn a_golden_model_has_one_set_of_logits() {
    let path = in_repository("tests/data/golden/strict-b158/model-i2_s.gguf");
    assert_one_hash(&path, &Packing::ALL, Batches::All, &[1, 2, 19], &[1, 5, 64]);
}

#[test]
fn a_golden_llama_has_one_set_of_logits() {
    let Some(folder) = golden("tiny-llama") else {
        return;
    };
    assert_one_hash(
        &folder.join("model-i2_s.gguf"),
        &Packing::ALL,
        Batches::InTurns,
        &[18],
        &[1, 7],
    );
}

#[test]
fn a_prompt_longer_than_a_segment_of_attention_has_one_set_of_logits() {
    let path = in_repository("tests/data/golden/strict-1bitllm/model-i2_s.gguf");
    assert_one_hash(&path, &[], Batches::InTurns, &[259], &[64]);
}

#[test]
fn the_built_in_model_has_one_set_of_logits() {
    assert_one_hash(
        &in_repository("models/stories/stories.gguf"),
        &Packing::ALL,
        Batches::InTurns,
        &[13],
        &[1, 8],
    );
}
