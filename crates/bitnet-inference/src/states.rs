//! [`StatePool`]: tracks the slots for recurrent states: the free ones, and the saved states with
//! the block at whose end each was saved. Ids only: it lists the copies that a runner must make.

use std::collections::HashMap;

use crate::counts::StateCounts;

/// The slots for recurrent states.
pub(crate) struct StatePool {
    /// Slots without a state; the pool takes the last one next.
    free: Vec<u32>,
    /// Saved states by the block that ends at their position.
    saved: HashMap<u32, Saved>,
    num_states: usize,
    clock: u64,
    /// Copies to make before the next step, in order: from slot, to slot.
    pub copies: Vec<(u32, u32)>,
}

struct Saved {
    slot: u32,
    /// The time when it was last saved or used.
    used: u64,
    /// Whether it remains when its sequence saves a newer one.
    is_kept: bool,
}

impl StatePool {
    /// A pool of `num_states` free slots.
    pub fn new(num_states: usize) -> Self {
        Self {
            free: (0..u32::try_from(num_states).unwrap_or(u32::MAX))
                .rev()
                .collect(),
            saved: HashMap::new(),
            num_states,
            clock: 0,
            copies: Vec::new(),
        }
    }

    /// Takes a slot, in place of the least recently used saved state if none is free.
    pub fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            self.drop_oldest();
        }
        self.free.pop()
    }

    /// Takes a slot back.
    pub fn give_back(&mut self, slot: u32) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} given back twice");
        self.free.push(slot);
    }

    /// The slot with the state at the end of a block, if one is saved.
    pub fn saved_at(&mut self, block: u32) -> Option<u32> {
        self.clock += 1;
        let saved = self.saved.get_mut(&block)?;
        saved.used = self.clock;
        Some(saved.slot)
    }

    /// Saves the state in `slot` as the one at the end of a block, in place of the least recently
    /// used one if no slot is free.
    pub fn save(&mut self, block: u32, slot: u32, is_kept: bool) {
        if self.saved_at(block).is_none() {
            let Some(to) = self.take() else { return };
            self.copies.push((slot, to));
            let (used, is_kept) = (self.clock, false);
            self.saved.insert(
                block,
                Saved {
                    slot: to,
                    used,
                    is_kept,
                },
            );
        }
        if let Some(saved) = self.saved.get_mut(&block) {
            saved.is_kept |= is_kept;
        }
    }

    /// Drops the state saved at the end of a block, because its sequence has saved a newer one.
    pub fn supersede(&mut self, block: u32) {
        if self.saved.get(&block).is_some_and(|saved| !saved.is_kept) {
            self.drop_saved(block);
        }
    }

    /// Drops the state saved at the end of a block, if there is one.
    pub fn drop_saved(&mut self, block: u32) {
        if let Some(saved) = self.saved.remove(&block) {
            self.free.push(saved.slot);
        }
    }

    /// How the slots are used; without the bytes of a slot, which a pool does not know.
    pub fn counts(&self) -> StateCounts {
        let (saved, slots) = (self.saved.len(), self.num_states);
        StateCounts {
            held: slots - self.free.len() - saved,
            saved,
            slots,
            bytes: 0,
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.saved.iter().min_by_key(|(_, saved)| saved.used);
        if let Some(block) = oldest.map(|(block, _)| *block) {
            self.drop_saved(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_copies_a_state_once_and_finds_it_by_its_block() {
        let mut pool = StatePool::new(3);
        let live = pool.take().expect("a slot");
        pool.save(7, live, true);
        pool.save(7, live, false);
        let saved = pool.saved_at(7).expect("a saved state");
        assert_eq!(pool.copies, [(live, saved)]);
        assert_ne!(live, saved);
        assert_eq!(pool.saved_at(8), None);
    }

    #[test]
    fn the_least_recently_used_saved_state_is_dropped_first() {
        let mut pool = StatePool::new(3);
        let live = pool.take().expect("a slot");
        pool.save(1, live, true);
        pool.save(2, live, true);
        assert!(pool.saved_at(1).is_some());
        pool.save(3, live, true);
        assert!(pool.saved_at(1).is_some() && pool.saved_at(3).is_some());
        assert_eq!(pool.saved_at(2), None);
        let counts = pool.counts();
        assert_eq!((counts.held, counts.saved, counts.slots), (1, 2, 3));
    }

    #[test]
    fn a_newer_state_replaces_an_older_one_unless_that_is_kept() {
        let mut pool = StatePool::new(4);
        let live = pool.take().expect("a slot");
        pool.save(1, live, false);
        pool.save(2, live, true);
        pool.supersede(1);
        pool.supersede(2);
        assert_eq!(pool.saved_at(1), None);
        assert!(pool.saved_at(2).is_some());
    }

    #[test]
    fn sequences_take_slots_from_saved_states() {
        let mut pool = StatePool::new(2);
        let live = pool.take().expect("a slot");
        pool.save(1, live, true);
        let second = pool.take().expect("the slot of the saved state");
        assert_eq!(pool.saved_at(1), None);
        pool.save(2, live, true);
        assert_eq!(pool.saved_at(2), None, "no slot is free");
        assert_eq!(pool.take(), None);
        pool.give_back(second);
        assert_eq!(pool.take(), Some(second));
    }

    #[test]
    fn without_room_for_saved_states_none_is_saved() {
        let mut pool = StatePool::new(1);
        let live = pool.take().expect("a slot");
        pool.save(1, live, true);
        assert!(pool.saved_at(1).is_none() && pool.copies.is_empty());
    }
}
