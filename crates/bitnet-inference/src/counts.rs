//! [`EngineCounts`] and [`HeadUse`]: counts of an engine's work since its start. [`StateCounts`]:
//! how its memory for recurrent states is used now.

use crate::draft::DRAFT_MAX;

/// Counts how often estimated logits decided the next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadUse {
    /// Tokens for which the sampler tried estimates.
    pub screened: u64,
    /// Tokens for which estimates could not decide, so that all logits were computed.
    pub fell_back: u64,
    /// Exact logits of single tokens.
    pub exact_logits: u64,
    /// Exact logits of single tokens that did not help, because estimates could not decide.
    pub wasted_logits: u64,
}

impl HeadUse {
    pub(crate) fn add(&mut self, num_exact: u64, decided: bool) {
        self.screened += 1;
        self.exact_logits += num_exact;
        if !decided {
            self.fell_back += 1;
            self.wasted_logits += num_exact;
        }
    }
}

/// The slots for recurrent states of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Slots that sequences hold, for themselves and for their drafts.
    pub held: usize,
    /// Slots with a saved state, which requests with the same beginning reuse. They become free
    /// when sequences need them.
    pub saved: usize,
    /// All slots.
    pub slots: usize,
    /// Bytes of a slot.
    pub bytes: usize,
}

/// Counts since the engine's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Steps that ran tokens through the model.
    pub steps: u64,
    /// Tokens run through the model, drafts included.
    pub computed_tokens: u64,
    /// Tokens of prompts of started requests.
    pub prompt_tokens: u64,
    /// Tokens of these prompts that came from the cache.
    pub cached_tokens: u64,
    /// Number of times that a sequence gave up its memory.
    pub preemptions: u64,
    /// Number of drafts; each is a few tokens guessed ahead.
    pub drafts: u64,
    /// Tokens of all drafts.
    pub drafted_tokens: u64,
    /// Drafted tokens that were right.
    pub accepted_tokens: u64,
    /// The same, by position in the draft.
    pub accepted_by_place: [u64; DRAFT_MAX],
}
