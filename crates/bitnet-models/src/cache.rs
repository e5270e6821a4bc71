//! [`KvCache`]: keys and values of past positions, in blocks that a pool hands out to sequences.

use bitnet_kernels::{AttentionShape, CACHE_BLOCK, LayerCache};
use half::f16;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// The element type of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision, as bitnet.cpp and llama.cpp keep it.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// Bytes of an element.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// What `--kv-type` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Keys and values of all layers: `num_blocks` blocks of [`CACHE_BLOCK`] positions, `[blocks,
/// layers, keys then values]`.
///
/// Memory is reserved at once and becomes resident as blocks are first written. It is asked for in
/// huge pages: attention reads pieces of a few kilobytes, and with small pages a third of its time
/// goes to finding them. That is why all layers of a block lie together: layer by layer, the first
/// position would make a huge page of every layer resident.
pub struct KvCache {
    shape: AttentionShape,
    kv_type: KvType,
    num_layers: usize,
    num_blocks: usize,
    map: MmapMut,
}

/// What a cache has to hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// The heads of each layer.
    pub attention: AttentionShape,
    /// Layers with keys and values.
    pub num_layers: usize,
    /// The element type.
    pub kv_type: KvType,
    /// Blocks of [`CACHE_BLOCK`] positions.
    pub num_blocks: usize,
}

impl KvCache {
    /// Positions in a block.
    pub const BLOCK: usize = CACHE_BLOCK;

    /// A cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// If the system does not have that much memory.
    pub fn new(
        attention: AttentionShape,
        num_layers: usize,
        kv_type: KvType,
        num_blocks: usize,
    ) -> Result<Self> {
        Self::with_shape(&CacheShape {
            attention,
            num_layers,
            kv_type,
            num_blocks,
        })
    }

    /// A cache of the given shape.
    ///
    /// # Errors
    /// If the system does not have that much memory.
    pub fn with_shape(shape: &CacheShape) -> Result<Self> {
        let CacheShape {
            attention: shape,
            num_layers,
            kv_type,
            num_blocks,
        } = *shape;
        let bytes = Self::block_bytes(shape, num_layers, kv_type).checked_mul(num_blocks);
        let map = match bytes {
            Some(bytes) => MmapMut::map_anon(bytes.max(1)).map_err(|error| Some((bytes, error))),
            None => Err(None),
        };
        let map = map.map_err(|failure| Error::KvMemory {
            positions: num_blocks.saturating_mul(CACHE_BLOCK),
            bytes: failure.as_ref().map_or(usize::MAX, |(bytes, _)| *bytes),
            source: failure.map_or_else(
                || std::io::ErrorKind::OutOfMemory.into(),
                |(_, error)| error,
            ),
        })?;
        // A hint: without huge pages everything works, only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self {
            shape,
            kv_type,
            num_layers,
            num_blocks,
            map,
        })
    }

    /// Bytes of one block, all layers.
    #[must_use]
    pub fn block_bytes(shape: AttentionShape, num_layers: usize, kv_type: KvType) -> usize {
        (shape.key_block_len() + shape.value_block_len()) * num_layers * kv_type.size_bytes()
    }

    /// The element type.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Blocks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Bytes reserved.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.map.len()
    }

    /// The cache of one layer, if its elements are f16.
    pub(crate) fn layer_f16(&mut self, layer: usize) -> LayerCache<'_, f16> {
        self.layer(layer)
    }

    /// The cache of one layer, if its elements are f32.
    pub(crate) fn layer_f32(&mut self, layer: usize) -> LayerCache<'_, f32> {
        self.layer(layer)
    }

    fn layer<T: bytemuck::Pod>(&mut self, layer: usize) -> LayerCache<'_, T> {
        assert!(
            layer < self.num_layers,
            "layer {layer} of {}",
            self.num_layers
        );
        let pair = self.shape.key_block_len() + self.shape.value_block_len();
        let data = bytemuck::cast_slice_mut(&mut self.map);
        LayerCache {
            data,
            offset: layer * pair,
            stride: self.num_layers * pair,
        }
    }
}
