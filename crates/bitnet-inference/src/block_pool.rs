//! [`BlockPool`]: which blocks of the key/value cache are free. Ids only, no tensors.

/// The free blocks.
pub(crate) struct BlockPool {
    /// The next one to be given out is the last.
    free: Vec<u32>,
    num_blocks: usize,
}

impl BlockPool {
    /// All of `num_blocks` free.
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self { free: (0..num_blocks).rev().collect(), num_blocks: num_blocks as usize }
    }

    /// Blocks nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Moves `count` free blocks to the end of `blocks`; none, and false, if there are fewer.
    pub fn take(&mut self, count: usize, blocks: &mut Vec<u32>) -> bool {
        if count > self.free.len() {
            return false;
        }
        blocks.extend(self.free.drain(self.free.len() - count..).rev());
        true
    }

    /// Takes blocks back.
    pub fn give_back(&mut self, blocks: &mut Vec<u32>) {
        self.free.extend(blocks.drain(..).rev());
        debug_assert!(self.free.len() <= self.num_blocks);
    }
}
