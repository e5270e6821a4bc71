//! The block and segment sizes of the key/value cache.

/// Key positions in a block of the key/value cache.
pub const CACHE_BLOCK: usize = 32;
/// Key positions in a segment: attention is computed for each segment on its own, then merged in
/// ascending order.
pub const SEGMENT_KEYS: usize = 256;
