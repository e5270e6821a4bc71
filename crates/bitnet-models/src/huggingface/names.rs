//! The names of tensors and modules in a checkpoint.

use crate::source::{LayerSlot, LinearSlot, Projection, Slot};

/// The names of a layer's modules, between `model.layers.N.` and `.weight`; where there are two,
/// older files, or files of another class, use the second.
pub(super) const LAYER_NAMES: [(LayerSlot, &str); 24] = [
    (LayerSlot::AttentionNorm, "input_layernorm"),
    (LayerSlot::AttentionSubNorm, "self_attn.attn_sub_norm"),
    (LayerSlot::AttentionSubNorm, "self_attn.inner_attn_ln"),
    (LayerSlot::FfnNorm, "post_attention_layernorm"),
    (LayerSlot::FfnSubNorm, "mlp.ffn_sub_norm"),
    (LayerSlot::FfnSubNorm, "mlp.ffn_layernorm"),
    (LayerSlot::QueryNorm, "self_attn.q_norm"),
    (LayerSlot::QueryNorm, "self_attn.query_layernorm"),
    (LayerSlot::KeyNorm, "self_attn.k_norm"),
    (LayerSlot::KeyNorm, "self_attn.key_layernorm"),
    (LayerSlot::Weight(Projection::Query), "self_attn.q_proj"),
    (LayerSlot::Weight(Projection::Key), "self_attn.k_proj"),
    (LayerSlot::Weight(Projection::Value), "self_attn.v_proj"),
    (
        LayerSlot::Weight(Projection::AttentionOutput),
        "self_attn.o_proj",
    ),
    (
        LayerSlot::Weight(Projection::LinearQkv),
        "linear_attn.in_proj_qkv",
    ),
    (
        LayerSlot::Weight(Projection::LinearGate),
        "linear_attn.in_proj_z",
    ),
    (
        LayerSlot::Weight(Projection::LinearOutput),
        "linear_attn.out_proj",
    ),
    (
        LayerSlot::Linear(LinearSlot::Convolution),
        "linear_attn.conv1d",
    ),
    (LayerSlot::Linear(LinearSlot::Time), "linear_attn.in_proj_a"),
    (
        LayerSlot::Linear(LinearSlot::Strength),
        "linear_attn.in_proj_b",
    ),
    (LayerSlot::Linear(LinearSlot::Norm), "linear_attn.norm"),
    (LayerSlot::Weight(Projection::Gate), "mlp.gate_proj"),
    (LayerSlot::Weight(Projection::Up), "mlp.up_proj"),
    (LayerSlot::Weight(Projection::Down), "mlp.down_proj"),
];

/// The names that a slot's tensor can have, the usual one first.
pub(super) fn names(slot: Slot) -> Vec<String> {
    let (index, slot) = match slot {
        Slot::Embedding => return vec!["model.embed_tokens.weight".to_owned()],
        Slot::OutputNorm => return vec!["model.norm.weight".to_owned()],
        Slot::Head => return vec!["lm_head.weight".to_owned()],
        Slot::Layer(index, slot) => (index, slot),
    };
    if let Some(constant) = linear_constant(slot) {
        return vec![format!("model.layers.{index}.{constant}")];
    }
    let (module, suffix) = match slot {
        LayerSlot::InputNorm(projection) => (LayerSlot::Weight(projection), "rms_norm.weight"),
        LayerSlot::Bias(projection) => (LayerSlot::Weight(projection), "bias"),
        other => (other, "weight"),
    };
    let known = LAYER_NAMES.iter().filter(|(known, _)| *known == module);
    known
        .map(|(_, name)| format!("model.layers.{index}.{name}.{suffix}"))
        .collect()
}

/// The constants of linear attention whose names have no `.weight`.
fn linear_constant(slot: LayerSlot) -> Option<&'static str> {
    match slot {
        LayerSlot::Linear(LinearSlot::Decay) => Some("linear_attn.A_log"),
        LayerSlot::Linear(LinearSlot::TimeBias) => Some("linear_attn.dt_bias"),
        _ => None,
    }
}

/// The name of a slot's tensor in new files.
pub(crate) fn name(slot: Slot) -> String {
    names(slot).into_iter().next().unwrap_or_default() // every slot has one
}

/// The module of a projection, as `config.json` names it.
pub(super) fn module_name(layer: usize, projection: Projection) -> String {
    let name = name(Slot::Layer(layer, LayerSlot::Weight(projection)));
    name.trim_end_matches(".weight").to_owned()
}
