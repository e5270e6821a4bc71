//! [`EngineOptions`]: the bounds of an engine.

use bitnet_models::{KvCache, KvType};

pub use crate::draft::DRAFT_MAX;
use crate::draft::Drafter;

/// Maximum number of decoding sequences with which drafts are checked: with more, a step has enough
/// rows without drafts.
pub(crate) const DRAFTING_MAX: usize = 2;

/// The engine's bounds.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Maximum number of positions of a sequence.
    pub context: usize,
    /// Positions that the key/value cache holds for all sequences together, at least `context`.
    pub cache: usize,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// Maximum number of prompt tokens in a step in which no interactive sequence decodes.
    pub prefill_chunk: usize,
    /// Maximum number of prompt tokens in a step in which interactive sequences decode; fewer far
    /// into a prompt, where a token takes longer.
    pub mixed_chunk: usize,
    /// Maximum number of sequences that run at once.
    pub running_max: usize,
    /// Maximum number of tokens to guess ahead for each sequence from its earlier tokens and to
    /// check in the same step; 0 for none.
    pub draft_max: usize,
    /// Whether only drafts are made that are expected to save time, as long as they are expected to
    /// save most. Otherwise all have `draft_max` tokens.
    pub draft_adapts: bool,
    /// Recurrent states that the cache holds, at least one, if the model has recurrent layers: one
    /// of each running sequence, one of each draft under way, and saved ones for requests with the
    /// same beginning. Sequences take the place of saved states.
    pub states: usize,
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
            draft_adapts: false,
            states: 80,
        }
    }
}

impl EngineOptions {
    /// Blocks of the key/value cache.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.cache.max(self.context).div_ceil(KvCache::BLOCK)
    }

    /// Decides the drafts of a sequence of at most `tokens_max` tokens.
    pub(crate) fn drafter(&self, tokens_max: usize) -> Drafter {
        Drafter::new(self.draft_max, self.draft_adapts, tokens_max)
    }
}
