//! [`BlockPool`]: tracks which sequences hold which block of the key/value cache, and the contents
//! of the other blocks. Ids only, no tensors.
//!
//! A full block is known by the tokens in it and the block before it, so the known blocks form a
//! tree, and a prompt that begins like an earlier one finds its blocks by walking down. The pool
//! compares the tokens themselves, not only a hash, so it never confuses two blocks. A block that
//! no sequence holds stays known until its room is needed: the least recently used goes first, and
//! none before the blocks that follow it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bitnet_models::KvCache;
use bitnet_tokenizers::TokenId;

/// Positions in a block.
const BLOCK: usize = KvCache::BLOCK;

/// The content of a block: its tokens and all tokens before them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    before: Before,
    tokens: [TokenId; BLOCK],
}

/// The block before a block, or the beginning of a sequence. Sequences with different salts share
/// no blocks.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Before {
    Block(u32),
    Start(Option<Arc<str>>),
}

impl Content {
    /// The content of block `index` of a sequence once it is full.
    fn new(salt: Option<&Arc<str>>, tokens: &[TokenId], held: &[u32], index: usize) -> Self {
        let before = match index {
            0 => Before::Start(salt.cloned()),
            _ => Before::Block(held[index - 1]),
        };
        let Some(tokens) = tokens[index * BLOCK..].first_chunk::<BLOCK>() else {
            unreachable!("a full block")
        };
        Self {
            before,
            tokens: *tokens,
        }
    }
}

#[derive(Clone, Default)]
struct Block {
    /// Number of sequences that hold it.
    holders: u32,
    /// Number of known blocks that follow it.
    followers: u32,
    content: Option<Arc<Content>>,
    /// The time when it was last returned.
    used: u64,
}

/// The blocks of a cache.
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Blocks without known content; the pool takes the last one next.
    free: Vec<u32>,
    known: HashMap<Arc<Content>, u32>,
    /// Known blocks that no sequence holds and no known block follows, by the time of their last
    /// use.
    evictable: BTreeSet<(u64, u32)>,
    /// Blocks that no sequence holds.
    num_available: usize,
    clock: u64,
    /// Blocks whose content was forgotten; the caller reads and clears the list.
    pub forgotten: Vec<u32>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        let ids = 0..u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); ids.len()],
            num_available: ids.len(),
            free: ids.rev().collect(),
            known: HashMap::new(),
            evictable: BTreeSet::new(),
            clock: 0,
            forgotten: Vec::new(),
        }
    }

    /// Blocks that no sequence holds, known ones included.
    pub fn num_available(&self) -> usize {
        self.num_available
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Takes the known blocks that `tokens` begin with, in order, and appends them to `held`, which
    /// must be empty.
    pub fn take_known(&mut self, salt: Option<&Arc<str>>, tokens: &[TokenId], held: &mut Vec<u32>) {
        held.extend(self.known_after(salt, tokens, &[]));
        held.iter().for_each(|id| self.hold(*id));
    }

    /// The known blocks that continue a sequence of `tokens` after its first blocks.
    pub fn known_after<'a>(
        &'a self,
        salt: Option<&Arc<str>>,
        tokens: &'a [TokenId],
        first: &[u32],
    ) -> impl Iterator<Item = u32> + use<'a> {
        let mut before = match first.last() {
            None => Before::Start(salt.cloned()),
            Some(last) => Before::Block(*last),
        };
        let rest = &tokens.as_chunks::<BLOCK>().0[first.len()..];
        rest.iter().map_while(move |tokens| {
            let content = Content {
                before: before.clone(),
                tokens: *tokens,
            };
            let id = *self.known.get(&content)?;
            before = Before::Block(id);
            Some(id)
        })
    }

    /// Takes `count` blocks and appends them to `held`; takes none and returns false if fewer are
    /// available.
    pub fn take(&mut self, count: usize, held: &mut Vec<u32>) -> bool {
        if count > self.num_available {
            return false;
        }
        for _ in 0..count {
            let Some(id) = self.free.pop().or_else(|| self.evict()) else {
                unreachable!("an available block is free, or the last of its sequence")
            };
            self.num_available -= 1;
            self.blocks[id as usize].holders = 1;
            held.push(id);
        }
        true
    }

    /// Records that block `index` of a sequence is full. If another known block has the same
    /// content, the sequence gets that one.
    pub fn fill(
        &mut self,
        salt: Option<&Arc<str>>,
        tokens: &[TokenId],
        held: &mut [u32],
        index: usize,
    ) {
        let content = Content::new(salt, tokens, held, index);
        if self.replace(&content, held, index) {
            return;
        }
        let id = held[index];
        let content = Arc::new(content);
        if let Before::Block(before) = content.before {
            self.blocks[before as usize].followers += 1;
        }
        self.blocks[id as usize].content = Some(Arc::clone(&content));
        self.known.insert(content, id);
    }

    /// Replaces block `index` of a sequence, which is not full yet, by a known block with the same
    /// future content; false if there is none.
    pub fn take_over(
        &mut self,
        salt: Option<&Arc<str>>,
        tokens: &[TokenId],
        held: &mut [u32],
        index: usize,
    ) -> bool {
        self.replace(&Content::new(salt, tokens, held, index), held, index)
    }

    /// Replaces block `index` by the known block with this content: equal tokens have equal keys
    /// and values, to the bit. False if there is none.
    fn replace(&mut self, content: &Content, held: &mut [u32], index: usize) -> bool {
        let Some(&known) = self.known.get(content) else {
            return false;
        };
        if known != held[index] {
            self.hold(known);
            let own = std::mem::replace(&mut held[index], known);
            self.release(own);
        }
        true
    }

    /// Takes blocks back. Their known content stays known.
    pub fn give_back(&mut self, held: &mut Vec<u32>) {
        self.clock += 1;
        // The last block first, so that the pool forgets a block's successors before the block.
        while let Some(id) = held.pop() {
            self.release(id);
        }
    }

    fn hold(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if block.holders == 0 {
            self.num_available -= 1;
            self.evictable.remove(&(block.used, id));
        }
        block.holders += 1;
    }

    fn release(&mut self, id: u32) {
        let clock = self.clock;
        let block = &mut self.blocks[id as usize];
        debug_assert!(block.holders > 0, "block {id} given back twice");
        block.holders -= 1;
        if block.holders > 0 {
            return;
        }
        self.num_available += 1;
        block.used = clock;
        match (&block.content, block.followers) {
            (None, _) => self.free.push(id),
            (Some(_), 0) => {
                self.evictable.insert((clock, id));
            }
            (Some(_), _) => {}
        }
    }

    /// Forgets the content of the least recently used block, and returns its id.
    fn evict(&mut self) -> Option<u32> {
        let (_, id) = self.evictable.pop_first()?;
        self.forgotten.push(id);
        if let Some(content) = self.blocks[id as usize].content.take() {
            self.known.remove(&content);
            if let Before::Block(before) = content.before {
                let block = &mut self.blocks[before as usize];
                block.followers -= 1;
                if block.followers == 0 && block.holders == 0 {
                    self.evictable.insert((block.used, before));
                }
            }
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(blocks: &[u32]) -> Vec<TokenId> {
        blocks
            .iter()
            .flat_map(|&b| (0..BLOCK as u32).map(move |i| TokenId(1000 * b + i)))
            .collect()
    }

    /// Runs a sequence of whole blocks from beginning to end; returns how many of its blocks were
    /// known.
    fn run(pool: &mut BlockPool, salt: Option<&Arc<str>>, blocks: &[u32]) -> usize {
        let tokens = tokens(blocks);
        let mut held = Vec::new();
        pool.take_known(salt, &tokens, &mut held);
        let known = held.len();
        assert!(
            pool.take(blocks.len() - known, &mut held),
            "{} available",
            pool.num_available()
        );
        for index in known..blocks.len() {
            pool.fill(salt, &tokens, &mut held, index);
        }
        pool.give_back(&mut held);
        known
    }

    #[test]
    fn a_known_beginning_is_found_again() {
        let mut pool = BlockPool::new(10);
        assert_eq!(run(&mut pool, None, &[1, 2, 3]), 0);
        assert_eq!(run(&mut pool, None, &[1, 2, 3, 4]), 3);
        assert_eq!(run(&mut pool, None, &[1, 2, 5]), 2);
        assert_eq!(
            run(&mut pool, None, &[2, 3]),
            0,
            "the same tokens at another place"
        );
        assert_eq!(pool.num_available(), 10);
    }

    #[test]
    fn sequences_with_different_salts_share_no_blocks() {
        let mut pool = BlockPool::new(10);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(run(&mut pool, Some(&a), &[1, 2]), 0);
        assert_eq!(run(&mut pool, Some(&b), &[1, 2]), 0);
        assert_eq!(run(&mut pool, None, &[1, 2]), 0);
        assert_eq!(run(&mut pool, Some(&a), &[1, 2]), 2);
    }

    #[test]
    fn the_last_block_of_the_least_recently_used_sequence_goes_first() {
        let mut pool = BlockPool::new(4);
        run(&mut pool, None, &[1, 2]);
        run(&mut pool, None, &[3, 4]);
        assert_eq!(run(&mut pool, None, &[5]), 0);
        assert_eq!(pool.forgotten.len(), 1);
        // The pool dropped 2; 1, 3 and 4 remain.
        assert_eq!(run(&mut pool, None, &[3, 4]), 2);
        assert_eq!(run(&mut pool, None, &[1]), 1);
    }

    #[test]
    fn two_sequences_of_the_same_tokens_end_with_the_same_blocks() {
        let mut pool = BlockPool::new(8);
        let tokens = tokens(&[1, 2]);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.take(2, &mut a) && pool.take(2, &mut b));
        for index in 0..2 {
            pool.fill(None, &tokens, &mut a, index);
            pool.fill(None, &tokens, &mut b, index);
        }
        assert_eq!(a, b);
        assert_eq!(pool.num_available(), 6);
        pool.give_back(&mut a);
        assert_eq!(pool.num_available(), 6, "the other still holds them");
        pool.give_back(&mut b);
        assert_eq!(pool.num_available(), 8);
    }

    #[test]
    fn a_sequence_reuses_a_block_that_another_sequence_filled() {
        let mut pool = BlockPool::new(8);
        let tokens = tokens(&[1, 2]);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.take(2, &mut a) && pool.take(2, &mut b));
        assert!(
            !pool.take_over(None, &tokens, &mut b, 0),
            "no sequence has filled it"
        );
        pool.fill(None, &tokens, &mut a, 0);
        let salt = "mine".into();
        assert!(
            !pool.take_over(Some(&salt), &tokens, &mut b, 0),
            "not with another salt"
        );
        assert!(
            pool.take_over(None, &tokens, &mut b, 0) && !pool.take_over(None, &tokens, &mut b, 1)
        );
        assert_eq!((a[0], pool.num_available()), (b[0], 5));
        pool.give_back(&mut a);
        pool.give_back(&mut b);
        assert_eq!(pool.num_available(), 8);
    }

    #[test]
    fn no_block_is_lost_or_given_out_twice() {
        let mut pool = BlockPool::new(12);
        let mut random = 12345u64;
        let mut running: Vec<(Vec<TokenId>, Vec<u32>, usize)> = Vec::new();
        for _ in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let pick = (random >> 33) as usize;
            match pick % 4 {
                0 => {
                    let tokens = tokens(&[
                        (pick / 4 % 2) as u32,
                        (pick / 8 % 3) as u32,
                        (pick / 24 % 2) as u32,
                    ]);
                    let mut held = Vec::new();
                    pool.take_known(None, &tokens, &mut held);
                    let known = held.len();
                    if pool.take(3 - known, &mut held) {
                        running.push((tokens, held, known));
                    } else {
                        pool.give_back(&mut held);
                    }
                }
                1 | 2 if !running.is_empty() => {
                    let index = pick / 4 % running.len();
                    let (tokens, held, filled) = &mut running[index];
                    if *filled < 3 {
                        pool.fill(None, tokens, held, *filled);
                        *filled += 1;
                    }
                }
                _ if !running.is_empty() => {
                    let (_, mut held, _) = running.swap_remove(pick / 4 % running.len());
                    pool.give_back(&mut held);
                }
                _ => {}
            }
            let mut held: Vec<u32> = running
                .iter()
                .flat_map(|(_, held, _)| held.iter().copied())
                .collect();
            let holders: usize = pool.blocks.iter().map(|block| block.holders as usize).sum();
            assert_eq!(holders, held.len());
            held.sort_unstable();
            held.dedup();
            assert_eq!(pool.num_available() + held.len(), 12);
        }
    }
}
