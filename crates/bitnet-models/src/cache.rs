//! [`KvCache`]: keys and values of past positions, in blocks that a pool hands out to sequences.

use bitnet_kernels::{AttentionShape, CACHE_BLOCK, LayerCache};
use half::f16;
use memmap2::{MmapMut, MmapOptions};

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

    /// Its name in `--kv-type`.
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
/// Memory is reserved at once and becomes resident as blocks are first written. The system is asked
/// for huge pages: attention reads pieces of a few kilobytes, and with small pages a third of its
/// time goes to address translation. All layers of a block lie together, because separate layers
/// would make one huge page per layer resident at the first position.
pub struct KvCache {
    shape: AttentionShape,
    kv_type: KvType,
    num_layers: usize,
    num_blocks: usize,
    map: MmapMut,
    /// Recurrent states, `[slots, state_len]`.
    states: MmapMut,
    state_len: usize,
}

/// The contents of a cache.
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
    /// Numbers of one sequence's recurrent state, all layers together; 0 without recurrent layers.
    pub state_len: usize,
    /// Slots for states.
    pub num_states: usize,
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
            state_len: 0,
            num_states: 0,
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
            state_len,
            num_states,
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
        // This is only a hint: without huge pages the cache works, but is slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self {
            shape,
            kv_type,
            num_layers,
            num_blocks,
            map,
            states: map_states(state_len, num_states)?,
            state_len,
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

    /// Numbers of one sequence's recurrent state.
    #[must_use]
    pub fn state_len(&self) -> usize {
        self.state_len
    }

    /// The recurrent state in a slot, `[state_len]`; zeros if it was never written.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn state_mut(&mut self, slot: u32) -> &mut [f32] {
        let start = slot as usize * self.state_len;
        let states: &mut [f32] = bytemuck::cast_slice_mut(&mut self.states);
        &mut states[start..start + self.state_len]
    }

    /// All recurrent states, `[slots, state_len]`, and `state_len`.
    pub(crate) fn states_mut(&mut self) -> (&mut [f32], usize) {
        (bytemuck::cast_slice_mut(&mut self.states), self.state_len)
    }

    /// Copies a recurrent state from one slot to another.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn copy_state(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize * self.state_len, to as usize * self.state_len);
        let states: &mut [f32] = bytemuck::cast_slice_mut(&mut self.states);
        states.copy_within(from..from + self.state_len, to);
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

/// Reserves memory for recurrent states; a slot takes memory when it is first written.
fn map_states(state_len: usize, num_states: usize) -> Result<MmapMut> {
    let failed = |bytes, source| Error::StateMemory {
        num_states,
        bytes,
        source,
    };
    let bytes = state_len
        .checked_mul(size_of::<f32>())
        .and_then(|bytes| bytes.checked_mul(num_states))
        .ok_or_else(|| failed(usize::MAX, std::io::ErrorKind::OutOfMemory.into()))?;
    MmapOptions::new()
        .len(bytes.max(size_of::<f32>()))
        .no_reserve_swap()
        .map_anon()
        .map_err(|error| failed(bytes, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(state_len: usize, num_states: usize) -> Result<KvCache> {
        KvCache::with_shape(&CacheShape {
            attention: AttentionShape {
                heads: 1,
                kv_heads: 1,
                head_dim: 16,
            },
            num_layers: 1,
            kv_type: KvType::F16,
            num_blocks: 1,
            state_len,
            num_states,
        })
    }

    #[test]
    fn a_copied_state_has_the_same_bits_and_other_slots_stay() {
        let mut cache = cache(3, 4).expect("memory");
        let state = [1.5, f32::MIN_POSITIVE / 2.0, -0.0];
        cache.state_mut(1).copy_from_slice(&state);
        cache.copy_state(1, 3);
        let bits = |state: &[f32]| state.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(cache.state_mut(3)), bits(&state));
        assert_eq!(bits(cache.state_mut(1)), bits(&state));
        for slot in [0, 2] {
            assert_eq!(cache.state_mut(slot), [0.0; 3]);
        }
    }

    #[test]
    fn more_states_than_memory_can_hold_are_an_error_with_their_number() {
        let Err(error) = cache(usize::MAX / 4, 9) else {
            panic!("no machine has that memory")
        };
        assert!(error.to_string().contains("9 recurrent states"), "{error}");
    }
}
