// Values of `top_k.wgsl` that are logits: the id of a logit is its place in the row.

@group(0) @binding(1) var<storage, read> logits: array<u32>;

fn value(index: u32, place: u32) -> vec2<u32> {
    return vec2<u32>(place, logits[index]);
}
