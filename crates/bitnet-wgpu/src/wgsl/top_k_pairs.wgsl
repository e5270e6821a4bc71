// Values of `top_k.wgsl` that have ids: pairs of an id and the bits of a logit.

@group(0) @binding(1) var<storage, read> pairs: array<vec2<u32>>;

fn value(index: u32, place: u32) -> vec2<u32> {
    return pairs[index];
}
