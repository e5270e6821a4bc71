//! NUMBERS: the arithmetic of ternary language models, slices in and slices out. No files, no
//! models.
//!
//! The face is [`Cpu`]: the operations of a forward pass (quantize, multiply by ternary weights,
//! attend, project), each run on all threads of its [`Pool`] with the functions of one
//! [`KernelSet`] and counted in its [`Counters`].
//!
//! - A weight is −1, 0 or +1 and an activation an int8, so a matrix product is an exact integer
//!   sum: [`TernaryMatrix`] holds the weights in the order in which all instruction sets stream
//!   them, and [`Activations`] holds the rows of activations.
//! - [`GroupMatrix`] holds signs or codes of 2 bits with a scale for each 64 or 128 columns of a
//!   row; [`GroupActivations`] holds the rows of activations, with a scale for each run of inputs.
//!   Sums within a run are exact, and those over runs and groups have one ascending order.
//! - Float sums have one order, written down once in `portable`: a fixed number of virtual lanes
//!   and one reduction tree, multiply then add, never fused. `math` has the elementary functions,
//!   since the C library's differ between machines.
//! - So every set, every number of threads and every number of rows at once gives the same bits.
//!   `tests/agree.rs` compares each set with `scalar`, the reference, without tolerance.
//!
//! An instruction set is one module (`scalar`, `avx2`, `avx512`, `neon`), and one function detects
//! the CPU's features: [`KernelSet::available`].
//!
//! The crate has five storeys, and each uses only itself and those below it:
//!
//! ```text
//! ops       operations of a forward pass, on all threads, counted
//! sets      functions over slices for each instruction set, and the table that names them
//! weights   containers that hold matrices in one of the layouts
//! threads   the pool, memory in huge pages, counters, probes
//! layout    bytes as they lie in memory, with the constants of each layout
//! ```

mod layout;
mod ops;
mod sets;
mod threads;
mod weights;

pub use sets::math;

pub use layout::activations::{Activations, TILE_ROWS};
pub use layout::cache::{CACHE_BLOCK, SEGMENT_KEYS};
pub use layout::cells::GroupCodes;
pub use layout::group_activations::GroupActivations;
pub use layout::lines::{BLOCK_ROWS, LINE_COLS, MAX_COLS};
pub use layout::packing::Packing;
pub use ops::attention::{
    AttentionScratch, AttentionShape, LayerCache, MAX_HEAD_DIM, Place, Places, Qkv,
};
pub use ops::cpu::{Cpu, InnerZeros, LiveNeurons, Neurons, Norm};
pub use ops::recurrent::{DeltaInput, DeltaScratch, DeltaShape, DeltaWeights, StateRows};
pub use ops::screen::{Estimates, ScreenScratch};
pub use ops::sparse::SparseScratch;
pub use sets::compiled::Work;
pub use sets::recurrent::CONV_TAPS;
pub use sets::segment::{CacheElement, Partial, Segment, SegmentScratch};
pub use sets::table::{Gate, KernelSet};
pub use threads::counters::{Count, Counters, Kernel};
pub use threads::memory::{Huge, Plain};
pub use threads::pool::{Pool, default_threads};
pub use threads::probe::{READ_PROBE_BYTES, ReadProbe};
pub use weights::columns::TernaryColumns;
pub use weights::groups::{GroupMatrix, UnpackGroups};
pub use weights::head::ScreenTable;
pub use weights::matrix::{Part, TernaryMatrix, Unpack};
pub use weights::rows::TernaryRows;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
