//! The order in which the tensors of a model are checked and written.

use super::{LayerSlot, LinearSlot, Projection, Slot, Source};

/// The tensors of a model in the order they are written, without rope factors.
pub(crate) fn slots(source: &dyn Source) -> Vec<Slot> {
    let config = source.config();
    let mut slots = vec![Slot::Embedding];
    for index in 0..config.num_layers {
        let used = LAYER_SLOTS
            .into_iter()
            .filter(|slot| slot.is_used(config, index));
        slots.extend(used.map(|slot| Slot::Layer(index, slot)));
    }
    slots.push(Slot::OutputNorm);
    slots.extend(source.has_head().then_some(Slot::Head));
    slots
}

/// The slots of all kinds of layers, in the order of the forward pass.
const LAYER_SLOTS: [LayerSlot; 34] = {
    use LayerSlot::{
        AttentionNorm, AttentionSubNorm, Bias, FfnNorm, FfnSubNorm, InputNorm, KeyNorm, Linear,
        PostAttentionNorm, PostFfnNorm, QueryNorm, Weight,
    };
    use LinearSlot::{Convolution, Decay, Norm, Strength, Time, TimeBias};
    use Projection::{
        AttentionOutput, Down, Gate, Key, LinearGate, LinearOutput, LinearQkv, Query, Up, Value,
    };
    [
        AttentionNorm,
        InputNorm(Query),
        Weight(Query),
        Bias(Query),
        InputNorm(Key),
        Weight(Key),
        Bias(Key),
        InputNorm(Value),
        Weight(Value),
        Bias(Value),
        QueryNorm,
        KeyNorm,
        AttentionSubNorm,
        InputNorm(AttentionOutput),
        Weight(AttentionOutput),
        PostAttentionNorm,
        Weight(LinearQkv),
        Weight(LinearGate),
        Linear(Convolution),
        Linear(Time),
        Linear(Strength),
        Linear(Decay),
        Linear(TimeBias),
        Linear(Norm),
        Weight(LinearOutput),
        FfnNorm,
        InputNorm(Gate),
        Weight(Gate),
        InputNorm(Up),
        Weight(Up),
        FfnSubNorm,
        InputNorm(Down),
        Weight(Down),
        PostFfnNorm,
    ]
};
