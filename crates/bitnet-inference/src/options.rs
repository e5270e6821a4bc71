//! [`EngineOptions`]: the bounds of an engine.

use bitnet_models::{KvCache, KvType};

/// Maximum number of tokens to guess ahead.
pub const DRAFT_MAX: usize = 16;
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
    /// Maximum number of prompt tokens in a step in which no sequence decodes.
    pub prefill_chunk: usize,
    /// Maximum number of prompt tokens in a step in which sequences decode; fewer far into a
    /// prompt, where a token takes longer.
    pub mixed_chunk: usize,
    /// Maximum number of sequences that run at once.
    pub running_max: usize,
    /// Maximum number of tokens to guess ahead for each sequence from its earlier tokens and to
    /// check in the same step; 0 for none.
    pub draft_max: usize,
    /// Maximum number of recurrent states saved for requests with the same prefix, if the model has
    /// recurrent layers.
    pub saved_states_max: usize,
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
            saved_states_max: 16,
        }
    }
}

impl EngineOptions {
    /// Blocks of the key/value cache.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.cache.max(self.context).div_ceil(KvCache::BLOCK)
    }

    /// Slots for recurrent states, if the model has recurrent layers: one for each running
    /// sequence, one for each draft and one for [`crate::Engine::evaluate`], then the saved ones.
    #[must_use]
    pub fn num_states(&self) -> usize {
        self.running_max.max(1) + DRAFTING_MAX + 1 + self.saved_states_max
    }
}
