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

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod counters;
mod cpu;
mod disjoint;
mod dispatch;
pub mod math;
mod matrix;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packing;
mod pool;
mod portable;
mod probe;
mod scalar;
mod screen;
mod segment;
mod set;
mod sparse;
mod tl;

pub use activations::{Activations, TILE_ROWS};
pub use attention::{
    AttentionScratch, AttentionShape, LayerCache, MAX_HEAD_DIM, Place, Places, Qkv,
};
pub use counters::{Count, Counters, Kernel};
pub use cpu::{Cpu, Gate, InnerZeros, LiveNeurons, Neurons, Norm};
pub use dispatch::Work;
pub use matrix::{BLOCK_ROWS, MAX_COLS, Part, TernaryMatrix, Unpack};
pub use memory::{Huge, Plain};
pub use packing::{LINE_COLS, Packing};
pub use pool::{Pool, default_threads};
pub use probe::{READ_PROBE_BYTES, ReadProbe};
pub use screen::{Estimates, ScreenScratch, ScreenTable};
pub use segment::{CACHE_BLOCK, CacheElement, Partial, SEGMENT_KEYS, Segment, SegmentScratch};
pub use set::KernelSet;
pub use sparse::{SparseScratch, TernaryColumns, TernaryRows};
