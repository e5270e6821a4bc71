//! GPU: the forward pass on any vendor's device, through Vulkan, Metal or DirectX 12.
//!
//! [`Gpu`] implements [`bitnet_models::Backend`]: weights, tables, activations and the cache live on
//! the device, and the pass is recorded and submitted once for each step. [`adapters()`] lists the
//! devices of this machine; Mesa's software driver is one of them, so every kernel can be tested
//! without a GPU.
//!
//! Kernels are the files of `src/wgsl`, each with its shapes and its trick in its head. They follow
//! the rules of bitnet-kernels: integer sums are exact, and float sums have the CPU's order. A driver
//! that does not fuse `a·b + c` gives the CPU's bits; any driver gives the same bits for any batch,
//! chunk and repetition (`docs/determinism.md`).
//!
//! | file | content |
//! |---|---|
//! | `adapters.rs` | the devices of this machine, and how a name chooses one |
//! | `context.rs` | an open device: memory with its limit, programs, failures |
//! | `memory.rs` | the bytes of buffers by their use |
//! | `recorder.rs` | the kernels of a pass, submitted together |
//! | `shaders.rs` | the programs and the WGSL files that they are made of |
//! | `weights.rs`, `table.rs` | packed matrices, the embedding and the head |
//! | `buffers.rs` | activations, batches, the cache |
//! | `gpu.rs` | a backend on an open device |
//! | `backend.rs`, `products.rs`, `linear.rs`, `head.rs` | the operations of the forward pass |
//! | `probe.rs` | the peak rates of a device |

#![forbid(unsafe_code)]

mod adapters;
mod backend;
mod buffers;
mod context;
mod error;
mod gpu;
mod head;
mod linear;
mod memory;
mod probe;
mod products;
mod recorder;
mod shaders;
mod table;
mod weights;

pub use adapters::{Adapter, adapter_by_name, adapters, best_gpu};

pub use context::DeviceLimits;
pub use error::{Error, Result};
pub use gpu::{Gpu, OpenGpu};
pub use head::{LOGITS_BYTES, TOP_MAX};
pub use memory::DeviceMemory;
pub use probe::Probe;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
