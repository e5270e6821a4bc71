//! NUMBERS: the arithmetic of ternary language models, slices in and slices out. No files, no
//! models.
//!
//! The face is [`Cpu`]: the operations of a forward pass (quantize, multiply by ternary weights,
//! attend, project), each run on all threads of its [`Pool`] with the functions of one
//! [`KernelSet`] and counted in its [`Counters`].
//!
//! - A weight is −1, 0 or +1 and an activation an int8, so a matrix product is an exact integer
//!   sum: [`TernaryMatrix`] holds the weights in the order in which all instruction sets stream
//!   them, [`Activations`] the rows they meet.
//! - Float sums have one order, written down once in `portable`: a fixed number of virtual lanes
//!   and one reduction tree, multiply then add, never fused. `math` has the elementary functions,
//!   since the C library's differ between machines.
//! - So every set, every number of threads and every number of rows at once gives the same bits.
//!   `tests/agree.rs` compares each set with `scalar`, the reference, without tolerance.
//!
//! An instruction set is one module (`scalar`, `avx2`, `avx512`, `neon`), and the CPU is asked what
//! it can do in one function, [`KernelSet::available`].

mod layout;
mod ops;
mod sets;
mod threads;
mod weights;

pub use sets::math;

pub use layout::activations::{Activations, TILE_ROWS};
pub use layout::packing::{LINE_COLS, Packing};
pub use ops::attention::{
    AttentionScratch, AttentionShape, LayerCache, MAX_HEAD_DIM, Place, Places, Qkv,
};
pub use ops::cpu::{Cpu, Gate, InnerZeros, LiveNeurons, Neurons, Norm};
pub use ops::screen::{Estimates, ScreenScratch, ScreenTable};
pub use ops::sparse::{SparseScratch, TernaryColumns, TernaryRows};
pub use sets::compiled::Work;
pub use sets::segment::{
    CACHE_BLOCK, CacheElement, Partial, SEGMENT_KEYS, Segment, SegmentScratch,
};
pub use sets::table::KernelSet;
pub use threads::counters::{Count, Counters, Kernel};
pub use threads::memory::{Huge, Plain};
pub use threads::pool::{Pool, default_threads};
pub use threads::probe::{READ_PROBE_BYTES, ReadProbe};
pub use weights::matrix::{BLOCK_ROWS, MAX_COLS, Part, TernaryMatrix, Unpack};
