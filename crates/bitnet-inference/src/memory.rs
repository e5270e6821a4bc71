//! [`Memory`]: the parts of a runner's cache that sequences hold: blocks of keys and values, and,
//! for models with recurrent layers, one state each. Ids only, no tensors.
//!
//! Keys and values exist for every position, so sequences can share a prefix that ends at any block
//! border. A recurrent state exists only for the position that its sequence has reached, so
//! sequences can share a prefix only up to a saved state. States are saved at block borders, each
//! with the block that ends there: at the newest border of each sequence, at the last one
//! before the end of its prompt, and where sequences diverge. Their number is bounded; the least recently used is dropped first.
//!
//! A model without recurrent layers has no states, and can share prefixes at every block border.

use std::sync::Arc;

use bitnet_models::{Chunk, KvCache, LogitRows};
use bitnet_tokenizers::TokenId;

use crate::block_pool::BlockPool;
use crate::states::StatePool;

/// Positions in a block.
const BLOCK: usize = KvCache::BLOCK;

/// The blocks and states of a cache.
pub(crate) struct Memory {
    pub blocks: BlockPool,
    /// `None` for a model without recurrent layers.
    pub states: Option<StatePool>,
}

/// The memory of one sequence.
#[derive(Default)]
pub(crate) struct Holding {
    /// Only sequences with the same salt share prefixes.
    pub salt: Option<Arc<str>>,
    /// Blocks, in the order of their positions.
    pub blocks: Vec<u32>,
    /// Number of blocks whose content the pool knows.
    pub num_known: usize,
    /// Tokens whose keys and values, and whose state, are computed.
    pub computed: usize,
    /// The slot of its state, if the model has states.
    pub state: Option<u32>,
    /// The position of the state in that slot; more than `computed` while a draft is checked.
    pub state_end: usize,
    /// A copy of the state from before a draft.
    checkpoint: Option<u32>,
    /// The block with the newest state that this sequence saved.
    newest: Option<u32>,
    /// The number of blocks after which it diverges from a known prefix without a saved state.
    parting: usize,
    /// Blocks of the prompt without its last token, which the same prompt can reuse.
    prompt_blocks: usize,
}

impl Holding {
    /// A new sequence, which holds nothing, with room for at most `tokens_max` tokens.
    pub fn new(salt: Option<Arc<str>>, prompt_tokens: usize, tokens_max: usize) -> Self {
        Self {
            salt,
            blocks: Vec::with_capacity(tokens_max.div_ceil(BLOCK)),
            prompt_blocks: prompt_tokens.saturating_sub(1) / BLOCK,
            ..Self::default()
        }
    }

    /// The next tokens of the sequence, for a step.
    pub fn chunk<'a>(&'a self, tokens: &'a [u32], logits: LogitRows) -> Chunk<'a> {
        Chunk {
            tokens,
            position: self.computed,
            blocks: &self.blocks,
            state: self.state.unwrap_or(0),
            logits,
        }
    }
}

impl Memory {
    /// A cache of `num_blocks` blocks and, if `num_states` is not 0, as many states.
    pub fn new(num_blocks: usize, num_states: usize) -> Self {
        Self {
            blocks: BlockPool::new(num_blocks),
            states: (num_states > 0).then(|| StatePool::new(num_states)),
        }
    }

    /// Takes the memory for a sequence of these tokens: first known blocks, up to the last saved
    /// state. Takes nothing and returns false if there is not enough. `reusable`: maximum number of
    /// tokens to take from known blocks.
    pub fn admit(&mut self, held: &mut Holding, tokens: &[TokenId], reusable: usize) -> bool {
        let salt = held.salt.clone();
        let blocks = &mut held.blocks;
        self.blocks
            .take_known(salt.as_ref(), &tokens[..reusable], blocks);
        let (mut known, mut saved) = (blocks.len(), None);
        if let Some(states) = &mut self.states {
            held.parting = known;
            while known > 0 && saved.is_none() {
                saved = states.saved_at(blocks[known - 1]);
                known -= usize::from(saved.is_none());
            }
            let mut unused = blocks.split_off(known);
            self.blocks.give_back(&mut unused);
        }
        let num_blocks = tokens.len().div_ceil(BLOCK);
        let has_room = self.take_blocks(num_blocks - known, held);
        if !has_room || !self.take_state(held, saved) {
            self.give_back(held);
            return false;
        }
        held.num_known = known;
        held.computed = known * BLOCK;
        held.state_end = held.computed;
        true
    }

    /// Takes `count` more blocks for a sequence; takes none and returns false if fewer are
    /// available.
    pub fn take_blocks(&mut self, count: usize, held: &mut Holding) -> bool {
        let has_room = self.blocks.take(count, &mut held.blocks);
        // A state is useless without the block that ends at its position.
        for block in self.blocks.forgotten.drain(..) {
            if let Some(states) = &mut self.states {
                states.drop_saved(block);
            }
        }
        has_room
    }

    /// Takes a slot for the state of a sequence and copies the saved one into it, if there is one;
    /// false if there is no slot.
    pub fn take_state(&mut self, held: &mut Holding, saved: Option<u32>) -> bool {
        let Some(states) = &mut self.states else {
            return true;
        };
        held.state = states.take();
        if let (Some(from), Some(to)) = (saved, held.state) {
            states.copies.push((from, to));
        }
        held.state.is_some()
    }

    /// Takes over the next blocks as far as other sequences have computed them since, up to
    /// `reusable` tokens.
    pub fn take_over(&mut self, held: &mut Holding, tokens: &[TokenId], reusable: usize) {
        let num_blocks = match &mut self.states {
            None => reusable / BLOCK,
            Some(states) => {
                let known = self.blocks.known_after(
                    held.salt.as_ref(),
                    &tokens[..reusable],
                    &held.blocks[..held.num_known],
                );
                // Find the last of these blocks that has a saved state.
                let (mut followed, mut end, mut saved) = (held.num_known, 0, None);
                for block in known {
                    followed += 1;
                    if let Some(slot) = states.saved_at(block) {
                        (end, saved) = (followed, Some(slot));
                    }
                }
                held.parting = held.parting.max(followed);
                if let (Some(from), Some(to)) = (saved, held.state) {
                    states.copies.push((from, to));
                    held.state_end = end * BLOCK;
                }
                end
            }
        };
        while held.num_known < num_blocks
            && self
                .blocks
                .take_over(held.salt.as_ref(), tokens, &mut held.blocks, held.num_known)
        {
            held.num_known += 1;
            held.computed = held.num_known * BLOCK;
        }
    }

    /// `n` more tokens of a sequence are computed.
    pub fn advance(&mut self, held: &mut Holding, tokens: &[TokenId], n: usize) {
        held.computed += n;
        while (held.num_known + 1) * BLOCK <= held.computed {
            self.blocks
                .fill(held.salt.as_ref(), tokens, &mut held.blocks, held.num_known);
            held.num_known += 1;
        }
        self.save(held);
    }

    /// Saves the state of a sequence that is at a block border.
    fn save(&mut self, held: &mut Holding) {
        let (Some(states), Some(slot)) = (&mut self.states, held.state) else {
            return;
        };
        let num_blocks = held.computed / BLOCK;
        let is_border = held.computed == num_blocks * BLOCK && num_blocks > 0;
        if !is_border || held.computed != held.state_end {
            return;
        }
        let block = held.blocks[num_blocks - 1];
        let is_kept = num_blocks == held.prompt_blocks || num_blocks == held.parting;
        states.save(block, slot, is_kept);
        if let Some(older) = held.newest.replace(block)
            && older != block
        {
            states.supersede(older);
        }
    }

    /// Number of the next `n` tokens of a sequence to compute in one step: with a state, a step
    /// ends at a block border if it comes to one, so that the state can be saved there, and passes
    /// neither the last border before the end of the prompt nor the one where it diverges.
    pub fn step_len(held: &Holding, n: usize) -> usize {
        if held.state.is_none() {
            return n;
        }
        let (start, end) = (held.computed, held.computed + n);
        let border = end / BLOCK * BLOCK;
        let end = if border > start { border } else { end };
        let stops = [held.prompt_blocks, held.parting].map(|blocks| blocks * BLOCK);
        let inside = stops
            .into_iter()
            .filter(|stop| start < *stop && *stop < end);
        inside.min().unwrap_or(end) - start
    }

    /// Saves the state before a draft, which may be rejected; false if there is no room for a copy
    /// of the state.
    pub fn begin_draft(&mut self, held: &mut Holding) -> bool {
        let (Some(states), Some(state)) = (&mut self.states, held.state) else {
            return true;
        };
        if held.checkpoint.is_none() {
            held.checkpoint = states.take();
        }
        let Some(checkpoint) = held.checkpoint else {
            return false;
        };
        states.copies.push((state, checkpoint));
        true
    }

    /// Ends a draft that began at position `start`. If part of it was rejected, the state goes back
    /// to `start`, and the tokens since then must be computed again.
    pub fn end_draft(&mut self, held: &mut Holding, start: usize) {
        let (Some(states), Some(state)) = (&mut self.states, held.state) else {
            return;
        };
        let Some(checkpoint) = held.checkpoint.take() else {
            return;
        };
        let unused = if held.state_end == held.computed {
            checkpoint
        } else {
            (held.computed, held.state_end) = (start, start);
            held.state = Some(checkpoint);
            state
        };
        states.give_back(unused);
    }

    /// Takes back all that a sequence holds. Known blocks and saved states stay known.
    pub fn give_back(&mut self, held: &mut Holding) {
        self.blocks.give_back(&mut held.blocks);
        if let Some(states) = &mut self.states {
            let slots = [held.state.take(), held.checkpoint.take()];
            slots
                .into_iter()
                .flatten()
                .for_each(|slot| states.give_back(slot));
        }
        *held = Holding {
            salt: held.salt.take(),
            blocks: std::mem::take(&mut held.blocks),
            prompt_blocks: held.prompt_blocks,
            ..Holding::default()
        };
    }

    /// Copies of states to make, in order, before the next step: from slot, to slot.
    pub fn copies(&mut self) -> impl Iterator<Item = (u32, u32)> {
        self.states
            .iter_mut()
            .flat_map(|states| states.copies.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: u32) -> Vec<TokenId> {
        (first..first + 80).map(TokenId).collect()
    }

    /// A sequence of these tokens, admitted.
    fn admitted(memory: &mut Memory, tokens: &[TokenId]) -> Holding {
        let mut held = Holding::new(None, tokens.len(), tokens.len());
        assert!(memory.admit(&mut held, tokens, tokens.len() - 1));
        held
    }

    /// Computes `n` more tokens, after which the state is at `state_end`; returns the number of
    /// saved states.
    fn advance(
        memory: &mut Memory,
        held: &mut Holding,
        tokens: &[TokenId],
        n: usize,
        state_end: usize,
    ) -> usize {
        held.state_end = state_end;
        memory.advance(held, tokens, n);
        memory.copies().count()
    }

    #[test]
    fn a_state_is_saved_only_at_its_own_block_border() {
        let mut memory = Memory::new(16, 3);
        let (tokens, others) = (tokens(0), tokens(1000));
        let mut held = admitted(&mut memory, &tokens);
        assert_eq!(advance(&mut memory, &mut held, &tokens, 32, 32), 1);
        // Another sequence takes the only slot for a saved state.
        let mut other = admitted(&mut memory, &others);
        assert_eq!(advance(&mut memory, &mut other, &others, 32, 32), 1);
        assert_eq!(advance(&mut memory, &mut held, &tokens, 1, 33), 0, "at 33");
        assert_eq!(advance(&mut memory, &mut held, &tokens, 31, 70), 0, "at 70");
    }

    #[test]
    fn a_step_with_a_state_ends_at_a_border_and_where_the_state_is_needed() {
        let mut held = Holding {
            computed: 20,
            ..Holding::default()
        };
        assert_eq!(Memory::step_len(&held, 100), 100, "without a state");
        held.state = Some(0);
        assert_eq!(Memory::step_len(&held, 11), 11);
        assert_eq!(Memory::step_len(&held, 100), 76, "to 96");
        held.parting = 2;
        assert_eq!(Memory::step_len(&held, 100), 44, "to 64");
        held.prompt_blocks = 1;
        assert_eq!(Memory::step_len(&held, 100), 12, "to 32");
    }

    #[test]
    fn a_prefix_is_reused_up_to_the_last_saved_state() {
        let mut memory = Memory::new(16, 6);
        let tokens = tokens(0);
        let mut held = admitted(&mut memory, &tokens);
        advance(&mut memory, &mut held, &tokens, 32, 32);
        // Keys and values up to 64 are known, a state only up to 32.
        advance(&mut memory, &mut held, &tokens, 40, 75);
        memory.give_back(&mut held);
        let again = admitted(&mut memory, &tokens);
        assert_eq!((again.computed, again.parting), (32, 2));
        assert_eq!(memory.copies().count(), 1);
        let mut stateless = Memory::new(16, 0);
        let mut held = admitted(&mut stateless, &tokens);
        advance(&mut stateless, &mut held, &tokens, 72, 0);
        stateless.give_back(&mut held);
        assert_eq!(admitted(&mut stateless, &tokens).computed, 64);
    }

    #[test]
    fn a_sequence_that_ends_frees_all_blocks_and_slots() {
        let mut memory = Memory::new(16, 6);
        let tokens = tokens(0);
        for _ in 0..20 {
            let mut held = admitted(&mut memory, &tokens);
            assert!(memory.begin_draft(&mut held));
            memory.give_back(&mut held);
        }
        let states = memory.states.as_ref().expect("states");
        assert_eq!(states.counts().held, 0);
        assert_eq!(memory.blocks.num_available(), 16);
    }
}
